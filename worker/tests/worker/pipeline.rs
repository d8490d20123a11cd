//! Real worker processes between the two ends of a coordinator: steps flow, and what goes wrong is told.

use super::rig::{Coordinator, DEPLOYMENT, Neighbour, Worker, fence, soon};
use brigade_proto::control::{StageState, ToCoordinator, ToWorker};
use brigade_proto::ids::{Epoch, Peer, SequenceId, StepId};
use brigade_proto::link::LinkSender;
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Frame, Segment, SequenceStart, ShortWay, StepFrame, StepKind, StepResult};
use brigade_shard::units::Bytes;
use brigade_worker::telemetry::FIXED_OVERHEAD;

const PROMPT: [u32; 6] = [3, 17, 4, 40, 21, 9];

fn step(epoch: u64, number: u64, kind: StepKind, start: u32, tokens: &[u32]) -> StepFrame {
    let sampling = Sampling { temperature: 0.8, seed: 42, logprobs: Some(3), ..Sampling::default() };
    let begin = (start == 0).then(|| SequenceStart { sampling, prompt_tokens: PROMPT.len() as u32 });
    let segment = Segment {
        sequence: SequenceId(1),
        start,
        tokens: tokens.to_vec(),
        pages: if begin.is_some() { vec![0] } else { Vec::new() },
        begin,
        sample: true,
        drafts: 0,
        score: start == 0,
        next_token: None,
    };
    StepFrame {
        fence: fence(epoch),
        deployment: DEPLOYMENT,
        step: StepId(number),
        kind,
        segments: vec![segment],
        release: Vec::new(),
        short_way: ShortWay::default(),
        timings: Vec::new(),
        hidden: None,
    }
}

/// Prefills the prompt and decodes five tokens; all that the last stage had to say about them.
async fn generate(epoch: u64, first: &LinkSender, last: &mut Neighbour, stages: usize) -> Vec<StepResult> {
    let mut results = Vec::new();
    let mut next = step(epoch, 1, StepKind::Prefill, 0, &PROMPT);
    for number in 2..8 {
        first.send(&Frame::Step(next)).await.unwrap();
        let mut result = last.result().await;
        assert_eq!(result.timings.len(), stages, "{result:?}");
        let places: Vec<u32> = result.timings.iter().map(|timing| timing.stage).collect();
        assert!(places.is_sorted(), "{places:?}");
        result.timings.clear();
        let token = result.outputs[0].sampled.first().expect("a token was asked for").token;
        results.push(result);
        next = step(epoch, number, StepKind::Decode, PROMPT.len() as u32 + number as u32 - 2, &[token]);
    }
    results
}

/// One worker with the whole model.
async fn alone(coordinator: &mut Coordinator) -> (Worker, Neighbour) {
    let mut worker = coordinator.worker("alone").await;
    worker.session.loaded(coordinator.load(1, 0, 4)).await;
    worker.session.connect(1, Peer::Coordinator, Peer::Coordinator, Vec::new()).await;
    let link = coordinator.link().await;
    assert_eq!(link.peer, worker.session.id());
    worker.session.connected().await;
    worker.session.activate(1).await;
    (worker, link)
}

/// Two workers with two layers each, and the links of the first and the last.
async fn pair(coordinator: &mut Coordinator) -> (Worker, Worker, Neighbour, Neighbour) {
    let mut first = coordinator.worker("first").await;
    let mut last = coordinator.worker("last").await;
    first.session.loaded(coordinator.load(1, 0, 2)).await;
    last.session.loaded(coordinator.load(1, 2, 4)).await;
    let (to_first, from_last) = connect_pair(coordinator, 1, &mut first, &mut last).await;
    let (to_first, from_last) = (to_first.unwrap(), from_last.unwrap());
    (first, last, to_first, from_last)
}

async fn connect_pair(
    coordinator: &Coordinator,
    epoch: u64,
    first: &mut Worker,
    last: &mut Worker,
) -> (Option<Neighbour>, Option<Neighbour>) {
    let at = last.session.hello().data_addresses.clone();
    first.session.connect(epoch, Peer::Coordinator, last.session.id(), at).await;
    last.session.connect(epoch, first.session.id(), Peer::Coordinator, Vec::new()).await;
    let mut links = Vec::new();
    if epoch == 1 {
        links.push(coordinator.link().await);
        links.push(coordinator.link().await);
    }
    first.session.connected().await;
    last.session.connected().await;
    first.session.activate(epoch).await;
    last.session.activate(epoch).await;
    let mut take = |peer: Peer| Some(links.remove(links.iter().position(|link| link.peer == peer)?));
    let (to_first, from_last) = (take(first.session.id()), take(last.session.id()));
    (to_first, from_last)
}

