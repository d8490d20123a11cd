//! The command line of `brigade-worker bench`, with the names that llama-bench has for the same things.

use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};

use crate::cli::Device;

/// Rows of a step unless told otherwise: those of a cluster's prompt chunks.
const DEFAULT_BATCH: &str = "128";

/// Arguments of `bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The model: a GGUF file, the first part of a split one, or a directory of safetensors
    #[arg(value_name = "FILE")]
    pub model: PathBuf,

    /// Prompt lengths to measure; 0 measures none
    #[arg(short = 'p', long, value_name = "N,..", value_delimiter = ',', default_value = "512")]
    pub n_prompt: Vec<u32>,

    /// Numbers of tokens to decode one by one; 0 measures none
    #[arg(short = 'n', long, value_name = "N,..", value_delimiter = ',', default_value = "128")]
    pub n_gen: Vec<u32>,

    /// A prompt of P tokens and N decoded after it, timed apart; may be given several times
    #[arg(long, value_name = "P,N")]
    pub pg: Vec<PromptThenDecode>,

    /// Tokens that the sequence holds before a measurement begins
    #[arg(short = 'd', long, value_name = "N,..", value_delimiter = ',', default_value = "0")]
    pub n_depth: Vec<u32>,

    /// Numbers of sequences that decode together, a token of each in every step
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1")]
    pub streams: Vec<NonZeroU32>,

    /// How often each measurement is repeated
    #[arg(short = 'r', long, value_name = "N", default_value = "5")]
    pub repetitions: NonZeroU32,

    /// Compute threads [default: one per processor]
    #[arg(short = 't', long, value_name = "N,..", value_delimiter = ',')]
    pub threads: Vec<NonZeroU16>,

    /// Most prompt tokens computed in one step; the workspace grows with it
    #[arg(short = 'b', long, value_name = "N,..", value_delimiter = ',', default_value = DEFAULT_BATCH)]
    pub batch_size: Vec<NonZeroU32>,

    /// Where to compute: cpu, cuda:N or metal
    #[arg(long, default_value = "cpu")]
    pub device: Device,

    /// Read the last N layers again for every step, as a worker does that is started with --offload
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub offload: usize,

    /// How the results are written
    #[arg(short = 'o', long, value_name = "FORMAT", default_value = "md")]
    pub output: OutputFormat,

    /// Measure at once, without a run beforehand that does not count
    #[arg(long)]
    pub no_warmup: bool,

    /// Read the file beforehand, so that it loads from the system's cache, and time merely reading it, too
    #[arg(long)]
    pub read_file: bool,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A Markdown table, and a line about memory and loading.
    Md,
    /// An array of objects.
    Json,
    /// A line of names, and one for each measurement.
    Csv,
}

/// A prompt, and tokens decoded after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptThenDecode {
    /// Tokens of the prompt; above 0.
    pub prompt: u32,
    /// Tokens decoded; above 0.
    pub decode: u32,
}

/// A value that is no pair.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{0}` is not a prompt's length and a number of tokens to decode, both above 0: write P,N such as 512,128"
)]
pub struct ParsePairError(String);

impl FromStr for PromptThenDecode {
    type Err = ParsePairError;

    fn from_str(text: &str) -> Result<Self, ParsePairError> {
        let number = |text: &str| text.trim().parse().ok().filter(|number| *number > 0);
        let pair = text.split_once(',').and_then(|(prompt, decode)| Some((number(prompt)?, number(decode)?)));
        let (prompt, decode) = pair.ok_or_else(|| ParsePairError(text.to_owned()))?;
        Ok(PromptThenDecode { prompt, decode })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_two_numbers_above_zero() {
        assert_eq!("512,128".parse(), Ok(PromptThenDecode { prompt: 512, decode: 128 }));
        for text in ["", "512", "512,", ",128", "0,128", "512,0", "512,128,1", "-1,5", "a,b"] {
            assert!(text.parse::<PromptThenDecode>().is_err(), "{text}");
        }
    }
}
