//! Who holds which part of a model: a contiguous partition over devices, with its predicted memory and speed.
//!
//! [`plan`] finds, for every number of stages, the partition that is best while every stage fits its device; then it takes
//! the fewest stages past which more would not help. For many streams that is the one whose slowest stage or link, or
//! machine with several devices, takes the least time for a step ([`Objective::ManyStreams`]); for one stream the one whose
//! stages and hops take the least together ([`Objective::OneStream`]).
//!
//! Up to eight devices are tried in every order, with every cut: nothing is better ([`Optimality::Exact`]). Of more, the
//! most promising are, and what is found is compared with a bound below which nothing can be ([`Optimality::Within`]). So
//! it is where machines with several devices limit a plan with many layers, for which trying everything would take long.

mod beside;
mod best;
mod candidate;
mod climb;
mod course;
mod crossings;
mod error;
mod exact;
mod hosts;
mod keep;
mod links;
mod offload;
pub mod pace;
mod predict;
mod rooms;
mod search;
mod speed;
mod stage_time;
mod table;
mod verdict;
mod what_if;

use serde::{Deserialize, Serialize};

pub use beside::{place_beside, place_whole, plan_beside};
pub use error::{DeviceRoom, MemoryShortage, PlanError};
pub use hosts::{HostLoad, least_cycle_s};
pub use links::{HopCost, Links};
pub use offload::streaming_s;
pub use predict::{Forecast, Load, PROMPT_TOKENS, Prediction, STAGE_OVERHEAD_S, forecast};
pub use speed::{Kernel, KernelSpeed, SharedHost, usual_speed};
pub use verdict::{Alternative, AlternativeKind, Choices, Verdict, alternatives, choices};
pub use what_if::{Gain, WhatIf, what_if};

use crate::cost::{Cost, Room, StageBytes};
use crate::kernels::Kernels;
use crate::layers::{LayerRange, Shard};
use crate::units::Bytes;
use candidate::Candidate;
use predict::Predictor;
use search::Search;

/// Most devices in one plan: the search keeps sets of them in the bits of a machine word.
pub const MAX_DEVICES: usize = 128;
/// The least context that a plan without a stated one is made for, in tokens: a question and a short answer.
pub const LEAST_CONTEXT: u32 = 512;
/// Up to here a longer context is worth another stage, in tokens; past it speed decides.
pub const COMFORTABLE_CONTEXT: u32 = 4096;
/// More stages are taken only for at least this factor in throughput: below it a prediction is guesswork, and every
/// stage is one more machine that can fail.
pub const WORTHWHILE_GAIN: f64 = 1.05;

/// A device that may hold a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanDevice {
    /// Its worker's name.
    pub name: String,
    /// What it may use for weights, cache and workspace.
    pub budget: Bytes,
    /// Weight bytes per second that its matrix-vector product reads.
    pub bandwidth_bytes_per_s: f64,
    /// Floating-point operations per second of its matrix-matrix product.
    pub flops_per_s: f64,
    /// Compute threads that it keeps busy; `None` where that is not known.
    pub threads: Option<u32>,
    /// What it can compute: it is given nothing else.
    pub kernels: Kernels,
    /// The layers of the model that are resident on it already: of plans that are about as fast, the one is taken that
    /// adds the least to what devices hold.
    pub held: Option<LayerRange>,
    /// How fast its kernels are by type of matrix and rows at a time; empty where only the two figures above are known.
    pub kernel_speeds: Vec<KernelSpeed>,
    /// Index into [`PlanInput::hosts`] of the machine whose processors and memory it shares with other devices.
    pub host: Option<usize>,
    /// Bytes per second at which it reads weights for every step that do not fit its budget; `None` where it may not.
    pub offload_bytes_per_s: Option<f64>,
}

/// What a plan is to be best at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The tokens of all streams together, per second: the slowest stage counts.
    #[default]
    ManyStreams,
    /// The tokens of a single stream, per second: all stages and hops count.
    OneStream,
}

impl Objective {
    /// Tokens per second by what a plan is to be best at.
    pub fn speed(self, predicted: &Prediction) -> f64 {
        match self {
            Objective::ManyStreams => predicted.throughput_tokens_per_s,
            Objective::OneStream => predicted.decode_tokens_per_s,
        }
    }
}

/// How good a plan is among all contiguous ones into as many stages that stream as few layers, by the time of its slowest
/// stage, link or machine, or of its way round, whichever the objective is. Fewer or more stages are another matter: they
/// are taken where they are worth it ([`WORTHWHILE_GAIN`]).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Optimality {
    /// No other is predicted to be faster.
    Exact,
    /// None is predicted to take less than this share of its time: the distance to a lower bound.
    Within(f64),
}

