//! One sequence: its tokens, how many of them are sent, and which comes next.

use std::collections::VecDeque;

use brigade_proto::ids::SequenceId;
use brigade_proto::sampling::Sampling;
use brigade_proto::step::{Segment, SegmentOutput, SequenceStart, StepKind};
use brigade_shard::cost::PAGE_TOKENS;

use crate::generation::{Drawn, FinishReason, GenerationEvent, GenerationRequest, Origin};

use super::ASSURED_TOKENS;
use super::acceptance::Acceptance;
use super::lookup::{Guess, Lookup};
use super::pages::Pages;
use super::prefix::{PageKey, PageKeys};

/// Where drafts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// From what followed before.
    Lookup,
    /// From the draft model.
    Model,
}

/// One generation: its tokens, and how many of them the stages have been sent.
#[derive(Debug)]
pub(super) struct Sequence {
    sampling: Sampling,
    max_tokens: usize,
    score_prompt: bool,
    /// Scores of prompt tokens that its client has been told.
    scored: usize,
    /// Prompt tokens that were computed in time, or found, before its pipeline was lost.
    seen: usize,
    /// What the loss of pipelines has done to it.
    losses: Losses,
    /// The prompt, and every token drawn so far.
    tokens: Vec<u32>,
    /// How many of the tokens are the prompt.
    prompt: usize,
    /// How many go in chunks before one at a time: the prompt, and in a replay all that was drawn before it too.
    prefill: usize,
    /// Tokens sent; the next segment starts here.
    sent: usize,
    /// Its pages of the cache, in order.
    pub(super) pages: Vec<u32>,
    /// How many of them, from the first on, hold what others have computed.
    pub(super) shared: usize,
    /// How many of them the stages have been told.
    told: usize,
    /// Whether it is settled which pages of others it begins with.
    settled: bool,
    /// What its whole pages are found by.
    keys: PageKeys,
    /// Tokens whose keys and values are in the cache on every stage, as far as results say.
    computed: usize,
    /// Whole pages of these, shared or said to be computed.
    whole: usize,
    /// Segments on their way whose tokens are not known.
    following: usize,
    /// Segments on their way.
    pub(super) in_flight: u32,
    /// In what kind of steps its newest chunk went: those of the two kinds may overtake each other.
    lane: StepKind,
    /// Whether its client has been told the end, or has left: it only waits for its segments to come home.
    pub(super) ended: bool,
    /// Whether it is to give its cache back as soon as its segments are home, and to be replayed later.
    pub(super) parking: bool,
    lookup: Lookup,
    /// What was taken to follow the newest token, however much of it was sent.
    guess: Guess,
    /// How many tokens there were when that was guessed.
    guessed_at: usize,
    /// Whose drafts it is offered.
    source: Source,
    /// What the draft model takes to follow the newest token.
    drafts: Vec<u32>,
    /// Whether what followed before is the better guess than anything that the draft model could say.
    guesses_better: bool,
    /// Drafts under way: what is taken to follow the newest token by all segments that still count.
    drafted: VecDeque<u32>,
    /// How often a guess has failed, or there was none: what was sent before ran ahead in vain.
    fails: u64,
    /// How often its guesses were right.
    pub(super) acceptance: Acceptance,
}

/// What the loss of pipelines has done to a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Losses {
    /// Whether it was being computed when one was lost.
    hit: bool,
    /// Whether it has gone on since, and that was counted.
    counted: bool,
    /// How many were lost in a row while it was computed, without a token between them.
    fruitless: u32,
    /// Whether some pipeline that it was computed by was not exact.
    inexact: bool,
}

/// What a segment's result must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) sequence: SequenceId,
    /// Position of its first token.
    pub(super) start: usize,
    pub(super) rows: u32,
    pub(super) scores: usize,
    pub(super) sample: bool,
    /// The segment's drafts; without the first, where it runs ahead: it counts only if that was drawn before.
    pub(super) drafts: Vec<u32>,
    /// Where they come from.
    pub(super) source: Source,
    /// Whether it runs ahead of another one.
    pub(super) ahead: bool,
    /// The sequence's fails when it was sent.
    fails: u64,
    /// Whether its token was not known when it was sent.
    pub(super) follows: bool,
    /// Whether it is a chunk of a prompt or of a replay.
    pub(super) chunk: bool,
    /// Whether the prompt is computed with this segment.
    pub(super) prompt_ends: bool,
    /// How many of its tokens are of the prompt and were not computed before.
    pub(super) fresh: u32,
}

