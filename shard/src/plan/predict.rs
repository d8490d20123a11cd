//! How fast a partition will be.

use serde::Serialize;

use super::best::group_rows;
use super::search::{Partition, Search, Work};
use super::{Plan, PlanDevice, PlanInput, PlannedStage};
use crate::cost::Cost;
use crate::layers::LayerRange;

/// Length of the prompt that [`Prediction::ttft_ms`] speaks of, in tokens.
pub const PROMPT_TOKENS: u32 = 512;
/// What a step costs a stage beside its arithmetic, in seconds: taking it from the link, waking the engine, passing it
/// on. About what a round trip through a QUIC connection on one machine takes.
pub const STAGE_OVERHEAD_S: f64 = 100e-6;

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
    let _ = (cost, input, plan, load);
    todo!("helper c")
}

/// Time of a device for `rows` rows of decoding: reading the weights once, or the arithmetic, whichever takes longer.
pub(super) fn stage_s(device: &PlanDevice, work: &Work, rows: u32) -> f64 {
    let read_s = (work.active + work.head_active) / device.bandwidth_bytes_per_s;
    let compute_s = f64::from(rows) * (work.flops + work.head_flops) / device.flops_per_s;
    read_s.max(compute_s) + STAGE_OVERHEAD_S
}

/// The formulas over a model and its devices.
pub(super) struct Predictor<'a> {
    input: &'a PlanInput,
    hidden: f64,
}

