//! A second model beside the one that is planned: one that drafts, as a single stage on one of the devices.

use super::rooms::{longest_context, room, sequence_tokens};
use super::{COMFORTABLE_CONTEXT, LEAST_CONTEXT, Plan, PlanDevice, PlanError, PlanInput, plan};
use crate::cost::Cost;
use crate::units::Bytes;

/// Most devices that are tried as the place of the second model, where no plan leaves it room by itself.
const MOST_TRIED: usize = 8;

/// The best assignment of the model that `cost` describes, as [`plan`] finds it, that leaves some device room for the whole
/// of `draft`.
///
/// # Errors
/// As [`plan`], and [`PlanError::NoRoomForDraft`] where the devices hold the model alone, or [`PlanError::NoKernels`]
/// where none of them can compute all of `draft`.
pub fn plan_beside(cost: &Cost, input: &PlanInput, draft: &Cost) -> Result<Plan, PlanError> {
    let alone = plan(cost, input)?;
    match place_beside(draft, input, &alone) {
        Ok(_) => return Ok(alone),
        Err(error @ PlanError::NoKernels { .. }) => return Err(error),
        Err(_) => {}
    }
    let mut places: Vec<usize> = (0..input.devices.len()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(input.devices[*place].budget));
    let context = input.context.unwrap_or(COMFORTABLE_CONTEXT);
    for context in [context, LEAST_CONTEXT.min(context)] {
        let needed = needed(draft, input, context);
        for place in places.iter().copied().take(MOST_TRIED) {
            let mut without = input.clone();
            without.devices[place].budget = without.devices[place].budget.saturating_sub(needed);
            if let Ok(found) = plan(cost, &without)
                && place_beside(draft, input, &found).is_ok()
            {
                return Ok(found);
            }
        }
    }
    let least = needed(draft, input, LEAST_CONTEXT.min(context));
    let left = left(input, &alone).into_iter().map(|device| device.budget).max();
    Err(PlanError::NoRoomForDraft { needed: least, left: left.unwrap_or_default() })
}

/// Where to put the whole of `draft`: on the device that has the most memory left beside `beside`.
///
/// # Errors
/// As [`plan`], for the device that comes nearest.
pub fn place_beside(draft: &Cost, input: &PlanInput, beside: &Plan) -> Result<Plan, PlanError> {
    place_whole(draft, &PlanInput { devices: left(input, beside), ..input.clone() }, beside.context)
}

/// Where to put the whole of `draft`: on the device with the most memory of those that can compute it, for sequences of up
/// to `context` tokens, or as long as fit.
///
/// # Errors
/// As [`plan`], for the device that comes nearest.
pub fn place_whole(draft: &Cost, input: &PlanInput, context: u32) -> Result<Plan, PlanError> {
    let needed = draft.needs(&draft.whole());
    let most = input.devices.iter().enumerate().max_by_key(|(place, device)| {
        let able = device.kernels.can(needed);
        // Of equal ones the last: the first are taken by others first.
        (able, device.budget, *place)
    });
    let (place, _) = most.ok_or(PlanError::NoDevices)?;
    // A draft model that is slower for what it reads again would not pay.
    let mut alone = PlanInput { min_stages: 1, ..input.only(&[place]) };
    alone.devices.iter_mut().for_each(|device| device.offload_bytes_per_s = None);
    let on = |context| plan(draft, &PlanInput { context, ..alone.clone() });
    let mut found = on(Some(context.min(longest_context(draft)))).or_else(|_| on(None))?;
    found.stages.iter_mut().for_each(|stage| stage.device = place);
    Ok(found)
}

/// The devices with what a plan leaves of them.
fn left(input: &PlanInput, plan: &Plan) -> Vec<PlanDevice> {
    let mut devices = input.devices.clone();
    for stage in &plan.stages {
        let budget = &mut devices[stage.device].budget;
        *budget = budget.saturating_sub(stage.memory.total());
    }
    devices
}

/// What the whole of a model takes on a single device.
fn needed(cost: &Cost, input: &PlanInput, context: u32) -> Bytes {
    let context = context.min(longest_context(cost));
    let tokens = sequence_tokens(context) * u64::from(input.parallel.max(1));
    cost.memory(&cost.whole(), &room(input, context, tokens)).total()
}
