//! What all forms of a report say, worked out once: names, units, ratios, errors of predictions, memory and time shares.

use std::collections::{BTreeMap, BTreeSet};

use brigade_shard::units::Bytes;

use crate::compare::{Comparison, Figure, LoadShares, Quantity, Side, SideKind};

/// What the columns of a report mean.
pub(super) const LEGEND: &str = "Measured is the mean of the rounds, with the interval in which it lies with 95% confidence. Ratio is against one box: \
     better and worse are said only where the intervals do not overlap. Error is how far the prediction was above (+) or \
     below (-) what was measured.";

/// What the shares of the stages' time mean.
pub(super) const SHARES_LEGEND: &str = "Compute and idle are shares of the time measured; sending goes on beside computing; links is the share of a step's way \
     that no stage accounts for.";

/// What a quantity is called, such as `decode, 8 streams`.
pub(super) fn quantity_name(quantity: Quantity) -> String {
    match quantity {
        Quantity::Decode { streams } => format!("decode, {}", plural(streams, "stream")),
        Quantity::Prompt { tokens } => format!("prompt, {}", plural(tokens, "token")),
        Quantity::Ttft { tokens } => format!("first token after {}", plural(tokens, "token")),
        Quantity::Energy { streams } => format!("energy, {}", plural(streams, "stream")),
    }
}

/// Its unit.
pub(super) fn unit(quantity: Quantity) -> &'static str {
    match quantity {
        Quantity::Decode { .. } | Quantity::Prompt { .. } => "tokens/s",
        Quantity::Ttft { .. } => "ms",
        Quantity::Energy { .. } => "J/token",
    }
}

fn more_is_better(quantity: Quantity) -> bool {
    matches!(quantity, Quantity::Decode { .. } | Quantity::Prompt { .. })
}

/// `1 stream`, `2 streams`.
pub(crate) fn plural(n: impl Into<u64>, one: &str) -> String {
    match n.into() {
        1 => format!("1 {one}"),
        n => format!("{n} {one}s"),
    }
}

/// A value with three digits, or all that stand before the point; `-` for what is no number.
pub(super) fn short(value: f64) -> String {
    match value.abs() {
        size if !size.is_finite() => "-".to_owned(),
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A share in percent.
pub(super) fn percent(share: f64) -> String {
    if share.is_finite() { format!("{:.1}%", share * 100.0) } else { "-".to_owned() }
}

/// An interval, such as `91.2 to 95.0`; `-` where there is none.
pub(super) fn interval(figure: &Figure) -> String {
    figure.interval.map_or("-".to_owned(), |(from, to)| format!("{} to {}", short(from), short(to)))
}

/// How far a prediction was above what was measured, as a share of it; `None` where nothing was predicted or measured.
pub(crate) fn prediction_error(figure: &Figure) -> Option<f64> {
    let predicted = figure.predicted?;
    let error = (predicted - figure.mean) / figure.mean;
    (figure.mean > 0.0 && error.is_finite()).then_some(error)
}

/// The error in percent with its sign; `-` where there is none.
pub(super) fn error_in_words(figure: &Figure) -> String {
    prediction_error(figure).map_or("-".to_owned(), |error| format!("{:+.1}%", error * 100.0))
}

/// A quantity of one side, beside the same of one box.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Row<'a> {
    pub(super) quantity: Quantity,
    /// Which side, by its place.
    pub(super) side: usize,
    pub(super) figure: &'a Figure,
    /// `None` for one box itself, and where there is no one box or it has no such figure.
    pub(super) against: Option<Against>,
}

/// A figure beside one box's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Against {
    /// The figure's mean as a multiple of one box's.
    pub(super) ratio: f64,
    pub(super) outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Better,
    Worse,
    /// The intervals overlap.
    Open,
    /// There is a single sample of one of them.
    Unknown,
}

impl Outcome {
    pub(super) fn word(self) -> &'static str {
        match self {
            Outcome::Better => "better",
            Outcome::Worse => "worse",
            Outcome::Open => "no difference seen",
            Outcome::Unknown => "one sample",
        }
    }
}

/// A ratio, such as `0.56x`.
pub(super) fn ratio(row: &Row<'_>) -> String {
    row.against.map_or("-".to_owned(), |against| format!("{}x", short(against.ratio)))
}

/// What a ratio comes to, in a word; empty where there is no ratio.
pub(super) fn outcome(row: &Row<'_>) -> &'static str {
    row.against.map_or("", |against| against.outcome.word())
}

/// All figures: by their quantity, and of one quantity in the sides' order.
pub(super) fn rows(comparison: &Comparison) -> Vec<Row<'_>> {
    let baseline = comparison.sides.iter().position(is_one_box);
    let mut rows = Vec::new();
    for quantity in quantities(comparison) {
        let figure = |side: &'_ usize| figure_of(&comparison.sides[*side], quantity);
        let one_box = baseline.as_ref().and_then(figure);
        for side in 0..comparison.sides.len() {
            if let Some(figure) = figure(&side) {
                let against = one_box.filter(|_| baseline != Some(side));
                let against = against.and_then(|one_box| compare(quantity, figure, one_box));
                rows.push(Row { quantity, side, figure, against });
            }
        }
    }
    rows
}

