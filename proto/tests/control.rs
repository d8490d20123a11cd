//! The control plane over real sockets: enrolling, attaching, messages both ways, and everybody who must stay out.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

mod harness;
#[path = "harness/raw.rs"]
mod raw;

use std::time::{Duration, Instant};

use brigade_proto::control::{
    CacheDtype, Capabilities, CardTelemetry, ConnectStage, DeliveryProgress, DeviceKind, LinkTelemetry,
    LoadStage, MachineTelemetry, PROTOCOL_VERSION, ProcessTelemetry, ShortWayEnd, StageMemory, StageReport,
    StageRoom, StageState, Telemetry, Throttle, ToCoordinator, ToWorker, Welcome,
};
use brigade_proto::control_client::{Attached, ControlError, attach, enrol};
use brigade_proto::control_server::{AttachSession, RefusalKind, SessionError};
use brigade_proto::delivery::Edition;
use brigade_proto::health::{Health, check_health, serve_health};
use brigade_proto::identity::{JoinToken, TransportIdentity, WorkerIdentity};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, StepId, WorkerId};
use brigade_proto::step::WireDtype;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::units::Bytes;
use harness::{Coordinator, capabilities, coordinator_identity, mixed_identity, soon, worker_identity};
use prost::Message;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::codegen::http::uri::PathAndQuery;

fn worker(id: &str) -> Peer {
    Peer::Worker(WorkerId::try_from(id.to_owned()).unwrap())
}

/// Both ends of a stream that has begun.
async fn attached(coordinator: &mut Coordinator, identity: &WorkerIdentity) -> (Attached, AttachSession) {
    let attaching = attach(&coordinator.addr, identity, capabilities("w1"));
    let attached = soon("attaching", attaching).await.expect("attached");
    let session = soon("the session", coordinator.sessions.recv()).await.expect("a session");
    (attached, session)
}

#[tokio::test]
async fn a_worker_enrols_and_attaches() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    assert_eq!(identity.id().as_str(), "w1");
    assert_eq!(identity.ca_spki_sha256().unwrap(), coordinator.identity.ca_spki_sha256());
    let (attached, session) = attached(&mut coordinator, &identity).await;
    assert_eq!(&session.worker, identity.id());
    assert_eq!(session.hello, capabilities("w1"));
    assert_eq!(session.remote, attached.local);
    assert_eq!(attached.remote.to_string(), coordinator.addr);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_kept_identity_attaches_without_a_token() {
    let mut coordinator = Coordinator::start().await;
    let state = tempfile::TempDir::new().unwrap();
    coordinator.enrol("w1").await.unwrap().save(state.path()).unwrap();
    let identity = WorkerIdentity::load(state.path()).unwrap().unwrap();
    let (_attached, session) = attached(&mut coordinator, &identity).await;
    assert_eq!(session.worker.as_str(), "w1");
    coordinator.stop().await;
}

