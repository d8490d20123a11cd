//! Pinning the plan to certain workers, and what is known of those that there are.

use std::time::Instant;

use brigade_proto::ids::WorkerId;

use super::Core;
use super::drain::find;
use crate::cluster::forecast::Basis;
use crate::cluster::handle::{PinError, PinOrder, PinWish, Pinned, Renewal};
use crate::deployment::{self, Pin};

impl Core {
    /// Takes a wish about where the model lies.
    pub(super) async fn pin_wished(&mut self, wish: PinWish, now: Instant) {
        // Who asked may have gone, here and below.
        match wish {
            PinWish::Pin { order, reply } => {
                let answer = self.pin(&order, now);
                if answer.is_ok() && order.renewal == Renewal::New {
                    self.carry_out(now);
                    // Who asked looks at the status next.
                    self.publish(now).await;
                }
                let _ = reply.send(answer);
            }
            PinWish::Unpin { reply } => {
                tracing::info!("the plan is to be pinned to no worker");
                self.deployment.handle(deployment::Event::Unpin, &self.membership, now);
                self.carry_out(now);
                self.publish(now).await;
                let _ = reply.send(());
            }
            PinWish::Basis { reply } => {
                let _ = reply.send(Basis::of(&self.membership, &self.deployment, now));
            }
        }
    }

    fn pin(&mut self, order: &PinOrder, now: Instant) -> Result<Pinned, PinError> {
        let mut pinned = Pinned { workers: Vec::new(), names: Vec::new() };
        for wanted in &order.workers {
            let found = find(&self.membership, wanted)?;
            if pinned.workers.contains(&found.id) {
                return Err(PinError::Twice { worker: found.name });
            }
            pinned.workers.push(found.id);
            pinned.names.push(found.name);
        }
        let workers: Vec<WorkerId> = pinned.workers.clone();
        let pin = Pin { workers, split: order.split.clone() };
        match order.renewal {
            Renewal::Only if self.deployment.pin() != Some(&pin) => {
                return Err(PinError::NotPinned {
                    why: self.deployment.pin_ended(now).map(ToOwned::to_owned),
                });
            }
            Renewal::Only => {}
            Renewal::New => {
                self.room_for(&pin, now)
                    .map_err(|reason| PinError::NoPlan { workers: pinned.names.join(", "), reason })?;
                tracing::info!(workers = pinned.names.join(", "), "the plan is to be pinned");
            }
        }
        let (by, until) = (order.by.clone(), order.ttl.map(|ttl| now + ttl));
        self.deployment.handle(deployment::Event::Pin { pin, by, until }, &self.membership, now);
        Ok(pinned)
    }

    /// Checks that these workers could hold the model, and all that runs.
    fn room_for(&mut self, pin: &Pin, now: Instant) -> Result<(), String> {
        let context = self.deployment.check_pin(pin, &self.membership, now)?;
        let longest = self.scheduler.longest();
        if longest > context as usize {
            return Err(format!(
                "there the longest sequence has {context} tokens, and one that runs or waits may come to {longest}; \
                 try again when that has ended"
            ));
        }
        Ok(())
    }
}
