//! Links of a cluster file: what holds for all, and for pairs.

use std::collections::BTreeSet;

use brigade_shard::catalogue::{CatalogueLink, UnknownName};
use brigade_shard::plan::{HopCost, Links};

use super::entries::{LinkEntry, LinksEntry};
use super::{COORDINATOR, ClusterFileError, Names};
use crate::planning::cluster::{Cluster, LOOPBACK};

/// What links cost of which a file says nothing.
pub(super) fn assumed() -> Links {
    Links::all(HopCost::default())
}

/// Fills in the cluster's links; `groups` holds for each device the name that all of its entry share.
pub(super) fn fill(
    cluster: &mut Cluster,
    groups: &[String],
    all: LinksEntry,
    pairs: Vec<LinkEntry>,
    names: &Names,
) -> Result<(), ClusterFileError> {
    let wrong = |problem| ClusterFileError::Entry { entry: "[links]".to_owned(), problem };
    all.check().map_err(wrong)?;
    let devices = cluster.devices.len();
    match hop(all.default.as_deref(), all.gbit_per_s, all.rtt_us, names).map_err(wrong)? {
        Some(hop) => cluster.links.default = hop,
        None if devices > 1 => cluster
            .notes
            .push("no [links] are written down: gigabit Ethernet is assumed between machines".to_owned()),
        None => {}
    }
    for one in 0..devices {
        for other in one + 1..devices {
            let host = &cluster.facts[one].host;
            if host.is_some() && *host == cluster.facts[other].host {
                cluster.links.pairs.insert((one, other), LOOPBACK);
            }
        }
    }
    if let Some(hop) = hop(all.coordinator.as_deref(), None, None, names).map_err(wrong)? {
        cluster.links.coordinator.extend((0..devices).map(|device| (device, hop)));
    }
    let mut said = BTreeSet::new();
    for entry in pairs {
        pair(cluster, groups, &entry, names, &mut said)
            .map_err(|problem| ClusterFileError::Entry { entry: entry.words(), problem })?;
    }
    Ok(())
}

/// What one entry says, of every pair that its names stand for.
fn pair(
    cluster: &mut Cluster,
    groups: &[String],
    entry: &LinkEntry,
    names: &Names,
    said: &mut BTreeSet<(Option<usize>, usize)>,
) -> Result<(), String> {
    entry.check()?;
    let hop = hop(entry.kind.as_deref(), entry.gbit_per_s, entry.rtt_us, names)?.unwrap_or_default();
    let [one, other] = &entry.between;
    let mut add = |ends: (Option<usize>, usize), links: &mut Links| {
        if !said.insert(ends) {
            return Err("another [[link]] speaks of the same two; leave one of them out".to_owned());
        }
        match ends {
            (Some(first), second) => links.pairs.insert((first, second), hop),
            (None, device) => links.coordinator.insert(device, hop),
        };
        Ok(())
    };
    if one == COORDINATOR || other == COORDINATOR {
        let device = if one == COORDINATOR { other } else { one };
        for device in meant(cluster, groups, device)? {
            add((None, device), &mut cluster.links)?;
        }
        return Ok(());
    }
    let (ones, others) = (meant(cluster, groups, one)?, meant(cluster, groups, other)?);
    let pairs: BTreeSet<(usize, usize)> = ones
        .iter()
        .flat_map(|one| others.iter().map(|other| (*one.min(other), *one.max(other))))
        .filter(|(one, other)| one != other)
        .collect();
    if pairs.is_empty() {
        return Err("a link is between two devices; name two of them".to_owned());
    }
    pairs.into_iter().try_for_each(|(one, other)| add((Some(one), other), &mut cluster.links))
}

/// The devices that a name stands for: one, all of an entry, or all in a machine.
fn meant(cluster: &Cluster, groups: &[String], name: &str) -> Result<Vec<usize>, String> {
    let is = |device: &usize| {
        let (own, group) = (&cluster.devices[*device].name, &groups[*device]);
        own == name || group == name || cluster.facts[*device].host.as_deref() == Some(name)
    };
    let found: Vec<usize> = (0..cluster.devices.len()).filter(is).collect();
    if found.is_empty() {
        let names: BTreeSet<&str> = groups.iter().map(String::as_str).collect();
        let names: Vec<&str> = names.into_iter().collect();
        return Err(format!("there is no device or host `{name}`; the devices are {}", names.join(", ")));
    }
    Ok(found)
}

/// A link of the catalogue, of own figures, or with some of them in place of the catalogue's; `None` where nothing is said.
fn hop(
    kind: Option<&str>,
    gbit_per_s: Option<f64>,
    rtt_us: Option<f64>,
    names: &Names,
) -> Result<Option<HopCost>, String> {
    let sold: Result<Option<CatalogueLink>, UnknownName> = kind.map(names.link).transpose();
    let sold = sold.map_err(|unknown| {
        format!("{unknown}; `brigade plan --list links` lists all, or write gbit_per_s and rtt_us")
    })?;
    let bytes_per_s = gbit_per_s.map(|rate| rate * 1e9 / 8.0);
    Ok(match (sold, bytes_per_s, rtt_us) {
        (Some(CatalogueLink { hop, .. }), rate, rtt) => {
            Some(HopCost { rtt_us: rtt.unwrap_or(hop.rtt_us), bytes_per_s: rate.unwrap_or(hop.bytes_per_s) })
        }
        (None, Some(bytes_per_s), Some(rtt_us)) => Some(HopCost { rtt_us, bytes_per_s }),
        (None, ..) => None,
    })
}