/// One of every kind of message down.
fn commands() -> Vec<ToWorker> {
    let deployment = DeploymentId(7);
    let room = StageRoom {
        cache_tokens: 4096,
        context: 2048,
        step_rows: 512,
        sequences: 8,
        cache_dtype: CacheDtype::F16,
    };
    let load = LoadStage {
        deployment,
        epoch: Epoch(3),
        fingerprint: "00ffab".to_owned(),
        edition: Edition(u64::MAX - 5),
        file_hint: "model-00001-of-00002.gguf".to_owned(),
        shard: Shard { layers: LayerRange { start: 10, end: 20 }, embedding: false, head: false },
        stage: 1,
        stages: 3,
        room,
        streamed_layers: 3,
    };
    let connect = ConnectStage {
        deployment,
        epoch: Epoch(3),
        previous: worker("w0"),
        next: Peer::Coordinator,
        next_addresses: vec!["192.168.1.2:7481".parse().unwrap(), "[fe80::2%3]:1".parse().unwrap()],
        wire: WireDtype::Bf16,
        short_way: Some(ShortWayEnd::To(worker("w0"), vec!["192.168.1.2:7482".parse().unwrap()])),
    };
    let whole = Shard { layers: LayerRange { start: 0, end: 30 }, embedding: true, head: true };
    vec![
        ToWorker::Welcome(Welcome { incarnation: Incarnation(2), data_port: 7481, heartbeat_ms: 1000 }),
        ToWorker::Load(LoadStage {
            shard: whole,
            streamed_layers: 0,
            stage: 0,
            stages: 1,
            room: StageRoom { cache_dtype: CacheDtype::F32, ..room },
            ..load.clone()
        }),
        ToWorker::Load(load.clone()),
        ToWorker::Prepare(load),
        ToWorker::Unprepare { deployment },
        ToWorker::Connect(ConnectStage {
            previous: Peer::Coordinator,
            next: worker("w2"),
            next_addresses: Vec::new(),
            wire: WireDtype::F32,
            short_way: Some(ShortWayEnd::From(worker("w0"))),
            ..connect.clone()
        }),
        ToWorker::Connect(ConnectStage { wire: WireDtype::F16, short_way: None, ..connect.clone() }),
        ToWorker::Connect(connect),
        ToWorker::Activate { deployment, fence: Fence { incarnation: Incarnation(2), epoch: Epoch(3) } },
        ToWorker::Retire { deployment },
        ToWorker::Probe { nonce: u64::MAX },
        ToWorker::ProbeLink { nonce: 3, peer: worker("w2"), addresses: vec!["10.1.2.3:4".parse().unwrap()] },
        ToWorker::Shutdown { reason: "you were drained".to_owned() },
    ]
}

fn telemetry() -> Telemetry {
    Telemetry {
        fetched: Bytes(21),
        given: Bytes(22),
        resident: Bytes(1),
        peak_resident: Bytes(2),
        cache_tokens_used: 3,
        sequences: 4,
        steps: 5,
        frames_fenced: 6,
        computing_ms: 7,
        machine: MachineTelemetry {
            memory: Bytes(8),
            memory_available: Bytes(9),
            swap_used: Bytes(10),
            paged_in_bytes_per_s: Some(11.5),
            processors_busy: Some(0.75),
            temperature_celsius: Some(61.0),
            power_watts: None,
            throttle: Throttle::Heat,
        },
        process: ProcessTelemetry {
            processors: Some(1.5),
            read_bytes_per_s: Some(12.0),
            written_bytes_per_s: None,
        },
        card: Some(CardTelemetry {
            memory: Bytes(13),
            memory_free: Bytes(14),
            busy: Some(1.0),
            temperature_celsius: None,
            power_watts: Some(350.0),
            throttle: Throttle::Power,
        }),
        links: vec![LinkTelemetry {
            peer: worker("w2"),
            address: "10.1.2.3:4".parse().unwrap(),
            choice: "the fastest of 3 addresses".to_owned(),
            rtt_us: 15,
            sent_bytes: 16,
            received_bytes: 17,
            sent_packets: 18,
            lost_packets: 19,
            congestion_window: 20,
        }],
    }
}

/// One of every kind of message up, after `Hello`.
fn reports() -> Vec<ToCoordinator> {
    let deployment = DeploymentId(7);
    let states = [
        StageState::Loading { loaded: Bytes(1), total: Bytes(u64::MAX), delivery: None },
        StageState::Loading {
            loaded: Bytes(1),
            total: Bytes(4),
            delivery: Some(DeliveryProgress {
                fetched: Bytes(2),
                wanted: Bytes(3),
                bytes_per_s: 1.5,
                sources: vec![Peer::Coordinator],
            }),
        },
        StageState::Loaded(StageMemory { weights: Bytes(1), cache: Bytes(2), workspace: Bytes(3) }),
        StageState::Connected { next_address: "10.1.2.3:4".parse().unwrap(), rtt_us: 55 },
        StageState::Active,
        StageState::Failed { reason: "no such file".to_owned() },
        StageState::Retired,
        StageState::Prepared,
        StageState::Crowded { reason: "3 MiB are missing".to_owned() },
    ];
    let mut reports: Vec<ToCoordinator> = states
        .into_iter()
        .map(|state| ToCoordinator::Stage(StageReport { deployment, epoch: Epoch(3), state }))
        .collect();
    reports.extend([
        ToCoordinator::Heartbeat(telemetry()),
        ToCoordinator::Heartbeat(Telemetry::default()),
        ToCoordinator::Probed { nonce: u64::MAX },
        ToCoordinator::LinkProbed { nonce: 1, reached: true },
        ToCoordinator::LinkProbed { nonce: 2, reached: false },
        ToCoordinator::StepFailed {
            deployment,
            step: StepId(9),
            stage: 2,
            reason: "out of memory".to_owned(),
        },
        ToCoordinator::LinkLost { deployment, peer: worker("w2"), reason: "timed out".to_owned() },
        ToCoordinator::LinkLost { deployment, peer: Peer::Coordinator, reason: String::new() },
        ToCoordinator::Leaving,
    ]);
    reports
}

