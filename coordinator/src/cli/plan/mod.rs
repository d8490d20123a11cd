//! `brigade plan`: how a model would be cut, how fast it should be and what it would cost, without running anything.

mod model;
mod place;
mod what_if;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use brigade_proto::step::WireDtype;
use brigade_shard::plan::{
    Objective, PROMPT_TOKENS, Plan, PlanInput, Verdict, choices, place_beside, plan_beside,
};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::UsageError;
use super::connect::ConnectOptions;
use super::devices::Local;
use super::options::{ServingOptions, WorkerOptions};
use crate::planning::claims::claims;
use crate::planning::cluster_file::parse_rate;
use crate::planning::report::{Asked, Loads, Ways, report};
use crate::planning::{Cluster, listing};
use crate::render::claims::render_claims;
use crate::render::{render_listing, render_report};
use model::Model;
use place::{ASSUMED_OFFLOAD, LocalOptions, Place, local_cluster};

const AFTER_HELP: &str = "\
Devices are taken from --cluster; else, with --workers or --memory, from this machine; else from the coordinator that \
--url names or that runs here, as its workers are calibrated; else from this machine.

A cluster file lists devices, by the names that `brigade plan --list devices` shows or with figures of their own:

  [[device]]
  type = \"M3 Ultra\"           # memory, speed, power and price from the catalogue
  name = \"studio\"
  count = 2                   # studio-1 and studio-2
  host = \"desk\"               # devices of one host reach each other without a network
  price_usd = 9499            # any figure here wins over the catalogue's; so do idle_watts and loaded_watts
  offload = \"6GB/s\"           # it may read what it cannot hold, at this rate, again for every step

  [[device]]
  name = \"server\"
  memory = \"96GiB\"            # what weights, cache and workspace may take
  bandwidth_gbps = 400        # gigabytes per second
  tflops = 27
  device = \"cpu\"              # or cuda, metal; cpu where it is left out

  [links]
  default = \"10 GbE\"          # or gbit_per_s and rtt_us; coordinator = \"1 GbE\"

  [[link]]
  between = [\"studio-1\", \"studio-2\"]
  type = \"Thunderbolt 5\"

  [economics]
  electricity_usd_per_kwh = 0.25
  hours_per_day = 8           # or utilisation, from 0 to 1
  api_usd_per_million_tokens = 2.2
  streams = 8
  life_years = 3

Exit code 1 where nothing holds the model; --json prints the verdict all the same.

Example: brigade plan SmolLM2.gguf --workers 3 --memory 64MiB
Example: brigade plan \"Llama 3.1 405B:Q4_K_M\" --cluster cluster.toml --objective one-stream
Example: brigade plan \"Llama 3.3 70B\" --cluster cluster.toml --what-if \"RTX 5090,M4 Max\"";

/// Flags of `brigade plan`.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct PlanArgs {
    /// The model: a GGUF file, the first part of a split one, or a directory of safetensors, of which only headers are
    /// read; or a name that `brigade plan --list models` shows, such as "Llama 3.1 405B:Q4_K_M"
    #[arg(env = "BRIGADE_MODEL", hide_env = true)]
    model: Option<PathBuf>,

    #[command(flatten)]
    local: LocalOptions,

    /// Plan for the devices in this TOML file
    #[arg(long, env = "BRIGADE_CLUSTER", value_name = "FILE", hide_env = true, conflicts_with_all = ["workers", "memory"])]
    cluster: Option<PathBuf>,

    #[command(flatten)]
    connect: ConnectOptions,

    #[command(flatten)]
    serving: ServingOptions,

    /// What the plan is to be best at
    #[arg(
        long,
        env = "BRIGADE_OBJECTIVE",
        value_name = "WHAT",
        hide_env = true,
        default_value = "many-streams"
    )]
    objective: ObjectiveName,

    /// Length of the prompt that is spoken of, in tokens
    #[arg(long, value_name = "N", default_value_t = PROMPT_TOKENS, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,

    /// Let devices read layers that do not fit their memory again for every step, where no other plan is as fast or
    /// possible; those of a cluster file do so where it gives them a rate
    #[arg(long, env = "BRIGADE_OFFLOAD", hide_env = true)]
    offload: bool,

    /// How fast devices read them of which nothing else is said, such as 3GB/s
    #[arg(long, env = "BRIGADE_OFFLOAD_RATE", value_name = "RATE", hide_env = true, requires = "offload", value_parser = parse_rate)]
    offload_rate: Option<f64>,

    /// Show what one more device would bring, and at which price: of these, or of all in the catalogue
    #[arg(long, value_name = "DEVICE,..", num_args = 0..=1, default_missing_value = "")]
    what_if: Option<String>,

    /// Show published claims of throughput, and which of them memory bandwidth allows
    #[arg(long, conflicts_with = "list")]
    claims: bool,

    /// Show a catalogue with its sources, and the figures on which these disagree
    #[arg(long, value_name = "WHICH", visible_alias = "catalogue")]
    list: Option<Catalogue>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a plan is to be best at, as a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ObjectiveName {
    /// The tokens of a single stream, per second
    OneStream,
    /// The tokens of all streams together, per second
    ManyStreams,
}

