//! Tests of the membership machine.

use super::*;
use brigade_proto::control::DeviceKind;
use brigade_shard::units::Bytes;

fn id(name: &str) -> WorkerId {
    WorkerId::try_from(name.to_owned()).unwrap()
}

fn attached(session: u64, name: &str) -> Event {
    let hello = Box::new(Capabilities {
        name: name.into(),
        host: "host".into(),
        version: "1".into(),
        device: DeviceKind::Cpu,
        device_name: "cpu".into(),
        budget: Bytes::mib(64),
        threads: 1,
        bandwidth_bytes_per_s: 1e9,
        flops_per_s: 1e9,
        data_addresses: Vec::new(),
        delivery_port: 0,
        stretch: 1.0,
        kernel_speeds: Vec::new(),
        shared_host: None,
        offload_bytes_per_s: None,
        converts: false,
    });
    Event::Attached {
        session: SessionId(session),
        worker: id(name),
        remote: ([127, 0, 0, 1], 1).into(),
        hello,
    }
}

fn detached(session: u64) -> Event {
    Event::Detached { session: SessionId(session), reason: "reset".into() }
}

fn probe(name: &str, nonce: u64) -> Command {
    Command::Probe { worker: id(name), nonce }
}

fn answer(name: &str, nonce: u64, probed: Probed) -> Event {
    Event::Probed { worker: id(name), nonce, probed }
}

fn commands(membership: &mut Membership) -> Vec<Command> {
    std::iter::from_fn(|| membership.poll_command()).collect()
}

fn seconds(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn is_lost(membership: &Membership, name: &str) -> bool {
    matches!(membership.member(&id(name)).unwrap().presence, Presence::Lost { .. })
}

#[test]
fn a_drained_worker_stays_so_and_nothing_waits_for_it() {
    let now = Instant::now();
    let mut membership = Membership::new();
    membership.handle(attached(1, "w1"), now);
    let drain = |draining| Event::Draining { worker: id("w1"), draining };
    commands(&mut membership);
    membership.handle(drain(true), now);
    assert_eq!(commands(&mut membership), [Command::Changed]);
    membership.handle(drain(true), now);
    assert_eq!(commands(&mut membership), [], "it is so already");
    membership.handle(detached(1), now);
    assert!(membership.is_suspected(&id("w1")) && !membership.any_suspected());
    membership.handle(attached(2, "w1"), now);
    assert!(membership.is_draining(&id("w1")), "the mark survives its reconnection");
    membership.handle(drain(false), now);
    membership.handle(detached(2), now);
    assert!(!membership.is_draining(&id("w1")) && membership.any_suspected());
}

#[test]
fn a_broken_stream_alone_is_not_death() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    assert_eq!(commands(&mut membership), [Command::Changed]);

    membership.handle(detached(1), t0);
    assert_eq!(commands(&mut membership), [Command::Changed, probe("w1", 1)]);
    assert!(membership.any_suspected());
    assert_eq!(membership.next_timeout(), Some(t0 + REATTACH_GRACE));

    membership.handle(attached(2, "w1"), t0 + seconds(1.9));
    membership.handle_timeout(t0 + seconds(2.0));
    assert!(!membership.any_suspected());
    assert_eq!(membership.attached().count(), 1);
}

#[test]
fn a_worker_that_does_not_come_back_is_lost_after_the_grace() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    membership.handle(detached(1), t0);
    commands(&mut membership);
    membership.handle_timeout(t0 + seconds(1.9));
    assert!(!is_lost(&membership, "w1"));
    membership.handle_timeout(t0 + REATTACH_GRACE);
    assert!(is_lost(&membership, "w1"));
    assert_eq!(commands(&mut membership), [Command::Changed]);
    // What the probe finds out later changes nothing.
    membership.handle(answer("w1", 1, Probed::Here), t0 + REATTACH_GRACE);
    assert!(is_lost(&membership, "w1") && commands(&mut membership).is_empty());
}

