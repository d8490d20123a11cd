//! Gauges of what the status says, made when they are asked for: what is gone from the status is gone from them.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use tokio::sync::watch;

use crate::status::{
    CardStatus, ClusterStatus, DeliveryStatus, LinkStatus, Phase, StageStatus, WorkerStatus,
};

/// The status as metrics.
#[derive(Debug)]
pub struct StatusMetrics {
    status: watch::Receiver<Arc<ClusterStatus>>,
}

impl StatusMetrics {
    /// Metrics of the newest status.
    pub fn new(status: watch::Receiver<Arc<ClusterStatus>>) -> StatusMetrics {
        StatusMetrics { status }
    }
}

impl Collector for StatusMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.status.borrow().clone();
        let gauges = [
            of_cluster(&status),
            of_pulls(&status),
            of_stages(&status),
            of_workers(&status),
            of_links(&status),
        ];
        gauges.iter().flatten().try_for_each(|gauge| gauge.encode(&mut encoder))
    }
}

type Labels = Vec<(&'static str, String)>;

/// One gauge with its values.
struct Gauge {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    values: Vec<(Labels, f64)>,
}

impl Gauge {
    fn new(name: &'static str, help: &'static str, values: Vec<(Labels, f64)>) -> Gauge {
        Gauge { name, help, unit: None, values }
    }

    fn one(name: &'static str, help: &'static str, value: f64) -> Gauge {
        Gauge::new(name, help, vec![(Labels::new(), value)])
    }

    fn of_unit(self, unit: Unit) -> Gauge {
        Gauge { unit: Some(unit), ..self }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        if self.values.is_empty() {
            return Ok(());
        }
        let unit = self.unit.as_ref();
        // As those of the registry end.
        let help = format!("{}.", self.help);
        let mut metric = encoder.encode_descriptor(self.name, &help, unit, MetricType::Gauge)?;
        for (place, (labels, value)) in self.values.iter().enumerate() {
            // Two equal series would make all of the text invalid.
            if self.values[..place].iter().any(|(before, _)| before == labels) {
                continue;
            }
            if labels.is_empty() {
                metric.encode_gauge(value)?;
            } else {
                ConstGauge::new(*value).encode(metric.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

fn truth(is: bool) -> f64 {
    f64::from(u8::from(is))
}

fn of_cluster(status: &ClusterStatus) -> Vec<Gauge> {
    let one = |name, help, value| Gauge::one(name, help, value);
    let requests = &status.requests;
    let (cache, reserved) = (f64::from(status.cache_tokens), f64::from(status.cache_tokens_reserved));
    let usage = if cache > 0.0 { reserved / cache } else { 0.0 };
    let attached = status.workers.iter().filter(|worker| worker.state != "lost").count();
    let drafting = status.draft.as_ref().is_some_and(|draft| draft.phase == Phase::Serving);
    vec![
        one("num_requests_running", "Requests that hold cache", f64::from(requests.running)),
        one("num_requests_waiting", "Requests that wait for cache", f64::from(requests.waiting)),
        one(
            "kv_cache_usage_ratio",
            "Share of the pipeline's cache reserved for requests, from 0 to 1",
            usage,
        ),
        one("cache_tokens", "Cache tokens of the pipeline", cache),
        one("cache_tokens_reserved", "Cache tokens reserved for requests", reserved),
        one(
            "cache_tokens_kept",
            "Cache tokens kept for prompts to come",
            f64::from(status.cache_tokens_kept),
        ),
        one("serving", "1 where requests are served", truth(status.phase == Phase::Serving)),
        one("epoch", "The plan's number", status.epoch as f64),
        one("workers", "Workers attached", attached as f64),
        one("draft_model", "1 where a draft model is in use", truth(drafting)),
    ]
}

fn of_pulls(status: &ClusterStatus) -> Vec<Gauge> {
    let each = |value: fn(&DeliveryStatus) -> Option<f64>| {
        let pulls = status.pulls.iter();
        let told = pulls.filter_map(|pull| {
            Some((vec![("name", pull.name.clone()), ("phase", pull.phase.clone())], value(&pull.delivery)?))
        });
        told.collect::<Vec<_>>()
    };
    vec![
        Gauge::new(
            "pull_done",
            "Bytes that a pull into the store has fetched, copied or checked, as its phase says",
            each(|pull| Some(pull.fetched_bytes as f64)),
        )
        .of_unit(Unit::Bytes),
        Gauge::new(
            "pull_wanted",
            "Bytes that it is to be, where that is known",
            each(|pull| (pull.wanted_bytes > 0).then_some(pull.wanted_bytes as f64)),
        )
        .of_unit(Unit::Bytes),
        Gauge::new(
            "pull_bytes_per_second",
            "How fast that goes, lately",
            each(|pull| Some(pull.bytes_per_s)),
        ),
    ]
}

fn of_stages(status: &ClusterStatus) -> Vec<Gauge> {
    let label =
        |stage: &StageStatus| vec![("stage", stage.stage.to_string()), ("worker", stage.worker.clone())];
    let with = |stage: &StageStatus, name, value: &str| {
        let mut labels = label(stage);
        labels.push((name, value.to_owned()));
        labels
    };
    let memory = status.stages.iter().flat_map(|stage| {
        let parts = [
            ("weights", stage.weight_bytes),
            ("cache", stage.cache_bytes),
            ("workspace", stage.workspace_bytes),
        ];
        parts.map(|(part, bytes)| (with(stage, "part", part), bytes as f64))
    });
    let health = status.stages.iter().map(|stage| (with(stage, "state", stage.health.state.as_str()), 1.0));
    let each = |value: fn(&StageStatus) -> f64| {
        status.stages.iter().map(|stage| (label(stage), value(stage))).collect::<Vec<_>>()
    };
    let fetching = |value: fn(&DeliveryStatus) -> f64| {
        let stages = status.stages.iter();
        let told = stages.filter_map(|stage| Some((label(stage), value(stage.delivery.as_ref()?))));
        told.collect::<Vec<_>>()
    };
    let predicted = each(|stage| f64::from(stage.predicted_decode_us) / 1e6);
    vec![
        Gauge::new("stage_memory", "Memory of a stage, by what it is for", memory.collect())
            .of_unit(Unit::Bytes),
        Gauge::new("stage_loaded_ratio", "Share of a stage's weights read, from 0 to 1", each(|s| s.loaded)),
        Gauge::new(
            "stage_fetched",
            "Bytes of a stage's weights that have come from other machines for the load under way",
            fetching(|delivery| delivery.fetched_bytes as f64),
        )
        .of_unit(Unit::Bytes),
        Gauge::new(
            "stage_fetching",
            "Bytes of a stage's weights that are to come from other machines for the load under way",
            fetching(|delivery| delivery.wanted_bytes as f64),
        )
        .of_unit(Unit::Bytes),
        Gauge::new(
            "stage_fetching_bytes_per_second",
            "How fast a stage's weights come from other machines",
            fetching(|delivery| delivery.bytes_per_s),
        ),
        Gauge::new(
            "stage_busy_ratio",
            "Share of the last seconds that a stage computed, from 0 to 1",
            each(|s| s.busy),
        ),
        Gauge::new(
            "stage_step_share_ratio",
            "A stage's share of what a decode step is computed for on all stages, from 0 to 1",
            each(|s| s.step_share),
        ),
        Gauge::new("stage_predicted_decode", "What was predicted of a decode step of one row", predicted)
            .of_unit(Unit::Seconds),
        Gauge::new("stage_health", "1 for the state that a stage is in", health.collect()),
    ]
}

fn of_workers(status: &ClusterStatus) -> Vec<Gauge> {
    let label = |worker: &WorkerStatus| vec![("worker", worker.id.clone())];
    let with = |worker: &WorkerStatus, name, value: &str| {
        vec![("worker", worker.id.clone()), (name, value.to_owned())]
    };
    let is_there = |worker: &&WorkerStatus| worker.state != "lost";
    let there = || status.workers.iter().filter(is_there);
    let each = |value: fn(&WorkerStatus) -> Option<f64>| {
        there().filter_map(|worker| Some((label(worker), value(worker)?))).collect::<Vec<_>>()
    };
    // A machine that has told nothing yet has no memory.
    let machine = |value: fn(&WorkerStatus) -> u64| {
        let told = there().filter(|worker| worker.machine.memory_bytes > 0);
        told.map(|worker| (label(worker), value(worker) as f64)).collect::<Vec<_>>()
    };
    let sensors = |of_machine: fn(&WorkerStatus) -> Option<f32>, of_card: fn(&CardStatus) -> Option<f32>| {
        let both = |worker: &WorkerStatus| {
            [("processor", of_machine(worker)), ("card", worker.card.as_ref().and_then(of_card))]
        };
        let told = there().flat_map(|worker| both(worker).map(|(part, value)| (worker, part, value)));
        told.filter_map(|(worker, part, value)| Some((with(worker, "part", part), f64::from(value?))))
            .collect()
    };
    let attached = status.workers.iter().map(|worker| (label(worker), truth(is_there(&worker))));
    let health = status.workers.iter().map(|worker| {
        let mut labels = with(worker, "state", worker.health.state.as_str());
        labels.push(("name", worker.name.clone()));
        (labels, 1.0)
    });
    let temperatures: Vec<_> = sensors(|w| w.machine.temperature_celsius, |c| c.temperature_celsius);
    let powers: Vec<_> = sensors(|w| w.machine.power_watts, |c| c.power_watts);
    let card = |value: fn(&CardStatus) -> Option<f64>| {
        let cards = there().filter_map(|worker| Some((label(worker), value(worker.card.as_ref()?)?)));
        cards.collect::<Vec<_>>()
    };
    let bytes = |name, help, values| Gauge::new(name, help, values).of_unit(Unit::Bytes);
    vec![
        Gauge::new(
            "worker_attached",
            "1 for a worker that is there, 0 for one that was lost lately",
            attached.collect(),
        ),
        Gauge::new("worker_health", "1 for the state that a worker is in", health.collect()),
        bytes("worker_resident", "Resident memory of a worker", each(|w| Some(w.resident_bytes as f64))),
        bytes(
            "worker_fetched",
            "Weights that a worker has got from other machines since it started",
            each(|w| Some(w.fetched_bytes as f64)),
        ),
        bytes(
            "worker_given",
            "Weights that a worker has given to other machines since it started",
            each(|w| Some(w.given_bytes as f64)),
        ),
        bytes("worker_budget", "What a worker may use", each(|w| Some(w.budget_bytes as f64))),
        bytes("worker_memory", "Memory of a worker's machine", machine(|w| w.machine.memory_bytes)),
        bytes(
            "worker_memory_available",
            "What a program could get of that without anything being swapped out",
            machine(|w| w.machine.memory_available_bytes),
        ),
        bytes(
            "worker_swap_used",
            "What a worker's machine has swapped out",
            machine(|w| w.machine.swap_used_bytes),
        ),
        Gauge::new(
            "worker_paged_in_bytes_per_second",
            "What a worker's machine reads back from swap, and from files that had been dropped",
            each(|w| w.machine.paged_in_bytes_per_s),
        ),
        Gauge::new(
            "worker_processors_busy_ratio",
            "How busy the processors of a worker's machine are together, from 0 to 1",
            each(|w| w.machine.processors_busy.map(f64::from)),
        ),
        Gauge::new(
            "worker_processors_used",
            "How many processors a worker keeps busy",
            each(|w| w.process.processors.map(f64::from)),
        ),
        Gauge::new("worker_temperature", "Temperature of a worker's processors and card", temperatures)
            .of_unit(Unit::Celsius),
        Gauge::new("worker_power", "What a worker's processors and card draw", powers)
            .of_unit(Unit::Other("watts".to_owned())),
        Gauge::new(
            "worker_card_busy_ratio",
            "How busy a worker's card is, from 0 to 1",
            card(|card| card.busy.map(f64::from)),
        ),
        bytes("worker_card_memory", "Memory of a worker's card", card(|card| Some(card.memory_bytes as f64))),
        bytes(
            "worker_card_memory_free",
            "Free memory of a worker's card",
            card(|card| Some(card.memory_free_bytes as f64)),
        ),
        Gauge::new(
            "worker_stretch",
            "How many times as long as needed a worker's steps take",
            each(|w| Some(w.stretch)),
        ),
    ]
}

fn of_links(status: &ClusterStatus) -> Vec<Gauge> {
    let there = status.workers.iter().filter(|worker| worker.state != "lost");
    let links: Vec<(Labels, &LinkStatus)> = there
        .flat_map(|worker| worker.links.iter().map(move |link| (worker, link)))
        .map(|(worker, link)| (vec![("worker", worker.id.clone()), ("peer", link.peer.clone())], link))
        .collect();
    let each = |value: fn(&LinkStatus) -> f64| {
        links.iter().map(|(labels, link)| (labels.clone(), value(link))).collect::<Vec<_>>()
    };
    vec![
        Gauge::new(
            "link_rtt",
            "Round trip of a link, seen from a worker",
            each(|link| f64::from(link.rtt_us) / 1e6),
        )
        .of_unit(Unit::Seconds),
        Gauge::new("link_sent_bytes_per_second", "What a link sends", each(|link| link.sent_bytes_per_s)),
        Gauge::new(
            "link_received_bytes_per_second",
            "What a link receives",
            each(|link| link.received_bytes_per_s),
        ),
        Gauge::new(
            "link_loss_ratio",
            "Share of a link's packets lost lately, from 0 to 1",
            each(|link| link.loss),
        ),
        Gauge::new(
            "link_lost_packets",
            "Packets lost since the link stands",
            each(|link| link.lost_packets as f64),
        ),
    ]
}
