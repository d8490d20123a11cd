//! What workers' links carried in the last seconds: their counters only grow, so two heartbeats tell what lies between.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use brigade_proto::control::LinkTelemetry;
use brigade_proto::ids::{Peer, WorkerId};

use crate::membership::Membership;
use crate::status::LinkStatus;

/// What is told is about so much: a lost packet is seen for some seconds, and not for ever.
const SPAN: Duration = Duration::from_secs(5);
/// Heartbeats kept of a worker: one a second over [`SPAN`], and the one before it.
const HEARTBEATS: usize = 7;
/// Heartbeats are taken in at least so far apart: some come besides those of every second.
const APART: Duration = Duration::from_millis(500);

/// What a worker's links had carried at a heartbeat.
type Heartbeat = (Instant, Vec<LinkTelemetry>);

/// The last heartbeats of every worker.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    workers: BTreeMap<WorkerId, VecDeque<Heartbeat>>,
}

impl Traffic {
    /// Takes a heartbeat in.
    pub(super) fn heard(&mut self, worker: &WorkerId, links: &[LinkTelemetry], now: Instant) {
        let heartbeats = self.workers.entry(worker.clone()).or_default();
        if heartbeats.back().is_some_and(|(at, _)| now < *at + APART) {
            return;
        }
        if heartbeats.len() == HEARTBEATS {
            heartbeats.pop_front();
        }
        heartbeats.push_back((now, links.to_vec()));
    }

    /// Forgets workers that nobody remembers.
    pub(super) fn forget(&mut self, members: &Membership) {
        self.workers.retain(|worker, _| members.member(worker).is_some());
    }

    /// A worker's links as its newest heartbeat told them.
    pub(super) fn links(&self, worker: &WorkerId, members: &Membership) -> Vec<LinkStatus> {
        let Some(heartbeats) = self.workers.get(worker) else {
            return Vec::new();
        };
        let Some((now, links)) = heartbeats.back() else {
            return Vec::new();
        };
        links.iter().map(|link| status(link, earlier(heartbeats, link, *now), members)).collect()
    }
}

/// The oldest reading of the same link within [`SPAN`], and how long ago it was.
fn earlier<'a>(
    heartbeats: &'a VecDeque<Heartbeat>,
    link: &LinkTelemetry,
    now: Instant,
) -> Option<(Duration, &'a LinkTelemetry)> {
    let same = |old: &&LinkTelemetry| {
        // A link that was made anew counts from nothing.
        old.peer == link.peer && old.address == link.address && old.sent_packets <= link.sent_packets
    };
    heartbeats.iter().find_map(|(at, links)| {
        let age = now.saturating_duration_since(*at);
        let old = links.iter().find(same)?;
        (!age.is_zero() && age <= SPAN + APART).then_some((age, old))
    })
}

fn status(
    link: &LinkTelemetry,
    earlier: Option<(Duration, &LinkTelemetry)>,
    members: &Membership,
) -> LinkStatus {
    let (peer, peer_name) = match &link.peer {
        Peer::Coordinator => ("coordinator".to_owned(), "coordinator".to_owned()),
        Peer::Worker(id) => {
            let name = members.member(id).map(|member| member.capabilities.name.clone());
            (id.to_string(), name.unwrap_or_else(|| id.to_string()))
        }
    };
    let rate = |count: fn(&LinkTelemetry) -> u64| {
        let between = earlier.map(|(age, old)| (count(link).saturating_sub(count(old)) as f64, age));
        between.map_or(0.0, |(count, age)| count / age.as_secs_f64())
    };
    let (sent, lost) = (rate(|link| link.sent_packets), rate(|link| link.lost_packets));
    LinkStatus {
        peer,
        peer_name,
        address: link.address.to_string(),
        choice: link.choice.clone(),
        rtt_us: link.rtt_us,
        sent_bytes_per_s: rate(|link| link.sent_bytes),
        received_bytes_per_s: rate(|link| link.received_bytes),
        loss: if sent > 0.0 { (lost / sent).min(1.0) } else { 0.0 },
        lost_packets: link.lost_packets,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(second: u64, lost: u64) -> LinkTelemetry {
        LinkTelemetry {
            peer: Peer::Coordinator,
            address: "127.0.0.1:7481".parse().unwrap(),
            choice: String::new(),
            rtt_us: 300,
            sent_bytes: second * 1000,
            received_bytes: second * 500,
            sent_packets: second * 10,
            lost_packets: lost,
            congestion_window: 0,
        }
    }

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let (start, members, worker) =
            (Instant::now(), Membership::new(), WorkerId::try_from("w1".to_owned()).unwrap());
        let mut traffic = Traffic::default();
        assert!(traffic.links(&worker, &members).is_empty());
        for second in 0..20 {
            // The losses of the beginning are long past.
            let lost = if second < 5 { 4 * second } else { 20 };
            traffic.heard(&worker, &[link(second, lost)], start + Duration::from_secs(second));
        }
        let [status] = &traffic.links(&worker, &members)[..] else { panic!("one link") };
        assert_eq!((status.sent_bytes_per_s, status.received_bytes_per_s), (1000.0, 500.0));
        assert_eq!((status.loss, status.lost_packets), (0.0, 20));
        traffic.heard(&worker, &[link(20, 25)], start + Duration::from_secs(20));
        let [status] = &traffic.links(&worker, &members)[..] else { panic!("one link") };
        assert!((status.loss - 0.1).abs() < 1e-9, "{}", status.loss);
        // Made anew, it has nothing to be compared with.
        traffic.heard(&worker, &[link(1, 0)], start + Duration::from_secs(21));
        let [status] = &traffic.links(&worker, &members)[..] else { panic!("one link") };
        assert_eq!((status.sent_bytes_per_s, status.peer_name.as_str()), (0.0, "coordinator"));
        traffic.forget(&members);
        assert!(traffic.links(&worker, &members).is_empty());
    }
}
