//! Who holds which part of a model: a contiguous partition over devices, with its predicted memory and speed.
//!
//! [`plan`] finds, for every number of stages, the partition whose slowest stage takes the least time to decode one
//! token while every stage fits its device; then it takes the fewest stages past which more would not help.

mod beside;
mod error;
mod keep;
mod links;
mod predict;
mod search;
mod speed;
mod verdict;

use serde::{Deserialize, Serialize};

pub use beside::{place_beside, place_whole, plan_beside};
pub use error::{DeviceRoom, MemoryShortage, PlanError};
pub use links::{HopCost, Links};
pub use predict::{Forecast, Load, PROMPT_TOKENS, Prediction, STAGE_OVERHEAD_S, forecast};
pub use speed::{KernelSpeed, SharedHost};
pub use verdict::{Choices, Verdict, choices};

use crate::cost::{Cost, PAGE_TOKENS, Room, StageBytes};
use crate::kernels::Kernels;
use crate::layers::{LayerRange, Shard};
use crate::units::Bytes;
use predict::Predictor;
use search::{Partition, Search};

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

/// How good a plan is among all contiguous ones.
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
    /// Tokens that every stage's cache holds, over all sequences together; a multiple of [`PAGE_TOKENS`].
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
/// Devices are taken in any order; all sets of up to eight different devices are tried, and of more the most promising
/// at every length of the pipeline.
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
        let Some(candidate) = Candidate::of(&search, &predictor, cost, input, stages) else {
            continue;
        };
        if stages == 1 {
            single = Some(candidate.clone());
        }
        if stages >= min_stages && best.as_ref().is_none_or(|best| candidate.is_worth_more_than(best)) {
            best = Some(candidate);
        }
    }
    let best = best.ok_or_else(|| {
        let free = PlanInput { apart: Vec::new(), ..input.clone() };
        if !input.apart.is_empty() && plan(cost, &free).is_ok() {
            return error::apart(input);
        }
        let lacking = error::no_kernels(cost, &free, min_stages);
        lacking.unwrap_or_else(|| error::shortage(cost, &free, min_stages))
    })?;
    Ok(best.into_plan(&search, &predictor, input, cost, single.as_ref()))
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

/// The best partition into a certain number of stages.
#[derive(Clone, Debug)]
struct Candidate {
    room: Room,
    partition: Partition,
    predicted: Prediction,
}

impl Candidate {
    fn of(
        search: &Search<'_>,
        predictor: &Predictor<'_>,
        cost: &Cost,
        input: &PlanInput,
        stages: usize,
    ) -> Option<Candidate> {
        let room = largest_room(search, cost, input, stages)?;
        let partition = search.fastest(&room, stages)?;
        let predicted = predictor.predict(search, &partition);
        Some(Candidate { room, partition, predicted })
    }

    fn is_worth_more_than(&self, other: &Candidate) -> bool {
        let comfort = |candidate: &Candidate| candidate.room.context.min(COMFORTABLE_CONTEXT);
        let gain = self.predicted.throughput_tokens_per_s / other.predicted.throughput_tokens_per_s;
        comfort(self) > comfort(other) || (comfort(self) == comfort(other) && gain > WORTHWHILE_GAIN)
    }

    fn into_plan(
        self,
        search: &Search<'_>,
        predictor: &Predictor<'_>,
        input: &PlanInput,
        cost: &Cost,
        single: Option<&Candidate>,
    ) -> Plan {
        let stages = self.partition.stages(search).map(|(device, shard)| PlannedStage {
            device,
            shard,
            memory: cost.memory(&shard, &self.room),
            streamed_layers: 0,
            decode_ms: predictor.decode_s(search, device, shard.layers, 1) * 1e3,
            prefill_ms_per_token: predictor.prefill_s_per_row(search, device, shard.layers) * 1e3,
        });
        let stages: Vec<PlannedStage> = stages.collect();
        Plan {
            bottleneck: predictor.bottleneck(search, &stages),
            unused: unused(search, &self, input, cost),
            notes: notes(&self, input, cost, single),
            stages,
            context: self.room.context,
            cache_tokens: self.room.cache_tokens,
            predicted: self.predicted,
            optimality: Optimality::Exact,
        }
    }
}

/// The room for a context and `cache_tokens` of cache.
fn room(input: &PlanInput, context: u32, cache_tokens: u64) -> Room {
    // Whole pages, so that the largest multiple of a page is the most that a plan can state.
    let most = u64::from(u32::MAX - u32::MAX % PAGE_TOKENS);
    Room {
        cache_tokens: cache_tokens.min(most) as u32,
        context,
        step_rows: input.step_rows,
        sequences: input.parallel.max(1),
        cache_value_bytes: input.cache_value_bytes,
    }
}

/// Cache tokens of one sequence of `context` tokens.
fn sequence_tokens(context: u32) -> u64 {
    u64::from(context).next_multiple_of(u64::from(PAGE_TOKENS))
}

