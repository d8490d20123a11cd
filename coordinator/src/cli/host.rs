//! What a coordinator process consists of: the cluster, its HTTP server, and its announcement on this machine; and the
//! workers on this machine, where it has some of its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use brigade_proto::worker_processes::{WorkerEvent, WorkerProcesses};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::INTERRUPTED;
use super::devices::Local;
use super::options::{HttpOptions, ServingOptions, WorkerOptions, cluster_settings};
use crate::api::{self, ApiSettings, KeptAnswers};
use crate::cluster::{Cluster, ClusterHandle, ClusterSettings};
use crate::discovery::{self, Announcement, AnnouncementFile};
use crate::local::{self, LocalSettings};
use crate::signals::Signals;

/// How long the HTTP server may take to end its streams.
const HTTP_GRACE: Duration = Duration::from_secs(1);

/// Life of the token that local workers join with; a worker that is started again has its certificate by then.
const LOCAL_TOKEN_TTL: Duration = Duration::from_secs(3600);

/// A cluster with its HTTP server.
pub(super) struct Host {
    cluster: Cluster,
    url: String,
    http: JoinHandle<anyhow::Result<()>>,
    stop: CancellationToken,
    announcement: Option<AnnouncementFile>,
}

impl Host {
    /// Binds HTTP and starts the cluster; where `announce`, other commands on this machine will find it. Answers that are
    /// asked for with a key are kept for `keep_answers`.
    pub(super) async fn start(
        settings: ClusterSettings,
        http: &HttpOptions,
        keep_answers: Duration,
        announce: bool,
    ) -> anyhow::Result<Host> {
        let listener = listen(http.http).await?;
        let address = listener.local_addr().context("failed to read the address of HTTP")?;
        let state = std::path::absolute(&settings.state_dir).unwrap_or_else(|_| settings.state_dir.clone());
        let model = settings.model_id.clone();
        let answers = settings.state_dir.join("answers");
        let comparisons = Some(settings.state_dir.clone());
        let cluster = Cluster::start(settings).await.context("failed to start the coordinator")?;
        let url = format!("http://{}", reachable(address));
        let announcement = announce.then(|| {
            let announcement = Announcement {
                url: url.clone(),
                pid: std::process::id(),
                model,
                control: cluster.control_addr(),
                state,
            };
            announce_it(&announcement)
        });
        let stop = CancellationToken::new();
        let kept = (!keep_answers.is_zero()).then(|| KeptAnswers::open(&answers, keep_answers)).transpose();
        let kept = kept.context("failed to set up the answers that are kept")?;
        let settings = ApiSettings {
            api_keys: http.api_key.clone(),
            kept,
            log_prompts: http.log_prompts,
            comparisons,
            ..ApiSettings::default()
        };
        let handle = cluster.handle();
        let shutdown = stop.clone();
        let http = tokio::spawn(async move {
            api::serve(listener, handle, settings, shutdown).await.context("failed to serve HTTP")
        });
        Ok(Host { cluster, url, http, stop, announcement: announcement.flatten() })
    }

    /// Where HTTP can be reached from this machine.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The cluster.
    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The cluster's handle.
    pub(super) fn handle(&self) -> ClusterHandle {
        self.cluster.handle()
    }

    /// Waits until HTTP fails; it does not end otherwise before it is told to.
    pub(super) async fn failed(&mut self) -> anyhow::Error {
        match (&mut self.http).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) => anyhow::anyhow!("the HTTP server ended"),
            Err(panic) => anyhow::anyhow!("the HTTP server broke down: {panic}"),
        }
    }

    /// Ends HTTP, then the cluster, and `beside` together with it.
    pub(super) async fn stop(self, beside: impl Future<Output = ()>) {
        drop(self.announcement);
        self.stop.cancel();
        let mut http = self.http;
        if !http.is_finished() && tokio::time::timeout(HTTP_GRACE, &mut http).await.is_err() {
            http.abort();
            let _ = http.await;
        }
        tokio::join!(self.cluster.shutdown(), beside);
    }
}

/// Binds the address of HTTP.
async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => anyhow::anyhow!(
            "failed to listen for HTTP on {address}: port {} is in use; choose another with --http {}:PORT (port 0 takes any free one)",
            address.port(),
            bracketed(address.ip())
        ),
        _ => anyhow::anyhow!("failed to listen for HTTP on {address}: {error}; choose another address with --http"),
    })
}

