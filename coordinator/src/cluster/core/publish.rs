//! Telling the rest of the program how the cluster is.

use std::sync::{Arc, PoisonError};
use std::time::Instant;

use brigade_proto::delivery::Holder;
use brigade_proto::ids::Peer;

use super::{Core, STATUS_PAUSE, STATUS_PERIOD};
use crate::cluster::overview::{self, Sources};
use crate::membership::Member;
use crate::scheduler::Counts;
use crate::status::{ClusterStatus, Phase};

impl Core {
    pub(super) async fn publish_if_due(&mut self, now: Instant) {
        let due = self.published + if self.changed { STATUS_PAUSE } else { STATUS_PERIOD };
        if now >= due {
            self.publish(now).await;
        }
    }

    pub(super) async fn publish(&mut self, now: Instant) {
        let counts = self.scheduler.counts();
        self.statistics.read(now);
        self.traffic.forget(&self.membership);
        let mut status = self.current_status(counts, now);
        let facts =
            overview::facts(&self.membership, &self.deployment, self.draft.as_ref(), &self.statistics, now);
        self.monitor.judge(&mut status, &facts, now);
        if let Some(reason) = &status.reason {
            self.scheduler.explain(reason);
        }
        self.clients.count(&counts, now);
        let serving = status.phase == Phase::Serving;
        let was_serving = self.status.borrow().phase == Phase::Serving;
        self.status.send_replace(Arc::new(status));
        *self.holders.lock().unwrap_or_else(PoisonError::into_inner) = self.holders_now();
        if serving != was_serving {
            self.health.set_serving(serving).await;
        }
        self.published = now;
        self.changed = false;
    }

    /// The workers that weights may be had from.
    fn holders_now(&self) -> Vec<Holder> {
        let attached = self.membership.members().filter(|member| member.session().is_some());
        let holder = |member: &Member| {
            let addresses = member.delivery_addresses();
            let peer = Peer::Worker(member.id.clone());
            (!addresses.is_empty()).then_some(Holder { peer, addresses })
        };
        attached.filter_map(holder).collect()
    }

    fn current_status(&self, counts: Counts, now: Instant) -> ClusterStatus {
        let sources = Sources {
            incarnation: self.incarnation,
            model: &self.model,
            membership: &self.membership,
            deployment: &self.deployment,
            scheduler: &self.scheduler,
            draft: self.draft.as_ref(),
            counts,
            statistics: &self.statistics,
            traffic: &self.traffic,
            clients: &self.clients,
            recovery: self.recoveries.status(),
            moves: self.recoveries.moves(),
            failure: self.recoveries.failure(),
            pulls: self.pulls.borrow().clone(),
        };
        sources.status(now)
    }
}
