//! A whole cluster in simulated time: the coordinator's and the workers' real state machines, over a network, disks and
//! machines that fail.
//!
//! A run is decided by its seed alone, so that one that fails can be looked at again. Messages are late, held up by lost
//! packets and by networks that are cut; results of old plans come once more; processes crash, machines lose power, stop
//! and go on, devices hang, disks are slow or fail, and the coordinator itself sleeps. Workers that come back make plans
//! better, and some are drained. [`run`] checks all the while, and at the end, when everything is well again:
//!
//! - every request ends exactly once, with the tokens and scores that it has without any machine between;
//! - no token or score is told twice, and nothing that is told changes;
//! - nothing of an old plan is accepted;
//! - no cache, step or sequence is left behind, on the coordinator or a worker;
//! - where enough workers were well, every request is answered;
//! - a worker that is drained and dies costs nothing, and no weights are kept for plans that are not to come.

mod coordinator;
mod faults;
mod links;
mod model;
mod random;
mod stage;
mod worker;
mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use brigade_coordinator::generation::{
    FinishReason, GenerationEvent, GenerationRequest, ReuseScope, TraceContext,
};
use brigade_coordinator::scheduler::Speculation;
use brigade_coordinator::status::Phase;
use brigade_proto::ids::SequenceId;
use brigade_proto::sampling::Sampling;
use brigade_shard::units::Bytes;

use self::random::Random;
use self::world::World;

/// How long faults come, in microseconds.
const FAULTS_US: u64 = 90_000_000;
/// How long everything may take after the last fault.
const CALM_US: u64 = 600_000_000;
/// Time between two looks.
const TICK_US: u64 = 50_000;

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Requests taken.
    pub requests: u64,
    /// Those of them that were answered whole.
    pub answered: u64,
    /// Those that ended with an error, because no plan could be made for too long.
    pub given_up: u64,
    /// Those that went on after the loss of a plan.
    pub recovered: u64,
    /// Plans that served.
    pub plans: u64,
    /// Those of them that took over by choice.
    pub moved: u64,
    /// Workers that were drained, and died then.
    pub unplugged: u64,
    /// Results of old plans that came, and were dropped.
    pub fenced: u64,
}

/// How hard a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// One fault at a time, and enough memory without the worker that it hits: nothing may be given up.
    Fair,
    /// Any number of faults at any time.
    Foul,
}

/// A request with the answer that it must get.
struct Asked {
    request: GenerationRequest,
    tokens: Vec<u32>,
    cancelled: bool,
    /// How much of what it was told has been looked at.
    seen: usize,
    told: usize,
    scores: usize,
    ended: bool,
}

/// A fault that is to be mended.
#[derive(Clone, Copy, Debug)]
enum Mend {
    Restart(usize),
    Resume(usize),
    Unhang(usize),
    Heal(usize, usize),
    Disk(usize),
    /// A drained worker dies, if it is empty by now.
    Unplug(usize),
    /// It may be used again.
    Undrain(usize),
}

/// Runs one seed.
///
/// # Errors
/// What is wrong, and what happened last.
pub fn run(seed: u64, weather: Weather) -> Result<Outcome, String> {
    let mut run = Run::new(seed, weather);
    match run.all() {
        Ok(outcome) => Ok(outcome),
        Err(wrong) => Err(format!("seed {seed}, {weather:?}: {wrong}\n{}", run.world.log())),
    }
}

struct Run {
    world: World,
    weather: Weather,
    random: Random,
    asked: BTreeMap<SequenceId, Asked>,
    next: u64,
    mends: Vec<(u64, Mend)>,
    next_fault_us: u64,
    given_up: u64,
    unplugged: u64,
    /// How many plans had failed when a drained worker died, until that is mended.
    failed_at_unplugging: Option<u64>,
}