/// What a result means for a sequence.
#[derive(Debug, PartialEq)]
pub(super) enum Progress {
    /// It goes on; it may be ready to decode.
    Continues,
    /// It has ended by itself.
    Finished,
}

impl Sequence {
    pub(super) fn new(request: GenerationRequest) -> Sequence {
        let GenerationRequest {
            prompt: mut tokens,
            drawn,
            sampling,
            max_tokens,
            score_prompt,
            scope,
            trace: _,
        } = request;
        let prompt = tokens.len();
        tokens.extend(drawn);
        let prefill = tokens.len();
        Sequence {
            sampling,
            max_tokens: max_tokens as usize,
            score_prompt,
            scored: 0,
            seen: 0,
            losses: Losses::default(),
            tokens,
            prompt,
            prefill,
            sent: 0,
            pages: Vec::new(),
            shared: 0,
            told: 0,
            settled: false,
            keys: PageKeys::new(scope),
            computed: 0,
            whole: 0,
            following: 0,
            in_flight: 0,
            lane: StepKind::Prefill,
            ended: false,
            parking: false,
            lookup: Lookup::default(),
            guess: Guess::default(),
            guessed_at: 0,
            source: Source::Lookup,
            drafts: Vec::new(),
            guesses_better: true,
            drafted: VecDeque::new(),
            fails: 0,
            acceptance: Acceptance::default(),
        }
    }

    /// Whether stages may hold something of it.
    pub(super) fn begun(&self) -> bool {
        self.told > 0
    }

