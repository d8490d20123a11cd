//! Measuring a cluster that serves: speed of prompts and of decoding with several streams, what users wait for, and
//! where the stages' time goes.
//!
//! A [`Test`] is what is measured, [`repeat`] measures it once through the HTTP API as any client would, [`Record`] is
//! what several repetitions come to, and [`Report`] writes records down.

mod figures;
mod quiet;
mod record;
mod repetition;
mod report;
mod test;

pub use figures::{Figures, Quantiles, median};
pub use quiet::{Others, QUIET, others};
pub use record::{Record, StageShare};
pub use repetition::{
    BenchError, Prompts, Repetition, SETTLE, Sampling, Stream, WARM_UP_TOKENS, repeat, warm_up,
};
pub use report::{Report, Setting, StageSetting, write_json};
pub use test::{LeftOut, Test, TestKind, fitting};
