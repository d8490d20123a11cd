//! Join tokens: `bg1-<SHA-256 of the CA's public key>-<secret>`.

use std::fmt;
use std::str::FromStr;

use super::IdentityError;

const PREFIX: &str = "bg1";
/// Hexadecimal digits of the secret: 128 bits.
const SECRET_DIGITS: usize = 32;

/// What lets a machine join: which coordinator to trust, and a secret that the coordinator trusts in turn.
///
/// [`fmt::Display`] writes it in full, for its user; [`fmt::Debug`] leaves the secret out.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the CA's public key (its SubjectPublicKeyInfo, DER).
    pub ca_spki_sha256: [u8; 32],
    /// 32 hexadecimal digits that only the coordinator and the token's owner know.
    pub secret: String,
}

impl JoinToken {
    /// A token with a new secret, for the CA of this hash.
    ///
    /// # Errors
    /// Where the system gives no random numbers.
    pub fn generate(ca_spki_sha256: [u8; 32]) -> Result<JoinToken, IdentityError> {
        let mut secret = [0u8; SECRET_DIGITS / 2];
        getrandom::fill(&mut secret).map_err(|error| IdentityError::Random(error.to_string()))?;
        Ok(JoinToken { ca_spki_sha256, secret: hex(&secret) })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}", hex(&self.ca_spki_sha256), self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({PREFIX}-{}-...)", hex(&self.ca_spki_sha256))
    }
}

/// A text that is not a join token. The text is not repeated: it may hold a secret.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// It does not start like one.
    #[error("a join token starts with `bg1-`; copy the whole token that the coordinator printed")]
    Prefix,
    /// It does not have three parts.
    #[error("a join token has three parts, `bg1-<hash>-<secret>`, and this one has {parts}; copy it whole")]
    Parts {
        /// How many there are.
        parts: usize,
    },
    /// The hash is not one.
    #[error(
        "the second part of a join token is 64 hexadecimal digits, not {found} characters; copy it whole"
    )]
    Hash {
        /// Characters found, of which some may not be digits.
        found: usize,
    },
    /// The secret is not one.
    #[error("the third part of a join token is 32 hexadecimal digits, not {found} characters; copy it whole")]
    Secret {
        /// Characters found, of which some may not be digits.
        found: usize,
    },
}

impl FromStr for JoinToken {
    type Err = TokenError;

    /// Reads a token; white space around it, as a file or a terminal adds it, does not matter.
    fn from_str(text: &str) -> Result<JoinToken, TokenError> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        if parts.first() != Some(&PREFIX) {
            return Err(TokenError::Prefix);
        }
        let &[_, hash, secret] = parts.as_slice() else {
            return Err(TokenError::Parts { parts: parts.len() });
        };
        let bad_hash = TokenError::Hash { found: hash.chars().count() };
        let ca_spki_sha256 = digest(hash).ok_or(bad_hash)?;
        if secret.len() != SECRET_DIGITS || !secret.bytes().all(is_digit) {
            return Err(TokenError::Secret { found: secret.chars().count() });
        }
        Ok(JoinToken { ca_spki_sha256, secret: secret.to_owned() })
    }
}

fn is_digit(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// The bytes of 64 lower-case hexadecimal digits.
fn digest(hex: &str) -> Option<[u8; 32]> {
    if hex.len() != 64 || !hex.bytes().all(is_digit) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, digits) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}
