//! `brigade plan`: how a model would be cut, what each part takes and how fast it should be, without running anything.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use brigade_proto::control::DeviceKind;
use brigade_proto::step::WireDtype;
use brigade_shard::cost::Cost;
use brigade_shard::model_file::Header;
use brigade_shard::plan::{
    HopCost, Links, Objective, Plan, PlanDevice, PlanInput, place_beside, plan_beside,
};
use brigade_shard::spec::ModelSpec;
use brigade_shard::tensors::TensorTable;
use brigade_shard::units::Bytes;
use clap::Args;
use serde::Deserialize;

use super::UsageError;
use super::options::{ServingOptions, WorkerOptions, model_file, model_id};
use crate::local::worker_name;
use crate::render::{PlanStage, PlanView, render_plan};

/// Memory bandwidth that a worker is believed to have where nobody has measured it, in bytes per second: two channels of
/// desktop memory, used by few threads.
const ASSUMED_BANDWIDTH: f64 = 20e9;

/// Arithmetic that such a worker is believed to have, in floating-point operations per second: two cores with wide vectors.
const ASSUMED_FLOPS: f64 = 100e9;

/// A crossing between two processes of one machine.
const LOOPBACK: HopCost = HopCost { rtt_us: 60.0, bytes_per_s: 500e6 };

/// Flags of `brigade plan`.
#[derive(Debug, Args)]
#[command(
    after_help = "A cluster file lists devices:\n\n  [[device]]\n  name = \"studio\"\n  memory = \"96GiB\"\n  \
                  bandwidth_gbps = 800   # gigabytes per second\n  tflops = 27\n  \
                  device = \"metal\"       # or cuda; cpu where it is left out\n\n\
                  Example: brigade plan SmolLM2.gguf --workers 3 --memory 64MiB"
)]
pub struct PlanArgs {
    /// The model: a GGUF file, the first part of a split one, or a directory of safetensors; only headers are read
    #[arg(env = "BRIGADE_MODEL", hide_env = true)]
    model: PathBuf,

    #[command(flatten)]
    workers: WorkerOptions,

    /// Plan for the devices in this TOML file instead of workers on this machine
    #[arg(long, env = "BRIGADE_CLUSTER", value_name = "FILE", hide_env = true, conflicts_with_all = ["workers", "memory"])]
    cluster: Option<PathBuf>,

    #[command(flatten)]
    serving: ServingOptions,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A cluster file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    device: Vec<Device>,
}

/// One device of a cluster file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    name: String,
    memory: String,
    /// Gigabytes per second.
    bandwidth_gbps: f64,
    tflops: f64,
    #[serde(default)]
    device: Backend,
}

/// What computes on a device of a cluster file: `--device` of its worker, without the card's index.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    #[default]
    Cpu,
    Cuda,
    Metal,
}

impl From<Backend> for DeviceKind {
    fn from(backend: Backend) -> DeviceKind {
        match backend {
            Backend::Cpu => DeviceKind::Cpu,
            Backend::Cuda => DeviceKind::Cuda(0),
            Backend::Metal => DeviceKind::Metal,
        }
    }
}

