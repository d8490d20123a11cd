//! What `deploy/` holds for Prometheus and Grafana can be read, and asks for metrics and labels that a cluster exports.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use brigade_tests::serve::Served;
use brigade_tests::setup::repository;
use serde_json::{Value, json};

/// Labels that Prometheus itself adds, or that belong to histograms.
const NOT_OURS: [&str; 3] = ["instance", "job", "le"];
/// Metrics that only some machines have something for, cards and sensors, or that need a loss.
const NOT_EVERYWHERE: [&str; 4] =
    ["brigade_worker_card_", "brigade_worker_power_", "brigade_worker_temperature_", "brigade_recovery_"];
/// What only Linux tells.
const LINUX_ALONE: &str = "brigade_worker_paged_in_";
/// Within this a worker has told of its machine twice, so that there are rates.
const TOLD: Duration = Duration::from_secs(10);

type Metrics = BTreeMap<String, BTreeSet<String>>;

fn file(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The metrics of `docs/metrics.md`, by the names of their samples, with their labels.
fn documented() -> Metrics {
    let mut metrics = Metrics::new();
    for line in file("docs/metrics.md").lines().filter(|line| line.starts_with("| `brigade_")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, labels, _] = cells[..] else { panic!("not four cells: {line}") };
        let labels: BTreeSet<String> =
            labels.split(", ").filter(|label| !label.is_empty()).map(ToOwned::to_owned).collect();
        let name = name.trim_matches('`');
        let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        metrics.extend(suffixes.iter().map(|suffix| (format!("{name}{suffix}"), labels.clone())));
    }
    assert!(metrics.len() > 50, "only {} metrics", metrics.len());
    metrics
}

/// The metrics that an expression asks for, with the labels that it chooses by; and the labels that it groups by.
fn asked(expression: &str) -> (Vec<(String, Vec<String>)>, Vec<String>) {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut metrics = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("brigade_") {
        let end = rest[at..].find(|c| !is_name(c)).map_or(rest.len(), |end| at + end);
        let (name, after) = (rest[at..end].to_owned(), &rest[end..]);
        let chosen =
            after.strip_prefix('{').and_then(|after| after.split_once('}')).map_or("", |(in_, _)| in_);
        let labels =
            chosen.split(',').filter_map(|label| label.split_once(['=', '!'])).map(|(label, _)| label);
        metrics.push((name, labels.map(|label| label.trim().to_owned()).collect()));
        rest = after;
    }
    let mut groups = Vec::new();
    for part in expression.split("by (").skip(1) {
        let (inside, _) = part.split_once(')').expect("a group ends");
        groups.extend(inside.split(',').map(|label| label.trim().to_owned()));
    }
    (metrics, groups)
}

/// Checks that an expression, and the labels that its text shows, are documented; the metrics it asks for.
#[track_caller]
fn check(expression: &str, shown: &[String], known: &Metrics) -> Vec<String> {
    let (metrics, groups) = asked(expression);
    let mut all: BTreeSet<&str> = NOT_OURS.into();
    for (name, chosen) in &metrics {
        let labels = known.get(name).unwrap_or_else(|| panic!("{name} is no metric, in {expression}"));
        all.extend(labels.iter().map(String::as_str));
        for label in chosen {
            assert!(labels.contains(label) || NOT_OURS.contains(&label.as_str()), "{name} has no {label}");
        }
    }
    for label in groups.iter().chain(shown) {
        assert!(all.contains(label.as_str()), "nothing in {expression} has the label {label}");
    }
    metrics.into_iter().map(|(name, _)| name).collect()
}

/// The labels that a text shows as `{{ $labels.NAME }}` or `{{NAME}}`.
fn shown(text: &str) -> Vec<String> {
    let inside = text.split("{{").skip(1).filter_map(|part| Some(part.split_once("}}")?.0.trim()));
    inside.map(|label| label.trim_start_matches("$labels.").to_owned()).collect()
}

