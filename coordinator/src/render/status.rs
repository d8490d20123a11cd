//! A cluster's state as tables: what it is doing, its stages, its workers and its requests.

use std::fmt::Write as _;

use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::units::Bytes;

use super::table::{Align, Table, without_controls};
use super::times::{age, microseconds};
use crate::status::{
    ClusterStatus, DraftStatus, Health, HealthState, LinkStatus, Phase, StageStatus, WorkerStatus,
};

/// Whether columns are shown that only some people want.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    /// What fits 120 columns.
    Normal,
    /// All there is.
    Wide,
}

/// The whole state, as `brigade status` shows it.
pub fn render_status(status: &ClusterStatus) -> String {
    render(status, Width::Normal)
}

/// The same with more columns, and the links between workers, as `brigade status --wide` shows it.
pub fn render_status_wide(status: &ClusterStatus) -> String {
    render(status, Width::Wide)
}

fn render(status: &ClusterStatus, width: Width) -> String {
    let mut text = summary(status);
    // Writing to a String cannot fail, here and below.
    if !status.stages.is_empty() {
        let _ = write!(text, "\n{}", stages(status, width));
    }
    if !status.workers.is_empty() {
        let _ = write!(text, "\n{}", workers(status, width));
    }
    let links = links(&status.workers);
    if width == Width::Wide && !links.is_empty() {
        let _ = write!(text, "\n{links}");
    }
    for pull in &status.pulls {
        let _ = writeln!(text, "\npulling {}", without_controls(&pull.to_string()));
    }
    let complaints = complaints(status);
    if !complaints.is_empty() {
        let _ = write!(text, "\n{complaints}");
    }
    for worker in status.workers.iter().filter(|worker| worker.stretch > 1.0) {
        let (name, factor) = (without_controls(&worker.name), worker.stretch);
        let _ = writeln!(
            text,
            "\n{name} sleeps after each step, which takes {factor} times as long: --stretch is set"
        );
    }
    text
}

/// What is done, and how fast, line by line.
fn summary(status: &ClusterStatus) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "model     {}", status.model.id);
    let _ = writeln!(text, "phase     {}", status.phase.as_str());
    let _ = writeln!(text, "health    {}", status.health.state.as_str());
    if let Some(reason) = &status.reason {
        let _ = writeln!(text, "reason    {reason}");
    }
    if let Some(note) = &status.note {
        let _ = writeln!(text, "note      {note}");
    }
    if !status.pinned.is_empty() {
        let _ = writeln!(text, "pinned    to {}", without_controls(&status.pinned.join(", ")));
    } else if let Some(why) = &status.pin_ended {
        let _ = writeln!(text, "pinned    no more: {}", without_controls(why));
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
    let rates = &status.rates;
    if rates.prompt_tokens_per_s + rates.generated_tokens_per_s > 0.0 {
        let _ = writeln!(
            text,
            "speed     {:.1} generated and {:.1} prompt tokens/s; first token after {:.0} ms, then every {:.1} ms",
            rates.generated_tokens_per_s, rates.prompt_tokens_per_s, rates.ttft_ms_p50, rates.itl_ms_p50
        );
    }
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
    text
}