#[tokio::test]
async fn every_message_survives_the_wire() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    let (mut attached, mut session) = attached(&mut coordinator, &identity).await;
    for command in commands() {
        session.outbox.send(command.clone()).await.unwrap();
        assert_eq!(soon("a command", attached.inbox.recv()).await.unwrap().unwrap(), command);
    }
    for report in reports() {
        attached.outbox.send(report.clone()).await.unwrap();
        assert_eq!(soon("a report", session.inbox.recv()).await, Some(Ok(report)));
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn every_device_survives_the_wire() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    for device in [DeviceKind::Cpu, DeviceKind::Cuda(0), DeviceKind::Metal] {
        let hello = Capabilities { device, data_addresses: Vec::new(), ..capabilities("w1") };
        let _attached = attach(&coordinator.addr, &identity, hello.clone()).await.unwrap();
        assert_eq!(soon("the session", coordinator.sessions.recv()).await.unwrap().hello, hello);
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn a_long_reason_is_shortened_and_arrives() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    let (attached, mut session) = attached(&mut coordinator, &identity).await;
    let reason = "é".repeat(100_000);
    let state = StageState::Failed { reason: reason.clone() };
    let report = StageReport { deployment: DeploymentId(1), epoch: Epoch(1), state };
    attached.outbox.send(ToCoordinator::Stage(report)).await.unwrap();
    let Some(Ok(ToCoordinator::Stage(report))) = soon("the report", session.inbox.recv()).await else {
        panic!("another message")
    };
    let StageState::Failed { reason: arrived } = report.state else { panic!("another state") };
    assert!(arrived.len() > 1000 && reason.starts_with(&arrived), "{} bytes", arrived.len());
    coordinator.stop().await;
}

#[tokio::test]
async fn refusals_keep_their_kind_and_words() {
    let coordinator = Coordinator::start().await;
    for (name, kind, words) in [
        ("late", RefusalKind::ExpiredToken, "expired yesterday"),
        ("second", RefusalKind::UsedToken, "used before"),
        ("Not An Id", RefusalKind::Malformed, "not a worker id"),
    ] {
        match coordinator.enrol(name).await.unwrap_err() {
            ControlError::Refused(refusal) => {
                assert_eq!(refusal.kind, kind);
                assert!(refusal.message.contains(words), "{refusal}");
            }
            other => panic!("{name}: {other}"),
        }
    }
    let token = JoinToken { secret: "0".repeat(32), ..coordinator.token.clone() };
    match enrol(&coordinator.addr, &token, "w1").await.unwrap_err() {
        ControlError::Refused(refusal) => assert_eq!(refusal.kind, RefusalKind::BadToken),
        other => panic!("{other}"),
    }
    let banned = worker_identity(&coordinator.identity, "banned");
    match attach(&coordinator.addr, &banned, capabilities("banned")).await.unwrap_err() {
        ControlError::Refused(refusal) => assert_eq!(refusal.kind, RefusalKind::NotAllowed),
        other => panic!("{other}"),
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn a_token_of_another_coordinator_is_not_sent() {
    let coordinator = Coordinator::start().await;
    let token = JoinToken::generate(coordinator_identity().0.ca_spki_sha256()).unwrap();
    let error = enrol(&coordinator.addr, &token, "w1").await.unwrap_err();
    assert!(matches!(error, ControlError::WrongCa { .. }), "{error}");
    let expected = format!("the coordinator at {} is not the one this token was made for", coordinator.addr);
    assert_eq!(error.to_string(), expected);
    coordinator.stop().await;
}

#[tokio::test]
async fn a_worker_of_another_ca_is_refused_by_both_ends() {
    let coordinator = Coordinator::start().await;
    let (other, _dir) = coordinator_identity();
    let stranger = worker_identity(&other, "w1");
    let error = attach(&coordinator.addr, &stranger, capabilities("w1")).await.unwrap_err();
    assert!(matches!(error, ControlError::WrongCa { .. }), "the worker's own check: {error}");
    let forged = mixed_identity(&other, &coordinator.identity, "w1");
    let error = attach(&coordinator.addr, &forged, capabilities("w1")).await.unwrap_err();
    assert!(matches!(error, ControlError::CertificateRefused { .. }), "the coordinator's check: {error}");
    coordinator.stop().await;
}

#[tokio::test]
async fn who_is_not_the_coordinator_cannot_pose_as_it() {
    // A worker of the same brigade serves TLS where the coordinator is looked for.
    let (ca, _dir) = coordinator_identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (health, end) = (Health::new().await, CancellationToken::new());
    let impostor = worker_identity(&ca, "impostor");
    let serving = tokio::spawn({
        let end = end.clone();
        async move { serve_health(listener, &impostor, health, end).await }
    });
    let error = attach(&addr, &worker_identity(&ca, "w1"), capabilities("w1")).await.unwrap_err();
    assert!(matches!(error, ControlError::Handshake { .. }), "{error}");
    let error = enrol(&addr, &JoinToken::generate(ca.ca_spki_sha256()).unwrap(), "w1").await.unwrap_err();
    assert!(matches!(error, ControlError::Handshake { .. }), "{error}");
    end.cancel();
    soon("the end of serving", serving).await.unwrap().unwrap();
}

/// `EnrolRequest` and `Enrolment` as the wire has them.
#[derive(Clone, PartialEq, Message)]
struct RawEnrolRequest {
    #[prost(uint32, tag = "1")]
    protocol_version: u32,
    #[prost(string, tag = "2")]
    secret: String,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(bytes = "vec", tag = "4")]
    csr_der: Vec<u8>,
}

/// `ToCoordinator` with `Hello` alone.
#[derive(Clone, PartialEq, Message)]
struct RawToCoordinator {
    #[prost(message, optional, tag = "1")]
    hello: Option<RawHello>,
    #[prost(message, optional, tag = "4")]
    probed: Option<RawHello>,
}

#[derive(Clone, PartialEq, Message)]
struct RawHello {
    #[prost(uint32, tag = "1")]
    protocol_version: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Ignored {}

type Codec<T> = tonic_prost::ProstCodec<T, Ignored>;

async fn raw_enrol(channel: tonic::transport::Channel, request: RawEnrolRequest) -> tonic::Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/brigade.v1.Control/Enrol");
    let codec = Codec::<RawEnrolRequest>::default();
    soon("the answer", client.unary(tonic::Request::new(request), path, codec)).await.unwrap_err()
}

async fn raw_attach(channel: tonic::transport::Channel, first: Vec<RawToCoordinator>) -> tonic::Status {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/brigade.v1.Control/Attach");
    let codec = Codec::<RawToCoordinator>::default();
    let request = tonic::Request::new(tokio_stream::iter(first));
    soon("the answer", client.streaming(request, path, codec)).await.unwrap_err()
}

#[tokio::test]
async fn another_protocol_version_is_refused_with_both_numbers() {
    let coordinator = Coordinator::start().await;
    let ours = format!("protocol version 99, this coordinator {PROTOCOL_VERSION}");

    let tls = raw::client(&coordinator.identity, None, "h2");
    let request = RawEnrolRequest { protocol_version: 99, ..RawEnrolRequest::default() };
    let status = raw_enrol(raw::channel(&coordinator.addr, tls).await, request).await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains(&ours), "{status}");

    let tls = raw::client(&coordinator.identity, Some(&worker_identity(&coordinator.identity, "w1")), "h2");
    let hello = RawToCoordinator { hello: Some(RawHello { protocol_version: 99 }), probed: None };
    let status = raw_attach(raw::channel(&coordinator.addr, tls).await, vec![hello]).await;
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains(&ours), "{status}");
    coordinator.stop().await;
}

