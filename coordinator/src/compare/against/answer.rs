//! Counting an answer's tokens as its events come. An event is not a token: servers send several at once, or none for a
//! part of a character.

use std::time::Duration;

use serde_json::Value;

/// An answer on its way.
#[derive(Debug, Default)]
pub(super) struct Counting {
    /// When something came, and how many token ids it had, where it had any.
    pieces: Vec<(Duration, Option<usize>)>,
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    cached_tokens: u64,
    finished: Option<String>,
    finished_at: Duration,
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// When tokens came, and how many.
    pub(super) arrivals: Vec<(Duration, usize)>,
    /// Whether the server has counted them; pieces of text were counted otherwise.
    pub(super) is_counted: bool,
    /// Tokens of the prompt, where the server told.
    pub(super) prompt_tokens: Option<u64>,
    /// Tokens of the prompt that were in a cache.
    pub(super) cached_tokens: u64,
    /// Why it ended, in OpenAI's words.
    pub(super) finished: Option<String>,
}

impl Answer {
    /// Tokens that came.
    pub(super) fn tokens(&self) -> usize {
        self.arrivals.iter().map(|(_, tokens)| *tokens).sum()
    }
}

impl Counting {
    /// Takes an event that came `at` so long after all streams were asked for.
    ///
    /// # Errors
    /// The server's message, where the event is one of failure.
    pub(super) fn take(&mut self, event: &Value, at: Duration) -> Result<(), String> {
        if let Some(error) = event.get("error").filter(|error| !error.is_null()) {
            let message = error["message"].as_str().or_else(|| error.as_str());
            return Err(message.map_or_else(|| error.to_string(), str::to_owned));
        }
        let choice = &event["choices"][0];
        let ids = choice["token_ids"].as_array().map(Vec::len).filter(|ids| *ids > 0);
        if ids.is_some() || has_text(choice) {
            self.pieces.push((at, ids));
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finished = Some(reason.to_owned());
            self.finished_at = at;
        }
        // Where every event counts, the last one's numbers are the whole's. llama.cpp's own are there without being asked for.
        let number = |value: &Value| value.as_u64();
        let (usage, timings) = (&event["usage"], &event["timings"]);
        let told = |ours: &mut Option<u64>, found: Option<u64>| *ours = found.or(*ours);
        told(
            &mut self.completion_tokens,
            number(&usage["completion_tokens"]).or(number(&timings["predicted_n"])),
        );
        told(&mut self.prompt_tokens, number(&usage["prompt_tokens"]).or(number(&timings["prompt_n"])));
        if let Some(cached) = number(&usage["prompt_tokens_details"]["cached_tokens"]) {
            self.cached_tokens = cached;
        }
        Ok(())
    }

    /// Whether the server has said that the answer is whole.
    pub(super) fn is_finished(&self) -> bool {
        self.finished.is_some()
    }

    /// The answer, when nothing follows.
    pub(super) fn end(mut self) -> Answer {
        let counted = self.completion_tokens.filter(|tokens| *tokens > 0).map(|tokens| tokens as usize);
        // Tokens without text, such as the end's, come with the end alone.
        if self.pieces.is_empty() && counted.is_some() && self.finished.is_some() {
            self.pieces.push((self.finished_at, None));
        }
        let ids: Option<Vec<usize>> = self.pieces.iter().map(|(_, ids)| *ids).collect();
        let each = match (ids, counted) {
            (Some(ids), _) => ids,
            (None, Some(tokens)) => spread(tokens, self.pieces.len()),
            (None, None) => vec![1; self.pieces.len()],
        };
        let is_counted = counted.is_some() || self.pieces.iter().all(|(_, ids)| ids.is_some());
        let arrivals = self.pieces.iter().zip(each).map(|((at, _), tokens)| (*at, tokens));
        Answer {
            arrivals: arrivals.filter(|(_, tokens)| *tokens > 0).collect(),
            is_counted,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            finished: self.finished,
        }
    }
}

/// Whether a choice brings something that was generated: text, a thought, or of a completion an empty piece that is not
/// its end, such as a part of a character. A chat begins with an empty piece that nothing was generated for.
fn has_text(choice: &Value) -> bool {
    let delta = &choice["delta"];
    let words = [&choice["text"], &delta["content"], &delta["reasoning_content"], &delta["reasoning"]];
    words.iter().any(|text| text.as_str().is_some_and(|text| !text.is_empty()))
        || (choice["text"].is_string() && choice["finish_reason"].is_null())
}

