//! `brigade token`: the tokens that workers join with. Works on the state directory, whether a coordinator runs on it or not.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use brigade_proto::identity::{CoordinatorIdentity, JoinToken};
use clap::{Args, Subcommand};

use super::connect;
use super::options::{CONTROL_PORT, parse_duration, state_dir};
use super::serve::addresses;
use crate::render::{Align, Table};
use crate::tokens::{TokenInfo, TokenStore};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it
    #[command(after_help = "Example: brigade token create --ttl 1h --uses 3")]
    Create {
        /// How long it serves, such as 24h, 30m or 7d
        #[arg(long, env = "BRIGADE_TTL", hide_env = true, value_name = "TIME", default_value = "24h", value_parser = parse_ttl)]
        ttl: Duration,

        /// How many workers may join with it [default: any number]
        #[arg(long, env = "BRIGADE_USES", hide_env = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        uses: Option<u32>,

        #[command(flatten)]
        place: PlaceOptions,
    },
    /// List the tokens, without their secrets
    #[command(after_help = "Example: brigade token ls")]
    Ls {
        #[command(flatten)]
        place: PlaceOptions,
    },
    /// Take a token back; workers that have joined with it stay
    #[command(after_help = "Example: brigade token revoke 1a2b3c4d")]
    Revoke {
        /// The token's id, or its beginning, as `brigade token ls` shows it
        id: String,

        #[command(flatten)]
        place: PlaceOptions,
    },
}

/// Whose tokens.
#[derive(Clone, Debug, Args)]
pub struct PlaceOptions {
    /// The coordinator's state directory [default: brigade in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, env = "BRIGADE_STATE", value_name = "DIR", hide_env = true)]
    state: Option<PathBuf>,
}

/// Makes, lists or revokes.
pub(super) async fn token(command: TokenCommand) -> anyhow::Result<ExitCode> {
    match command {
        TokenCommand::Create { ttl, uses, place } => create(ttl, uses, &place).await?,
        TokenCommand::Ls { place } => {
            let state = state_dir(place.state.as_deref())?;
            let tokens = TokenStore::open(&state)?.list().context("failed to list the join tokens")?;
            let text = list(&tokens, SystemTime::now());
            std::io::stdout().write_all(text.as_bytes())?;
        }
        TokenCommand::Revoke { id, place } => {
            let state = state_dir(place.state.as_deref())?;
            let token = TokenStore::open(&state)?.revoke(&id).context("failed to revoke the join token")?;
            writeln!(std::io::stdout(), "revoked {}", token.id)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The token goes to standard output, for scripts; how to use it to standard error, for people.
async fn create(ttl: Duration, uses: Option<u32>, place: &PlaceOptions) -> anyhow::Result<()> {
    let state = state_dir(place.state.as_deref())?;
    let store = TokenStore::open(&state)?;
    let identity = CoordinatorIdentity::load_or_create(&state)
        .with_context(|| format!("failed to read the coordinator's identity in {}", state.display()))?;
    let new = store.create(ttl, uses).context("failed to make a join token")?;
    let token = JoinToken { ca_spki_sha256: identity.ca_spki_sha256(), secret: new.secret };
    writeln!(std::io::stdout(), "{token}")?;
    let coordinator = coordinator_address(&state).await;
    let _ = writeln!(
        std::io::stderr(),
        "\nOn the machine that should join, with the model's file in a directory DIR:\n\n\
         brigade-worker join {coordinator} --token {token} --models DIR"
    );
    Ok(())
}

/// Where workers reach the coordinator of this state directory, as far as it runs and says so.
async fn coordinator_address(state: &Path) -> String {
    let unknown = format!("HOST:{CONTROL_PORT}");
    let Ok(state) = state.canonicalize() else {
        return unknown;
    };
    let of_state = connect::running(None)
        .await
        .into_iter()
        .find(|(_, announcement)| announcement.state.canonicalize().is_ok_and(|other| other == state));
    let Some((_, announcement)) = of_state else {
        return unknown;
    };
    addresses(announcement.control).first().map_or(unknown, ToString::to_string)
}

fn list(tokens: &[TokenInfo], now: SystemTime) -> String {
    if tokens.is_empty() {
        return "no join tokens; `brigade token create` makes one\n".to_owned();
    }
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("STATE", Align::Left),
        ("AGE", Align::Right),
        ("EXPIRES IN", Align::Right),
        ("USES LEFT", Align::Right),
    ]);
    for token in tokens {
        let state = match token {
            token if token.revoked => "revoked",
            token if token.expires <= now => "expired",
            token if token.uses_left == Some(0) => "used up",
            _ => "valid",
        };
        table.row([
            token.id.clone(),
            state.to_owned(),
            span(now.saturating_sub(token.created)),
            span(token.expires.saturating_sub(now)),
            token.uses_left.map_or_else(|| "any".to_owned(), |uses| uses.to_string()),
        ]);
    }
    table.to_string()
}

/// A time in its two largest units.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    match parse_duration(text)? {
        Duration::ZERO => Err("a token must live for at least a second".to_owned()),
        ttl => Ok(ttl),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_listed_with_their_state() {
        let token = |id: &str, expires, uses_left, revoked| TokenInfo {
            id: id.to_owned(),
            created: 1000,
            expires,
            uses_left,
            revoked,
        };
        let now = UNIX_EPOCH + Duration::from_secs(4700);
        let tokens = [
            token("00000001", 91100, None, false),
            token("00000002", 4700, Some(3), false),
            token("00000003", 4800, Some(0), false),
            token("00000004", 4759, None, true),
        ];
        assert_eq!(
            list(&tokens, now),
            "\
ID         STATE       AGE   EXPIRES IN   USES LEFT
00000001   valid     1h01m        1d00h         any
00000002   expired   1h01m           0s           3
00000003   used up   1h01m        1m40s           0
00000004   revoked   1h01m          59s         any
"
        );
        assert!(list(&[], now).starts_with("no join tokens"));
    }
}
