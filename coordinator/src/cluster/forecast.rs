//! What is to be expected of the plan that is served, and of others over the same workers, from what is known of devices
//! and links now.

use std::fmt;
use std::time::Instant;

use brigade_shard::cost::Cost;
use brigade_shard::plan::{Forecast, Load, Plan, PlanInput, forecast, plan};
use brigade_shard::units::Bytes;

use crate::compare::SideKind;
use crate::compare::choices::{ChoiceLoads, Forecasted, SideChoice, SideChoices};
use crate::deployment::{AtHand, Deployment, devices};
use crate::membership::{Member, Membership};
use crate::planning::LiveDevices;

/// What is known at a moment. It is put together when somebody asks: links are measured anew with every heartbeat, and
/// few ask.
#[derive(Debug)]
pub(super) struct Basis {
    /// The devices of all attached workers.
    pub(super) attached: LiveDevices,
    /// Those of the stages of the plan that is served, in order, with that plan; `None` while none is, or a worker is lost.
    served: Option<(LiveDevices, Plan)>,
    /// Those that may be planned with.
    hand: AtHand,
}

impl Basis {
    /// What is known of these members and of what runs on them.
    pub(super) fn of(membership: &Membership, deployment: &Deployment, now: Instant) -> Basis {
        let budget = |member: &Member| member.capabilities.budget;
        let attached: Vec<&Member> = membership.attached().collect();
        let attached = devices(&attached, |_| None, budget);
        let stages = deployment.stages().iter();
        let stages: Option<Vec<&Member>> = stages.map(|stage| membership.member(&stage.worker)).collect();
        let served = stages.zip(deployment.plan()).map(|(stages, plan)| {
            let mut plan = plan.clone();
            plan.stages.iter_mut().enumerate().for_each(|(place, stage)| stage.device = place);
            (devices(&stages, |_| None, budget), plan)
        });
        Basis { attached, served, hand: deployment.at_hand_for_plans(membership, now) }
    }
}

/// Makes the input of plans for devices and a least number of stages.
type Inputs = Box<dyn Fn(&LiveDevices, usize) -> PlanInput + Send + Sync>;

/// The formulas over the model that is served.
pub(super) struct Forecaster {
    cost: Cost,
    input: Inputs,
}

/// The plans of a comparison.
struct Found {
    /// The worker that is the fastest alone, by its place, with its input, its plan and what it is.
    one_box: Option<(usize, PlanInput, Plan, SideKind)>,
    /// Over several.
    cluster: Result<(PlanInput, Plan), String>,
}

impl Forecaster {
    pub(super) fn new(
        cost: Cost,
        input: impl Fn(&LiveDevices, usize) -> PlanInput + Send + Sync + 'static,
    ) -> Forecaster {
        Forecaster { cost, input: Box::new(input) }
    }

    /// What to expect under a load of the plan that is served; `None` while none is.
    pub(super) fn served(&self, basis: &Basis, load: &Load) -> Option<Forecast> {
        let (live, plan) = basis.served.as_ref()?;
        Some(forecast(&self.cost, &(self.input)(live, 1), plan, load))
    }

    /// What a comparison could measure, one box and several of them, with what is predicted of each. Searches for plans,
    /// which takes its time.
    pub(super) fn choices(&self, basis: &Basis, loads: &ChoiceLoads) -> SideChoices {
        let hand = &basis.hand;
        let Found { one_box, cluster } = self.find(hand);
        let side = |kind, places: Vec<usize>, input: &PlanInput, plan: &Plan| SideChoice {
            kind,
            workers: places.iter().map(|place| hand.workers[*place].to_string()).collect(),
            names: places.iter().map(|place| hand.live.devices[*place].name.clone()).collect(),
            forecasts: self.forecasts(input, plan, loads),
        };
        let mut left_out = Vec::new();
        if one_box.is_none() {
            left_out.push(self.why_no_box(hand));
        }
        let cluster = cluster.map_err(|reason| left_out.push(format!("no cluster was measured: {reason}")));
        SideChoices {
            one_box: one_box.map(|(place, input, plan, kind)| side(kind, vec![place], &input, &plan)),
            cluster: cluster.ok().map(|(input, plan)| {
                let places = plan.stages.iter().map(|stage| stage.device).collect();
                side(SideKind::Cluster, places, &input, &plan)
            }),
            left_out,
        }
    }

    /// The fastest worker of those that hold all of the model, or else of those that may read some of it anew for every
    /// step; and the best plan over several workers.
    fn find(&self, hand: &AtHand) -> Found {
        let faster = |one: &Plan, other: &Plan| {
            one.predicted.decode_tokens_per_s.total_cmp(&other.predicted.decode_tokens_per_s)
        };
        let places = 0..hand.live.devices.len();
        let alone: Vec<(usize, PlanInput)> =
            places.map(|place| (place, (self.input)(&hand.live.only(place), 1))).collect();
        let kind = |plan: &Plan| match plan.stages.iter().any(|stage| stage.streamed_layers > 0) {
            false => SideKind::OneBox,
            true => SideKind::OneBoxWithOffload,
        };
        let found = alone.into_iter().filter_map(|(place, input)| {
            let plan = plan(&self.cost, &input).ok()?;
            let kind = kind(&plan);
            Some((place, input, plan, kind))
        });
        let found: Vec<_> = found.collect();
        let fastest = |wanted| {
            let of_kind = found.iter().filter(|(.., kind)| *kind == wanted);
            of_kind.max_by(|(_, _, one, _), (_, _, other, _)| faster(one, other)).cloned()
        };
        let one_box = fastest(SideKind::OneBox).or_else(|| fastest(SideKind::OneBoxWithOffload));
        let several = hand.min_stages.max(2);
        let cluster = if hand.live.devices.len() < several {
            Err(format!("it takes {several} workers, and there are {}", hand.live.devices.len()))
        } else {
            let input = PlanInput { apart: hand.apart.clone(), ..(self.input)(&hand.live, several) };
            plan(&self.cost, &input).map(|plan| (input, plan)).map_err(|error| error.to_string())
        };
        Found { one_box, cluster }
    }

    /// Why no worker holds the model alone: what the one with the most memory lacks.
    fn why_no_box(&self, hand: &AtHand) -> String {
        let devices = &hand.live.devices;
        let Some((place, largest)) = devices.iter().enumerate().max_by_key(|(_, device)| device.budget)
        else {
            return "no worker is there".to_owned();
        };
        let input = (self.input)(&hand.live.only(place), 1);
        let reason = plan(&self.cost, &input).map_or_else(|error| error.to_string(), |_| String::new());
        let budget: Bytes = largest.budget;
        format!(
            "no one box: no worker holds the model alone, and {}, the largest with {budget}: {reason}",
            largest.name
        )
    }

    fn forecasts(&self, input: &PlanInput, plan: &Plan, loads: &ChoiceLoads) -> Vec<Forecasted> {
        loads.loads().map(|load| Forecasted::new(load, &forecast(&self.cost, input, plan, &load))).collect()
    }
}

impl fmt::Debug for Forecaster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forecaster").finish_non_exhaustive()
    }
}
