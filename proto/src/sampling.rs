//! How the next token is chosen from the logits.

/// Sampling parameters of one sequence. They travel with its first segment, and again with every replay.
///
/// Applied in this order, as in vLLM: `min_tokens`, `logit_bias`, penalties, temperature, `min_p`, `top_k`, `top_p`.
/// Log-probabilities are those of the full softmax of the model's own logits, before any of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Keeps the `top_k` most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keeps the smallest set of most likely tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this share of the most likely one; 0 drops none.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens that stand in the prompt or the answer; 1 is neutral.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that stand in the answer.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time it stands in the answer.
    pub frequency_penalty: f32,
    /// With the position, decides the random number of each draw.
    pub seed: u64,
    /// Added to the logits of these token ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Log-probabilities wanted with each token: of the token itself, and of this many most likely ones.
    pub logprobs: Option<u32>,
    /// Token ids in `end_ids` are not drawn before the answer has this many tokens.
    pub min_tokens: u32,
    /// Token ids that end the answer.
    pub end_ids: Vec<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            logit_bias: Vec::new(),
            logprobs: None,
            min_tokens: 0,
            end_ids: Vec::new(),
        }
    }
}
