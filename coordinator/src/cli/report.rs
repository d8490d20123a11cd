//! What a coordinator process says while it runs: the plan and its address on standard output, the rest on standard error.

use std::io::{IsTerminal as _, Write as _};

use serde_json::json;

use brigade_proto::worker_processes::WorkerEvent;

use crate::progress::Progress;
use crate::render::{PlanView, render_plan};
use crate::status::{ClusterStatus, Phase};

/// Shows a cluster coming up, and tells once per plan that it is served.
pub(super) struct Reporter {
    progress: Progress,
    place: Option<Place>,
    served: Option<u64>,
    interrupted: bool,
}

/// Where and for whom the model is served; told with the first plan.
pub(super) struct Place {
    /// The URL of HTTP.
    pub(super) url: String,
    /// Whether requests need a key.
    pub(super) needs_key: bool,
}

impl Reporter {
    /// A reporter that tells all, or only how the cluster comes up where there is no `place`.
    pub(super) fn new(place: Option<Place>) -> Reporter {
        let progress = Progress::new(std::io::stderr().is_terminal());
        Reporter { progress, place, served: None, interrupted: false }
    }

    /// Shows what has changed. Returns whether the model is being served.
    pub(super) fn status(&mut self, status: &ClusterStatus) -> bool {
        self.progress.update(status);
        if status.phase != Phase::Serving {
            self.interrupted = self.served.is_some();
            return false;
        }
        let first = self.served.is_none();
        if let Some(place) = &self.place
            && (self.served != Some(status.epoch) || self.interrupted)
        {
            say(&serving_text(status, place, first));
        }
        self.served = Some(status.epoch);
        self.interrupted = false;
        true
    }

    /// Tells what happened to a local worker.
    pub(super) fn local_event(&mut self, event: &WorkerEvent) {
        self.progress.line(&local_event_line(event));
    }

    /// Writes a line of its own.
    pub(super) fn line(&mut self, line: &str) {
        self.progress.line(line);
    }

    /// Whether a plan has been served yet.
    pub(super) fn has_served(&self) -> bool {
        self.served.is_some()
    }

    /// Takes the bars away, before something else is written.
    pub(super) fn clear(&mut self) {
        self.progress.clear();
    }
}

/// Writes to standard output. One that is closed is no reason to stop serving.
pub(super) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line to standard error. One that is closed is no reason to stop.
pub(super) fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A local worker's event as a line.
pub(super) fn local_event_line(event: &WorkerEvent) -> String {
    match event {
        WorkerEvent::Line { worker, text } => format!("[{worker}] {text}"),
        WorkerEvent::Restarting { worker, ended, pause } => {
            format!("worker {worker} died ({ended}); starting it again in {:.1} s", pause.as_secs_f64())
        }
        WorkerEvent::Ended { worker } => format!("worker {worker} has ended"),
        WorkerEvent::Fatal { worker, reason } => format!("worker {worker} cannot run: {reason}"),
    }
}

fn serving_text(status: &ClusterStatus, place: &Place, first: bool) -> String {
    let plan = render_plan(&PlanView::of_cluster(status));
    let id = &status.model.id;
    let url = &place.url;
    if !first {
        return format!("\n{plan}serving {id} again at {url}\n");
    }
    let curl = curl_line(id, place);
    format!("\n{plan}\nserving {id} at {url}\n\n{curl}\n\nCtrl-C to stop\n")
}

/// A command that asks the model something.
fn curl_line(id: &str, place: &Place) -> String {
    let body = json!({"model": id, "messages": [{"role": "user", "content": "Say hello."}]});
    let body = body.to_string().replace('\'', r"'\''");
    let key = if place.needs_key { " -H \"Authorization: Bearer $BRIGADE_API_KEY\"" } else { "" };
    format!("curl {}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{body}'", place.url)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn serving_is_told_with_the_plan_and_a_command_to_try() {
        let mut status = ClusterStatus { phase: Phase::Serving, epoch: 1, ..ClusterStatus::default() };
        status.model.id = "it's".to_owned();
        let place = Place { url: "http://127.0.0.1:7480".to_owned(), needs_key: true };
        let text = serving_text(&status, &place, true);
        assert!(text.contains("STAGE"), "{text}");
        assert!(text.contains("\nserving it's at http://127.0.0.1:7480\n"), "{text}");
        assert!(text.contains(r#"-d '{"model":"it'\''s","#), "{text}");
        assert!(text.contains("$BRIGADE_API_KEY"), "{text}");
        assert!(text.ends_with("Ctrl-C to stop\n"), "{text}");
        assert!(!serving_text(&status, &place, false).contains("curl"));
    }

    #[test]
    fn a_death_is_told_with_its_reason_and_the_pause() {
        let event = WorkerEvent::Restarting {
            worker: "w2".to_owned(),
            ended: "signal: 9 (SIGKILL)".to_owned(),
            pause: Duration::from_millis(300),
        };
        assert_eq!(
            local_event_line(&event),
            "worker w2 died (signal: 9 (SIGKILL)); starting it again in 0.3 s"
        );
    }
}