fn yaml(path: &str) -> Value {
    serde_yaml_ng::from_str(&file(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Checks the alerts; the metrics that they ask for.
fn check_alerts(known: &Metrics) -> Vec<String> {
    let alerts = yaml("deploy/prometheus/alerts.yml");
    let rules = alerts["groups"][0]["rules"].as_array().expect("a list of rules");
    let mut used = Vec::new();
    let mut names = BTreeSet::new();
    for rule in rules {
        let name = rule["alert"].as_str().expect("a name");
        let expression = rule["expr"].as_str().expect("an expression");
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("warning" | "critical")), "{name}: {severity:?}");
        let text =
            |key: &str| rule["annotations"][key].as_str().unwrap_or_else(|| panic!("{name} has no {key}"));
        let told = [shown(text("summary")), shown(text("description"))].concat();
        used.extend(check(expression, &told, known));
        assert!(names.insert(name.to_owned()), "{name} is there twice");
    }
    for name in [
        "NotServing",
        "WorkerLost",
        "StageSlow",
        "CacheFull",
        "Swapping",
        "TemperatureHigh",
        "RecoveriesFrequent",
    ] {
        assert!(names.contains(name), "no alert {name}");
    }
    used
}

/// Checks the dashboard; the metrics that it asks for.
fn check_dashboard(known: &Metrics) -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/brigade.json")).expect("it is JSON");
    let mut used = Vec::new();
    let (mut rows, mut ids) = (Vec::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = panel["title"].as_str().expect("a title");
        assert!(ids.insert(panel["id"].as_u64().expect("a number")), "{title}: its number is another one's");
        if panel["type"] == "row" {
            rows.push(title);
            continue;
        }
        for target in panel["targets"].as_array().expect("targets") {
            let legend = shown(target["legendFormat"].as_str().expect("a legend"));
            let found = check(target["expr"].as_str().expect("an expression"), &legend, known);
            assert!(!found.is_empty(), "{title} asks for nothing");
            used.extend(found);
        }
    }
    assert_eq!(rows, ["Requests", "Latency", "Pipeline", "Workers", "Links", "Events and recoveries"]);
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        if let Some(query) = variable["query"]["query"].as_str() {
            let inside = query.trim_start_matches("label_values(").trim_end_matches(')');
            let (name, label) = inside.split_once(", ").expect("a metric and a label");
            used.extend(check(name, &[label.to_owned()], known));
        }
    }
    used
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_what_a_cluster_exports() {
    let known = documented();
    let mut used = check_alerts(&known);
    used.extend(check_dashboard(&known));
    assert!(used.len() > 50, "only {} expressions", used.len());

    let mut served = Served::start(&["--ctx", "256"]);
    let _worker = served.join("anna", "160MiB");
    let client = served.client();
    client.complete(json!({ "prompt": "Once upon a time", "max_tokens": 8 })).await;
    let is_everywhere = |name: &&String| {
        let linux = cfg!(target_os = "linux") || !name.starts_with(LINUX_ALONE);
        linux && !NOT_EVERYWHERE.iter().any(|prefix| name.starts_with(prefix))
    };
    let used: Vec<&String> = used.iter().filter(is_everywhere).collect();
    // Counters of what has not happened and histograms of it are there, too.
    fn sample<'a>(text: &'a str, name: &str) -> Option<&'a str> {
        text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
    }
    let deadline = Instant::now() + TOLD;
    let text = loop {
        let text = client.get("/metrics").await.ok();
        let text = text.as_str().expect("metrics are text").to_owned();
        match used.iter().find(|name| sample(&text, name).is_none()) {
            None => break text,
            Some(name) => assert!(Instant::now() < deadline, "{name} is missing in\n{text}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    for name in used {
        let sample = sample(&text, name).expect("it was there just now");
        let inside =
            sample.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(in_, _)| in_);
        let labels: BTreeSet<String> =
            inside.split(',').filter_map(|label| Some(label.split_once('=')?.0.to_owned())).collect();
        let ours: BTreeSet<String> = labels.into_iter().filter(|label| label != "le").collect();
        assert_eq!(ours, known[name], "labels of {sample}");
    }
}

#[test]
fn prometheus_reads_the_alerts_and_the_default_address() {
    let configuration = yaml("deploy/prometheus/prometheus.yml");
    assert_eq!(configuration["rule_files"][0].as_str(), Some("alerts.yml"));
    let job = &configuration["scrape_configs"][0];
    assert_eq!(job["job_name"].as_str(), Some("brigade"));
    assert_eq!(job["static_configs"][0]["targets"][0].as_str(), Some("127.0.0.1:7480"));
}
