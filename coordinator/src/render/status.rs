//! A cluster's state as tables: what it is doing, its stages, its workers and its requests.

use std::fmt::Write as _;
use std::time::Duration;

use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::units::Bytes;

use super::table::{Align, Table};
use crate::status::{ClusterStatus, DraftStatus, Phase, StageStatus, WorkerStatus};

/// The whole state, as `brigade status` shows it.
pub fn render_status(status: &ClusterStatus) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "model     {}", status.model.id);
    let _ = writeln!(text, "phase     {}", phase_word(status.phase));
    if let Some(reason) = &status.reason {
        let _ = writeln!(text, "reason    {reason}");
    }
    if let Some(note) = &status.note {
        let _ = writeln!(text, "note      {note}");
    }
    let _ = writeln!(
        text,
        "context   {} tokens; cache {} of {} tokens reserved",
        status.context, status.cache_tokens_reserved, status.cache_tokens
    );
    let _ = writeln!(text, "links     hidden states cross as {}", status.wire);
    let requests = &status.requests;
    let _ = writeln!(
        text,
        "requests  {} running, {} waiting; {} finished, {} cancelled, {} failed; {} prompt and {} generated tokens",
        requests.running,
        requests.waiting,
        requests.finished,
        requests.cancelled,
        requests.failed,
        requests.prompt_tokens,
        requests.generated_tokens
    );
    if let Some(draft) = &status.draft {
        let _ = writeln!(text, "draft     {}", draft_line(draft));
    }
    if requests.draft_tokens > 0 {
        let (drafts, accepted) = (requests.draft_tokens, requests.draft_tokens_accepted);
        let _ = write!(text, "guesses   {accepted} of {drafts} tokens guessed ahead were right");
        let by_model = (requests.draft_model_tokens, requests.draft_model_tokens_accepted);
        let _ = match by_model {
            (0, _) => writeln!(text),
            (drafts, accepted) => writeln!(text, "; of these {accepted} of {drafts} by the draft model"),
        };
    }
    let steps = &status.steps;
    if steps.count > 0 {
        let _ = writeln!(
            text,
            "steps     {}; decode {} (p99 {}), of it on the wire {}; prefill {}",
            steps.count,
            microseconds(steps.decode_us_p50),
            microseconds(steps.decode_us_p99),
            microseconds(steps.wire_us_p50),
            microseconds(steps.prefill_us_p50)
        );
    }
    if !status.stages.is_empty() {
        let _ = write!(text, "\n{}", stages(status));
    }
    if !status.workers.is_empty() {
        let _ = write!(text, "\n{}", workers(&status.workers));
    }
    for worker in status.workers.iter().filter(|worker| worker.stretch > 1.0) {
        let (name, factor) = (&worker.name, worker.stretch);
        let _ = writeln!(
            text,
            "\n{name} sleeps after each step, which takes {factor} times as long: --stretch is set"
        );
    }
    text
}

/// How far the draining of a worker is, as a line.
pub fn drain_progress(status: &ClusterStatus, worker: &WorkerStatus) -> String {
    let name = &worker.name;
    match (&status.note, &status.reason) {
        (Some(what), _) | (None, Some(what)) => format!("{name} is draining; {what}"),
        (None, None) => format!("{name} is draining"),
    }
}

/// What the draft model is doing, and where.
fn draft_line(draft: &DraftStatus) -> String {
    let place = match &draft.worker {
        Some(worker) => format!("{} on {worker}, {}", draft.id, Bytes(draft.memory_bytes)),
        None => draft.id.clone(),
    };
    match &draft.reason {
        Some(reason) => format!("{place}; {reason}"),
        None if draft.rests => format!("{place}; rests, since answers would be no faster with it"),
        None => format!(
            "{place}; cache {} of {} tokens reserved",
            draft.cache_tokens_reserved, draft.cache_tokens
        ),
    }
}

/// The phase as one word.
fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Waiting => "waiting",
        Phase::Loading => "loading",
        Phase::Connecting => "connecting",
        Phase::Serving => "serving",
        Phase::Stopping => "stopping",
    }
}

/// The part of the model that a stage holds.
pub(crate) fn stage_shard(stage: &StageStatus) -> Shard {
    Shard {
        layers: LayerRange {
            start: stage.layer_start as usize,
            end: stage.layer_end.max(stage.layer_start) as usize,
        },
        embedding: stage.embedding,
        head: stage.head,
    }
}

fn stages(status: &ClusterStatus) -> Table {
    let mut table = Table::new(&[
        ("STAGE", Align::Right),
        ("WORKER", Align::Left),
        ("HOLDS", Align::Left),
        ("STATE", Align::Left),
        ("WEIGHTS", Align::Right),
        ("CACHE", Align::Right),
        ("QUEUED", Align::Right),
        ("DECODE", Align::Right),
        ("PREFILL", Align::Right),
        ("NEXT", Align::Left),
        ("RTT", Align::Right),
    ]);
    for stage in &status.stages {
        let state = match stage.state.as_str() {
            "loading" => format!("loading {:.0}%", stage.loaded * 100.0),
            state => state.to_owned(),
        };
        table.row([
            stage.stage.to_string(),
            stage.name.clone(),
            stage_shard(stage).to_string(),
            state,
            Bytes(stage.weight_bytes).to_string(),
            Bytes(stage.cache_bytes).to_string(),
            microseconds(stage.queued_us_p50),
            microseconds(stage.decode_us_p50),
            microseconds(stage.prefill_us_p50),
            stage.next_address.clone().unwrap_or_else(|| "-".to_owned()),
            stage.next_rtt_us.map_or_else(|| "-".to_owned(), microseconds),
        ]);
    }
    table
}

