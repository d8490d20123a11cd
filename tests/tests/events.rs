//! What happened in a cluster is listed, also what happened before its coordinator was killed.

use std::time::{Duration, Instant};

use brigade_tests::cluster::brigade;
use brigade_tests::http::Client;
use brigade_tests::process::Process;
use brigade_tests::serve::Served;
use serde_json::Value;

/// Within this an event is listed.
const LISTED: Duration = Duration::from_secs(20);

/// Waits for an event of a kind that says something, after the one with the number `after`.
async fn event(client: &Client, after: u64, kind: &str, says: &str) -> Value {
    let deadline = Instant::now() + LISTED;
    loop {
        let events = client.get(&format!("/api/events?after={after}")).await.ok();
        let found = events.as_array().expect("a list").iter().find(|event| {
            event["kind"] == kind && event["text"].as_str().is_some_and(|text| text.contains(says))
        });
        if let Some(found) = found {
            return found.clone();
        }
        assert!(Instant::now() < deadline, "no {kind} event says {says:?} in {events:#}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn id(event: &Value) -> u64 {
    event["id"].as_u64().expect("a number")
}

/// What `brigade events` prints with these arguments.
fn listed(served: &Served, client: &Client, arguments: &[&str]) -> String {
    let mut command = brigade(&served.home);
    command.args(["events", "--url", client.url()]).args(arguments);
    let output = command.output().expect("the program runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("events are text")
}

#[tokio::test]
async fn what_happened_is_listed_also_after_the_coordinator_was_killed() {
    let mut served = Served::start(&["--min-workers", "2", "--ctx", "256"]);
    let [_anna, mut ben] = ["anna", "ben"].map(|name| served.join(name, "128MiB"));
    let client = served.client();
    let serves = event(&client, 0, "plan", "serves 256 tokens").await;
    assert_eq!(serves["severity"], "info");

    let mut watching = brigade(&served.home);
    watching.args(["events", "--url", client.url(), "--watch", "--worker", "ben"]);
    let mut watching = Process::start(&mut watching);
    watching.wait_for("ben's coming", LISTED, |line| line.contains("attached from").then_some(()));

    let killed = Instant::now();
    ben.kill();
    let lost = event(&client, id(&serves), "worker", "is lost").await;
    assert!(killed.elapsed() < Duration::from_secs(5), "its loss was listed after {:?}", killed.elapsed());
    assert_eq!((&lost["worker"], &lost["severity"]), (&"ben".into(), &"warning".into()));
    let failed = event(&client, id(&serves), "plan", "failed").await;
    assert_eq!(failed["severity"], "error");
    watching.wait_for("ben's loss", LISTED, |line| line.contains("is lost").then_some(()));
    ben.restart();
    let back = event(&client, id(&lost), "worker", "attached from").await;
    event(&client, id(&lost), "plan", "serves 256 tokens").await;
    // Written a moment after it is told.
    tokio::time::sleep(Duration::from_millis(200)).await;

    let served = served.kill_and_restart(&client);
    // The old one's connections are gone.
    let client = Client::new(client.url());
    served.wait_until_serving(&client).await;
    let again = event(&client, id(&back), "coordinator", "start 2 of its state directory").await;
    assert!(id(&again) > id(&back));
    for told in [&serves, &lost, &failed, &back] {
        let all = client.get("/api/events").await.ok();
        assert!(all.as_array().expect("a list").contains(told), "{told:#} is missing in {all:#}");
    }
    let lines = listed(&served, &client, &["--json", "--worker", "ben", "--severity", "warning"]);
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    assert!(events.contains(&lost) && !events.contains(&back), "{lines}");
    let table = listed(&served, &client, &["--since", "1h", "--limit", "500"]);
    assert!(table.starts_with("AGE    SEVERITY   KIND          WORKER   WHAT\n"), "{table}");
    for says in ["ben      attached from 127.0.0.1:", "ben      is lost", "start 1 of", "start 2 of"] {
        assert!(table.contains(says), "{says:?} is missing in\n{table}");
    }
    assert_eq!(listed(&served, &client, &["--since", "0s"]), "no events\n");
}