#[tokio::test]
async fn two_workers_say_what_one_says_bit_for_bit_within_their_budgets() {
    let mut coordinator = Coordinator::start().await;
    let (_alone, mut link) = alone(&mut coordinator).await;
    let to_alone = link.sender.clone();
    let expected = generate(1, &to_alone, &mut link, 1).await;
    let (mut first, _last, to_first, mut from_last) = pair(&mut coordinator).await;
    assert_eq!(generate(1, &to_first.sender, &mut from_last, 2).await, expected);
    let telemetry = first.session.telemetry().await;
    assert!(telemetry.peak_resident < Bytes::mib(16) + FIXED_OVERHEAD, "{telemetry:?}");
}

#[tokio::test]
async fn workers_tell_of_their_machine_their_process_and_every_link() {
    let mut coordinator = Coordinator::start().await;
    let (mut first, mut last, to_first, mut from_last) = pair(&mut coordinator).await;
    generate(1, &to_first.sender, &mut from_last, 2).await;
    let (first_id, last_id) = (first.session.id(), last.session.id());
    for (worker, next, dialled) in [(&mut first, &last_id, true), (&mut last, &first_id, false)] {
        let told = loop {
            let told = worker.session.telemetry().await;
            // Rates are known from the second look on.
            if told.process.processors.is_some() {
                break told;
            }
        };
        println!("{told:?}");
        let machine = told.machine;
        assert!(machine.memory > Bytes::mib(64), "{machine:?}");
        assert!((Bytes(1)..machine.memory).contains(&machine.memory_available), "{machine:?}");
        assert!(machine.processors_busy.is_some_and(|busy| busy > 0.0), "{machine:?}");
        assert!(told.process.processors.is_some_and(|processors| processors < 64.0), "{:?}", told.process);
        assert_eq!(told.card, None);

        assert_eq!(told.links.len(), 2, "{:?}", told.links);
        let link = |peer: &Peer| told.links.iter().find(|link| link.peer == *peer).expect("a link");
        let (home, neighbour) = (link(&Peer::Coordinator), link(next));
        assert!(home.choice.ends_with(" ms; no other address is known"), "{home:?}");
        assert_eq!(neighbour.choice.is_empty(), !dialled, "{neighbour:?}");
        for link in &told.links {
            assert!((1..5_000_000).contains(&link.rtt_us), "{link:?}");
            assert!(link.address.ip().is_loopback() && link.lost_packets < link.sent_packets, "{link:?}");
            assert!(link.sent_bytes > 1000 && link.received_bytes > 1000, "{link:?}");
            assert!(link.congestion_window > 1000, "{link:?}");
        }
    }
}

#[tokio::test]
async fn a_new_plan_over_the_same_neighbours_uses_their_links_and_fences_the_old_one_off() {
    let mut coordinator = Coordinator::start().await;
    let (mut first, mut last, to_first, mut from_last) = pair(&mut coordinator).await;
    let before = generate(1, &to_first.sender, &mut from_last, 2).await;
    first.session.loaded(coordinator.load(2, 0, 2)).await;
    last.session.loaded(coordinator.load(2, 2, 4)).await;
    let links = connect_pair(&coordinator, 2, &mut first, &mut last).await;
    assert!(links.0.is_none() && links.1.is_none());
    to_first.sender.send(&Frame::Step(step(1, 99, StepKind::Prefill, 0, &PROMPT))).await.unwrap();
    let after = generate(2, &to_first.sender, &mut from_last, 2).await;
    let outputs =
        |results: &[StepResult]| results.iter().map(|result| result.outputs.clone()).collect::<Vec<_>>();
    assert_eq!(outputs(&after), outputs(&before));
    let fenced = loop {
        let telemetry = first.session.telemetry().await;
        if telemetry.frames_fenced > 0 {
            break telemetry.frames_fenced;
        }
    };
    assert_eq!(fenced, 1);
}

#[tokio::test]
async fn a_step_that_does_not_fit_the_stage_is_reported_and_others_are_computed() {
    let mut coordinator = Coordinator::start().await;
    let (mut worker, mut link) = alone(&mut coordinator).await;
    link.sender.send(&Frame::Step(step(1, 1, StepKind::Prefill, 0, &[4_000_000]))).await.unwrap();
    let reason = worker.session.until("a failed step", |message| match message {
        ToCoordinator::StepFailed { step: StepId(1), stage: 0, reason, .. } => Some(reason),
        _ => None,
    });
    let reason = reason.await;
    assert!(reason.contains("4000000"), "{reason}");
    link.sender.send(&Frame::Step(step(1, 2, StepKind::Prefill, 0, &PROMPT))).await.unwrap();
    assert_eq!(link.result().await.step, StepId(2));
}

