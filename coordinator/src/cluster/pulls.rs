//! Looks at how far the pulls into the store are, which other processes do.

use std::time::Duration;

use brigade_shard::units::Bytes;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::status::{DeliveryStatus, PullStatus};
use crate::store::{Progress, Store};

/// How often a pull is looked at; its process tells as often.
const PERIOD: Duration = Duration::from_secs(1);

/// Tells `pulls` of them for as long as it runs.
pub(super) async fn watch(store: Store, pulls: watch::Sender<Vec<PullStatus>>) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut could = true;
    loop {
        tick.tick().await;
        let store = store.clone();
        let Ok(found) = tokio::task::spawn_blocking(move || store.pulls()).await else { return };
        if let Err(error) = &found
            && could
        {
            tracing::warn!("how far pulls are is not known: {error}");
        }
        could = found.is_ok();
        let now: Vec<PullStatus> = found.unwrap_or_default().iter().map(status).collect();
        pulls.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
    }
}

fn status(progress: &Progress) -> PullStatus {
    let left = progress.total.map(|total| Bytes(total.saturating_sub(progress.done)));
    let eta = left.filter(|_| progress.bytes_per_s > 0.0).map(|left| left.0 as f64 / progress.bytes_per_s);
    PullStatus {
        name: progress.name.to_string(),
        phase: progress.phase.as_str().to_owned(),
        delivery: DeliveryStatus {
            fetched_bytes: progress.done,
            wanted_bytes: progress.total.unwrap_or_default(),
            bytes_per_s: progress.bytes_per_s,
            eta_s: eta,
            sources: vec![progress.source.clone()],
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pull_of_another_process_is_seen_until_it_ends() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join(".brigade/partial/m");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("progress.json");
        let text = r#"{"name":"m","source":"hf:org/m","phase":"fetching","done":250,"total":1000,"bytes_per_s":50.0}"#;
        std::fs::write(&file, text).unwrap();
        let (sender, mut pulls) = watch::channel(Vec::new());
        let watching = tokio::spawn(super::watch(Store::new(root.path()), sender));
        pulls.changed().await.unwrap();
        let seen = pulls.borrow_and_update().clone();
        let [pull] = &seen[..] else { panic!("one pull") };
        assert_eq!(pull.delivery.eta_s, Some(15.0));
        assert_eq!(pull.to_string(), "m: fetching 250 B of 1000 B from hf:org/m at 0 MB/s, 15 s left");
        std::fs::remove_file(&file).unwrap();
        pulls.changed().await.unwrap();
        assert_eq!(pulls.borrow().len(), 0);
        watching.abort();
    }
}
