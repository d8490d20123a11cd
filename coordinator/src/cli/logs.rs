//! What the program logs, on standard error, and in which form.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

use super::UsageError;
use crate::api::PROMPTS_LOG;

/// What is logged unless told otherwise: errors, and our own warnings.
const DEFAULT: &str = "error,brigade_coordinator=warn,brigade_proto=warn";

/// Flags of every command.
#[derive(Clone, Debug, Args)]
pub struct LogOptions {
    /// What to log: error, warn, info, debug, trace, or a filter such as brigade_coordinator=debug [default: warn]
    #[arg(long, global = true, value_name = "FILTER", env = "BRIGADE_LOG", hide_env = true)]
    pub log: Option<String>,

    /// How log lines look
    #[arg(
        long,
        global = true,
        value_name = "FORMAT",
        env = "BRIGADE_LOG_FORMAT",
        hide_env = true,
        default_value = "text"
    )]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object a line.
    Json,
}

impl LogOptions {
    /// Logs from now on; with `prompts`, also what requests ask and are answered.
    ///
    /// # Errors
    /// Where the filter is none.
    pub(super) fn start(&self, prompts: bool) -> Result<(), UsageError> {
        let given = self.log.as_deref().filter(|filter| !filter.trim().is_empty());
        let filter = given.unwrap_or(DEFAULT).to_owned();
        let filter = if prompts { format!("{filter},{PROMPTS_LOG}=info") } else { filter };
        let filter = EnvFilter::try_new(&filter).map_err(|error| {
            UsageError(format!("--log `{filter}` is not a filter ({error}): write a level such as info"))
        })?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        // A log that is there already is as good.
        let _ = match self.log_format {
            LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).without_time().try_init(),
            LogFormat::Json => log.json().try_init(),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_filter_is_refused_by_name() {
        let options = LogOptions { log: Some("a=b=c".into()), log_format: LogFormat::Text };
        let error = options.start(false).unwrap_err().to_string();
        assert!(error.contains("--log `a=b=c` is not a filter"), "{error}");
    }
}