/// What was measured of any side, in order.
pub(super) fn quantities(comparison: &Comparison) -> BTreeSet<Quantity> {
    comparison.sides.iter().flat_map(|side| &side.figures).map(|figure| figure.quantity).collect()
}

/// A side's figure of a quantity.
pub(crate) fn figure_of(side: &Side, quantity: Quantity) -> Option<&Figure> {
    side.figures.iter().find(|figure| figure.quantity == quantity)
}

fn is_one_box(side: &Side) -> bool {
    matches!(side.kind, SideKind::OneBox | SideKind::OneBoxWithOffload)
}

fn compare(quantity: Quantity, figure: &Figure, one_box: &Figure) -> Option<Against> {
    let ratio = figure.mean / one_box.mean;
    let outcome = match (figure.interval, one_box.interval) {
        (Some((from, _)), Some((_, to))) if from > to => better(more_is_better(quantity)),
        (Some((_, to)), Some((from, _))) if to < from => better(!more_is_better(quantity)),
        (Some(_), Some(_)) => Outcome::Open,
        _ => Outcome::Unknown,
    };
    ratio.is_finite().then_some(Against { ratio, outcome })
}

fn better(is_better: bool) -> Outcome {
    if is_better { Outcome::Better } else { Outcome::Worse }
}

/// Short names of the sides: their kind, or the whole name where that is not enough to tell them apart.
pub(super) fn side_labels(comparison: &Comparison) -> Vec<String> {
    let kind = |side: &Side| match side.kind {
        SideKind::OneBox => "one box".to_owned(),
        SideKind::OneBoxWithOffload => "one box, offload".to_owned(),
        SideKind::Cluster => "cluster".to_owned(),
        SideKind::Other => side.name.clone(),
    };
    let kinds: Vec<String> = comparison.sides.iter().map(kind).collect();
    let label = |(at, side): (usize, &Side)| {
        let is_alone = kinds.iter().filter(|other| **other == kinds[at]).count() == 1;
        if is_alone { kinds[at].clone() } else { side.name.clone() }
    };
    comparison.sides.iter().enumerate().map(label).collect()
}

/// What a worker holds of a side's model, and what it was seen to take.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct MemoryRow {
    pub(super) side: usize,
    pub(super) worker: String,
    /// What it holds, in words; empty for a worker that the plan does not name.
    pub(super) holds: String,
    pub(super) weights: Bytes,
    pub(super) cache: Bytes,
    pub(super) workspace: Bytes,
    pub(super) budget: Bytes,
    /// `None` where nobody told.
    pub(super) resident: Option<Bytes>,
}

impl MemoryRow {
    pub(super) fn planned(&self) -> Bytes {
        self.weights + self.cache + self.workspace
    }
}

/// Memory by side and worker: first the stages of the plan, then workers that it does not name.
pub(super) fn memory(comparison: &Comparison) -> Vec<MemoryRow> {
    let mut rows = Vec::new();
    for (at, side) in comparison.sides.iter().enumerate() {
        let mut resident: BTreeMap<&str, u64> =
            side.resident.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        for stage in side.plan.iter().flat_map(|plan| &plan.stages) {
            rows.push(MemoryRow {
                side: at,
                worker: stage.worker.clone(),
                holds: stage.shard.to_string(),
                weights: stage.weight_bytes,
                cache: stage.cache_bytes,
                workspace: stage.workspace_bytes,
                budget: stage.budget_bytes,
                resident: resident.remove(stage.worker.as_str()).map(Bytes),
            });
        }
        for (worker, bytes) in resident {
            let worker = worker.to_owned();
            let resident = Some(Bytes(bytes));
            rows.push(MemoryRow { side: at, worker, resident, ..MemoryRow::default() });
        }
    }
    rows
}

/// A size, or `-` where there is none.
pub(super) fn size(bytes: Option<Bytes>) -> String {
    bytes.map_or("-".to_owned(), |bytes| bytes.to_string())
}

/// Where stages' time went, by the load and then the side.
pub(super) fn shares(comparison: &Comparison) -> Vec<(usize, &LoadShares)> {
    let sides = comparison.sides.iter().enumerate();
    let mut all: Vec<(usize, &LoadShares)> =
        sides.flat_map(|(at, side)| side.shares.iter().map(move |shares| (at, shares))).collect();
    all.sort_by_key(|(side, shares)| (shares.quantity, *side));
    all
}