/// Shows the plan.
pub(super) fn plan(args: &PlanArgs) -> anyhow::Result<ExitCode> {
    let model = model_file(&args.model)?;
    let (devices, hop, min_stages, note) = match &args.cluster {
        Some(file) => (read_cluster(file)?, HopCost::default(), 1, None),
        None => {
            let note = format!(
                "speeds are assumed, not measured: {:.0} GB/s and {:.1} TFLOP/s for each worker",
                ASSUMED_BANDWIDTH / 1e9,
                ASSUMED_FLOPS / 1e12
            );
            (local_devices(&args.workers)?, LOOPBACK, args.workers.workers, Some(note))
        }
    };
    let input = plan_input(devices, hop, min_stages, &args.serving);
    let dry = dry_run(&model, args.serving.draft.as_deref(), &input)?;
    let mut view = view(&model, &dry, &input);
    view.notes.extend(draft_note(&dry, &input));
    view.notes.extend(note);
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&view)?)?;
    } else {
        out.write_all(render_plan(&view).as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks that the model fits local workers, before any of them is started.
///
/// # Errors
/// Where the file is no model that can be run, or the memory does not suffice; the message says what is missing.
pub(super) fn check_memory(
    model: &Path,
    workers: &WorkerOptions,
    serving: &ServingOptions,
) -> anyhow::Result<()> {
    let input = plan_input(local_devices(workers)?, LOOPBACK, workers.workers, serving);
    dry_run(model, serving.draft.as_deref(), &input).map(|_| ())
}

/// A plan made from a file's header.
struct DryRun {
    layers: usize,
    weights: Bytes,
    plan: Plan,
    /// The draft model's name, and its own plan beside that.
    draft: Option<(String, Plan)>,
}

fn dry_run(model: &Path, draft: Option<&Path>, input: &PlanInput) -> anyhow::Result<DryRun> {
    let cost = read_cost(model)?;
    let draft = match draft {
        Some(path) => Some((model_id(path), read_cost(&model_file(path)?)?)),
        None => None,
    };
    let failed = || format!("failed to place {} on {}", model_id(model), devices_in_words(input));
    let (plan, draft) = match draft {
        None => (brigade_shard::plan::plan(&cost, input).with_context(failed)?, None),
        Some((id, draft)) => {
            let plan = plan_beside(&cost, input, &draft).with_context(failed)?;
            let beside = place_beside(&draft, input, &plan).with_context(failed)?;
            (plan, Some((id, beside)))
        }
    };
    Ok(DryRun { layers: cost.layer_count(), weights: cost.weights(&cost.whole()), plan, draft })
}

fn read_cost(model: &Path) -> anyhow::Result<Cost> {
    let failed = || format!("failed to read the model {}", model.display());
    let header = Header::open(model).with_context(failed)?;
    let spec = ModelSpec::from_header(&header).with_context(failed)?;
    let table = TensorTable::new(&header, &spec).with_context(failed)?;
    Ok(Cost::new(&spec, &table))
}

/// Where the draft model would be held.
fn draft_note(dry: &DryRun, input: &PlanInput) -> Option<String> {
    let (id, plan) = dry.draft.as_ref()?;
    let stage = plan.stages.first()?;
    let worker = input.devices.get(stage.device).map_or("?", |device| device.name.as_str());
    Some(format!(
        "the draft model {id} would be held by {worker}: {}, with a cache of {} tokens",
        stage.memory.total(),
        plan.cache_tokens
    ))
}

fn devices_in_words(input: &PlanInput) -> String {
    match input.devices.len() {
        1 => "1 worker".to_owned(),
        n => format!("{n} workers"),
    }
}

fn local_devices(workers: &WorkerOptions) -> anyhow::Result<Vec<PlanDevice>> {
    let budget = workers.memory()?;
    let device = |index| PlanDevice {
        name: worker_name(index),
        budget,
        bandwidth_bytes_per_s: ASSUMED_BANDWIDTH,
        flops_per_s: ASSUMED_FLOPS,
        threads: None,
        kernels: DeviceKind::Cpu.kernels(),
        held: None,
        kernel_speeds: Vec::new(),
        host: None,
        offload_bytes_per_s: None,
    };
    Ok((0..workers.workers).map(device).collect())
}

fn plan_input(
    devices: Vec<PlanDevice>,
    hop: HopCost,
    min_stages: usize,
    serving: &ServingOptions,
) -> PlanInput {
    PlanInput {
        devices,
        context: serving.ctx,
        parallel: serving.parallel,
        min_stages,
        split: serving.split.clone(),
        step_rows: serving.prefill_chunk,
        cache_value_bytes: serving.kv_dtype.bytes(),
        wire_value_bytes: WireDtype::from(serving.wire).size() as u32,
        links: Links::all(hop),
        hosts: Vec::new(),
        objective: Objective::default(),
        apart: Vec::new(),
    }
}

fn read_cluster(path: &Path) -> anyhow::Result<Vec<PlanDevice>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("failed to read the cluster file {}", path.display()))?;
    parse_cluster(&text).map_err(|problem| {
        UsageError(format!("the cluster file {} is wrong: {problem}", path.display())).into()
    })
}

