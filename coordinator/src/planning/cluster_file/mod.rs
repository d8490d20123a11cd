//! Cluster files: devices, links and money written down in TOML, so that a plan needs no hardware.
//!
//! Every figure is checked: what is negative, not a number or beyond what exists is refused with its entry and the remedy.

mod device;
mod entries;
mod links;

use std::collections::{BTreeMap, BTreeSet};

use brigade_shard::catalogue::{self, CatalogueDevice, CatalogueLink, UnknownName};
use brigade_shard::kernels::Kernels;
use brigade_shard::plan::{MAX_DEVICES, SharedHost};

pub use device::{from_catalogue, parse_rate};
use entries::{DeviceEntry, EconomicsEntry, FileEntries, HostEntry};

use super::cluster::{Cluster, HostFacts};
use super::economics::{DEFAULT_LIFE_YEARS, EconomicsSettings};

/// What links name the coordinator.
const COORDINATOR: &str = "coordinator";

/// What is wrong with a cluster file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterFileError {
    /// It is not TOML, or has a field that no entry has.
    #[error("{0}")]
    Syntax(String),
    /// It lists no device.
    #[error("it lists no [[device]]: write at least one, such as [[device]] with type = \"RTX 5090\"")]
    NoDevices,
    /// It lists too many.
    #[error("it lists {0} devices, and a plan has at most {MAX_DEVICES}: lower `count`, or leave some out")]
    TooManyDevices(u64),
    /// One of its entries is wrong.
    #[error("{entry}: {problem}")]
    Entry {
        /// Which, such as ``[[device]] `studio` ``.
        entry: String,
        /// What is wrong, and what to do.
        problem: String,
    },
}

/// Where names of devices and links are looked up.
struct Names {
    device: fn(&str) -> Result<CatalogueDevice, UnknownName>,
    link: fn(&str) -> Result<CatalogueLink, UnknownName>,
}

impl Names {
    const CATALOGUE: Names = Names { device: catalogue::device, link: |name| catalogue::link(name).cloned() };
}

/// The cluster that the text of a cluster file describes.
///
/// # Errors
/// Where it is not TOML, has an unknown field or name, or a figure that cannot be.
pub fn parse_cluster(text: &str) -> Result<Cluster, ClusterFileError> {
    parse(text, &Names::CATALOGUE)
}

fn parse(text: &str, names: &Names) -> Result<Cluster, ClusterFileError> {
    let file = FileEntries::read(text)?;
    let hosts = Hosts::new(file.host)?;
    let mut cluster = Cluster::of_devices(Vec::new(), Vec::new(), links::assumed(), "");
    let mut groups = Vec::new();
    let mut taken = BTreeSet::from([COORDINATOR.to_owned()]);
    let total = file.device.iter().map(|entry| entry.count.unwrap_or(1)).fold(0u64, u64::saturating_add);
    if file.device.is_empty() {
        return Err(ClusterFileError::NoDevices);
    }
    if total > MAX_DEVICES as u64 {
        return Err(ClusterFileError::TooManyDevices(total));
    }
    for (number, entry) in file.device.into_iter().enumerate() {
        let words = entry.words(number);
        add_devices(&mut cluster, &mut groups, &mut taken, entry, &hosts, names)
            .map_err(|problem| ClusterFileError::Entry { entry: words, problem })?;
    }
    hosts.share(&mut cluster)?;
    check_shared(&cluster)?;
    cluster.boxes = hosts.facts();
    links::fill(&mut cluster, &groups, file.links, file.link, names)?;
    cluster.economics = economics(file.economics)
        .map_err(|problem| ClusterFileError::Entry { entry: "[economics]".to_owned(), problem })?;
    cluster.notes.extend(device::assumptions(&cluster));
    Ok(cluster)
}

/// Adds the devices of one entry, with the name that links know all of them by.
fn add_devices(
    cluster: &mut Cluster,
    groups: &mut Vec<String>,
    taken: &mut BTreeSet<String>,
    entry: DeviceEntry,
    hosts: &Hosts,
    names: &Names,
) -> Result<(), String> {
    let count = entry.count.unwrap_or(1);
    if count == 0 {
        return Err("count is 0; write how many of it there are, or leave the entry out".to_owned());
    }
    let (base, device, facts) = device::device(entry, hosts, names.device)?;
    if !taken.insert(base.clone()) {
        return Err(format!("the name `{base}` is taken already; give each [[device]] a `name` of its own"));
    }
    for number in 1..=count {
        let mut device = device.clone();
        if count > 1 {
            device.name = format!("{base}-{number}");
            if !taken.insert(device.name.clone()) {
                let name = &device.name;
                return Err(format!(
                    "count = {count} makes the name `{name}`, which is taken already; rename one"
                ));
            }
        }
        cluster.devices.push(device);
        cluster.facts.push(facts.clone());
        groups.push(base.clone());
    }
    Ok(())
}

