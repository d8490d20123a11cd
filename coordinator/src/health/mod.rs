//! How each worker, each stage and the cluster as a whole is, why, and what to do about it.
//!
//! A pure machine: the status and the time go in, and what is said of health comes out. What is seen of a condition is in
//! `signs`; it is told only once it has held a little, and until it has been gone a little (`held`), so that a hiccup is no
//! alarm and nothing flickers. Everything is told within five seconds. Where several things are wrong, the worst is told.

mod balance;
mod held;
mod pace;
mod signs;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use self::held::{Held, Patience};
pub use self::pace::{Pace, Recent};
use self::signs::Swap;
use crate::status::{ClusterStatus, Health, HealthState, Phase, StageStatus};

/// A doubt that a probe settles sooner is not told.
const DOUBT: Patience = Patience { rise: Duration::from_millis(300), fall: Duration::ZERO };
/// What a worker says of a step under way needs no confirmation.
const HUNG: Patience = Patience { rise: Duration::ZERO, fall: Duration::ZERO };
/// Two heartbeats must say so; machines that swap, or throttle, go to and fro.
const MACHINE: Patience = Patience { rise: Duration::from_secs(1), fall: Duration::from_secs(4) };
/// On top of the seconds that a pace is of.
const SLOW: Patience = Patience { rise: Duration::from_secs(1), fall: Duration::from_secs(2) };
/// A plan that misses its prediction does so for as long as it serves: there is no hurry, and what is measured is noisy.
const UNEVEN: Patience = Patience { rise: Duration::from_secs(10), fall: Duration::from_secs(5) };
/// A burst of requests that has passed by then has not waited.
const CACHE: Patience = Patience { rise: Duration::from_secs(1), fall: Duration::from_secs(2) };

/// Whether a worker can be spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contact {
    /// It can.
    There,
    /// That is being found out.
    Doubted {
        /// Since when.
        since: Instant,
    },
    /// It cannot.
    Lost {
        /// Since when.
        since: Instant,
        /// Why, for people.
        reason: String,
    },
}

/// What is known of a worker beside its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerFacts {
    /// Whether it can be spoken to.
    pub contact: Contact,
    /// For how long the step under way has been computed.
    pub computing: Duration,
    /// What the largest step should take there; `None` where it holds no stage.
    pub longest_step: Option<Duration>,
}

/// What is known beside the status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Of each worker, in the status's order.
    pub workers: Vec<WorkerFacts>,
    /// How each stage's steps went lately, in the status's order.
    pub paces: Vec<Option<Recent>>,
}

/// Remembers what was seen, and says how everything is.
#[derive(Debug, Default)]
pub struct Monitor {
    workers: BTreeMap<String, WorkerMemory>,
    /// The plan that stages are remembered of.
    epoch: u64,
    stages: Vec<StageMemory>,
    cache: Held,
}

#[derive(Debug, Default)]
struct WorkerMemory {
    doubt: Held,
    hung: Held,
    swapping: Held,
    full: Held,
    hot: Held,
    swap: Swap,
}

#[derive(Debug, Default)]
struct StageMemory {
    slow: Held,
    uneven: Held,
}

