//! A coordinator and workers on loopback, as the tests of both planes need them.
#![expect(dead_code, reason = "each test binary uses its part of the harness")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use brigade_proto::control::{Capabilities, DeviceKind, EnrolRequest, Enrolment};
use brigade_proto::control_client::{self, ControlError};
use brigade_proto::control_server::{AttachSession, ControlHandler, Refusal, RefusalKind, serve_control};
use brigade_proto::health::Health;
use brigade_proto::identity::{CoordinatorIdentity, JoinToken, WorkerIdentity, WorkerKey};
use brigade_proto::ids::WorkerId;
use brigade_shard::plan::{Kernel, KernelSpeed, SharedHost};
use brigade_shard::tensor_type::TensorType;
use brigade_shard::units::Bytes;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take that is expected to happen.
pub const SOON: Duration = Duration::from_secs(20);

/// The outcome of what is expected to happen soon.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("{what} did not happen within {SOON:?}"),
    }
}

/// An identity in a directory of its own.
pub fn coordinator_identity() -> (CoordinatorIdentity, TempDir) {
    let dir = TempDir::new().expect("a temporary directory");
    let identity = CoordinatorIdentity::load_or_create(dir.path()).expect("a new identity");
    (identity, dir)
}

/// A worker's identity, enrolled without a network.
pub fn worker_identity(coordinator: &CoordinatorIdentity, id: &str) -> WorkerIdentity {
    let key = WorkerKey::generate().expect("a key");
    let worker = WorkerId::try_from(id.to_owned()).expect("a worker id");
    let csr = key.request().expect("a request");
    let certificate_der = coordinator.sign_worker(&csr, &worker).expect("a certificate");
    let ca_der = coordinator.ca_der().to_vec();
    let enrolment = Enrolment { worker, certificate_der, ca_der };
    key.enrolled(enrolment, &coordinator.ca_spki_sha256()).expect("an identity")
}

/// The `index`-th PEM section of a kind in a file, DER.
pub fn pem_section(path: &Path, kind: &str, index: usize) -> Vec<u8> {
    let text = std::fs::read_to_string(path).expect("a PEM file");
    let sections = pem::parse_many(text).expect("PEM sections");
    let section = sections.iter().filter(|section| section.tag() == kind).nth(index);
    section.expect("the section").contents().to_vec()
}

/// An identity whose certificate is from `signed_by`, and which trusts `trusts`: nobody enrols into that, but an
/// attacker has it.
pub fn mixed_identity(
    signed_by: &CoordinatorIdentity,
    trusts: &CoordinatorIdentity,
    id: &str,
) -> WorkerIdentity {
    let dir = TempDir::new().expect("a temporary directory");
    worker_identity(signed_by, id).save(dir.path()).expect("saved");
    let path = dir.path().join("worker.pem");
    let sections = [
        pem::Pem::new("CERTIFICATE", pem_section(&path, "CERTIFICATE", 0)),
        pem::Pem::new("CERTIFICATE", trusts.ca_der()),
        pem::Pem::new("PRIVATE KEY", pem_section(&path, "PRIVATE KEY", 0)),
    ];
    std::fs::write(&path, pem::encode_many(&sections)).expect("written");
    WorkerIdentity::load(dir.path()).expect("loads").expect("is there")
}

