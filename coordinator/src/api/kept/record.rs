//! How a kept answer is written down: a file of JSON lines, a [`Head`] and then what happened. A last line that was cut off
//! counts as not written.

use brigade_proto::step::TokenScore;
use serde::{Deserialize, Serialize};

use crate::generation::{Drawn, FinishReason, GenerationEvent, Origin};

/// Version of the files.
pub(super) const VERSION: u32 = 1;

/// The first line of a record.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) version: u32,
    /// Hash of what was asked.
    pub(super) request: String,
    /// Fingerprint of the model that answers.
    pub(super) model: String,
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) choices: Vec<HeadChoice>,
}

/// What a choice is generated from, where it does not follow from the request alone.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct HeadChoice {
    pub(super) prompt: Vec<u32>,
    pub(super) seed: u64,
    pub(super) max_tokens: u32,
}

/// Any other line: what happened to a choice.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Line {
    #[serde(rename = "c")]
    pub(super) choice: usize,
    #[serde(flatten)]
    pub(super) what: What,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum What {
    Reused(u32),
    Scores(Vec<Score>),
    /// A token, and guesses that were wrong in its place; `None` where it was guessed.
    Token(Score, Option<u32>),
    End(End),
    /// The choice begins anew: nothing was drawn before its generation broke off.
    Again(()),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum End {
    Token,
    Length,
}

/// A token id, the bits of its log-probability, and the likeliest tokens likewise.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Score(u32, u32, Vec<(u32, u32)>);

/// What a record holds: its head, what happened, and how many of its bytes are whole lines of these.
pub(super) fn parse(text: &[u8]) -> (Option<Head>, Vec<(usize, GenerationEvent)>, usize) {
    let mut length = 0;
    let mut lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let head = lines.next().and_then(|line| {
        length += line.len();
        serde_json::from_slice::<Head>(line).ok()
    });
    let mut past = Vec::new();
    let Some(head) = head.filter(|head| head.version == VERSION) else {
        return (None, past, 0);
    };
    for line in lines {
        let Ok(Line { choice, what }) = serde_json::from_slice(line) else { break };
        length += line.len();
        match what.event() {
            Some(event) => past.push((choice, event)),
            None => past.retain(|(of, _)| *of != choice),
        }
    }
    (Some(head), past, length)
}

impl What {
    /// What is written down of an event; `None` for what is not.
    pub(super) fn of(event: &GenerationEvent) -> Option<What> {
        Some(match event {
            GenerationEvent::Reused(tokens) => What::Reused(*tokens),
            GenerationEvent::PromptScores(scores) => What::Scores(scores.iter().map(Score::of).collect()),
            GenerationEvent::Token(Drawn { score, origin: Origin::Draft }) => {
                What::Token(Score::of(score), None)
            }
            GenerationEvent::Token(Drawn { score, origin: Origin::Drawn { rejected } }) => {
                What::Token(Score::of(score), Some(*rejected))
            }
            GenerationEvent::Done(FinishReason::EndToken) => What::End(End::Token),
            GenerationEvent::Done(FinishReason::Length) => What::End(End::Length),
            GenerationEvent::Failed(_) => return None,
        })
    }

    /// The event that was written down; `None` where the choice begins anew.
    fn event(self) -> Option<GenerationEvent> {
        Some(match self {
            What::Reused(tokens) => GenerationEvent::Reused(tokens),
            What::Scores(scores) => {
                GenerationEvent::PromptScores(scores.into_iter().map(Score::score).collect())
            }
            What::Token(score, rejected) => {
                let origin = rejected.map_or(Origin::Draft, |rejected| Origin::Drawn { rejected });
                GenerationEvent::Token(Drawn { score: score.score(), origin })
            }
            What::End(End::Token) => GenerationEvent::Done(FinishReason::EndToken),
            What::End(End::Length) => GenerationEvent::Done(FinishReason::Length),
            What::Again(()) => return None,
        })
    }
}

impl Score {
    fn of(score: &TokenScore) -> Score {
        let top = score.top.iter().map(|(token, logprob)| (*token, logprob.to_bits()));
        Score(score.token, score.logprob.to_bits(), top.collect())
    }

    fn score(self) -> TokenScore {
        let Score(token, logprob, top) = self;
        let top = top.into_iter().map(|(token, logprob)| (token, f32::from_bits(logprob)));
        TokenScore { token, logprob: f32::from_bits(logprob), top: top.collect() }
    }
}
