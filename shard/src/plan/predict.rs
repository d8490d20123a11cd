//! How fast a partition will be: for one stream, for several and for a prompt, the same formulas for every plan.
//!
//! What stages take is [`stage_time`](super::stage_time)'s; here it is put together as the scheduler lets them follow each
//! other. A token of a lone stream goes around all stages and links. Several streams go in groups, as
//! [`pace`](super::pace) says, so that the slowest stage or link decides; prompts go in chunks of the size that takes least.
//! Devices of one machine that compute at the same time share its processors and its memory.

use serde::Serialize;

use super::hosts::{HostLoad, least_cycle_s, seat};
use super::pace::{
    Crowd, MOST_GROUPS, SHORT_WAY_WORTHWHILE, chunk_sizes, even_chunk, group_sizes, groups_cost,
};
use super::search::{Partition, Search, Work};
use super::stage_time::{DeviceTimes, StageWork, StepShape};
use super::{Plan, PlanDevice, PlanInput, PlannedStage, SharedHost};
use crate::cost::Cost;
use crate::layers::LayerRange;
use crate::units::Bytes;

/// Length of the prompt that [`Prediction::ttft_ms`] speaks of, in tokens.
pub const PROMPT_TOKENS: u32 = 512;
/// What a step costs a stage beside its arithmetic, in seconds: taking it from the link, waking the engine, passing it
/// on. About what a round trip through a QUIC connection on one machine takes, and half of what a decode step takes around
/// two workers besides their computing (`hop` of `tests/bench/pipeline.py`).
pub const STAGE_OVERHEAD_S: f64 = 100e-6;

/// Chunks into which a prompt is never cut where larger ones will do: each has a fixed cost, and so many fill a pipeline
/// of any length.
const MOST_CHUNKS: usize = 1024;

/// What to expect of a plan, from calibrated speeds and at short contexts, where attention costs little beside the
/// weights.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// Tokens per second of one stream alone.
    pub decode_tokens_per_s: f64,
    /// Time from a prompt of [`PROMPT_TOKENS`] tokens to the first token, in milliseconds.
    pub ttft_ms: f64,
    /// Most tokens per second of all streams together, with as many as the plan is made for.
    pub throughput_tokens_per_s: f64,
}

/// What is asked of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Sequences that decode at the same time.
    pub streams: u32,
    /// Tokens of a prompt.
    pub prompt_tokens: u32,
    /// Tokens that every sequence has in the cache while it decodes.
    pub context: u32,
}

/// What to expect of a plan under a load.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Tokens per second of all streams together while they decode.
    pub decode_tokens_per_s: f64,
    /// Tokens per second of one prompt alone.
    pub prompt_tokens_per_s: f64,
    /// From asking to the first token, of one prompt alone, in milliseconds.
    pub ttft_ms: f64,
}

/// What to expect of `plan`, which was made from `cost` and `input`, under a load.
pub fn forecast(cost: &Cost, input: &PlanInput, plan: &Plan, load: &Load) -> Forecast {
    let predictor = Predictor::new(cost, input);
    let stages = plan.stages.iter().map(|stage| (stage.device, stage.shard.layers, stage.streamed_layers));
    predictor.pipeline(stages).forecast(load)
}

/// Time of a device of which two figures are known, for `rows` rows of decoding: reading the weights once, or the
/// arithmetic, whichever takes longer.
pub(super) fn stage_s(device: &PlanDevice, work: &Work, rows: u32) -> f64 {
    let read_s = (work.active + work.head_active) / device.bandwidth_bytes_per_s;
    let compute_s = f64::from(rows) * (work.flops + work.head_flops) / device.flops_per_s;
    read_s.max(compute_s) + STAGE_OVERHEAD_S
}

/// What devices with measured kernels take for steps of decoding of some number of rows, up to every layer, so that any
/// range costs two look-ups.
pub(super) struct MeasuredTimes {
    /// For every device the seconds of all layers before each, and those of the head; `None` for one of which two figures
    /// are known.
    devices: Vec<Option<(Vec<f64>, f64)>>,
}

