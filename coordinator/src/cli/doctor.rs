//! `brigade doctor`: what on this machine may stand between a coordinator and its workers.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use brigade_proto::doctor::{Bytes, Here, Port, Protocol, Role, Subject, examine};
use clap::Args;

use super::FAILED;
use super::connect::running;
use super::options::parse_address;
use crate::discovery;

/// Flags of `brigade doctor`.
#[derive(Debug, Args)]
#[command(
    after_help = "Nothing is changed, and nothing needs root. Exit code 0 when nothing has failed, 1 otherwise.\n\n\
                        Example: brigade doctor --to studio.local:7481"
)]
pub struct DoctorArgs {
    /// An address that must be reached, there and back: a coordinator's, or a worker's as `brigade status` lists it; may
    /// be given several times
    #[arg(long, value_name = "ADDR")]
    to: Vec<String>,

    /// A coordinator to compare clocks with [default: the one that runs on this machine]
    #[arg(long, env = "BRIGADE_URL", value_name = "URL", hide_env = true)]
    url: Option<String>,

    /// Where HTTP is to listen
    #[arg(long, env = "BRIGADE_HTTP", value_name = "ADDR", hide_env = true, default_value = "127.0.0.1:7480", value_parser = parse_address)]
    http: SocketAddr,

    /// Where workers are to attach: TCP for control, UDP on the same port for data
    #[arg(long, env = "BRIGADE_CONTROL", value_name = "ADDR", hide_env = true, default_value = "0.0.0.0:7481", value_parser = parse_address)]
    control: SocketAddr,

    /// The state directory [default: brigade in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "BRIGADE_STATE", value_name = "DIR", hide_env = true)]
    state: Option<PathBuf>,

    /// What workers on this machine are to take together [default: 80% of its memory]
    #[arg(long, env = "BRIGADE_MEMORY", value_name = "SIZE", hide_env = true)]
    memory: Option<Bytes>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Looks at everything, and says what was found.
pub(super) async fn doctor(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let url = match args.url {
        Some(url) => Some(url),
        None => running(None).await.first().map(|(client, _)| client.url().to_owned()),
    };
    let port = |purpose, protocol, addr, flag| Port { purpose, protocol, addr, flag };
    let subject = Subject {
        role: Role::Coordinator,
        ports: vec![
            port("HTTP", Protocol::Tcp, args.http, "serve MODEL --http"),
            port("control", Protocol::Tcp, args.control, "serve MODEL --control"),
            port("data", Protocol::Udp, args.control, "serve MODEL --control"),
        ],
        state: args.state.or_else(discovery::default_state_dir),
        models: Vec::new(),
        memory: args.memory,
        to: args.to,
        url,
    };
    let report = tokio::task::spawn_blocking(move || examine(&subject, &Here)).await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(if report.has_failed() { ExitCode::from(FAILED) } else { ExitCode::SUCCESS })
}
