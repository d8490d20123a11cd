//! What `brigade plan` has to say: the plan, its speed, power and money, the other ways, and which of them it should be.

use brigade_shard::cost::Cost;
use brigade_shard::plan::{
    Alternative, AlternativeKind, COMFORTABLE_CONTEXT, Choices, Forecast, Load, Objective, Optimality, Plan,
    PlanError, PlanInput, Verdict, alternatives, forecast,
};
use brigade_shard::units::Bytes;
use serde::Serialize;

use super::cluster::{Cluster, DeviceFacts};
use super::economics::{Economics, economics};
use super::what_if::WhatIfRow;
use crate::render::{PlanStage, PlanView};

/// What was asked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Asked {
    /// The model's id, or its name and mix in the catalogue.
    pub name: String,
    /// Where the model's figures are from, for people.
    pub source: String,
    /// Where the devices are from, for people.
    pub place: String,
    /// What the plan is to be best at.
    pub objective: Objective,
    /// Streams at a time, where several are spoken of.
    pub streams: u32,
    /// Length of the prompt that is spoken of, in tokens.
    pub prompt_tokens: u32,
}

/// What is asked of every way that is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Loads {
    /// Sequences that decode at the same time, where several are spoken of.
    pub streams: u32,
    /// Tokens of a prompt, and of each sequence's cache while it decodes.
    pub prompt_tokens: u32,
}

/// A plan with what to expect of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreseen {
    /// How the model lies.
    pub plan: Plan,
    /// With one stream.
    pub one: Forecast,
    /// With as many as are spoken of.
    pub many: Forecast,
}

impl Foreseen {
    /// Foresees what a plan does that was made from `cost` and `input`.
    pub fn of(cost: &Cost, input: &PlanInput, plan: Plan, loads: Loads) -> Foreseen {
        let Loads { streams, prompt_tokens } = loads;
        let under =
            |streams| forecast(cost, input, &plan, &Load { streams, prompt_tokens, context: prompt_tokens });
        let (one, many) = (under(1), under(streams));
        Foreseen { plan, one, many }
    }

    fn devices(&self) -> Vec<usize> {
        self.plan.stages.iter().map(|stage| stage.device).collect()
    }
}

/// Every way to run a model, foreseen.
#[derive(Clone, Debug)]
pub struct Ways {
    /// The best device that holds all of it.
    pub one_box: Option<Foreseen>,
    /// The best that reads for every step what it cannot hold.
    pub offload: Option<Foreseen>,
    /// The best cluster, or why there is none.
    pub cluster: Result<Foreseen, PlanError>,
    /// What the flags prescribe, where they do; it is shown in place of what the verdict names.
    pub as_asked: Option<Foreseen>,
    /// Which it should be.
    pub verdict: Verdict,
    /// What else could be done than the verdict says.
    pub others: Vec<Other>,
}

/// Something else that could be done than what the verdict says.
#[derive(Clone, Debug)]
pub struct Other {
    /// What it is.
    pub what: AlternativeKind,
    /// How it would be, or why it is not possible.
    pub way: Result<Foreseen, String>,
}

impl Ways {
    /// Foresees all ways of `choices`, which were made from `cost` and `input`.
    pub fn of(
        cost: &Cost,
        input: &PlanInput,
        choices: Choices,
        as_asked: Option<Plan>,
        loads: Loads,
    ) -> Ways {
        let foresee = |plan| Foreseen::of(cost, input, plan, loads);
        let others = alternatives(cost, input, &choices).into_iter().map(
            |Alternative { what, plan, reason, .. }| Other { what, way: plan.map(foresee).ok_or(reason) },
        );
        Ways {
            others: others.collect(),
            one_box: choices.one_box.map(foresee),
            offload: choices.offload.map(foresee),
            cluster: choices.cluster.map(foresee),
            as_asked: as_asked.map(foresee),
            verdict: choices.verdict,
        }
    }

    /// The one that is shown: as asked, or by the verdict; `None` where nothing holds the model.
    pub fn shown(&self) -> Option<&Foreseen> {
        self.as_asked.as_ref().or_else(|| self.recommended())
    }