impl MeasuredTimes {
    /// Those for steps of `rows` rows.
    pub(super) fn of(cost: &Cost, input: &PlanInput, rows: u32) -> MeasuredTimes {
        let step = StepShape::decode(f64::from(rows), 0.0);
        let work =
            |start| StageWork::of(cost, LayerRange { start, end: start + 1 }, 0, input.cache_value_bytes);
        let work: Vec<StageWork> = (0..cost.layer_count()).map(work).collect();
        let of = |device: &PlanDevice| {
            let times = DeviceTimes::of(device);
            let sums = work.iter().scan(0.0, |sum, work| {
                *sum += times.layers_s(work, step);
                Some(*sum)
            });
            let sums = std::iter::once(0.0).chain(sums).collect();
            let head_s = work.last().map_or(0.0, |work| times.head_s(work, step));
            times.are_measured().then_some((sums, head_s))
        };
        MeasuredTimes { devices: input.devices.iter().map(of).collect() }
    }

    /// Seconds of a stage; without end on a device whose kernels were not measured.
    pub(super) fn stage_s(&self, device: usize, range: LayerRange) -> f64 {
        let Some((sums, head_s)) = &self.devices[device] else {
            return f64::INFINITY;
        };
        let head_s = if range.end + 1 == sums.len() { *head_s } else { 0.0 };
        sums[range.end] - sums[range.start] + head_s + STAGE_OVERHEAD_S
    }
}

/// The formulas over a model and its devices.
pub(super) struct Predictor<'a> {
    cost: &'a Cost,
    input: &'a PlanInput,
    times: Vec<DeviceTimes>,
}

