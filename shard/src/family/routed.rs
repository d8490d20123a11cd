//! Experts as DeepSeek and the families after it have them: gated by softmax or sigmoids, some chosen with a bias and
//! from groups, with a factor on their weights, and beside a shared one.

use super::SpecError;
use super::hyperparameters::Hyperparameters;
use super::parts;
use crate::spec::{Activation, ExpertGroups, Experts, Gating, GroupMerit, Routing, Weighing};

const GATING: &str = "expert_gating_func";
/// What files write in that key.
const SOFTMAX: usize = 1;
const SIGMOID: usize = 2;

/// Reads the experts of the layers after the first `dense` ones.
pub(super) fn experts(keys: &Hyperparameters<'_>, dense: usize) -> Result<Experts, SpecError> {
    let (count, used) = parts::expert_counts(keys)?.ok_or_else(|| keys.missing("expert_count"))?;
    let width = keys.required("expert_feed_forward_length", 1..=parts::MAX_FEED_FORWARD)?;
    let shared = keys.required("expert_shared_count", 1..=parts::MAX_EXPERTS)?;
    let selection_bias = keys.header.tensor(&format!("blk.{dense}.exp_probs_b.bias")).is_some();
    let gating = match keys.count(GATING, 0..=u64::MAX)? {
        // Files of V2 say nothing, and have no bias.
        None if selection_bias => return Err(keys.missing(GATING)),
        None | Some(SOFTMAX) => Gating::Softmax,
        Some(SIGMOID) => Gating::Sigmoid,
        Some(other) => return Err(keys.unsupported(GATING, other, ": only softmax, 1, and sigmoid, 2, are")),
    };
    let renormalised = keys.flag("expert_weights_norm")?;
    let scale = keys.number("expert_weights_scale")?.ok_or_else(|| keys.missing("expert_weights_scale"))?;
    Ok(Experts {
        count,
        used,
        width,
        activation: Activation::Silu,
        routing: Routing {
            gating,
            selection_bias: selection_bias || gating == Gating::Sigmoid,
            groups: groups(keys, count, used)?,
            renormalised: match (gating, renormalised) {
                (_, Some(renormalised)) => renormalised,
                (Gating::Softmax, None) => false,
                (Gating::Sigmoid, None) => return Err(keys.missing("expert_weights_norm")),
            },
            // Files write 0 for no factor.
            scale: if scale == 0.0 { 1.0 } else { scale },
            weighing: Weighing::Outputs,
        },
        shared_width: Some(shared * width),
        biases: false,
    })
}

/// The groups that a choice of experts is limited to; one group is no limit.
fn groups(
    keys: &Hyperparameters<'_>,
    experts: usize,
    taken: usize,
) -> Result<Option<ExpertGroups>, SpecError> {
    let (count_key, used_key) = ("expert_group_count", "expert_group_used_count");
    let count = keys.count(count_key, 0..=parts::MAX_EXPERTS)?;
    let used = keys.count(used_key, 0..=parts::MAX_EXPERTS)?;
    // GGUF files do not say; the reader of safetensors does.
    let merit = match keys.flag("expert_groups_by_best")? {
        Some(true) => GroupMerit::Best,
        Some(false) | None => GroupMerit::TwoBest,
    };
    let (count, used) = match (count, used) {
        (None, None) => return Ok(None),
        (Some(count), Some(used)) => (count, used),
        (None, Some(_)) => return Err(keys.missing(count_key)),
        (Some(_), None) => return Err(keys.missing(used_key)),
    };
    if count <= 1 {
        return Ok(None);
    }
    if !experts.is_multiple_of(count) || experts / count < 2 {
        let wanted =
            format!("it must divide the number of experts, {experts}, with at least two in each group");
        return Err(keys.invalid(count_key, count, &wanted));
    }
    if !(1..=count).contains(&used) || used * (experts / count) < taken {
        let wanted = format!("it must be at most {count}, and hold the {taken} experts that a token takes");
        return Err(keys.invalid(used_key, used, &wanted));
    }
    Ok(Some(ExpertGroups { count, used, merit }))
}
