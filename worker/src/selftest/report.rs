//! What a test has found, as tables for a bug report or as JSON.

use std::io::{self, Write};

use brigade_proto::control::DeviceKind;
use brigade_shard::tensor_type::TensorType;
use serde::Serialize;

use super::compare::Check;
use super::speed::Speeds;
use super::stored_as;
use crate::simd::Simd;
use crate::tiny::KINDS;

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Markdown tables.
    Table,
    /// One object.
    Json,
}

/// All that a test has found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// This program's version.
    pub version: &'static str,
    /// The system and processor that the program was built for.
    pub platform: String,
    /// What was tested.
    pub device: String,
    /// What computed there.
    pub tested: &'static str,
    /// What it was compared with.
    pub reference: String,
    /// Every comparison.
    pub checks: Vec<Check>,
    /// `None` where speeds were not to be measured.
    pub speeds: Option<Speeds>,
    /// Whether all have passed.
    pub passed: bool,
}

/// What is said of a type.
#[derive(Debug, PartialEq)]
pub(super) struct TypeLine<'a> {
    pub(super) kind: TensorType,
    /// The kernel that is the furthest off by what it may be.
    pub(super) worst: &'a Check,
    pub(super) checks: usize,
    pub(super) failed: usize,
}

impl Report {
    pub(super) fn new(
        kind: DeviceKind,
        threads: usize,
        checks: Vec<Check>,
        speeds: Option<Speeds>,
    ) -> Report {
        let tested = match kind {
            DeviceKind::Cpu => {
                "candle's kernels on the processor: those of a worker with --device cpu are the reference itself"
            }
            DeviceKind::Cuda(_) | DeviceKind::Metal => "candle's kernels on the card",
        };
        Report {
            version: env!("CARGO_PKG_VERSION"),
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            device: kind.to_string(),
            tested,
            reference: format!(
                "this program's kernels on the processor, {}, {threads} threads",
                Simd::detect().name()
            ),
            passed: checks.iter().all(Check::has_passed),
            checks,
            speeds,
        }
    }

    /// Whether the device has passed every check.
    pub fn has_passed(&self) -> bool {
        self.passed
    }