#[tokio::test]
async fn malformed_first_messages_are_refused() {
    let coordinator = Coordinator::start().await;
    let identity = worker_identity(&coordinator.identity, "w1");
    let hello = |protocol_version| Some(RawHello { protocol_version });
    for (first, words) in [
        (vec![], "was not `hello`"),
        (vec![RawToCoordinator { hello: None, probed: None }], "`message` is missing"),
        (vec![RawToCoordinator { hello: None, probed: hello(1) }], "was not `hello`"),
        (
            vec![RawToCoordinator { hello: hello(PROTOCOL_VERSION), probed: None }],
            "`hello.capabilities` is missing",
        ),
    ] {
        let tls = raw::client(&coordinator.identity, Some(&identity), "h2");
        let status = raw_attach(raw::channel(&coordinator.addr, tls).await, first).await;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{words}");
        assert!(status.message().contains(words), "{status}");
    }
    let tls = raw::client(&coordinator.identity, None, "h2");
    let request = RawEnrolRequest { protocol_version: PROTOCOL_VERSION, ..RawEnrolRequest::default() };
    let status = raw_enrol(raw::channel(&coordinator.addr, tls).await, request).await;
    assert!(status.message().contains("`enrol.csr_der` is empty"), "{status}");
    coordinator.stop().await;
}

