//! One box, a cluster, one box that reads some of the model anew for every step, or not at all.

use serde::Serialize;

use super::{
    COMFORTABLE_CONTEXT, Objective, Plan, PlanError, PlanInput, Prediction, UnusedDevice, WORTHWHILE_GAIN,
    check, plan, plan_into,
};
use crate::cost::Cost;
use crate::units::Bytes;

/// What should be done with these devices and this model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// One device alone is about as fast as all of them, or faster: do not split.
    OneBox,
    /// Several devices together are faster by [`WORTHWHILE_GAIN`], make room for a context that one does not, or are the
    /// only way.
    Cluster,
    /// One device that reads for every step what it cannot hold is about as fast as all of them, or the only way.
    OneBoxWithOffload,
    /// Nothing holds it: so much memory is missing.
    NotAtAll {
        /// Bytes that the devices lack together.
        missing: Bytes,
    },
}

/// The ways to run a model on some devices, each the best of its kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    /// The fastest device that holds all of it; `None` where none does.
    pub one_box: Option<Plan>,
    /// The fastest device of those that may read for every step what they cannot hold; `None` where none may, or where
    /// one holds all of it.
    pub offload: Option<Plan>,
    /// The best partition into two stages or more.
    pub cluster: Result<Plan, PlanError>,
    /// Which of them it should be.
    pub verdict: Verdict,
}

impl Choices {
    /// The plan that the verdict is for; `None` where nothing holds the model.
    pub fn chosen(&self) -> Option<&Plan> {
        match self.verdict {
            Verdict::OneBox => self.one_box.as_ref(),
            Verdict::OneBoxWithOffload => self.offload.as_ref(),
            Verdict::Cluster => self.cluster.as_ref().ok(),
            Verdict::NotAtAll { .. } => None,
        }
    }
}

/// Looks at all ways to run the model that `cost` describes on the input's devices, for the input's objective.
///
/// # Errors
/// Where the input contradicts itself or the model, or memory is not what is missing. That nothing holds the model is a
/// [`Verdict`].
pub fn choices(cost: &Cost, input: &PlanInput) -> Result<Choices, PlanError> {
    let min_stages = input.min_stages.max(1);
    check(cost, input, min_stages)?;
    let one_box = fastest_alone(cost, input, false);
    let offload = if one_box.is_none() { fastest_alone(cost, input, true) } else { None };
    let cluster = plan(cost, &PlanInput { min_stages: min_stages.max(2), ..input.clone() });
    let worth = |alone: &Plan| cluster.as_ref().is_ok_and(|all| is_worth_more(all, alone, input.objective));
    let verdict = match (&one_box, &offload, &cluster) {
        (Some(alone), _, _) if worth(alone) => Verdict::Cluster,
        (Some(_), _, _) => Verdict::OneBox,
        (None, Some(alone), Ok(_)) if worth(alone) => Verdict::Cluster,
        (None, Some(_), _) => Verdict::OneBoxWithOffload,
        (None, None, Ok(_)) => Verdict::Cluster,
        (None, None, Err(_)) => not_at_all(cost, input, &cluster)?,
    };
    Ok(Choices { one_box, offload, cluster, verdict })
}

/// What is missing where no plan can be made.
fn not_at_all(
    cost: &Cost,
    input: &PlanInput,
    cluster: &Result<Plan, PlanError>,
) -> Result<Verdict, PlanError> {
    match (plan(cost, &PlanInput { min_stages: 1, ..input.clone() }), cluster) {
        (Err(PlanError::TooLittleMemory(shortage)), _) => Ok(Verdict::NotAtAll { missing: shortage.missing }),
        // There would be a plan with fewer stages, or another split.
        (Ok(_), Err(PlanError::TooLittleMemory(shortage))) => {
            Ok(Verdict::NotAtAll { missing: shortage.missing })
        }
        (Err(error), _) => Err(error),
        (Ok(_), Err(error)) => Err(error.clone()),
        (Ok(_), Ok(_)) => Ok(Verdict::Cluster),
    }
}

/// Whether a plan is worth more machines than another.
fn is_worth_more(plan: &Plan, other: &Plan, objective: Objective) -> bool {
    let comfort = |plan: &Plan| plan.context.min(COMFORTABLE_CONTEXT);
    let gain = objective.speed(&plan.predicted) / objective.speed(&other.predicted);
    comfort(plan) > comfort(other) || (comfort(plan) == comfort(other) && gain > WORTHWHILE_GAIN)
}

/// The plan of the device that is best alone; with `offload` only of those that read again what they cannot hold.
fn fastest_alone(cost: &Cost, input: &PlanInput, offload: bool) -> Option<Plan> {
    let comfort = |plan: &Plan| plan.context.min(COMFORTABLE_CONTEXT);
    let alone = |device: usize| {
        let mut alone = PlanInput { min_stages: 1, split: Vec::new(), ..input.only(&[device]) };
        if !offload {
            alone.devices[0].offload_bytes_per_s = None;
        }
        let mut found = plan(cost, &alone).ok()?;
        found.stages.iter_mut().for_each(|stage| stage.device = device);
        let others = (0..input.devices.len()).filter(|other| *other != device);
        let reason = || format!("{} is looked at alone", input.devices[device].name);
        found.unused.extend(others.map(|other| UnusedDevice { device: other, reason: reason() }));
        Some(found)
    };
    let speed = |plan: &Plan| input.objective.speed(&plan.predicted);
    let better = |best: Plan, next: Plan| {
        let more = comfort(&next).cmp(&comfort(&best)).then(speed(&next).total_cmp(&speed(&best)));
        if more.is_gt() { next } else { best }
    };
    (0..input.devices.len()).filter_map(alone).reduce(better)
}

