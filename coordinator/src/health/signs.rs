//! What is seen of each condition at one moment, with the figures that show it and what can be done.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use brigade_shard::units::Bytes;

use super::held::Sign;
use super::pace::Recent;
use super::{Contact, WorkerFacts, balance, told};
use crate::status::{ClusterStatus, Health, HealthState, Phase, StageStatus, Throttling, WorkerStatus};

/// A step may be computed for so long before its stage seems to hang, at the least: machines do other things, too. The
/// deployment gives such a stage up some seconds later.
const HUNG_LEAST: Duration = Duration::from_millis(1500);
/// And for so many times what the largest step should take.
const HUNG_TIMES: f64 = 8.0;
/// What the largest step is taken to take on a worker that holds no stage any more.
const UNKNOWN_STEP: Duration = Duration::from_millis(500);
/// A stage is slow from so many times what it usually takes, where that is as much more than was predicted.
const SLOW_TIMES: f64 = 1.6;
/// Or from so many times what it usually takes, whatever was predicted: predictions may be too careful.
const SLOW_ANYWAY: f64 = 2.5;
/// It must have become slower than the other stages by this factor: longer contexts, and work beside it on a machine that
/// all share, make all of them slower.
const SLOWER_THAN_OTHERS: f64 = 1.3;
/// A stage without others must have become slower by this factor: a context may double its work.
const SLOW_ALONE: f64 = 4.0;
/// Below this it is not slow any more.
const NOT_SLOW: f64 = 1.3;
/// Where steps are slower than usual by this factor, paging is to blame.
const SLOWED: f64 = 1.3;
/// Bytes a second read back from swap or dropped files that keep a machine from computing: a hundredth of what a disk
/// gives, where nothing needs to be read at all.
const PAGING_BYTES_PER_S: f64 = 8.0 * 1024.0 * 1024.0;
/// Growth of what is swapped out over [`SWAP_SPAN`] that means the same.
const SWAP_GROWTH: Bytes = Bytes::mib(32);
/// Swap is compared with what it was so long ago.
const SWAP_SPAN: Duration = Duration::from_secs(5);
/// The most readings of swap kept: one per heartbeat and change, of [`SWAP_SPAN`].
const SWAP_READINGS: usize = 32;
/// A machine with less than this share of its memory left is full.
const LEAST_AVAILABLE: f64 = 0.03;
/// With more than this it is not.
const ENOUGH_AVAILABLE: f64 = 0.05;
/// What a worker may take beside its budget: its program, stacks and links, and as much again.
const BESIDE_BUDGET: Bytes = Bytes::mib(96);
/// From this temperature on a processor or card that is held back is hot, whatever its system calls the reason.
const HOT_CELSIUS: f32 = 90.0;