#[test]
fn a_process_that_is_gone_is_lost_as_soon_as_the_probe_says_so() {
    for (probed, word) in [(Probed::Gone, "listens"), (Probed::Silent, "answer")] {
        let (mut membership, t0) = (Membership::new(), Instant::now());
        membership.handle(attached(1, "w1"), t0);
        membership.handle(detached(1), t0);
        commands(&mut membership);
        membership.handle(answer("w1", 7, Probed::Here), t0);
        assert!(commands(&mut membership).is_empty(), "the answer to another question");
        membership.handle(answer("w1", 1, probed), t0 + seconds(0.1));
        assert_eq!(commands(&mut membership), [Command::Changed]);
        let Presence::Lost { reason, .. } = &membership.member(&id("w1")).unwrap().presence else {
            panic!("it is not lost");
        };
        assert!(reason.contains(word), "{reason}");
        assert!(!membership.any_suspected());
    }
}

#[test]
fn a_worker_whose_data_plane_answers_has_longer_to_come_back() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    membership.handle(detached(1), t0);
    membership.handle(answer("w1", 1, Probed::Here), t0 + seconds(0.1));
    membership.handle_timeout(t0 + REATTACH_GRACE);
    assert!(!is_lost(&membership, "w1") && membership.any_suspected());
    membership.handle_timeout(t0 + ANSWERED_GRACE);
    assert!(is_lost(&membership, "w1"));
}

#[test]
fn silence_raises_a_doubt_which_the_probe_settles() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    membership.handle(attached(2, "w2"), t0);
    commands(&mut membership);
    let heard =
        Event::Heard { session: SessionId(2), telemetry: Some(Telemetry { steps: 7, ..Default::default() }) };
    membership.handle(heard, t0 + seconds(1.0));
    membership.handle_timeout(t0 + DOUBT_AFTER);
    assert_eq!(commands(&mut membership), [probe("w1", 1)]);
    assert!(membership.is_suspected(&id("w1")) && !membership.is_suspected(&id("w2")));
    membership.handle(answer("w1", 1, Probed::Silent), t0 + DOUBT_AFTER + PROBE_PATIENCE);
    assert_eq!(commands(&mut membership), [Command::Close(SessionId(1)), Command::Changed]);
    assert!(is_lost(&membership, "w1") && !is_lost(&membership, "w2"));
    assert_eq!(membership.member(&id("w2")).unwrap().telemetry.steps, 7);
}

#[test]
fn a_word_from_the_worker_ends_every_doubt() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    commands(&mut membership);
    // The coordinator itself has slept for an hour: what the worker said meanwhile is still to be read.
    let later = t0 + seconds(3600.0);
    membership.handle_timeout(later);
    assert_eq!(commands(&mut membership), [probe("w1", 1)]);
    membership.handle(Event::Heard { session: SessionId(1), telemetry: None }, later);
    assert_eq!(commands(&mut membership), [Command::Changed]);
    membership.handle(answer("w1", 1, Probed::Silent), later + seconds(1.0));
    assert!(!is_lost(&membership, "w1") && !membership.any_suspected());
    // Others may doubt it too.
    membership.handle(Event::Doubted { worker: id("w1") }, later + seconds(2.0));
    membership.handle(Event::Doubted { worker: id("w1") }, later + seconds(2.0));
    assert_eq!(commands(&mut membership), [probe("w1", 2)]);
    membership.handle_timeout(later + seconds(2.0) + DOUBT_LIMIT);
    assert!(is_lost(&membership, "w1"), "nobody has said what became of the probe");
}

#[test]
fn a_silent_stream_of_a_worker_that_answers_is_dialled_again() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    membership.handle_timeout(t0 + DOUBT_AFTER);
    membership.handle(answer("w1", 1, Probed::Here), t0 + DOUBT_AFTER);
    commands(&mut membership);
    assert!(!membership.any_suspected());
    membership.handle_timeout(t0 + SILENCE_LIMIT);
    assert_eq!(commands(&mut membership), [Command::Close(SessionId(1)), Command::Changed]);
    assert!(!is_lost(&membership, "w1") && membership.any_suspected());
    membership.handle(attached(2, "w1"), t0 + SILENCE_LIMIT + seconds(1.0));
    assert!(!membership.any_suspected());
    membership.handle(detached(2), t0 + SILENCE_LIMIT + seconds(2.0));
    assert!(commands(&mut membership).contains(&probe("w1", 2)), "a new doubt");
}