impl<'a> Predictor<'a> {
    pub(super) fn new(cost: &'a Cost, input: &'a PlanInput) -> Predictor<'a> {
        Predictor { cost, input, times: input.devices.iter().map(DeviceTimes::of).collect() }
    }

    /// These stages, each a device with its layers and how many of them are read for every step.
    pub(super) fn pipeline(&self, stages: impl Iterator<Item = (usize, LayerRange, usize)>) -> Pipeline<'_> {
        let bytes = self.input.cache_value_bytes;
        let stage = |(device, range, streamed)| Stage {
            device,
            work: StageWork::of(self.cost, range, streamed, bytes),
        };
        let stages: Vec<Stage> = stages.map(stage).collect();
        let seats = stages.iter().map(|stage| seat(&self.input.devices[stage.device], self.input));
        let crowds = Crowd::among(&seats.collect::<Vec<_>>());
        Pipeline { predictor: self, stages, crowds }
    }

    fn one_stage_s(&self, device: usize, range: LayerRange, step: StepShape) -> f64 {
        let work = StageWork::of(self.cost, range, 0, self.input.cache_value_bytes);
        self.times[device].stage_s(&work, step)
    }

    /// Time of a stage to decode one token of each of `rows` sequences, in seconds.
    pub(super) fn decode_s(&self, _: &Search<'_>, device: usize, range: LayerRange, rows: u32) -> f64 {
        self.one_stage_s(device, range, StepShape::decode(f64::from(rows), 0.0))
    }

    /// Time of a stage per prompt token in full chunks, in seconds.
    pub(super) fn prefill_s_per_row(&self, _: &Search<'_>, device: usize, range: LayerRange) -> f64 {
        let rows = f64::from(self.input.step_rows.max(1));
        self.one_stage_s(device, range, StepShape::chunk(rows, 0.0, true)) / rows
    }

    pub(super) fn predict(&self, _: &Search<'_>, partition: &Partition) -> Prediction {
        let stages = partition.ranges().zip(&partition.streamed);
        let pipeline = self.pipeline(stages.map(|((device, range), streamed)| (device, range, *streamed)));
        let parallel = self.input.parallel.max(1);
        let one = pipeline.decode_tokens_per_s(1, 0);
        Prediction {
            decode_tokens_per_s: one,
            ttft_ms: pipeline.prompt_s(PROMPT_TOKENS) * 1e3,
            throughput_tokens_per_s: if parallel == 1 {
                one
            } else {
                pipeline.decode_tokens_per_s(parallel, 0)
            },
        }
    }

    /// What limits a stream, in words.
    pub(super) fn bottleneck(&self, search: &Search<'_>, stages: &[PlannedStage]) -> String {
        let slowest = stages.iter().enumerate().max_by(|a, b| a.1.decode_ms.total_cmp(&b.1.decode_ms));
        let Some((index, stage)) = slowest else {
            return String::new();
        };
        let hops = stages.windows(2).map(|pair| self.hop_s(pair[0].device, pair[1].device, 1.0) * 1e3);
        let hop_ms = hops.fold(0.0, f64::max);
        if hop_ms > stage.decode_ms {
            return format!(
                "the links: up to {hop_ms:.2} ms per hop, the slowest stage takes {:.2} ms",
                stage.decode_ms
            );
        }
        let device = &self.input.devices[stage.device];
        let streaming_s = search.streaming_s(stage.device, stage.shard.layers, stage.streamed_layers);
        if let Some(rate) = device
            .offload_bytes_per_s
            .filter(|_| (streaming_s + STAGE_OVERHEAD_S) * 1e3 >= stage.decode_ms * (1.0 - 1e-9))
        {
            return format!(
                "stage {index} on {}: reading {} layers again for every step at {:.1} GB/s, {:.2} ms",
                device.name,
                stage.streamed_layers,
                rate / 1e9,
                stage.decode_ms
            );
        }
        let work = search.work(stage.shard.layers);
        let (bytes, flops) = (work.active + work.head_active, work.flops + work.head_flops);
        let computed_s = stage.decode_ms / 1e3 - STAGE_OVERHEAD_S;
        let measured = self.times[stage.device].are_measured();
        let (read_s, compute_s) = match measured {
            // Which of the two it is, a measured kernel does not say; decoding reads.
            true => (computed_s, 0.0),
            false => (bytes / device.bandwidth_bytes_per_s, flops / device.flops_per_s),
        };
        let reason = if read_s.max(compute_s) < STAGE_OVERHEAD_S {
            "the fixed cost of a step".to_owned()
        } else if read_s >= compute_s {
            let rate = bytes / read_s / 1e9;
            format!("reading {} of weights per token at {rate:.1} GB/s", Bytes(bytes as u64))
        } else {
            format!("{:.2} GFLOP per token at {:.0} GFLOP/s", flops / 1e9, device.flops_per_s / 1e9)
        };
        format!("stage {index} on {}: {reason}, {:.2} ms", device.name, stage.decode_ms)
    }

    /// Seconds in which `rows` hidden states leave for another device.
    fn transfer_s(&self, from: usize, to: usize, rows: f64) -> f64 {
        let hidden = self.cost.widths().hidden as f64;
        let bytes = rows * hidden * f64::from(self.input.wire_value_bytes);
        bytes / self.input.links.between(from, to).bytes_per_s
    }

    /// Seconds until `rows` hidden states are at another device.
    fn hop_s(&self, from: usize, to: usize, rows: f64) -> f64 {
        self.input.links.between(from, to).crossing_s(0.0) + self.transfer_s(from, to, rows)
    }
}

/// One stage of a pipeline.
struct Stage {
    device: usize,
    work: StageWork,
}

/// Stages that follow each other.
pub(super) struct Pipeline<'a> {
    predictor: &'a Predictor<'a>,
    stages: Vec<Stage>,
    /// Stages that hold each other up.
    crowds: Vec<Crowd>,
}

