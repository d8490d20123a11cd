//! `docs/metrics.md` lists what the program exports, all of it and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use brigade_proto::step::StepKind;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use super::{Metrics, Outcome, RecoveryPart, StatusMetrics};
use crate::status::{
    CardStatus, ClusterStatus, DeliveryStatus, LinkStatus, MachineStatus, ProcessStatus, PullStatus,
    StageStatus, WorkerStatus,
};

/// A status that tells all that there is.
fn full_status() -> ClusterStatus {
    let machine = MachineStatus {
        memory_bytes: 1,
        paged_in_bytes_per_s: Some(1.0),
        processors_busy: Some(0.5),
        temperature_celsius: Some(60.0),
        power_watts: Some(30.0),
        ..MachineStatus::default()
    };
    let card = CardStatus { busy: Some(0.5), temperature_celsius: Some(70.0), ..CardStatus::default() };
    let worker = WorkerStatus {
        id: "anna-1".into(),
        state: "attached".into(),
        machine,
        process: ProcessStatus { processors: Some(1.5), ..ProcessStatus::default() },
        card: Some(card),
        links: vec![LinkStatus { peer: "coordinator".into(), rtt_us: 250, ..LinkStatus::default() }],
        ..WorkerStatus::default()
    };
    let delivery = Some(DeliveryStatus::default());
    let stage = StageStatus { worker: "anna-1".into(), delivery, ..StageStatus::default() };
    let delivery = DeliveryStatus { wanted_bytes: 1, ..DeliveryStatus::default() };
    let pull = PullStatus { name: "m".into(), phase: "fetching".into(), delivery };
    ClusterStatus {
        pulls: vec![pull],
        cache_tokens: 100,
        cache_tokens_reserved: 25,
        stages: vec![stage],
        workers: vec![worker],
        ..ClusterStatus::default()
    }
}

/// All metrics, each with a value.
fn full_metrics(status: ClusterStatus) -> (Metrics, watch::Sender<Arc<ClusterStatus>>) {
    let (sender, receiver) = watch::channel(Arc::new(status));
    let metrics = Metrics::new(Registry::default(), StatusMetrics::new(receiver));
    metrics.count_request(Outcome::Finished);
    metrics.observe_step(StepKind::Decode, Duration::from_millis(1));
    metrics.observe_stage(0, StepKind::Decode, [1, 2, 3]);
    metrics.observe_recovery(RecoveryPart::Load, Duration::from_millis(1));
    (metrics, sender)
}

/// The table's lines: names as samples have them, without what histograms add.
fn table(text: &str) -> String {
    let mut help = BTreeMap::new();
    let mut types = BTreeMap::new();
    let mut labels: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some((name, what)) = line.strip_prefix("# HELP ").and_then(|line| line.split_once(' ')) {
            help.insert(name.to_owned(), what.trim_end_matches('.').to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' '))
        {
            types.insert(name.to_owned(), kind.to_owned());
        } else if let Some((sample, rest)) = line.split_once('{') {
            let (inside, _) = rest.split_once('}').expect("labels end");
            let name = help.keys().filter(|name| sample.starts_with(*name)).max_by_key(|name| name.len());
            let name = name.unwrap_or_else(|| panic!("{line} has no help"));
            let found = inside.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
            labels.entry(name.clone()).or_default().extend(found.filter(|label| label != "le"));
        }
    }
    let mut table = String::new();
    for (name, what) in help {
        let kind = &types[&name];
        let suffix = if kind == "counter" { "_total" } else { "" };
        let labels: Vec<String> = labels.remove(&name).unwrap_or_default().into_iter().collect();
        table.push_str(&format!("| `{name}{suffix}` | {kind} | {} | {what} |\n", labels.join(", ")));
    }
    table
}

#[test]
fn the_table_of_metrics_is_what_the_program_exports() {
    let (metrics, _status) = full_metrics(full_status());
    let expected = table(&metrics.encode());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = std::fs::read_to_string(path).expect("docs/metrics.md is there");
    let listed: String = document
        .lines()
        .filter(|line| line.starts_with("| `brigade_"))
        .map(|line| line.to_owned() + "\n")
        .collect();
    assert!(listed == expected, "docs/metrics.md must list:\n{expected}\nit lists:\n{listed}");
}

#[test]
fn what_is_gone_from_the_status_is_gone_from_the_metrics() {
    let (metrics, status) = full_metrics(full_status());
    let text = metrics.encode();
    for line in [
        "brigade_kv_cache_usage_ratio 0.25",
        "brigade_worker_attached{worker=\"anna-1\"} 1.0",
        "brigade_worker_temperature_celsius{worker=\"anna-1\",part=\"card\"} 70.0",
        "brigade_link_rtt_seconds{worker=\"anna-1\",peer=\"coordinator\"} 0.00025",
        "brigade_stage_health{stage=\"0\",worker=\"anna-1\",state=\"ok\"} 1.0",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    let mut lost = full_status();
    lost.stages.clear();
    lost.workers[0].state = "lost".into();
    status.send_replace(Arc::new(lost));
    let text = metrics.encode();
    assert!(text.contains("brigade_worker_attached{worker=\"anna-1\"} 0.0"), "{text}");
    for gone in
        ["brigade_worker_resident", "brigade_worker_temperature", "brigade_link_", "brigade_stage_health"]
    {
        assert!(!text.contains(gone), "{gone} is still there:\n{text}");
    }
}

#[test]
fn two_links_to_one_peer_leave_the_text_valid() {
    let mut status = full_status();
    let link = status.workers[0].links[0].clone();
    status.workers[0].links.push(link);
    let (metrics, _status) = full_metrics(status);
    assert_eq!(metrics.encode().matches("brigade_link_rtt_seconds{").count(), 1);
}
