//! Where local workers compute, and what each may take there.
//!
//! Cards are the worker program's affair: it is asked which there are, and what a worker takes of each.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use brigade_proto::control::DeviceKind;
use brigade_proto::device_choice::DeviceChoice;
use brigade_shard::units::Bytes;
use serde::Deserialize;
use tokio::process::Command;

use super::UsageError;
use super::options::WorkerOptions;
use crate::local::{LocalWorker, find_program, worker_name};

/// How long the worker's program may take to ask its drivers, which takes seconds where cards must be woken first.
const ASKING: Duration = Duration::from_secs(60);

/// The workers that are to be started, and their program.
#[derive(Clone, Debug)]
pub(super) struct Local {
    /// The worker's program.
    pub(super) program: PathBuf,
    /// The workers.
    pub(super) workers: Vec<LocalWorker>,
    /// Compute threads of each.
    pub(super) threads: usize,
}

/// A device, as `brigade-worker devices --json` lists it.
#[derive(Clone, Debug, Deserialize)]
struct Listed {
    device: String,
    usable_bytes: u64,
}

/// Finds out what is to be started.
///
/// # Errors
/// Where the worker's program is missing or fails, there is no such device, or this machine's memory cannot be found out.
pub(super) async fn local(options: &WorkerOptions) -> anyhow::Result<Local> {
    let program = find_program()?;
    let listed = match options.device {
        // The usual case asks nobody.
        DeviceChoice::One(DeviceKind::Cpu) => Vec::new(),
        _ => list(&program).await?,
    };
    let devices = choose(options.device, options.workers, &listed)?;
    let mut workers = Vec::with_capacity(devices.len());
    for (index, device) in devices.iter().enumerate() {
        let sharing = devices.iter().filter(|other| *other == device).count();
        let memory = match device {
            DeviceKind::Cpu => super::options::memory_of_each(options.memory, sharing)?,
            card => options.memory.unwrap_or(usable(*card, &listed, sharing)?),
        };
        let name = match options.device {
            DeviceChoice::All => format!("{}-{}", worker_name(index), device.to_string().replace(':', "")),
            DeviceChoice::One(_) | DeviceChoice::Auto => worker_name(index),
        };
        workers.push(LocalWorker { name, device: *device, memory });
    }
    let threads = options.threads.unwrap_or_else(|| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        (cores / workers.len().max(1)).max(1)
    });
    Ok(Local { program, workers, threads })
}

/// The device of each worker, of those that are `listed`, the best first.
fn choose(choice: DeviceChoice, count: usize, listed: &[Listed]) -> anyhow::Result<Vec<DeviceKind>> {
    let there: Vec<DeviceKind> = listed.iter().filter_map(|listed| listed.device.parse().ok()).collect();
    Ok(match choice {
        DeviceChoice::One(DeviceKind::Cpu) => vec![DeviceKind::Cpu; count],
        DeviceChoice::One(device) if there.contains(&device) => vec![device; count],
        DeviceChoice::One(device) => {
            let there: Vec<String> = there.iter().map(DeviceKind::to_string).collect();
            anyhow::bail!(
                "the worker's program finds no {device}, only {}: brigade-worker doctor says why",
                there.join(", ")
            );
        }
        DeviceChoice::Auto => vec![there.first().copied().unwrap_or(DeviceKind::Cpu); count],
        DeviceChoice::All if count > 1 => {
            let text = "--device all starts as many workers as there are cards: leave --workers out";
            return Err(UsageError(text.to_owned()).into());
        }
        DeviceChoice::All => {
            let cards: Vec<DeviceKind> =
                there.into_iter().filter(|device| *device != DeviceKind::Cpu).collect();
            if cards.is_empty() { vec![DeviceKind::Cpu] } else { cards }
        }
    })
}

/// What each of so many workers on a card may take of it.
fn usable(card: DeviceKind, listed: &[Listed], sharing: usize) -> anyhow::Result<Bytes> {
    let named = card.to_string();
    let all = listed.iter().find(|listed| listed.device == named).map_or(0, |listed| listed.usable_bytes);
    match Bytes(all / sharing.max(1) as u64) {
        Bytes::ZERO => anyhow::bail!(
            "{card} has no memory left for a model, or its driver does not tell: end what uses it, or give --memory SIZE"
        ),
        share => Ok(share),
    }
}