impl<'a> Predictor<'a> {
    pub(super) fn new(cost: &'a Cost, input: &'a PlanInput) -> Predictor<'a> {
        Predictor { input, hidden: cost.widths().hidden as f64 }
    }

    /// Time of a stage to decode one token of each of `rows` sequences, in seconds.
    pub(super) fn decode_s(&self, search: &Search<'_>, device: usize, range: LayerRange, rows: u32) -> f64 {
        stage_s(&self.input.devices[device], &search.work(range), rows)
    }

    /// Time of a stage for a chunk of `rows` prompt tokens; the head computes one row of it at most.
    fn chunk_s(&self, search: &Search<'_>, device: usize, range: LayerRange, rows: f64) -> f64 {
        let (device, work) = (&self.input.devices[device], search.work(range));
        let layers_s =
            (work.active / device.bandwidth_bytes_per_s).max(rows * work.flops / device.flops_per_s);
        let head_s =
            (work.head_active / device.bandwidth_bytes_per_s).max(work.head_flops / device.flops_per_s);
        layers_s + head_s + STAGE_OVERHEAD_S
    }

    /// Time of a stage per prompt token in full chunks, in seconds.
    pub(super) fn prefill_s_per_row(&self, search: &Search<'_>, device: usize, range: LayerRange) -> f64 {
        let rows = f64::from(self.input.step_rows.max(1));
        self.chunk_s(search, device, range, rows) / rows
    }

    /// Time to bring `rows` hidden states from one device to the next, in seconds.
    fn hop_s(&self, one: usize, other: usize, rows: f64) -> f64 {
        let row_bytes = self.hidden * f64::from(self.input.wire_value_bytes);
        self.input.links.between(one, other).crossing_s(rows * row_bytes)
    }

    /// All hops of a partition together, and the longest that one keeps a link busy, in seconds.
    fn hops_s(&self, partition: &Partition, rows: f64) -> (f64, f64) {
        let hops = partition.order.windows(2);
        hops.map(|pair| {
            let hop_s = self.hop_s(pair[0], pair[1], rows);
            (hop_s, hop_s - self.hop_s(pair[0], pair[1], 0.0))
        })
        .fold((0.0, 0.0), |(sum, longest), (hop_s, busy_s): (f64, f64)| (sum + hop_s, longest.max(busy_s)))
    }

    /// The last stage tells the first what it drew, which is next to no bytes.
    fn closing_s(&self, partition: &Partition) -> f64 {
        match (partition.order.first(), partition.order.last()) {
            (Some(first), Some(last)) if first != last => self.hop_s(*last, *first, 0.0),
            _ => 0.0,
        }
    }

    /// Token ids go to the first stage and come home from the last: two more crossings with next to no bytes.
    fn ends_s(&self, partition: &Partition) -> f64 {
        let ends = partition.order.first().into_iter().chain(partition.order.last());
        ends.map(|device| self.input.links.to_coordinator(*device).crossing_s(0.0)).sum()
    }

    pub(super) fn predict(&self, search: &Search<'_>, partition: &Partition) -> Prediction {
        let stages = partition.order.len();
        let closing_s = self.closing_s(partition);
        let times = |rows: u32| -> (f64, f64) {
            let stage_s = partition.streaming_stages(search).map(|(device, shard, streamed)| {
                let streaming_s = search.streaming_s(device, shard.layers, streamed);
                self.decode_s(search, device, shard.layers, rows).max(streaming_s)
            });
            stage_s.fold((0.0, 0.0), |(sum, slowest), s: f64| (sum + s, slowest.max(s)))
        };
        let (one_s, _) = times(1);
        let streams = self.input.parallel.max(1);
        let group = group_rows(streams, stages);
        let (sum_s, slowest_s) = times(group);
        let (hops_s, longest_hop_s) = self.hops_s(partition, f64::from(group));
        let round_s = sum_s + hops_s + closing_s;
        let cycle_s = slowest_s.max(longest_hop_s).max(search.hosts_s(partition, group));
        Prediction {
            decode_tokens_per_s: 1.0 / (one_s + self.hops_s(partition, 1.0).0 + closing_s),
            ttft_ms: self.ttft_s(search, partition) * 1e3,
            throughput_tokens_per_s: (f64::from(streams) / round_s).min(f64::from(group) / cycle_s),
        }
    }

    /// The first chunk goes through all stages; every further one follows at the pace of the slowest stage or link.
    fn ttft_s(&self, search: &Search<'_>, partition: &Partition) -> f64 {
        let chunks = PROMPT_TOKENS.div_ceil(self.input.step_rows.max(1));
        let rows = f64::from(PROMPT_TOKENS) / f64::from(chunks);
        let (hops_s, longest_hop_s) = self.hops_s(partition, rows);
        let chunk_s = partition.streaming_stages(search).map(|(device, shard, streamed)| {
            let streaming_s = search.streaming_s(device, shard.layers, streamed);
            self.chunk_s(search, device, shard.layers, rows).max(streaming_s)
        });
        let (sum_s, slowest_s) =
            chunk_s.fold((0.0, longest_hop_s), |(sum, slowest), s: f64| (sum + s, slowest.max(s)));
        sum_s + hops_s + self.ends_s(partition) + f64::from(chunks - 1) * slowest_s
    }

    /// What limits a stream, in words.
    pub(super) fn bottleneck(&self, search: &Search<'_>, stages: &[PlannedStage]) -> String {
        let slowest = stages.iter().enumerate().max_by(|a, b| a.1.decode_ms.total_cmp(&b.1.decode_ms));
        let Some((index, stage)) = slowest else {
            return String::new();
        };
        let hops = stages.windows(2).map(|pair| self.hop_s(pair[0].device, pair[1].device, 1.0));
        let hop_ms = hops.fold(0.0, f64::max) * 1e3;
        if stages.len() > 1 && hop_ms > stage.decode_ms {
            return format!(
                "the links: up to {hop_ms:.2} ms per hop, the slowest stage takes {:.2} ms",
                stage.decode_ms
            );
        }
        let device = &self.input.devices[stage.device];
        let streaming_s = search.streaming_s(stage.device, stage.shard.layers, stage.streamed_layers);
        if let Some(rate) = device.offload_bytes_per_s.filter(|_| streaming_s * 1e3 >= stage.decode_ms) {
            return format!(
                "stage {index} on {}: reading {} layers again for every step at {:.1} GB/s, {:.2} ms",
                device.name,
                stage.streamed_layers,
                rate / 1e9,
                stage.decode_ms
            );
        }
        let work = search.work(stage.shard.layers);
        let read_s = (work.active + work.head_active) / device.bandwidth_bytes_per_s;
        let compute_s = (work.flops + work.head_flops) / device.flops_per_s;
        let reason = if read_s.max(compute_s) < STAGE_OVERHEAD_S {
            "the fixed cost of a step".to_owned()
        } else if read_s >= compute_s {
            let mib = (work.active + work.head_active) / (1u64 << 20) as f64;
            format!(
                "reading {mib:.1} MiB of weights per token at {:.1} GB/s",
                device.bandwidth_bytes_per_s / 1e9
            )
        } else {
            let gflop = (work.flops + work.head_flops) / 1e9;
            format!("{gflop:.2} GFLOP per token at {:.0} GFLOP/s", device.flops_per_s / 1e9)
        };
        format!("stage {index} on {}: {reason}, {:.2} ms", device.name, stage.decode_ms)
    }
}
