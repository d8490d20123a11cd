//! Starting a cluster, and ending it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use brigade_proto::control_server::serve_control;
use brigade_proto::frame::FrameLimits;
use brigade_proto::health::Health;
use brigade_proto::identity::{CoordinatorIdentity, IdentityError, JoinToken, TransportIdentity};
use brigade_proto::ids::DeploymentId;
use brigade_proto::link::{LinkError, Transport};
use brigade_shard::model_file::Fingerprint;
use brigade_shard::plan::{PlanError, check_split};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::control::Control;
use super::core::{Core, CoreParts, DRAIN_QUEUE, Draft, EVENT_QUEUE, PIN_QUEUE, SUBMISSION_QUEUE};
use super::handle::ClusterHandle;
use super::model::{DraftError, Model, ModelError};
use super::settings::ClusterSettings;
use super::timeline::Timeline;
use super::{links, overview, pulls};
use crate::caches::Caches;
use crate::deployment::{Deployment, DeploymentSettings, Moving};
use crate::events::EventLog;
use crate::metrics::{Metrics, StatusMetrics};
use crate::shelf::{CoordinatorShelf, Holders};
use crate::state_dir::{StateDir, StateDirError};
use crate::status::ClusterStatus;
use crate::tokens::{TokenStore, TokenStoreError};
use crate::traces::Tracer;

/// What is served.
const DEPLOYMENT: DeploymentId = DeploymentId(1);
/// The draft model beside it.
const DRAFT_DEPLOYMENT: DeploymentId = DeploymentId(2);
/// How often a pair of equal TCP and UDP ports is looked for, where any will do.
const PORT_ATTEMPTS: u32 = 16;
/// How long blocking file work may keep a shutdown.
const TASKS_LIMIT: Duration = Duration::from_millis(500);

/// A running cluster. Dropping it ends its tasks without waiting for them; [`Cluster::shutdown`] does it in order.
#[derive(Debug)]
pub struct Cluster {
    handle: ClusterHandle,
    control_addr: SocketAddr,
    data_addr: SocketAddr,
    identity: CoordinatorIdentity,
    tokens: TokenStore,
    transport: Arc<Transport>,
    tasks: TaskTracker,
    core: JoinHandle<()>,
    control: JoinHandle<()>,
    stop_core: CancellationToken,
    stop_control: CancellationToken,
    _stop_when_dropped: (DropGuard, DropGuard),
}

