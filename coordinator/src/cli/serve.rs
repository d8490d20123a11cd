//! `brigade serve`: a coordinator for workers that join from other machines.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::INTERRUPTED;
use super::host::Host;
use super::options::{
    CONTROL_PORT, HttpOptions, ServingOptions, cluster_settings, model_file, parse_address, state_dir,
};
use super::report::{Place, Reporter, say};
use crate::signals::Signals;

/// Life of the token that is printed at the start.
const TOKEN_TTL: Duration = Duration::from_secs(24 * 3600);

/// Flags of `brigade serve`.
#[derive(Debug, Args)]
#[command(after_help = "Example: brigade serve Llama-70B.gguf --min-workers 2")]
pub struct ServeArgs {
    /// The model: a GGUF file, the first part of a split one, or a directory of safetensors; each worker needs it too
    #[arg(env = "BRIGADE_MODEL", hide_env = true)]
    model: PathBuf,

    #[command(flatten)]
    pub(super) http: HttpOptions,

    /// Where workers attach: TCP for control, UDP on the same port for data
    #[arg(long, env = "BRIGADE_CONTROL", value_name = "ADDR", hide_env = true, default_value = "0.0.0.0:7481", value_parser = parse_address)]
    control: SocketAddr,

    /// Where the coordinator keeps its identity and its tokens [default: brigade in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "BRIGADE_STATE", value_name = "DIR", hide_env = true)]
    state: Option<PathBuf>,

    /// Workers to wait for before the model is cut
    #[arg(long, env = "BRIGADE_MIN_WORKERS", value_name = "N", hide_env = true, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    min_workers: u32,

    #[command(flatten)]
    serving: ServingOptions,
}

/// Serves until a signal.
pub(super) async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    args.http.check()?;
    let model = model_file(&args.model)?;
    let state = state_dir(args.state.as_deref())?;
    let mut signals = Signals::listen().context("failed to listen for signals")?;
    let settings = cluster_settings(&model, state, args.control, args.min_workers as usize, &args.serving)?;
    let mut host = Host::start(settings, &args.http, args.serving.keep_answers, true).await?;
    let token = host.cluster().create_token(TOKEN_TTL, None).context("failed to make a join token")?;
    let addresses = addresses(host.cluster().control_addr());
    say(&join_text(&host.cluster().handle().model().id, &addresses, &token.to_string(), host.url()));

    let place = Place { url: host.url().to_owned(), needs_key: !args.http.api_key.is_empty() };
    let mut reporter = Reporter::new(Some(place));
    let mut status = host.handle().subscribe();
    status.mark_changed();
    let outcome = loop {
        tokio::select! {
            changed = status.changed() => {
                if let Err(error) = changed.context("the cluster ended") {
                    break Err(error);
                }
                let status = status.borrow_and_update().clone();
                reporter.status(&status);
            }
            error = host.failed() => break Err(error),
            () = signals.next() => break Ok(ExitCode::SUCCESS),
        }
    };
    reporter.clear();
    if outcome.is_ok() {
        reporter.line("stopping");
    }
    tokio::select! {
        () = host.stop(std::future::ready(())) => outcome,
        () = signals.next() => Ok(ExitCode::from(INTERRUPTED)),
    }
}

/// How workers join, where they can, and where HTTP is.
fn join_text(model: &str, addresses: &[SocketAddr], token: &str, url: &str) -> String {
    let (first, others) = match addresses {
        [first, others @ ..] => (first.to_string(), others),
        [] => (format!("HOST:{CONTROL_PORT}"), &[][..]),
    };
    let mut text = format!(
        "coordinator of {model}; HTTP at {url}\n\n\
         On each machine that should work for it, with the model's file in a directory DIR, run within 24 hours:\n\n\
         brigade-worker join {first} --token {token} --models DIR\n\n"
    );
    if !others.is_empty() {
        let others: Vec<String> = others.iter().map(SocketAddr::to_string).collect();
        text.push_str(&format!("It can also be reached at {}\n\n", others.join(", ")));
    }
    text
}

/// The addresses at which `bound` can be reached from other machines, the likeliest first.
pub(super) fn addresses(bound: SocketAddr) -> Vec<SocketAddr> {
    let ip = bound.ip();
    if !ip.is_unspecified() {
        return vec![bound];
    }
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let ips = interfaces.iter().map(|interface| interface.ip());
    sorted(ips.filter(|candidate| ip.is_ipv6() || candidate.is_ipv4()).collect())
        .into_iter()
        .map(|ip| SocketAddr::new(ip, bound.port()))
        .collect()
}

/// Routable IPv4 first, then IPv6, then link-local IPv4 (a Thunderbolt bridge has nothing else), loopback only where
/// there is nothing else. IPv6 link-local addresses need a scope that only this machine knows.
fn sorted(mut ips: Vec<IpAddr>) -> Vec<IpAddr> {
    let rank = |ip: &IpAddr| match ip {
        ip if ip.is_loopback() => 3,
        IpAddr::V4(ip) if ip.is_link_local() => 2,
        IpAddr::V4(_) => 0,
        IpAddr::V6(_) => 1,
    };
    ips.retain(|ip| !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local()));
    if ips.iter().any(|ip| !ip.is_loopback()) {
        ips.retain(|ip| !ip.is_loopback());
    }
    ips.sort_by_key(rank);
    ips
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_address_comes_first() {
        let ips = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(
            sorted(ips(&["127.0.0.1", "fe80::1", "169.254.3.4", "fd00::1", "192.168.1.5"])),
            ips(&["192.168.1.5", "fd00::1", "169.254.3.4"])
        );
        assert_eq!(sorted(ips(&["127.0.0.1", "fe80::1"])), ips(&["127.0.0.1"]));
        let bound = "10.1.2.3:7481".parse().unwrap();
        assert_eq!(addresses(bound), [bound]);
    }

    #[test]
    fn the_join_command_is_exact() {
        let addresses = ["10.0.0.1:7481".parse().unwrap(), "10.0.1.1:7481".parse().unwrap()];
        let text = join_text("tiny", &addresses, "bg1-a-b", "http://127.0.0.1:7480");
        assert!(
            text.contains("\nbrigade-worker join 10.0.0.1:7481 --token bg1-a-b --models DIR\n"),
            "{text}"
        );
        assert!(text.contains("also be reached at 10.0.1.1:7481\n"), "{text}");
    }
}
