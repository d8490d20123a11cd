//! What workers tell of their machines and processes, as it comes out of a real cluster's API.

use std::time::{Duration, Instant};

use brigade_tests::cluster::Up;
use brigade_tests::setup;
use serde_json::{Value, json};

/// Within this everything has been told: workers report each second, and rates need two looks.
const TOLD: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_status_tells_of_every_workers_machine_and_process() {
    let cluster = Up::new(setup::smollm2()).workers(2).threads(1).start();
    cluster.client.complete(json!({ "prompt": "One", "max_tokens": 16, "ignore_eos": true })).await;
    let began = Instant::now();
    let workers = loop {
        let status = cluster.client.status().await;
        let workers = status["workers"].as_array().expect("a list").clone();
        if workers.iter().all(|worker| worker["process"]["processors"].is_number()) {
            break workers;
        }
        assert!(began.elapsed() < TOLD, "not told: {status:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!(workers.len(), 2, "{workers:?}");
    for worker in &workers {
        let (machine, process) = (&worker["machine"], &worker["process"]);
        println!("{}: {machine} {process}", worker["name"]);
        let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} in {worker:#}"));
        let (memory, available) =
            (number(&machine["memory_bytes"]), number(&machine["memory_available_bytes"]));
        assert!(available > 0.0 && available <= memory, "{machine}");
        assert!(memory > number(&worker["resident_bytes"]), "{worker:#}");
        let busy = number(&machine["processors_busy"]);
        assert!(busy > 0.0 && busy <= 1.0, "{machine}");
        assert!(number(&process["processors"]) < 64.0, "{process}");
        assert!(worker["card"].is_null(), "{worker:#}");
    }
    cluster.stop();
}