#[tokio::test]
async fn nobody_attaches_without_a_certificate() {
    let coordinator = Coordinator::start().await;
    let tls = raw::client(&coordinator.identity, None, "h2");
    let hello =
        RawToCoordinator { hello: Some(RawHello { protocol_version: PROTOCOL_VERSION }), probed: None };
    let status = raw_attach(raw::channel(&coordinator.addr, tls).await, vec![hello]).await;
    assert_eq!(status.code(), tonic::Code::PermissionDenied, "{status}");
    coordinator.stop().await;
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_stream_with_its_name() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    let (mut attached, mut session) = attached(&mut coordinator, &identity).await;
    // No interval is not an interval; the worker's side finds out.
    let welcome = Welcome { incarnation: Incarnation(1), data_port: 1, heartbeat_ms: 0 };
    session.outbox.send(ToWorker::Welcome(welcome)).await.unwrap();
    let error = soon("the error", attached.inbox.recv()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("`welcome.heartbeat_ms` is zero"), "{error}");
    assert!(soon("the end", attached.inbox.recv()).await.is_none());
    // A second hello of a device without threads; the coordinator's side finds out.
    let hello = Capabilities { threads: 0, ..capabilities("w1") };
    attached.outbox.send(ToCoordinator::Hello(hello)).await.unwrap();
    match soon("the error", session.inbox.recv()).await {
        Some(Err(SessionError::Malformed(error))) => assert_eq!(error.field(), "capabilities.threads"),
        other => panic!("{other:?}"),
    }
    assert!(soon("the end", session.inbox.recv()).await.is_none());
    coordinator.stop().await;
}

#[tokio::test]
async fn commands_that_cannot_be_are_named() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    let load = |change: fn(&mut LoadStage)| {
        let Some(ToWorker::Load(mut load)) = commands().into_iter().nth(2) else { panic!("another command") };
        change(&mut load);
        ToWorker::Load(load)
    };
    for (command, field) in [
        (load(|load| load.stage = 3), "load.stage"),
        (load(|load| load.stages = 0), "load.stages"),
        (load(|load| load.shard.layers.end = 9), "load.shard"),
        (load(|load| load.shard.layers.end = usize::MAX), "load.shard"),
        (load(|load| load.shard.head = true), "load.shard"),
        (load(|load| load.fingerprint = "xyz".to_owned()), "load.fingerprint"),
        (load(|load| load.fingerprint.clear()), "load.fingerprint"),
        (load(|load| load.file_hint = "../etc/passwd".to_owned()), "load.file_hint"),
        (load(|load| load.file_hint = "..".to_owned()), "load.file_hint"),
        (load(|load| load.file_hint = "x".repeat(300)), "load.file_hint"),
        (load(|load| load.room.sequences = 0), "load.room.sequences"),
    ] {
        let (mut attached, session) = attached(&mut coordinator, &identity).await;
        session.outbox.send(command).await.unwrap();
        match soon("the error", attached.inbox.recv()).await {
            Some(Err(ControlError::Malformed(error))) => assert_eq!(error.field(), field, "{error}"),
            other => panic!("{field}: {other:?}"),
        }
    }
    coordinator.stop().await;
}

