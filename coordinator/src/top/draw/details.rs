//! Everything about the stage or worker that is selected.

use brigade_shard::units::Bytes;
use ratatui::style::Stylize as _;
use ratatui::text::Line;

use super::text::{holds, rate};
use crate::render::microseconds;
use crate::status::{CardStatus, LinkStatus, MachineStatus, StageStatus, Throttling, WorkerStatus};
use crate::top::state::{Pane, Top};

/// Its lines.
pub(super) fn lines(top: &Top) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if top.pane != Pane::Workers
        && let Some(stage) = top.selected_stage()
    {
        stage_lines(top, stage, &mut lines);
    }
    match top.selected_worker() {
        Some(worker) => worker_lines(worker, &mut lines),
        None => lines.push(Line::from(" no worker is selected")),
    }
    lines
}

fn field(name: &str, value: String) -> Line<'static> {
    Line::from(vec![format!(" {name:<9}").dark_gray(), value.into()])
}

fn stage_lines(top: &Top, stage: &StageStatus, lines: &mut Vec<Line<'static>>) {
    lines.push(field("stage", format!("{} {} {}", stage.stage, holds(stage), top.stage_word(stage))));
    let texts = [("why", &stage.health.reason), ("do", &stage.health.advice)];
    lines.extend(texts.into_iter().filter_map(|(name, text)| Some(field(name, text.clone()?))));
    let time = |us: u32| microseconds(us);
    lines.push(field(
        "decode",
        format!(
            "{} (p99 {}), {} predicted; {:.0}% of the step",
            time(stage.decode_us_p50),
            time(stage.decode_us_p99),
            time(stage.predicted_decode_us),
            stage.step_share * 100.0
        ),
    ));
    lines.push(field(
        "waited",
        format!(
            "{} (p99 {}); sent in {}",
            time(stage.queued_us_p50),
            time(stage.queued_us_p99),
            time(stage.sent_us_p50)
        ),
    ));
    let (weights, cache) = (Bytes(stage.weight_bytes), Bytes(stage.cache_bytes));
    lines.push(field("memory", format!("weights {weights}, cache {cache}")));
}

fn worker_lines(worker: &WorkerStatus, lines: &mut Vec<Line<'static>>) {
    lines.push(field("worker", format!("{} on {}, {}", worker.name, worker.host, worker.state)));
    let texts = [("why", &worker.health.reason), ("do", &worker.health.advice)];
    lines.extend(texts.into_iter().filter_map(|(name, text)| Some(field(name, text.clone()?))));
    lines.push(field("device", format!("{} {}", worker.device, worker.device_name)));
    let (resident, budget) = (Bytes(worker.resident_bytes), Bytes(worker.budget_bytes));
    lines.push(field("resident", format!("{resident} of {budget}")));
    if worker.machine.memory_bytes > 0 {
        lines.push(field("machine", machine(&worker.machine)));
    }
    if let Some(card) = &worker.card {
        lines.push(field("card", card_text(card)));
    }
    for link in &worker.links {
        link_lines(link, lines);
    }
}

fn machine(machine: &MachineStatus) -> String {
    let (free, all) = (Bytes(machine.memory_available_bytes), Bytes(machine.memory_bytes));
    let mut text = format!("{free} of {all} free");
    if machine.swap_used_bytes > 0 {
        text += &format!(", {} swapped out", Bytes(machine.swap_used_bytes));
    }
    let sensors = (machine.processors_busy, machine.temperature_celsius, machine.power_watts);
    text + &sensed(sensors, machine.throttle)
}

fn card_text(card: &CardStatus) -> String {
    let (free, all) = (Bytes(card.memory_free_bytes), Bytes(card.memory_bytes));
    let sensors = (card.busy, card.temperature_celsius, card.power_watts);
    format!("{free} of {all} free{}", sensed(sensors, card.throttle))
}

type Sensors = (Option<f32>, Option<f32>, Option<f32>);

fn sensed((busy, celsius, watts): Sensors, throttle: Option<Throttling>) -> String {
    let busy = busy.map(|busy| format!(", {:.0}% busy", busy * 100.0));
    let celsius = celsius.map(|celsius| format!(", {celsius:.0} C"));
    let watts = watts.map(|watts| format!(", {watts:.0} W"));
    let held_back = match throttle {
        Some(Throttling::Heat) => Some(", held back by heat".to_owned()),
        Some(Throttling::Power) => Some(", held back by power".to_owned()),
        Some(Throttling::None) | None => None,
    };
    [busy, celsius, watts, held_back].into_iter().flatten().collect()
}

fn link_lines(link: &LinkStatus, lines: &mut Vec<Line<'static>>) {
    let (peer, address) = (&link.peer_name, &link.address);
    lines.push(field("link", format!("{peer} at {address}, {} round trip", microseconds(link.rtt_us))));
    let loss = if link.loss > 0.0 { format!(", {:.1}% lost", link.loss * 100.0) } else { String::new() };
    let (out, back) = (rate(link.sent_bytes_per_s), rate(link.received_bytes_per_s));
    lines.push(field("", format!("{out} out, {back} in{loss}")));
    if !link.choice.is_empty() {
        lines.push(field("", link.choice.clone()));
    }
}