impl Run {
    fn new(seed: u64, weather: Weather) -> Run {
        let mut random = Random::new(seed ^ 0xFA17);
        let workers = random.between(3, 5) as usize;
        // With one less there is enough, or just not.
        let least = match weather {
            Weather::Fair => workers - 1,
            Weather::Foul => workers - random.below(2) as usize,
        };
        let layers = model::LAYERS.div_ceil(least) as u64;
        // Some have room to prepare a plan beside the one that serves.
        let beside = random.pick(&[0, 8, 20]);
        let budget = Bytes::mib(10 * layers + 2 + beside);
        let speculation = if random.once_in(2) { Speculation::Lookup } else { Speculation::Off };
        let park = match weather {
            Weather::Fair => Duration::from_secs(3600),
            Weather::Foul => Duration::from_secs(random.between(5, 40)),
        };
        Run {
            world: World::new(seed, workers, budget, speculation, park),
            weather,
            random,
            asked: BTreeMap::new(),
            next: 1,
            mends: Vec::new(),
            next_fault_us: 2_000_000,
            given_up: 0,
            unplugged: 0,
            failed_at_unplugging: None,
        }
    }

    fn all(&mut self) -> Result<Outcome, String> {
        while self.world.now_us() < FAULTS_US {
            self.world.pass(TICK_US);
            self.mend(false)?;
            self.break_something();
            if self.random.once_in(8) {
                self.ask();
            }
            if self.random.once_in(200) {
                self.leave();
            }
            self.look()?;
        }
        self.mend(true)?;
        for place in 1..=self.world.workers() {
            self.world.restart(place, 0);
        }
        let until_us = self.world.now_us() + CALM_US;
        while self.asked.values().any(|asked| !asked.ended && !asked.cancelled) {
            self.world.pass(TICK_US);
            self.look()?;
            if self.world.now_us() > until_us {
                let counts = self.world.coordinator.counts();
                let (phase, reason) = (self.world.coordinator.phase(), self.world.coordinator.reason());
                return Err(format!("not done: {phase:?}, {reason:?}, {counts:?}"));
            }
        }
        // What was released last is on its way.
        self.world.pass(2_000_000);
        self.look()?;
        // A plan that is being prepared takes over, or comes to nothing.
        while self.world.keeps_ahead() {
            self.world.pass(TICK_US);
            if self.world.now_us() > until_us + CALM_US {
                return Err("weights are kept for a plan that does not come".into());
            }
        }
        self.check_end()
    }

    fn ask(&mut self) {
        let id = SequenceId(self.next);
        self.next += 1;
        let prompt: Vec<u32> = if self.random.once_in(3) {
            // Some begin alike.
            let length = self.random.between(1, 100);
            (0..length).map(|position| (position % 31) as u32).collect()
        } else {
            let length = self.random.between(1, 60);
            (0..length).map(|_| self.random.below(model::VOCABULARY) as u32).collect()
        };
        let end_ids = if self.random.once_in(2) { vec![model::END] } else { Vec::new() };
        let sampling = Sampling { seed: self.random.below(1000), end_ids, ..Sampling::default() };
        let max_tokens = self.random.between(0, 80) as u32;
        let score_prompt = max_tokens == 0 || self.random.once_in(4);
        let request = GenerationRequest {
            prompt,
            drawn: Vec::new(),
            sampling,
            max_tokens,
            score_prompt,
            scope: ReuseScope::default(),
            trace: TraceContext::default(),
        };
        let (tokens, _) = model::answer(&request.prompt, &request.sampling, max_tokens as usize);
        if self.world.submit(id, request.clone()).is_ok() {
            let asked =
                Asked { request, tokens, cancelled: false, seen: 0, told: 0, scores: 0, ended: false };
            self.asked.insert(id, asked);
        }
    }

