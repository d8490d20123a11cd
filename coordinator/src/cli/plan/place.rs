//! Where the devices of a plan come from: a cluster file, this machine, or a running coordinator.

use std::path::Path;

use anyhow::Context as _;
use brigade_proto::control::DeviceKind;
use brigade_shard::plan::Links;
use brigade_shard::units::Bytes;
use clap::Args;

use super::PlanArgs;
use crate::cli::UsageError;
use crate::cli::connect::running;
use crate::cli::options::{memory_of_each, parse_threads, parse_workers};
use crate::client::Client;
use crate::local::{LocalWorker, worker_name};
use crate::planning::cluster_file::parse_cluster;
use crate::planning::{Cluster, LOOPBACK, plan_device};

/// Memory bandwidth that a worker is believed to have where nobody has measured it, in bytes per second: two channels of
/// desktop memory, used by few threads.
const ASSUMED_BANDWIDTH: f64 = 20e9;

/// Arithmetic that such a worker is believed to have, in floating-point operations per second: two cores with wide vectors.
const ASSUMED_FLOPS: f64 = 100e9;

/// What a worker is believed to read from its disk where nobody has measured it, in bytes per second: a common NVMe drive.
pub(super) const ASSUMED_OFFLOAD: f64 = 2e9;

/// Workers on this machine, where they are what is planned for.
#[derive(Clone, Debug, Args)]
pub(super) struct LocalOptions {
    /// Plan for so many workers on this machine, each with a stage
    #[arg(long, env = "BRIGADE_WORKERS", value_name = "N", hide_env = true, value_parser = parse_workers)]
    workers: Option<usize>,

    /// What each of them may use for weights, cache, activations and workspace, such as 64MiB or 24GB [default: their
    /// share of 80% of this machine's memory]
    #[arg(long, env = "BRIGADE_MEMORY", value_name = "SIZE", hide_env = true)]
    memory: Option<Bytes>,

    /// Taken as `brigade up` takes it; speeds are assumed, so that it changes no plan
    #[arg(long, env = "BRIGADE_THREADS", value_name = "N", hide_env = true, value_parser = parse_threads)]
    threads: Option<usize>,

    /// Taken as `brigade up` takes it; --memory then says what to plan with
    #[arg(long, env = "BRIGADE_MMAP", hide_env = true)]
    mmap: bool,
}

/// Devices, and where they are from.
pub(super) struct Place {
    /// The devices with what is known of them.
    pub(super) cluster: Cluster,
    /// Where they are from, for people.
    pub(super) words: String,
    /// The least number of stages.
    pub(super) min_stages: usize,
}

/// Finds the devices that flags name, or those that are there, and lets them offload where flags allow it.
pub(super) async fn find(args: &PlanArgs) -> anyhow::Result<Place> {
    let mut place = devices(args).await?;
    if let Some(rate) = args.offload_rate {
        place.cluster.offload(rate);
    } else if args.offload {
        let without = place.cluster.devices.iter().filter(|device| device.offload_bytes_per_s.is_none());
        let names: Vec<&str> = without.map(|device| device.name.as_str()).collect();
        if !names.is_empty() {
            let names = names.join(", ");
            place.cluster.notes.push(format!(
                "nobody says how fast {names} would read weights again: they do not offload; give --offload-rate"
            ));
        }
    }
    Ok(place)
}

async fn devices(args: &PlanArgs) -> anyhow::Result<Place> {
    if let Some(file) = &args.cluster {
        let cluster = read_cluster(file)?;
        let words = format!("{} of {}", counted(cluster.devices.len()), file.display());
        return Ok(Place { cluster, words, min_stages: 1 });
    }
    let is_local = args.local.workers.is_some() || args.local.memory.is_some();
    if is_local {
        return local(args);
    }
    let client = match &args.connect.url {
        Some(_) => Some(args.connect.client().await?),
        None if running(args.connect.api_key.as_deref()).await.is_empty() => None,
        // Says which of several it is.
        None => Some(args.connect.client().await?),
    };
    match client {
        Some(client) => live(&client).await,
        None => local(args),
    }
}

/// The devices of a running coordinator.
async fn live(client: &Client) -> anyhow::Result<Place> {
    let live = client.devices().await?;
    let url = client.url();
    if live.devices.is_empty() {
        anyhow::bail!("no worker is attached to the coordinator at {url}; join one, or give --cluster FILE");
    }
    let words = format!("{} of the coordinator at {url}", counted(live.devices.len()));
    let cluster = Cluster::of_devices(live.devices, live.hosts, live.links, "calibrated by the worker");
    Ok(Place { cluster, words, min_stages: 1 })
}

fn local(args: &PlanArgs) -> anyhow::Result<Place> {
    let workers = args.local.workers.unwrap_or(1);
    let memory = memory_of_each(args.local.memory, workers)?;
    let worker = |index| LocalWorker { name: worker_name(index), device: DeviceKind::Cpu, memory };
    let mut cluster = local_cluster(&(0..workers).map(worker).collect::<Vec<_>>());
    cluster.notes.push(format!(
        "speeds are assumed, not measured: {:.0} GB/s and {:.1} TFLOP/s for each worker",
        ASSUMED_BANDWIDTH / 1e9,
        ASSUMED_FLOPS / 1e12
    ));
    if args.offload && args.offload_rate.is_none() {
        cluster.offload(ASSUMED_OFFLOAD);
        cluster.notes.push(format!(
            "so is the rate at which weights are read again, {:.0} GB/s; --offload-rate gives another",
            ASSUMED_OFFLOAD / 1e9
        ));
    }
    let count = match workers {
        1 => "1 worker".to_owned(),
        n => format!("{n} workers"),
    };
    Ok(Place { cluster, words: format!("{count} on this machine"), min_stages: workers })
}

/// Workers on this machine, with speeds that are assumed.
pub(super) fn local_cluster(workers: &[LocalWorker]) -> Cluster {
    let device = |worker: &LocalWorker| {
        let LocalWorker { name, device, memory } = worker;
        plan_device(name.clone(), *memory, ASSUMED_BANDWIDTH, ASSUMED_FLOPS, device.kernels())
    };
    let devices = workers.iter().map(device).collect();
    Cluster::of_devices(devices, Vec::new(), Links::all(LOOPBACK), "assumed")
}

fn read_cluster(path: &Path) -> anyhow::Result<Cluster> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read the cluster file {}", path.display()))?;
    parse_cluster(&text).map_err(|problem| {
        UsageError(format!("the cluster file {} is wrong: {problem}", path.display())).into()
    })
}

fn counted(devices: usize) -> String {
    match devices {
        1 => "1 device".to_owned(),
        n => format!("{n} devices"),
    }
}
