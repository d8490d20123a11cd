//! Taking in what steps brought, or that they failed.

use std::time::Instant;

use brigade_proto::ids::{DeploymentId, StepId};
use brigade_proto::step::{SegmentOutput, StepKind, StepResult, TokenScore};

use super::sequence::{Expected, Progress, Source};
use super::times::Observed;
use super::{Command, FAILED_STEPS_LIMIT, Flight, Measured, Scheduler};
use crate::generation::{GenerationError, GenerationEvent, Origin};

impl Scheduler {
    /// Takes in a step's result. Results of another fence, or of a step that is not under way, are dropped and counted;
    /// one that does not hold what was asked for breaks the pipeline.
    pub fn handle_result(&mut self, result: StepResult, now: Instant) {
        if self.drafter.is(result.deployment) {
            return self.handle_draft_result(result, now);
        }
        let current = self
            .pipeline
            .as_ref()
            .is_some_and(|p| p.fence == result.fence && p.deployment == result.deployment);
        let flight = if current { self.flights.get(&result.step) } else { None };
        let Some(flight) = flight else {
            self.counts.results_fenced += 1;
            return;
        };
        let checked = check(flight, &result).and_then(|()| self.check_order(&result));
        if let Err(fault) = checked.and_then(|()| self.check_drawn(flight, &result)) {
            self.give_up(
                format!("the last stage sent a wrong result for step {}: {fault}", result.step),
                false,
            );
            return;
        }
        let Some(flight) = self.flights.remove(&result.step) else {
            return;
        };
        let took = now.saturating_duration_since(flight.sent);
        self.progress = now;
        self.slowest = self.slowest.max(took);
        self.failures_in_a_row = 0;
        for released in &flight.releases {
            if let Some(pages) = self.releasing.remove(released) {
                self.pages.free(&pages);
            }
        }
        let rows = flight.expected.iter().map(|expected| expected.rows).sum();
        let other = match flight.kind {
            StepKind::Decode => StepKind::Prefill,
            StepKind::Prefill => StepKind::Decode,
        };
        let quiet = self.under_way(other) == 0;
        // Where a step ran ahead in vain, the last stage had nothing to do.
        if !flight.ahead || result.outputs.iter().any(|output| !output.sampled.is_empty()) {
            let riding = match flight.kind {
                StepKind::Decode => {
                    flight.expected.iter().filter(|segment| segment.chunk).map(|segment| segment.rows).sum()
                }
                StepKind::Prefill => 0,
            };
            let step = Observed { kind: flight.kind, rows, riding, took, chained: flight.chained, quiet };
            self.times.observe(step, &result.timings);
        }
        self.tell_followers(result.step, &flight, Some(&result.outputs));
        self.set_out(result.step, now);
        // Before what it causes: with that a generation may end.
        let timings = result.timings;
        let sequences = flight.expected.iter().map(|expected| expected.sequence).collect();
        let context = mean_context(&flight.expected);
        let measured = Measured { kind: flight.kind, rows, took, timings, sequences, context };
        self.commands.push_back(Command::Measured(measured));
        for (expected, output) in flight.expected.iter().zip(result.outputs) {
            self.take(expected, output);
        }
    }

    /// Takes in that a stage could not compute a step: its sequences fail, and what it should have released is released
    /// by a later step. A step that is not under way is ignored.
    pub fn handle_failure(
        &mut self,
        deployment: DeploymentId,
        step: StepId,
        stage: u32,
        reason: &str,
        now: Instant,
    ) {
        if self.drafter.is(deployment) {
            return self.handle_draft_failure(step, reason);
        }
        if self.pipeline.as_ref().is_none_or(|pipeline| pipeline.deployment != deployment) {
            return;
        }
        let Some(flight) = self.flights.remove(&step) else {
            return;
        };
        self.progress = now;
        self.failures_in_a_row += 1;
        let reason = format!("stage {stage} failed to compute a step: {reason}");
        for expected in &flight.expected {
            let id = expected.sequence;
            let Some(sequence) = self.sequences.get_mut(&id) else {
                continue;
            };
            sequence.in_flight -= 1;
            if !sequence.ended {
                self.counts.failed += 1;
                self.fail(id, GenerationError::Interrupted { reason: reason.clone() });
            }
            self.end(id);
        }
        self.tell_followers(step, &flight, None);
        self.set_out(step, now);
        // Stages before the failed one have released them already; releasing twice does no harm.
        self.releases.extend(&flight.releases);
        let only_released = flight.expected.is_empty();
        let stages = self.pipeline.as_ref().map_or(1, |pipeline| pipeline.stages.len() as u32);
        if only_released || self.failures_in_a_row >= FAILED_STEPS_LIMIT + 2 * stages {
            self.give_up(reason, false);
        }
    }

    /// Takes it that the steps that waited for `step` set out now.
    fn set_out(&mut self, step: StepId, now: Instant) {
        for flight in self.flights.values_mut().filter(|flight| flight.after == Some(step)) {
            (flight.sent, flight.after, flight.chained) = (now, None, true);
        }
    }

