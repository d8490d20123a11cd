//! All that `brigade plan` has to say, for people.

use std::fmt::Write as _;

use brigade_shard::plan::{Objective, Optimality};

use super::plan::{milliseconds, render_stages};
use super::table::{Align, Table};
use crate::planning::economics::{Derived, EarnedBack, Economics, Sum};
use crate::planning::report::{DeviceView, Expected, PlanReport, Way, speed};
use crate::planning::what_if::{Step, WhatIfRow};

/// What stands for a figure that nobody tells.
const UNKNOWN: &str = "unknown";
/// What stands where there is nothing to tell.
const NONE: &str = "-";

/// A report: what was asked, the stages, speed, power and money, then the verdict with the other ways.
pub fn render_report(report: &PlanReport) -> String {
    let mut text = String::new();
    let asked = &report.asked;
    line(&mut text, "asked", &format!("{} from {}, on {}", asked.name, asked.source, asked.place));
    if let Some(plan) = &report.plan {
        text.push_str(&render_stages(plan));
        for streamed in &report.streamed {
            let words = format!(
                "{} reads its last {} layers again for every step, at {:.1} GB/s",
                streamed.device,
                streamed.layers,
                streamed.bytes_per_s / 1e9
            );
            line(&mut text, "offload", &words);
        }
        if let Some(expected) = &report.forecast {
            line(&mut text, "predicted", &decode(expected, asked.streams));
            line(&mut text, "prompt", &prompt(expected, asked.prompt_tokens));
        }
        if !plan.bottleneck.is_empty() {
            line(&mut text, "bottleneck", &plan.bottleneck);
        }
        if let Some(optimality) = report.optimality {
            line(&mut text, "search", &optimality_in_words(optimality));
        }
    }
    if let Some(economics) = report.economics.as_ref().filter(|economics| says_anything(economics)) {
        render_economics(&mut text, economics);
    }
    line(&mut text, "verdict", &report.verdict.sentence);
    let _ = write!(text, "\n{}", ways(&report.ways, asked.streams));
    let _ = write!(text, "\n{}", devices(&report.devices));
    if !report.what_if.is_empty() {
        let _ = write!(text, "\n{}", what_if(&report.what_if, asked.objective, asked.streams));
    }
    let notes = report.plan.iter().flat_map(|plan| &plan.notes);
    for (number, note) in notes.enumerate() {
        if number == 0 {
            text.push('\n');
        }
        line(&mut text, "note", note);
    }
    text
}

fn line(text: &mut String, key: &str, words: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{key:<10} {words}");
}

fn decode(expected: &Expected, streams: u32) -> String {
    let one = format!("{} for one stream", speed(expected.one_stream_tokens_per_s));
    if streams <= 1 {
        return one;
    }
    format!("{one}, {} for {streams} streams together", speed(expected.many_streams_tokens_per_s))
}

fn prompt(expected: &Expected, tokens: u32) -> String {
    match (expected.prompt_tokens_per_s, expected.ttft_ms) {
        (Some(rate), Some(ttft)) => {
            format!("{rate:.0} tokens/s, first token of a {tokens}-token prompt after {}", milliseconds(ttft))
        }
        _ => format!("{UNKNOWN}: nobody says how fast every device computes; give tflops"),
    }
}

fn optimality_in_words(optimality: Optimality) -> String {
    match optimality {
        Optimality::Exact => "exact: no other contiguous plan is predicted to be faster".to_owned(),
        Optimality::Within(share) => {
            format!("heuristic: no plan is predicted to take less than {:.0}% of its time", share * 100.0)
        }
    }
}

/// Without any figure of power or money there is nothing to reckon.
fn says_anything(economics: &Economics) -> bool {
    let sums = [&economics.loaded_watts, &economics.idle_watts, &economics.price_usd];
    sums.iter().any(|sum| sum.known.is_some())
}

fn render_economics(text: &mut String, economics: &Economics) {
    let power = format!("{} idle, {} loaded", watts(&economics.idle_watts), watts(&economics.loaded_watts));
    line(text, "power", &power);
    let hours = economics.settings.hours_per_day.map(|hours| format!(" at {} hours a day", round(hours)));
    let energy = format!(
        "{} per million tokens over {} streams, {} a year{}",
        derived(&economics.kwh_per_million_tokens, |kwh| format!("{kwh:.2} kWh")),
        economics.streams,
        derived(&economics.kwh_per_year, |kwh| format!("{kwh:.0} kWh")),
        hours.unwrap_or_default()
    );
    line(text, "energy", &energy);
    let yearly = derived(&economics.electricity_usd_per_year, |usd| format!("{usd:.2} USD a year"));
    line(text, "price", &format!("{}; electricity {yearly}", usd_sum(&economics.price_usd)));
    let api = economics.api_usd_per_million_tokens;
    let tokens = format!(
        "{} per million (hardware over {} years and electricity, which is {}); the API asks {}",
        derived(&economics.usd_per_million_tokens, |usd| format!("{usd:.2} USD")),
        round(economics.settings.life_years),
        derived(&economics.electricity_usd_per_million_tokens, |usd| format!("{usd:.2} USD")),
        api.map_or_else(|| UNKNOWN.to_owned(), |usd| format!("{usd:.2} USD"))
    );
    line(text, "tokens", &tokens);
    line(text, "paid back", &earned_back(economics));
}

fn earned_back(economics: &Economics) -> String {
    let years = round(economics.settings.life_years);
    match &economics.earned_back {
        EarnedBack::Month { month, within_life: true } => format!("in month {month}"),
        EarnedBack::Month { month, within_life: false } => {
            format!("never within the {years} years that the hardware is used: it would be in month {month}")
        }
        EarnedBack::Never { lost_usd_per_month } => format!(
            "never: electricity alone costs {lost_usd_per_month:.2} USD a month more than the API asks for as many tokens"
        ),
        EarnedBack::Unknown { missing } => format!("{UNKNOWN}: give {}", missing.join(", ")),
    }
}

