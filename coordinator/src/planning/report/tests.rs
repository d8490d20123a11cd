//! Reports of plans for machines that are only written down.

use brigade_shard::cost::StageBytes;
use brigade_shard::kernels::Kernels;
use brigade_shard::layers::{LayerRange, Shard};
use brigade_shard::plan::{HopCost, Links, PROMPT_TOKENS, PlannedStage, Prediction, UnusedDevice};
use serde_json::{Value, json};

use super::*;
use crate::planning::plan_device;
use crate::render::render_report;

const LAYERS: usize = 30;

fn cluster() -> Cluster {
    let device = |name: &str| plan_device(name.to_owned(), Bytes::mib(64), 20e9, 100e9, Kernels::CPU);
    let mut cluster = Cluster::of_devices(
        vec![device("studio"), device("rig"), device("old")],
        Vec::new(),
        Links::all(HopCost::default()),
        "cluster file",
    );
    for (facts, price) in cluster.facts.iter_mut().zip([1825.0, 1825.0, 100.0]) {
        facts.price_usd = Some(price);
        facts.loaded_watts = Some(100.0);
        facts.idle_watts = Some(10.0);
    }
    cluster.economics.electricity_usd_per_kwh = Some(0.2);
    cluster.economics.hours_per_day = Some(5.0);
    cluster.economics.api_usd_per_million_tokens = Some(2.0);
    cluster.notes.push("gigabit Ethernet is assumed".to_owned());
    cluster
}

fn input(cluster: &Cluster) -> PlanInput {
    PlanInput {
        devices: cluster.devices.clone(),
        context: None,
        parallel: 4,
        min_stages: 1,
        split: Vec::new(),
        step_rows: 128,
        cache_value_bytes: 2,
        wire_value_bytes: 4,
        links: cluster.links.clone(),
        hosts: Vec::new(),
        objective: Objective::ManyStreams,
        apart: Vec::new(),
    }
}

/// A plan over these devices that decodes so many tokens per second for one stream and over four.
fn foreseen(devices: &[usize], one: f64, many: f64) -> Foreseen {
    let each = LAYERS / devices.len();
    let stages = devices.iter().enumerate().map(|(number, device)| PlannedStage {
        device: *device,
        shard: Shard::of(LayerRange { start: number * each, end: (number + 1) * each }, LAYERS),
        memory: StageBytes { weights: Bytes::mib(40), cache: Bytes::mib(8), workspace: Bytes::mib(4) },
        streamed_layers: 0,
        decode_ms: 10.0,
        prefill_ms_per_token: 1.0,
    });
    let forecast = |rate| Forecast { decode_tokens_per_s: rate, prompt_tokens_per_s: 512.0, ttft_ms: 1000.0 };
    Foreseen {
        plan: Plan {
            stages: stages.collect(),
            context: 2048,
            cache_tokens: 4096,
            predicted: Prediction {
                decode_tokens_per_s: one,
                ttft_ms: 1000.0,
                throughput_tokens_per_s: many,
            },
            optimality: Optimality::Exact,
            bottleneck: "stage 0 on studio: memory bandwidth".to_owned(),
            unused: vec![UnusedDevice { device: 2, reason: "it would not help".to_owned() }],
            notes: Vec::new(),
        },
        one: forecast(one),
        many: forecast(many),
    }
}

fn shortage() -> PlanError {
    PlanError::TooFewDevices { wanted: 2, devices: 1 }
}

fn ways(verdict: Verdict, one_box: Option<Foreseen>, cluster: Result<Foreseen, PlanError>) -> Ways {
    Ways { one_box, offload: None, cluster, as_asked: None, verdict, others: Vec::new() }
}

fn written(ways: &Ways, objective: Objective) -> PlanReport {
    let cluster = cluster();
    let asked = Asked {
        name: "SmolLM2".to_owned(),
        source: "its file's header".to_owned(),
        place: "3 devices of cluster.toml".to_owned(),
        objective,
        streams: 4,
        prompt_tokens: PROMPT_TOKENS,
    };
    report(asked, &cluster, &input(&cluster), ways, (Bytes::mib(94), LAYERS))
}

