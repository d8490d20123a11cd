//! A comparison as it would be measured, for tests of what shows one.

use brigade_coordinator::compare::Comparison;
use serde_json::{Value, json};

/// One box, a cluster of two workers and another server at 1 to 16 streams.
pub fn comparison(model: &str) -> Comparison {
    // As they are read again from JSON, to the last digit.
    let hundredths = |value: f64| (value * 100.0).round() / 100.0;
    let figure = |quantity: Value, mean: f64, predicted: Option<f64>| {
        let mut figure = json!({
            "samples": [hundredths(mean - 1.0), mean, hundredths(mean + 1.0)], "mean": mean, "interval": [hundredths(mean - 2.5), hundredths(mean + 2.5)],
            "predicted": predicted.map(hundredths),
        });
        quantity.as_object().into_iter().flatten().for_each(|(name, value)| figure[name] = value.clone());
        figure
    };
    let figures = |decode: [f64; 5], prompt: f64, ttft: f64, predicts: bool| {
        let foretold = |value: f64| predicts.then_some(value);
        let streams = [1, 2, 4, 8, 16].into_iter().zip(decode);
        let mut all: Vec<Value> = streams
            .map(|(streams, mean)| {
                figure(json!({"what": "decode", "streams": streams}), mean, foretold(mean * 1.06))
            })
            .collect();
        all.push(figure(json!({"what": "prompt", "tokens": 512}), prompt, foretold(prompt * 0.93)));
        all.push(figure(json!({"what": "ttft", "tokens": 512}), ttft, foretold(ttft * 1.12)));
        all
    };
    let stage = |worker: &str, start: u64, end: u64| {
        json!({
            "worker": worker,
            "shard": {"layers": {"start": start, "end": end}, "embedding": start == 0, "head": end == 30},
            "weight_bytes": (end - start) * 3_300_000, "cache_bytes": (end - start) * 1_000_000,
            "workspace_bytes": 9_000_000, "budget_bytes": 160 << 20,
        })
    };
    let plan = |stages: Vec<Value>| {
        json!({
            "model": model, "layers": 30, "weight_bytes": 98_000_000, "stages": stages, "context": 2048,
            "cache_tokens": 8192, "decode_tokens_per_s": 96.0, "ttft_ms": 600.0,
            "bottleneck": "stage 0 on anna: memory bandwidth", "notes": [],
        })
    };
    let shares = |workers: &[&str]| {
        let stages =
            workers.iter().map(|worker| json!({"worker": worker, "busy": 0.44, "wire": 0.012, "idle": 0.56}));
        let stages: Vec<Value> = stages.collect();
        json!([{"what": "decode", "streams": 1, "wire": 0.031, "stages": stages},
               {"what": "decode", "streams": 16, "wire": 0.022, "stages": stages}])
    };
    let comparison = json!({
        "began_unix_s": 1_796_058_300, "version": "0.1.0", "model": model, "fingerprint": "4f1c0d9a",
        "weight_bytes": 98_000_000, "rounds": 3, "seed": 7, "disturbed": false,
        "sides": [
            {"kind": "one-box", "name": "one box: anna", "plan": plan(vec![stage("anna", 0, 30)]),
             "figures": figures([93.1, 131.0, 166.4, 190.2, 201.7], 812.0, 630.0, true),
             "shares": shares(&["anna"]), "resident": [["anna", 153_000_000]]},
            {"kind": "cluster", "name": "cluster: anna, bert",
             "plan": plan(vec![stage("anna", 0, 16), stage("bert", 16, 30)]),
             "figures": figures([52.0, 101.4, 170.3, 241.9, 278.8], 1103.0, 464.0, true),
             "shares": shares(&["anna", "bert"]), "resident": [["anna", 91_000_000], ["bert", 83_000_000]]},
            {"kind": "other", "name": "http://other:8080", "plan": null,
             "figures": figures([151.0, 180.0, 210.0, 222.0, 230.0], 500.0, 1024.0, false),
             "shares": [], "resident": []},
        ],
        "left_out": ["energy: no worker tells what it draws"],
        "verdict": {
            "split_for_one_stream": false, "split_for_many_streams": true,
            "text": "Do not split for one stream: one box is 1.79 times as fast. For 16 streams the cluster is 1.38 times as fast.",
        },
    });
    serde_json::from_value(comparison).expect("it is of the form of a comparison")
}