/// What else could be done than what was chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Alternative {
    /// What it is.
    pub what: AlternativeKind,
    /// Its devices, as indices into [`PlanInput::devices`] in the order of the pipeline; empty where there is no plan.
    pub devices: Vec<usize>,
    /// What to expect of it; `None` where there is no such plan.
    pub predicted: Option<Prediction>,
    /// The plan itself.
    #[serde(skip)]
    pub plan: Option<Plan>,
    /// Why it was not chosen, for people.
    pub reason: String,
}

/// What an [`Alternative`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AlternativeKind {
    /// One device that holds all of the model.
    OneBox,
    /// One device that reads for every step what it cannot hold.
    OneBoxWithOffload,
    /// As many stages as are best, two or more.
    Cluster,
    /// One stage less than what was chosen.
    FewerStages,
    /// One stage more than what was chosen.
    MoreStages,
    /// What would be chosen for the other objective.
    OtherObjective,
}

/// The alternatives to what was chosen, with the reasons against them, given the input that the choices were made for.
pub fn alternatives(cost: &Cost, input: &PlanInput, choices: &Choices) -> Vec<Alternative> {
    let Some(chosen) = choices.chosen() else { return Vec::new() };
    let mut found = Vec::new();
    let against = |what, plan: &Plan| Alternative {
        what,
        devices: plan.stages.iter().map(|stage| stage.device).collect(),
        predicted: Some(plan.predicted),
        plan: Some(plan.clone()),
        reason: comparison(plan, chosen, input.objective),
    };
    let without =
        |what, reason: String| Alternative { what, devices: Vec::new(), predicted: None, plan: None, reason };
    match &choices.one_box {
        Some(_) if choices.verdict == Verdict::OneBox => {}
        Some(alone) => found.push(against(AlternativeKind::OneBox, alone)),
        None => found.push(without(AlternativeKind::OneBox, nobody_alone(cost, input))),
    }
    match &choices.offload {
        Some(alone) if choices.verdict != Verdict::OneBoxWithOffload => {
            found.push(against(AlternativeKind::OneBoxWithOffload, alone));
        }
        _ => {}
    }
    match &choices.cluster {
        Ok(_) if choices.verdict == Verdict::Cluster => {
            let stages = chosen.stages.len();
            for (what, stages) in
                [(AlternativeKind::FewerStages, stages - 1), (AlternativeKind::MoreStages, stages + 1)]
            {
                let most = input.devices.len().min(cost.layer_count());
                if stages < input.min_stages.max(2) || stages > most || !input.split.is_empty() {
                    continue;
                }
                found.push(match plan_into(cost, input, stages) {
                    Some(plan) => against(what, &plan),
                    None => without(what, format!("the model does not fit into {stages} stages")),
                });
            }
        }
        Ok(cluster) => found.push(against(AlternativeKind::Cluster, cluster)),
        Err(PlanError::TooFewDevices { .. } | PlanError::MoreStagesThanLayers { .. }) => {}
        Err(error) => found.push(without(AlternativeKind::Cluster, error.to_string())),
    }
    let (objective, aim) = match input.objective {
        Objective::ManyStreams => (Objective::OneStream, "one stream"),
        Objective::OneStream => (Objective::ManyStreams, "many streams"),
    };
    if let Ok(plan) = plan(cost, &PlanInput { objective, ..input.clone() })
        && plan
            .stages
            .iter()
            .map(|stage| (stage.device, stage.shard))
            .ne(chosen.stages.iter().map(|stage| (stage.device, stage.shard)))
    {
        let (now, then) = (objective.speed(&chosen.predicted), objective.speed(&plan.predicted));
        let reason = format!("it is best for {aim}: {then:.1} tokens/s against {now:.1}");
        found.push(Alternative { reason, ..against(AlternativeKind::OtherObjective, &plan) });
    }
    found
}

/// How a plan compares with what was chosen, in words.
fn comparison(plan: &Plan, chosen: &Plan, objective: Objective) -> String {
    let aim = match objective {
        Objective::ManyStreams => "for all streams together",
        Objective::OneStream => "for one stream",
    };
    let (speed, best) = (objective.speed(&plan.predicted), objective.speed(&chosen.predicted));
    let figures = format!("{speed:.1} tokens/s {aim} against {best:.1}");
    if plan.context.min(COMFORTABLE_CONTEXT) < chosen.context.min(COMFORTABLE_CONTEXT) {
        format!("its context would be {} tokens against {}; {figures}", plan.context, chosen.context)
    } else if speed > best {
        let (stages, fewer) = (plan.stages.len(), chosen.stages.len());
        format!("{figures}, which is not worth {stages} stages instead of {fewer}")
    } else {
        figures
    }
}

/// Why no device holds the model alone.
fn nobody_alone(cost: &Cost, input: &PlanInput) -> String {
    let alone = |device: usize| {
        let mut alone = PlanInput { min_stages: 1, split: Vec::new(), ..input.only(&[device]) };
        alone.devices[0].offload_bytes_per_s = None;
        match plan(cost, &alone) {
            Err(PlanError::TooLittleMemory(shortage)) => Some((shortage.missing, device)),
            _ => None,
        }
    };
    match (0..input.devices.len()).filter_map(alone).min() {
        Some((missing, device)) => {
            format!("no device holds all of the model: {} lacks {missing}", input.devices[device].name)
        }
        None => "no device can compute all of the model".to_owned(),
    }
}