/// What was compared and how, as words and what they are.
pub(super) fn setting(comparison: &Comparison) -> Vec<(&'static str, String)> {
    let mut setting = vec![
        ("model", format!("{}, {} of weights", comparison.model, Bytes(comparison.weight_bytes))),
        ("fingerprint", comparison.fingerprint.clone()),
        ("began", format!("{} UTC", date(comparison.began_unix_s))),
        (
            "measured",
            format!(
                "{}, the sides in turn; seed {}; Brigade {}",
                plural(comparison.rounds, "round"),
                comparison.seed,
                comparison.version
            ),
        ),
    ];
    for (side, label) in comparison.sides.iter().zip(side_labels(comparison)) {
        let what = if side.name == label { String::new() } else { format!("{label}: ") };
        // Most names say their kind already.
        let name = side.name.strip_prefix(&what).unwrap_or(&side.name);
        setting.push(("side", format!("{what}{name}")));
    }
    setting
}

/// What a reader must mind: what was left out, and that others used the machines.
pub(super) fn notes(comparison: &Comparison) -> Vec<String> {
    let disturbed = comparison.disturbed.then(|| {
        "other requests ran meanwhile: figures are lower, and differ more, than of the machines alone"
            .to_owned()
    });
    let left_out = comparison.left_out.iter().map(|reason| format!("left out: {reason}"));
    disturbed.into_iter().chain(left_out).collect()
}

/// A time as `2026-11-30 17:05`, in UTC.
pub(super) fn date(unix_s: u64) -> String {
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", seconds / 3600, seconds / 60 % 60)
}

/// Year, month and day of so many days after the first of January 1970 (Hinnant, "chrono-compatible low-level date
/// algorithms", `civil_from_days`).
fn civil(days: u64) -> (u64, u64, u64) {
    // Years begin with March, so that the leap day is the last.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::report::sample::comparison;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_399, "2000-02-28 23:59"),
            (951_782_400, "2000-02-29 00:00"),
            (4_107_542_399, "2100-02-28 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
            (1_796_058_300, "2026-11-30 17:05"),
        ] {
            assert_eq!(date(unix_s), text);
        }
    }

    #[test]
    fn values_have_three_digits() {
        let values = [0.0, 0.5634, 9.994, 9.996, 99.94, 99.96, 12_345.6, f64::NAN, -3.21];
        assert_eq!(values.map(short), ["0.00", "0.56", "9.99", "10.0", "99.9", "100", "12346", "-", "-3.21"]);
    }

    #[test]
    fn better_is_said_only_where_intervals_are_apart() {
        let figure = |mean, interval| Figure {
            quantity: Quantity::Decode { streams: 1 },
            samples: vec![mean],
            mean,
            interval,
            predicted: None,
        };
        let of = |quantity, left: (f64, f64), right: (f64, f64)| {
            let (left, right) = (figure(left.0, Some(left)), figure(right.0, Some(right)));
            compare(quantity, &left, &right).map(|against| against.outcome)
        };
        let (speed, time) = (Quantity::Decode { streams: 1 }, Quantity::Ttft { tokens: 1 });
        assert_eq!(of(speed, (3.0, 4.0), (1.0, 2.0)), Some(Outcome::Better));
        assert_eq!(of(time, (3.0, 4.0), (1.0, 2.0)), Some(Outcome::Worse));
        assert_eq!(of(speed, (1.0, 2.0), (3.0, 4.0)), Some(Outcome::Worse));
        assert_eq!(of(time, (1.0, 2.0), (3.0, 4.0)), Some(Outcome::Better));
        assert_eq!(of(speed, (1.0, 3.0), (2.0, 4.0)), Some(Outcome::Open));
        let single = compare(speed, &figure(2.0, None), &figure(1.0, Some((0.9, 1.1))));
        assert_eq!(single, Some(Against { ratio: 2.0, outcome: Outcome::Unknown }));
        assert_eq!(compare(speed, &figure(2.0, None), &figure(0.0, None)), None, "nothing is divided by 0");
    }

    #[test]
    fn rows_go_by_quantity_and_then_by_side() {
        let comparison = comparison();
        let rows = rows(&comparison);
        let quantities: Vec<Quantity> = rows.iter().map(|row| row.quantity).collect();
        assert!(quantities.is_sorted(), "{quantities:?}");
        let first: Vec<(usize, bool)> =
            rows[..3].iter().map(|row| (row.side, row.against.is_some())).collect();
        assert_eq!(first, [(0, false), (1, true), (2, true)]);
        assert_eq!(side_labels(&comparison), ["one box", "cluster", "http://other:8080"]);
    }

    #[test]
    fn memory_joins_what_was_planned_with_what_was_seen() {
        let mut comparison = comparison();
        comparison.sides[0].resident.push(("stranger".to_owned(), 1 << 20));
        let rows = memory(&comparison);
        assert_eq!((rows[0].worker.as_str(), rows[0].resident), ("anna", Some(Bytes::mib(210))));
        assert_eq!((rows[1].worker.as_str(), rows[1].holds.as_str()), ("stranger", ""));
        assert!(rows[2..].iter().all(|row| row.side == 1), "another server has no rows");
    }
}
