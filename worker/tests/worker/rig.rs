//! The coordinator's side of real sockets, and real worker processes.

use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use brigade_proto::control::{
    CacheDtype, Capabilities, ConnectStage, EnrolRequest, Enrolment, LoadStage, StageMemory, StageRoom,
    StageState, Telemetry, ToCoordinator, ToWorker, Welcome,
};
use brigade_proto::control_server::{AttachSession, ControlHandler, Refusal, RefusalKind, serve_control};
use brigade_proto::delivery::Edition;
use brigade_proto::frame::FrameLimits;
use brigade_proto::health::Health;
use brigade_proto::identity::{CoordinatorIdentity, JoinToken, TransportIdentity};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, WorkerId};
use brigade_proto::link::{Link, LinkReceiver, LinkSender, Transport};
use brigade_proto::step::{Frame, StepResult, WireDtype};
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::model_file::Header;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::tiny_model::TinyModel;

pub const INCARNATION: Incarnation = Incarnation(1);
pub const DEPLOYMENT: DeploymentId = DeploymentId(1);

/// Longest time that anything here may take: generous, for machines that do other things as well.
const PATIENCE: Duration = Duration::from_secs(20);

/// What `future` brings, which must be soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {} s", PATIENCE.as_secs()),
    }
}

struct Handler {
    identity: Arc<CoordinatorIdentity>,
    secret: String,
    enrolled: AtomicU32,
    sessions: mpsc::Sender<AttachSession>,
}

impl ControlHandler for Handler {
    async fn enrol(&self, request: EnrolRequest, _: SocketAddr) -> Result<Enrolment, Refusal> {
        if request.secret != self.secret {
            return Err(Refusal::new(RefusalKind::BadToken, "this coordinator has made no such token"));
        }
        let number = self.enrolled.fetch_add(1, Ordering::Relaxed);
        let worker = WorkerId::try_from(format!("{}-{number}", request.name)).unwrap();
        let certificate_der = self.identity.sign_worker(&request.csr_der, &worker).unwrap();
        Ok(Enrolment { worker, certificate_der, ca_der: self.identity.ca_der().to_vec() })
    }

    async fn attach(&self, session: AttachSession) -> Result<(), Refusal> {
        self.sessions.send(session).await.map_err(|_| Refusal::new(RefusalKind::Busy, "ending"))
    }
}

/// A coordinator without a plan of its own: the test says what workers are told.
pub struct Coordinator {
    pub directory: tempfile::TempDir,
    pub control: SocketAddr,
    pub token: JoinToken,
    pub transport: Transport,
    pub incarnation: Incarnation,
    sessions: mpsc::Receiver<AttachSession>,
    pub stop: CancellationToken,
}

impl Coordinator {
    /// Starts with an identity of its own, and a tiny model in `models/tiny.gguf` of its directory.
    pub async fn start() -> Coordinator {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("models")).unwrap();
        TinyModel::q4_1().write(&directory.path().join("models/tiny.gguf"));
        Coordinator::start_in(directory, "127.0.0.1:0".parse().unwrap()).await
    }

    /// Starts on what another coordinator has left.
    pub async fn start_in(directory: tempfile::TempDir, at: SocketAddr) -> Coordinator {
        let identity =
            Arc::new(CoordinatorIdentity::load_or_create(&directory.path().join("coordinator")).unwrap());
        let listener = TcpListener::bind(at).await.unwrap();
        let control = listener.local_addr().unwrap();
        let token = JoinToken::generate(identity.ca_spki_sha256()).unwrap();
        let (sessions_in, sessions) = mpsc::channel(8);
        let handler = Arc::new(Handler {
            identity: identity.clone(),
            secret: token.secret.clone(),
            enrolled: AtomicU32::new(0),
            sessions: sessions_in,
        });
        let any = "127.0.0.1:0".parse().unwrap();
        let transport =
            Transport::bind(any, TransportIdentity::from(&*identity), FrameLimits::for_steps(64, 64))
                .unwrap();
        let (health, stop) = (Health::new().await, CancellationToken::new());
        let stopped = stop.clone();
        tokio::spawn(async move { serve_control(listener, &identity, handler, health, stopped).await });
        Coordinator { directory, control, token, transport, incarnation: INCARNATION, sessions, stop }
    }

    pub fn models(&self) -> PathBuf {
        self.directory.path().join("models")
    }

    pub fn header(&self) -> Header {
        Header::open(&self.models().join("tiny.gguf")).unwrap()
    }

    /// A worker's command line, with a state directory of its own under `name` and without a token.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_brigade-worker"));
        command.env_clear().arg("join").arg(self.control.to_string()).args([
            "--threads",
            "1",
            "--name",
            name,
        ]);
        command.env("BRIGADE_MEMORY", "16MiB");
        command.args(["--data", "127.0.0.1:0", "--models"]).arg(self.models());
        command.arg("--state").arg(self.directory.path().join(name));
        command
    }

    /// A worker that joins with this coordinator's token and is welcomed.
    pub async fn worker(&mut self, name: &str) -> Worker {
        let mut command = self.command(name);
        command.env("BRIGADE_TOKEN", self.token.to_string());
        let process = Process::start(command);
        let session = self.attached().await;
        Worker { process, session }
    }

    /// The next stream, welcomed.
    pub async fn attached(&mut self) -> Session {
        let session = soon("a worker's stream", self.sessions.recv()).await.unwrap();
        let welcome = Welcome {
            incarnation: self.incarnation,
            data_port: self.transport.local_addr().port(),
            heartbeat_ms: 100,
        };
        session.outbox.send(ToWorker::Welcome(welcome)).await.unwrap();
        Session(session)
    }

    /// What loads layers `start..end` of the tiny model.
    pub fn load(&self, epoch: u64, start: usize, end: usize) -> LoadStage {
        LoadStage {
            deployment: DEPLOYMENT,
            epoch: Epoch(epoch),
            fingerprint: self.header().fingerprint().to_string(),
            edition: Edition(1),
            file_hint: "tiny.gguf".to_owned(),
            shard: Shard::of(LayerRange::new(start, end).unwrap(), 4),
            stage: u32::from(start > 0),
            stages: if end - start == 4 { 1 } else { 2 },
            room: StageRoom {
                cache_tokens: 128,
                context: 64,
                step_rows: 16,
                sequences: 2,
                cache_dtype: CacheDtype::F32,
            },
            streamed_layers: 0,
        }
    }

    /// The link that a worker dials.
    pub async fn link(&self) -> Neighbour {
        let link = soon("a worker's link", self.transport.accept()).await.unwrap();
        Neighbour::of(link)
    }
}

