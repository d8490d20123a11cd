//! Join tokens: who may enrol, until when and how often.
//!
//! `tokens.json` in the state directory holds a hash of each token's secret, never the secret. Every operation takes a
//! lock file and reads the tokens anew, so that `brigade token` in another process works on a running coordinator.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::state_dir::{StateDirError, create_private_dir, io_error, private_options, read_json, write_json};

/// The tokens.
const TOKENS_FILE: &str = "tokens.json";
/// Locked during each operation; apart from the tokens' own file, which each write replaces.
const LOCK_FILE: &str = "tokens.lock";
/// Bytes of randomness in a secret: beyond guessing.
const SECRET_BYTES: usize = 16;
/// How many hexadecimal digits of the hash name a token.
const ID_DIGITS: usize = 8;
/// Most tokens kept: more than anyone makes by hand, and little enough to read at each enrolment.
const MAX_TOKENS: usize = 1024;
/// How long a token that is over stays known, so that a worker is told why it is refused.
const REMEMBER_S: u64 = 7 * 24 * 3600;

/// The join tokens of one state directory. Cheap: it holds no tokens, only the path.
#[derive(Clone, Debug)]
pub struct TokenStore {
    dir: PathBuf,
}

/// A token just made. Its secret is shown once and stored nowhere.
#[derive(Clone)]
pub struct NewToken {
    /// The secret part: hexadecimal digits.
    pub secret: String,
    /// What the store remembers.
    pub info: TokenInfo,
}

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// The first hexadecimal digits of its secret's hash: names it without giving it away.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// How many more workers it lets in; `None` for any number.
    pub uses_left: Option<u32>,
    /// Whether it was revoked.
    pub revoked: bool,
}

/// Why a token lets nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    /// It was never made here, or is long over.
    #[error("this join token is not known here; make one with `brigade token create` on the coordinator")]
    Unknown,
    /// Its time is over.
    #[error("this join token has expired; make a new one with `brigade token create` on the coordinator")]
    Expired,
    /// It has let in as many workers as it may.
    #[error(
        "this join token has been used up; make a new one with `brigade token create` on the coordinator"
    )]
    Used,
    /// Someone took it back.
    #[error(
        "this join token has been revoked; make a new one with `brigade token create` on the coordinator"
    )]
    Revoked,
}

/// An operation on tokens that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum TokenStoreError {
    /// The files could not be read or written.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// No token of that id.
    #[error("no join token `{0}`; `brigade token ls` shows those there are")]
    NoSuchToken(String),
    /// The beginning of an id fits several tokens.
    #[error("`{0}` fits several join tokens; give more of the id")]
    Ambiguous(String),
    /// Too many tokens.
    #[error("there are {MAX_TOKENS} join tokens already; revoke some with `brigade token revoke`")]
    Full,
    /// A token must let someone in.
    #[error("a join token needs at least one use and a lifetime of at least a second")]
    Useless,
    /// The operating system gave no random numbers.
    #[error("failed to draw a random secret: {0}")]
    Random(String),
    /// The token lets nobody in.
    #[error(transparent)]
    Refused(#[from] TokenRefusal),
}

/// A token as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Stored {
    /// SHA-256 of the secret's text, in hexadecimal.
    secret_sha256: String,
    created: u64,
    expires: u64,
    uses_left: Option<u32>,
    #[serde(default)]
    revoked: bool,
}

impl Stored {
    fn info(&self) -> TokenInfo {
        TokenInfo {
            id: self.secret_sha256.chars().take(ID_DIGITS).collect(),
            created: self.created,
            expires: self.expires,
            uses_left: self.uses_left,
            revoked: self.revoked,
        }
    }
}

impl TokenStore {
    /// The tokens of a state directory, which is made where it is missing.
    ///
    /// # Errors
    /// Where the directory cannot be made.
    pub fn open(state_dir: &Path) -> Result<TokenStore, TokenStoreError> {
        create_private_dir(state_dir)?;
        Ok(TokenStore { dir: state_dir.to_owned() })
    }

    /// Makes a token that ends `ttl` from now and lets in `uses` workers, or any number.
    ///
    /// # Errors
    /// Where it would let nobody in, there are too many tokens, or the files cannot be written.
    pub fn create(&self, ttl: Duration, uses: Option<u32>) -> Result<NewToken, TokenStoreError> {
        if ttl.as_secs() == 0 || uses == Some(0) {
            return Err(TokenStoreError::Useless);
        }
        let mut bytes = [0; SECRET_BYTES];
        getrandom::fill(&mut bytes).map_err(|error| TokenStoreError::Random(error.to_string()))?;
        let secret = hex(&bytes);
        let created = seconds(SystemTime::now());
        let stored = Stored {
            secret_sha256: hash(&secret),
            created,
            expires: created.saturating_add(ttl.as_secs()),
            uses_left: uses,
            revoked: false,
        };
        let info = stored.info();
        self.update(|tokens| {
            tokens.retain(|token| token.expires.saturating_add(REMEMBER_S) > created);
            if tokens.len() >= MAX_TOKENS {
                return Err(TokenStoreError::Full);
            }
            tokens.push(stored);
            Ok(())
        })?;
        Ok(NewToken { secret, info })
    }

    /// All tokens that are remembered, oldest first.
    ///
    /// # Errors
    /// Where the files cannot be read.
    pub fn list(&self) -> Result<Vec<TokenInfo>, TokenStoreError> {
        let _lock = self.lock()?;
        Ok(self.read()?.iter().map(Stored::info).collect())
    }