    /// Tokens drawn so far.
    pub(super) fn drawn(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Most tokens that are still to be drawn.
    pub(super) fn tokens_left(&self) -> usize {
        self.max_tokens.saturating_sub(self.drawn())
    }

    /// Whether tokens are still to be sent in chunks.
    pub(super) fn wants_prefill(&self) -> bool {
        !self.ended && self.sent < self.prefill
    }

    /// Whether its next chunk can go in a step of this kind: none of its others could be overtaken by it.
    pub(super) fn may_send_chunk(&self, kind: StepKind) -> bool {
        self.in_flight == 0 || self.lane == kind
    }

    /// Tokens that go in chunks: those that are not in the cache already.
    pub(super) fn prefill_rows(&self) -> usize {
        self.prefill - self.shared * PAGE_TOKENS as usize
    }

    /// Those of them that are still to be sent.
    pub(super) fn prefill_left(&self) -> usize {
        self.prefill.saturating_sub(self.sent)
    }

    /// Whether a drawn token is to be sent.
    pub(super) fn wants_decode(&self) -> bool {
        self.decodes() && self.sent < self.tokens.len() && !self.parking
    }

    /// Whether it goes on token by token: everything before that has come home.
    pub(super) fn decodes(&self) -> bool {
        !self.ended && self.tokens.len() > self.prefill
    }

    /// Pages that it begins with: for its chunks and the first tokens of what is left of the answer.
    pub(super) fn first_pages(&self) -> usize {
        let left = self.max_tokens - self.drawn();
        Pages::needed(self.tokens.len() + left.min(ASSURED_TOKENS))
    }

    /// Pages for the token to be sent next and all before it.
    pub(super) fn next_pages(&self) -> usize {
        Pages::needed(self.tokens.len())
    }

    /// Tokens after the one to be sent next that there are pages for.
    pub(super) fn room(&self) -> usize {
        (self.pages.len() * PAGE_TOKENS as usize).saturating_sub(self.tokens.len())
    }

    /// Guesses up to `most` tokens that follow. None of them ends the answer: nothing would follow it.
    pub(super) fn guess(&mut self, most: usize) {
        if self.guessed_at == self.tokens.len() {
            return;
        }
        self.guessed_at = self.tokens.len();
        self.guess = self.lookup.guess(&self.tokens, most);
        let guess = std::mem::take(&mut self.guess.tokens);
        self.guess.tokens = self.without_ends(guess);
    }

    /// Drafts up to one that would end the answer.
    pub(super) fn without_ends(&self, mut drafts: Vec<u32>) -> Vec<u32> {
        let end_ids = &self.sampling.end_ids;
        if let Some(ends) = drafts.iter().position(|token| end_ids.contains(token)) {
            drafts.truncate(ends);
        }
        drafts
    }

    /// Offers it drafts of `source`, where `drafts` are those of the draft model.
    pub(super) fn offer(&mut self, source: Source, drafts: Vec<u32>, guesses_better: bool) {
        (self.source, self.drafts, self.guesses_better) = (source, drafts, guesses_better);
    }

    /// The drafts that it was offered last.
    pub(super) fn offered(&self) -> &[u32] {
        match self.source {
            Source::Lookup => &self.guess.tokens,
            Source::Model => &self.drafts,
        }
    }

    /// Where these come from.
    pub(super) fn source(&self) -> Source {
        self.source
    }

    /// Whether what followed before was the better guess than anything that the draft model could say.
    pub(super) fn guesses_better(&self) -> bool {
        self.guesses_better
    }

    /// Whether `tokens` go on from the drafts under way.
    pub(super) fn goes_on(&self, tokens: &[u32]) -> bool {
        let before = self.drafted.len();
        before > 0 && tokens.len() >= before && self.drafted.iter().eq(&tokens[..before])
    }

    /// The prompt, and every token drawn so far.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How many of these are the prompt.
    pub(super) fn prompt_len(&self) -> usize {
        self.prompt
    }

    /// Those of the prompt that are computed, or were found in the cache.
    pub(super) fn prompt_done(&self) -> usize {
        self.computed.min(self.prompt)
    }

    /// The most tokens that it may draw.
    pub(super) fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// How tokens are chosen.
    pub(super) fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Drafts under way that may still count.
    pub(super) fn drafted(&self) -> usize {
        self.drafted.len()
    }

    /// Whether its newest token is under way, so that drafts could be sent behind it.
    pub(super) fn runs_ahead(&self) -> bool {
        self.decodes() && self.sent == self.tokens.len() && !self.parking
    }

    /// Whether its next token, which is not known yet, can be sent behind its others, of which at most `depth` are under way;
    /// there is room for what it draws.
    pub(super) fn can_follow(&self, depth: usize) -> bool {
        self.decodes()
            && !self.parking
            && self.drafted.is_empty()
            && self.sent >= self.tokens.len()
            && (1..=depth).contains(&(self.in_flight as usize))
            && self.sent + 2 <= self.prompt + self.max_tokens
    }

    /// Tokens to the one to be sent next, of those that are not known yet.
    pub(super) fn unknown(&self) -> usize {
        (self.sent + 1).saturating_sub(self.tokens.len())
    }

    /// Whether a segment's result counts: it goes on from what was drawn.
    pub(super) fn counts(&self, expected: &Expected) -> bool {
        !expected.ahead || expected.fails == self.fails
    }

    /// What was guessed last.
    pub(super) fn guessed(&self) -> &Guess {
        &self.guess
    }

    /// Learns from what was drawn, for itself and for `others`, how often guesses are right.
    pub(super) fn compare(&mut self, output: &SegmentOutput, others: &mut Acceptance) {
        let Guess { matched, tokens } = std::mem::take(&mut self.guess);
        self.guessed_at = 0;
        for (matched, (guessed, drawn)) in (matched..).zip(tokens.iter().zip(&output.sampled)) {
            let right = *guessed == drawn.token;
            self.acceptance.observe(matched, right);
            others.observe(matched, right);
            if !right {
                return;
            }
        }
    }

    /// Begins anew with all that was said so far. Hands on the pages that it had.
    pub(super) fn restart(&mut self) -> Vec<u32> {
        self.prefill = self.tokens.len();
        self.seen = self.seen.max(self.computed.min(self.prompt));
        self.sent = 0;
        self.shared = 0;
        self.told = 0;
        self.settled = false;
        self.computed = 0;
        self.whole = 0;
        self.parking = false;
        self.drafted.clear();
        self.following = 0;
        std::mem::take(&mut self.pages)
    }

    /// Goes back to those that wait, with all that was drawn: another pipeline takes over.
    pub(super) fn move_on(&mut self) {
        self.restart();
        self.in_flight = 0;
        self.fails += 1;
        self.guess = Guess::default();
        self.guessed_at = 0;
    }

    /// Begins anew after its pipeline was lost, with all that was told so far. Says how many were lost in a row while it
    /// was computed, without a token between them.
    pub(super) fn suspend(&mut self, exact: bool) -> u32 {
        self.losses.hit |= self.begun() || self.settled;
        self.losses.inexact |= self.begun() && !exact;
        self.losses.fruitless += u32::from(self.in_flight > 0);
        self.move_on();
        self.losses.fruitless
    }

    /// Takes in on what pipeline it goes on.
    pub(super) fn go_on_with(&mut self, exact: bool) {
        self.losses.inexact |= self.losses.hit && !exact;
    }

    /// Whether it has gone on after the loss of a pipeline, the first time that it is asked since; and whether all
    /// pipelines were exact.
    pub(super) fn recovered(&mut self) -> Option<bool> {
        let first = self.losses.hit && !self.losses.counted;
        self.losses.counted |= first;
        first.then_some(!self.losses.inexact)
    }

    /// Whether anything of it was ever computed.
    pub(super) fn was_served(&self) -> bool {
        self.losses.hit || self.drawn() > 0
    }

    /// The tokens that it may come to.
    pub(super) fn most_tokens(&self) -> usize {
        self.prompt.saturating_add(self.max_tokens)
    }

    /// Whether its tokens were computed before, at least its prompt.
    fn replays(&self) -> bool {
        self.prefill > self.prompt
    }

    /// Whether it is settled what it begins with.
    pub(super) fn settled(&self) -> bool {
        self.settled
    }

    /// What it might begin with: the keys of whole pages, and its own pages, which could be exchanged for others. At
    /// least one token is left to compute, and all of them where they are to be scored.
    pub(super) fn reusable(&mut self) -> (&[PageKey], &mut [u32]) {
        let scored = self.score_prompt && !self.replays();
        let tokens = if scored { 0 } else { self.prefill.saturating_sub(1) };
        (self.keys.of(&self.tokens[..tokens]), &mut self.pages)
    }

    /// The keys of all whole pages that are computed in chunks.
    pub(super) fn prefill_keys(&mut self) -> &[PageKey] {
        self.keys.of(&self.tokens[..self.prefill])
    }

    /// Begins after its first `pages` pages, which others have computed. Says whether it began before.
    pub(super) fn begin_with(&mut self, pages: usize) -> bool {
        self.settled = true;
        self.shared = pages;
        self.whole = pages;
        self.sent = pages * PAGE_TOKENS as usize;
        self.computed = self.sent;
        self.replays() || self.losses.hit
    }

    /// Takes in that a segment is computed; the pages that are whole since, with what they are found by. The last token
    /// said is never among them: it is not sent yet.
    pub(super) fn note_computed(&mut self, expected: &Expected) -> Vec<(u32, PageKey)> {
        let end = (expected.start + expected.rows as usize).min(self.tokens.len() - 1);
        // Behind a chunk that has failed, nothing counts.
        if expected.start <= self.computed {
            self.computed = self.computed.max(end);
        }
        let before = self.whole;
        self.whole = before.max(self.computed / PAGE_TOKENS as usize);
        if self.whole == before {
            return Vec::new();
        }
        let keys = self.keys.of(&self.tokens[..self.computed]);
        let found = before..self.whole;
        self.pages[found.clone()].iter().copied().zip(keys[found].iter().copied()).collect()
    }

    /// The pages that the stages have not been told of.
    fn new_pages(&mut self) -> Vec<u32> {
        let pages = self.pages[self.told..].to_vec();
        self.told = self.pages.len();
        pages
    }

    /// The next chunk after it is settled what the sequence begins with, of at most `rows` tokens (at least one), in a step
    /// of this kind.
    pub(super) fn next_chunk(&mut self, id: SequenceId, rows: usize, kind: StepKind) -> (Segment, Expected) {
        self.lane = kind;
        let start = self.sent;
        // Rows whose scores were told before its pipeline was lost, and those after them, go in chunks of their own.
        let until = if start < self.scored { self.scored } else { self.prefill };
        let end = until.min(start + rows.max(1));
        let last = end == self.prefill;
        let sample = last && self.max_tokens > 0;
        let score = self.score_prompt && !self.replays() && start >= self.scored;
        let fresh = end.min(self.prompt).saturating_sub(start.max(self.seen)) as u32;
        let next_token = if score { self.tokens.get(end).copied() } else { None };
        let begin = (!self.begun())
            .then(|| SequenceStart { sampling: self.sampling.clone(), prompt_tokens: self.prompt as u32 });
        let tokens = self.tokens[start..end].to_vec();
        let rows = tokens.len() as u32;
        // Every token but the prompt's first is scored, once: by the row of the token before it.
        let scores = if score { end - start - usize::from(last) } else { 0 };
        self.sent = end;
        self.in_flight += 1;
        let pages = self.new_pages();
        let segment = Segment {
            sequence: id,
            start: start as u32,
            tokens,
            begin,
            pages,
            sample,
            drafts: 0,
            score,
            next_token,
        };
        let expected = Expected {
            sequence: id,
            start,
            rows,
            scores,
            sample,
            drafts: Vec::new(),
            source: self.source,
            ahead: false,
            fails: self.fails,
            follows: false,
            chunk: true,
            prompt_ends: last,
            fresh,
        };
        (segment, expected)
    }

    /// The drawn token as a segment, with drafts of what follows it, for which there are pages; `None` where there is none
    /// to send.
    pub(super) fn next_decode(&mut self, id: SequenceId, drafts: Vec<u32>) -> Option<(Segment, Expected)> {
        let token = *self.tokens.get(self.sent).filter(|_| self.wants_decode())?;
        let start = self.sent;
        self.sent += 1;
        self.drafted.extend(&drafts);
        let tokens = [token].into_iter().chain(drafts.iter().copied()).collect();
        Some(self.decode_segment(id, start, tokens, drafts, false))
    }

    /// A segment of what is guessed to follow the drafts under way, up to `most` drafts in all; `None` where there is no
    /// such guess.
    pub(super) fn next_ahead(&mut self, id: SequenceId, most: usize) -> Option<(Segment, Expected)> {
        let before = self.drafted.len();
        let offered = self.offered();
        let guess = &offered[..most.min(offered.len())];
        let goes_on = self.runs_ahead() && guess.len() > before && self.drafted.iter().eq(&guess[..before]);
        let tokens = goes_on.then(|| guess[before..].to_vec())?;
        let start = self.tokens.len() + before;
        self.drafted.extend(&tokens);
        let drafts = tokens[1..].to_vec();
        Some(self.decode_segment(id, start, tokens, drafts, true))
    }

    /// Its next token, which is still to be drawn, as a segment; to be called where it can follow.
    pub(super) fn next_following(&mut self, id: SequenceId) -> (Segment, Expected) {
        let start = self.sent;
        self.sent += 1;
        self.following += 1;
        let (segment, expected) = self.decode_segment(id, start, vec![0], Vec::new(), false);
        (segment, Expected { follows: true, ..expected })
    }

    fn decode_segment(
        &mut self,
        id: SequenceId,
        start: usize,
        tokens: Vec<u32>,
        drafts: Vec<u32>,
        ahead: bool,
    ) -> (Segment, Expected) {
        self.in_flight += 1;
        let rows = tokens.len() as u32;
        let segment = Segment {
            sequence: id,
            start: start as u32,
            tokens,
            begin: None,
            pages: self.new_pages(),
            sample: true,
            drafts: drafts.len() as u32 + u32::from(ahead),
            score: false,
            next_token: None,
        };
        let expected = Expected {
            sequence: id,
            start,
            rows,
            scores: 0,
            sample: true,
            drafts,
            source: self.source,
            ahead,
            fails: self.fails,
            follows: false,
            chunk: false,
            prompt_ends: false,
            fresh: 0,
        };
        (segment, expected)
    }

    /// Takes in a segment's result, which holds what was expected, and says what the client is to be told.
    pub(super) fn take(
        &mut self,
        output: SegmentOutput,
        expected: &Expected,
        emit: &mut impl FnMut(GenerationEvent),
    ) -> Progress {
        if expected.scores > 0 {
            self.scored += expected.scores;
            emit(GenerationEvent::PromptScores(output.scores));
        }
        self.following -= usize::from(expected.follows);
        for score in output.sampled {
            let token = score.token;
            self.tokens.push(token);
            self.losses.fruitless = 0;
            let origin = if self.drafted.front() == Some(&token) {
                self.drafted.pop_front();
                self.sent = self.tokens.len();
                Origin::Draft
            } else {
                // It is still to be sent, and what was sent to follow what was guessed in its place has become useless.
                self.sent = self.tokens.len() - 1 + self.following;
                self.fails += 1;
                Origin::Drawn { rejected: self.drafted.drain(..).count() as u32 }
            };
            emit(GenerationEvent::Token(Drawn { score, origin }));
            let reason = if self.sampling.end_ids.contains(&token) {
                FinishReason::EndToken
            } else if self.drawn() >= self.max_tokens {
                FinishReason::Length
            } else {
                continue;
            };
            emit(GenerationEvent::Done(reason));
            return Progress::Finished;
        }
        // A request for scores alone ends with its prompt.
        if !(expected.prompt_ends && self.max_tokens == 0) {
            return Progress::Continues;
        }
        emit(GenerationEvent::Done(FinishReason::Length));
        Progress::Finished
    }
}