async fn list(program: &Path) -> anyhow::Result<Vec<Listed>> {
    let asked = Command::new(program)
        .args(["devices", "--json"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let failed = || format!("failed to ask {} which devices there are", program.display());
    let answer = tokio::time::timeout(ASKING, asked).await;
    let answer = answer.map_err(|_| anyhow::anyhow!("it says nothing for {} s", ASKING.as_secs()));
    let Output { status, stdout, stderr } = answer.and_then(|ran| Ok(ran?)).with_context(failed)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr).trim().to_owned();
        return Err(anyhow::anyhow!("{status}: {said}")).with_context(failed);
    }
    serde_json::from_slice(&stdout).with_context(failed)
}

/// Workers in words, such as `2 workers of 8.0 GiB and 4 threads`.
pub(super) fn in_words(local: &Local) -> String {
    let Local { workers, threads, .. } = local;
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    let of: Vec<String> = workers
        .iter()
        .map(|worker| match worker.device {
            DeviceKind::Cpu => format!("{}", worker.memory),
            card => format!("{} on {card}", worker.memory),
        })
        .collect();
    let alike = of.windows(2).all(|pair| pair[0] == pair[1]);
    let of = if alike { of.into_iter().take(1).collect() } else { of };
    format!(
        "{} worker{} of {} and {threads} thread{}",
        workers.len(),
        plural(workers.len()),
        of.join(", "),
        plural(*threads)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(devices: &[&str]) -> Vec<Listed> {
        devices.iter().map(|device| Listed { device: (*device).to_owned(), usable_bytes: 20 << 30 }).collect()
    }

    fn chosen(choice: &str, count: usize, devices: &[&str]) -> Vec<String> {
        let choice = choice.parse().expect("a choice");
        let all = choose(choice, count, &listed(devices)).expect("there are such devices");
        all.iter().map(DeviceKind::to_string).collect()
    }

    #[test]
    fn workers_go_to_the_device_that_is_asked_for() {
        let two = ["cuda:0", "cuda:1", "cpu"];
        assert_eq!(chosen("cpu", 2, &[]), ["cpu", "cpu"]);
        assert_eq!(chosen("cuda:1", 1, &two), ["cuda:1"]);
        assert_eq!(chosen("auto", 1, &two), ["cuda:0"]);
        assert_eq!(chosen("auto", 2, &["cpu"]), ["cpu", "cpu"]);
        assert_eq!(chosen("all", 1, &two), ["cuda:0", "cuda:1"]);
        assert_eq!(chosen("all", 1, &["cpu"]), ["cpu"]);
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_with_those_that_are() {
        let choice = "cuda:1".parse().expect("a choice");
        let error =
            choose(choice, 1, &listed(&["cuda:0", "cpu"])).expect_err("there is one card").to_string();
        assert!(error.contains("no cuda:1, only cuda:0, cpu"), "{error}");
        let error = choose(DeviceChoice::All, 2, &listed(&["cpu"])).expect_err("two contradict all");
        assert!(error.downcast_ref::<UsageError>().is_some(), "{error}");
    }

    #[test]
    fn a_cards_memory_is_shared_by_the_workers_on_it() {
        let listed = listed(&["cuda:0", "cpu"]);
        assert_eq!(usable(DeviceKind::Cuda(0), &listed, 2).expect("there is some"), Bytes::mib(10 << 10));
        let full = [Listed { device: "cuda:0".to_owned(), usable_bytes: 0 }];
        let error = usable(DeviceKind::Cuda(0), &full, 1).expect_err("there is none").to_string();
        assert!(error.contains("cuda:0 has no memory left"), "{error}");
    }

    #[test]
    fn workers_are_named_with_what_they_have() {
        let worker = |device, memory| LocalWorker { name: "w".to_owned(), device, memory };
        let local = |workers, threads| Local { program: PathBuf::new(), workers, threads };
        let (cpu, one) = (DeviceKind::Cpu, Bytes::mib(1024));
        assert_eq!(in_words(&local(vec![worker(cpu, one); 2], 1)), "2 workers of 1.0 GiB and 1 thread");
        let cards = vec![worker(DeviceKind::Cuda(0), one), worker(DeviceKind::Cuda(1), Bytes::mib(2048))];
        assert_eq!(
            in_words(&local(cards, 4)),
            "2 workers of 1.0 GiB on cuda:0, 2.0 GiB on cuda:1 and 4 threads"
        );
    }
}