impl Pipeline<'_> {
    pub(super) fn forecast(&self, load: &Load) -> Forecast {
        let prompt_s = self.prompt_s(load.prompt_tokens);
        Forecast {
            decode_tokens_per_s: self.decode_tokens_per_s(load.streams, load.context),
            prompt_tokens_per_s: f64::from(load.prompt_tokens.max(1)) / prompt_s,
            ttft_ms: prompt_s * 1e3,
        }
    }

    fn stage_s(&self, stage: &Stage, step: StepShape) -> f64 {
        self.predictor.times[stage.device].stage_s(&stage.work, step)
    }

    /// Seconds that token ids are on their way from the coordinator to the first stage, and from the last one home.
    fn ends_s(&self) -> f64 {
        let links = &self.predictor.input.links;
        let ends = [self.stages.first(), self.stages.last()].into_iter().flatten();
        ends.map(|stage| links.to_coordinator(stage.device).crossing_s(0.0)).sum()
    }

    /// Seconds that all hidden states of a step of `rows` rows are on links between stages.
    fn hops_s(&self, rows: f64) -> f64 {
        let hops = self.stages.windows(2);
        hops.map(|pair| self.predictor.hop_s(pair[0].device, pair[1].device, rows)).sum()
    }

    /// Seconds from the last stage straight to the first, which is told what was drawn; a stage alone needs no link.
    fn short_way_s(&self) -> f64 {
        match &self.stages[..] {
            [first, .., last] => self.predictor.hop_s(last.device, first.device, 0.0),
            _ => 0.0,
        }
    }

    /// Tokens per second of `streams` streams together, each with `context` tokens in the cache.
    pub(super) fn decode_tokens_per_s(&self, streams: u32, context: u32) -> f64 {
        let streams = streams.max(1);
        let most = (streams as usize).min(MOST_GROUPS);
        let most = if self.stages.len() == 1 { 1 } else { most };
        let cycle = |groups| self.cycle(groups, streams as usize, f64::from(context));
        let best = (1..=most).map(cycle).min_by(|a, b| a.cost_s.total_cmp(&b.cost_s));
        f64::from(streams) / best.map_or(f64::INFINITY, |best| best.cycle_s)
    }

    /// What `streams` streams in so many groups take from one token of each to the next.
    fn cycle(&self, groups: usize, streams: usize, context: f64) -> Cycle {
        let sizes: Vec<(f64, f64)> =
            group_sizes(streams, groups).map(|(count, rows)| (count as f64, rows as f64)).collect();
        let largest = sizes.iter().map(|(_, rows)| *rows).fold(0.0, f64::max);
        let mut round_s = self.hops_s(largest);
        let mut busy = Busy::new(self);
        for (place, stage) in self.stages.iter().enumerate() {
            round_s += self.stage_s(stage, StepShape::decode(largest, context));
            for (count, rows) in &sizes {
                let step = StepShape::decode(*rows, context);
                busy.add(place, *count, self.stage_s(stage, step), stage.work.read_bytes(step));
            }
        }
        let hops = self.stages.windows(2);
        let links =
            hops.map(|pair| self.predictor.transfer_s(pair[0].device, pair[1].device, streams as f64));
        let paced_s = busy.slowest_s().max(busy.crowds_s());
        let busy_s = paced_s.max(busy.hosts_s());
        let far_s = round_s + self.ends_s();
        round_s = if far_s > busy_s * SHORT_WAY_WORTHWHILE { round_s + self.short_way_s() } else { far_s };
        let slowest_link_s = links.fold(0.0, f64::max);
        Cycle {
            cycle_s: busy_s.max(round_s).max(slowest_link_s),
            cost_s: groups_cost(paced_s.max(round_s).max(slowest_link_s), paced_s),
        }
    }

    /// Seconds from asking to the first token, of a prompt of `tokens` tokens that has the pipeline to itself.
    pub(super) fn prompt_s(&self, tokens: u32) -> f64 {
        let tokens = tokens.max(1) as usize;
        let most = tokens.min(self.predictor.input.step_rows.max(1) as usize);
        let few = |rows: &usize| tokens.div_ceil(*rows) <= MOST_CHUNKS || *rows == most;
        let sizes = chunk_sizes(most).filter(few).map(|rows| self.chunked_s(tokens, rows));
        sizes.fold(f64::INFINITY, f64::min) + self.ends_s()
    }

    /// Seconds of a prompt in chunks of at most `rows` rows, from when the first stage has it to when the last one has
    /// drawn a token: every chunk goes through all stages, and begins on one when that is done with the chunk before.
    fn chunked_s(&self, tokens: usize, rows: usize) -> f64 {
        let chunks = tokens.div_ceil(rows);
        let rows = even_chunk(tokens, rows);
        let mut busy = Busy::new(self);
        let mut arrived_s = vec![0.0; chunks];
        for (place, stage) in self.stages.iter().enumerate() {
            let next = self.stages.get(place + 1);
            // Between the first and the last chunk, what is seen of the cache grows evenly.
            let time = |chunk: usize, last: bool| {
                let before = (chunk * rows).min(tokens - 1);
                let step = StepShape::chunk(rows.min(tokens - before) as f64, before as f64, last);
                (self.stage_s(stage, step), stage.work.read_bytes(step))
            };
            let full = (tokens / rows).max(1) - 1;
            let (first_s, first_bytes) = time(0, chunks == 1);
            let (late_s, late_bytes) = if chunks > 1 { time(full, false) } else { (first_s, first_bytes) };
            let (last_s, last_bytes) =
                if chunks > 1 { time(chunks - 1, true) } else { (first_s, first_bytes) };
            let (mut free_s, mut link_free_s) = (0.0f64, 0.0f64);
            for (chunk, arrived_s) in arrived_s.iter_mut().enumerate() {
                let share = chunk as f64 / full.max(1) as f64;
                let (took_s, bytes) = if chunk + 1 == chunks {
                    (last_s, last_bytes)
                } else {
                    (first_s + (late_s - first_s) * share, first_bytes + (late_bytes - first_bytes) * share)
                };
                busy.add(place, 1.0, took_s, bytes);
                free_s = free_s.max(*arrived_s) + took_s;
                *arrived_s = free_s;
                if let Some(next) = next {
                    let sent = rows.min(tokens - (chunk * rows).min(tokens)) as f64;
                    link_free_s =
                        link_free_s.max(free_s) + self.predictor.transfer_s(stage.device, next.device, sent);
                    *arrived_s = link_free_s + self.predictor.hop_s(stage.device, next.device, 0.0);
                }
            }
        }
        arrived_s.last().copied().unwrap_or_default().max(busy.hosts_s())
    }
}

