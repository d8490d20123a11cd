//! Which one more device would help most.

use super::{Objective, Plan, PlanDevice, PlanError, PlanInput, Verdict, choices, plan};
use crate::cost::Cost;

/// What one more device would change.
#[derive(Clone, Debug, PartialEq)]
pub struct WhatIf {
    /// Index into the candidates.
    pub candidate: usize,
    /// What should be done then, for the input's objective.
    pub verdict: Result<Verdict, PlanError>,
    /// The plan for the input's objective; its devices are the input's with the candidate behind them. `None` where the
    /// model still does not fit.
    pub plan: Option<Plan>,
    /// Tokens per second of one stream, with the plan that is best for it.
    pub one_stream: Gain,
    /// Tokens per second of many streams together, with the plan that is best for them.
    pub many_streams: Gain,
}

/// A speed without a device and with it, in tokens per second; `None` where there is no plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gain {
    /// Without it.
    pub before: Option<f64>,
    /// With it.
    pub after: Option<f64>,
}

impl Gain {
    /// How many times as fast it gets; infinite where it was not possible before, 1 where it still is not.
    pub fn factor(&self) -> f64 {
        match (self.before, self.after) {
            (Some(before), Some(after)) => after / before,
            (None, Some(_)) => f64::INFINITY,
            (_, None) => 1.0,
        }
    }
}

/// Plans for the input's devices with each of the candidates beside them, in the order of what the candidate gains for
/// the input's objective, and of what it gains for the other one where that is the same. A candidate's
/// [`PlanDevice::host`] is one of the input's hosts; its links are the default ones.
pub fn what_if(cost: &Cost, input: &PlanInput, candidates: &[PlanDevice]) -> Vec<WhatIf> {
    let input = PlanInput { split: Vec::new(), ..input.clone() };
    let fastest = |input: &PlanInput, objective| {
        let found = plan(cost, &PlanInput { objective, ..input.clone() }).ok();
        (found.as_ref().map(|plan| objective.speed(&plan.predicted)), found)
    };
    let (one_before, _) = fastest(&input, Objective::OneStream);
    let (many_before, _) = fastest(&input, Objective::ManyStreams);
    let with = |(candidate, device): (usize, &PlanDevice)| {
        let mut with = input.clone();
        with.devices.push(device.clone());
        let (one, for_one) = fastest(&with, Objective::OneStream);
        let (many, for_many) = fastest(&with, Objective::ManyStreams);
        WhatIf {
            candidate,
            verdict: choices(cost, &with).map(|choices| choices.verdict),
            plan: if input.objective == Objective::OneStream { for_one } else { for_many },
            one_stream: Gain { before: one_before, after: one },
            many_streams: Gain { before: many_before, after: many },
        }
    };
    let mut found: Vec<WhatIf> = candidates.iter().enumerate().map(with).collect();
    let worth = |what: &WhatIf| {
        let (first, second) = match input.objective {
            Objective::OneStream => (what.one_stream, what.many_streams),
            Objective::ManyStreams => (what.many_streams, what.one_stream),
        };
        // Where nothing was possible before, the faster one gains more.
        let speed = |gain: Gain| gain.after.unwrap_or(0.0);
        [first.factor(), speed(first), second.factor(), speed(second)]
    };
    found.sort_by(|a, b| {
        let pairs = worth(b).into_iter().zip(worth(a));
        pairs
            .map(|(b, a)| b.total_cmp(&a))
            .find(|order| order.is_ne())
            .unwrap_or(a.candidate.cmp(&b.candidate))
    });
    found
}