#[test]
fn the_verdict_says_what_it_is_against() {
    let alone = foreseen(&[0], 20.0, 50.0);
    let both = foreseen(&[0, 1], 18.0, 90.0);
    let sentence = |ways: &Ways, objective| written(ways, objective).verdict.sentence;
    let many = Objective::ManyStreams;
    assert_eq!(
        sentence(&ways(Verdict::Cluster, Some(alone.clone()), Ok(both.clone())), many),
        "cluster: studio and rig together decode 90.0 tokens/s over 4 streams; studio alone 50.0 tokens/s"
    );
    assert_eq!(
        sentence(&ways(Verdict::OneBox, Some(alone.clone()), Ok(both.clone())), Objective::OneStream),
        "one box, do not split: studio alone decodes 20.0 tokens/s for one stream, the best cluster, studio and rig, \
         18.0 tokens/s"
    );
    assert_eq!(
        sentence(&ways(Verdict::OneBox, Some(alone), Err(shortage())), many),
        "one box, do not split: studio alone decodes 50.0 tokens/s over 4 streams"
    );
    assert_eq!(
        sentence(&ways(Verdict::Cluster, None, Ok(both.clone())), many),
        "cluster: studio and rig together decode 90.0 tokens/s over 4 streams; no device holds the model alone"
    );
    let mut offload = foreseen(&[1], 2.0, 6.0);
    offload.plan.stages[0].streamed_layers = 5;
    let streaming =
        Ways { offload: Some(offload), ..ways(Verdict::OneBoxWithOffload, None, Err(shortage())) };
    let said = sentence(&streaming, many);
    assert!(said.starts_with("one box with offload: rig reads for every step what it cannot hold"), "{said}");
    assert!(said.ends_with("6.00 tokens/s over 4 streams; nothing here holds all of the model"), "{said}");
    let none = ways(Verdict::NotAtAll { missing: Bytes::mib(512) }, None, Err(shortage()));
    let said = sentence(&none, many);
    assert_eq!(said, "not at all: nothing here holds the model, 512.0 MiB of memory are missing");
}