    fn leave(&mut self) {
        let running: Vec<SequenceId> =
            self.asked.iter().filter(|(_, asked)| !asked.ended).map(|(id, _)| *id).collect();
        if let Some(id) = running.get(self.random.below(running.len().max(1) as u64) as usize) {
            self.asked.entry(*id).and_modify(|asked| asked.cancelled = true);
            self.world.cancel(*id);
        }
    }

    /// Looks at what requests were told since the last time.
    fn look(&mut self) -> Result<(), String> {
        for (id, asked) in &mut self.asked {
            let Some(events) = self.world.told.get(id) else { continue };
            for event in &events[asked.seen..] {
                let wrong = |what: &str| Err(format!("request {id} {what}: {event:?}"));
                if asked.ended {
                    return wrong("was told more after its end");
                }
                match event {
                    GenerationEvent::Token(drawn) => {
                        if asked.tokens.get(asked.told) != Some(&drawn.score.token) {
                            return wrong(&format!("got another token at {}", asked.told));
                        }
                        asked.told += 1;
                    }
                    GenerationEvent::PromptScores(scores) => {
                        for score in scores {
                            asked.scores += 1;
                            if asked.request.prompt.get(asked.scores) != Some(&score.token) {
                                return wrong("got scores of other tokens, or twice");
                            }
                        }
                    }
                    GenerationEvent::Reused(_) if asked.told > 0 || asked.scores > 0 => {
                        return wrong("was told late what was reused");
                    }
                    GenerationEvent::Reused(_) => {}
                    GenerationEvent::Done(reason) => {
                        asked.ended = true;
                        let ends = asked.request.sampling.end_ids.contains(&model::END)
                            && asked.tokens.last() == Some(&model::END);
                        let wanted = if ends { FinishReason::EndToken } else { FinishReason::Length };
                        let scores =
                            if asked.request.score_prompt { asked.request.prompt.len() - 1 } else { 0 };
                        if *reason != wanted || asked.told != asked.tokens.len() || asked.scores != scores {
                            return wrong(&format!(
                                "ended after {} of {} tokens and {} of {scores} scores",
                                asked.told,
                                asked.tokens.len(),
                                asked.scores
                            ));
                        }
                    }
                    GenerationEvent::Failed(error) => {
                        asked.ended = true;
                        self.given_up += 1;
                        if self.weather == Weather::Fair {
                            return wrong(&format!("was given up: {error}"));
                        }
                    }
                }
            }
            asked.seen = events.len();
        }
        Ok(())
    }

    /// Once all is done, nothing is left behind.
    fn check_end(&mut self) -> Result<Outcome, String> {
        let counts = self.world.coordinator.counts();
        let left = (counts.running, counts.waiting, counts.cache_tokens_reserved);
        if left != (0, 0, 0) || self.world.coordinator.steps_in_flight() > 0 {
            return Err(format!("something is left behind: {counts:?}"));
        }
        if self.world.coordinator.phase() == Phase::Serving && self.world.held() > 0 {
            return Err(format!("workers still hold {} sequences", self.world.held()));
        }
        let ended = self.asked.values().filter(|asked| asked.ended && !asked.cancelled).count() as u64;
        Ok(Outcome {
            requests: self.asked.len() as u64,
            answered: ended - self.given_up.min(ended),
            given_up: self.given_up,
            recovered: counts.recovered,
            plans: self.world.coordinator.plans_served,
            moved: self.world.coordinator.plans_moved,
            unplugged: self.unplugged,
            fenced: counts.results_fenced,
        })
    }

    /// Mends what is due, or everything.
    fn mend(&mut self, everything: bool) -> Result<(), String> {
        let now_us = self.world.now_us();
        let (due, later): (Vec<_>, Vec<_>) = std::mem::take(&mut self.mends)
            .into_iter()
            .partition(|(at_us, _)| everything || *at_us <= now_us);
        self.mends = later;
        for (_, mend) in due {
            self.world.note(format!("mended: {mend:?}"));
            match mend {
                Mend::Restart(place) => self.world.restart(place, 0),
                Mend::Resume(place) => self.world.resume(place),
                Mend::Unhang(place) => self.world.hang(place, false),
                Mend::Heal(one, other) => self.world.cut(one, other, false),
                Mend::Disk(place) => self.world.disk(place, 1, false),
                Mend::Unplug(place) => self.unplug(place),
                Mend::Undrain(place) => {
                    self.check_unplugged()?;
                    self.world.drain(place, false);
                    self.world.restart(place, 0);
                }
            }
        }
        Ok(())
    }

