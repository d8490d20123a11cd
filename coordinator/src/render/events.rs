//! Events, line by line: they may come one after the other, so that columns are as wide as the first ones need.

use super::times::age;
use crate::status::EventRecord;

/// Widths of `AGE`, `SEVERITY` and `KIND`, whose words are known.
const AGE: usize = 4;
const SEVERITY: usize = 8;
const KIND: usize = 11;
/// Width of `WORKER` between that of its title and this; longer names push the rest aside.
const LONGEST_WORKER: usize = 24;

/// The columns of a list of events.
#[derive(Clone, Copy, Debug)]
pub struct EventColumns {
    worker: usize,
}

impl EventColumns {
    /// Columns that suit these events, and those to come of the same workers.
    pub fn for_events(events: &[EventRecord]) -> EventColumns {
        let names = events.iter().filter_map(|event| event.worker.as_ref());
        let longest = names.map(|name| name.chars().count()).max().unwrap_or(0);
        EventColumns { worker: longest.clamp("WORKER".len(), LONGEST_WORKER) }
    }

    /// The line above them.
    pub fn header(&self) -> String {
        self.line(["AGE", "SEVERITY", "KIND", "WORKER", "WHAT"])
    }

    /// An event's line, `now_ms` milliseconds after the Unix epoch.
    pub fn row(&self, event: &EventRecord, now_ms: u64) -> String {
        let age = age(now_ms.saturating_sub(event.at_ms) as f64 / 1e3);
        let worker = event.worker.as_deref().unwrap_or("-");
        self.line([&age, event.severity.as_str(), &event.kind, worker, &event.text])
    }

    fn line(&self, [age, severity, kind, worker, what]: [&str; 5]) -> String {
        let width = self.worker;
        let line = format!("{age:<AGE$}   {severity:<SEVERITY$}   {kind:<KIND$}   {worker:<width$}   {what}");
        // Names and reasons come from other machines.
        let clean: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        clean + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Severity;

    #[test]
    fn events_are_lines_below_their_header() {
        let event = |at_ms, severity, kind: &str, worker: Option<&str>, text: &str| EventRecord {
            id: 1,
            at_ms,
            severity,
            kind: kind.into(),
            worker: worker.map(Into::into),
            text: text.into(),
        };
        let events = [
            event(0, Severity::Info, "plan", None, "plan 1 serves"),
            event(86_340_000, Severity::Warning, "worker", Some("anna-mac"), "is lost:\n\u{1b}[2Jgone"),
        ];
        let columns = EventColumns::for_events(&events);
        let mut text = columns.header();
        events.iter().for_each(|event| text.push_str(&columns.row(event, 86_400_000)));
        assert_eq!(
            text,
            "AGE    SEVERITY   KIND          WORKER     WHAT\n\
             24h    info       plan          -          plan 1 serves\n\
             60s    warning    worker        anna-mac   is lost:  [2Jgone\n"
        );
        assert_eq!([age(119.0), age(121.0), age(172_800.0)], ["119s", "2m", "2d"]);
    }
}