/// A number such as `2.4 s`.
fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn milliseconds(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

/// A worker that is gone.
pub(super) fn lost(worker: &WorkerStatus, since: Instant, reason: &str, now: Instant) -> Health {
    let ago = now.saturating_duration_since(since).as_secs();
    let reason = format!("lost {ago} s ago: {reason}");
    let advice = format!(
        "look at {} and its network; `brigade-worker join` without a token brings the worker back",
        worker.host
    );
    told(HealthState::Unreachable, reason, advice)
}

/// A worker that may be gone.
pub(super) fn doubted(worker: &WorkerStatus, contact: &Contact, now: Instant) -> Sign {
    let Contact::Doubted { since } = contact else {
        return Sign::Good;
    };
    let (silent, doubted) = (worker.last_seen_s, now.saturating_duration_since(*since));
    let reason = format!(
        "nothing was heard of it for {silent:.1} s; in doubt for {}, and being probed",
        seconds(doubted)
    );
    Sign::Bad(told(HealthState::Unreachable, reason, format!("look at {} and its network", worker.host)))
}

/// A worker that answers, and does not get done with its step.
pub(super) fn hung(worker: &WorkerStatus, known: &WorkerFacts) -> Sign {
    let expected = known.longest_step.unwrap_or(UNKNOWN_STEP);
    if known.computing < HUNG_LEAST.max(expected.mul_f64(HUNG_TIMES)) {
        return Sign::Good;
    }
    let reason = format!(
        "it has computed a step for {}, of {} expected at most, and answers all the while",
        seconds(known.computing),
        milliseconds(expected.as_secs_f64())
    );
    let advice =
        format!("look at the driver and the log of {} on {}, or start it anew", worker.device, worker.host);
    Sign::Bad(told(HealthState::Hung, reason, advice))
}

/// What was swapped out on a machine lately.
#[derive(Debug, Default)]
pub(super) struct Swap(VecDeque<(Instant, u64)>);

impl Swap {
    /// Takes in what is swapped out now.
    pub(super) fn read(&mut self, bytes: u64, now: Instant) {
        if self.0.back().is_none_or(|(_, last)| *last != bytes) {
            if self.0.len() == SWAP_READINGS {
                self.0.pop_front();
            }
            self.0.push_back((now, bytes));
        }
        // The newest of those that are old enough is what the others are compared with.
        while self.0.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= SWAP_SPAN) {
            self.0.pop_front();
        }
    }

    /// By how much it has grown.
    fn growth(&self) -> Bytes {
        let (first, last) = (self.0.front(), self.0.back());
        Bytes(first.zip(last).map_or(0, |((_, first), (_, last))| last.saturating_sub(*first)))
    }
}

/// A machine that pages while its steps are slow.
pub(super) fn swapping(
    worker: &WorkerStatus,
    swap: &Swap,
    pace: Option<Recent>,
    known: &WorkerFacts,
) -> Sign {
    let paged = worker.machine.paged_in_bytes_per_s.unwrap_or(0.0);
    let growth = swap.growth();
    let pages = paged >= PAGING_BYTES_PER_S || growth >= SWAP_GROWTH;
    let slowed = pace.is_some_and(|pace| pace.than_usual >= SLOWED);
    let stuck = known.longest_step.is_some_and(|longest| known.computing > longest * 2);
    if !pages {
        return Sign::Good;
    }
    if !slowed && !stuck {
        return Sign::Unclear;
    }
    let steps = match pace {
        Some(pace) if slowed => format!("steps take {:.1} times as long as usual", pace.than_usual),
        _ => format!("a step has been computed for {}", seconds(known.computing)),
    };
    let reason = format!(
        "{}/s are read back from disk and swap grew by {growth} within {} s, while {steps}",
        Bytes(paged as u64),
        SWAP_SPAN.as_secs()
    );
    let advice = format!(
        "close other programs on {}, or start the worker with a --memory below {}",
        worker.host,
        Bytes(worker.budget_bytes)
    );
    Sign::Bad(told(HealthState::Swapping, reason, advice))
}

/// A machine without memory, or a worker that takes more than it may.
pub(super) fn out_of_memory(worker: &WorkerStatus) -> Sign {
    let machine = &worker.machine;
    let (all, available) = (machine.memory_bytes, machine.memory_available_bytes);
    let share = if all == 0 { 1.0 } else { available as f64 / all as f64 };
    let allowed = Bytes(worker.budget_bytes) + BESIDE_BUDGET;
    let host = &worker.host;
    if share < LEAST_AVAILABLE {
        let reason = format!("{} of {host}'s {} are available", Bytes(available), Bytes(all));
        let advice = format!(
            "free memory on {host}, or start the worker with a --memory below {}",
            Bytes(worker.budget_bytes)
        );
        return Sign::Bad(told(HealthState::Full, reason, advice));
    }
    if worker.resident_bytes > allowed.0 {
        let reason = format!(
            "the worker takes {} of memory, of {} that it was given",
            Bytes(worker.resident_bytes),
            Bytes(worker.budget_bytes)
        );
        let advice = format!("start it anew on {host}, and report what it was doing");
        return Sign::Bad(told(HealthState::Full, reason, advice));
    }
    if share < ENOUGH_AVAILABLE { Sign::Unclear } else { Sign::Good }
}

