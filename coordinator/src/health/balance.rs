//! Which layers would have to move for a stage to take no more of a step than its neighbour.

use crate::status::{ClusterStatus, StageStatus};

/// A better cut between a stage and one next to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shift {
    /// The stage that takes layers over.
    pub(super) to: usize,
    /// How many.
    pub(super) layers: u32,
    /// How many layers each stage has then, in order.
    pub(super) split: Vec<u32>,
}

/// The layers that would have to leave a stage for the neighbour where most would be won: both would take about the same
/// time of a step then, as far as the neighbour's budget has room. `None` where not even one is worth it.
pub(super) fn shift(status: &ClusterStatus, stage: usize) -> Option<Shift> {
    let this = status.stages.get(stage)?;
    let neighbours = [stage.checked_sub(1), Some(stage + 1)].into_iter().flatten();
    let shifts = neighbours.filter_map(|to| {
        let other = status.stages.get(to)?;
        let (this_each, other_each) = (each_layer(this)?, each_layer(other)?);
        let even = (this.step_share - other.step_share) / (this_each + other_each);
        let layers = (even.floor() as u32).min(layers(this) - 1).min(room(status, this, other));
        let left = this.step_share - f64::from(layers) * this_each;
        (layers > 0).then_some((to, layers, left))
    });
    let (to, layers, _) = shifts.min_by(|one, other| one.2.total_cmp(&other.2))?;
    let mut split: Vec<u32> = status.stages.iter().map(self::layers).collect();
    split[stage] -= layers;
    split[to] += layers;
    Some(Shift { to, layers, split })
}

fn layers(stage: &StageStatus) -> u32 {
    stage.layer_end.saturating_sub(stage.layer_start)
}

/// What a layer takes of a step here.
fn each_layer(stage: &StageStatus) -> Option<f64> {
    let measured = stage.step_share > 0.0 && layers(stage) > 0;
    measured.then(|| stage.step_share / f64::from(layers(stage)))
}

/// How many layers of `from` the budget of `to`'s worker has room for, cache included.
fn room(status: &ClusterStatus, from: &StageStatus, to: &StageStatus) -> u32 {
    let Some(worker) = status.workers.iter().find(|worker| worker.id == to.worker) else {
        return 0;
    };
    let taken = to.weight_bytes + to.cache_bytes + to.workspace_bytes;
    let each = (from.weight_bytes + from.cache_bytes) / u64::from(layers(from).max(1));
    let fit = worker.budget_bytes.saturating_sub(taken) / each.max(1);
    u32::try_from(fit).unwrap_or(u32::MAX)
}
