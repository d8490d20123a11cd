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
pub(crate) struct EventStream {
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    lines: LineBuffer,
    ended: bool,
    /// How long it may be silent.
    silence: Duration,
}

impl EventStream {
    /// Reads the body of an answer.
    pub(crate) fn new(answer: reqwest::Response) -> EventStream {
        EventStream::patient(answer, SILENCE_TIMEOUT)
    }

    /// The same for a stream that may be silent for so long.
    pub(crate) fn patient(answer: reqwest::Response, silence: Duration) -> EventStream {
        let body = answer.bytes_stream().boxed();
        EventStream { body, lines: LineBuffer::default(), ended: false, silence }
    }

    /// The next event's JSON; `None` after the last.
    ///
    /// # Errors
    /// Where the answer breaks off or the server reports a failure.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        match self.step().await? {
            Streamed::Event(event) => match event["error"]["message"].as_str() {
                Some(message) => Err(ClientError::Broken(message.to_owned())),
                None => Ok(Some(event)),
            },
            Streamed::Done => Ok(None),
            Streamed::Closed => Err(ClientError::Broken("the coordinator closed the stream".to_owned())),
        }
    }

    /// What comes next, whatever the server means by it.
    ///
    /// # Errors
    /// Where the connection breaks, nothing comes for long, or what comes is no JSON.
    pub(crate) async fn step(&mut self) -> Result<Streamed, ClientError> {
        while !self.ended {
            let Some(line) = self.lines.next()? else {
                if !self.more().await? {
                    self.ended = true;
                    return Ok(Streamed::Closed);
                }
                continue;
            };
            let Some(data) = line.strip_prefix("data:").map(str::trim) else {
                continue;
            };
            if data == "[DONE]" {
                self.ended = true;
                continue;
            }
            let event = serde_json::from_str(data).map_err(|e| ClientError::Broken(e.to_string()))?;
            return Ok(Streamed::Event(event));
        }
        Ok(Streamed::Done)
    }

    /// Waits for more bytes; false where the server has closed the stream.
    async fn more(&mut self) -> Result<bool, ClientError> {
        let broken = |reason: String| Err(ClientError::Broken(reason));
        match tokio::time::timeout(self.silence, self.body.next()).await {
            Ok(Some(Ok(bytes))) => {
                self.lines.push(&bytes);
                Ok(true)
            }
            Ok(Some(Err(error))) => broken(chain(&error)),
            Ok(None) => Ok(false),
            Err(_) => broken(format!("nothing came for {} s", self.silence.as_secs())),
        }
    }
}

/// What came of waiting for an event.
#[derive(Debug)]
pub(crate) enum Streamed {
    /// An event's JSON.
    Event(Value),
    /// The server has said that nothing follows.
    Done,
    /// The server has closed the stream, without saying so.
    Closed,
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