/// Why a cluster could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The model cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The draft model cannot be used.
    #[error(transparent)]
    Draft(#[from] DraftError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The tokens cannot be kept.
    #[error(transparent)]
    Tokens(#[from] TokenStoreError),
    /// The coordinator's identity cannot be read or made.
    #[error("failed to set up the coordinator's identity: {0}")]
    Identity(#[from] IdentityError),
    /// The control plane's port is not to be had.
    #[error("failed to listen for workers on TCP {addr}: {reason}; choose another address with --control")]
    ControlPort {
        /// The address asked for.
        addr: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
    /// The data plane's port is not to be had.
    #[error(
        "failed to open UDP {addr} for the data plane: {reason}; choose another address with --data or --control"
    )]
    DataPort {
        /// The address asked for.
        addr: SocketAddr,
        /// What is wrong with it.
        reason: String,
    },
    /// The layers that each stage is to hold are not the model's.
    #[error("--split: {0}")]
    Split(PlanError),
    /// A setting is out of its range.
    #[error("{name} must be at least 1")]
    Zero {
        /// Which.
        name: &'static str,
    },
    /// Traces cannot be sent.
    #[error("failed to make a client for traces: {0}")]
    Traces(reqwest::Error),
    /// Reading the model broke off.
    #[error("reading the model broke off: {0}")]
    Interrupted(String),
}

/// Why a join token could not be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to make a join token: {0}")]
pub struct CreateTokenError(#[from] TokenStoreError);

impl Cluster {
    /// Reads the model's header, takes the state directory, opens both ports and begins to wait for workers.
    ///
    /// # Errors
    /// Where any of that fails; the message says which file, directory or port, and what to do.
    pub async fn start(settings: ClusterSettings) -> Result<Cluster, StartError> {
        for (name, value) in [("parallel", settings.parallel), ("the prefill chunk", settings.prefill_chunk)]
        {
            if value == 0 {
                return Err(StartError::Zero { name });
            }
        }
        let (path, id, program) =
            (settings.model.clone(), settings.model_id.clone(), settings.program.clone());
        let model = tokio::task::spawn_blocking(move || Model::open(&path, id, program)).await;
        let model = model.map_err(|error| StartError::Interrupted(error.to_string()))??;
        model.check_template(&settings.model).await?;
        check_split(&settings.split, model.info.layers).map_err(StartError::Split)?;
        let (model, draft) = match settings.draft.clone() {
            None => (model, None),
            Some((path, _)) => {
                let read = tokio::task::spawn_blocking(move || {
                    let draft = model.open_draft(&path);
                    (model, draft)
                });
                let (model, draft) =
                    read.await.map_err(|error| StartError::Interrupted(error.to_string()))?;
                (model, Some(draft?))
            }
        };
        let mut state_dir = StateDir::open(&settings.state_dir)?;
        let identity = CoordinatorIdentity::load_or_create(&settings.state_dir)?;
        let tokens = TokenStore::open(&settings.state_dir)?;
        let (status_sender, status) = watch::channel(Arc::new(ClusterStatus::default()));
        let holders = Holders::default();
        let headers = [Some(&model.header), draft.as_ref().map(|draft| &draft.header)];
        let headers = headers.into_iter().flatten().cloned().collect();
        let (dir, told) = (&settings.state_dir, status.clone());
        let interrupted = |error: &dyn std::fmt::Display| StartError::Interrupted(error.to_string());
        let shelf = CoordinatorShelf::new(identity.clone(), dir, headers, holders.clone(), told)
            .map_err(|error| interrupted(&error))?;
        let edition_of = |model: &Fingerprint| {
            shelf.edition(model).ok_or_else(|| interrupted(&format!("model {model} is not on the shelf")))
        };
        let edition = edition_of(&model.info.fingerprint)?;
        let draft_edition = draft.as_ref().map(|draft| edition_of(&draft.fingerprint)).transpose()?;
        let (listener, transport) = open_ports(&settings, &identity, Arc::new(shelf)).await?;
        let (control_addr, data_addr) = (local_addr(&listener)?, transport.local_addr());
        let incarnation = state_dir.next_incarnation()?;

        let served = DeploymentSettings {
            id: DEPLOYMENT,
            incarnation,
            last_epoch: state_dir.epoch(),
            min_workers: settings.min_workers,
            fingerprint: model.info.fingerprint.to_string(),
            edition,
            file_hint: file_hint(&settings.model),
            parallel: settings.parallel,
            prefill_chunk: settings.prefill_chunk,
            cache_dtype: settings.cache_dtype,
            wire: settings.wire,
            moving: if settings.split.is_empty() { Moving::Freely } else { Moving::ToDrain },
        };
        let mut drafts = settings.draft.iter().zip(&draft).zip(draft_edition);
        let beside = drafts.next().map(|(((path, id), draft), edition)| {
            let drafting = DeploymentSettings {
                id: DRAFT_DEPLOYMENT,
                min_workers: 1,
                fingerprint: draft.fingerprint.to_string(),
                edition,
                file_hint: file_hint(path),
                moving: Moving::AtOnce,
                ..served.clone()
            };
            let deployment = Deployment::new(drafting, draft.planner(&settings));
            Draft::new(deployment.paused("waiting until the model is served"), id.clone(), draft.vocabulary)
        });
        let deployment = Deployment::new(served, model.planner(&settings, draft.as_ref()));
        let forecaster = model.forecaster(&settings);
        let metrics = Metrics::new(Registry::default(), StatusMetrics::new(status.clone()));
        let health = Health::new().await;
        let (submissions_sender, submissions) = mpsc::channel(SUBMISSION_QUEUE);
        let (drains_sender, drains) = mpsc::channel(DRAIN_QUEUE);
        let (pins_sender, pins) = mpsc::channel(PIN_QUEUE);
        let events = mpsc::channel(EVENT_QUEUE);
        let tasks = TaskTracker::new();
        let (stop_core, stop_control) = (CancellationToken::new(), CancellationToken::new());
        let transport = Arc::new(transport);

        tasks.spawn(links::accept(transport.clone(), events.0.clone()));
        let (pulls_sender, pulls) = watch::channel(Vec::new());
        if let Some(store) = settings.store.clone() {
            tasks.spawn(stop_control.clone().run_until_cancelled_owned(pulls::watch(store, pulls_sender)));
        }
        let handler = Control {
            identity: identity.clone(),
            tokens: tokens.clone(),
            events: events.0.clone(),
            tasks: tasks.clone(),
            next_session: AtomicU64::new(1),
        };
        let control = tokio::spawn({
            let (identity, health, stop) = (identity.clone(), health.clone(), stop_control.clone());
            async move {
                if let Err(error) = serve_control(listener, &identity, Arc::new(handler), health, stop).await
                {
                    tracing::error!("the control plane ended: {error}; workers cannot join until a restart");
                }
            }
        });
        let timeline = Timeline::new(Instant::now());
        let (dir, told, of) = (settings.state_dir.clone(), status.clone(), tasks.clone());
        let log = tokio::task::spawn_blocking(move || EventLog::start(&dir, told, &of)).await;
        let log = log.map_err(|error| StartError::Interrupted(error.to_string()))?;
        let tracer = settings.traces.as_ref().map(|traces| {
            let (id, dropped) = (model.info.id.clone(), metrics.traces_dropped.clone());
            Tracer::start(traces, id, dropped, &tasks).map_err(StartError::Traces)
        });
        let tracer = tracer.transpose()?;
        let core = Core::new(CoreParts {
            incarnation,
            data_port: data_addr.port(),
            model: overview::model_status(&model.info),
            state_dir,
            deployment,
            draft: beside,
            max_waiting: settings.max_waiting,
            park: settings.park,
            speculation: settings.speculation,
            short_way: settings.short_way,
            metrics: metrics.clone(),
            tracer,
            health,
            timeline: timeline.clone(),
            tasks: tasks.clone(),
            transport: transport.clone(),
            events,
            submissions,
            drains,
            pins,
            status: status_sender,
            holders: holders.clone(),
            pulls,
        });
        let caches = Caches::new(transport.clone(), holders);
        let core = tokio::spawn(core.run(stop_core.clone()));
        let wishes = (drains_sender, pins_sender);
        let model = (model.info, forecaster);
        let told = (timeline, log);
        let handle = ClusterHandle::new(model, metrics, submissions_sender, wishes, status, told, caches);
        let stop_when_dropped = (stop_core.clone().drop_guard(), stop_control.clone().drop_guard());
        Ok(Cluster {
            handle,
            control_addr,
            data_addr,
            identity,
            tokens,
            transport,
            tasks,
            core,
            control,
            stop_core,
            stop_control,
            _stop_when_dropped: stop_when_dropped,
        })
    }

    /// A handle for everything that asks the cluster.
    pub fn handle(&self) -> ClusterHandle {
        self.handle.clone()
    }

    /// Where workers join, with the true port.
    pub fn control_addr(&self) -> SocketAddr {
        self.control_addr
    }

    /// Where the data plane is, with the true port.
    pub fn data_addr(&self) -> SocketAddr {
        self.data_addr
    }

    /// Makes a token that lets workers join for `ttl`, `uses` of them or any number.
    ///
    /// # Errors
    /// Where it would let nobody in, or the state directory cannot be written.
    pub fn create_token(&self, ttl: Duration, uses: Option<u32>) -> Result<JoinToken, CreateTokenError> {
        let token = self.tokens.create(ttl, uses)?;
        Ok(JoinToken { ca_spki_sha256: self.identity.ca_spki_sha256(), secret: token.secret })
    }

    /// Interrupts what runs, has every stage retired, and ends all tasks; takes less than a second, or a little more
    /// where a worker does not answer.
    pub async fn shutdown(self) {
        self.stop_core.cancel();
        // The core's last words are in the workers' queues now, and the control plane still sends those.
        let panicked = self.core.await.is_err();
        self.stop_control.cancel();
        let (control, ()) = tokio::join!(self.control, self.transport.close());
        self.tasks.close();
        let late = tokio::time::timeout(TASKS_LIMIT, self.tasks.wait()).await.is_err();
        if panicked || control.is_err() || late {
            tracing::error!("the cluster did not end in order");
        }
    }
}

/// Opens the control plane's TCP port and the data plane's UDP port: the same number, unless told otherwise.
async fn open_ports(
    settings: &ClusterSettings,
    identity: &CoordinatorIdentity,
    shelf: Arc<CoordinatorShelf>,
) -> Result<(TcpListener, Transport), StartError> {
    let any_pair = settings.control.port() == 0 && settings.data.is_none();
    let mut attempts = if any_pair { PORT_ATTEMPTS } else { 1 };
    loop {
        let listener = TcpListener::bind(settings.control).await.map_err(|error| {
            StartError::ControlPort { addr: settings.control, reason: port_problem(&error) }
        })?;
        let addr = match settings.data {
            Some(addr) => addr,
            None => local_addr(&listener)?,
        };
        attempts -= 1;
        let (identity, limits) = (TransportIdentity::from(identity), FrameLimits::HEADERS_ONLY);
        match Transport::bind_with_shelf(addr, identity, limits, shelf.clone()) {
            Ok(transport) => return Ok((listener, transport)),
            // The free TCP port that we were given is taken for UDP: another will do.
            Err(_) if attempts > 0 => {}
            Err(LinkError::Bind { addr, reason }) => return Err(StartError::DataPort { addr, reason }),
            Err(error) => {
                return Err(StartError::DataPort { addr, reason: error.to_string() });
            }
        }
    }
}

fn local_addr(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    listener.local_addr().map_err(|error| StartError::ControlPort { addr: any, reason: error.to_string() })
}

fn port_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the port is already in use by another program".into(),
        io::ErrorKind::PermissionDenied => "this user may not open the port".into(),
        io::ErrorKind::AddrNotAvailable => "this machine does not have the address".into(),
        _ => error.to_string(),
    }
}

/// The file's base name: where workers look first.
fn file_hint(model: &Path) -> String {
    model.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
