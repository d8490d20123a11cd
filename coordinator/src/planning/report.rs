//! What `brigade plan` has to say: the plan, its speed, power and money, the other ways, and which of them it should be.

use brigade_shard::cost::Cost;
use brigade_shard::plan::{
    Alternative, AlternativeKind, Choices, Forecast, Load, Objective, Optimality, PROMPT_TOKENS, Plan,
    PlanError, PlanInput, Prediction, Verdict, alternatives, forecast,
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
    /// What else could be done than the verdict says, and why it is not.
    pub alternatives: Vec<Alternative>,
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
        Ways {
            alternatives: alternatives(cost, input, &choices),
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
                .collect(),
        }
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
        match self.asked.objective {
            Objective::OneStream => way.one.decode_tokens_per_s,
            Objective::ManyStreams => way.many.decode_tokens_per_s,
        }
    }

    /// For what it is told.
    fn streams(&self) -> String {
        match (self.asked.objective, self.asked.streams) {
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
        use AlternativeKind::{Cluster, FewerStages, MoreStages, OneBox, OneBoxWithOffload, OtherObjective};
        let found = [
            ("as asked", None, ways.as_asked.as_ref()),
            ("one box", Some(OneBox), ways.one_box.as_ref()),
            ("one box with offload", Some(OneBoxWithOffload), ways.offload.as_ref()),
            ("cluster", Some(Cluster), ways.cluster.as_ref().ok()),
        ];
        let reason = |kind: Option<AlternativeKind>| {
            let against = ways.alternatives.iter().find(|other| Some(other.what) == kind);
            against.map(|other| other.reason.clone())
        };
        let mut all: Vec<Way> = Vec::new();
        for (what, kind, way) in found {
            let Some(way) = way else { continue };
            all.push(Way {
                what: what.to_owned(),
                // What is asked for may be what is recommended; it is shown once.
                shown: ways.shown() == Some(way) && !all.iter().any(|other| other.shown),
                devices: self.names(way),
                forecast: Some(self.expected(way)),
                economics: Some(self.economics(way)),
                reason: reason(kind).unwrap_or_else(|| self.against_best(way, ways.recommended())),
            });
        }
        let other = match self.asked.objective {
            Objective::OneStream => "best for many streams",
            Objective::ManyStreams => "best for one stream",
        };
        for (what, kind) in
            [("one stage less", FewerStages), ("one stage more", MoreStages), (other, OtherObjective)]
        {
            all.extend(
                ways.alternatives
                    .iter()
                    .find(|other| other.what == kind)
                    .map(|found| self.other(what, found)),
            );
        }
        let impossible = |what: &str, reason: String| Way {
            what: what.to_owned(),
            shown: false,
            devices: Vec::new(),
            forecast: None,
            economics: None,
            reason,
        };
        if ways.one_box.is_none() {
            let none = reason(Some(OneBox)).unwrap_or_else(|| "no device holds all of the model".to_owned());
            all.push(impossible("one box", none));
            if !self.input.devices.iter().any(|device| device.offload_bytes_per_s.is_some()) {
                let none =
                    "no device may read what it cannot hold; allow it with --offload RATE, such as 7GB/s";
                all.push(impossible("one box with offload", none.to_owned()));
            }
        }
        if let Err(error) = &ways.cluster {
            let none = match self.input.devices.len() {
                1 => "there is a single device".to_owned(),
                _ => error.to_string(),
            };
            all.push(impossible("cluster", none));
        }
        all.sort_by_key(|way| !way.shown);
        all
    }

    /// A way of which the planner alone speaks.
    fn other(&self, what: &str, found: &Alternative) -> Way {
        let known = self.cluster.of_unknown_arithmetic(found.devices.iter().copied()).is_empty();
        // The planner speaks of one length of prompts.
        let ttft = known && self.asked.prompt_tokens == PROMPT_TOKENS;
        let many = |predicted: &Prediction| predicted.throughput_tokens_per_s;
        Way {
            what: what.to_owned(),
            shown: false,
            devices: found.devices.iter().map(|device| self.name(*device).to_owned()).collect(),
            forecast: found.predicted.map(|predicted| Expected {
                one_stream_tokens_per_s: predicted.decode_tokens_per_s,
                many_streams_tokens_per_s: many(&predicted),
                prompt_tokens_per_s: None,
                ttft_ms: Some(predicted.ttft_ms).filter(|_| ttft),
            }),
            economics: found.predicted.map(|predicted| {
                economics(self.cluster, &found.devices, self.input.parallel, many(&predicted))
            }),
            reason: found.reason.clone(),
        }
    }

    /// How a way compares with the one that is recommended.
    fn against_best(&self, way: &Foreseen, best: Option<&Foreseen>) -> String {
        let Some(best) = best.filter(|best| *best != way) else {
            return "recommended".to_owned();
        };
        let rates =
            format!("{} {} against {}", speed(self.figure(way)), self.streams(), speed(self.figure(best)));
        match (way.plan.stages.len(), best.plan.stages.len()) {
            (stages, fewer) if stages > fewer => format!("{rates} in {fewer} instead of {stages} stages"),
            _ => rates,
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
