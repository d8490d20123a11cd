//! `brigade plan --what-if`: which one more device helps most.

use brigade_shard::catalogue;
use brigade_shard::cost::Cost;
use brigade_shard::plan::{Objective, PlanDevice, PlanInput, Verdict, choices};

use crate::cli::UsageError;
use crate::planning::cluster_file::from_catalogue;
use crate::planning::report::{Foreseen, Loads, Ways};
use crate::planning::what_if::{Speeds, WhatIfRow};

/// A device that could be had.
pub(super) struct Candidate {
    device: PlanDevice,
    price_usd: Option<f64>,
}

/// The devices that a list of names means; all of the catalogue where it is empty.
pub(super) fn candidates(names: &str) -> anyhow::Result<Vec<Candidate>> {
    let names: Vec<&str> = names.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let devices = if names.is_empty() {
        catalogue::devices().to_vec()
    } else {
        let found: Result<Vec<_>, _> = names.into_iter().map(catalogue::device).collect();
        found.map_err(|unknown| {
            UsageError(format!("--what-if: {unknown}; `brigade plan --list devices` lists all"))
        })?
    };
    let candidates = devices.iter().map(|sold| {
        let (device, facts) = from_catalogue(sold, &sold.name);
        Candidate { device, price_usd: facts.price_usd }
    });
    Ok(candidates.collect())
}

/// A row for each candidate, in the order of what it gains for the objective.
pub(super) fn rows(
    cost: &Cost,
    input: &PlanInput,
    ways: &Ways,
    candidates: Vec<Candidate>,
    loads: Loads,
) -> anyhow::Result<Vec<WhatIfRow>> {
    let before = ways.recommended().map(speeds);
    let one_stream = input.objective == Objective::OneStream;
    let mut rows = Vec::new();
    for Candidate { device, price_usd } in candidates {
        let name = device.name.clone();
        let mut more = input.clone();
        more.devices.push(device);
        let with = Ways::of(cost, &more, choices(cost, &more)?, None, loads);
        let after = with.recommended().map(speeds);
        rows.push(WhatIfRow::new(name, price_usd, before, after, one_stream, in_words(with.verdict)));
    }
    let gain = |row: &WhatIfRow| {
        row.gain
            .map_or(f64::NEG_INFINITY, |gain| if one_stream { gain.one_stream } else { gain.many_streams })
    };
    rows.sort_by(|a, b| gain(b).total_cmp(&gain(a)));
    Ok(rows)
}

fn speeds(way: &Foreseen) -> Speeds {
    Speeds { one_stream: way.one.decode_tokens_per_s, many_streams: way.many.decode_tokens_per_s }
}

fn in_words(verdict: Verdict) -> String {
    match verdict {
        Verdict::OneBox => "one box".to_owned(),
        Verdict::Cluster => "cluster".to_owned(),
        Verdict::OneBoxWithOffload => "one box with offload".to_owned(),
        Verdict::NotAtAll { missing } => format!("not at all: {missing} are missing"),
    }
}
