//! The data plane over real sockets: frames both ways, decode first, and every way that a link can end.

mod harness;
#[path = "harness/links.rs"]
mod links;

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use brigade_proto::frame::{FrameError, FrameLimits};
use brigade_proto::identity::TransportIdentity;
use brigade_proto::ids::{Peer, StepId};
use brigade_proto::link::{Link, LinkError, LinkReceiver, LinkSender, Probed, Transport};
use brigade_proto::step::{Frame, StepKind};
use harness::{coordinator_identity, soon, worker_identity};
use links::{bind, loopback, peer, result, step};

const MIB: usize = 1 << 20;

/// Two workers of one brigade and a link from the first to the second.
struct Pair {
    dialled: Transport,
    accepted: Transport,
    near: Link,
    far: Link,
}

async fn pair() -> Pair {
    let (ca, _dir) = coordinator_identity();
    let (dialled, accepted) = (bind(&worker_identity(&ca, "w1")), bind(&worker_identity(&ca, "w2")));
    let near = soon("dialling", dialled.dial(&peer("w2"), &[accepted.local_addr()])).await.expect("a link");
    let far = soon("accepting", accepted.accept()).await.expect("a link");
    Pair { dialled, accepted, near, far }
}

async fn received(receiver: &mut LinkReceiver) -> Frame {
    soon("a frame", receiver.recv()).await.expect("a frame")
}

