//! How long a row of hidden states is under way: two ends of the data plane on this machine, over its loopback.

use std::time::{Duration, Instant};

use brigade_proto::frame::FrameLimits;
use brigade_proto::identity::{CoordinatorIdentity, TransportIdentity};
use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, SequenceId, StepId};
use brigade_proto::link::{LinkReceiver, LinkSender, Transport};
use brigade_proto::step::{Frame, Hidden, Segment, ShortWay, StepFrame, StepKind, WireDtype};

use super::SelftestError;
use crate::driver::Driver;

/// Values of the row: the hidden state of a usual model.
const WIDTH: u32 = 4096;
/// Round trips that are measured, after some that are not.
const TRIPS: usize = 200;
const WARMING: usize = 20;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Half the median round trip of a row, in microseconds, and the row's bytes.
///
/// # Errors
/// Where the two ends cannot reach each other.
pub(super) fn measure() -> Result<(f64, usize), SelftestError> {
    let driver = Driver::new().map_err(wrong)?;
    let measured = driver.run(async { tokio::time::timeout(PATIENCE, trips()).await });
    driver.shut_down();
    measured
        .map_err(wrong)?
        .map_err(|_| wrong(format!("nothing came back within {} s", PATIENCE.as_secs())))?
}

fn wrong(problem: impl std::fmt::Display) -> SelftestError {
    SelftestError::Hop(problem.to_string())
}

async fn trips() -> Result<(f64, usize), SelftestError> {
    let folder = tempfile::tempdir()
        .map_err(|source| SelftestError::Directory { at: std::env::temp_dir(), source })?;
    let identity = CoordinatorIdentity::load_or_create(folder.path()).map_err(wrong)?;
    let bind = || {
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
        Transport::bind(loopback, TransportIdentity::from(&identity), FrameLimits::for_steps(1, WIDTH))
            .map_err(wrong)
    };
    let (here, there) = (bind()?, bind()?);
    let at = [there.local_addr()];
    let (dialled, accepted) = tokio::join!(here.dial(&Peer::Coordinator, &at), there.accept());
    let accepted = accepted.ok_or_else(|| wrong("the other end has closed"))?;
    let (sender, mut receiver) = dialled.map_err(wrong)?.split();
    let (answers, mut asked) = accepted.split();
    let echo = tokio::spawn(async move {
        while let Ok(frame) = asked.recv().await {
            if answers.send(&frame).await.is_err() {
                break;
            }
        }
    });
    let found = median_trip_us(&sender, &mut receiver).await;
    echo.abort();
    here.close().await;
    there.close().await;
    Ok((found? / 2.0, WIDTH as usize * WireDtype::F32.size()))
}

async fn median_trip_us(sender: &LinkSender, receiver: &mut LinkReceiver) -> Result<f64, SelftestError> {
    let values = vec![0.5; WIDTH as usize];
    let hidden = Hidden::from_f32(&values, 1, WIDTH, WireDtype::F32).map_err(wrong)?;
    let frame = Frame::Step(StepFrame {
        fence: Fence { incarnation: Incarnation(1), epoch: Epoch(1) },
        deployment: DeploymentId(1),
        step: StepId(1),
        kind: StepKind::Decode,
        // A row belongs to a token.
        segments: vec![Segment {
            sequence: SequenceId(1),
            start: 0,
            tokens: vec![7],
            begin: None,
            pages: Vec::new(),
            sample: false,
            drafts: 0,
            score: false,
            next_token: None,
        }],
        release: Vec::new(),
        short_way: ShortWay::default(),
        timings: Vec::new(),
        hidden: Some(hidden),
    });
    let mut trips = Vec::with_capacity(TRIPS);
    for trip in 0..WARMING + TRIPS {
        let began = Instant::now();
        sender.send(&frame).await.map_err(wrong)?;
        receiver.recv().await.map_err(wrong)?;
        if trip >= WARMING {
            trips.push(began.elapsed().as_secs_f64() * 1e6);
        }
    }
    trips.sort_by(f64::total_cmp);
    Ok(trips[TRIPS / 2])
}