    /// The one that the verdict names; `None` where nothing holds the model.
    pub fn recommended(&self) -> Option<&Foreseen> {
        match self.verdict {
            Verdict::OneBox => self.one_box.as_ref(),
            Verdict::Cluster => self.cluster.as_ref().ok(),
            Verdict::OneBoxWithOffload => self.offload.as_ref(),
            Verdict::NotAtAll { .. } => None,
        }
    }
}

/// All that `brigade plan` has to say; its JSON begins with the fields of a [`PlanView`], where there is a plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PlanReport {
    /// How the model lies.
    #[serde(flatten)]
    pub plan: Option<PlanView>,
    /// What was asked.
    pub asked: Asked,
    /// The devices to plan with.
    pub devices: Vec<DeviceView>,
    /// Layers that are read again for every step.
    pub streamed: Vec<Streamed>,
    /// What to expect.
    pub forecast: Option<Expected>,
    /// Power and money.
    pub economics: Option<Economics>,
    /// How good the plan is among all.
    pub optimality: Option<Optimality>,
    /// What should be done.
    pub verdict: VerdictView,
    /// The ways that were looked at, the one that is shown first.
    pub ways: Vec<Way>,
    /// What one more device would bring, the best first; empty where that was not asked.
    pub what_if: Vec<WhatIfRow>,
}

/// A device to plan with.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceView {
    /// Its name.
    pub name: String,
    /// What it may use for weights, cache and workspace.
    pub budget_bytes: Bytes,
    /// Weight bytes per second that it is planned with.
    pub bandwidth_bytes_per_s: f64,
    /// Floating-point operations per second that it is planned with; `None` where nobody says.
    pub flops_per_s: Option<f64>,
    /// Bytes per second at which it may read what it does not hold.
    pub offload_bytes_per_s: Option<f64>,
    /// What else is known.
    #[serde(flatten)]
    pub facts: DeviceFacts,
}

/// Layers that a stage reads again for every step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Streamed {
    /// The stage's device.
    pub device: String,
    /// How many of its layers, the last ones.
    pub layers: usize,
    /// How fast, in bytes per second.
    pub bytes_per_s: f64,
}

/// What to expect.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Expected {
    /// Tokens per second of one stream.
    pub one_stream_tokens_per_s: f64,
    /// Tokens per second of all streams together.
    pub many_streams_tokens_per_s: f64,
    /// Tokens per second of a prompt; `None` where nobody says how fast a device computes.
    pub prompt_tokens_per_s: Option<f64>,
    /// To a prompt's first token, in milliseconds; `None` as above.
    pub ttft_ms: Option<f64>,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VerdictView {
    /// One box, cluster, one box with offload, or not at all.
    #[serde(flatten)]
    pub kind: VerdictKind,
    /// In a sentence.
    pub sentence: String,
}

/// A [`Verdict`] as JSON has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum VerdictKind {
    /// One device alone.
    OneBox,
    /// Several.
    Cluster,
    /// One that reads for every step what it cannot hold.
    OneBoxWithOffload,
    /// Nothing holds it.
    NotAtAll {
        /// Memory that is missing.
        missing_bytes: Bytes,
    },
}

impl From<Verdict> for VerdictKind {
    fn from(verdict: Verdict) -> VerdictKind {
        match verdict {
            Verdict::OneBox => VerdictKind::OneBox,
            Verdict::Cluster => VerdictKind::Cluster,
            Verdict::OneBoxWithOffload => VerdictKind::OneBoxWithOffload,
            Verdict::NotAtAll { missing } => VerdictKind::NotAtAll { missing_bytes: missing },
        }
    }
}

/// A way that was looked at.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Way {
    /// What it is, for people.
    pub what: String,
    /// Whether it is the one that is shown.
    pub shown: bool,
    /// Names of the devices that it uses.
    pub devices: Vec<String>,
    /// What to expect; `None` where it is not possible.
    pub forecast: Option<Expected>,
    /// Power and money.
    pub economics: Option<Economics>,
    /// Why it is taken, or not.
    pub reason: String,
}

