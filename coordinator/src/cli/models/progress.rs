//! How pulls and checks are shown as they happen: a bar on a terminal, a line now and then elsewhere, always on standard
//! error.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use brigade_shard::units::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::render::age;
use crate::store::{Phase, Watch};

/// A plain line is written when so much of the whole has come since the last one, or so much time has passed.
const LINE_SHARE: f64 = 0.1;
const LINE_PERIOD: Duration = Duration::from_secs(10);

/// Shows what the store does.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    lines: Mutex<Lines>,
}

impl Shown {
    pub(super) fn new() -> Shown {
        let bar = std::io::stderr().is_terminal().then(ProgressBar::no_length);
        if let Some(bar) = &bar {
            // Nothing is drawn before the first phase.
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Shown { bar, lines: Mutex::new(Lines::new(Instant::now())) }
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, line: &str) {
        // Standard error that is closed is no reason to stop.
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.println(line),
            _ => drop(writeln!(std::io::stderr(), "{line}")),
        }
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch for Shown {
    fn begin(&self, phase: Phase, done: u64, total: Option<u64>) {
        let word = phase.as_str();
        let Some(bar) = &self.bar else {
            let line = self.lines().begin(word, done, total, Instant::now());
            return self.line(&line);
        };
        let template = match total {
            Some(_) => {
                "{prefix} [{bar:30}] {percent:>3}%  {binary_bytes} of {binary_total_bytes}  {binary_bytes_per_sec}  {eta} left"
            }
            None => "{prefix} {binary_bytes}  {binary_bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("#>-"));
        }
        bar.set_draw_target(ProgressDrawTarget::stderr());
        bar.reset();
        bar.set_prefix(word);
        match total {
            Some(total) => bar.set_length(total),
            None => bar.unset_length(),
        }
        bar.set_position(done);
        // What was there before is no speed.
        bar.reset_eta();
    }

    fn at(&self, done: u64, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            if let Some(total) = total {
                bar.set_length(total);
            }
            return bar.set_position(done);
        }
        let line = self.lines().at(done, total, Instant::now());
        if let Some(line) = line {
            self.line(&line);
        }
    }

    fn note(&self, text: &str) {
        self.line(text);
    }
}

/// Decides which lines are worth writing.
struct Lines {
    word: &'static str,
    began: (u64, Instant),
    told: (u64, Instant),
}

impl Lines {
    fn new(now: Instant) -> Lines {
        Lines { word: "", began: (0, now), told: (0, now) }
    }

    fn begin(&mut self, word: &'static str, done: u64, total: Option<u64>, now: Instant) -> String {
        *self = Lines { word, began: (done, now), told: (done, now) };
        match total {
            Some(total) if done > 0 => format!("{word} {}: {} of it is there", Bytes(total), Bytes(done)),
            Some(total) => format!("{word} {}", Bytes(total)),
            None => word.to_owned(),
        }
    }

    fn at(&mut self, done: u64, total: Option<u64>, now: Instant) -> Option<String> {
        let share = |bytes: u64| total.map_or(0.0, |total| bytes as f64 / total.max(1) as f64);
        let is_late = now - self.told.1 >= LINE_PERIOD;
        let is_far = share(done.saturating_sub(self.told.0)) >= LINE_SHARE;
        // The phase's end is told by what follows.
        if (!is_late && !is_far) || total == Some(done) {
            return None;
        }
        self.told = (done, now);
        let seconds = (now - self.began.1).as_secs_f64().max(1e-3);
        let rate = done.saturating_sub(self.began.0) as f64 / seconds;
        let mut line = format!("{} {}", self.word, Bytes(done));
        if let Some(total) = total {
            line.push_str(&format!(" of {} ({:.0}%)", Bytes(total), share(done) * 100.0));
        }
        line.push_str(&format!(", {}/s", Bytes(rate as u64)));
        if let Some(total) = total.filter(|_| rate >= 1.0) {
            line.push_str(&format!(", {} left", age(total.saturating_sub(done) as f64 / rate)));
        }
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_with_each_tenth_or_after_a_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines::new(start);
        let (gib, total) = (1 << 30, Some(10 << 30));
        assert_eq!(lines.begin("fetching", gib, total, start), "fetching 10.0 GiB: 1.0 GiB of it is there");
        assert_eq!(lines.at(gib + 5, total, at(1)), None);
        assert_eq!(
            lines.at(2 * gib, total, at(4)).unwrap(),
            "fetching 2.0 GiB of 10.0 GiB (20%), 256.0 MiB/s, 32s left"
        );
        assert_eq!(lines.at(2 * gib, total, at(13)), None);
        assert_eq!(
            lines.at(2 * gib, total, at(14)).unwrap(),
            "fetching 2.0 GiB of 10.0 GiB (20%), 73.1 MiB/s, 112s left"
        );
        assert_eq!(lines.at(10 * gib, total, at(15)), None, "the end is told by what follows");
        assert_eq!(lines.begin("checking", 0, None, at(16)), "checking");
        assert_eq!(lines.at(0, None, at(30)).unwrap(), "checking 0 B, 0 B/s");
    }
}