impl From<ObjectiveName> for Objective {
    fn from(name: ObjectiveName) -> Objective {
        match name {
            ObjectiveName::OneStream => Objective::OneStream,
            ObjectiveName::ManyStreams => Objective::ManyStreams,
        }
    }
}

/// A catalogue, as a flag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Catalogue {
    /// Devices with memory, speed, power and price
    Devices,
    /// Links between machines
    Links,
    /// Models by their hyper-parameters
    Models,
}

/// Shows the plan, the claims or a catalogue.
pub(super) async fn plan(args: PlanArgs) -> anyhow::Result<ExitCode> {
    if let Some(which) = args.list {
        let listing = match which {
            Catalogue::Devices => listing::devices(),
            Catalogue::Links => listing::links(),
            Catalogue::Models => listing::models(),
        };
        show(args.json, &listing, render_listing)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.claims {
        show(args.json, &claims(), render_claims)?;
        return Ok(ExitCode::SUCCESS);
    }
    let named = args.model.as_deref().ok_or_else(|| {
        UsageError(
            "no model is named: give MODEL, a file or a name that `brigade plan --list models` shows, before --what-if; \
             only --list and --claims need none"
                .to_owned(),
        )
    })?;
    let model = Model::find(named)?;
    let place = place::find(&args).await?;
    plan_on(&args, &model, &place)
}

/// Shows the plan of a model on the devices of a place.
fn plan_on(args: &PlanArgs, model: &Model, place: &Place) -> anyhow::Result<ExitCode> {
    let streams = place.cluster.economics.streams.unwrap_or(args.serving.parallel);
    let loads = Loads { streams, prompt_tokens: args.prompt };
    let input = plan_input(&place.cluster, place.min_stages, args.objective.into(), &args.serving);
    let failed = || format!("failed to place {} on {}", model.name, devices_in_words(&input));
    // What the flags prescribe is the plan that is shown; what would be best is looked for freely.
    let free = PlanInput { split: Vec::new(), min_stages: 1, ..input.clone() };
    let found = choices(&model.cost, &free).with_context(failed)?;
    let not_at_all = matches!(found.verdict, Verdict::NotAtAll { .. });
    let (prescribed, refused) = match prescribed(model, &input, &args.serving) {
        Ok(prescribed) => (prescribed, not_at_all.then(|| why_not(model, &input))),
        Err(error) => (None, Some(error)),
    };
    if !not_at_all && let Some(error) = refused {
        return Err(error.context(failed()));
    }
    let (plan, draft) = prescribed.map(|prescribed| (prescribed.plan, prescribed.draft)).unzip();
    let ways = Ways::of(&model.cost, &free, found, plan, loads);
    let asked = Asked {
        name: model.name.clone(),
        source: model.source.clone(),
        place: place.words.clone(),
        objective: args.objective.into(),
        streams,
        prompt_tokens: args.prompt,
    };
    let size = (model.cost.weights(&model.cost.whole()), model.cost.layer_count());
    let mut report = report(asked, &place.cluster, &free, &ways, size);
    if let (Some(plan), Some(draft)) = (&mut report.plan, draft.flatten()) {
        plan.notes.push(draft);
    }
    if let Some(devices) = &args.what_if {
        let candidates = what_if::candidates(devices)?;
        report.what_if = what_if::rows(&model.cost, &free, &candidates);
    }
    // Where nothing holds the model, the error says all that people need, but for what they could buy.
    if refused.is_none() || args.json || args.what_if.is_some() {
        show(args.json, &report, render_report)?;
    }
    refused.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.context(failed())))
}

