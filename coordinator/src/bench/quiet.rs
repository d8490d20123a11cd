//! Whether a cluster serves somebody else: what is measured beside other requests is no measurement, and disturbs them.

use std::fmt;
use std::time::{Duration, Instant};

use crate::client::{Client, ClientError};
use crate::status::{ActiveRequest, ClusterStatus};

/// How long nothing must be asked of a cluster before it counts as quiet: who sends one request after the other is
/// noticed within that time.
pub const QUIET: Duration = Duration::from_secs(2);
/// How often it is asked meanwhile.
const POLL: Duration = Duration::from_millis(250);
/// Most requests that are named.
const NAMED: usize = 3;

/// What a cluster does for others.
#[derive(Clone, Debug, PartialEq)]
pub struct Others {
    /// Requests that run.
    pub running: u32,
    /// Requests that wait.
    pub waiting: u32,
    /// Tokens computed or generated meanwhile.
    pub tokens: u64,
    /// Some of the requests.
    pub active: Vec<ActiveRequest>,
}

impl fmt::Display for Others {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the cluster serves others: {} running and {} waiting", self.running, self.waiting)?;
        for request in self.active.iter().take(NAMED) {
            let ActiveRequest { id, state, generated_tokens, max_tokens, age_s, .. } = request;
            write!(
                f,
                "; request {id} ({state}, {generated_tokens} of {max_tokens} tokens, {age_s:.0} s old)"
            )?;
        }
        if self.running + self.waiting == 0 {
            write!(f, "; {} tokens within the last {} s", self.tokens, QUIET.as_secs())?;
        }
        Ok(())
    }
}

/// Watches a cluster of which we ask nothing for [`QUIET`]: what it does for others, if it does anything.
///
/// # Errors
/// Where it does not answer.
pub async fn others(client: &Client) -> Result<Option<Others>, ClientError> {
    let began = Instant::now();
    let before = client.status().await?;
    let mut after = before.clone();
    loop {
        if let Some(others) = served(&before, &after) {
            return Ok(Some(others));
        }
        if began.elapsed() >= QUIET {
            return Ok(None);
        }
        tokio::time::sleep(POLL).await;
        after = client.status().await?;
    }
}

/// What was done between two states in which nothing of ours ran.
fn served(before: &ClusterStatus, after: &ClusterStatus) -> Option<Others> {
    let (was, is) = (&before.requests, &after.requests);
    let tokens =
        (is.generated_tokens + is.prompt_tokens).saturating_sub(was.generated_tokens + was.prompt_tokens);
    let busy = is.running + is.waiting > 0 || tokens > 0;
    busy.then(|| Others { running: is.running, waiting: is.waiting, tokens, active: after.active.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::RequestStatus;

    fn status(running: u32, waiting: u32, generated_tokens: u64) -> ClusterStatus {
        let requests = RequestStatus { running, waiting, generated_tokens, ..RequestStatus::default() };
        ClusterStatus { requests, ..ClusterStatus::default() }
    }

    #[test]
    fn who_is_served_is_told() {
        let idle = status(0, 0, 700);
        assert_eq!(served(&idle, &idle), None, "what was generated long ago is no trouble");
        let mut busy = status(1, 2, 700);
        busy.active.push(ActiveRequest {
            id: 12,
            state: "decode".into(),
            generated_tokens: 30,
            max_tokens: 900,
            age_s: 4.2,
            ..ActiveRequest::default()
        });
        let said = served(&busy, &busy).unwrap().to_string();
        assert_eq!(
            said,
            "the cluster serves others: 1 running and 2 waiting; request 12 (decode, 30 of 900 tokens, 4 s old)"
        );
        let said = served(&idle, &status(0, 0, 734)).unwrap().to_string();
        assert!(said.ends_with("0 running and 0 waiting; 34 tokens within the last 2 s"), "{said}");
    }
}
