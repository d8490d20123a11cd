//! The data plane: links that keep the order of what they carry, and break when nothing gets through for a while.

use std::collections::BTreeMap;
use std::time::Instant;

use brigade_proto::control::{ConnectStage, ToCoordinator};
use brigade_proto::ids::Peer;
use brigade_proto::step::{Frame, StepKind};
use brigade_worker::lifecycle::{ConnectId, StageEvent};

use super::world::{Happening, Life, Link, LinkId, Place, World, peer_of, worker_id};

/// After so much silence a link is taken for broken.
pub(super) const IDLE_US: u64 = 5_000_000;

impl World {
    pub(super) fn dial(&mut self, life: Life, attempt: ConnectId, order: ConnectStage) {
        let reached = wanted_peers(&order)
            .iter()
            .all(|peer| self.peer_place(peer).is_some_and(|place| self.can_link(life, place)));
        let us = if reached { self.random.between(500, 8000) } else { IDLE_US };
        self.after(us, Happening::Dialled(life, attempt, Box::new(order)));
    }

    fn can_link(&self, life: Life, place: Place) -> bool {
        if place == 0 {
            return !self.is_cut(0, life.place) && self.machines[0].paused_us.is_none();
        }
        self.answers(life.place, place)
    }

    pub(super) fn dialled(&mut self, life: Life, attempt: ConnectId, order: &ConnectStage, now: Instant) {
        let mut next = None;
        for peer in wanted_peers(order) {
            let place = self.peer_place(&peer).filter(|place| self.can_link(life, *place));
            let Some(place) = place else {
                let reason = format!("no answer from {peer}");
                self.with(life, |process, _| process.apply(StageEvent::LinksFailed { attempt, reason }, now));
                return;
            };
            let link = self.standing(life, place).unwrap_or_else(|| self.link(life, place, now));
            if peer == order.next {
                next = Some(link);
            }
        }
        let Some(next) = next else { return };
        self.with(life, |process, _| {
            process.bind(order, next);
            let next_address = ([10, 0, 0, 1], 7000).into();
            process.apply(StageEvent::LinksOpened { attempt, next_address, rtt_us: 100 }, now)
        });
    }

    /// A link that stands between a process and the one at a place.
    fn standing(&self, life: Life, place: Place) -> Option<LinkId> {
        let other = Life { place, life: self.machines[place].life };
        let fits = |link: &Link| !link.broken && link.ends.contains(&life) && link.ends.contains(&other);
        self.links.iter().rev().find(|(_, link)| fits(link)).map(|(id, _)| *id)
    }

    fn link(&mut self, life: Life, place: Place, now: Instant) -> LinkId {
        self.last_link += 1;
        let id = LinkId(self.last_link);
        let other = Life { place, life: self.machines[place].life };
        self.links.insert(id, Link { ends: [life, other], broken: false, last_us: BTreeMap::new() });
        if place == 0 {
            let (taken, old) = self.coordinator.link_accepted(&worker_id(life.place), id, now);
            if let Some(old) = old {
                self.close(old, 0);
            }
            if !taken {
                self.close(id, 0);
            }
        }
        id
    }

    /// An end closes a link; the other one hears of it, if it can.
    pub(super) fn close(&mut self, link: LinkId, by: Place) {
        let Some(state) = self.links.get_mut(&link).filter(|link| !link.broken) else {
            return;
        };
        state.broken = true;
        let ends = state.ends;
        for end in ends.into_iter().filter(|end| end.place != by) {
            let us = if self.is_cut(by, end.place) { IDLE_US } else { self.random.between(200, 2000) };
            self.after(us, Happening::LinkEnded(link, end));
        }
    }