/// What is not well, why, and what to do about it: a line each.
fn complaints(status: &ClusterStatus) -> String {
    let mut text = String::new();
    let mut complain = |name: &str, health: &Health| {
        let said = [&health.reason, &health.advice];
        let said: Vec<&str> = said.into_iter().flatten().map(String::as_str).collect();
        let line = format!("! {name} {}: {}", health.state.as_str(), said.join("; "));
        let _ = writeln!(text, "{}", without_controls(&line));
    };
    // What concerns all stages is said once.
    let of_all = |stage: &StageStatus| stage.health == status.health;
    let together = status.health.state != HealthState::Ok && status.stages.iter().all(of_all);
    if together || status.phase != Phase::Serving {
        complain("the cluster is", &status.health);
    }
    for worker in &status.workers {
        if worker.health.state != HealthState::Ok && !(together && worker.health == status.health) {
            complain(&worker.name, &worker.health);
        }
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

/// A state as one word; how far loading is stands beside it.
fn health_word(health: &Health, stage: Option<&StageStatus>) -> String {
    match (health.state, stage) {
        (HealthState::Loading, Some(stage)) => format!("loading {:.0}%", stage.loaded * 100.0),
        (state, _) => state.as_str().to_owned(),
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// What is known, or `-`.
fn known<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), text)
}

type Column<'a, T> = (&'a str, Align, Box<dyn Fn(&T) -> String + 'a>);

/// A row for each item; columns are its cells.
fn table<T>(items: &[T], columns: Vec<Column<'_, T>>) -> Table {
    let heads: Vec<(&str, Align)> = columns.iter().map(|(name, align, _)| (*name, *align)).collect();
    let mut table = Table::new(&heads);
    for item in items {
        table.row(columns.iter().map(|(_, _, cell)| cell(item)));
    }
    table
}

fn stages(status: &ClusterStatus, width: Width) -> Table {
    use Align::{Left, Right};
    let mut columns: Vec<Column<'_, StageStatus>> = vec![
        ("STAGE", Right, Box::new(|stage| stage.stage.to_string())),
        ("WORKER", Left, Box::new(|stage| stage.name.clone())),
        ("HEALTH", Left, Box::new(|stage| health_word(&stage.health, Some(stage)))),
        ("HOLDS", Left, Box::new(|stage| stage_shard(stage).to_string())),
        (
            "MEMORY",
            Right,
            Box::new(|stage| {
                Bytes(stage.weight_bytes + stage.cache_bytes + stage.workspace_bytes).to_string()
            }),
        ),
        ("DECODE", Right, Box::new(|stage| microseconds(stage.decode_us_p50))),
        ("PREFILL", Right, Box::new(|stage| microseconds(stage.prefill_us_p50))),
        ("OF STEP", Right, Box::new(|stage| percent(stage.step_share))),
        ("BUSY", Right, Box::new(|stage| percent(stage.busy))),
    ];
    if width == Width::Wide {
        let more: Vec<Column<'_, StageStatus>> = vec![
            ("STATE", Left, Box::new(|stage| stage.state.clone())),
            ("WEIGHTS", Right, Box::new(|stage| Bytes(stage.weight_bytes).to_string())),
            ("CACHE", Right, Box::new(|stage| Bytes(stage.cache_bytes).to_string())),
            ("PREDICTED", Right, Box::new(|stage| microseconds(stage.predicted_decode_us))),
            ("P99", Right, Box::new(|stage| microseconds(stage.decode_us_p99))),
            ("QUEUED", Right, Box::new(|stage| microseconds(stage.queued_us_p50))),
            ("QUEUED P99", Right, Box::new(|stage| microseconds(stage.queued_us_p99))),
            ("SENT", Right, Box::new(|stage| microseconds(stage.sent_us_p50))),
            ("NEXT", Left, Box::new(|stage| known(stage.next_address.clone(), |address| address))),
            ("RTT", Right, Box::new(|stage| known(stage.next_rtt_us, microseconds))),
        ];
        columns.extend(more);
    }
    table(&status.stages, columns)
}