pub fn fence(epoch: u64) -> Fence {
    Fence { incarnation: INCARNATION, epoch: Epoch(epoch) }
}

/// The coordinator's end of a link.
pub struct Neighbour {
    pub peer: Peer,
    pub sender: LinkSender,
    pub receiver: LinkReceiver,
}

impl Neighbour {
    fn of(link: Link) -> Neighbour {
        let peer = link.peer().clone();
        let (sender, receiver) = link.split();
        Neighbour { peer, sender, receiver }
    }

    pub async fn result(&mut self) -> StepResult {
        match soon("a result", self.receiver.recv()).await {
            Ok(Frame::Result(result)) => result,
            other => panic!("no result came, but {other:?}"),
        }
    }
}

/// A worker's stream.
pub struct Session(pub AttachSession);

impl Session {
    pub fn id(&self) -> Peer {
        Peer::Worker(self.0.worker.clone())
    }

    pub fn hello(&self) -> &Capabilities {
        &self.0.hello
    }

    pub async fn tell(&self, message: ToWorker) {
        self.0.outbox.send(message).await.unwrap();
    }

    /// The next message that `pick` wants; others are skipped.
    pub async fn until<T>(&mut self, what: &str, pick: impl Fn(ToCoordinator) -> Option<T>) -> T {
        let next = async {
            loop {
                match self.0.inbox.recv().await {
                    Some(Ok(message)) => {
                        if let Some(picked) = pick(message) {
                            return picked;
                        }
                    }
                    other => panic!("the stream ended before {what}: {other:?}"),
                }
            }
        };
        soon(what, next).await
    }

    /// The next state of a stage that is not about loading.
    pub async fn state(&mut self) -> StageState {
        let settled = |message| match message {
            ToCoordinator::Stage(report) if !matches!(report.state, StageState::Loading { .. }) => {
                Some(report.state)
            }
            _ => None,
        };
        self.until("a stage's state", settled).await
    }

    pub async fn telemetry(&mut self) -> Telemetry {
        let heartbeat = |message| {
            if let ToCoordinator::Heartbeat(telemetry) = message { Some(telemetry) } else { None }
        };
        self.until("a heartbeat", heartbeat).await
    }

    pub async fn loaded(&mut self, order: LoadStage) -> StageMemory {
        self.tell(ToWorker::Load(order)).await;
        match self.state().await {
            StageState::Loaded(memory) => memory,
            other => panic!("not loaded, but {other:?}"),
        }
    }

    /// Connects the stage; what it reports is left to be read.
    pub async fn connect(&self, epoch: u64, previous: Peer, next: Peer, at: Vec<SocketAddr>) {
        let order = ConnectStage {
            deployment: DEPLOYMENT,
            epoch: Epoch(epoch),
            previous,
            next,
            next_addresses: at,
            wire: WireDtype::F32,
            short_way: None,
        };
        self.tell(ToWorker::Connect(order)).await;
    }

    pub async fn connected(&mut self) {
        let state = self.state().await;
        assert!(matches!(state, StageState::Connected { .. }), "not connected, but {state:?}");
    }

    pub async fn activate(&mut self, epoch: u64) {
        self.tell(ToWorker::Activate { deployment: DEPLOYMENT, fence: fence(epoch) }).await;
        let state = self.state().await;
        assert_eq!(state, StageState::Active);
    }
}

/// A worker process and its stream.
pub struct Worker {
    pub process: Process,
    pub session: Session,
}

/// A worker process; killed when the test is over.
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Process {
    pub fn start(mut command: Command) -> Process {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        Process { child, stdin }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// How it ended, which must be soon, and how long that took.
    pub async fn ended(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, start.elapsed());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the worker did not end");
    }

    /// The same while nothing else of the test runs: its coordinator hangs.
    pub fn ended_alone(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        let status = self.child.wait().unwrap();
        (status, start.elapsed())
    }

    /// What it has logged, once it has ended.
    pub fn log(&mut self) -> String {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
