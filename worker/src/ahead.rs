//! Steps that come to the first stage ahead of their tokens, and the tokens that come to it by the short way round.
//!
//! Where the coordinator is far, it sends steps before it knows what they continue: the last stage tells the first what
//! was drawn, and the coordinator's own word, which comes for every such token too, is only needed where that fails.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use brigade_proto::ids::{SequenceId, StepId};
use brigade_proto::step::{Drawn, DrawnToken, Frame, Segment, StepFrame};

use crate::engine::{Arrival, DECODE_LANE_FRAMES};

/// Sequences whose newest token is remembered. A coordinator releases those that have ended, so that there are never
/// more than a stage may hold; past this the oldest is forgotten, and the coordinator's own word settles it.
const MOST_SEQUENCES: usize = 4096;

/// What a first stage waits for.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// What the newest step drew for each sequence.
    drawn: BTreeMap<SequenceId, Newest>,
    /// Steps whose tokens are not all known, oldest first.
    waiting: VecDeque<Arrival>,
}

/// A sequence's newest token.
#[derive(Clone, Copy, Debug)]
struct Newest {
    step: StepId,
    position: u32,
    token: u32,
}

impl Ahead {
    /// A step whose tokens are to be filled in: the step, where all are known already.
    ///
    /// # Errors
    /// Where too many wait.
    pub(crate) fn admit(&mut self, mut arrival: Arrival) -> Result<Option<Arrival>, String> {
        if self.complete(&mut arrival.frame) {
            self.forget(&arrival.frame.release);
            return Ok(Some(arrival));
        }
        if self.waiting.len() >= DECODE_LANE_FRAMES {
            return Err(format!("more than {DECODE_LANE_FRAMES} steps wait for what others draw"));
        }
        self.waiting.push_back(arrival);
        Ok(None)
    }

    /// Takes in what was drawn; the steps that waited for it and for nothing else, in order.
    pub(crate) fn fill(&mut self, drawn: &Drawn, now: Instant) -> Vec<Arrival> {
        for &DrawnToken { sequence, position, token } in &drawn.tokens {
            let told = Newest { step: drawn.step, position, token };
            let known = self.drawn.entry(sequence).or_insert(told);
            // What is told a second time is older. A position may come again: drafts that were wrong are drawn anew.
            if known.step < drawn.step {
                *known = told;
            }
        }
        let mut ready = Vec::new();
        for mut arrival in std::mem::take(&mut self.waiting) {
            if self.complete(&mut arrival.frame) {
                self.forget(&arrival.frame.release);
                ready.push(Arrival { at: now, ..arrival });
            } else {
                self.waiting.push_back(arrival);
            }
        }
        let told = |sequence: &SequenceId| drawn.tokens.iter().any(|drawn| drawn.sequence == *sequence);
        while self.drawn.len() > MOST_SEQUENCES {
            // What was told just now may be for a step that is still to come.
            let Some(oldest) = self.drawn.keys().find(|sequence| !told(sequence)).copied() else { break };
            self.drawn.remove(&oldest);
        }
        ready
    }

    /// Forgets sequences that have ended.
    pub(crate) fn forget(&mut self, ended: &[SequenceId]) {
        for sequence in ended {
            self.drawn.remove(sequence);
        }
    }

    /// Fills in a step's tokens, if all are known.
    fn complete(&self, frame: &mut StepFrame) -> bool {
        let token = |sequence, start| {
            self.drawn.get(&sequence).filter(|known| known.position == start).map(|known| known.token)
        };
        let tokens: Option<Vec<u32>> =
            frame.segments.iter().map(|segment| token(segment.sequence, segment.start)).collect();
        let Some(tokens) = tokens else {
            return false;
        };
        for (segment, token) in frame.segments.iter_mut().zip(tokens) {
            segment.tokens = vec![token];
        }
        frame.short_way.follows = false;
        true
    }
}

/// Each segment's sequence, with the position after those of its tokens that are no drafts.
pub(crate) fn places(frame: &StepFrame) -> Vec<(SequenceId, u32)> {
    let place = |segment: &Segment| {
        let certain = (segment.tokens.len() as u32).saturating_sub(segment.drafts);
        (segment.sequence, segment.start + certain)
    };
    frame.segments.iter().map(place).collect()
}

/// What a step's segments, whose first draws are for `places`, drew; `None` where the frame is no result.
pub(crate) fn drawn(places: &[(SequenceId, u32)], frame: &Frame) -> Option<Drawn> {
    let Frame::Result(result) = frame else {
        return None;
    };
    let tokens = places.iter().zip(&result.outputs).filter_map(|(&(sequence, after), output)| {
        let (last, before) = output.sampled.split_last()?;
        Some(DrawnToken { sequence, position: after + before.len() as u32, token: last.token })
    });
    let tokens = tokens.collect();
    Some(Drawn { fence: result.fence, deployment: result.deployment, step: result.step, tokens })
}

#[cfg(test)]
mod tests {
    use brigade_proto::ids::{DeploymentId, Epoch, Fence, Incarnation, Peer, StepId};
    use brigade_proto::step::{SegmentOutput, ShortWay, StepKind, StepResult, TokenScore};

    use super::*;

    const FENCE: Fence = Fence { incarnation: Incarnation(1), epoch: Epoch(1) };

