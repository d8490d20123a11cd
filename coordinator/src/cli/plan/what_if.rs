//! `brigade plan --what-if`: which one more device helps most.

use brigade_shard::catalogue;
use brigade_shard::cost::Cost;
use brigade_shard::plan::{PlanDevice, PlanInput, what_if};

use crate::cli::UsageError;
use crate::planning::cluster_file::from_catalogue;
use crate::planning::what_if::WhatIfRow;

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
pub(super) fn rows(cost: &Cost, input: &PlanInput, candidates: &[Candidate]) -> Vec<WhatIfRow> {
    let devices: Vec<PlanDevice> = candidates.iter().map(|candidate| candidate.device.clone()).collect();
    let rows = what_if(cost, input, &devices).into_iter().filter_map(|found| {
        let Candidate { device, price_usd } = candidates.get(found.candidate)?;
        Some(WhatIfRow::new(device.name.clone(), *price_usd, &found, input.objective))
    });
    rows.collect()
}