#[tokio::test]
async fn probes_are_answered_and_retiring_frees_the_stage() {
    let mut coordinator = Coordinator::start().await;
    let (mut worker, link) = alone(&mut coordinator).await;
    worker.session.tell(ToWorker::Probe { nonce: 77 }).await;
    let probed = |message| {
        if let ToCoordinator::Probed { nonce } = message { Some(nonce) } else { None }
    };
    assert_eq!(worker.session.until("a probe's answer", probed).await, 77);
    worker.session.tell(ToWorker::Retire { deployment: DEPLOYMENT }).await;
    assert_eq!(worker.session.state().await, StageState::Retired);
    // A link that nobody needs any more is closed with a reason.
    let told = soon("the end of the link", link.sender.closed()).await.to_string();
    assert!(told.contains("no stage of this worker"), "{told}");
}

#[tokio::test]
async fn a_neighbour_that_is_killed_is_reported_as_a_lost_link() {
    let mut coordinator = Coordinator::start().await;
    let (mut first, last, _to_first, _from_last) = pair(&mut coordinator).await;
    let lost_peer = last.session.id();
    drop(last);
    let lost = first.session.until("a lost link", |message| match message {
        ToCoordinator::LinkLost { peer, deployment: DEPLOYMENT, .. } => Some(peer),
        _ => None,
    });
    assert_eq!(lost.await, lost_peer);
}

#[tokio::test]
async fn what_cannot_be_loaded_or_connected_is_said_with_its_remedy() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = coordinator.worker("w").await;
    let mut absent = coordinator.load(1, 0, 4);
    absent.fingerprint = "ab".repeat(32);
    worker.session.tell(ToWorker::Load(absent)).await;
    let StageState::Failed { reason } = worker.session.state().await else { panic!("it was found") };
    assert!(
        reason.contains("abab") && reason.contains("tiny.gguf") && reason.contains("--models"),
        "{reason}"
    );
    let mut large = coordinator.load(2, 0, 4);
    large.room.cache_tokens = 1 << 20;
    worker.session.tell(ToWorker::Load(large)).await;
    let StageState::Failed { reason } = worker.session.state().await else { panic!("it did fit") };
    assert!(reason.contains("16.0 MiB") && reason.contains("missing"), "{reason}");
    worker.session.loaded(coordinator.load(3, 0, 2)).await;
    let nobody = Peer::Worker("nobody".to_owned().try_into().unwrap());
    worker.session.connect(3, Peer::Coordinator, nobody, vec!["127.0.0.1:1".parse().unwrap()]).await;
    let StageState::Failed { reason } = worker.session.state().await else { panic!("it was reached") };
    assert!(reason.contains("nobody") && reason.contains("127.0.0.1:1"), "{reason}");
}

#[tokio::test]
async fn a_broken_stream_is_dialled_again_and_states_are_told_anew() {
    let mut coordinator = Coordinator::start().await;
    let (worker, mut link) = alone(&mut coordinator).await;
    let Worker { process: _process, session } = worker;
    drop(session);
    let mut session = coordinator.attached().await;
    assert_eq!(session.state().await, StageState::Active);
    link.sender.send(&Frame::Step(step(1, 1, StepKind::Prefill, 0, &PROMPT))).await.unwrap();
    assert_eq!(link.result().await.step, StepId(1));
    // A coordinator that has started anew finds nothing of the old one's.
    drop(session);
    coordinator.incarnation.0 += 1;
    let mut session = coordinator.attached().await;
    soon("the end of the link", link.sender.closed()).await;
    session.loaded(coordinator.load(1, 0, 4)).await;
    session.tell(ToWorker::Retire { deployment: DEPLOYMENT }).await;
    let retired = |message| match message {
        ToCoordinator::Stage(report) if report.state == StageState::Retired => Some(report.epoch),
        _ => None,
    };
    assert_eq!(session.until("the stage's end", retired).await, Epoch(1));
}

#[tokio::test]
async fn news_of_a_stage_comes_with_the_memory_that_is_taken_by_then() {
    let mut coordinator = Coordinator::start().await;
    let mut worker = coordinator.worker("alone").await;
    worker.session.tell(ToWorker::Load(coordinator.load(1, 0, 4))).await;
    let mut before = None;
    loop {
        let message = worker.session.until("a loaded stage", Some).await;
        if let ToCoordinator::Stage(report) = &message
            && let StageState::Loaded(_) = report.state
        {
            break;
        }
        before = Some(message);
    }
    assert!(matches!(before, Some(ToCoordinator::Heartbeat(_))), "before it came {before:?}");
}
