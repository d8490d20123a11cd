//! `brigade plan` with the devices of a cluster of real processes.

use std::process::{Command, Output};

use brigade_tests::cluster::{Up, brigade};
use brigade_tests::setup;
use serde_json::Value;

#[test]
fn a_running_clusters_calibrated_devices_are_planned_with() {
    let model = setup::smollm2();
    let cluster = Up::new(model).workers(2).memory("160MiB").args(["--ctx", "512"]).start();
    let home = tempfile::tempdir().expect("the temporary folder is writable");
    let plan = |arguments: &[&str]| -> Output {
        let mut command: Command = brigade(&home);
        command.arg("plan").arg(model).args(arguments);
        command.output().expect("brigade plan starts")
    };
    let planned = plan(&["--url", cluster.client.url(), "--ctx", "512", "--parallel", "2", "--json"]);
    let said = String::from_utf8_lossy(&planned.stderr);
    assert!(planned.status.success(), "{}: {said}", planned.status);
    let report: Value = serde_json::from_slice(&planned.stdout).expect("--json writes JSON");
    let place = report["asked"]["place"].as_str().unwrap_or_default();
    assert!(place.contains(cluster.client.url()) && place.contains("2 devices"), "{place}");
    let devices = report["devices"].as_array().expect("devices are listed");
    assert_eq!(devices.len(), 2, "{report:#}");
    for device in devices {
        assert_eq!(device["budget_bytes"], 160u64 << 20, "{device:#}");
        assert!(device["bandwidth_bytes_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{device:#}");
        assert_eq!(device["source"], "calibrated by the worker");
        assert_eq!(
            (&device["price_usd"], &device["loaded_watts"]),
            (&Value::Null, &Value::Null),
            "{device:#}"
        );
    }
    let forecast = &report["forecast"];
    for figure in ["one_stream_tokens_per_s", "many_streams_tokens_per_s", "prompt_tokens_per_s", "ttft_ms"] {
        assert!(forecast[figure].as_f64().is_some_and(|value| value > 0.0), "{figure} in {forecast:#}");
    }
    println!("{}: {forecast:#}", report["verdict"]["sentence"]);

    // Where workers of this machine are named, the coordinator is not asked.
    let local = plan(&["--url", cluster.client.url(), "--workers", "1", "--memory", "200MiB"]);
    let shown = String::from_utf8_lossy(&local.stdout);
    assert!(local.status.success() && shown.contains("1 worker on this machine"), "{shown}");
    cluster.stop();
}