    /// Takes back the token whose id begins with `id`; workers that have joined with it stay.
    ///
    /// # Errors
    /// Where no token, or more than one, fits, or the files cannot be written.
    pub fn revoke(&self, id: &str) -> Result<TokenInfo, TokenStoreError> {
        self.update(|tokens| {
            let mut fitting =
                tokens.iter_mut().filter(|token| !id.is_empty() && token.secret_sha256.starts_with(id));
            let token = fitting.next().ok_or_else(|| TokenStoreError::NoSuchToken(id.to_owned()))?;
            if fitting.next().is_some() {
                return Err(TokenStoreError::Ambiguous(id.to_owned()));
            }
            token.revoked = true;
            Ok(token.info())
        })
    }

    /// Uses a token once, at the moment `now`.
    ///
    /// # Errors
    /// [`TokenStoreError::Refused`] where the token lets nobody in, otherwise what could not be read or written.
    pub fn redeem(&self, secret: &str, now: SystemTime) -> Result<(), TokenStoreError> {
        let wanted = hash(secret);
        let now = seconds(now);
        self.update(|tokens| {
            // Hashes are compared, so the time that takes tells nothing of a secret.
            let token = tokens.iter_mut().find(|token| token.secret_sha256 == wanted);
            let token = token.ok_or(TokenRefusal::Unknown)?;
            if token.revoked {
                return Err(TokenRefusal::Revoked.into());
            }
            if now >= token.expires {
                return Err(TokenRefusal::Expired.into());
            }
            if let Some(uses) = &mut token.uses_left {
                *uses = uses.checked_sub(1).ok_or(TokenRefusal::Used)?;
            }
            Ok(())
        })
    }

    /// Changes the tokens under the lock; what `change` refuses is not written.
    fn update<T>(
        &self,
        change: impl FnOnce(&mut Vec<Stored>) -> Result<T, TokenStoreError>,
    ) -> Result<T, TokenStoreError> {
        let _lock = self.lock()?;
        let mut tokens = self.read()?;
        let result = change(&mut tokens)?;
        write_json(&self.dir.join(TOKENS_FILE), &tokens)?;
        Ok(result)
    }

    fn read(&self) -> Result<Vec<Stored>, TokenStoreError> {
        Ok(read_json(&self.dir.join(TOKENS_FILE))?.unwrap_or_default())
    }

    fn lock(&self) -> Result<std::fs::File, TokenStoreError> {
        let path = self.dir.join(LOCK_FILE);
        let file = private_options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret.as_bytes()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn refusal(result: Result<(), TokenStoreError>) -> TokenRefusal {
        match result {
            Err(TokenStoreError::Refused(refusal)) => refusal,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_token_serves_until_it_is_used_up_expired_or_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::open(dir.path()).unwrap();
        let now = SystemTime::now();
        let twice = store.create(DAY, Some(2)).unwrap();
        let often = store.create(DAY, None).unwrap();

        store.redeem(&twice.secret, now).unwrap();
        store.redeem(&twice.secret, now).unwrap();
        assert_eq!(refusal(store.redeem(&twice.secret, now)), TokenRefusal::Used);

        for _ in 0..5 {
            store.redeem(&often.secret, now).unwrap();
        }
        assert_eq!(refusal(store.redeem(&often.secret, now + 2 * DAY)), TokenRefusal::Expired);
        assert_eq!(store.revoke(&often.info.id).unwrap().id, often.info.id);
        assert_eq!(refusal(store.redeem(&often.secret, now)), TokenRefusal::Revoked);
        assert_eq!(refusal(store.redeem("", now)), TokenRefusal::Unknown);
    }

    #[test]
    fn another_process_sees_every_change() {
        let dir = tempfile::tempdir().unwrap();
        let (coordinator, command) =
            (TokenStore::open(dir.path()).unwrap(), TokenStore::open(dir.path()).unwrap());
        let token = command.create(DAY, Some(1)).unwrap();
        coordinator.redeem(&token.secret, SystemTime::now()).unwrap();
        assert_eq!(command.list().unwrap()[0].uses_left, Some(0));
        assert_eq!(command.list().unwrap()[0].id, token.info.id);
    }

    #[test]
    fn concurrent_uses_never_exceed_what_is_allowed() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::open(dir.path()).unwrap();
        let token = store.create(DAY, Some(3)).unwrap();
        let let_in: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| store.redeem(&token.secret, SystemTime::now()).is_ok() as usize))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(let_in, 3);
    }

    #[test]
    fn the_file_is_private_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::open(dir.path()).unwrap();
        let token = store.create(DAY, None).unwrap();
        let path = dir.path().join(TOKENS_FILE);
        assert!(!std::fs::read_to_string(&path).unwrap().contains(&token.secret));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn wrong_use_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let store = TokenStore::open(dir.path()).unwrap();
        assert!(matches!(store.create(DAY, Some(0)), Err(TokenStoreError::Useless)));
        assert!(matches!(store.create(Duration::ZERO, None), Err(TokenStoreError::Useless)));
        assert!(matches!(store.revoke("ffff"), Err(TokenStoreError::NoSuchToken(_))));
        std::fs::write(dir.path().join(TOKENS_FILE), "[{]").unwrap();
        assert!(store.list().unwrap_err().to_string().contains("tokens.json is damaged"));
    }
}