fn workers(status: &ClusterStatus, width: Width) -> Table {
    use Align::{Left, Right};
    let stage = |worker: &WorkerStatus| status.stages.iter().find(|stage| stage.worker == worker.id);
    let told = |worker: &WorkerStatus| (worker.machine.memory_bytes > 0).then_some(worker.machine);
    let mut columns: Vec<Column<'_, WorkerStatus>> = vec![
        ("WORKER", Left, Box::new(|worker| worker.name.clone())),
        ("HOST", Left, Box::new(|worker| worker.host.clone())),
        ("HEALTH", Left, Box::new(move |worker| health_word(&worker.health, stage(worker)))),
        ("SEEN", Right, Box::new(|worker| age(worker.last_seen_s))),
        ("DEVICE", Left, Box::new(|worker| worker.device.clone())),
        ("BUDGET", Right, Box::new(|worker| Bytes(worker.budget_bytes).to_string())),
        ("RESIDENT", Right, Box::new(|worker| Bytes(worker.resident_bytes).to_string())),
        (
            "AVAILABLE",
            Right,
            Box::new(move |worker| {
                known(told(worker), |machine| Bytes(machine.memory_available_bytes).to_string())
            }),
        ),
        ("CPU", Right, Box::new(|worker| known(worker.machine.processors_busy, share))),
        ("GPU", Right, Box::new(|worker| known(worker.card.and_then(|card| card.busy), share))),
        ("TEMP", Right, Box::new(|worker| known(temperature(worker), |celsius| format!("{celsius:.0} °C")))),
    ];
    if width == Width::Wide {
        let more: Vec<Column<'_, WorkerStatus>> = vec![
            ("STATE", Left, Box::new(|worker| worker.state.clone())),
            ("THREADS", Right, Box::new(|worker| worker.threads.to_string())),
            ("PEAK", Right, Box::new(|worker| Bytes(worker.peak_resident_bytes).to_string())),
            (
                "SWAPPED",
                Right,
                Box::new(move |worker| {
                    known(told(worker), |machine| Bytes(machine.swap_used_bytes).to_string())
                }),
            ),
            (
                "BANDWIDTH",
                Right,
                Box::new(|worker| format!("{:.1} GB/s", worker.bandwidth_bytes_per_s / 1e9)),
            ),
            ("COMPUTE", Right, Box::new(|worker| format!("{:.0} GFLOP/s", worker.flops_per_s / 1e9))),
            ("ADDRESS", Left, Box::new(|worker| worker.address.clone())),
        ];
        columns.extend(more);
    }
    table(&status.workers, columns)
}

fn share(of_one: f32) -> String {
    percent(f64::from(of_one))
}

/// That of what it computes on.
fn temperature(worker: &WorkerStatus) -> Option<f32> {
    match worker.card {
        Some(card) => card.temperature_celsius,
        None => worker.machine.temperature_celsius,
    }
}

