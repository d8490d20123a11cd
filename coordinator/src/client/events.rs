//! Server-sent events of an answer on its way.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde_json::Value;

use super::{ClientError, chain};

/// How long a stream may be silent: the server sends a comment every few seconds while it has nothing else to say.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(120);

/// The longest line of a stream, in bytes.
const MAX_LINE_BYTES: usize = 1 << 20;

/// The events of one answer. Dropping it ends the generation.
pub(super) struct EventStream {
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    lines: LineBuffer,
    ended: bool,
}

impl EventStream {
    /// Reads the body of an answer.
    pub(super) fn new(answer: reqwest::Response) -> EventStream {
        EventStream { body: answer.bytes_stream().boxed(), lines: LineBuffer::default(), ended: false }
    }

    /// The next event's JSON; `None` after the last.
    ///
    /// # Errors
    /// Where the answer breaks off or the server reports a failure.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        while !self.ended {
            let Some(line) = self.lines.next()? else {
                self.more().await?;
                continue;
            };
            let Some(data) = line.strip_prefix("data:").map(str::trim) else {
                continue;
            };
            if data == "[DONE]" {
                self.ended = true;
                continue;
            }
            let event: Value = serde_json::from_str(data).map_err(|e| ClientError::Broken(e.to_string()))?;
            if let Some(message) = event["error"]["message"].as_str() {
                return Err(ClientError::Broken(message.to_owned()));
            }
            return Ok(Some(event));
        }
        Ok(None)
    }

    /// Waits for more bytes.
    async fn more(&mut self) -> Result<(), ClientError> {
        let broken = |reason: String| Err(ClientError::Broken(reason));
        match tokio::time::timeout(SILENCE_TIMEOUT, self.body.next()).await {
            Ok(Some(Ok(bytes))) => {
                self.lines.push(&bytes);
                Ok(())
            }
            Ok(Some(Err(error))) => broken(chain(&error)),
            Ok(None) => broken("the coordinator closed the stream".to_owned()),
            Err(_) => broken(format!("nothing came for {} s", SILENCE_TIMEOUT.as_secs())),
        }
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
struct LineBuffer {
    bytes: BytesMut,
    /// Bytes at the front in which no line ends.
    searched: usize,
}

impl LineBuffer {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line, without its end.
    fn next(&mut self) -> Result<Option<String>, ClientError> {
        match self.bytes[self.searched..].iter().position(|b| *b == b'\n') {
            Some(at) => {
                let line = self.bytes.split_to(self.searched + at);
                self.bytes.advance(1);
                self.searched = 0;
                Ok(Some(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()))
            }
            None if self.bytes.len() > MAX_LINE_BYTES => {
                Err(ClientError::Broken(format!("a line of more than {MAX_LINE_BYTES} bytes came")))
            }
            None => {
                self.searched = self.bytes.len();
                Ok(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_wherever_the_bytes_were() {
        let mut lines = LineBuffer::default();
        let mut seen = Vec::new();
        for byte in "data: é\r\n\ndata: [DONE]\nrest".as_bytes() {
            lines.push(&[*byte]);
            while let Some(line) = lines.next().unwrap() {
                seen.push(line);
            }
        }
        assert_eq!(seen, ["data: é", "", "data: [DONE]"]);
        lines.push(&vec![b'x'; MAX_LINE_BYTES + 1]);
        assert!(lines.next().is_err());
    }
}