/// What a worker says of itself.
pub fn capabilities(name: &str) -> Capabilities {
    Capabilities {
        name: name.to_owned(),
        host: "box".to_owned(),
        version: "0.1.0".to_owned(),
        device: DeviceKind::Cuda(3),
        device_name: "Some Card".to_owned(),
        budget: Bytes::mib(64),
        threads: 2,
        bandwidth_bytes_per_s: 5.6e10,
        flops_per_s: 1.2e12,
        delivery_port: 7485,
        data_addresses: vec![
            "10.0.0.7:7481".parse().expect("an address"),
            "[fe80::1]:7481".parse().expect("one"),
        ],
        stretch: 1.0,
        kernel_speeds: vec![
            KernelSpeed { kernel: Kernel::Product(TensorType::Q4K), rows: 8, per_s: 2.5e10 },
            KernelSpeed { kernel: Kernel::Attention, rows: 4, per_s: 1e9 },
            KernelSpeed { kernel: Kernel::Passing, rows: 1, per_s: 2e9 },
            KernelSpeed { kernel: Kernel::Framing, rows: 8, per_s: 1e9 },
            KernelSpeed { kernel: Kernel::Handing, rows: 1, per_s: 1e5 },
            KernelSpeed { kernel: Kernel::Drawing, rows: 1, per_s: 5e8 },
        ],
        shared_host: Some(SharedHost { bandwidth_bytes_per_s: 8e10, processors: 4, speedup: 3.5 }),
        offload_bytes_per_s: Some(2e9),
        converts: true,
    }
}

/// Enrols by one secret, under the wanted name as the id, and hands sessions to the test.
struct Door {
    identity: CoordinatorIdentity,
    secret: String,
    sessions: mpsc::Sender<AttachSession>,
}

impl ControlHandler for Door {
    async fn enrol(&self, request: EnrolRequest, _remote: SocketAddr) -> Result<Enrolment, Refusal> {
        if request.secret != self.secret {
            return Err(Refusal::new(RefusalKind::BadToken, "the token is not known here"));
        }
        match request.name.as_str() {
            "late" => {
                return Err(Refusal::new(RefusalKind::ExpiredToken, "the token expired yesterday"));
            }
            "second" => return Err(Refusal::new(RefusalKind::UsedToken, "the token was used before")),
            _ => {}
        }
        let malformed = |problem: String| Refusal::new(RefusalKind::Malformed, problem);
        let worker = WorkerId::try_from(request.name).map_err(|error| malformed(error.to_string()))?;
        let certificate_der = self
            .identity
            .sign_worker(&request.csr_der, &worker)
            .map_err(|error| malformed(error.to_string()))?;
        Ok(Enrolment { worker, certificate_der, ca_der: self.identity.ca_der().to_vec() })
    }

    async fn attach(&self, session: AttachSession) -> Result<(), Refusal> {
        if session.worker.as_str() == "banned" {
            return Err(Refusal::new(RefusalKind::NotAllowed, "this worker was retired"));
        }
        let gone = |_| Refusal::new(RefusalKind::Busy, "the coordinator ends");
        self.sessions.send(session).await.map_err(gone)
    }
}

/// A control plane that is being served.
pub struct Coordinator {
    pub identity: CoordinatorIdentity,
    pub dir: TempDir,
    pub addr: String,
    pub token: JoinToken,
    pub health: Health,
    pub sessions: mpsc::Receiver<AttachSession>,
    pub shutdown: CancellationToken,
    server: JoinHandle<()>,
}

impl Coordinator {
    pub async fn start() -> Coordinator {
        let (identity, dir) = coordinator_identity();
        let token = JoinToken::generate(identity.ca_spki_sha256()).expect("a token");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address").to_string();
        let (sender, sessions) = mpsc::channel(4);
        let door = Door { identity: identity.clone(), secret: token.secret.clone(), sessions: sender };
        let (health, shutdown) = (Health::new().await, CancellationToken::new());
        let server = {
            let (identity, health, shutdown) = (identity.clone(), health.clone(), shutdown.clone());
            tokio::spawn(async move {
                serve_control(listener, &identity, Arc::new(door), health, shutdown).await.expect("served");
            })
        };
        Coordinator { identity, dir, addr, token, health, sessions, shutdown, server }
    }

    pub async fn enrol(&self, name: &str) -> Result<WorkerIdentity, ControlError> {
        soon("enrolling", control_client::enrol(&self.addr, &self.token, name)).await
    }

    /// Ends serving; panics where that takes long or fails.
    pub async fn stop(self) {
        self.shutdown.cancel();
        soon("the end of serving", self.server).await.expect("the server ends without a panic");
    }
}
