//! One device of a cluster file, from its own figures or the catalogue's.

use brigade_proto::control::DeviceKind;
use brigade_shard::catalogue::{CatalogueDevice, UnknownName};
use brigade_shard::plan::PlanDevice;
use brigade_shard::units::Bytes;

use super::Hosts;
use super::entries::{Backend, DeviceEntry, MAX_MEMORY_BYTES};
use crate::planning::cluster::{
    Cluster, DeviceFacts, NOMINAL_BANDWIDTH_SHARE, NOMINAL_FLOPS_SHARE, UNKNOWN_FLOPS, plan_device,
};

/// What the report says of a device's speeds that are written in the file.
const FROM_FILE: &str = "cluster file";

/// The fastest that a device may read what it does not hold, in bytes per second.
const MAX_OFFLOAD: f64 = 100e12;

impl Backend {
    fn kind(self) -> DeviceKind {
        match self {
            Backend::Cpu => DeviceKind::Cpu,
            Backend::Cuda => DeviceKind::Cuda(0),
            Backend::Metal => DeviceKind::Metal,
        }
    }

    /// The catalogue's word for it.
    fn word(self) -> &'static str {
        match self {
            Backend::Cpu => "cpu",
            Backend::Cuda => "cuda",
            Backend::Metal => "metal",
        }
    }
}

/// A device of the catalogue with nothing resident, planned with shares of its nominal speeds.
pub fn from_catalogue(device: &CatalogueDevice, name: &str) -> (PlanDevice, DeviceFacts) {
    let bandwidth = device.bandwidth_gb_per_s * 1e9 * NOMINAL_BANDWIDTH_SHARE;
    let flops = device.fp16_tflops.map_or(UNKNOWN_FLOPS, |tflops| tflops * 1e12 * NOMINAL_FLOPS_SHARE);
    let facts = DeviceFacts {
        catalogue: Some(device.name.clone()),
        source: device.source.clone(),
        arithmetic_known: device.fp16_tflops.is_some(),
        price_usd: device.price_usd,
        idle_watts: device.idle_watts,
        loaded_watts: device.loaded_watts,
        whole_system: device.idle_watts.or(device.loaded_watts).is_some(),
        host: None,
    };
    (plan_device(name.to_owned(), device.budget(), bandwidth, flops, device.kernels), facts)
}

/// An entry's device, with the name that it or all of its kind are known by.
pub(super) fn device(
    entry: DeviceEntry,
    hosts: &Hosts,
    lookup: fn(&str) -> Result<CatalogueDevice, UnknownName>,
) -> Result<(String, PlanDevice, DeviceFacts), String> {
    entry.check()?;
    let sold = entry.kind.as_deref().map(lookup).transpose();
    let sold = sold.map_err(|unknown| {
        format!(
            "{unknown}; `brigade plan --list devices` lists all, or write memory, bandwidth_gbps and tflops"
        )
    })?;
    let name = match (&entry.name, &sold) {
        (Some(name), _) => name.clone(),
        (None, Some(sold)) => sold.name.clone(),
        (None, None) => {
            return Err("name is missing: write name = \"studio\", or type = \"RTX 5090\"".to_owned());
        }
    };
    let memory = entry.memory.as_deref().map(budget).transpose()?;
    let (mut device, mut facts) = match &sold {
        Some(sold) => of_a_type(&entry, sold, &name)?,
        None => of_own_figures(&entry, memory, &name)?,
    };
    if let Some(memory) = memory {
        device.budget = memory;
    }
    if let Some(bandwidth) = entry.bandwidth_gbps {
        device.bandwidth_bytes_per_s = bandwidth * 1e9;
    }
    if let Some(tflops) = entry.tflops {
        device.flops_per_s = tflops * 1e12;
        facts.arithmetic_known = true;
    }
    device.offload_bytes_per_s = offload(&entry)?;
    facts.price_usd = entry.price_usd.or(facts.price_usd);
    // The catalogue's watts are of whole systems: beside a machine that has its own they would be counted twice.
    let alone = !entry.host.as_deref().is_some_and(|host| hosts.draws_power(host));
    let taken = |own: Option<f64>, sold: Option<f64>| alone && own.is_none() && sold.is_some();
    facts.whole_system =
        taken(entry.idle_watts, facts.idle_watts) || taken(entry.loaded_watts, facts.loaded_watts);
    facts.idle_watts = entry.idle_watts.or(facts.idle_watts.filter(|_| alone));
    facts.loaded_watts = entry.loaded_watts.or(facts.loaded_watts.filter(|_| alone));
    facts.host = entry.host;
    Ok((name, device, facts))
}