    /// Whether every segment came home after those of its sequence that were sent before it. Different sequences may
    /// overtake each other: where a step failed, that is told on another way than results come.
    fn check_order(&self, result: &StepResult) -> Result<(), String> {
        let holds = |flight: &Flight, output: &SegmentOutput| {
            flight.expected.iter().any(|expected| expected.sequence == output.sequence)
        };
        for (earlier, flight) in self.flights.range(..result.step) {
            if let Some(output) = result.outputs.iter().find(|output| holds(flight, output)) {
                let sequence = output.sequence;
                return Err(format!("step {earlier} of sequence {sequence} should have come first"));
            }
        }
        Ok(())
    }

    /// Whether each segment brought the tokens that were asked for; one that ran ahead of others none, where these have not
    /// come true.
    fn check_drawn(&self, flight: &Flight, result: &StepResult) -> Result<(), String> {
        for (expected, output) in flight.expected.iter().zip(&result.outputs) {
            let drawn = &output.sampled;
            // What came of a sequence that has ended was not looked at.
            let sequence = self.sequences.get(&expected.sequence).filter(|sequence| !sequence.ended);
            let fault = match sequence {
                Some(sequence) if !sequence.counts(expected) && drawn.is_empty() => Ok(()),
                Some(sequence) if !sequence.counts(expected) => Err("tokens behind drafts that were wrong"),
                None if expected.ahead && drawn.is_empty() => Ok(()),
                _ => check_tokens(expected, drawn),
            };
            fault.map_err(|fault| format!("{fault} for sequence {}", expected.sequence))?;
        }
        Ok(())
    }

    fn take(&mut self, expected: &Expected, output: SegmentOutput) {
        let id = expected.sequence;
        self.counts.prompt_tokens += u64::from(expected.fresh);
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        sequence.in_flight -= 1;
        if sequence.ended {
            self.note_computed(expected);
            // A late result: nobody waits for it, but the sequence may be released now.
            self.end(id);
            return;
        }
        let counted = sequence.counts(expected);
        let mut progress = Progress::Continues;
        if counted {
            let (commands, counts) = (&mut self.commands, &mut self.counts);
            let mut emit = |event| {
                if let GenerationEvent::Token(drawn) = &event {
                    counts.generated_tokens += 1;
                    let accepted = u64::from(drawn.origin == Origin::Draft);
                    counts.draft_tokens_accepted += accepted;
                    counts.draft_model_tokens_accepted +=
                        if expected.source == Source::Model { accepted } else { 0 };
                }
                commands.push_back(Command::Emit { sequence: id, event });
            };
            sequence.compare(&output, &mut self.acceptance);
            progress = sequence.take(output, expected, &mut emit);
            self.drafter.note(id, sequence);
        }
        let parking = sequence.parking && sequence.in_flight == 0;
        let ready = counted && sequence.wants_decode();
        if counted {
            self.note_computed(expected);
        }
        if expected.prompt_ends {
            self.note_recovered(id);
        }
        match progress {
            Progress::Continues if parking => self.park(id),
            Progress::Continues if ready => self.ready.push_back(id),
            Progress::Continues => {}
            Progress::Finished => {
                self.counts.finished += 1;
                self.endings.observe(!self.waiting.is_empty(), self.progress);
                self.end(id);
            }
        }
    }
}

/// Whether a result is what its step asked for.
fn check(flight: &Flight, result: &StepResult) -> Result<(), String> {
    if result.kind != flight.kind {
        return Err("it is of the other kind".into());
    }
    if result.outputs.len() != flight.expected.len() {
        return Err(format!("{} outputs for {} segments", result.outputs.len(), flight.expected.len()));
    }
    for (expected, output) in flight.expected.iter().zip(&result.outputs) {
        let sequence = expected.sequence;
        if output.sequence != sequence {
            return Err(format!("sequence {} where {sequence} should be", output.sequence));
        }
        if output.scores.len() != expected.scores {
            let found = output.scores.len();
            return Err(format!("{found} scores for sequence {sequence} instead of {}", expected.scores));
        }
    }
    Ok(())
}

/// Whether what was drawn is what was asked for: drafts as far as they were right, and a token after them.
fn check_tokens(expected: &Expected, drawn: &[TokenScore]) -> Result<(), &'static str> {
    let Some((last, accepted)) = drawn.split_last() else {
        return if expected.sample { Err("no token") } else { Ok(()) };
    };
    if !expected.sample {
        return Err("a token that was not asked for");
    }
    let drafts = &expected.drafts;
    let right = accepted.len() <= drafts.len()
        && accepted.iter().zip(drafts).all(|(score, draft)| score.token == *draft)
        && drafts.get(accepted.len()) != Some(&last.token);
    if right { Ok(()) } else { Err("tokens that are not its drafts") }
}

/// Tokens that each of these segments' sequences has in the cache once they are computed, on average.
fn mean_context(segments: &[Expected]) -> u32 {
    let tokens: usize = segments.iter().map(|segment| segment.start + segment.rows as usize).sum();
    u32::try_from(tokens / segments.len().max(1)).unwrap_or(u32::MAX)
}