    pub(super) fn write(&self, format: Format, mut out: impl Write) -> io::Result<()> {
        match format {
            Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(self)?)?,
            Format::Table => self.tables(&mut out)?,
        }
        out.flush()
    }

    fn tables(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "brigade-worker {} selftest on {}, {}", self.version, self.device, self.platform)?;
        writeln!(out, "tested: {}", self.tested)?;
        writeln!(out, "reference: {}", self.reference)?;
        self.types(out)?;
        let others: Vec<&Check> = self.of("kernel").filter(|check| check.kind.is_none()).collect();
        Report::checks(out, "kernel without weights", &others)?;
        Report::checks(out, "small random model", &self.of("family").collect::<Vec<_>>())?;
        Report::checks(out, "model", &self.of("model").collect::<Vec<_>>())?;
        writeln!(out)?;
        if let Some(speeds) = &self.speeds {
            writeln!(
                out,
                "GB/s: weights that a product of 1 reads with the kernels that a worker on {} has; memory gives {:.1} GB/s.\n\
                 A hop over loopback with {} KiB takes {:.0} us.",
                self.device,
                speeds.memory_bytes_per_s / 1e9,
                speeds.hop_bytes / 1024,
                speeds.hop_us
            )?;
        }
        let failed: Vec<&Check> = self.checks.iter().filter(|check| !check.has_passed()).collect();
        for check in &failed {
            let kind = check.kind.map_or_else(String::new, |kind| format!(" {kind}"));
            let said = match (&check.problem, check.difference) {
                (Some(problem), _) => problem.clone(),
                (None, difference) => {
                    format!("off by {}, allowed is {}", share(difference), allowed(check.tolerance))
                }
            };
            writeln!(out, "FAILED: {} {}{kind}: {said}", check.what, check.name)?;
        }
        let all = self.checks.len();
        match failed.len() {
            0 => writeln!(out, "all {all} checks passed"),
            failed => writeln!(
                out,
                "{failed} of {all} checks failed: do not serve with this device, and report this output"
            ),
        }
    }

    /// A table with a line for each type of weights.
    fn types(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out)?;
        writeln!(
            out,
            "| weights | stored as | kernels | furthest off     |    off by | allowed |  GB/s | of memory's |        |"
        )?;
        writeln!(
            out,
            "| ------- | --------- | ------: | ---------------- | --------: | ------: | ----: | ----------: | ------ |"
        )?;
        for line in self.type_lines() {
            let TypeLine { kind, worst, checks, failed } = line;
            let (speed, of_memory) = match self.speed_of(kind) {
                Some((bytes_per_s, of_memory)) => {
                    (format!("{:.1}", bytes_per_s / 1e9), format!("{:.0}%", of_memory * 100.0))
                }
                None => (String::new(), String::new()),
            };
            writeln!(
                out,
                "| {:<7} | {:<9} | {checks:>7} | {:<16} | {:>9} | {:>7} | {speed:>5} | {of_memory:>11} | {:<6} |",
                kind.name(),
                stored_as(kind).name(),
                worst.name,
                share(worst.difference),
                allowed(worst.tolerance),
                if failed == 0 { "ok" } else { "FAILED" },
            )?;
        }
        Ok(())
    }

    pub(super) fn type_lines(&self) -> Vec<TypeLine<'_>> {
        let line = |(kind, _): (TensorType, Option<f32>)| {
            let of_kind: Vec<&Check> = self.of("kernel").filter(|check| check.kind == Some(kind)).collect();
            let worst = of_kind.iter().max_by(|a, b| a.share().total_cmp(&b.share()))?;
            let failed = of_kind.iter().filter(|check| !check.has_passed()).count();
            Some(TypeLine { kind, worst, checks: of_kind.len(), failed })
        };
        KINDS.into_iter().filter_map(line).collect()
    }

    /// Bytes per second of a type, and the share of what memory gives.
    fn speed_of(&self, kind: TensorType) -> Option<(f64, f64)> {
        let speeds = self.speeds.as_ref()?;
        let (_, bytes_per_s) = speeds.reading.iter().find(|(known, _)| *known == kind)?;
        Some((*bytes_per_s, bytes_per_s / speeds.memory_bytes_per_s))
    }

    fn of(&self, what: &'static str) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(move |check| check.what == what)
    }

    /// A table with a line for each check.
    fn checks(out: &mut impl Write, title: &str, checks: &[&Check]) -> io::Result<()> {
        if checks.is_empty() {
            return Ok(());
        }
        let name = |check: &Check| match check.kind {
            Some(kind) => format!("{} {kind}", check.name),
            None => check.name.clone(),
        };
        let width =
            checks.iter().map(|check| name(check).chars().count()).max().unwrap_or(0).max(title.len());
        writeln!(out)?;
        writeln!(out, "| {title:<width$} |    off by | allowed |        |")?;
        writeln!(out, "| {} | --------: | ------: | ------ |", "-".repeat(width))?;
        for check in checks {
            writeln!(
                out,
                "| {:<width$} | {:>9} | {:>7} | {:<6} |",
                name(check),
                share(check.difference),
                allowed(check.tolerance),
                if check.has_passed() { "ok" } else { "FAILED" },
            )?;
        }
        Ok(())
    }
}

/// A share in percent, with as many digits as tell something.
fn share(share: Option<f64>) -> String {
    match share {
        None => "no result".to_owned(),
        Some(share) if share.is_nan() => "no number".to_owned(),
        Some(share) => format!("{:.4}%", share * 100.0),
    }
}

/// The same of what is allowed, which is a round number.
fn allowed(tolerance: f64) -> String {
    format!("{:.1}%", tolerance * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(checks: Vec<Check>) -> (bool, String) {
        let report = Report::new(DeviceKind::Cpu, 2, checks, None);
        let mut out = Vec::new();
        report.write(Format::Table, &mut out).expect("memory takes it");
        (report.has_passed(), String::from_utf8(out).expect("it is text"))
    }

    fn check(name: &str, compared: Result<f64, String>) -> Check {
        Check::new("kernel", name, Some(TensorType::Q4K), 0.03, compared)
    }

    #[test]
    fn a_wrong_kernel_is_named_and_fails_the_whole() {
        let good = || check("lookup", Ok(0.0));
        let (passed, text) = report(vec![good(), check("product of 5", Ok(0.02))]);
        assert!(passed && text.contains("all 2 checks passed"), "{text}");
        assert!(text.contains("| Q4_K    | Q4_K      |       2 | product of 5"), "{text}");
        let broken = [Ok(0.7), Ok(f64::NAN), Err("the device is gone".to_owned())];
        let words = ["off by 70.0000%, allowed is 3.0%", "off by no number", "the device is gone"];
        for (compared, words) in broken.into_iter().zip(words) {
            let (passed, text) = report(vec![good(), check("heads", compared)]);
            let said = format!("FAILED: kernel heads Q4_K: {words}");
            assert!(!passed && text.contains(&said) && text.contains("1 of 2 checks failed"), "{text}");
        }
    }
}
