//! What requests ask and are answered, in the log, where that was asked for (`--log-prompts`). Nothing else ever logs it.

use futures_util::stream::StreamExt as _;

use super::answers::{Deltas, Job};
use super::engine::Engine;
use super::state::Api;
use brigade_shard::tokenizer::SpecialText;

/// Under which name it is logged.
pub const PROMPTS_LOG: &str = "brigade::prompts";

/// One request's line, written when its answer ends or its client leaves.
pub(crate) struct PromptLine {
    prompts: Vec<String>,
    answers: Vec<String>,
}

impl PromptLine {
    /// The line of a request with these jobs; `None` where prompts are not to be logged.
    pub(crate) fn begin<E: Engine>(api: &Api<E>, jobs: &[Job]) -> Option<PromptLine> {
        let tokenizer = &api.engine().model().tokenizer;
        let text = |job: &Job| tokenizer.decode(&job.request.prompt, SpecialText::Show);
        api.logs_prompts().then(|| PromptLine {
            prompts: jobs.iter().map(text).collect(),
            answers: vec![String::new(); jobs.len()],
        })
    }

    /// `deltas`, which are added to the line on their way.
    pub(crate) fn watch(line: Option<PromptLine>, deltas: Deltas) -> Deltas {
        let Some(mut line) = line else {
            return deltas;
        };
        let watched = deltas.inspect(move |delta| {
            if let Ok((choice, delta)) = delta
                && let Some(answer) = line.answers.get_mut(*choice)
            {
                answer.push_str(&delta.text);
            }
        });
        watched.boxed()
    }
}

impl Drop for PromptLine {
    fn drop(&mut self) {
        // Choices of one prompt.
        self.prompts.dedup();
        tracing::info!(target: PROMPTS_LOG, prompts = ?self.prompts, answers = ?self.answers, "a request ended");
    }
}