/// What to plan for.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanInput {
    /// The devices, in the order that is kept unless another is better.
    pub devices: Vec<PlanDevice>,
    /// Longest sequence in tokens; `None` for what fits, up to the model's own.
    pub context: Option<u32>,
    /// Sequences at a time; a stated context must fit for all of them.
    pub parallel: u32,
    /// The least number of stages.
    pub min_stages: usize,
    /// How many layers each stage holds, in order; empty where that is to be found.
    pub split: Vec<usize>,
    /// Most rows in one step.
    pub step_rows: u32,
    /// Bytes of a cached value: 2 for f16, 4 for f32.
    pub cache_value_bytes: u32,
    /// Bytes of a hidden state's value on a link: 4 for f32, 2 for f16 and bf16.
    pub wire_value_bytes: u32,
    /// What links cost.
    pub links: Links,
    /// Machines that hold several devices.
    pub hosts: Vec<SharedHost>,
    /// What the plan is to be best at.
    pub objective: Objective,
    /// Pairs of devices that cannot reach each other, so that neither may come right after the other.
    pub apart: Vec<(usize, usize)>,
}

/// The assignment of shards to devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Plan {
    /// The stages in the order of the pipeline.
    pub stages: Vec<PlannedStage>,
    /// Longest sequence, in tokens.
    pub context: u32,
    /// Tokens that every stage's cache holds, over all sequences together; a multiple of [`PAGE_TOKENS`](crate::cost::PAGE_TOKENS).
    pub cache_tokens: u32,
    /// What to expect of it.
    pub predicted: Prediction,
    /// How far it may be from the best.
    pub optimality: Optimality,
    /// What limits it, for people.
    pub bottleneck: String,
    /// Devices that hold nothing, with the reason.
    pub unused: Vec<UnusedDevice>,
    /// What else there is to say about it, for people.
    pub notes: Vec<String>,
}

impl PlanInput {
    /// The same for some of the devices only, which are counted anew in the order given.
    #[must_use]
    pub fn only(&self, devices: &[usize]) -> PlanInput {
        let place = |device: usize| devices.iter().position(|kept| *kept == device);
        let apart = self.apart.iter().filter_map(|(one, other)| Some((place(*one)?, place(*other)?)));
        PlanInput {
            devices: devices.iter().filter_map(|device| self.devices.get(*device).cloned()).collect(),
            links: self.links.only(devices),
            apart: apart.collect(),
            ..self.clone()
        }
    }
}

impl Plan {
    /// What every stage makes room for, given the input that the plan was made from.
    pub fn room(&self, input: &PlanInput) -> Room {
        Room {
            cache_tokens: self.cache_tokens,
            context: self.context,
            step_rows: input.step_rows,
            sequences: input.parallel.max(1),
            cache_value_bytes: input.cache_value_bytes,
        }
    }
}

/// A shard on a device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlannedStage {
    /// Index into [`PlanInput::devices`].
    pub device: usize,
    /// What it holds.
    pub shard: Shard,
    /// What it takes of the device's budget.
    pub memory: StageBytes,
    /// How many of its layers, the last ones, are read again for every step instead of being resident.
    pub streamed_layers: usize,
    /// Time to decode one token of one sequence, in milliseconds.
    pub decode_ms: f64,
    /// Time per prompt token in chunks of [`PlanInput::step_rows`], in milliseconds.
    pub prefill_ms_per_token: f64,
}

/// A device that the plan leaves out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnusedDevice {
    /// Index into [`PlanInput::devices`].
    pub device: usize,
    /// Why, for people.
    pub reason: String,
}

/// Finds the best assignment of the model that `cost` describes to the input's devices.
///
/// Devices are taken in any order; all sets and orders of up to eight devices are tried, and of more the most promising.
/// Only where the devices together do not hold the model, those that may stream layers hold more than fits them.
///
/// # Errors
/// Where the input contradicts itself or the model, or the devices have too little memory together.
pub fn plan(cost: &Cost, input: &PlanInput) -> Result<Plan, PlanError> {
    let layers = cost.layer_count();
    let min_stages = input.min_stages.max(1);
    check(cost, input, min_stages)?;
    let search = Search::new(cost, input);
    let predictor = Predictor::new(cost, input);
    let mut best: Option<Candidate> = None;
    let mut single = None;
    for stages in 1..=input.devices.len().min(layers) {
        let asked = input.split.is_empty() || stages == input.split.len();
        if !asked || (stages > 1 && stages < min_stages) {
            continue;
        }
        let Some(candidate) = Candidate::resident(&search, &predictor, cost, input, stages, best.as_ref())
        else {
            continue;
        };
        if stages == 1 {
            single = Some(candidate.clone());
        }
        let is_worth_more = |best: &Candidate| candidate.is_worth_more_than(best, input.objective);
        if stages >= min_stages && best.as_ref().is_none_or(is_worth_more) {
            best = Some(candidate);
        }
    }
    let best =
        best.or_else(|| best_streaming(&search, &predictor, cost, input, min_stages)).ok_or_else(|| {
            let free = PlanInput { apart: Vec::new(), ..input.clone() };
            if !input.apart.is_empty() && plan(cost, &free).is_ok() {
                return error::apart(input);
            }
            let lacking = error::no_kernels(cost, &free, min_stages);
            lacking.unwrap_or_else(|| error::shortage(cost, &free, min_stages))
        })?;
    Ok(best.into_plan(&search, &predictor, input, cost, single.as_ref()))
}