async fn sent(sender: &LinkSender, frame: &Frame) -> Duration {
    soon("sending", sender.send(frame)).await.expect("sent")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_both_kinds_go_both_ways() {
    let Pair { dialled, accepted, near, far } = pair().await;
    assert_eq!((near.peer(), far.peer()), (&peer("w2"), &peer("w1")));
    assert_eq!(near.remote_address(), accepted.local_addr());
    assert_eq!(far.remote_address(), dialled.local_addr());
    assert!(near.rtt() < Duration::from_secs(1), "{:?}", near.rtt());
    let ((near_out, mut near_in), (far_out, mut far_in)) = (near.split(), far.split());
    for number in 0..20 {
        for kind in [StepKind::Prefill, StepKind::Decode] {
            let frame = step(kind, number, 1 + number as u32 * 7);
            sent(&near_out, &frame).await;
            assert_eq!(received(&mut far_in).await, frame);
        }
        sent(&far_out, &result(number)).await;
        assert_eq!(received(&mut near_in).await, result(number));
    }
    soon("closing", dialled.close()).await;
    soon("closing", accepted.close()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_of_a_kind_keep_their_order() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, _near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    let sending = tokio::spawn(async move {
        for number in 0..200 {
            out.send(&step(StepKind::Decode, number, 1 + (number % 50) as u32)).await.unwrap();
        }
        out
    });
    for number in 0..200 {
        let Frame::Step(frame) = received(&mut far_in).await else { panic!("a result") };
        assert_eq!(frame.step, StepId(number));
    }
    sending.await.unwrap();
    dialled.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decode_overtakes_a_large_prefill_on_the_wire() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, _near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    let prefill = step(StepKind::Prefill, 1, (48 * MIB / 4096) as u32);
    let sending = tokio::spawn({
        let (out, prefill) = (out.clone(), prefill.clone());
        async move { out.send(&prefill).await }
    });
    // Long enough for it to begin, and far too short for it to end.
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(!sending.is_finished(), "48 MiB were sent in 5 ms; make the frame larger");
    let decode = step(StepKind::Decode, 2, 4);
    let started = Instant::now();
    sent(&out, &decode).await;
    assert_eq!(received(&mut far_in).await, decode);
    let overtaking = started.elapsed();
    assert!(!sending.is_finished(), "the decode frame came when the prefill frame was sent: {overtaking:?}");
    assert_eq!(received(&mut far_in).await, prefill);
    let prefilling = soon("sending", sending).await.unwrap().unwrap();
    println!("a decode frame overtook in {overtaking:?}; the prefill frame took {prefilling:?}");
    dialled.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_frames_go_in_large_datagrams_and_arrive_at_once() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, _near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    // One end's finding out the path's size takes a few round trips of its own.
    let sending = tokio::spawn({
        let out = out.clone();
        async move {
            for number in 0..12 {
                out.send(&step(StepKind::Prefill, number, (4 * MIB / 4096) as u32)).await.unwrap();
            }
        }
    });
    for _ in 0..12 {
        received(&mut far_in).await;
    }
    soon("sending", sending).await.unwrap();
    let stats = out.stats();
    assert!(stats.datagram_bytes > 2000, "{stats:?}");
    assert!(stats.lost_packets * 10 <= stats.sent_packets, "{stats:?}");
    dialled.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decode_overtakes_prefill_that_nobody_takes() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, _near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    // More than the receiver's queue and the windows hold, so that the last ones cannot even be written.
    let flooding = tokio::spawn({
        let out = out.clone();
        async move {
            for number in 0..12 {
                out.send(&step(StepKind::Prefill, number, (4 * MIB / 4096) as u32)).await.unwrap();
            }
        }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!flooding.is_finished(), "48 MiB went into queues that should be bounded");
    let decode = step(StepKind::Decode, 99, 4);
    sent(&out, &decode).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(received(&mut far_in).await, decode);
    for number in 0..12 {
        let Frame::Step(frame) = received(&mut far_in).await else { panic!("a result") };
        assert_eq!(frame.step, StepId(number));
    }
    soon("flooding", flooding).await.unwrap();
    dialled.close().await;
}

#[tokio::test]
async fn a_frame_above_the_receivers_limits_closes_the_link_with_the_reason() {
    let Pair { near, far, accepted, dialled } = pair().await;
    accepted.set_limits(FrameLimits { max_header_bytes: 1000, max_payload_bytes: 2 * 4096 });
    let ((out, _near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    sent(&out, &step(StepKind::Decode, 1, 2)).await;
    received(&mut far_in).await;
    sent(&out, &step(StepKind::Decode, 2, 3)).await;
    let error = soon("the error", far_in.recv()).await.unwrap_err();
    let too_large = FrameError::PayloadTooLarge { bytes: 3 * 4096, limit: 2 * 4096 };
    assert_eq!(error, LinkError::Malformed { peer: peer("w1"), error: too_large });
    assert_eq!(soon("the error again", far_in.recv()).await.unwrap_err(), error);
    let told = soon("the end", out.closed()).await;
    assert!(
        matches!(&told, LinkError::ClosedByPeer { reason, .. } if reason.contains("larger than")),
        "{told}"
    );
    let error = soon("sending", out.send(&result(1))).await.unwrap_err();
    assert!(matches!(error, LinkError::ClosedByPeer { .. }), "{error}");
    dialled.close().await;
}

#[tokio::test]
async fn a_frame_that_is_not_consistent_is_not_sent_and_does_no_harm() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, _near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    let Frame::Step(mut bad) = step(StepKind::Decode, 1, 2) else { panic!("a result") };
    bad.segments.clear();
    let error = out.send(&Frame::Step(bad)).await.unwrap_err();
    assert_eq!(error, LinkError::Unsendable(FrameError::Rows { rows: 2, tokens: 0 }));
    sent(&out, &result(1)).await;
    assert_eq!(received(&mut far_in).await, result(1));
    dialled.close().await;
}

#[tokio::test]
async fn closing_tells_the_peer_why_after_what_was_received() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, mut near_in), (far_out, mut far_in)) = (near.split(), far.split());
    sent(&out, &result(1)).await;
    assert_eq!(received(&mut far_in).await, result(1));
    out.close("the plan has ended");
    let error = soon("the end", far_in.recv()).await.unwrap_err();
    assert_eq!(error, LinkError::ClosedByPeer { peer: peer("w1"), reason: "the plan has ended".to_owned() });
    assert_eq!(soon("the end", near_in.recv()).await.unwrap_err(), LinkError::Closed { peer: peer("w2") });
    assert!(soon("sending", far_out.send(&result(2))).await.is_err());
    dialled.close().await;
}

#[tokio::test]
async fn a_link_lives_as_long_as_one_half() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, near_in), (far_out, mut far_in)) = (near.split(), far.split());
    drop((near_in, far_out));
    sent(&out, &result(1)).await;
    assert_eq!(received(&mut far_in).await, result(1));
    drop(out);
    let error = soon("the end", far_in.recv()).await.unwrap_err();
    assert!(matches!(error, LinkError::ClosedByPeer { .. }), "{error}");
    dialled.close().await;
}