/// The catalogue's device, for the backend that the entry names.
fn of_a_type(
    entry: &DeviceEntry,
    sold: &CatalogueDevice,
    name: &str,
) -> Result<(PlanDevice, DeviceFacts), String> {
    let (mut device, mut facts) = from_catalogue(sold, name);
    if let Some(backend) = entry.device
        && backend.word() != sold.backend
    {
        let word = backend.word();
        let shares_memory = sold.unified || entry.memory.is_some();
        if entry.bandwidth_gbps.is_none() || entry.tflops.is_none() || !shares_memory {
            return Err(format!(
                "device = \"{word}\", but the catalogue's figures of `{}` are for {}: write memory, bandwidth_gbps and \
                 tflops as {word} has them",
                sold.name, sold.backend
            ));
        }
        device.kernels = backend.kind().kernels();
    }
    if entry.bandwidth_gbps.is_some() || entry.tflops.is_some() {
        facts.source = format!("{FROM_FILE}; otherwise {}", facts.source);
    }
    Ok((device, facts))
}

/// A device that no catalogue has.
fn of_own_figures(
    entry: &DeviceEntry,
    memory: Option<Bytes>,
    name: &str,
) -> Result<(PlanDevice, DeviceFacts), String> {
    let missing = |key: &str, example: &str| {
        format!("{key} is missing: write {key} = {example}, or type = \"RTX 5090\" to take the catalogue's")
    };
    let memory = memory.ok_or_else(|| missing("memory", "\"96GiB\""))?;
    let bandwidth = entry.bandwidth_gbps.ok_or_else(|| missing("bandwidth_gbps", "800"))?;
    let tflops = entry.tflops.ok_or_else(|| missing("tflops", "27"))?;
    let kernels = entry.device.unwrap_or(Backend::Cpu).kind().kernels();
    let facts =
        DeviceFacts { source: FROM_FILE.to_owned(), arithmetic_known: true, ..DeviceFacts::default() };
    Ok((plan_device(name.to_owned(), memory, bandwidth * 1e9, tflops * 1e12, kernels), facts))
}

fn budget(text: &str) -> Result<Bytes, String> {
    let bytes: Bytes = text.parse().map_err(|error| format!("memory: {error}"))?;
    if bytes == Bytes::ZERO || bytes.0 > MAX_MEMORY_BYTES {
        return Err(format!("memory is {text}; write more than 0 and at most {}", Bytes(MAX_MEMORY_BYTES)));
    }
    Ok(bytes)
}

fn offload(entry: &DeviceEntry) -> Result<Option<f64>, String> {
    match (&entry.offload, entry.offload_gbps) {
        (Some(_), Some(_)) => Err("offload and offload_gbps say the same; write one of them".to_owned()),
        (Some(text), None) => parse_rate(text).map(Some).map_err(|problem| format!("offload: {problem}")),
        (None, rate) => Ok(rate.map(|rate| rate * 1e9)),
    }
}

/// A rate such as `7GB/s`, in bytes per second.
///
/// # Errors
/// Where it is of another form, not above 0, or faster than any memory.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let wrong = || format!("`{text}` is not a rate: write it as 7GB/s, above 0 and at most 100TB/s");
    let size = text.trim().strip_suffix("/s").ok_or_else(wrong)?;
    let bytes: Bytes = size.parse().map_err(|_| wrong())?;
    let rate = bytes.0 as f64;
    if rate > 0.0 && rate <= MAX_OFFLOAD { Ok(rate) } else { Err(wrong()) }
}

/// What was assumed of a file's devices, one sentence each.
pub(super) fn assumptions(cluster: &Cluster) -> Vec<String> {
    let mut notes = Vec::new();
    if cluster.facts.iter().any(|facts| facts.catalogue.is_some() && facts.source != FROM_FILE) {
        notes.push(format!(
            "of the catalogue's nominal speeds {:.0}% of the bandwidth and {:.0}% of the arithmetic are planned with; \
             figures that the cluster file gives are taken as they are",
            NOMINAL_BANDWIDTH_SHARE * 100.0,
            NOMINAL_FLOPS_SHARE * 100.0
        ));
    }
    let systems = |facts: &&DeviceFacts| facts.whole_system && facts.host.is_some();
    let hosts: Vec<&Option<String>> = cluster.facts.iter().filter(systems).map(|facts| &facts.host).collect();
    if let Some(Some(host)) =
        hosts.iter().enumerate().find(|(n, host)| hosts[..*n].contains(host)).map(|(_, host)| host)
    {
        notes.push(format!(
            "the catalogue's watts are of whole systems, and {host} counts one for each of its devices: give their \
             idle_watts and loaded_watts, and the machine's in [[host]]"
        ));
    }
    let unknown = cluster.of_unknown_arithmetic(0..cluster.devices.len());
    if !unknown.is_empty() {
        notes.push(format!(
            "nobody says how fast {} can compute: what prompts take is unknown; give tflops",
            unknown.join(" and ")
        ));
    }
    notes
}