/// A processor or card that is held back by heat.
pub(super) fn hot(worker: &WorkerStatus) -> Sign {
    let machine = &worker.machine;
    let parts = [
        Some(("its processors are", machine.throttle, machine.temperature_celsius)),
        worker.card.map(|card| ("its card is", card.throttle, card.temperature_celsius)),
    ];
    for (part, throttle, celsius) in parts.into_iter().flatten() {
        let held_back = matches!(throttle, Some(Throttling::Heat | Throttling::Power));
        let very_hot = celsius.is_some_and(|celsius| celsius >= HOT_CELSIUS);
        if throttle == Some(Throttling::Heat) || held_back && very_hot {
            let at = celsius.map(|celsius| format!(" at {celsius:.0} °C")).unwrap_or_default();
            let reason = format!("{part} held back{at}");
            let advice = format!("check the cooling of {}: fans, dust, room", worker.host);
            return Sign::Bad(told(HealthState::Hot, reason, advice));
        }
    }
    Sign::Good
}

/// A worker that is being emptied, or is empty.
pub(super) fn draining(worker: &WorkerStatus) -> Option<Health> {
    let undo = format!("`brigade drain {} --undo` takes it back", worker.name);
    match worker.state.as_str() {
        "draining" => Some(told(HealthState::Draining, "the plan moves away from it".into(), undo)),
        "drained" => Some(told(HealthState::Draining, "it holds nothing, and may be unplugged".into(), undo)),
        _ => None,
    }
}

/// A stage that is not served yet.
pub(super) fn loading(stage: &StageStatus) -> Health {
    let reason = match stage.state.as_str() {
        "loading" => {
            let fetched = stage.delivery.as_ref().map_or(String::new(), |delivery| format!("; {delivery}"));
            format!("{:.0}% of {} read{fetched}", stage.loaded * 100.0, Bytes(stage.weight_bytes))
        }
        "loaded" => "its weights are read; it waits for its links".to_owned(),
        _ => "its links stand; it waits for the other stages".to_owned(),
    };
    told(HealthState::Loading, reason, None)
}

/// A cluster that does not serve.
pub(super) fn not_serving(status: &ClusterStatus) -> Health {
    let reason = status.reason.clone();
    match status.phase {
        Phase::Loading | Phase::Connecting => {
            let all: u64 = status.stages.iter().map(|stage| stage.weight_bytes).sum();
            let read: f64 = status.stages.iter().map(|stage| stage.weight_bytes as f64 * stage.loaded).sum();
            let share = if all == 0 { 0.0 } else { read / all as f64 };
            let why = reason.map(|reason| format!("; {reason}")).unwrap_or_default();
            let reason = format!("{:.0}% of {} read{why}", share * 100.0, Bytes(all));
            told(HealthState::Loading, reason, None)
        }
        Phase::Stopping => told(HealthState::Unreachable, "the coordinator is shutting down".into(), None),
        Phase::Waiting | Phase::Serving => {
            let advice = "let more workers join, or bring lost ones back; `brigade status` lists them";
            Health { state: HealthState::Unreachable, reason, advice: Some(advice.into()) }
        }
    }
}

/// Requests that wait for cache.
pub(super) fn cache(status: &ClusterStatus) -> Sign {
    if status.phase != Phase::Serving || status.requests.waiting == 0 {
        return Sign::Good;
    }
    let (waiting, running) = (status.requests.waiting, status.requests.running);
    let reason = format!(
        "requests wait: {waiting}; {} of {} cache tokens are reserved for the {running} that run",
        status.cache_tokens_reserved, status.cache_tokens
    );
    let tightest = status.stages.iter().filter_map(|stage| {
        let worker = status.workers.iter().find(|worker| worker.id == stage.worker)?;
        let taken = stage.weight_bytes + stage.cache_bytes + stage.workspace_bytes;
        Some((worker.budget_bytes.saturating_sub(taken), &worker.name))
    });
    let advice = match tightest.min() {
        Some((_, name)) => format!(
            "ask for fewer or shorter answers at a time, or start {name} with a larger --memory and the \
             coordinator with a larger --parallel"
        ),
        None => "ask for fewer or shorter answers at a time".to_owned(),
    };
    Sign::Bad(told(HealthState::Full, reason, advice))
}