    /// A drained worker dies, if it is empty.
    fn unplug(&mut self, place: usize) {
        if self.world.is_used(place) {
            return;
        }
        self.unplugged += 1;
        if self.weather == Weather::Fair && self.world.coordinator.phase() == Phase::Serving {
            self.failed_at_unplugging = Some(self.world.coordinator.plans_failed);
        }
        self.world.crash(place, false);
    }

    /// Nothing else fails meanwhile in fair weather, so no plan may have.
    fn check_unplugged(&mut self) -> Result<(), String> {
        let failed = self.world.coordinator.plans_failed;
        match self.failed_at_unplugging.take() {
            Some(before) if before != failed => Err("a plan failed when a drained worker died".into()),
            Some(_) | None => Ok(()),
        }
    }

    /// Has something break, if it is time.
    fn break_something(&mut self) {
        let now_us = self.world.now_us();
        if now_us < self.next_fault_us {
            return;
        }
        let (pause_us, longest_us) = match self.weather {
            Weather::Fair => (self.random.between(8_000_000, 20_000_000), 15_000_000),
            Weather::Foul => (self.random.between(200_000, 12_000_000), 40_000_000),
        };
        self.next_fault_us = now_us + pause_us;
        let busy = !self.mends.is_empty() || self.world.well() < self.world.workers();
        if self.weather == Weather::Fair && (busy || self.world.coordinator.phase() != Phase::Serving) {
            self.next_fault_us = now_us + 1_000_000;
            return;
        }
        let workers = self.world.workers() as u64;
        let place = self.random.between(1, workers) as usize;
        let until_us = now_us + self.random.between(100_000, longest_us);
        let fault = self.random.below(11);
        self.world.note(format!("fault {fault} at machine {place} until {until_us}"));
        match fault {
            0..=2 => {
                self.world.crash(place, fault == 2);
                self.mends.push((until_us, Mend::Restart(place)));
            }
            3 => {
                self.world.pause(place);
                self.mends.push((until_us, Mend::Resume(place)));
            }
            4 => {
                self.world.hang(place, true);
                self.mends.push((until_us, Mend::Unhang(place)));
            }
            5 | 6 => {
                // Between two workers, or one and the coordinator.
                let other = self.random.below(workers + 1) as usize;
                if other != place && !self.world.is_cut(place, other) {
                    self.world.cut(place, other, true);
                    self.mends.push((until_us, Mend::Heal(place, other)));
                }
            }
            7 => {
                let fails = self.weather == Weather::Foul && self.random.once_in(2);
                let slow = self.random.pick(&[2, 10, 60]);
                self.world.disk(place, slow, fails);
                self.mends.push((until_us, Mend::Disk(place)));
                self.world.crash(self.random.between(1, workers) as usize, false);
                for place in 1..=workers as usize {
                    self.world.restart(place, 500_000);
                }
            }
            8 | 9 => {
                if self.world.drain(place, true) {
                    let unplug_us = now_us + self.random.between(100_000, longest_us);
                    self.mends.push((unplug_us, Mend::Unplug(place)));
                    self.mends.push((until_us.max(unplug_us + 5_000_000), Mend::Undrain(place)));
                }
            }
            _ => {
                self.world.pause(0);
                let until_us = now_us + self.random.between(100_000, 8_000_000);
                self.mends.push((until_us, Mend::Resume(0)));
            }
        }
    }
}