fn bracketed(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// An address at which this machine itself can reach a listener on `address`.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// Announces the coordinator; one that cannot be announced is still one.
fn announce_it(announcement: &Announcement) -> Option<AnnouncementFile> {
    let directory = discovery::directory()?;
    discovery::announce(&directory, announcement)
        .inspect_err(|error| {
            tracing::warn!(%error, directory = %directory.display(), "other commands will need --url");
        })
        .ok()
}

/// A coordinator with workers of its own on this machine.
pub(super) struct Embedded {
    host: Host,
    workers: WorkerProcesses,
    count: usize,
    events: mpsc::Receiver<WorkerEvent>,
    /// Removed after everything that uses it has ended.
    _scratch: TempDir,
}

/// Where an [`Embedded`] coordinator keeps its state and whether others may find it.
pub(super) struct EmbeddedPlace<'a> {
    /// The coordinator's state directory; a temporary one where it is `None`.
    pub(super) state: Option<&'a Path>,
    /// Whether other commands on this machine will find it.
    pub(super) announce: bool,
}

impl Embedded {
    /// Starts the coordinator for `model` (absolute, checked) on a free loopback port, and its workers, as `options` say
    /// what is not `found` out.
    pub(super) async fn start(
        model: &Path,
        options: &WorkerOptions,
        found: Local,
        serving: &ServingOptions,
        http: &HttpOptions,
        place: EmbeddedPlace<'_>,
    ) -> anyhow::Result<Embedded> {
        let count = found.workers.len();
        let scratch = tempfile::Builder::new().prefix("brigade-").tempdir();
        let scratch = scratch.context("failed to make a temporary directory (TMPDIR names another place)")?;
        let state = place.state.map_or_else(|| scratch.path().join("coordinator"), Path::to_owned);
        let control = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let settings = cluster_settings(model, state, control, count, serving)?;
        let folder = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
        let draft = settings.draft.as_ref().map(|(path, _)| folder(path));
        let models = [folder(model)].into_iter().chain(draft).collect();
        let host = Host::start(settings, http, serving.keep_answers, place.announce).await?;
        let token = host.cluster().create_token(LOCAL_TOKEN_TTL, None);
        let local = LocalSettings {
            program: found.program,
            control: host.cluster().control_addr(),
            token: token.context("failed to make a token for the local workers")?.to_string(),
            models,
            workers: found.workers,
            threads: found.threads,
            mmap: options.mmap,
            offload: options.offload.then_some(options.offload_rate),
            state: scratch.path().join("workers"),
        };
        let (workers, events) = local::start(&local)?;
        Ok(Embedded { host, workers, count, events, _scratch: scratch })
    }

    /// The coordinator.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }

    /// How many workers it has.
    pub(super) fn workers(&self) -> usize {
        self.count
    }

    /// What happens to the workers, and the coordinator.
    pub(super) fn parts(&mut self) -> (&mut mpsc::Receiver<WorkerEvent>, &mut Host) {
        (&mut self.events, &mut self.host)
    }

    /// Ends everything in order, within about two seconds; a signal meanwhile ends it at once.
    pub(super) async fn stop(self, signals: &mut Signals, code: ExitCode) -> ExitCode {
        let Embedded { host, workers, events, _scratch, .. } = self;
        // Nobody reads on: a supervisor with something to tell must not wait.
        drop(events);
        workers.expect_end();
        tokio::select! {
            () = host.stop(workers.stop()) => code,
            () = signals.next() => {
                workers.kill().await;
                ExitCode::from(INTERRUPTED)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = listen(address).await.unwrap_err().to_string();
        assert!(error.contains(&format!("port {} is in use", address.port())), "{error}");
        assert!(error.contains("--http 127.0.0.1:PORT"), "{error}");
    }

    #[test]
    fn a_wildcard_is_reached_on_loopback() {
        let reached = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:7480"), "127.0.0.1:7480");
        assert_eq!(reached("[::]:7480"), "[::1]:7480");
        assert_eq!(reached("10.0.0.1:7480"), "10.0.0.1:7480");
    }
}