    /// A step for the tokens of these sequences at these positions.
    fn step(number: u64, segments: &[(u64, u32)]) -> Arrival {
        let segment = |&(sequence, start): &(u64, u32)| Segment {
            sequence: SequenceId(sequence),
            start,
            tokens: vec![0],
            begin: None,
            pages: Vec::new(),
            sample: true,
            drafts: 0,
            score: false,
            next_token: None,
        };
        let frame = StepFrame {
            fence: FENCE,
            deployment: DeploymentId(1),
            step: StepId(number),
            kind: StepKind::Decode,
            segments: segments.iter().map(segment).collect(),
            release: Vec::new(),
            short_way: ShortWay { told: true, follows: true },
            timings: Vec::new(),
            hidden: None,
        };
        Arrival { peer: Peer::Coordinator, frame, at: Instant::now() }
    }

    /// What step `number` drew: sequences, positions and tokens.
    fn told(number: u64, tokens: &[(u64, u32, u32)]) -> Drawn {
        let token = |&(sequence, position, token): &(u64, u32, u32)| DrawnToken {
            sequence: SequenceId(sequence),
            position,
            token,
        };
        let tokens = tokens.iter().map(token).collect();
        Drawn { fence: FENCE, deployment: DeploymentId(1), step: StepId(number), tokens }
    }

    /// The steps with their tokens.
    fn ready(steps: &[Arrival]) -> Vec<(u64, Vec<u32>)> {
        let tokens = |frame: &StepFrame| frame.segments.iter().flat_map(|s| s.tokens.clone()).collect();
        steps.iter().map(|arrival| (arrival.frame.step.0, tokens(&arrival.frame))).collect()
    }

    #[test]
    fn a_step_waits_until_all_of_its_tokens_are_known() {
        let (mut ahead, now) = (Ahead::default(), Instant::now());
        assert!(ahead.admit(step(2, &[(1, 10), (2, 20)])).unwrap().is_none());
        assert!(ahead.admit(step(3, &[(1, 11), (2, 21)])).unwrap().is_none());
        assert_eq!(ready(&ahead.fill(&told(1, &[(1, 10, 7)]), now)), []);
        assert_eq!(ready(&ahead.fill(&told(1, &[(2, 20, 8)]), now)), [(2, vec![7, 8])]);
        assert_eq!(ready(&ahead.fill(&told(1, &[(1, 10, 7), (2, 20, 8)]), now)), [], "told twice");
        assert_eq!(ready(&ahead.fill(&told(2, &[(1, 11, 5), (2, 21, 6)]), now)), [(3, vec![5, 6])]);
        assert_eq!(ready(&ahead.fill(&told(1, &[(1, 12, 7)]), now)), [], "an older step's word comes late");
    }

    #[test]
    fn what_is_drawn_anew_replaces_what_was_wrong() {
        let (mut ahead, now) = (Ahead::default(), Instant::now());
        ahead.fill(&told(1, &[(1, 10, 7)]), now);
        ahead.fill(&told(2, &[(1, 11, 8)]), now);
        assert!(ahead.admit(step(4, &[(1, 10)])).unwrap().is_none());
        assert_eq!(ready(&ahead.fill(&told(3, &[(1, 10, 9)]), now)), [(4, vec![9])]);
    }

    #[test]
    fn tokens_may_come_before_the_step() {
        let mut ahead = Ahead::default();
        ahead.fill(&told(1, &[(1, 10, 7)]), Instant::now());
        let found = ahead.admit(step(2, &[(1, 10)])).unwrap().unwrap();
        assert_eq!(found.frame.segments[0].tokens, [7]);
        assert!(ahead.admit(step(3, &[(1, 11)])).unwrap().is_none());
        ahead.forget(&[SequenceId(1)]);
        assert!(ahead.admit(step(4, &[(1, 10)])).unwrap().is_none(), "another sequence of that number");
    }

    #[test]
    fn a_draw_stands_behind_all_tokens_that_are_no_drafts_and_the_drafts_that_were_right() {
        // Three tokens at once, and one with two drafts of which one is right.
        let mut frame = step(1, &[(1, 10), (2, 20)]).frame;
        frame.segments[0].tokens = vec![5, 6, 7];
        (frame.segments[1].tokens, frame.segments[1].drafts) = (vec![8, 9, 4], 2);
        let score = |token| TokenScore { token, logprob: 0.0, top: Vec::new() };
        let output = |sequence, tokens: &[u32]| SegmentOutput {
            sequence: SequenceId(sequence),
            scores: Vec::new(),
            sampled: tokens.iter().copied().map(score).collect(),
        };
        let result = StepResult {
            fence: FENCE,
            deployment: DeploymentId(1),
            step: StepId(1),
            kind: StepKind::Decode,
            outputs: vec![output(1, &[30]), output(2, &[9, 31])],
            timings: Vec::new(),
        };
        let found = drawn(&places(&frame), &Frame::Result(result)).unwrap();
        assert_eq!(found, told(1, &[(1, 13, 30), (2, 22, 31)]));
    }

    #[test]
    fn neither_steps_nor_tokens_pile_up() {
        let mut ahead = Ahead::default();
        for number in 0..DECODE_LANE_FRAMES as u64 {
            assert!(ahead.admit(step(number, &[(1, 10)])).unwrap().is_none());
        }
        assert!(ahead.admit(step(99, &[(1, 10)])).unwrap_err().contains("wait"));
        for sequence in 0..2 * MOST_SEQUENCES as u64 {
            ahead.fill(&told(1, &[(100 + sequence, 1, 1)]), Instant::now());
        }
        assert_eq!(ahead.drawn.len(), MOST_SEQUENCES);
    }
}