/// The devices in the text of a cluster file.
fn parse_cluster(text: &str) -> Result<Vec<PlanDevice>, String> {
    let file: ClusterFile = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
    if file.device.is_empty() {
        return Err("it lists no [[device]]".to_owned());
    }
    file.device.into_iter().map(device).collect()
}

fn device(device: Device) -> Result<PlanDevice, String> {
    let name = device.name;
    let budget: Bytes =
        device.memory.parse().map_err(|error| format!("memory of device `{name}`: {error}"))?;
    for (key, value) in [("bandwidth_gbps", device.bandwidth_gbps), ("tflops", device.tflops)] {
        if !value.is_finite() || value <= 0.0 {
            return Err(format!("{key} of device `{name}` is {value}; write a number above 0"));
        }
    }
    Ok(PlanDevice {
        name,
        budget,
        bandwidth_bytes_per_s: device.bandwidth_gbps * 1e9,
        flops_per_s: device.tflops * 1e12,
        threads: None,
        kernels: DeviceKind::from(device.device).kernels(),
        held: None,
        kernel_speeds: Vec::new(),
        host: None,
        offload_bytes_per_s: None,
    })
}

fn view(model: &Path, dry: &DryRun, input: &PlanInput) -> PlanView {
    let plan = &dry.plan;
    let name = |device: usize| input.devices.get(device).map_or("?", |device| device.name.as_str());
    let stages = plan.stages.iter().map(|stage| PlanStage {
        worker: name(stage.device).to_owned(),
        shard: stage.shard,
        weight_bytes: stage.memory.weights,
        cache_bytes: stage.memory.cache,
        workspace_bytes: stage.memory.workspace,
        budget_bytes: input.devices.get(stage.device).map_or(Bytes::ZERO, |device| device.budget),
    });
    let unused =
        plan.unused.iter().map(|unused| format!("{} is not used: {}", name(unused.device), unused.reason));
    PlanView {
        model: model_id(model),
        layers: u32::try_from(dry.layers).unwrap_or(u32::MAX),
        weight_bytes: dry.weights,
        stages: stages.collect(),
        context: plan.context,
        cache_tokens: plan.cache_tokens,
        decode_tokens_per_s: plan.predicted.decode_tokens_per_s,
        throughput_tokens_per_s: Some(plan.predicted.throughput_tokens_per_s),
        ttft_ms: plan.predicted.ttft_ms,
        bottleneck: plan.bottleneck.clone(),
        notes: plan.notes.iter().cloned().chain(unused).collect(),
    }
}

#[cfg(test)]
mod tests {
    use brigade_shard::kernels::Kernels;

    use super::*;

    const MAC: &str = "[[device]]\nname = 'mac'\nmemory = '96GiB'\nbandwidth_gbps = 800\ntflops = 27\n";

    #[test]
    fn a_cluster_file_lists_devices() {
        let devices = parse_cluster(MAC).unwrap();
        assert_eq!(
            devices,
            [PlanDevice {
                name: "mac".to_owned(),
                budget: Bytes(96 << 30),
                bandwidth_bytes_per_s: 800e9,
                flops_per_s: 27e12,
                threads: None,
                kernels: Kernels::CPU,
                held: None,
                kernel_speeds: Vec::new(),
                host: None,
                offload_bytes_per_s: None,
            }]
        );
        let devices = parse_cluster(&format!("{MAC}device = 'metal'\n")).unwrap();
        assert_eq!(devices[0].kernels, Kernels::CANDLE);
    }

    #[test]
    fn a_wrong_cluster_file_says_what_is_wrong() {
        for (text, said) in [
            ("", "device"),
            ("device = []", "no [[device]]"),
            (&MAC.replace("96GiB", "lots"), "memory of device `mac`: `lots`"),
            (&MAC.replace("800", "0"), "bandwidth_gbps of device `mac` is 0"),
            (&MAC.replace("tflops = 27", "tflops = nan"), "tflops of device `mac`"),
            (&MAC.replace("tflops", "teraflops"), "teraflops"),
            (&format!("{MAC}device = 'tpu'\n"), "tpu"),
        ] {
            let error = parse_cluster(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
