//! A plan as a table: which stage runs where, what it takes there, and how fast it should be.

use std::fmt::Write as _;

use brigade_shard::layers::Shard;
use brigade_shard::plan::PROMPT_TOKENS;
use brigade_shard::units::Bytes;
use serde::{Deserialize, Serialize};

use super::status::stage_shard;
use super::table::{Align, Table, memory_bar};
use crate::status::{ClusterStatus, StageStatus};

/// A plan as it is shown, made from a dry run or from a running cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// The model's id.
    pub model: String,
    /// Number of layers of the model.
    pub layers: u32,
    /// Bytes of all tensors.
    pub weight_bytes: Bytes,
    /// The pipeline, from first to last.
    pub stages: Vec<PlanStage>,
    /// Longest sequence, in tokens.
    pub context: u32,
    /// Cache tokens of the whole pipeline, over all sequences.
    pub cache_tokens: u32,
    /// Predicted decode speed of one stream.
    pub decode_tokens_per_s: f64,
    /// Predicted decode speed of all streams together, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput_tokens_per_s: Option<f64>,
    /// Predicted time to the first token of a prompt of 512 tokens, in milliseconds, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// What limits the plan, in words.
    pub bottleneck: String,
    /// What else the planner has to say, one sentence each.
    pub notes: Vec<String>,
}

/// One stage of a [`PlanView`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanStage {
    /// Name of the worker that holds it.
    pub worker: String,
    /// Its part of the model.
    pub shard: Shard,
    /// Bytes of weights.
    pub weight_bytes: Bytes,
    /// Bytes of KV cache.
    pub cache_bytes: Bytes,
    /// Bytes of activations and workspace.
    pub workspace_bytes: Bytes,
    /// What the worker may use.
    pub budget_bytes: Bytes,
}

impl PlanStage {
    /// Weights, cache and workspace together.
    pub fn total_bytes(&self) -> Bytes {
        self.weight_bytes + self.cache_bytes + self.workspace_bytes
    }
}

impl PlanView {
    /// The plan that a cluster runs or loads.
    pub fn of_cluster(status: &ClusterStatus) -> PlanView {
        PlanView {
            model: status.model.id.clone(),
            layers: status.model.layers,
            weight_bytes: Bytes(status.model.weight_bytes),
            stages: status.stages.iter().map(|stage| plan_stage(stage, status)).collect(),
            context: status.context,
            cache_tokens: status.cache_tokens,
            decode_tokens_per_s: status.predicted.decode_tokens_per_s,
            throughput_tokens_per_s: None,
            ttft_ms: Some(status.predicted.ttft_ms),
            bottleneck: status.predicted.bottleneck.clone(),
            notes: Vec::new(),
        }
    }
}

fn plan_stage(stage: &StageStatus, status: &ClusterStatus) -> PlanStage {
    let budget = status.workers.iter().find(|w| w.id == stage.worker).map_or(0, |w| w.budget_bytes);
    PlanStage {
        worker: stage.name.clone(),
        shard: stage_shard(stage),
        weight_bytes: Bytes(stage.weight_bytes),
        cache_bytes: Bytes(stage.cache_bytes),
        workspace_bytes: Bytes(stage.workspace_bytes),
        budget_bytes: Bytes(budget),
    }
}

/// The plan's stages as a table with a memory bar each, then its context, its predicted speed and its bottleneck.
pub fn render_plan(plan: &PlanView) -> String {
    let mut text = render_stages(plan);
    let together = plan.throughput_tokens_per_s.map(|rate| format!(" ({rate:.1} for all together)"));
    let first = plan
        .ttft_ms
        .map(|ms| format!(", first token of a {PROMPT_TOKENS}-token prompt after {}", milliseconds(ms)));
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "predicted  {:.1} tokens/s for one stream{}{}",
        plan.decode_tokens_per_s,
        together.unwrap_or_default(),
        first.unwrap_or_default()
    );
    if !plan.bottleneck.is_empty() {
        let _ = writeln!(text, "bottleneck {}", plan.bottleneck);
    }
    for note in &plan.notes {
        let _ = writeln!(text, "note       {note}");
    }
    text
}

/// The model, the stages as a table with a memory bar each, and the context.
pub(super) fn render_stages(plan: &PlanView) -> String {
    let mut table = Table::new(&[
        ("STAGE", Align::Right),
        ("WORKER", Align::Left),
        ("HOLDS", Align::Left),
        ("WEIGHTS", Align::Right),
        ("CACHE", Align::Right),
        ("WORKSPACE", Align::Right),
        ("TOTAL", Align::Right),
        ("BUDGET", Align::Right),
        ("MEMORY", Align::Left),
    ]);
    for (number, stage) in plan.stages.iter().enumerate() {
        table.row([
            number.to_string(),
            stage.worker.clone(),
            stage.shard.to_string(),
            stage.weight_bytes.to_string(),
            stage.cache_bytes.to_string(),
            stage.workspace_bytes.to_string(),
            stage.total_bytes().to_string(),
            stage.budget_bytes.to_string(),
            memory_bar(stage.total_bytes(), stage.budget_bytes),
        ]);
    }
    format!(
        "model      {}, {} layers, {} of weights\n{table}context    {} tokens a sequence, {} tokens of cache in all\n",
        plan.model, plan.layers, plan.weight_bytes, plan.context, plan.cache_tokens
    )
}

/// A time in the unit that people would use.
pub(super) fn milliseconds(ms: f64) -> String {
    if ms < 1000.0 { format!("{ms:.0} ms") } else { format!("{:.1} s", ms / 1000.0) }
}

#[cfg(test)]
mod tests {
    use brigade_shard::layers::LayerRange;

    use super::*;

    #[test]
    fn a_plan_is_shown_with_memory_speed_and_bottleneck() {
        let stage = |worker: &str, start, end, weights| PlanStage {
            worker: worker.to_owned(),
            shard: Shard::of(LayerRange { start, end }, 30),
            weight_bytes: Bytes::mib(weights),
            cache_bytes: Bytes::mib(8),
            workspace_bytes: Bytes::mib(4),
            budget_bytes: Bytes::mib(64),
        };
        let plan = PlanView {
            model: "SmolLM2".to_owned(),
            layers: 30,
            weight_bytes: Bytes::mib(94),
            stages: vec![stage("w1", 0, 12, 52), stage("w2", 12, 30, 30)],
            context: 2048,
            cache_tokens: 4096,
            decode_tokens_per_s: 81.26,
            throughput_tokens_per_s: Some(150.0),
            ttft_ms: Some(1234.0),
            bottleneck: "stage 0 on w1: memory bandwidth".to_owned(),
            notes: vec!["w3 is not used: it would not help".to_owned()],
        };
        assert_eq!(
            render_plan(&plan),
            "\
model      SmolLM2, 30 layers, 94.0 MiB of weights
STAGE   WORKER   HOLDS                       WEIGHTS     CACHE   WORKSPACE      TOTAL     BUDGET   MEMORY
    0   w1       embedding + layers 0..12   52.0 MiB   8.0 MiB     4.0 MiB   64.0 MiB   64.0 MiB   [####################] 100%
    1   w2       layers 12..30 + head       30.0 MiB   8.0 MiB     4.0 MiB   42.0 MiB   64.0 MiB   [#############-------]  66%
context    2048 tokens a sequence, 4096 tokens of cache in all
predicted  81.3 tokens/s for one stream (150.0 for all together), first token of a 512-token prompt after 1.2 s
bottleneck stage 0 on w1: memory bandwidth
note       w3 is not used: it would not help
"
        );
    }
}