#[test]
fn the_report_for_people_has_all_parts() {
    let alone = foreseen(&[0], 20.0, 50.0);
    let mut found = ways(Verdict::Cluster, Some(alone), Ok(foreseen(&[0, 1], 18.0, 100.0)));
    found.others = vec![
        Other { what: AlternativeKind::MoreStages, way: Ok(foreseen(&[0, 1, 2], 17.0, 103.0)) },
        Other { what: AlternativeKind::OtherObjective, way: Ok(foreseen(&[0], 20.0, 50.0)) },
        Other {
            what: AlternativeKind::FewerStages,
            way: Err("the model does not fit into 1 stage".to_owned()),
        },
    ];
    let text = render_report(&written(&found, Objective::ManyStreams));
    let wanted = "\
asked      SmolLM2 from its file's header, on 3 devices of cluster.toml
model      SmolLM2, 30 layers, 94.0 MiB of weights
STAGE   WORKER   HOLDS                       WEIGHTS     CACHE   WORKSPACE      TOTAL     BUDGET   MEMORY
    0   studio   embedding + layers 0..15   40.0 MiB   8.0 MiB     4.0 MiB   52.0 MiB   64.0 MiB   [################----]  81%
    1   rig      layers 15..30 + head       40.0 MiB   8.0 MiB     4.0 MiB   52.0 MiB   64.0 MiB   [################----]  81%
context    2048 tokens a sequence, 4096 tokens of cache in all
predicted  18.0 tokens/s for one stream, 100.0 tokens/s for 4 streams together
prompt     512 tokens/s, first token of a 512-token prompt after 1.0 s
bottleneck stage 0 on studio: memory bandwidth
search     exact: no other contiguous plan is predicted to be faster
power      20 W idle, 200 W loaded
energy     0.56 kWh per million tokens over 4 streams, 504 kWh a year at 5 hours a day
price      3650 USD; electricity 100.74 USD a year
tokens     2.01 USD per million (hardware over 3 years and electricity, which is 0.15 USD); the API asks 2.00 USD
paid back  never within the 3 years that the hardware is used: it would be in month 37
verdict    cluster: studio and rig together decode 100.0 tokens/s over 4 streams; studio alone 50.0 tokens/s

    WAY                   DEVICES               ONE STREAM        4 STREAMS   FIRST TOKEN   LOADED      PRICE   USD/MILLION   WHY
*   cluster               studio, rig        18.0 tokens/s   100.0 tokens/s         1.0 s    200 W   3650 USD          2.01   recommended
    one box               studio             20.0 tokens/s    50.0 tokens/s         1.0 s    100 W   1825 USD          2.01   50.0 tokens/s over 4 streams against 100.0 tokens/s
    one stage more        studio, rig, old   17.0 tokens/s   103.0 tokens/s         1.0 s    300 W   3750 USD          2.07   103.0 tokens/s over 4 streams against 100.0 tokens/s, which is not worth 3 stages instead of 2
    best for one stream   studio             20.0 tokens/s    50.0 tokens/s         1.0 s    100 W   1825 USD          2.01   20.0 tokens/s for one stream against 18.0 tokens/s
    one stage less        -                              -                -             -        -          -             -   the model does not fit into 1 stage
";
    assert_eq!(text.get(..wanted.len()), Some(wanted), "{text}");
    for line in [
        "studio   64.0 MiB   20.0 GB/s   0.1 TFLOP/s         -   10 W    100 W   1825 USD   cluster file",
        "note       old is not used: it would not help",
        "note       gigabit Ethernet is assumed",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
}

#[test]
fn what_is_unknown_is_said_and_nothing_is_made_of_it() {
    let mut cluster = cluster();
    cluster.facts[0].arithmetic_known = false;
    cluster.facts[1].price_usd = None;
    cluster.facts[1].loaded_watts = None;
    let found = ways(Verdict::Cluster, None, Ok(foreseen(&[0, 1], 18.0, 100.0)));
    let asked = written(&found, Objective::ManyStreams).asked;
    let report = report(asked, &cluster, &input(&cluster), &found, (Bytes::mib(94), LAYERS));
    let text = render_report(&report);
    for line in [
        "prompt     unknown: nobody says how fast every device computes; give tflops",
        "power      20 W idle, 100 W without rig (unknown) loaded",
        "energy     unknown per million tokens over 4 streams, unknown a year at 5 hours a day",
        "price      1825 USD without rig (unknown); electricity unknown",
        "tokens     unknown per million",
        "one box with offload   -",
        "--offload-rate",
        "paid back  unknown: give price_usd of every device, loaded_watts of every device",
    ] {
        assert!(text.contains(line), "{line} in\n{text}");
    }
    let value = serde_json::to_value(&report).unwrap();
    assert_eq!(value["ttft_ms"], Value::Null);
    assert_eq!(value["forecast"]["ttft_ms"], Value::Null);
    assert_eq!(value["devices"][0]["flops_per_s"], Value::Null);
    assert_eq!(value["economics"]["price_usd"], json!({"known": 1825.0, "left_out": ["rig"]}));
}

#[test]
fn the_json_begins_with_the_plan_and_has_the_verdict_without_one() {
    let found = ways(Verdict::Cluster, None, Ok(foreseen(&[0, 1], 18.0, 100.0)));
    let value = serde_json::to_value(written(&found, Objective::ManyStreams)).unwrap();
    let view: PlanView = serde_json::from_value(value.clone()).unwrap();
    assert_eq!((view.model.as_str(), view.stages.len()), ("SmolLM2", 2));
    assert_eq!(value["verdict"]["kind"], "cluster");
    assert_eq!(value["optimality"], "exact");
    assert_eq!(value["ways"][0]["shown"], true);
    assert!(value["economics"]["kwh_per_million_tokens"]["known"].is_f64(), "{value}");

    let none = ways(Verdict::NotAtAll { missing: Bytes::mib(512) }, None, Err(shortage()));
    let value = serde_json::to_value(written(&none, Objective::ManyStreams)).unwrap();
    assert_eq!(value["verdict"]["kind"], "not-at-all");
    assert_eq!(value["verdict"]["missing_bytes"], 512 << 20);
    assert!(value.get("stages").is_none(), "{value}");
    assert_eq!(value["asked"]["name"], "SmolLM2");
}

#[test]
fn a_plan_that_was_asked_for_is_shown_beside_what_is_recommended() {
    let alone = foreseen(&[0], 20.0, 50.0);
    let both = foreseen(&[0, 1], 18.0, 49.0);
    let found = Ways { as_asked: Some(both.clone()), ..ways(Verdict::OneBox, Some(alone), Ok(both)) };
    let report = written(&found, Objective::ManyStreams);
    assert_eq!(report.plan.as_ref().map(|plan| plan.stages.len()), Some(2));
    let shown: Vec<&str> = report.ways.iter().filter(|way| way.shown).map(|way| way.what.as_str()).collect();
    assert_eq!(shown, ["as asked"], "once");
    let one_box = report.ways.iter().find(|way| way.what == "one box").unwrap();
    assert_eq!(one_box.reason, "recommended");
    assert!(
        report.ways[0].reason.contains("49.0 tokens/s over 4 streams against 50.0"),
        "{:?}",
        report.ways[0]
    );
}
