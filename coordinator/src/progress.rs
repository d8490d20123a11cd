//! How a cluster comes up, shown as it happens: bars on a terminal, plain lines elsewhere, always on standard error.

use std::collections::HashMap;
use std::io::Write as _;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::render::stage_shard;
use crate::status::{ClusterStatus, Phase, StageStatus};

/// Steps of a bar: tenths of a percent.
const BAR_STEPS: u64 = 1000;

/// A plain line is written at each of so many equal parts of a load.
const PLAIN_PARTS: f64 = 4.0;

/// Shows the phases and the loading of a cluster.
#[derive(Debug)]
pub struct Progress {
    bars: Option<Bars>,
    lines: ProgressLines,
}

#[derive(Debug)]
struct Bars {
    all: MultiProgress,
    stages: Vec<ProgressBar>,
    epoch: u64,
}

impl Progress {
    /// With bars where `terminal`, with plain lines elsewhere.
    pub fn new(terminal: bool) -> Progress {
        let bars = terminal.then(|| Bars { all: MultiProgress::new(), stages: Vec::new(), epoch: 0 });
        Progress { bars, lines: ProgressLines::default() }
    }

    /// Shows what has changed.
    pub fn update(&mut self, status: &ClusterStatus) {
        let lines = self.lines.update(status, self.bars.is_none());
        for line in lines {
            self.line(&line);
        }
        if let Some(bars) = &mut self.bars {
            bars.update(status);
        }
    }

    /// Writes a line above the bars.
    pub fn line(&self, line: &str) {
        // Standard error that is closed is no reason to stop serving.
        let _ = match &self.bars {
            Some(bars) if !bars.stages.is_empty() => bars.all.println(line),
            _ => writeln!(std::io::stderr(), "{line}"),
        };
    }

    /// Takes the bars away.
    pub fn clear(&mut self) {
        if let Some(bars) = &mut self.bars {
            bars.clear();
        }
    }
}

impl Bars {
    fn update(&mut self, status: &ClusterStatus) {
        if status.phase != Phase::Loading {
            return self.clear();
        }
        if self.epoch != status.epoch || self.stages.len() != status.stages.len() {
            self.clear();
            self.epoch = status.epoch;
            self.stages = status.stages.iter().map(|stage| self.all.add(bar(stage))).collect();
        }
        for (bar, stage) in self.stages.iter().zip(&status.stages) {
            bar.set_position((stage.loaded.clamp(0.0, 1.0) * BAR_STEPS as f64) as u64);
            bar.set_message(match &stage.delivery {
                Some(delivery) => format!("{}, {delivery}", stage.state),
                None => stage.state.clone(),
            });
        }
    }

    fn clear(&mut self) {
        for bar in self.stages.drain(..) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }
}

fn bar(stage: &StageStatus) -> ProgressBar {
    // Nothing is drawn before the bar stands among the others.
    let bar = ProgressBar::with_draw_target(Some(BAR_STEPS), ProgressDrawTarget::hidden());
    let template = "{prefix} [{bar:30}] {percent:>3}% {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("#>-"));
    }
    bar.set_prefix(format!("stage {} on {}: {}", stage.stage, stage.name, stage_shard(stage)));
    bar
}

/// Decides which lines a status is worth: each thing is said once.
#[derive(Debug, Default)]
pub struct ProgressLines {
    phase: Option<(Phase, Option<String>, u64)>,
    stages: HashMap<u32, (u64, u32)>,
}

impl ProgressLines {
    /// The lines to write now; those on the loading of single stages only `with_stages`.
    pub fn update(&mut self, status: &ClusterStatus, with_stages: bool) -> Vec<String> {
        let mut lines = Vec::new();
        let mut stage_lines = || -> Vec<String> {
            let loaded = status.stages.iter().filter_map(|stage| self.stage_line(stage, status.epoch));
            if with_stages { loaded.collect() } else { Vec::new() }
        };
        // The last stage is ready at the moment that the links are made.
        if status.phase == Phase::Connecting {
            lines.extend(stage_lines());
        }
        let stages = if status.phase == Phase::Loading { stage_lines() } else { Vec::new() };
        let phase = (status.phase, status.reason.clone(), status.epoch);
        if self.phase.as_ref() != Some(&phase) {
            lines.extend(phase_line(status));
            self.phase = Some(phase);
        }
        lines.extend(stages);
        lines
    }

    fn stage_line(&mut self, stage: &StageStatus, epoch: u64) -> Option<String> {
        let part = (stage.loaded.clamp(0.0, 1.0) * PLAIN_PARTS) as u32;
        let said = self.stages.insert(stage.stage, (epoch, part));
        if said == Some((epoch, part)) {
            return None;
        }
        let percent = f64::from(part) * 100.0 / PLAIN_PARTS;
        let fetched = stage.delivery.as_ref().map_or(String::new(), |delivery| format!(", {delivery}"));
        let shard = stage_shard(stage);
        Some(format!("stage {} on {}: {shard}: {percent:.0}% loaded{fetched}", stage.stage, stage.name))
    }
}

/// What there is to say of a phase; nothing of serving, which has more to say than a line.
fn phase_line(status: &ClusterStatus) -> Option<String> {
    match status.phase {
        Phase::Waiting => status.reason.clone(),
        Phase::Loading => {
            let stages = status.stages.len();
            let plural = if stages == 1 { "" } else { "s" };
            Some(format!("loading {} in {stages} stage{plural}", status.model.id))
        }
        Phase::Connecting => Some("connecting the stages".to_owned()),
        Phase::Serving | Phase::Stopping => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_said_once() {
        let mut lines = ProgressLines::default();
        let mut status = ClusterStatus {
            reason: Some("0 of 2 workers have joined".to_owned()),
            ..ClusterStatus::default()
        };
        assert_eq!(lines.update(&status, true), ["0 of 2 workers have joined"]);
        assert!(lines.update(&status, true).is_empty());

        status.phase = Phase::Loading;
        status.reason = None;
        status.epoch = 1;
        status.model.id = "tiny".to_owned();
        status.stages = vec![StageStatus { name: "w1".to_owned(), layer_end: 2, ..StageStatus::default() }];
        assert_eq!(
            lines.update(&status, true),
            ["loading tiny in 1 stage", "stage 0 on w1: layers 0..2: 0% loaded"]
        );
        status.stages[0].loaded = 0.2;
        assert!(lines.update(&status, true).is_empty());
        status.stages[0].loaded = 0.8;
        assert!(lines.clone_for_bars().update(&status, false).is_empty(), "bars show it instead");
        assert_eq!(lines.update(&status, true), ["stage 0 on w1: layers 0..2: 75% loaded"]);

        status.phase = Phase::Connecting;
        status.stages[0].loaded = 1.0;
        assert_eq!(
            lines.update(&status, true),
            ["stage 0 on w1: layers 0..2: 100% loaded", "connecting the stages"]
        );

        status.phase = Phase::Loading;
        status.epoch = 2;
        status.stages[0].loaded = 0.0;
        assert_eq!(lines.update(&status, true).len(), 2, "a new plan is told anew");
        status.phase = Phase::Serving;
        assert!(lines.update(&status, true).is_empty());
    }

    impl ProgressLines {
        fn clone_for_bars(&self) -> ProgressLines {
            ProgressLines { phase: self.phase.clone(), stages: self.stages.clone() }
        }
    }
}
