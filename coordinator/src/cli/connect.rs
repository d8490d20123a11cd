//! Flags of the commands that talk to a running coordinator, and how they find one.

use clap::Args;

use super::report::note;
use crate::client::Client;
use crate::discovery::{self, Announcement};

/// Which coordinator to talk to.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct ConnectOptions {
    /// The coordinator's URL [default: the one that runs on this machine]
    #[arg(long, env = "BRIGADE_URL", value_name = "URL", hide_env = true)]
    pub(super) url: Option<String>,

    /// The key that its HTTP asks for (BRIGADE_API_KEY keeps it off the command line)
    #[arg(long, env = "BRIGADE_API_KEY", value_name = "KEY", hide_env_values = true, hide_env = true)]
    pub(super) api_key: Option<String>,
}

impl ConnectOptions {
    /// The coordinator named, or the latest that runs on this machine.
    pub(super) async fn client(&self) -> anyhow::Result<Client> {
        if let Some(url) = &self.url {
            return Ok(Client::new(url, self.api_key.clone())?);
        }
        let mut alive = running(self.api_key.as_deref()).await.into_iter();
        let Some((client, _)) = alive.next() else {
            anyhow::bail!(
                "no coordinator runs on this machine; start one with `brigade up MODEL`, or name one with --url http://HOST:PORT"
            );
        };
        let others: Vec<String> = alive.map(|(other, _)| other.url().to_owned()).collect();
        if !others.is_empty() {
            note(&format!(
                "note: several coordinators run here; this is {}, the latest; --url chooses among it and {}",
                client.url(),
                others.join(", ")
            ));
        }
        Ok(client)
    }
}

/// The coordinators on this machine that answer, the latest first.
pub(super) async fn running(api_key: Option<&str>) -> Vec<(Client, Announcement)> {
    let mut alive = Vec::new();
    for announcement in discovery::directory().map(|dir| discovery::announced(&dir)).unwrap_or_default() {
        let Ok(client) = Client::new(&announcement.url, api_key.map(ToOwned::to_owned)) else {
            continue;
        };
        if client.is_alive().await {
            alive.push((client, announcement));
        }
    }
    alive
}