fn workers(workers: &[WorkerStatus]) -> Table {
    let mut table = Table::new(&[
        ("WORKER", Align::Left),
        ("HOST", Align::Left),
        ("STATE", Align::Left),
        ("SEEN", Align::Right),
        ("DEVICE", Align::Left),
        ("THREADS", Align::Right),
        ("BUDGET", Align::Right),
        ("RESIDENT", Align::Right),
        ("PEAK", Align::Right),
        ("BANDWIDTH", Align::Right),
        ("COMPUTE", Align::Right),
        ("ADDRESS", Align::Left),
    ]);
    for worker in workers {
        table.row([
            worker.name.clone(),
            worker.host.clone(),
            worker.state.clone(),
            ago(worker.last_seen_s),
            worker.device.clone(),
            worker.threads.to_string(),
            Bytes(worker.budget_bytes).to_string(),
            Bytes(worker.resident_bytes).to_string(),
            Bytes(worker.peak_resident_bytes).to_string(),
            format!("{:.1} GB/s", worker.bandwidth_bytes_per_s / 1e9),
            format!("{:.0} GFLOP/s", worker.flops_per_s / 1e9),
            worker.address.clone(),
        ]);
    }
    table
}

/// A short time in the unit that people would use; `-` where nothing was measured.
fn microseconds(us: u32) -> String {
    match us {
        0 => "-".to_owned(),
        1..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", f64::from(us) / 1e3),
        _ => format!("{:.1} s", f64::from(us) / 1e6),
    }
}

/// How long ago something was, in whole units.
fn ago(seconds: f64) -> String {
    let seconds = Duration::try_from_secs_f64(seconds).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        _ => format!("{}h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{ModelStatus, RequestStatus, StepStatus};

    #[test]
    fn a_serving_cluster_is_shown_with_stages_and_workers() {
        let status = ClusterStatus {
            phase: Phase::Serving,
            model: ModelStatus { id: "tiny".to_owned(), layers: 2, ..ModelStatus::default() },
            context: 256,
            cache_tokens: 512,
            cache_tokens_reserved: 64,
            wire: "f32".to_owned(),
            requests: RequestStatus { running: 1, generated_tokens: 42, ..RequestStatus::default() },
            steps: StepStatus { count: 9, decode_us_p50: 1500, decode_us_p99: 2500, ..StepStatus::default() },
            stages: vec![StageStatus {
                name: "w1".to_owned(),
                layer_end: 2,
                embedding: true,
                head: true,
                state: "active".to_owned(),
                weight_bytes: 3 << 20,
                cache_bytes: 1 << 20,
                decode_us_p50: 900,
                next_rtt_us: Some(45),
                ..StageStatus::default()
            }],
            workers: vec![WorkerStatus {
                name: "w1".to_owned(),
                host: "box".to_owned(),
                state: "attached".to_owned(),
                device: "cpu".to_owned(),
                threads: 2,
                stretch: 4.0,
                budget_bytes: 64 << 20,
                resident_bytes: 20 << 20,
                peak_resident_bytes: 30 << 20,
                bandwidth_bytes_per_s: 20.5e9,
                flops_per_s: 150e9,
                last_seen_s: 130.0,
                address: "127.0.0.1:5000".to_owned(),
                ..WorkerStatus::default()
            }],
            ..ClusterStatus::default()
        };
        assert_eq!(
            render_status(&status),
            "\
model     tiny
phase     serving
context   256 tokens; cache 64 of 512 tokens reserved
links     hidden states cross as f32
requests  1 running, 0 waiting; 0 finished, 0 cancelled, 0 failed; 0 prompt and 42 generated tokens
steps     9; decode 1.5 ms (p99 2.5 ms), of it on the wire -; prefill -

STAGE   WORKER   HOLDS                            STATE    WEIGHTS     CACHE   QUEUED   DECODE   PREFILL   NEXT     RTT
    0   w1       embedding + layers 0..2 + head   active   3.0 MiB   1.0 MiB        -   900 us         -   -      45 us

WORKER   HOST   STATE      SEEN   DEVICE   THREADS     BUDGET   RESIDENT       PEAK   BANDWIDTH       COMPUTE   ADDRESS
w1       box    attached     2m   cpu            2   64.0 MiB   20.0 MiB   30.0 MiB   20.5 GB/s   150 GFLOP/s   127.0.0.1:5000

w1 sleeps after each step, which takes 4 times as long: --stretch is set
"
        );
    }

    #[test]
    fn a_waiting_cluster_says_why() {
        let status = ClusterStatus {
            reason: Some("needs 40.0 MiB more".to_owned()),
            stages: vec![StageStatus {
                state: "loading".to_owned(),
                loaded: 0.254,
                ..StageStatus::default()
            }],
            ..ClusterStatus::default()
        };
        let text = render_status(&status);
        assert!(text.contains("phase     waiting\nreason    needs 40.0 MiB more\n"), "{text}");
        assert!(text.contains("loading 25%"), "{text}");
        assert!(!text.contains("BUDGET"), "no table of no workers: {text}");
    }
}