/// The machines that `[[host]]` entries describe.
struct Hosts(Vec<HostEntry>);

impl Hosts {
    fn new(entries: Vec<HostEntry>) -> Result<Hosts, ClusterFileError> {
        let mut taken = BTreeSet::new();
        for host in &entries {
            let wrong = |problem: String| ClusterFileError::Entry { entry: host.words(), problem };
            entries::check_name("name", &host.name).map_err(wrong)?;
            if !taken.insert(host.name.as_str()) {
                return Err(wrong(
                    "the name is taken already; write one [[host]] for each machine".to_owned(),
                ));
            }
            host.check().map_err(wrong)?;
        }
        Ok(Hosts(entries))
    }

    /// Whether the file says what the machine around the devices draws.
    fn draws_power(&self, name: &str) -> bool {
        self.0.iter().any(|host| host.name == name && (host.idle_watts.or(host.loaded_watts)).is_some())
    }

    /// Has processors' devices share the memory of the machine they are in.
    fn share(&self, cluster: &mut Cluster) -> Result<(), ClusterFileError> {
        for host in &self.0 {
            let inside = |facts: &super::DeviceFacts| facts.host.as_ref() == Some(&host.name);
            if !cluster.facts.iter().any(inside) {
                let problem = "no [[device]] is in it; name it as their `host`, or leave it out".to_owned();
                return Err(ClusterFileError::Entry { entry: host.words(), problem });
            }
            let (Some(bandwidth), Some(processors)) = (host.bandwidth_gbps, host.processors) else {
                continue;
            };
            let index = cluster.hosts.len();
            cluster.hosts.push(SharedHost {
                bandwidth_bytes_per_s: bandwidth * 1e9,
                processors,
                speedup: f64::from(processors),
            });
            for (device, _) in
                cluster.devices.iter_mut().zip(&cluster.facts).filter(|(_, facts)| inside(facts))
            {
                // A card's memory is its own.
                if device.kernels == Kernels::CPU {
                    device.host = Some(index);
                }
            }
        }
        Ok(())
    }

    fn facts(self) -> Vec<HostFacts> {
        let facts = self.0.into_iter().map(|host| HostFacts {
            name: host.name,
            price_usd: host.price_usd,
            idle_watts: host.idle_watts,
            loaded_watts: host.loaded_watts,
        });
        facts.collect()
    }
}

/// Checks that processors of one machine do not count its memory's bandwidth twice.
fn check_shared(cluster: &Cluster) -> Result<(), ClusterFileError> {
    let mut alone: BTreeMap<&str, &str> = BTreeMap::new();
    for (device, facts) in cluster.devices.iter().zip(&cluster.facts) {
        let Some(host) =
            facts.host.as_deref().filter(|_| device.kernels == Kernels::CPU && device.host.is_none())
        else {
            continue;
        };
        if let Some(other) = alone.insert(host, &device.name) {
            let name = &device.name;
            return Err(ClusterFileError::Entry {
                entry: format!("[[device]] `{name}`"),
                problem: format!(
                    "it shares the memory of the host `{host}` with `{other}`: write [[host]] with name = \"{host}\", \
                     bandwidth_gbps, what they read together, and processors"
                ),
            });
        }
    }
    Ok(())
}

fn economics(entry: EconomicsEntry) -> Result<EconomicsSettings, String> {
    entry.check()?;
    Ok(EconomicsSettings {
        electricity_usd_per_kwh: entry.electricity_usd_per_kwh,
        hours_per_day: entry.hours_per_day.or(entry.utilisation.map(|share| share * 24.0)),
        api_usd_per_million_tokens: entry.api_usd_per_million_tokens,
        streams: entry.streams,
        life_years: entry.life_years.unwrap_or(DEFAULT_LIFE_YEARS),
    })
}

#[cfg(test)]
mod tests;
