//! Emptying a worker, so that it can be unplugged.

use std::time::Instant;

use super::Core;
use crate::cluster::handle::{Drain, DrainError, Drained};
use crate::membership::{self, Member, Membership};

impl Core {
    /// Takes a wish to drain a worker, or to use it again.
    pub(super) async fn drain(&mut self, Drain { worker, drain, reply }: Drain, now: Instant) {
        let answer = find(&self.membership, &worker).and_then(|found| {
            if drain && !self.membership.is_draining(&found.id) {
                let room = self.room_without(&found, now);
                room.map_err(|reason| DrainError::NoRoom { worker: found.name.clone(), reason })?;
            }
            Ok(found)
        });
        if let Ok(found) = &answer {
            tracing::info!(worker = %found.id, drain, "a worker is to be drained, or used again");
            let event = membership::Event::Draining { worker: found.id.clone(), draining: drain };
            self.membership.handle(event, now);
            self.carry_out(now);
            // Who asked looks at the status next.
            self.publish(now).await;
        }
        // Who asked may have gone.
        let _ = reply.send(answer);
    }

    /// Checks that the model, and all that runs, could be held without a worker.
    fn room_without(&mut self, worker: &Drained, now: Instant) -> Result<(), String> {
        let context = self.deployment.check_drain(&worker.id, &self.membership, now)?;
        let longest = self.scheduler.longest();
        match context {
            Some(context) if longest > context as usize => Err(format!(
                "without it the longest sequence has {context} tokens, and one that runs or waits may come to {longest}; \
                 try again when that has ended"
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// The worker with this id, or else the one with this name; of several those that are there.
pub(super) fn find(membership: &Membership, wanted: &str) -> Result<Drained, DrainError> {
    let drained = |member: &Member| Drained { id: member.id.clone(), name: member.capabilities.name.clone() };
    if let Some(member) = membership.members().find(|member| member.id.as_str() == wanted) {
        return Ok(drained(member));
    }
    let named: Vec<&Member> =
        membership.members().filter(|member| member.capabilities.name == wanted).collect();
    let here: Vec<&Member> = named.iter().copied().filter(|member| member.session().is_some()).collect();
    let found = if here.is_empty() { named } else { here };
    match found[..] {
        [member] => Ok(drained(member)),
        [] => Err(DrainError::Unknown { wanted: wanted.to_owned(), known: names(membership) }),
        _ => {
            let ids: Vec<&str> = found.iter().map(|member| member.id.as_str()).collect();
            Err(DrainError::Ambiguous { wanted: wanted.to_owned(), ids: ids.join(", ") })
        }
    }
}

fn names(membership: &Membership) -> String {
    let names: Vec<&str> = membership.members().map(|member| member.capabilities.name.as_str()).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