/// Writes the report. `weights` are all of the model's, and `layers` their number.
pub fn report(
    asked: Asked,
    cluster: &Cluster,
    input: &PlanInput,
    ways: &Ways,
    (weights, layers): (Bytes, usize),
) -> PlanReport {
    let reader = Reader { asked: &asked, cluster, input };
    let shown = ways.shown();
    PlanReport {
        plan: shown.map(|shown| reader.view(&shown.plan, weights, layers)),
        devices: reader.devices(),
        streamed: shown.map(|shown| reader.streamed(&shown.plan)).unwrap_or_default(),
        forecast: shown.map(|shown| reader.expected(shown)),
        economics: shown.map(|shown| reader.economics(shown)),
        optimality: shown.map(|shown| shown.plan.optimality),
        verdict: VerdictView { kind: ways.verdict.into(), sentence: reader.sentence(ways) },
        ways: reader.ways(ways),
        what_if: Vec::new(),
        asked,
    }
}

/// What all parts of a report are made from.
struct Reader<'a> {
    asked: &'a Asked,
    cluster: &'a Cluster,
    input: &'a PlanInput,
}

impl Reader<'_> {
    fn name(&self, device: usize) -> &str {
        self.input.devices.get(device).map_or("?", |device| device.name.as_str())
    }

    fn names(&self, way: &Foreseen) -> Vec<String> {
        way.devices().into_iter().map(|device| self.name(device).to_owned()).collect()
    }

    fn devices(&self) -> Vec<DeviceView> {
        let each = self.input.devices.iter().zip(&self.cluster.facts);
        let views = each.map(|(device, facts)| DeviceView {
            name: device.name.clone(),
            budget_bytes: device.budget,
            bandwidth_bytes_per_s: device.bandwidth_bytes_per_s,
            flops_per_s: Some(device.flops_per_s).filter(|_| facts.arithmetic_known),
            offload_bytes_per_s: device.offload_bytes_per_s,
            facts: facts.clone(),
        });
        views.collect()
    }

    fn knows_arithmetic(&self, plan: &Plan) -> bool {
        self.cluster.of_unknown_arithmetic(plan.stages.iter().map(|stage| stage.device)).is_empty()
    }

    fn view(&self, plan: &Plan, weights: Bytes, layers: usize) -> PlanView {
        let stages = plan.stages.iter().map(|stage| PlanStage {
            worker: self.name(stage.device).to_owned(),
            shard: stage.shard,
            weight_bytes: stage.memory.weights,
            cache_bytes: stage.memory.cache,
            workspace_bytes: stage.memory.workspace,
            budget_bytes: self.input.devices.get(stage.device).map_or(Bytes::ZERO, |device| device.budget),
        });
        let unused = plan
            .unused
            .iter()
            .map(|unused| format!("{} is not used: {}", self.name(unused.device), unused.reason));
        PlanView {
            model: self.asked.name.clone(),
            layers: u32::try_from(layers).unwrap_or(u32::MAX),
            weight_bytes: weights,
            stages: stages.collect(),
            context: plan.context,
            cache_tokens: plan.cache_tokens,
            decode_tokens_per_s: plan.predicted.decode_tokens_per_s,
            throughput_tokens_per_s: Some(plan.predicted.throughput_tokens_per_s),
            ttft_ms: Some(plan.predicted.ttft_ms).filter(|_| self.knows_arithmetic(plan)),
            bottleneck: plan.bottleneck.clone(),
            notes: plan
                .notes
                .iter()
                .cloned()
                .chain(unused)
                .chain(self.cluster.notes.iter().cloned())
                .chain(self.long_prompt(plan))
                .collect(),
        }
    }

    /// That the prompt spoken of would not be taken.
    fn long_prompt(&self, plan: &Plan) -> Option<String> {
        let (prompt, context) = (self.asked.prompt_tokens, plan.context);
        (prompt >= context).then(|| {
            format!("a prompt of {prompt} tokens leaves no room for an answer in a context of {context}; lower --prompt")
        })
    }

    fn streamed(&self, plan: &Plan) -> Vec<Streamed> {
        let stages = plan.stages.iter().filter(|stage| stage.streamed_layers > 0);
        let streamed = stages.filter_map(|stage| {
            let bytes_per_s = self.input.devices.get(stage.device)?.offload_bytes_per_s?;
            Some(Streamed {
                device: self.name(stage.device).to_owned(),
                layers: stage.streamed_layers,
                bytes_per_s,
            })
        });
        streamed.collect()
    }

    fn expected(&self, way: &Foreseen) -> Expected {
        let known = self.knows_arithmetic(&way.plan);
        Expected {
            one_stream_tokens_per_s: way.one.decode_tokens_per_s,
            many_streams_tokens_per_s: way.many.decode_tokens_per_s,
            prompt_tokens_per_s: Some(way.one.prompt_tokens_per_s).filter(|_| known),
            ttft_ms: Some(way.one.ttft_ms).filter(|_| known),
        }
    }

    fn economics(&self, way: &Foreseen) -> Economics {
        economics(self.cluster, &way.devices(), self.asked.streams, way.many.decode_tokens_per_s)
    }

    /// What the objective looks at, in tokens per second.
    fn figure(&self, way: &Foreseen) -> f64 {
        self.figure_for(self.asked.objective, way)
    }

    fn figure_for(&self, objective: Objective, way: &Foreseen) -> f64 {
        match objective {
            Objective::OneStream => way.one.decode_tokens_per_s,
            Objective::ManyStreams => way.many.decode_tokens_per_s,
        }
    }

    /// For what it is told.
    fn streams(&self) -> String {
        self.streams_for(self.asked.objective)
    }

    fn streams_for(&self, objective: Objective) -> String {
        match (objective, self.asked.streams) {
            (Objective::OneStream, _) | (Objective::ManyStreams, 1) => "for one stream".to_owned(),
            (Objective::ManyStreams, streams) => format!("over {streams} streams"),
        }
    }

    fn sentence(&self, ways: &Ways) -> String {
        let rate = |way: &Foreseen| speed(self.figure(way));
        let streams = self.streams();
        let first = |way: &Foreseen| self.names(way).into_iter().next().unwrap_or_default();
        let box_alone = ways.one_box.as_ref();
        let cluster = ways.cluster.as_ref().ok();
        match (ways.verdict, ways.recommended()) {
            (Verdict::NotAtAll { missing }, _) => {
                format!("not at all: nothing here holds the model, {missing} of memory are missing")
            }
            (Verdict::OneBox, Some(way)) => {
                let other = cluster.map(|cluster| {
                    format!(", the best cluster, {}, {}", listed(&self.names(cluster)), rate(cluster))
                });
                let (name, other) = (first(way), other.unwrap_or_default());
                format!("one box, do not split: {name} alone decodes {} {streams}{other}", rate(way))
            }
            (Verdict::Cluster, Some(way)) => {
                let names = listed(&self.names(way));
                let against = match (box_alone, &ways.offload) {
                    (Some(alone), _) => format!("{} alone {}", first(alone), rate(alone)),
                    (None, Some(offload)) => format!(
                        "no device holds the model alone, and {} with offload decodes {}",
                        first(offload),
                        rate(offload)
                    ),
                    (None, None) => "no device holds the model alone".to_owned(),
                };
                format!("cluster: {names} together decode {} {streams}; {against}", rate(way))
            }
            (Verdict::OneBoxWithOffload, Some(way)) => {
                let other = match cluster {
                    Some(cluster) => {
                        format!("the best cluster, {}, {}", listed(&self.names(cluster)), rate(cluster))
                    }
                    None => "nothing here holds all of the model".to_owned(),
                };
                format!(
                    "one box with offload: {} reads for every step what it cannot hold and decodes {} {streams}; {other}",
                    first(way),
                    rate(way)
                )
            }
            (verdict, None) => {
                // The planner names a way that it has found.
                format!("{verdict:?} without a plan: please report this")
            }
        }
    }

    fn ways(&self, ways: &Ways) -> Vec<Way> {
        let mut all: Vec<Way> = Vec::new();
        let mut add = |what: &str, way: &Foreseen, reason: String| {
            all.push(Way {
                what: what.to_owned(),
                // What is asked for may be what is recommended; it is shown once.
                shown: ways.shown() == Some(way) && !all.iter().any(|other| other.shown),
                devices: self.names(way),
                forecast: Some(self.expected(way)),
                economics: Some(self.economics(way)),
                reason,
            });
        };
        let best = ways.recommended();
        let found = [
            ("as asked", ways.as_asked.as_ref()),
            ("one box", ways.one_box.as_ref()),
            ("one box with offload", ways.offload.as_ref()),
            ("cluster", ways.cluster.as_ref().ok()),
        ];
        for (what, way) in found {
            way.into_iter().for_each(|way| add(what, way, self.reason(way, best)));
        }
        let beside = ways.others.iter().filter_map(|other| Some((self.beside(other.what)?, other)));
        for (what, other) in beside.clone() {
            let Ok(way) = &other.way else { continue };
            let reason = match (other.what, best) {
                (AlternativeKind::OtherObjective, Some(best)) => self.for_other_objective(way, best),
                _ => self.reason(way, best),
            };
            add(what, way, reason);
        }
        let impossible = |what: &str, reason: &str| Way {
            what: what.to_owned(),
            shown: false,
            devices: Vec::new(),
            forecast: None,
            economics: None,
            reason: reason.to_owned(),
        };
        all.extend(beside.filter_map(|(what, other)| Some(impossible(what, other.way.as_ref().err()?))));
        if ways.one_box.is_none() {
            let other = ways.others.iter().find(|other| other.what == AlternativeKind::OneBox);
            let reason = other.and_then(|other| other.way.as_ref().err());
            all.push(impossible(
                "one box",
                reason.map_or("no device holds all of the model", String::as_str),
            ));
            if !self.input.devices.iter().any(|device| device.offload_bytes_per_s.is_some()) {
                let none =
                    "no device may read what it cannot hold; allow it with --offload and --offload-rate";
                all.push(impossible("one box with offload", none));
            }
        }
        if let Err(error) = &ways.cluster {
            let reason = match self.input.devices.len() {
                1 => "there is a single device".to_owned(),
                _ => error.to_string(),
            };
            all.push(impossible("cluster", &reason));
        }
        all.sort_by_key(|way| !way.shown);
        all
    }

    /// What is told beside one box and cluster, in words.
    fn beside(&self, kind: AlternativeKind) -> Option<&'static str> {
        match (kind, self.asked.objective) {
            (AlternativeKind::FewerStages, _) => Some("one stage less"),
            (AlternativeKind::MoreStages, _) => Some("one stage more"),
            (AlternativeKind::OtherObjective, Objective::OneStream) => Some("best for many streams"),
            (AlternativeKind::OtherObjective, Objective::ManyStreams) => Some("best for one stream"),
            (AlternativeKind::OneBox | AlternativeKind::OneBoxWithOffload | AlternativeKind::Cluster, _) => {
                None
            }
        }
    }

    /// What the way brings that is best for the objective that was not asked for.
    fn for_other_objective(&self, way: &Foreseen, best: &Foreseen) -> String {
        let other = match self.asked.objective {
            Objective::OneStream => Objective::ManyStreams,
            Objective::ManyStreams => Objective::OneStream,
        };
        let rate = |way| speed(self.figure_for(other, way));
        format!("{} {} against {}", rate(way), self.streams_for(other), rate(best))
    }

    /// Why a way is taken, or is not.
    fn reason(&self, way: &Foreseen, best: Option<&Foreseen>) -> String {
        let Some(best) = best.filter(|best| *best != way) else {
            return "recommended".to_owned();
        };
        let (rate, of_best) = (self.figure(way), self.figure(best));
        let (stages, fewer) = (way.plan.stages.len(), best.plan.stages.len());
        let rates = format!("{} {} against {}", speed(rate), self.streams(), speed(of_best));
        let comfort = |way: &Foreseen| way.plan.context.min(COMFORTABLE_CONTEXT);
        if comfort(way) < comfort(best) {
            let (context, longer) = (way.plan.context, best.plan.context);
            format!("its context would be {context} tokens against {longer}; {rates}")
        } else if rate > of_best && stages > fewer {
            format!("{rates}, which is not worth {stages} stages instead of {fewer}")
        } else {
            rates
        }
    }
}

/// Names in a sentence.
fn listed(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [name] => name.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

/// Tokens per second, with a digit more where there are few.
pub(crate) fn speed(tokens_per_s: f64) -> String {
    if tokens_per_s < 10.0 {
        format!("{tokens_per_s:.2} tokens/s")
    } else {
        format!("{tokens_per_s:.1} tokens/s")
    }
}

#[cfg(test)]
mod tests;
