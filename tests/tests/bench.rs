//! `brigade bench` on a cluster of real processes.

use std::process::{Command, Output};

use brigade_tests::cluster::{Up, brigade};
use brigade_tests::setup;
use serde_json::Value;

#[test]
fn a_cluster_is_measured_as_it_is_used() {
    let cluster = Up::new(setup::smollm2()).workers(2).memory("160MiB").args(["--ctx", "512"]).start();
    let home = tempfile::tempdir().expect("the temporary folder is writable");
    let bench = |arguments: &[&str]| -> Output {
        let mut command: Command = brigade(&home);
        command.arg("bench").args(["--url", cluster.client.url()]).args(arguments);
        command.output().expect("brigade bench starts")
    };
    let measured = bench(&["-p", "96", "-n", "48", "--streams", "1,4", "-r", "2", "--json"]);
    let said = String::from_utf8_lossy(&measured.stderr);
    assert!(measured.status.success(), "{}: {said}", measured.status);
    let document: Value = serde_json::from_slice(&measured.stdout).expect("--json writes JSON");
    assert_eq!(document["pipeline"].as_array().map(Vec::len), Some(2), "{document:#}");
    let tests = document["tests"].as_array().expect("tests are listed");
    assert_eq!(tests.len(), 3, "{document:#}");
    for test in tests {
        println!("{test:#}");
        assert_eq!((&test["disturbed"], &test["cached_tokens"]), (&false.into(), &0.into()), "{test:#}");
        let number =
            |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{value} is no number in {test:#}"));
        assert!(number(&test["median_ts"]) > 0.0, "{test:#}");
        let stages = test["stages"].as_array().expect("stages are listed");
        assert_eq!(stages.len(), 2, "{test:#}");
        let busy: Vec<f64> = stages.iter().map(|stage| number(&stage["busy"])).collect();
        for (stage, busy) in stages.iter().zip(&busy) {
            assert!(*busy > 0.0 && *busy < 1.0, "{test:#}");
            assert!((number(&stage["idle"]) + busy - 1.0).abs() < 1e-6, "{test:#}");
        }
        // What one stream draws is computed by one stage after the other.
        if test["streams"] == 1 && test["n_gen"] == 48 {
            assert!(busy.iter().sum::<f64>() < 1.0, "{test:#}");
        }
    }
    // Its requests were answered in full, also where an end token was drawn.
    let wanted = 2 * (1 + 48 + 4 * 48);
    let generated = document["tests"][2]["n_gen"].as_u64();
    assert_eq!(generated, Some(48), "{document:#}");
    let status = cluster_status(&cluster.client);
    let drawn = status["requests"]["generated_tokens"].as_u64().expect("a number");
    assert!(drawn >= wanted, "{drawn} of {wanted} tokens were drawn");

    let refused = bench(&["-p", "512", "-n", "0"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("pp512 needs a context of 513 tokens, and this cluster serves 512"), "{said}");
    cluster.stop();
}

fn cluster_status(client: &brigade_tests::http::Client) -> Value {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(client.status())
}
