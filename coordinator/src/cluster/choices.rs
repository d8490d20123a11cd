//! What a comparison could measure on a cluster's workers: one box, and several of them.

use brigade_shard::cost::Cost;
use brigade_shard::plan::{Forecast, Load, PROMPT_TOKENS, Plan, PlanDevice, PlanInput, choices, plan};
use brigade_shard::units::Bytes;

use crate::compare::SideKind;
use crate::compare::choices::{ChoiceLoads, Forecasted, SideChoice, SideChoices};
use crate::deployment::AtHand;

/// Makes the input of plans, for devices and a least number of stages.
type Input = Box<dyn Fn(&[PlanDevice], usize) -> PlanInput + Send>;

/// Finds them, with what is predicted of each.
pub(super) struct Chooser {
    cost: Cost,
    input: Input,
}

/// The plans of a comparison.
struct Found {
    /// The worker that is the fastest alone, by its place, with its input, its plan and what it is.
    one_box: Option<(usize, PlanInput, Plan, SideKind)>,
    /// Over several.
    cluster: Result<(PlanInput, Plan), String>,
}

impl Chooser {
    pub(super) fn new(
        cost: Cost,
        input: impl Fn(&[PlanDevice], usize) -> PlanInput + Send + 'static,
    ) -> Chooser {
        Chooser { cost, input: Box::new(input) }
    }

    /// What could be measured with the workers at hand.
    pub(super) fn choose(&self, hand: &AtHand, loads: &ChoiceLoads) -> SideChoices {
        let Found { one_box, cluster } = self.find(hand);
        let side = |kind, places: Vec<usize>, input: &PlanInput, plan: &Plan| SideChoice {
            kind,
            workers: places.iter().map(|place| hand.workers[*place].to_string()).collect(),
            names: places.iter().map(|place| hand.devices[*place].name.clone()).collect(),
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
        let alone = hand.devices.iter().enumerate().map(|(place, device)| {
            let input = (self.input)(std::slice::from_ref(device), 1);
            (place, input)
        });
        let alone: Vec<(usize, PlanInput)> = alone.collect();
        let best = |kind, of: &dyn Fn(&PlanInput) -> Option<Plan>| {
            let found =
                alone.iter().filter_map(|(place, input)| Some((*place, input.clone(), of(input)?, kind)));
            found.max_by(|(_, _, one, _), (_, _, other, _)| faster(one, other))
        };
        let one_box = best(SideKind::OneBox, &|input| plan(&self.cost, input).ok())
            .or_else(|| best(SideKind::OneBoxWithOffload, &|input| with_offload(&self.cost, input)));
        let several = hand.min_stages.max(2);
        let cluster = if hand.devices.len() < several {
            Err(format!("it takes {several} workers, and there are {}", hand.devices.len()))
        } else {
            let input = PlanInput { apart: hand.apart.clone(), ..(self.input)(&hand.devices, several) };
            plan(&self.cost, &input).map(|plan| (input, plan)).map_err(|error| error.to_string())
        };
        Found { one_box, cluster }
    }

    /// Why no worker holds the model alone: what the one with the most memory lacks.
    fn why_no_box(&self, hand: &AtHand) -> String {
        let Some(largest) = hand.devices.iter().max_by_key(|device| device.budget) else {
            return "no worker is there".to_owned();
        };
        let input = (self.input)(std::slice::from_ref(largest), 1);
        let reason = plan(&self.cost, &input).map_or_else(|error| error.to_string(), |_| String::new());
        let budget: Bytes = largest.budget;
        format!(
            "no one box: no worker holds the model alone, and {}, the largest with {budget}: {reason}",
            largest.name
        )
    }

    fn forecasts(&self, input: &PlanInput, plan: &Plan, loads: &ChoiceLoads) -> Vec<Forecasted> {
        loads.loads().filter_map(|load| predicted(&self.cost, input, plan, load)).collect()
    }
}

/// A plan over one device that reads some of the model anew for every step; `None` where it may not, or need not.
pub(super) fn with_offload(cost: &Cost, input: &PlanInput) -> Option<Plan> {
    let [device] = &input.devices[..] else { return None };
    device.offload_bytes_per_s?;
    choices(cost, input).ok()?.offload
}

/// What is predicted of a plan under a load, as far as its own prediction says.
fn predicted(cost: &Cost, input: &PlanInput, plan: &Plan, load: Load) -> Option<Forecasted> {
    let _ = (cost, input);
    let speaks = plan.predicted;
    let forecast = Forecast {
        decode_tokens_per_s: speaks.decode_tokens_per_s,
        prompt_tokens_per_s: f64::from(PROMPT_TOKENS) / (speaks.ttft_ms / 1e3),
        ttft_ms: speaks.ttft_ms,
    };
    let known = load.streams == 1 && load.prompt_tokens == PROMPT_TOKENS;
    known.then_some(Forecasted::new(load, &forecast))
}