impl Monitor {
    /// Looks at the status, and fills in what it says of health.
    pub fn judge(&mut self, status: &mut ClusterStatus, facts: &Facts, now: Instant) {
        self.workers.retain(|id, _| status.workers.iter().any(|worker| worker.id == *id));
        if self.epoch != status.epoch || self.stages.len() != status.stages.len() {
            self.epoch = status.epoch;
            self.stages.clear();
            self.stages.resize_with(status.stages.len(), StageMemory::default);
        }
        let cache = self.cache.see(signs::cache(status), CACHE, now);
        let stages: Vec<Health> = (0..status.stages.len())
            .map(|place| worst([Some(self.stage(status, facts, place, now)), cache.clone()]))
            .collect();
        let workers: Vec<Health> =
            (0..status.workers.len()).map(|place| self.worker(status, facts, place, now)).collect();

        let holds = |stage: &StageStatus, worker: &str| stage.worker == worker;
        let of_stages: Vec<Health> = status
            .stages
            .iter()
            .zip(&stages)
            .map(|(stage, own)| {
                let place = status.workers.iter().position(|worker| holds(stage, &worker.id));
                worst([Some(own.clone()), place.map(|place| workers[place].clone())])
            })
            .collect();
        let of_workers: Vec<Health> = status
            .workers
            .iter()
            .zip(workers)
            .map(|(worker, own)| {
                let place = status.stages.iter().position(|stage| holds(stage, &worker.id));
                worst([Some(own), place.map(|place| stages[place].clone())])
            })
            .collect();
        status.health = cluster(status, &of_stages, cache);
        for (stage, health) in status.stages.iter_mut().zip(of_stages) {
            stage.health = health;
        }
        for (worker, health) in status.workers.iter_mut().zip(of_workers) {
            worker.health = health;
        }
    }

    /// How a stage is, apart from its worker.
    fn stage(&mut self, status: &ClusterStatus, facts: &Facts, place: usize, now: Instant) -> Health {
        if status.phase != Phase::Serving {
            return signs::loading(&status.stages[place]);
        }
        let memory = &mut self.stages[place];
        let slow = memory.slow.see(signs::slow(status, &facts.paces, place), SLOW, now);
        let uneven = memory.uneven.see(signs::uneven(status, &facts.paces, place), UNEVEN, now);
        worst([slow.or(uneven)])
    }

    /// How a worker is, apart from its stage.
    fn worker(&mut self, status: &ClusterStatus, facts: &Facts, place: usize, now: Instant) -> Health {
        let Some((worker, known)) = status.workers.get(place).zip(facts.workers.get(place)) else {
            return Health::default();
        };
        let memory = self.workers.entry(worker.id.clone()).or_default();
        let doubted = memory.doubt.see(signs::doubted(worker, &known.contact, now), DOUBT, now);
        if let Contact::Lost { since, reason } = &known.contact {
            // What it said last says nothing of now.
            *memory = WorkerMemory::default();
            return signs::lost(worker, *since, reason, now);
        }
        let stage = status.stages.iter().position(|stage| stage.worker == worker.id);
        let pace = stage.and_then(|stage| facts.paces.get(stage).copied().flatten());
        memory.swap.read(worker.machine.swap_used_bytes, now);
        worst([
            doubted,
            memory.hung.see(signs::hung(worker, known), HUNG, now),
            memory.swapping.see(signs::swapping(worker, &memory.swap, pace, known), MACHINE, now),
            memory.full.see(signs::out_of_memory(worker), MACHINE, now),
            memory.hot.see(signs::hot(worker), MACHINE, now),
            signs::draining(worker),
        ])
    }
}

/// The worst of what is told; `ok` where nothing is. Of equals the first.
fn worst(told: impl IntoIterator<Item = Option<Health>>) -> Health {
    let worse = |worst: Health, told: Health| if told.state > worst.state { told } else { worst };
    told.into_iter().flatten().fold(Health::default(), worse)
}

/// How all of it is: as bad as its worst stage, and what keeps it from serving while it does not.
fn cluster(status: &ClusterStatus, stages: &[Health], cache: Option<Health>) -> Health {
    if status.phase != Phase::Serving {
        return signs::not_serving(status);
    }
    let named = status.stages.iter().zip(stages).map(|(stage, health)| {
        let name = |reason: &String| format!("stage {} on {}: {reason}", stage.stage, stage.name);
        Some(Health { reason: health.reason.as_ref().map(name), ..health.clone() })
    });
    worst(std::iter::once(cache).chain(named))
}

/// A state with why, and what to do about it.
fn told(state: HealthState, reason: String, advice: impl Into<Option<String>>) -> Health {
    Health { state, reason: Some(reason), advice: advice.into() }
}

#[cfg(test)]
mod tests;