/// The best plan into exactly so many stages; `None` where the model does not fit into them.
fn plan_into(cost: &Cost, input: &PlanInput, stages: usize) -> Option<Plan> {
    let (search, predictor) = (Search::new(cost, input), Predictor::new(cost, input));
    let found = Candidate::resident(&search, &predictor, cost, input, stages, None)
        .or_else(|| Candidate::streaming(&search, &predictor, cost, input, stages))?;
    Some(found.into_plan(&search, &predictor, input, cost, None))
}

/// The best plan where some devices may stream layers, with the fewest stages past which more would not help.
fn best_streaming(
    search: &Search<'_>,
    predictor: &Predictor<'_>,
    cost: &Cost,
    input: &PlanInput,
    min_stages: usize,
) -> Option<Candidate> {
    input.devices.iter().find(|device| device.offload_bytes_per_s.is_some())?;
    let most = input.devices.len().min(cost.layer_count());
    let stages = (min_stages..=most).filter(|stages| input.split.is_empty() || *stages == input.split.len());
    let candidates = stages.filter_map(|stages| Candidate::streaming(search, predictor, cost, input, stages));
    candidates.reduce(|best, next| if next.is_worth_more_than(&best, input.objective) { next } else { best })
}

fn check(cost: &Cost, input: &PlanInput, min_stages: usize) -> Result<(), PlanError> {
    let (layers, devices) = (cost.layer_count(), input.devices.len());
    if devices == 0 {
        return Err(PlanError::NoDevices);
    }
    if devices > MAX_DEVICES {
        return Err(PlanError::TooManyDevices { devices });
    }
    if min_stages > devices {
        return Err(PlanError::TooFewDevices { wanted: min_stages, devices });
    }
    if min_stages > layers {
        return Err(PlanError::MoreStagesThanLayers { stages: min_stages, layers });
    }
    check_split(&input.split, layers)?;
    let stages = input.split.len();
    if stages > 0 && !(min_stages..=devices).contains(&stages) {
        return Err(PlanError::SplitStages { stages, least: min_stages, devices });
    }
    let positive = |x: f64| x.is_finite() && x > 0.0;
    for device in &input.devices {
        if !positive(device.bandwidth_bytes_per_s) || !positive(device.flops_per_s) {
            return Err(PlanError::Speed { name: device.name.clone() });
        }
    }
    for device in &input.devices {
        let rate = |what| PlanError::Rate { name: device.name.clone(), what };
        if device.offload_bytes_per_s.is_some_and(|rate| !positive(rate)) {
            return Err(rate("the rate at which weights are read again"));
        }
        let host = device.host.map(|host| input.hosts.get(host));
        let sound = |host: &SharedHost| positive(host.bandwidth_bytes_per_s) && host.processors > 0;
        if host.is_some_and(|host| !host.is_some_and(sound)) {
            return Err(rate("the bandwidth or number of processors of the machine"));
        }
    }
    if input.links.hops().any(|hop| !positive(hop.bytes_per_s) || !(0.0..f64::INFINITY).contains(&hop.rtt_us))
    {
        return Err(PlanError::Hop);
    }
    match input.context {
        Some(asked) if asked == 0 || asked > cost.context_length() => {
            Err(PlanError::Context { asked, model: cost.context_length() })
        }
        _ => Ok(()),
    }
}

/// Checks that `split`, unless it is empty, shares out all of a model's layers, and some to every stage.
///
/// # Errors
/// [`PlanError::Split`] where it does not.
pub fn check_split(split: &[usize], layers: usize) -> Result<(), PlanError> {
    let sum = split.iter().fold(0usize, |sum, each| sum.saturating_add(*each));
    if split.is_empty() || (sum == layers && !split.contains(&0)) {
        return Ok(());
    }
    Err(PlanError::Split { split: split.to_vec(), sum, layers })
}
