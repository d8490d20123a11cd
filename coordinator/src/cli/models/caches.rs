//! The same commands for what workers keep of models that came from other machines.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::bail;
use brigade_shard::units::Bytes;
use clap::Args;
use serde_json::json;

use crate::caches::{CachedStatus, Deed, WorkerCache};
use crate::cli::FAILED;
use crate::cli::connect::ConnectOptions;
use crate::client::Client;
use crate::render::{Align, Table, age};

/// Fewest digits of a fingerprint that stand for all of it.
const FEWEST_DIGITS: usize = 6;
/// Digits of a fingerprint that are shown.
const SHOWN_DIGITS: usize = 12;

/// Whose caches.
#[derive(Clone, Debug, Args)]
pub(super) struct OnWorkers {
    /// Mean the caches of a running cluster's workers, or of one, instead of this machine's store
    #[arg(long, value_name = "WORKER", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    workers: Option<String>,

    #[command(flatten)]
    connect: ConnectOptions,
}

impl OnWorkers {
    /// Whether workers are meant.
    pub(super) fn are_meant(&self) -> bool {
        self.workers.is_some()
    }

    fn worker(&self) -> Option<&str> {
        self.workers.as_deref().filter(|worker| !worker.is_empty())
    }
}

/// Lists.
pub(super) async fn list(on: &OnWorkers, as_json: bool) -> anyhow::Result<ExitCode> {
    let told = asked(&on.connect.client().await?, on).await?;
    let text = if as_json { format!("{:#}\n", json!({ "workers": told })) } else { in_words(&told) };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(outcome(&told))
}

/// What workers say, of whom there is at least one.
async fn asked(client: &Client, on: &OnWorkers) -> anyhow::Result<Vec<WorkerCache>> {
    let told = client.caches(on.worker()).await?;
    match (told.is_empty(), on.worker()) {
        (true, Some(worker)) => {
            bail!("there is no worker `{worker}` here; `brigade status` lists those that are")
        }
        (true, None) => bail!("no worker is attached; `brigade status` shows why"),
        (false, _) => Ok(told),
    }
}