#[tokio::test]
async fn a_frame_given_up_half_way_ends_the_link() {
    let Pair { near, far, dialled, accepted: _accepted } = pair().await;
    let ((out, mut near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    let large = step(StepKind::Prefill, 1, (48 * MIB / 4096) as u32);
    assert!(tokio::time::timeout(Duration::from_millis(5), out.send(&large)).await.is_err(), "sent at once");
    let error = soon("the end", near_in.recv()).await.unwrap_err();
    assert_eq!(error, LinkError::Interrupted { peer: peer("w2") });
    // With a full window the reason may not come through, the end does.
    let error = soon("the end", far_in.recv()).await.unwrap_err();
    let named = error.to_string().contains("given up half way");
    assert!(named || matches!(error, LinkError::Lost { .. }), "{error}");
    dialled.close().await;
}

#[tokio::test]
async fn a_closed_transport_ends_everything() {
    let Pair { near, far, dialled, accepted } = pair().await;
    let ((out, _near_in), (_far_out, mut far_in)) = (near.split(), far.split());
    // Frames that nobody takes: the reading task waits for room.
    for number in 0..40 {
        sent(&out, &step(StepKind::Decode, number, 1)).await;
    }
    let started = Instant::now();
    soon("closing", accepted.close()).await;
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert!(soon("accepting", accepted.accept()).await.is_none());
    let ended = async { while far_in.recv().await.is_ok() {} };
    soon("the end", ended).await;
    let error = soon("the end", out.closed()).await;
    assert!(matches!(error, LinkError::ClosedByPeer { .. }), "{error}");
    soon("closing", dialled.close()).await;
    let error = soon("dialling", dialled.dial(&peer("w2"), &[accepted.local_addr()])).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_peer_that_goes_silent_is_lost() {
    let (ca, _dir) = coordinator_identity();
    let (dialled, accepted) = (bind(&worker_identity(&ca, "w1")), bind(&worker_identity(&ca, "w2")));
    let relay = tokio::net::UdpSocket::bind(loopback()).await.unwrap();
    let (through, ends) = (relay.local_addr().unwrap(), [dialled.local_addr(), accepted.local_addr()]);
    let relaying = tokio::spawn(async move {
        let mut datagram = vec![0; 65536];
        loop {
            let Ok((length, from)) = relay.recv_from(&mut datagram).await else {
                continue;
            };
            let to = if from == ends[0] { ends[1] } else { ends[0] };
            let _ = relay.send_to(&datagram[..length], to).await;
        }
    });
    let link = soon("dialling", dialled.dial(&peer("w2"), &[through])).await.unwrap();
    let _far = soon("accepting", accepted.accept()).await.unwrap();
    // Keep-alives carry a link without traffic over the idle timeout of 5 seconds.
    tokio::time::sleep(Duration::from_millis(5500)).await;
    let (out, mut near_in) = link.split();
    sent(&out, &result(1)).await;
    relaying.abort();
    let started = Instant::now();
    let error = soon("the loss", near_in.recv()).await.unwrap_err();
    assert!(matches!(error, LinkError::Lost { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[tokio::test]
async fn the_address_that_answers_is_taken_among_dead_ones() {
    let (ca, _dir) = coordinator_identity();
    let (dialled, accepted) = (bind(&worker_identity(&ca, "w1")), bind(&ca));
    let silent = UdpSocket::bind(loopback()).unwrap();
    let candidates = [
        silent.local_addr().unwrap(),
        "[::1]:9".parse().unwrap(),
        "127.0.0.1:1".parse().unwrap(),
        accepted.local_addr(),
    ];
    let started = Instant::now();
    let link = soon("dialling", dialled.dial(&Peer::Coordinator, &candidates)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(link.remote_address(), accepted.local_addr());
    assert_eq!(soon("accepting", accepted.accept()).await.unwrap().peer(), &peer("w1"));
}

#[tokio::test]
async fn one_link_comes_of_many_good_addresses() {
    let (ca, _dir) = coordinator_identity();
    let any: SocketAddr = "0.0.0.0:0".parse().unwrap();
    let bind_any = |id: &str| {
        Transport::bind(any, (&worker_identity(&ca, id)).into(), FrameLimits::default()).expect("a socket")
    };
    let (dialled, accepted) = (bind_any("w1"), bind_any("w2"));
    let port = accepted.local_addr().port();
    let candidates: Vec<SocketAddr> =
        (1..=5).map(|last| SocketAddr::from(([127, 0, 0, last], port))).collect();
    let link = soon("dialling", dialled.dial(&peer("w2"), &candidates)).await.unwrap();
    assert!(candidates.contains(&link.remote_address()), "{}", link.remote_address());
    let far = soon("accepting", accepted.accept()).await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(300), accepted.accept()).await;
    assert!(second.is_err(), "a path that was not chosen became a link");
    let ((out, _near_in), (_far_out, mut far_in)) = (link.split(), far.split());
    sent(&out, &result(1)).await;
    assert_eq!(received(&mut far_in).await, result(1));
}

#[tokio::test]
async fn a_dual_stack_socket_takes_both_families() {
    let (ca, _dir) = coordinator_identity();
    let both: SocketAddr = "[::]:0".parse().unwrap();
    let identity = TransportIdentity::from(&worker_identity(&ca, "w2"));
    let Ok(accepted) = Transport::bind(both, identity, FrameLimits::default()) else {
        println!("skipped: this machine has no IPv6");
        return;
    };
    let v4 = SocketAddr::from(([127, 0, 0, 1], accepted.local_addr().port()));
    let dialled = bind(&worker_identity(&ca, "w1"));
    let _near = soon("dialling", dialled.dial(&peer("w2"), &[v4])).await.unwrap();
    let far = soon("accepting", accepted.accept()).await.unwrap();
    assert_eq!(far.remote_address(), dialled.local_addr(), "shown as what it is, not as mapped");
    let back = soon("dialling", accepted.dial(&peer("w1"), &[dialled.local_addr()])).await.unwrap();
    assert_eq!(back.remote_address(), dialled.local_addr());
}

#[tokio::test]
async fn where_nobody_answers_nobody_is_reached() {
    let (ca, _dir) = coordinator_identity();
    let dialled = bind(&worker_identity(&ca, "w1"));
    let silent = UdpSocket::bind(loopback()).unwrap();
    let started = Instant::now();
    let dead = [silent.local_addr().unwrap(), "127.0.0.1:0".parse().unwrap()];
    let error = soon("the error", dialled.dial(&peer("w2"), &dead)).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains(&format!("{}: ", dead[0])), "{error}");
    assert!(error.to_string().contains("no answer within 5 seconds"), "{error}");
    assert!(error.to_string().contains("127.0.0.1:0: "), "{error}");
    assert!(started.elapsed() < Duration::from_secs(11), "{:?}", started.elapsed());
    let error = dialled.dial(&peer("w2"), &[]).await.unwrap_err();
    assert!(error.to_string().contains("no address"), "{error}");
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let (ca, _dir) = coordinator_identity();
    let identity = TransportIdentity::from(&ca);
    let taken = UdpSocket::bind(loopback()).unwrap();
    let addr = taken.local_addr().unwrap();
    let error = Transport::bind(addr, identity, FrameLimits::HEADERS_ONLY).unwrap_err();
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
}

/// How long the slow path keeps a datagram, each way: far longer than loopback, and short enough to be waited for.
const SLOW: Duration = Duration::from_millis(5);

/// An address that leads between two others, slowly; it does so until the task is gone.
async fn slow_path(ends: [SocketAddr; 2]) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let socket = tokio::net::UdpSocket::bind(loopback()).await.expect("a socket");
    let address = socket.local_addr().expect("an address");
    let relaying = tokio::spawn(async move {
        let mut datagram = vec![0; 65536];
        let mut queued: VecDeque<(tokio::time::Instant, SocketAddr, Vec<u8>)> = VecDeque::new();
        loop {
            let due = queued.front().map(|(due, ..)| *due);
            tokio::select! {
                Ok((length, from)) = socket.recv_from(&mut datagram) => {
                    let to = if from == ends[0] { ends[1] } else { ends[0] };
                    queued.push_back((tokio::time::Instant::now() + SLOW, to, datagram[..length].to_vec()));
                }
                () = async { tokio::time::sleep_until(due.expect("one waits")).await }, if due.is_some() => {
                    let (_, to, datagram) = queued.pop_front().expect("one waits");
                    socket.send_to(&datagram, to).await.expect("sent");
                }
            }
        }
    });
    (address, relaying)
}

#[tokio::test]
async fn the_faster_path_is_taken_though_it_comes_last() {
    let (ca, _dir) = coordinator_identity();
    let (dialled, accepted) = (bind(&worker_identity(&ca, "w1")), bind(&worker_identity(&ca, "w2")));
    let (slow, relaying) = slow_path([dialled.local_addr(), accepted.local_addr()]).await;
    let candidates = [slow, accepted.local_addr()];
    let mut named = 0;
    for _ in 0..5 {
        let link = soon("dialling", dialled.dial(&peer("w2"), &candidates)).await.expect("a link");
        println!("{}", link.choice());
        assert_eq!(link.remote_address(), accepted.local_addr(), "{}", link.choice());
        // A busy machine may be too late to hear of it.
        if let Some((_, took)) = link.choice().split_once(&format!("; {slow} took ")) {
            let ms: f64 = took.trim_end_matches(" ms").parse().expect("a time");
            assert!(ms >= 2.0 * SLOW.as_secs_f64() * 1e3, "{}", link.choice());
            named += 1;
        }
        let far = soon("accepting", accepted.accept()).await.expect("a link");
        assert_eq!((far.peer(), far.choice()), (&peer("w1"), ""));
    }
    assert!(named > 0, "the slow path is never told of");
    // Alone it is good enough.
    let link = soon("dialling", dialled.dial(&peer("w2"), &[slow])).await.expect("a link");
    assert_eq!(link.remote_address(), slow);
    assert!(link.choice().ends_with(" ms; no other address is known"), "{}", link.choice());
    relaying.abort();
}

#[tokio::test]
async fn addresses_that_lead_nowhere_and_to_others_are_told_apart() {
    /// Long before a handshake is given up.
    const SOON: Duration = Duration::from_secs(2);
    let (ca, _dir) = coordinator_identity();
    let (dialled, accepted) = (bind(&worker_identity(&ca, "w1")), bind(&ca));
    let other = bind(&worker_identity(&ca, "w3"));
    let silent = UdpSocket::bind(loopback()).expect("a socket");
    let silent = silent.local_addr().expect("an address");
    let candidates = [silent, other.local_addr(), accepted.local_addr()];
    let began = Instant::now();
    let link = soon("dialling", dialled.dial(&Peer::Coordinator, &candidates)).await.expect("a link");
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    assert_eq!(link.remote_address(), accepted.local_addr());
    let wanted = format!("; {silent} did not answer in time, {} is somebody else", other.local_addr());
    assert!(link.choice().ends_with(&wanted), "{}", link.choice());
}

/// How long a probe waits.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_peer_that_is_there_answers_and_gets_no_link() {
    let (ca, _dir) = coordinator_identity();
    let (asking, there) = (bind(&worker_identity(&ca, "w1")), bind(&worker_identity(&ca, "w2")));
    let at = there.local_addr();
    // An address where nobody answers changes nothing.
    let nobody = UdpSocket::bind(loopback()).expect("a socket");
    let candidates = [nobody.local_addr().expect("an address"), at];
    for home in [Some(at), None] {
        let probed = soon("a probe", asking.probe(&peer("w2"), home, &candidates, PROBE_PATIENCE)).await;
        assert_eq!(probed, Probed::Here);
    }
    assert!(
        tokio::time::timeout(Duration::from_millis(300), there.accept()).await.is_err(),
        "a link was made"
    );
    // The one that asked can be dialled all the same, and so can the other.
    soon("dialling", asking.dial(&peer("w2"), &[at])).await.expect("a link");
}

#[tokio::test]
async fn a_port_that_nobody_has_any_more_is_found_out_at_once() {
    let (ca, _dir) = coordinator_identity();
    let asking = bind(&worker_identity(&ca, "w1"));
    let closed = UdpSocket::bind(loopback()).expect("a socket").local_addr().expect("an address");
    let start = Instant::now();
    let probed = soon("a probe", asking.probe(&peer("w2"), Some(closed), &[closed], PROBE_PATIENCE)).await;
    assert_eq!(probed, Probed::Gone);
    assert!(start.elapsed() < PROBE_PATIENCE / 2, "took {:?}", start.elapsed());
    // An address that may be another machine's says nothing.
    let probed = soon("a probe", asking.probe(&peer("w2"), None, &[closed], PROBE_PATIENCE)).await;
    assert_eq!(probed, Probed::Silent);
}

#[tokio::test]
async fn somebody_else_in_its_place_means_that_it_is_gone() {
    let (ca, _dir) = coordinator_identity();
    let (asking, other) = (bind(&worker_identity(&ca, "w1")), bind(&worker_identity(&ca, "w3")));
    let at = other.local_addr();
    let probed = soon("a probe", asking.probe(&peer("w2"), Some(at), &[at], PROBE_PATIENCE)).await;
    assert_eq!(probed, Probed::Gone);
    let probed = soon("a probe", asking.probe(&peer("w2"), None, &[at], PROBE_PATIENCE)).await;
    assert_eq!(probed, Probed::Silent);
}

#[tokio::test]
async fn one_that_says_nothing_is_waited_for_and_no_longer() {
    let (ca, _dir) = coordinator_identity();
    let asking = bind(&worker_identity(&ca, "w1"));
    let stopped = UdpSocket::bind(loopback()).expect("a socket");
    let at = stopped.local_addr().expect("an address");
    let start = Instant::now();
    let probed = soon("a probe", asking.probe(&peer("w2"), Some(at), &[at], PROBE_PATIENCE)).await;
    assert_eq!(probed, Probed::Silent);
    assert!((PROBE_PATIENCE..2 * PROBE_PATIENCE).contains(&start.elapsed()), "took {:?}", start.elapsed());
    // No address at all is no answer either.
    assert_eq!(
        soon("a probe", asking.probe(&peer("w2"), None, &[], PROBE_PATIENCE / 10)).await,
        Probed::Silent
    );
}
