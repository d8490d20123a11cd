//! One side of a comparison, measured turn after turn.

use std::collections::{BTreeMap, BTreeSet};

use super::choices::SideChoice;
use super::run::CompareError;
use super::watch::{Seen, watch};
use super::{Figure, LoadShares, Quantity, Side, StageShares};
use crate::bench::{
    Figures, LeftOut, Prompts, Record, SETTLE, Sampling, Test, TestKind, fitting, median, repeat, warm_up,
};
use crate::client::Client;
use crate::render::PlanView;
use crate::status::ClusterStatus;

/// A side with what was measured of it so far.
pub(super) struct Measured {
    pub(super) choice: SideChoice,
    plan: Option<PlanView>,
    tests: Vec<Samples>,
    seen: Seen,
    /// Tests that it has no room for.
    left_out: Vec<String>,
}

/// A test's samples, one for each turn.
struct Samples {
    test: Test,
    record: Record,
    ttft_ms: Vec<f64>,
    joules_per_token: Vec<f64>,
}

impl Measured {
    pub(super) fn new(choice: SideChoice) -> Measured {
        Measured { choice, plan: None, tests: Vec::new(), seen: Seen::default(), left_out: Vec::new() }
    }

    /// Measures each of `tests` that fits once, on the plan that serves in this state.
    pub(super) async fn turn(
        &mut self,
        client: &Client,
        tests: &[Test],
        seed: u64,
        status: &ClusterStatus,
        tell: &mut (dyn FnMut(&str) + Send),
    ) -> Result<(), CompareError> {
        if self.plan.is_none() {
            self.plan = Some(PlanView::of_cluster(status));
            self.take(tests, status);
        }
        let sampling = Sampling { model: status.model.id.clone(), temperature: 1.0, seed };
        let mut prompts = Prompts::new(seed, status.model.vocabulary);
        let fit: Vec<Test> = self.tests.iter().map(|samples| samples.test).collect();
        if fit.is_empty() {
            return Ok(());
        }
        tell(&format!("{}: warming up", self.choice.title()));
        warm_up(client, &fit, &sampling, &mut prompts).await?;
        for samples in &mut self.tests {
            let test = samples.test;
            tell(&format!("{}: {test}, {} stream(s)", self.choice.title(), test.streams));
            tokio::time::sleep(SETTLE).await;
            let before = client.status().await?;
            let run = repeat(client, &test, &sampling, &mut prompts);
            let (repetition, mut seen) = watch(client, &self.choice.workers, run).await;
            let repetition = repetition?;
            tokio::time::sleep(SETTLE).await;
            let after = client.status().await?;
            samples.record.add(&test, &repetition, &before, &after)?;
            seen.end(&after, &self.choice.workers);
            match test.kind {
                TestKind::Prompt { .. } => {
                    samples.ttft_ms.push(median(&Figures::of(&test, &repetition)?.ttft_ms));
                }
                TestKind::Decode { tokens, .. } => {
                    let tokens = f64::from(tokens) * f64::from(test.streams);
                    samples
                        .joules_per_token
                        .extend(seen.joules(repetition.took).map(|joules| joules / tokens));
                }
            }
            self.seen.add(seen);
        }
        Ok(())
    }

    /// Sorts out what there is no room for.
    fn take(&mut self, tests: &[Test], status: &ClusterStatus) {
        let needed = |test: &Test| test.prompt_tokens().saturating_add(test.answer_tokens());
        let (short, long): (Vec<Test>, Vec<Test>) =
            tests.iter().partition(|test| needed(test) <= status.context);
        let title = self.choice.title();
        self.left_out.extend(long.iter().map(|test| {
            let (needed, context) = (needed(test), status.context);
            format!("{title}: {test} needs a context of {needed} tokens, and here are {context}")
        }));
        let (fit, left_out) = match fitting(&short, status) {
            Ok(found) => found,
            Err(_) if short.is_empty() => return,
            Err(reason) => return self.left_out.push(format!("{title}: {reason}")),
        };
        self.left_out.extend(left_out.iter().map(|LeftOut { reason, .. }| format!("{title}: {reason}")));
        self.tests.extend(fit.into_iter().map(|test| Samples {
            test,
            record: Record::new(&test),
            ttft_ms: Vec::new(),
            joules_per_token: Vec::new(),
        }));
    }

    /// Whether anything of it could be measured.
    pub(super) fn is_measured(&self) -> bool {
        self.tests.iter().any(|samples| !samples.record.samples_ts.is_empty())
    }

    /// Whether other requests ran meanwhile.
    pub(super) fn is_disturbed(&self) -> bool {
        self.tests.iter().any(|samples| samples.record.disturbed)
    }

    /// What it comes to, with what could not be measured of it in `left_out`.
    pub(super) fn end(self, rounds: u32, left_out: &mut Vec<String>) -> Side {
        let title = self.choice.title();
        left_out.extend(self.left_out);
        let (mut figures, mut energy, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        let mut short = Vec::new();
        for samples in self.tests {
            let quantity = quantity(&samples.test);
            let figure = |quantity, values| Figure::of(quantity, values, self.choice.predicted(quantity));
            shares.push(load_shares(quantity, &samples.record));
            figures.extend(figure(quantity, samples.record.samples_ts));
            match samples.test.kind {
                TestKind::Prompt { tokens } => {
                    figures.extend(figure(Quantity::Ttft { tokens }, samples.ttft_ms))
                }
                TestKind::Decode { .. } if samples.joules_per_token.len() == rounds as usize => {
                    let streams = samples.test.streams;
                    energy.extend(figure(Quantity::Energy { streams }, samples.joules_per_token));
                }
                TestKind::Decode { .. } => short.push(samples.test.streams.to_string()),
            }
        }
        left_out.extend(energy_left_out(&title, &self.seen, &short));
        figures.extend(energy);
        let resident: BTreeMap<String, u64> = self.seen.resident;
        Side {
            kind: self.choice.kind,
            name: title,
            plan: self.plan,
            figures,
            shares,
            resident: resident.into_iter().collect(),
        }
    }
}

/// What a test measures first of all.
fn quantity(test: &Test) -> Quantity {
    match test.kind {
        TestKind::Prompt { tokens } => Quantity::Prompt { tokens },
        TestKind::Decode { .. } => Quantity::Decode { streams: test.streams },
    }
}

fn load_shares(quantity: Quantity, record: &Record) -> LoadShares {
    let stages = record.stages.iter().map(|stage| StageShares {
        worker: stage.worker.clone(),
        busy: stage.busy,
        wire: stage.wire,
        idle: stage.idle,
    });
    LoadShares { quantity, wire: record.wire_share, stages: stages.collect() }
}

/// What of a side's energy was not measured, `short` being the numbers of streams whose runs were too short.
fn energy_left_out(title: &str, seen: &Seen, short: &[String]) -> Option<String> {
    let list = |names: &BTreeSet<String>| names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if !seen.silent.is_empty() {
        return Some(format!("{title}: joules per token, since {} tells no power", list(&seen.silent)));
    }
    if !short.is_empty() {
        let streams = short.join(", ");
        return Some(format!(
            "{title}: joules per token with {streams} stream(s), since that ran for less than the 2 s within which workers \
             tell their power; give a larger -n"
        ));
    }
    let sensors = list(&seen.sensors);
    (!sensors.is_empty())
        .then(|| format!("{title}: joules per token count {sensors} alone; nothing tells what else is drawn"))
}
