//! In which form a server takes requests: found by asking for all that a measurement wants, and giving up what it refuses.

use serde_json::{Value, json};

/// Where requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `/v1/completions`: a prompt as it is.
    Completions,
    /// `/v1/chat/completions`: a prompt as a user's message, which the server's template surrounds.
    Chat,
}

/// What a request says besides its prompt; servers differ in what they take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) endpoint: Endpoint,
    /// The prompt as token ids, and the answer's in return.
    pub(super) ids: bool,
    /// That an end token does not end the answer.
    pub(super) ignore_eos: bool,
    /// The same as vLLM and others have it.
    pub(super) min_tokens: bool,
    /// The sampling's seed.
    pub(super) seed: bool,
    /// That tokens be counted at the end.
    pub(super) usage: bool,
}

/// A prompt in the form that a server takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Prompt {
    Ids(Vec<u32>),
    Text(String),
}

/// What to ask.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) prompt: Prompt,
    pub(super) max_tokens: u32,
    pub(super) temperature: f64,
    pub(super) seed: u64,
}

impl Form {
    /// All that a measurement wants of completions.
    pub(super) fn fullest(ids: bool) -> Form {
        Form {
            endpoint: Endpoint::Completions,
            ids,
            ignore_eos: true,
            min_tokens: true,
            seed: true,
            usage: true,
        }
    }

    /// Where requests of this form go.
    pub(super) fn path(self) -> &'static str {
        match self.endpoint {
            Endpoint::Completions => "/v1/completions",
            Endpoint::Chat => "/v1/chat/completions",
        }
    }

    /// The request's body.
    pub(super) fn body(self, ask: &Ask) -> Value {
        let mut body = json!({
            "model": ask.model,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "stream": true,
        });
        match (&ask.prompt, self.endpoint) {
            (Prompt::Text(text), Endpoint::Chat) => {
                body["messages"] = json!([{"role": "user", "content": text}]);
            }
            (Prompt::Text(text), Endpoint::Completions) => body["prompt"] = json!(text),
            (Prompt::Ids(ids), _) => body["prompt"] = json!(ids),
        }
        let options = [
            (self.ids, "return_token_ids", json!(true)),
            (self.ignore_eos, "ignore_eos", json!(true)),
            (self.min_tokens, "min_tokens", json!(ask.max_tokens)),
            // Servers count seeds in 32 bits.
            (self.seed, "seed", json!(ask.seed & 0x7fff_ffff)),
            (self.usage, "stream_options", json!({"include_usage": true})),
        ];
        for (_, name, value) in options.into_iter().filter(|(is_wanted, ..)| *is_wanted) {
            body[name] = value;
        }
        body
    }

    /// The form to try after this one was refused with `status` and `message`; `None` where another form would be refused
    /// as well, or there is none left.
    pub(super) fn simpler(self, status: u16, message: &str) -> Option<Form> {
        match status {
            404 if is_about_model(message) => None,
            // There is no such endpoint.
            404 | 405 | 501 => self.chat(),
            400 | 422 | 500 => {
                self.without_named(message).or_else(|| self.without_one()).or_else(|| self.chat())
            }
            _ => None,
        }
    }

    /// Without what the server has named.
    fn without_named(self, message: &str) -> Option<Form> {
        let is_named = |is_set: bool, name: &str| is_set && message.contains(name);
        if is_named(self.min_tokens, "min_tokens") {
            Some(Form { min_tokens: false, ..self })
        } else if is_named(self.ignore_eos, "ignore_eos") {
            Some(Form { ignore_eos: false, ..self })
        } else if is_named(self.usage, "stream_options") || is_named(self.usage, "include_usage") {
            Some(Form { usage: false, ..self })
        } else if is_named(self.seed, "seed") {
            Some(Form { seed: false, ..self })
        } else {
            None
        }
    }

    /// Without one thing: first what servers refuse most often and what is missed the least.
    fn without_one(self) -> Option<Form> {
        if self.ids {
            Some(Form { ids: false, ..self })
        } else if self.min_tokens {
            Some(Form { min_tokens: false, ..self })
        } else if self.ignore_eos {
            Some(Form { ignore_eos: false, ..self })
        } else if self.seed {
            Some(Form { seed: false, ..self })
        } else if self.usage {
            Some(Form { usage: false, ..self })
        } else {
            None
        }
    }

    fn chat(self) -> Option<Form> {
        let chat = Form { endpoint: Endpoint::Chat, ..Form::fullest(false) };
        (self.endpoint == Endpoint::Completions).then_some(chat)
    }
}

/// Whether a server that answers 404 has no such model, rather than no such endpoint.
fn is_about_model(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    message.contains("model")
        && ["not found", "not exist", "unknown", "no such"].iter().any(|word| message.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(prompt: Prompt) -> Ask {
        Ask { model: "m".to_owned(), prompt, max_tokens: 8, temperature: 1.0, seed: u64::MAX }
    }

    #[test]
    fn a_body_says_what_its_form_has() {
        let full = Form::fullest(true).body(&ask(Prompt::Ids(vec![1, 2])));
        assert_eq!(
            full,
            json!({
                "model": "m", "max_tokens": 8, "temperature": 1.0, "stream": true, "prompt": [1, 2],
                "return_token_ids": true, "ignore_eos": true, "min_tokens": 8, "seed": 0x7fff_ffff,
                "stream_options": {"include_usage": true}
            })
        );
        let bare = Form {
            endpoint: Endpoint::Chat,
            ids: false,
            ignore_eos: false,
            min_tokens: false,
            seed: false,
            usage: false,
        };
        assert_eq!(
            bare.body(&ask(Prompt::Text("hi".to_owned()))),
            json!({
                "model": "m", "max_tokens": 8, "temperature": 1.0, "stream": true,
                "messages": [{"role": "user", "content": "hi"}]
            })
        );
    }

    #[test]
    fn what_is_refused_is_given_up_and_nothing_is_asked_twice() {
        let full = Form::fullest(true);
        let without = full.simpler(422, "Extra inputs are not permitted: min_tokens");
        assert_eq!(without, Some(Form { min_tokens: false, ..full }));
        let no_array =
            full.simpler(400, "json: cannot unmarshal array into Go struct field .prompt of type string");
        assert_eq!(no_array, Some(Form { ids: false, ..full }));
        let chat = full.simpler(404, "404 page not found");
        assert_eq!(chat.map(|form| (form.endpoint, form.ids)), Some((Endpoint::Chat, false)));
        for (status, message) in [
            (401, "no key"),
            (403, "not you"),
            (429, "later"),
            (503, "Loading model"),
            (404, "The model `x` does not exist."),
            (404, "model \"x\" not found, try pulling it first"),
        ] {
            assert_eq!(full.simpler(status, message), None, "{status} {message}");
        }
        let mut seen = vec![full];
        while let Some(next) = seen.last().and_then(|form| form.simpler(400, "no")) {
            assert!(!seen.contains(&next), "{next:?} comes again");
            seen.push(next);
        }
        assert_eq!(seen.len(), 11, "six of completions and five of chat: {seen:?}");
        assert_eq!(seen.last().map(|form| form.endpoint), Some(Endpoint::Chat));
    }
}