/// The least room that a plan may make: the stated context for all sequences, or a short one for one sequence.
fn least_room(cost: &Cost, input: &PlanInput) -> Room {
    match input.context {
        Some(context) => room(input, context, sequence_tokens(context) * u64::from(input.parallel.max(1))),
        None => {
            let context = longest_context(cost).min(LEAST_CONTEXT);
            room(input, context, sequence_tokens(context))
        }
    }
}

/// The model's context in whole pages, or all of it where it is shorter than one.
fn longest_context(cost: &Cost) -> u32 {
    let model = cost.context_length();
    if model < PAGE_TOKENS { model } else { model - model % PAGE_TOKENS }
}

/// The longest context that fits into `stages` stages, then as much cache as fits, up to all sequences at full length.
fn largest_room(search: &Search<'_>, cost: &Cost, input: &PlanInput, stages: usize) -> Option<Room> {
    let least = least_room(cost, input);
    if !search.fits(&least, stages) {
        return None;
    }
    if input.context.is_some() {
        return Some(least);
    }
    let page = u64::from(PAGE_TOKENS);
    let most = longest_context(cost);
    let context = if most <= least.context {
        least.context
    } else {
        // Both ends are whole pages here.
        let pages = largest(u64::from(least.context) / page, u64::from(most) / page, |pages| {
            search.fits(&room(input, (pages * page) as u32, pages * page), stages)
        });
        (pages * page) as u32
    };
    let one = sequence_tokens(context);
    let all = u64::from(room(input, context, one * u64::from(input.parallel.max(1))).cache_tokens);
    let pages =
        largest(one / page, all / page, |pages| search.fits(&room(input, context, pages * page), stages));
    Some(room(input, context, pages * page))
}

/// The largest number in `low..=high` that `fits`, given that `low` does and that what fits has no gaps.
fn largest(low: u64, high: u64, fits: impl Fn(u64) -> bool) -> u64 {
    if fits(high) {
        return high;
    }
    let (mut low, mut high) = (low, high);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

fn unused(search: &Search<'_>, chosen: &Candidate, input: &PlanInput, cost: &Cost) -> Vec<UnusedDevice> {
    let stages = chosen.partition.order.len();
    let idle = (0..input.devices.len()).filter(|device| !chosen.partition.order.contains(device));
    let reason = |device: usize| {
        let smallest = search.smallest_shard(&chosen.room);
        let PlanDevice { budget, kernels, .. } = input.devices[device];
        if let Some(lacking) = lacking_everywhere(cost, kernels) {
            format!("it has no kernels for {lacking}")
        } else if smallest > budget {
            format!("its budget of {budget} holds not even one layer, which takes {smallest}")
        } else if !input.split.is_empty() {
            format!("the split that was asked for has {stages} stages")
        } else if stages == search.layers() {
            "every layer has a stage of its own already".to_owned()
        } else {
            format!("more stages than {stages} would not make answers faster")
        }
    };
    idle.map(|device| UnusedDevice { device, reason: reason(device) }).collect()
}

/// What a device lacks that can hold no layer of a model; `None` where it can hold some.
fn lacking_everywhere(cost: &Cost, kernels: Kernels) -> Option<Kernels> {
    let mut all = Kernels::NONE;
    for layer in 0..cost.layer_count() {
        let shard = Shard::of(LayerRange { start: layer, end: layer + 1 }, cost.layer_count());
        let lacking = kernels.lacking(cost.needs(&shard));
        if lacking == Kernels::NONE {
            return None;
        }
        all = all.and(lacking);
    }
    Some(all)
}

fn notes(chosen: &Candidate, input: &PlanInput, cost: &Cost, single: Option<&Candidate>) -> Vec<String> {
    let mut notes = Vec::new();
    let stages = chosen.partition.order.len();
    if let Some(single) = single.filter(|_| stages > 1) {
        let name = &input.devices[single.partition.order[0]].name;
        let (alone, split) = (single.predicted.decode_tokens_per_s, chosen.predicted.decode_tokens_per_s);
        let advice = if alone > split { "don't split for speed: " } else { "" };
        notes.push(format!(
            "{advice}{name} alone holds the model and would decode {alone:.1} tokens/s for one stream, \
             against {split:.1} over {stages} stages"
        ));
    }
    let model = longest_context(cost);
    if input.context.is_none() && chosen.room.context < model {
        notes.push(format!(
            "memory limits the context to {} of the model's {model} tokens",
            chosen.room.context
        ));
    }
    let wanted = sequence_tokens(chosen.room.context) * u64::from(input.parallel.max(1));
    if u64::from(chosen.room.cache_tokens) < wanted {
        let (tokens, parallel) = (chosen.room.cache_tokens, input.parallel);
        notes.push(format!(
            "the cache holds {tokens} tokens: {parallel} sequences cannot all be of full length"
        ));
    }
    notes
}
