//! What machines take while a cluster is measured: resident memory, and power where somebody tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::client::Client;
use crate::status::{ClusterStatus, WorkerStatus};

/// How often it is looked at: as often as workers look themselves.
const PERIOD: Duration = Duration::from_secs(1);
/// How old what a worker told last may be: what it drew before the run must not count.
const LAG: Duration = Duration::from_millis(1500);

/// What was seen of some workers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// Resident memory at the most, in bytes, by the worker's name.
    pub(super) resident: BTreeMap<String, u64>,
    /// What all of them drew together, in watts, at each look that counts.
    watts: Vec<f64>,
    /// What told it.
    pub(super) sensors: BTreeSet<String>,
    /// Workers that tell nothing.
    pub(super) silent: BTreeSet<String>,
}

impl Seen {
    /// Takes a state in; `age` is how long the run has been going on.
    fn look(&mut self, status: &ClusterStatus, workers: &[String], age: Duration) {
        let ours = || status.workers.iter().filter(|worker| workers.contains(&worker.id));
        for worker in ours() {
            let most = self.resident.entry(worker.name.clone()).or_default();
            *most = (*most).max(worker.resident_bytes);
        }
        let Drawn { watts, sensors, silent } = drawn(ours());
        if age >= LAG && silent.is_empty() {
            self.watts.push(watts);
        }
        self.sensors.extend(sensors);
        self.silent.extend(silent);
    }

    /// Joules over a run of this length, which is the mean power times the time; `None` where not all workers tell what
    /// they draw, or the run was too short for any to have told it.
    pub(super) fn joules(&self, took: Duration) -> Option<f64> {
        if !self.silent.is_empty() || self.watts.is_empty() {
            return None;
        }
        Some(self.watts.iter().sum::<f64>() / self.watts.len() as f64 * took.as_secs_f64())
    }

    /// Adds what was seen in another run.
    pub(super) fn add(&mut self, other: Seen) {
        for (worker, resident) in other.resident {
            let most = self.resident.entry(worker).or_default();
            *most = (*most).max(resident);
        }
        self.sensors.extend(other.sensors);
        self.silent.extend(other.silent);
    }
}

/// What workers draw.
#[derive(Debug, Default, PartialEq)]
struct Drawn {
    watts: f64,
    sensors: Vec<String>,
    silent: Vec<String>,
}

/// What these workers' machines and cards draw together, each of them counted once. A worker is silent where nothing tells
/// what it computes on draws.
fn drawn<'a>(workers: impl Iterator<Item = &'a WorkerStatus>) -> Drawn {
    let mut drawn = Drawn::default();
    let (mut machines, mut cards) = (BTreeSet::new(), BTreeSet::new());
    for worker in workers {
        let (machine, card) = (worker.machine.power_watts, worker.card.and_then(|card| card.power_watts));
        let told = if worker.card.is_some() { card } else { machine };
        if told.is_none() {
            drawn.silent.push(worker.name.clone());
        }
        if let Some(watts) = machine.filter(|_| machines.insert(&worker.host)) {
            drawn.watts += f64::from(watts);
            drawn.sensors.push(format!("processors of {}", worker.host));
        }
        if let Some(watts) = card.filter(|_| cards.insert((&worker.host, &worker.device))) {
            drawn.watts += f64::from(watts);
            drawn.sensors.push(format!("{} of {}", worker.device, worker.host));
        }
    }
    drawn
}

/// Waits for `run`, and looks at the workers meanwhile, which are given by their ids.
pub(super) async fn watch<T>(client: &Client, workers: &[String], run: impl Future<Output = T>) -> (T, Seen) {
    let began = Instant::now();
    let mut seen = Seen::default();
    let mut run = std::pin::pin!(run);
    loop {
        tokio::select! {
            ended = &mut run => return (ended, seen),
            () = tokio::time::sleep(PERIOD) => {}
        }
        tokio::select! {
            ended = &mut run => return (ended, seen),
            status = client.status() => {
                // One look less is no trouble: where the coordinator is gone, the run itself ends.
                if let Ok(status) = status {
                    seen.look(&status, workers, began.elapsed());
                }
            }
        }
    }
}

impl Seen {
    /// Takes in the state at the end of a run, which short runs have nothing else of.
    pub(super) fn end(&mut self, status: &ClusterStatus, workers: &[String]) {
        self.look(status, workers, Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{CardStatus, MachineStatus};

    fn worker(name: &str, host: &str, machine: Option<f32>, card: Option<Option<f32>>) -> WorkerStatus {
        WorkerStatus {
            id: name.into(),
            name: name.into(),
            host: host.into(),
            device: if card.is_some() { "cuda:0" } else { "cpu" }.into(),
            machine: MachineStatus { power_watts: machine, ..MachineStatus::default() },
            card: card.map(|power_watts| CardStatus { power_watts, ..CardStatus::default() }),
            resident_bytes: 7,
            ..WorkerStatus::default()
        }
    }

    #[test]
    fn a_machine_and_a_card_are_counted_once() {
        let workers = [
            worker("w1", "anna", Some(40.0), None),
            worker("w2", "anna", Some(40.0), None),
            worker("w3", "ben", Some(30.0), Some(Some(200.0))),
            worker("w4", "ben", Some(30.0), Some(Some(200.0))),
        ];
        let found = drawn(workers.iter());
        assert_eq!((found.watts, found.silent.len()), (270.0, 0));
        assert_eq!(found.sensors, ["processors of anna", "processors of ben", "cuda:0 of ben"]);
    }

    #[test]
    fn one_that_tells_nothing_leaves_the_sum_unknown() {
        let workers = [
            worker("w1", "anna", Some(40.0), None),
            worker("w2", "ben", None, None),
            // Its processors are not what it computes on.
            worker("w3", "carl", Some(30.0), Some(None)),
        ];
        assert_eq!(drawn(workers.iter()).silent, ["w2", "w3"]);
        let status = ClusterStatus { workers: workers.to_vec(), ..ClusterStatus::default() };
        let mut seen = Seen::default();
        seen.look(&status, &["w1".into()], LAG);
        assert_eq!(seen.joules(Duration::from_secs(2)), Some(80.0));
        seen.look(&status, &["w1".into(), "w2".into()], LAG);
        assert_eq!(seen.joules(Duration::from_secs(2)), None);
        assert_eq!(seen.resident, [("w1".to_owned(), 7), ("w2".to_owned(), 7)].into());
    }

    #[test]
    fn what_was_drawn_before_a_run_does_not_count() {
        let status =
            ClusterStatus { workers: vec![worker("w1", "a", Some(9.0), None)], ..ClusterStatus::default() };
        let mut seen = Seen::default();
        seen.look(&status, &["w1".into()], Duration::from_secs(1));
        assert_eq!((seen.joules(Duration::from_secs(1)), seen.sensors.len()), (None, 1));
    }
}