fn links(workers: &[WorkerStatus]) -> Table {
    use Align::{Left, Right};
    let links = workers.iter().flat_map(|worker| worker.links.iter().map(move |link| (worker, link)));
    let links: Vec<(&WorkerStatus, &LinkStatus)> = links.collect();
    let rate = |bytes_per_s: f64| format!("{}/s", Bytes(bytes_per_s as u64));
    let columns: Vec<Column<'_, (&WorkerStatus, &LinkStatus)>> = vec![
        ("LINK OF", Left, Box::new(|(worker, _)| worker.name.clone())),
        ("TO", Left, Box::new(|(_, link)| link.peer_name.clone())),
        ("AT", Left, Box::new(|(_, link)| link.address.clone())),
        ("RTT", Right, Box::new(|(_, link)| microseconds(link.rtt_us))),
        ("SENDS", Right, Box::new(move |(_, link)| rate(link.sent_bytes_per_s))),
        ("RECEIVES", Right, Box::new(move |(_, link)| rate(link.received_bytes_per_s))),
        ("LOSES", Right, Box::new(|(_, link)| format!("{:.1}%", link.loss * 100.0))),
        ("WHY THERE", Left, Box::new(|(_, link)| link.choice.clone())),
    ];
    table(&links, columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{MachineStatus, ModelStatus, RateStatus, RequestStatus, StepStatus};

    #[test]
    fn a_serving_cluster_is_shown_with_stages_and_workers() {
        let slow = Health {
            state: HealthState::Slow,
            reason: Some("steps take 5 times as long".to_owned()),
            advice: Some("look at box\u{7}".to_owned()),
        };
        let status = ClusterStatus {
            phase: Phase::Serving,
            health: Health { reason: Some("stage 0 on w1".to_owned()), ..slow.clone() },
            rates: RateStatus {
                generated_tokens_per_s: 8.54,
                ttft_ms_p50: 210.0,
                itl_ms_p50: 117.0,
                ..RateStatus::default()
            },
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
                step_share: 1.0,
                busy: 0.314,
                health: slow.clone(),
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
                health: slow.clone(),
                machine: MachineStatus {
                    memory_bytes: 4 << 30,
                    memory_available_bytes: 3 << 29,
                    processors_busy: Some(0.85),
                    temperature_celsius: Some(71.0),
                    ..MachineStatus::default()
                },
                links: vec![LinkStatus {
                    address: "10.0.0.2:9000".to_owned(),
                    choice: "the only one that answers".to_owned(),
                    loss: 0.005,
                    ..LinkStatus::default()
                }],
                ..WorkerStatus::default()
            }],
            ..ClusterStatus::default()
        };
        assert_eq!(
            render_status(&status),
            "\
model     tiny
phase     serving
health    slow
context   256 tokens; cache 64 of 512 tokens reserved
links     hidden states cross as f32
requests  1 running, 0 waiting; 0 finished, 0 cancelled, 0 failed; 0 prompt and 42 generated tokens
speed     8.5 generated and 0.0 prompt tokens/s; first token after 210 ms, then every 117.0 ms
steps     9; decode 1.5 ms (p99 2.5 ms), of it on the wire -; prefill -

STAGE   WORKER   HEALTH   HOLDS                             MEMORY   DECODE   PREFILL   OF STEP   BUSY
    0   w1       slow     embedding + layers 0..2 + head   4.0 MiB   900 us         -      100%    31%

WORKER   HOST   HEALTH   SEEN   DEVICE     BUDGET   RESIDENT   AVAILABLE   CPU   GPU    TEMP
w1       box    slow       2m   cpu      64.0 MiB   20.0 MiB     1.5 GiB   85%     -   71 °C

! w1 slow: steps take 5 times as long; look at box?

w1 sleeps after each step, which takes 4 times as long: --stretch is set
"
        );
        let wide = render_status_wide(&status);
        for shown in ["20.5 GB/s", "127.0.0.1:5000", "10.0.0.2:9000", "the only one that answers", "0.5%"] {
            assert!(wide.contains(shown), "{shown} is missing in\n{wide}");
        }
    }

    #[test]
    fn what_concerns_all_stages_is_said_once() {
        let full =
            Health { state: HealthState::Full, reason: Some("requests wait: 3".to_owned()), advice: None };
        let worker =
            |name: &str| WorkerStatus { name: name.into(), health: full.clone(), ..WorkerStatus::default() };
        let stage = StageStatus { health: full.clone(), ..StageStatus::default() };
        let mut status = ClusterStatus {
            phase: Phase::Serving,
            health: full.clone(),
            stages: vec![stage; 2],
            workers: vec![worker("w1"), worker("w2")],
            ..ClusterStatus::default()
        };
        status.workers[1].health.state = HealthState::Hot;
        assert_eq!(
            complaints(&status),
            "! the cluster is full: requests wait: 3\n! w2 hot: requests wait: 3\n"
        );
    }

    #[test]
    fn a_waiting_cluster_says_why() {
        let status = ClusterStatus {
            reason: Some("needs 40.0 MiB more".to_owned()),
            stages: vec![StageStatus {
                health: Health { state: HealthState::Loading, ..Health::default() },
                loaded: 0.254,
                ..StageStatus::default()
            }],
            ..ClusterStatus::default()
        };
        let text = render_status(&status);
        assert!(text.contains("phase     waiting\nhealth    ok\nreason    needs 40.0 MiB more\n"), "{text}");
        assert!(text.contains("loading 25%"), "{text}");
        assert!(!text.contains("BUDGET"), "no table of no workers: {text}");
    }
}