#[tokio::test]
async fn either_end_can_end_the_stream() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();

    let (mut attached, session) = self::attached(&mut coordinator, &identity).await;
    drop(session.outbox);
    let last = soon("the end", attached.inbox.recv()).await.unwrap().unwrap_err();
    assert!(matches!(last, ControlError::Ended), "{last}");
    soon("the end of the task", attached.task).await.unwrap();

    let (attached, mut session) = self::attached(&mut coordinator, &identity).await;
    drop(attached.outbox);
    assert_eq!(soon("the end", session.inbox.recv()).await, None);
    drop(attached.inbox);
    soon("the worker's going", session.outbox.closed()).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn shutting_down_delivers_what_was_said_and_ends() {
    let mut coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    let (mut attached, mut session) = attached(&mut coordinator, &identity).await;
    let farewell = ToWorker::Shutdown { reason: "that was it".to_owned() };
    session.outbox.send(farewell.clone()).await.unwrap();
    // A client that never ends its side, and one that never began.
    let _idle = TcpStream::connect(&coordinator.addr).await.unwrap();
    let started = Instant::now();
    coordinator.stop().await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(soon("the farewell", attached.inbox.recv()).await.unwrap().unwrap(), farewell);
    assert!(soon("the end", attached.inbox.recv()).await.unwrap().is_err());
    assert_eq!(soon("the end", session.inbox.recv()).await, None);
}

#[tokio::test]
async fn strangers_do_not_stop_the_accept_loop() {
    let mut coordinator = Coordinator::start().await;
    let mut silent = Vec::new();
    for round in 0..20 {
        let mut stream = TcpStream::connect(&coordinator.addr).await.unwrap();
        if round % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        } else {
            silent.push(stream);
        }
    }
    let identity = coordinator.enrol("w1").await.unwrap();
    attached(&mut coordinator, &identity).await;
    coordinator.stop().await;
}

#[tokio::test]
async fn where_nobody_is_nobody_is_reached() {
    let identity = worker_identity(&coordinator_identity().0, "w1");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    for addr in [addr.as_str(), "not an address", "127.0.0.1", ""] {
        let error = soon("the error", attach(addr, &identity, capabilities("w1"))).await.unwrap_err();
        assert!(matches!(error, ControlError::Unreachable { .. }), "{addr}: {error}");
        assert!(error.to_string().contains(addr), "{error}");
    }
}

#[tokio::test]
async fn what_does_not_speak_tls_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let http = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream
    });
    let identity = worker_identity(&coordinator_identity().0, "w1");
    let error = attach(&addr, &identity, capabilities("w1")).await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    http.await.unwrap();
}

#[tokio::test]
async fn health_is_served_on_both_sides() {
    let coordinator = Coordinator::start().await;
    let identity = coordinator.enrol("w1").await.unwrap();
    let as_worker = TransportIdentity::from(&identity);
    let ask = || check_health(&coordinator.addr, &as_worker, &Peer::Coordinator);
    assert!(!soon("health", ask()).await.unwrap(), "serving before anything is");
    coordinator.health.set_serving(true).await;
    assert!(soon("health", ask()).await.unwrap());

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (health, end) = (Health::new().await, CancellationToken::new());
    health.set_serving(true).await;
    let serving = tokio::spawn({
        let (identity, end) = (identity.clone(), end.clone());
        async move { serve_health(listener, &identity, health, end).await }
    });
    let as_coordinator = TransportIdentity::from(&coordinator.identity);
    assert!(soon("health", check_health(&addr, &as_coordinator, &worker("w1"))).await.unwrap());
    let error = check_health(&addr, &as_coordinator, &worker("w2")).await.unwrap_err();
    assert!(matches!(error, ControlError::Handshake { .. }), "another worker's name: {error}");
    end.cancel();
    soon("the end of serving", serving).await.unwrap().unwrap();
    coordinator.stop().await;
}