/// A stage that has become slow.
pub(super) fn slow(status: &ClusterStatus, paces: &[Option<Recent>], place: usize) -> Sign {
    let Some(pace) = paces.get(place).copied().flatten() else {
        return Sign::Good;
    };
    let others = paces.iter().enumerate().filter(|(other, _)| *other != place);
    let others = others.filter_map(|(_, pace)| pace.map(|pace| pace.than_usual));
    let is_slow = match others.reduce(f64::min) {
        None => pace.than_usual >= SLOW_ALONE,
        Some(least) => {
            let more = pace.than_usual >= SLOWER_THAN_OTHERS * least;
            let missed = pace.than_usual >= SLOW_TIMES && pace.than_predicted >= SLOW_TIMES;
            more && (missed || pace.than_usual >= SLOW_ANYWAY)
        }
    };
    if !is_slow {
        return if pace.than_usual < NOT_SLOW { Sign::Good } else { Sign::Unclear };
    }
    let share = match status.stages.len() {
        1 => String::new(),
        _ => format!("; it takes {:.0}% of the step", status.stages[place].step_share * 100.0),
    };
    let reason = format!(
        "steps take {}, {:.1} times the {} of when it began to serve, and {:.1} times what was predicted{share}",
        milliseconds(pace.step_s),
        pace.than_usual,
        milliseconds(pace.usual_s),
        pace.than_predicted,
    );
    let host = host_of(status, place);
    let look = format!("look at what else runs on {host}, and at its power and cooling");
    Sign::Bad(told(HealthState::Slow, reason, with_shift(status, place, look)))
}

/// A stage that never was as fast as predicted, where the others are.
pub(super) fn uneven(status: &ClusterStatus, paces: &[Option<Recent>], place: usize) -> Sign {
    let Some(pace) = paces.get(place).copied().flatten() else {
        return Sign::Good;
    };
    let others: Vec<f64> = paces
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != place)
        .filter_map(|(_, pace)| pace.map(|pace| pace.than_predicted))
        .collect();
    if others.is_empty() {
        return Sign::Good;
    }
    let usual = others.iter().sum::<f64>() / others.len() as f64;
    let share = status.stages[place].step_share;
    let missed = pace.than_predicted / usual.max(1.0);
    // Only what takes more than its part of the step holds the others up.
    if missed < SLOW_TIMES || share * (status.stages.len() as f64) < SLOWER_THAN_OTHERS {
        return if missed < NOT_SLOW { Sign::Good } else { Sign::Unclear };
    }
    let reason = format!(
        "it takes {:.0}% of the step: {:.1} times what was predicted of it, and the other stages {:.1} times",
        share * 100.0,
        pace.than_predicted,
        usual
    );
    let look = format!("let the worker on {} calibrate again by starting it anew", host_of(status, place));
    Sign::Bad(told(HealthState::Slow, reason, with_shift(status, place, look)))
}

fn host_of(status: &ClusterStatus, place: usize) -> &str {
    let stage = &status.stages[place];
    let worker = status.workers.iter().find(|worker| worker.id == stage.worker);
    worker.map_or(stage.name.as_str(), |worker| worker.host.as_str())
}

/// Advice, with the layers that would better be elsewhere.
fn with_shift(status: &ClusterStatus, place: usize, look: String) -> String {
    let Some(shift) = balance::shift(status, place) else {
        return look;
    };
    let split: Vec<String> = shift.split.iter().map(u32::to_string).collect();
    let layers = if shift.layers == 1 { "layer" } else { "layers" };
    format!(
        "{look}; or move {} {layers} to {} (--split {}): `brigade plan` shows how",
        shift.layers,
        status.stages[shift.to].name,
        split.join(",")
    )
}