/// Prints as JSON or for people.
fn show<T: Serialize>(json: bool, shown: &T, render: impl Fn(&T) -> String) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(shown)?)?;
    } else {
        out.write_all(render(shown).as_bytes())?;
    }
    Ok(())
}

/// Checks that the model fits local workers, before any of them is started.
///
/// # Errors
/// Where the file is no model that can be run, or the memory does not suffice; the message says what is missing.
pub(super) fn check_memory(
    model: &Path,
    workers: &WorkerOptions,
    local: &Local,
    serving: &ServingOptions,
) -> anyhow::Result<()> {
    let model = Model::of_file(model)?;
    let mut cluster = local_cluster(&local.workers);
    if workers.offload {
        cluster.offload(workers.offload_rate.map_or(ASSUMED_OFFLOAD, |rate| rate.0 as f64));
    }
    let input = plan_input(&cluster, local.workers.len(), Objective::default(), serving);
    let draft = serving.draft.as_deref().map(Model::of_draft).transpose()?;
    let planned = match &draft {
        None => brigade_shard::plan::plan(&model.cost, &input),
        Some(draft) => plan_beside(&model.cost, &input, &draft.cost)
            .and_then(|plan| place_beside(&draft.cost, &input, &plan)),
    };
    let failed = || format!("failed to place {} on {}", model.name, devices_in_words(&input));
    planned.map(|_| ()).with_context(failed)
}

/// A plan that flags prescribe.
struct Prescribed {
    plan: Plan,
    /// Where the draft model would be held, for people.
    draft: Option<String>,
}

/// The plan that flags prescribe: with a number of stages, a split, or a draft model beside it. `None` where they leave it
/// to the verdict.
fn prescribed(
    model: &Model,
    input: &PlanInput,
    serving: &ServingOptions,
) -> anyhow::Result<Option<Prescribed>> {
    if let Some(draft) = &serving.draft {
        let draft = Model::of_draft(draft)?;
        let plan = plan_beside(&model.cost, input, &draft.cost)?;
        let beside = place_beside(&draft.cost, input, &plan)?;
        return Ok(Some(Prescribed { draft: draft_note(&draft.name, &beside, input), plan }));
    }
    if input.min_stages <= 1 && input.split.is_empty() {
        return Ok(None);
    }
    let plan = brigade_shard::plan::plan(&model.cost, input)?;
    Ok(Some(Prescribed { plan, draft: None }))
}

/// Why nothing holds the model.
fn why_not(model: &Model, input: &PlanInput) -> anyhow::Error {
    match brigade_shard::plan::plan(&model.cost, input) {
        Err(error) => error.into(),
        Ok(_) => anyhow::anyhow!("no way to run it was found, although there is a plan: please report this"),
    }
}

/// Where the draft model would be held.
fn draft_note(name: &str, plan: &Plan, input: &PlanInput) -> Option<String> {
    let stage = plan.stages.first()?;
    let worker = input.devices.get(stage.device).map_or("?", |device| device.name.as_str());
    Some(format!(
        "the draft model {name} would be held by {worker}: {}, with a cache of {} tokens",
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

fn plan_input(
    cluster: &Cluster,
    min_stages: usize,
    objective: Objective,
    serving: &ServingOptions,
) -> PlanInput {
    PlanInput {
        devices: cluster.devices.clone(),
        context: serving.ctx,
        parallel: serving.parallel,
        min_stages,
        split: serving.split.clone(),
        step_rows: serving.prefill_chunk,
        cache_value_bytes: serving.kv_dtype.bytes(),
        wire_value_bytes: WireDtype::from(serving.wire).size() as u32,
        links: cluster.links.clone(),
        hosts: cluster.hosts.clone(),
        objective,
        apart: Vec::new(),
    }
}