#[test]
fn a_second_stream_of_the_same_worker_replaces_the_first() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    membership.handle(attached(2, "w1"), t0);
    assert_eq!(commands(&mut membership), [Command::Changed, Command::Close(SessionId(1)), Command::Changed]);
    // The end of the old stream says nothing of the new one.
    membership.handle(detached(1), t0);
    assert_eq!(membership.member(&id("w1")).unwrap().session(), Some(SessionId(2)));
    assert_eq!(membership.worker_of(SessionId(1)), None);
    assert_eq!(commands(&mut membership), []);
}

#[test]
fn a_worker_that_leaves_is_lost_at_once() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    membership.handle(attached(1, "w1"), t0);
    membership.handle(Event::Leaving { session: SessionId(1) }, t0);
    assert!(is_lost(&membership, "w1"));
    membership.handle(detached(1), t0);
    assert!(is_lost(&membership, "w1"));
}

#[test]
fn lost_workers_are_remembered_for_a_while_and_not_without_bound() {
    let (mut membership, t0) = (Membership::new(), Instant::now());
    for i in 0..200 {
        membership.handle(attached(i, &format!("w{i}")), t0);
        membership.handle(Event::Leaving { session: SessionId(i) }, t0 + seconds(i as f64));
    }
    membership.handle_timeout(t0 + seconds(200.0));
    assert_eq!(membership.members().count(), MAX_LOST);
    membership.handle_timeout(t0 + seconds(200.0) + REMEMBER_LOST);
    assert_eq!(membership.members().count(), 0);
    assert_eq!(membership.next_timeout(), None);
}

/// Any order of events leaves every stream with at most one worker, and every worker with at most one stream.
#[test]
fn random_events_keep_streams_and_workers_matched() {
    let mut random = crate::test_random::Random::new(1);
    let (mut membership, mut now) = (Membership::new(), Instant::now());
    let mut open = std::collections::BTreeSet::new();
    for session in 0..20_000u64 {
        now += Duration::from_millis(random.below(700));
        let any = SessionId(session.saturating_sub(random.below(12)));
        match random.below(8) {
            5 => membership.handle(Event::Doubted { worker: id(&format!("w{}", random.below(5))) }, now),
            6 | 7 => {
                let probed = [Probed::Here, Probed::Gone, Probed::Silent][random.below(3) as usize].clone();
                let nonce = membership.last_nonce.saturating_sub(random.below(3));
                membership.handle(answer(&format!("w{}", random.below(5)), nonce, probed), now);
            }
            0 => {
                membership.handle(attached(session, &format!("w{}", random.below(5))), now);
                open.insert(SessionId(session));
            }
            1 => membership.handle(Event::Heard { session: any, telemetry: None }, now),
            2 => membership.handle(Event::Leaving { session: any }, now),
            3 => {
                membership.handle(detached(any.0), now);
                open.remove(&any);
            }
            _ => membership.handle_timeout(now),
        }
        for command in commands(&mut membership) {
            if let Command::Close(closed) = command {
                assert!(membership.worker_of(closed).is_none(), "{closed:?} was closed and is still used");
                open.remove(&closed);
            }
        }
        for member in membership.members() {
            if let Some(session) = member.session() {
                assert!(open.contains(&session), "{session:?} is used and has ended");
                assert_eq!(membership.worker_of(session), Some(&member.id));
            }
        }
        if let Some(due) = membership.next_timeout() {
            assert!(due + REMEMBER_LOST > now, "a timeout that never comes");
        }
    }
}

#[test]
fn it_is_known_since_when_a_worker_is_in_doubt() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let mut members = Membership::new();
    members.handle(attached(1, "w1"), start);
    assert_eq!(members.suspected_since(&id("w1")), None);
    members.handle(Event::Doubted { worker: id("w1") }, at(100));
    assert_eq!(members.suspected_since(&id("w1")), Some(at(100)));
    members.handle(Event::Detached { session: SessionId(1), reason: "reset".into() }, at(200));
    assert_eq!(members.suspected_since(&id("w1")), Some(at(100)));
    members.handle(attached(2, "w1"), at(300));
    assert_eq!(members.suspected_since(&id("w1")), None);
    assert_eq!(members.suspected_since(&id("w9")), None);
}
