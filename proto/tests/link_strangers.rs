//! Links and those who must stay out of them: wrong names, CAs and versions, and bytes that are no frames.
#![expect(clippy::unwrap_used, reason = "what cannot be unwrapped fails the test")]

mod harness;
#[path = "harness/links.rs"]
mod links;
#[path = "harness/raw.rs"]
mod raw;

use std::sync::Arc;

use brigade_proto::control::PROTOCOL_VERSION;
use brigade_proto::frame::encode;
use brigade_proto::identity::CoordinatorIdentity;
use brigade_proto::ids::Peer;
use brigade_proto::link::{LinkError, Transport};
use brigade_proto::step::{Frame, StepKind};
use harness::{coordinator_identity, mixed_identity, soon, worker_identity};
use links::{bind, loopback, peer, result, step};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};

#[tokio::test]
async fn who_is_not_who_was_dialled_is_refused() {
    let (ca, _dir) = coordinator_identity();
    let (dialled, accepted) = (bind(&worker_identity(&ca, "w1")), bind(&worker_identity(&ca, "w2")));
    for wanted in [peer("w3"), Peer::Coordinator] {
        let error = soon("dialling", dialled.dial(&wanted, &[accepted.local_addr()])).await.unwrap_err();
        assert!(matches!(error, LinkError::Untrusted { .. }), "{error}");
        assert!(error.to_string().contains(&wanted.to_string()), "{error}");
    }
}

#[tokio::test]
async fn another_ca_is_refused_by_both_ends() {
    let ((ca, _dir), (other, _other_dir)) = (coordinator_identity(), coordinator_identity());
    let accepted = bind(&worker_identity(&ca, "w2"));
    let stranger = bind(&worker_identity(&other, "w1"));
    let error = soon("dialling", stranger.dial(&peer("w2"), &[accepted.local_addr()])).await.unwrap_err();
    assert!(matches!(error, LinkError::Untrusted { .. }), "the dialling end's check: {error}");
    let forged = bind(&mixed_identity(&other, &ca, "w1"));
    let error = soon("dialling", forged.dial(&peer("w2"), &[accepted.local_addr()])).await.unwrap_err();
    assert!(matches!(error, LinkError::Untrusted { .. }), "the accepting end's check: {error}");
    assert!(error.to_string().contains("does not accept our certificate"), "{error}");
}

#[tokio::test]
async fn another_protocol_version_is_named() {
    let (ca, _dir) = coordinator_identity();
    let tls = raw::server(&worker_identity(&ca, "w2"), "brigade/99");
    let crypto = QuicServerConfig::try_from(tls).unwrap();
    let newer =
        quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), loopback()).unwrap();
    let accepting = tokio::spawn({
        let newer = newer.clone();
        async move { newer.accept().await.expect("a caller").await.map(|_| ()) }
    });
    let dialled = bind(&worker_identity(&ca, "w1"));
    let addr = newer.local_addr().unwrap();
    let error = soon("dialling", dialled.dial(&peer("w2"), &[addr])).await.unwrap_err();
    assert_eq!(error, LinkError::Version { peer: peer("w2") });
    assert!(
        error.to_string().contains(&format!("does not speak protocol version {PROTOCOL_VERSION}")),
        "{error}"
    );
    assert!(soon("the other end", accepting).await.unwrap().is_err());
    // The other way round: who offers another version is not let in.
    let error = raw_connection(&ca, "w3", &dialled, "brigade/99", &peer("w1")).await.unwrap_err();
    assert!(error.to_string().contains("120"), "{error}");
}

/// A connection to `to` that shows a good certificate, for what comes after it.
async fn raw_connection(
    ca: &CoordinatorIdentity,
    id: &str,
    to: &Transport,
    alpn: &str,
    wanted: &Peer,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let tls = raw::client(ca, Some(&worker_identity(ca, id)), alpn);
    let crypto = QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(loopback()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(crypto));
    let name = format!("{wanted}.worker.brigade");
    soon("connecting", endpoint.connect_with(config, to.local_addr(), &name).unwrap()).await
}