    pub(super) fn send(&mut self, link: LinkId, from: Life, frame: Frame) {
        let us = if self.random.once_in(60) {
            self.random.between(20_000, 300_000)
        } else {
            self.random.between(50, 800)
        };
        let now_us = self.now_us;
        let Some(state) = self.links.get_mut(&link).filter(|link| !link.broken) else {
            return;
        };
        let to = if state.ends[0] == from { state.ends[1] } else { state.ends[0] };
        let last_us = state.last_us.entry((to, frame.kind() == StepKind::Decode)).or_default();
        *last_us = (now_us + us).max(*last_us);
        let us = *last_us - now_us;
        self.after(us, Happening::Frame(link, to, Box::new(frame)));
    }

    pub(super) fn frame_arrives(&mut self, link: LinkId, to: Life, frame: Frame, now: Instant) {
        let Some(state) = self.links.get(&link) else { return };
        let from = if state.ends[0] == to { state.ends[1] } else { state.ends[0] };
        if state.broken || !self.lives(to) {
            // What is lost with a link may still come by another way, too late.
            if let (Frame::Result(result), true) = (frame, self.random.once_in(2)) {
                let us = self.random.between(10_000, 8_000_000);
                self.after(us, Happening::Ghost(Box::new(result)));
            }
            return;
        }
        match frame {
            Frame::Result(result) if to.place == 0 => {
                if self.random.once_in(50) {
                    let us = self.random.between(8_000_000, 20_000_000);
                    self.after(us, Happening::Ghost(Box::new(result.clone())));
                }
                self.coordinator.result(Some(link), result, now);
            }
            Frame::Step(step) if to.place > 0 => {
                let peer = peer_of(from.place);
                self.with(to, |process, _| {
                    process.arrive(peer, step);
                    Vec::new()
                });
            }
            _ => {}
        }
    }

    pub(super) fn link_ended(&mut self, link: LinkId, at: Life, now: Instant) {
        if at.place == 0 {
            return self.coordinator.link_ended(link, now);
        }
        let Some(other) = self.links.get(&link).and_then(|link| link.ends.iter().find(|end| **end != at))
        else {
            return;
        };
        let (other, peer) = (*other, peer_of(other.place));
        let another = self.standing(at, other.place).is_some();
        let Some(process) = self.machines[at.place].process.as_ref().filter(|_| self.lives(at)) else {
            return;
        };
        for deployment in process.lost(link, &peer, another) {
            let reason = "nothing was heard from it for 5 seconds".to_owned();
            self.tell(at, ToCoordinator::LinkLost { deployment, peer: peer.clone(), reason });
        }
    }

    /// Breaks a link over which nothing has got through for long enough.
    pub(super) fn link_idle(&mut self, link: LinkId) {
        let Some(state) = self.links.get(&link).filter(|link| !link.broken) else {
            return;
        };
        let ends = state.ends;
        let cut = self.cut.get(&(ends[0].place.min(ends[1].place), ends[0].place.max(ends[1].place)));
        let paused = ends.iter().filter_map(|end| self.machines[end.place].paused_us.as_ref());
        let since_us = cut.into_iter().chain(paused).min();
        let dead = ends.iter().any(|end| !self.lives(*end));
        if dead || since_us.is_some_and(|since_us| self.now_us >= since_us + IDLE_US) {
            self.links.entry(link).and_modify(|link| link.broken = true);
            ends.into_iter().for_each(|end| self.after(0, Happening::LinkEnded(link, end)));
        }
    }

    pub(super) fn watch_links(&mut self, affected: impl Fn(&[Life; 2]) -> bool) {
        let affected: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, link)| !link.broken && affected(&link.ends))
            .map(|(id, _)| *id)
            .collect();
        affected.into_iter().for_each(|link| self.after(IDLE_US, Happening::LinkIdle(link)));
    }
}

/// Whom a stage dials: the next one, and the coordinator where that sends it steps.
fn wanted_peers(order: &ConnectStage) -> Vec<Peer> {
    let mut peers = vec![order.next.clone()];
    if order.previous == Peer::Coordinator && order.next != Peer::Coordinator {
        peers.push(Peer::Coordinator);
    }
    peers
}