fn outcome(told: &[WorkerCache]) -> ExitCode {
    let is_bad = |worker: &WorkerCache| worker.error.is_some() || !worker.damaged.is_empty();
    if told.iter().any(is_bad) { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
}

fn in_words(told: &[WorkerCache]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut table = Table::new(&[
        ("WORKER", Align::Left),
        ("MODEL", Align::Left),
        ("FINGERPRINT", Align::Left),
        ("KEPT", Align::Right),
        ("OF", Align::Right),
        ("USED", Align::Right),
    ]);
    let mut others = String::new();
    for WorkerCache { name: worker, error, models, .. } in told {
        match error {
            Some(error) => others.push_str(&format!("{worker}: {error}\n")),
            None if models.is_empty() => others.push_str(&format!("{worker} keeps nothing\n")),
            None => {}
        }
        for CachedStatus { fingerprint, name, bytes, model_bytes, used_at, in_use } in models {
            let used = match (in_use, used_at) {
                (true, _) => "now".to_owned(),
                (false, Some(at)) => format!("{} ago", age(now.saturating_sub(*at) as f64)),
                (false, None) => "-".to_owned(),
            };
            let digits: String = fingerprint.chars().take(SHOWN_DIGITS).collect();
            let (kept, of) = (Bytes(*bytes).to_string(), Bytes(*model_bytes).to_string());
            table.row([worker.clone(), name.clone(), digits, kept, of, used]);
        }
    }
    let table = if table.is_empty() { String::new() } else { table.to_string() };
    table + &others
}

/// Removes a model from caches, or checks it there: `model` is its fingerprint, the first digits of that, or its name.
/// Without one all that are there are meant.
pub(super) async fn act(
    on: &OnWorkers,
    deed: Deed,
    model: Option<&str>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let client = on.connect.client().await?;
    let told = asked(&client, on).await?;
    let mut done = Vec::new();
    for (fingerprint, name) in meant(&told, model)? {
        let outcomes = client.act_on_caches(deed, &fingerprint, on.worker()).await?;
        done.extend(outcomes.into_iter().map(|outcome| (name.clone(), outcome)));
    }
    let outcomes: Vec<WorkerCache> = done.iter().map(|(_, outcome)| outcome.clone()).collect();
    let text = match as_json {
        true => format!("{:#}\n", json!({ "workers": outcomes })),
        false => done.iter().map(|(name, outcome)| outcome_in_words(name, outcome)).collect(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(outcome(&outcomes))
}

/// The models that are meant: fingerprints and names.
fn meant(told: &[WorkerCache], model: Option<&str>) -> anyhow::Result<BTreeSet<(String, String)>> {
    let all = told.iter().flat_map(|worker| &worker.models);
    let is_meant = |cached: &&CachedStatus| {
        model.is_none_or(|model| {
            let digits =
                model.len() >= FEWEST_DIGITS && cached.fingerprint.starts_with(&model.to_lowercase());
            digits || cached.name == model
        })
    };
    let meant: BTreeSet<(String, String)> =
        all.filter(is_meant).map(|cached| (cached.fingerprint.clone(), cached.name.clone())).collect();
    match (meant.len(), model) {
        (0, Some(model)) => {
            bail!("no worker keeps `{model}`; `brigade models ls --workers` lists what they do")
        }
        (2.., Some(model)) => {
            let each: Vec<&str> = meant.iter().map(|(fingerprint, _)| fingerprint.as_str()).collect();
            bail!("`{model}` may be any of {}: name one by more of its fingerprint", each.join(", "))
        }
        _ => Ok(meant),
    }
}

fn outcome_in_words(model: &str, outcome: &WorkerCache) -> String {
    let WorkerCache { name: worker, error, freed_bytes, chunks, damaged, .. } = outcome;
    if let Some(error) = error {
        return format!("{worker}: {error}\n");
    }
    if let Some(freed) = freed_bytes {
        return format!("{worker}: removed {model}, {} freed\n", Bytes(*freed));
    }
    let Some(chunks) = chunks else { return String::new() };
    if damaged.is_empty() {
        return format!("{worker}: {model}: {chunks} chunks are sound\n");
    }
    let each: String = damaged.iter().map(|which| format!("{worker}: {model}: {which}\n")).collect();
    let count = damaged.len();
    format!(
        "{each}{worker}: {model}: {chunks} chunks are sound, {count} are fetched again when they are needed\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Vec<WorkerCache> {
        let cached = |fingerprint: &str, name: &str| CachedStatus {
            fingerprint: fingerprint.to_owned(),
            name: name.to_owned(),
            bytes: 10 << 20,
            model_bytes: 20 << 20,
            ..CachedStatus::default()
        };
        let of = |name: &str, models| WorkerCache { name: name.to_owned(), models, ..WorkerCache::default() };
        let lost = WorkerCache { name: "cleo".into(), error: Some("away".into()), ..WorkerCache::default() };
        vec![
            of("anna", vec![cached("aabbcc01", "one"), cached("aabbcc02", "two")]),
            of("ben", vec![cached("aabbcc01", "one")]),
            of("dan", Vec::new()),
            lost,
        ]
    }

    #[test]
    fn a_model_is_meant_by_its_name_or_enough_of_its_fingerprint() {
        let found =
            |model| meant(&told(), model).map(|all| all.into_iter().map(|(f, _)| f).collect::<Vec<_>>());
        assert_eq!(found(Some("one")).unwrap(), ["aabbcc01"]);
        assert_eq!(found(Some("AABBCC02")).unwrap(), ["aabbcc02"]);
        assert_eq!(found(None).unwrap().len(), 2);
        assert!(found(Some("aabbcc")).unwrap_err().to_string().contains("may be any of aabbcc01, aabbcc02"));
        assert!(found(Some("aabb")).unwrap_err().to_string().contains("no worker keeps `aabb`"));
    }

    #[test]
    fn lists_say_what_everybody_keeps() {
        let text = in_words(&told());
        for words in ["anna", "two", "10.0 MiB", "20.0 MiB", "dan keeps nothing", "cleo: away"] {
            assert!(text.contains(words), "`{words}` is missing in\n{text}");
        }
        assert_eq!(outcome(&told()), ExitCode::from(FAILED));
    }
}