/// So many tokens over so many pieces, as evenly as whole numbers allow: only their sum is known.
fn spread(tokens: usize, pieces: usize) -> Vec<usize> {
    let until = |piece: usize| tokens * piece / pieces.max(1);
    (0..pieces).map(|piece| until(piece + 1) - until(piece)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn count(events: &[Value]) -> Answer {
        let mut counting = Counting::default();
        for (at, event) in events.iter().enumerate() {
            counting.take(event, Duration::from_millis(at as u64)).unwrap();
        }
        counting.end()
    }

    fn tokens(answer: &Answer) -> Vec<usize> {
        answer.arrivals.iter().map(|(_, tokens)| *tokens).collect()
    }

    #[test]
    fn token_ids_are_counted_where_they_come() {
        let answer = count(&[
            json!({"choices": [{"text": "a", "token_ids": [1], "finish_reason": null}]}),
            json!({"choices": [{"text": "", "token_ids": [2, 3], "finish_reason": null}]}),
            json!({"choices": [{"text": "b", "token_ids": [4], "finish_reason": "length"}]}),
            json!({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4,
                   "prompt_tokens_details": {"cached_tokens": 2}}}),
        ]);
        assert_eq!((tokens(&answer), answer.is_counted), (vec![1, 2, 1], true));
        assert_eq!(
            (answer.prompt_tokens, answer.cached_tokens, answer.finished.as_deref()),
            (Some(7), 2, Some("length"))
        );
    }

    #[test]
    fn what_the_server_counted_is_spread_over_what_came() {
        let piece = |text: &str| json!({"choices": [{"text": text, "finish_reason": null}], "usage": null});
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 8}});
        let events = [piece("a"), piece("bc"), piece("d"), usage];
        let answer = count(&events);
        assert_eq!((tokens(&answer), answer.tokens(), answer.is_counted), (vec![2, 3, 3], 8, true));
        let alone = count(&events[..3]);
        assert_eq!((tokens(&alone), alone.is_counted, alone.prompt_tokens), (vec![1, 1, 1], false, None));
    }

    #[test]
    fn a_chat_s_beginning_and_end_are_no_tokens() {
        let answer = count(&[
            json!({"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": null}]}),
            json!({"choices": [{"delta": {"reasoning": "hm"}, "finish_reason": null}]}),
            json!({"choices": [{"delta": {"content": "a"}, "finish_reason": null}]}),
            json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
        ]);
        assert_eq!((tokens(&answer), answer.finished.as_deref()), (vec![1, 1], Some("stop")));
        let completion = count(&[
            json!({"choices": [{"text": "", "finish_reason": null}]}),
            json!({"choices": [{"text": "é", "finish_reason": null}]}),
            json!({"choices": [{"text": "", "finish_reason": "length"}], "timings": {"prompt_n": 5, "predicted_n": 2}}),
        ]);
        assert_eq!(
            (tokens(&completion), completion.is_counted, completion.prompt_tokens),
            (vec![1, 1], true, Some(5))
        );
    }

    #[test]
    fn a_token_without_text_comes_with_the_end() {
        let end = json!({"choices": [{"text": "", "finish_reason": "length"}]});
        let usage = json!({"choices": [], "usage": {"prompt_tokens": 16, "completion_tokens": 1}});
        assert_eq!(count(&[end.clone(), usage.clone()]).arrivals, [(Duration::ZERO, 1)]);
        assert_eq!(count(&[end]).arrivals, []);
        assert_eq!(count(&[usage]).arrivals, [], "nobody knows when");
    }

    #[test]
    fn failures_are_told_in_the_server_s_words() {
        for (event, message) in [
            (json!({"error": {"message": "out of memory", "code": 500}}), "out of memory"),
            (json!({"error": "an error was encountered"}), "an error was encountered"),
            (json!({"error": {"code": 500}}), "{\"code\":500}"),
        ] {
            assert_eq!(Counting::default().take(&event, Duration::ZERO), Err(message.to_owned()));
        }
    }
}