fn watts(sum: &Sum) -> String {
    sum_in_words(sum, |watts| format!("{} W", round(watts)))
}

fn usd_sum(sum: &Sum) -> String {
    sum_in_words(sum, |usd| format!("{usd:.0} USD"))
}

/// A sum with the names of what it leaves out.
fn sum_in_words(sum: &Sum, words: impl Fn(f64) -> String) -> String {
    match (sum.known, sum.left_out.as_slice()) {
        (None, _) => UNKNOWN.to_owned(),
        (Some(known), []) => words(known),
        (Some(known), left_out) => format!("{} without {} ({UNKNOWN})", words(known), left_out.join(", ")),
    }
}

fn derived(value: &Derived, words: impl Fn(f64) -> String) -> String {
    match value {
        Derived::Known(value) => words(*value),
        Derived::Unknown(_) => UNKNOWN.to_owned(),
    }
}

/// A number with at most one digit behind the point.
fn round(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    format!("{rounded}")
}

fn ways(ways: &[Way], streams: u32) -> String {
    let many = format!("{streams} STREAMS");
    let mut table = Table::new(&[
        ("", Align::Left),
        ("WAY", Align::Left),
        ("DEVICES", Align::Left),
        ("ONE STREAM", Align::Right),
        (&many, Align::Right),
        ("FIRST TOKEN", Align::Right),
        ("LOADED", Align::Right),
        ("PRICE", Align::Right),
        ("USD/MILLION", Align::Right),
        ("WHY", Align::Left),
    ]);
    for way in ways {
        let forecast =
            |figure: fn(&Expected) -> String| way.forecast.as_ref().map_or_else(|| NONE.to_owned(), figure);
        let money =
            |figure: fn(&Economics) -> String| way.economics.as_ref().map_or_else(|| NONE.to_owned(), figure);
        table.row([
            if way.shown { "*".to_owned() } else { String::new() },
            way.what.clone(),
            if way.devices.is_empty() { NONE.to_owned() } else { way.devices.join(", ") },
            forecast(|expected| speed(expected.one_stream_tokens_per_s)),
            forecast(|expected| speed(expected.many_streams_tokens_per_s)),
            forecast(|expected| expected.ttft_ms.map_or_else(|| UNKNOWN.to_owned(), milliseconds)),
            money(|economics| watts(&economics.loaded_watts)),
            money(|economics| usd_sum(&economics.price_usd)),
            money(|economics| derived(&economics.usd_per_million_tokens, |usd| format!("{usd:.2}"))),
            way.reason.clone(),
        ]);
    }
    table.to_string()
}

fn devices(devices: &[DeviceView]) -> String {
    let mut table = Table::new(&[
        ("DEVICE", Align::Left),
        ("BUDGET", Align::Right),
        ("BANDWIDTH", Align::Right),
        ("ARITHMETIC", Align::Right),
        ("OFFLOAD", Align::Right),
        ("IDLE", Align::Right),
        ("LOADED", Align::Right),
        ("PRICE", Align::Right),
        ("FIGURES FROM", Align::Left),
    ]);
    let known = |value: Option<f64>, unit: &str| {
        value.map_or_else(|| UNKNOWN.to_owned(), |value| format!("{} {unit}", round(value)))
    };
    for device in devices {
        let facts = &device.facts;
        let source = match &facts.catalogue {
            Some(name) => format!("catalogue, {name}: {}", facts.source),
            None => facts.source.clone(),
        };
        table.row([
            device.name.clone(),
            device.budget_bytes.to_string(),
            format!("{:.1} GB/s", device.bandwidth_bytes_per_s / 1e9),
            device
                .flops_per_s
                .map_or_else(|| UNKNOWN.to_owned(), |flops| format!("{:.1} TFLOP/s", flops / 1e12)),
            device
                .offload_bytes_per_s
                .map_or_else(|| NONE.to_owned(), |rate| format!("{:.1} GB/s", rate / 1e9)),
            known(facts.idle_watts, "W"),
            known(facts.loaded_watts, "W"),
            known(facts.price_usd, "USD"),
            source,
        ]);
    }
    table.to_string()
}

fn what_if(rows: &[WhatIfRow], objective: Objective, streams: u32) -> String {
    let many = format!("{streams} STREAMS");
    let mut table = Table::new(&[
        ("ONE MORE", Align::Left),
        ("ONE STREAM", Align::Right),
        ("MORE", Align::Right),
        (&many, Align::Right),
        ("MORE", Align::Right),
        ("PRICE", Align::Right),
        ("USD PER TOKEN/S", Align::Right),
        ("VERDICT THEN", Align::Left),
    ]);
    let after = |step: Step| step.after.map_or_else(|| NONE.to_owned(), speed);
    let more = |step: Step| step.gain().map_or_else(|| NONE.to_owned(), |gain| format!("{gain:+.2}"));
    for row in rows {
        table.row([
            row.device.clone(),
            after(row.one_stream),
            more(row.one_stream),
            after(row.many_streams),
            more(row.many_streams),
            row.price_usd.map_or_else(|| UNKNOWN.to_owned(), |usd| format!("{usd:.0} USD")),
            row.usd_per_token_per_s.map_or_else(|| NONE.to_owned(), |usd| format!("{usd:.0}")),
            row.verdict.clone(),
        ]);
    }
    let of = match objective {
        Objective::OneStream => "of one stream",
        Objective::ManyStreams => "of all streams",
    };
    format!("What one more device would bring; the price is for each token/s more {of}:\n{table}")
}
