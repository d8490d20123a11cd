//! The pin of a comparison: taken back at its end, and ending by itself where the command is killed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ClientError};

/// How long a pin holds without being renewed: long enough for a coordinator that is busy, and short enough that nobody
/// wonders why the cluster stays on one box.
const TTL: Duration = Duration::from_secs(15);
/// How often it is renewed, so that two renewals may be lost.
const RENEWAL: Duration = Duration::from_secs(4);

/// Who pins, as the cluster's status tells it.
const NAME: &str = "brigade compare";

/// A pin that is held for as long as it is wanted.
#[derive(Debug)]
pub struct Lease {
    client: Client,
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    workers: Vec<String>,
    stop: CancellationToken,
    /// Renews it, once it holds.
    renewing: Option<JoinHandle<()>>,
    /// Why it could not be renewed.
    lost: Arc<Mutex<Option<String>>>,
}

impl Lease {
    /// No pin yet, on the coordinator that `client` speaks to.
    pub fn new(client: Client) -> Lease {
        Lease { client: client.named(NAME), held: None }
    }

    /// Pins the plan to these workers, by their ids, in place of those before.
    ///
    /// # Errors
    /// Where the coordinator refuses, such as for want of memory; the pin before still holds then.
    pub async fn pin(&mut self, workers: &[String]) -> Result<(), ClientError> {
        if self.held.as_ref().is_some_and(|held| held.workers == workers && held.lost().is_none()) {
            return Ok(());
        }
        if let Some(before) = self.held.take() {
            before.end().await;
        }
        let (stop, lost) = (CancellationToken::new(), Arc::new(Mutex::new(None)));
        // From here on there is something to take back, also where the answer is lost.
        let held = Held { workers: workers.to_vec(), stop: stop.clone(), renewing: None, lost: lost.clone() };
        let held = self.held.insert(held);
        self.client.pin(workers, &[], Some(TTL)).await?;
        held.renewing = Some(tokio::spawn(renew(self.client.clone(), workers.to_vec(), stop, lost)));
        Ok(())
    }

    /// Why the pin does not hold any more, if it does not.
    pub fn lost(&self) -> Option<String> {
        self.held.as_ref()?.lost()
    }

    /// Takes the pin back, if there is one of ours.
    ///
    /// # Errors
    /// Where the coordinator does not answer: the pin ends by itself then.
    pub async fn release(&mut self) -> Result<(), ClientError> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let lost = held.lost().is_some();
        held.end().await;
        // What holds now, if anything, is somebody else's.
        if lost { Ok(()) } else { self.client.unpin().await }
    }
}

impl Held {
    fn lost(&self) -> Option<String> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn end(mut self) {
        self.stop.cancel();
        if let Some(renewing) = self.renewing.take() {
            // It has nothing to say but what `lost` holds.
            let _ = renewing.await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn renew(
    client: Client,
    workers: Vec<String>,
    stop: CancellationToken,
    lost: Arc<Mutex<Option<String>>>,
) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RENEWAL) => {}
        }
        match client.renew_pin(&workers, TTL).await {
            Ok(()) => {}
            Err(ClientError::Refused { message, .. }) => {
                *lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
                return;
            }
            // The coordinator may be busy, or restarting; then the pin is gone, and the next answer says so.
            Err(error) => tracing::debug!(%error, "a pin could not be renewed"),
        }
    }
}