/// A link whose other end sends these bytes, each on a stream of its own, and the error that this brings.
async fn error_of(streams: &[Vec<u8>]) -> (LinkError, quinn::ConnectionError) {
    let (ca, _dir) = coordinator_identity();
    let accepted = bind(&worker_identity(&ca, "w2"));
    let connection =
        raw_connection(&ca, "w1", &accepted, &format!("brigade/{PROTOCOL_VERSION}"), &peer("w2"))
            .await
            .unwrap();
    let (mut choose, mut confirm) = connection.open_bi().await.unwrap();
    choose.write_all(&[1]).await.unwrap();
    choose.finish().unwrap();
    assert_eq!(soon("the confirmation", confirm.read_to_end(10)).await.unwrap(), [1]);
    let (_far_out, mut far_in) = soon("accepting", accepted.accept()).await.unwrap().split();
    for bytes in streams {
        let mut stream = connection.open_uni().await.unwrap();
        let _ = stream.write_all(bytes).await;
        let _ = stream.finish();
    }
    let error = loop {
        if let Err(error) = soon("the error", far_in.recv()).await {
            break error;
        }
    };
    (error, soon("the end", connection.closed()).await)
}

/// A frame as the wire has it, on a stream of `mark`.
fn on_stream(mark: u8, frame: &Frame) -> Vec<u8> {
    let (header, payload) = encode(frame).unwrap();
    let mut bytes = vec![mark];
    bytes.extend((header.len() as u32).to_le_bytes());
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(header);
    bytes.extend(payload);
    bytes
}

#[tokio::test]
async fn what_is_no_frame_closes_the_link_with_the_reason() {
    let good = on_stream(2, &result(1));
    let cut = good[..good.len() - 1].to_vec();
    let large = on_stream(1, &step(StepKind::Prefill, 1, 4));
    let no_payload = large[..large.len() - 1].to_vec();
    let junk_header = [&[2, 3, 0, 0, 0, 0, 0, 0, 0][..], &[0xff, 0xff, 0xff]].concat();
    for (streams, words) in [
        (vec![vec![7]], "byte 7"),
        (vec![vec![2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]], "header of 4294967295 bytes"),
        (vec![vec![1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]], "payload of 4294967295 bytes"),
        (vec![junk_header], "cannot be read"),
        (vec![vec![2, 0, 0, 0, 0, 0, 0, 0, 0]], "`frame` is missing"),
        (vec![cut], "cut off"),
        (vec![no_payload], "cut off"),
        (vec![[&[2], &large[1..]].concat()], "Prefill frame came on the stream of Decode"),
        (vec![vec![2, 1, 2, 3]], "cut off"),
        (vec![on_stream(1, &result(1))], "Decode frame came on the stream of Prefill"),
        (vec![good.clone(), good.clone()], "second stream of Decode"),
    ] {
        let (error, told) = error_of(&streams).await;
        assert!(matches!(error, LinkError::Malformed { .. }), "{words}: {error}");
        assert!(error.to_string().contains(words), "{words}: {error}");
        let quinn::ConnectionError::ApplicationClosed(close) = told else { panic!("{words}: {told}") };
        let told = String::from_utf8_lossy(&close.reason).into_owned();
        assert!(told.contains(words), "{words}: {told}");
    }
}

#[tokio::test]
async fn random_bytes_never_do_more_than_close_the_link() {
    let mut state = 0x1234_5678_9abc_def1_u64;
    for round in 0..30 {
        let bytes: Vec<u8> = (0..200)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        // A known kind, so that the frame itself is read, and small lengths every other time.
        let mut stream = vec![1 + (round % 2) as u8];
        if round % 4 < 2 {
            stream.extend([60, 0, 0, 0, 40, 0, 0, 0]);
        }
        stream.extend(bytes);
        let (error, _) = error_of(&[stream]).await;
        assert!(matches!(error, LinkError::Malformed { .. }), "{round}: {error}");
    }
}
