//! What the coordinator and a process that renders say to each other: frames of a length (four bytes, the lowest first)
//! and as many bytes of JSON.

use std::io::{self, Read};

use brigade_shard::template::{MAX_OUTPUT_BYTES, TemplateSource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// Longest frame to a process: four times the longest body that a chat can have, since numbers may be written longer.
pub(super) const MAX_REQUEST_BYTES: usize = 64 << 20;
/// Longest frame from one: the longest prompt, each byte of which JSON may write as six.
pub(super) const MAX_REPLY_BYTES: usize = 6 * MAX_OUTPUT_BYTES + 1024;
/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;

/// To a process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// Compile this template and keep it.
    Load(TemplateSource),
    /// Render the one that was loaded.
    Render(Rendering),
}

/// What a template is rendered with.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rendering {
    /// The messages, each with at least a role and a content.
    pub messages: Vec<Value>,
    /// The tools that the model may call; none leaves the template without that variable.
    pub tools: Vec<Value>,
    /// Further variables.
    pub variables: Map<String, Value>,
}

/// From a process: one reply per request.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// The template is ready.
    Loaded,
    /// The prompt.
    Text(String),
    /// The template takes no notice of tools.
    NoTools,
    /// The template is no Jinja, failed, exceeded a limit, or refuses the messages: why.
    Refused(String),
}

/// `message` as a frame.
pub(super) fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - LENGTH_BYTES).map_err(|_| too_long(bytes.len()))?;
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// The next message of at most `limit` bytes; `None` where the other side has closed.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read, limit: usize) -> io::Result<Option<T>> {
    let mut length = [0; LENGTH_BYTES];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let mut bytes = vec![0; checked(length, limit)?];
    from.read_exact(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// As [`read`], for the coordinator's side; a close is an error.
pub(super) async fn receive<T: DeserializeOwned>(
    from: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<T> {
    let mut length = [0; LENGTH_BYTES];
    from.read_exact(&mut length).await?;
    let length = checked(length, limit)?;
    // Memory comes as the bytes do, not as they are announced.
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

fn checked(length: [u8; LENGTH_BYTES], limit: usize) -> io::Result<usize> {
    let length = u32::from_le_bytes(length) as usize;
    if length > limit { Err(too_long(length)) } else { Ok(length) }
}

fn too_long(length: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {length} bytes is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_and_their_lengths_are_checked() {
        let sent = frame(&Reply::Text("ü\u{0}".to_owned())).unwrap();
        let read_one = |bytes: &[u8], limit| read::<Reply>(&mut &bytes[..], limit);
        assert_eq!(read_one(&sent, 100).unwrap(), Some(Reply::Text("ü\u{0}".to_owned())));
        assert_eq!(read_one(&[], 100).unwrap(), None);
        assert!(read_one(&sent, 10).is_err(), "longer than allowed");
        assert!(read_one(&sent[..sent.len() - 1], 100).is_err(), "cut off");
        assert!(read_one(&[1, 0, 0, 0, b'{'], 100).is_err(), "no JSON");
    }
}