/// What some number of groups comes to.
struct Cycle {
    /// Seconds from one token of a sequence to its next.
    cycle_s: f64,
    /// By which the scheduler chooses: it knows of machines that are crowded, and nothing of what their memory gives to
    /// several stages together.
    cost_s: f64,
}

/// How busy stages are over some time, and the machines that several of them share.
struct Busy<'a> {
    pipeline: &'a Pipeline<'a>,
    /// Seconds of each stage, and bytes that it reads.
    stages: Vec<(f64, f64)>,
}

impl<'a> Busy<'a> {
    fn new(pipeline: &'a Pipeline<'a>) -> Busy<'a> {
        Busy { pipeline, stages: vec![(0.0, 0.0); pipeline.stages.len()] }
    }

    /// Adds `count` steps of a stage.
    fn add(&mut self, place: usize, count: f64, step_s: f64, bytes: f64) {
        self.stages[place].0 += count * step_s;
        self.stages[place].1 += count * bytes;
    }

    fn slowest_s(&self) -> f64 {
        self.stages.iter().map(|(busy_s, _)| *busy_s).fold(0.0, f64::max)
    }

    /// Seconds that the busiest of the crowded machines is.
    fn crowds_s(&self) -> f64 {
        let busy_s = |crowd: &Crowd| crowd.busy_s(|stage| self.stages[stage].0);
        self.pipeline.crowds.iter().map(busy_s).fold(0.0, f64::max)
    }

    /// The least time in which the machines do what the stages on them do, where several share one.
    fn hosts_s(&self) -> f64 {
        let input = self.pipeline.predictor.input;
        let of = |(index, host): (usize, &SharedHost)| {
            let here = self.pipeline.stages.iter().zip(&self.stages);
            let here = here.filter(|(stage, _)| input.devices[stage.device].host == Some(index));
            let loads: Vec<HostLoad> = here
                .map(|(stage, (busy_s, bytes))| {
                    HostLoad::of(&input.devices[stage.device], host, *bytes, *busy_s)
                })
                .collect();
            if loads.len() > 1 { least_cycle_s(host, loads) } else { 0.0 }
        };
        input.hosts.iter().enumerate().map(of).fold(0.0, f64::max)
    }
}
