//! What is to be expected of the plan that is served, from what is known of devices and links now.

use std::fmt;
use std::sync::Arc;

use brigade_shard::cost::Cost;
use brigade_shard::plan::{Forecast, Load, Plan, PlanInput, forecast};

use crate::deployment::{Deployment, devices};
use crate::membership::{Member, Membership};
use crate::planning::LiveDevices;

/// Devices as the planner sees them.
#[derive(Clone, Debug, Default)]
pub(super) struct Planned {
    /// Of all attached workers.
    pub(super) attached: Arc<LiveDevices>,
    /// Of the stages of the plan that is served, in order, with that plan; `None` while none is, or a worker is lost.
    served: Option<(LiveDevices, Plan)>,
}

impl Planned {
    /// Those of these members and of what runs on them.
    pub(super) fn of(membership: &Membership, deployment: &Deployment) -> Planned {
        let budget = |member: &Member| member.capabilities.budget;
        let attached: Vec<&Member> = membership.attached().collect();
        let attached = Arc::new(devices(&attached, |_| None, budget));
        let stages = deployment.stages().iter();
        let stages: Option<Vec<&Member>> = stages.map(|stage| membership.member(&stage.worker)).collect();
        let served = stages.zip(deployment.plan()).map(|(stages, plan)| {
            let mut plan = plan.clone();
            plan.stages.iter_mut().enumerate().for_each(|(place, stage)| stage.device = place);
            (devices(&stages, |_| None, budget), plan)
        });
        Planned { attached, served }
    }
}

/// Makes the input of plans for devices and a least number of stages.
type Inputs = Box<dyn Fn(&LiveDevices, usize) -> PlanInput + Send + Sync>;

/// The formulas over the model that is served.
pub(super) struct Forecaster {
    cost: Cost,
    input: Inputs,
}

impl Forecaster {
    pub(super) fn new(cost: Cost, input: Inputs) -> Forecaster {
        Forecaster { cost, input }
    }

    /// What to expect under a load of the plan that is served; `None` while none is.
    pub(super) fn forecast(&self, planned: &Planned, load: &Load) -> Option<Forecast> {
        let (live, plan) = planned.served.as_ref()?;
        Some(forecast(&self.cost, &(self.input)(live, 1), plan, load))
    }
}

impl fmt::Debug for Forecaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forecaster").finish_non_exhaustive()
    }
}
