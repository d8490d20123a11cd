//! The turns of a comparison: one box, the cluster, other servers, and all of them again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::against::OtherError;
use super::choices::{ChoiceLoads, SideChoice, SideChoices};
use super::lease::Lease;
use super::measure::Measured;
use super::opponent::Opponent;
use super::{Comparison, Side, verdict};
use crate::bench::{BenchError, Others, SETTLE, Test, TestKind, others};
use crate::client::{Client, ClientError};
use crate::status::{ClusterStatus, Phase};

/// How often it is asked whether a plan serves.
const POLL: Duration = Duration::from_millis(250);
/// How long nothing may change while a plan is waited for: a large tensor from a slow disk.
const STUCK: Duration = Duration::from_secs(180);

/// What is measured, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct CompareSettings {
    /// How often each side is measured; at least 1.
    pub rounds: u32,
    /// Numbers of streams that decode at the same time.
    pub streams: Vec<u32>,
    /// Lengths of prompts, in tokens.
    pub prompts: Vec<u32>,
    /// Tokens that each stream decodes; at least 2, or 0 for none.
    pub decode_tokens: u32,
    /// Seed of prompts and sampling.
    pub seed: u64,
    /// Whether it is measured although others are served.
    pub force: bool,
}

impl CompareSettings {
    /// What each side is measured by.
    fn tests(&self) -> Vec<Test> {
        let kind = TestKind::Decode { tokens: self.decode_tokens, depth: 1 };
        let decode = self.streams.iter().map(|&streams| Test { kind, streams });
        let prompt =
            self.prompts.iter().map(|&tokens| Test { kind: TestKind::Prompt { tokens }, streams: 1 });
        decode.filter(|_| self.decode_tokens > 0).chain(prompt).collect()
    }

    /// What is to be predicted.
    fn loads(&self) -> ChoiceLoads {
        let or =
            |numbers: &[u32], usual: u32| if numbers.is_empty() { vec![usual] } else { numbers.to_vec() };
        ChoiceLoads {
            streams: or(&self.streams, 1),
            prompts: or(&self.prompts, brigade_shard::plan::PROMPT_TOKENS),
            // Half of what is decoded is there on average.
            context: 1 + self.decode_tokens / 2,
        }
    }
}

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The coordinator did not answer, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A measurement failed.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// Another server could not be measured.
    #[error(transparent)]
    Other(#[from] OtherError),
    /// The cluster serves others.
    #[error("{0}; wait until it is quiet, or measure all the same with --force")]
    Busy(Others),
    /// Others were served while it was measured.
    #[error(
        "the cluster began to serve others while {side} was measured; wait until it is quiet, or measure all the same with \
         --force"
    )]
    Disturbed {
        /// Which side.
        side: String,
    },
    /// Somebody has said where the model is to lie.
    #[error(
        "the plan is pinned to {workers}, by another comparison or by hand; wait for it, take the pin back with DELETE \
         /api/pin, or compare all the same with --force"
    )]
    Pinned {
        /// Their names.
        workers: String,
    },
    /// Nothing is served yet.
    #[error("{model} is not served yet: {reason}; `brigade status --watch` shows when it is")]
    NotServing {
        /// The model.
        model: String,
        /// Why not.
        reason: String,
    },
    /// There is no cluster, or nothing of it fits.
    #[error("there is nothing to compare: {0}")]
    Nothing(String),
    /// The pin was given up, by the coordinator or by somebody else.
    #[error("the comparison was broken off: {0}")]
    PinLost(String),
    /// The plan does not come to serve.
    #[error("{side} does not come to serve: nothing has changed for {seconds} s ({doing})")]
    Stuck {
        /// Which side.
        side: String,
        /// For how long.
        seconds: u64,
        /// What the cluster was doing.
        doing: String,
    },
}

/// Measures one box against the cluster that `client` speaks to, and both against `opponents`, in turns, with `lease`
/// pinning the plan. Whoever calls
/// takes the pin back afterwards, with [`Lease::release`], also where this is cancelled. `tell` is told what goes on.
///
/// # Errors
/// Where the cluster serves others, does not come to serve, or anything breaks off.
pub async fn compare(
    client: &Client,
    settings: &CompareSettings,
    opponents: &mut [Opponent],
    lease: &mut Lease,
    tell: &mut (dyn FnMut(&str) + Send),
) -> Result<Comparison, CompareError> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let status = client.status().await?;
    if status.phase != Phase::Serving {
        let reason = status.reason.unwrap_or_else(|| "its stages are not ready".to_owned());
        return Err(CompareError::NotServing { model: status.model.id, reason });
    }
    if !status.pinned.is_empty() && !settings.force {
        return Err(CompareError::Pinned { workers: status.pinned.join(", ") });
    }
    let mut run = Run { client, settings, lease, tell, disturbed: false };
    run.check_quiet().await?;
    let SideChoices { one_box, cluster, mut left_out } = client.choices(&settings.loads()).await?;
    if cluster.is_none() {
        return Err(CompareError::Nothing(left_out.join("; ")));
    }
    let choices: Vec<SideChoice> = one_box.into_iter().chain(cluster).collect();
    let sides = run.rounds(choices, opponents, &mut left_out).await?;
    let disturbed = run.disturbed || sides.iter().any(Measured::is_disturbed);
    let mut sides: Vec<Side> =
        sides.into_iter().map(|side| side.end(settings.rounds, &mut left_out)).collect();
    sides.extend(opponents.iter().map(|opponent| opponent.end(&mut left_out)));
    Ok(Comparison {
        began_unix_s: began.as_secs(),
        version: status.version,
        model: status.model.id,
        fingerprint: status.model.fingerprint,
        weight_bytes: status.model.weight_bytes,
        rounds: settings.rounds,
        seed: settings.seed,
        disturbed,
        left_out,
        verdict: verdict(&sides),
        sides,
    })
}

/// A comparison under way.
struct Run<'a> {
    client: &'a Client,
    settings: &'a CompareSettings,
    lease: &'a mut Lease,
    tell: &'a mut (dyn FnMut(&str) + Send),
    /// Whether others were served before a round.
    disturbed: bool,
}

impl Run<'_> {
    /// Measures all sides in turn, as often as wanted. A side that cannot be pinned is left out.
    async fn rounds(
        &mut self,
        choices: Vec<SideChoice>,
        opponents: &mut [Opponent],
        left_out: &mut Vec<String>,
    ) -> Result<Vec<Measured>, CompareError> {
        let tests = self.settings.tests();
        let mut sides: Vec<Measured> = choices.into_iter().map(Measured::new).collect();
        for round in 1..=self.settings.rounds {
            if round > 1 {
                self.check_quiet().await?;
            }
            let mut refused = Vec::new();
            for (place, side) in sides.iter_mut().enumerate() {
                let title = side.choice.title();
                let of = format!("round {round} of {}", self.settings.rounds);
                match self.lease.pin(&side.choice.workers).await {
                    Ok(()) => {}
                    Err(ClientError::Refused { message, status: 409, .. }) if round == 1 => {
                        left_out.push(format!("{title} was not measured: {message}"));
                        refused.push(place);
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
                let status = self.until_served(&side.choice, &of).await?;
                // Both sides have the same prompts in a round, and other ones in each.
                let seed = self.settings.seed.wrapping_add(u64::from(round));
                let tell = &mut *self.tell;
                let mut told = |what: &str| tell(&format!("{of}, {what}"));
                let turn = side.turn(self.client, &tests, seed, &status, &mut told).await;
                if let Some(why) = self.lease.lost() {
                    return Err(CompareError::PinLost(why));
                }
                turn?;
                if side.is_disturbed() && !self.settings.force {
                    return Err(CompareError::Disturbed { side: title });
                }
            }
            for place in refused.into_iter().rev() {
                sides.remove(place);
            }
            for opponent in &mut *opponents {
                (self.tell)(&format!("round {round} of {}, {}", self.settings.rounds, opponent.url()));
                opponent.turn(&tests).await?;
            }
            if !sides.iter().any(Measured::is_measured) {
                return Err(CompareError::Nothing(left_out.join("; ")));
            }
        }
        Ok(sides)
    }

    /// Notes whether the cluster serves others.
    async fn check_quiet(&mut self) -> Result<(), CompareError> {
        (self.tell)("looking whether the cluster serves others");
        match others(self.client).await? {
            Some(others) if !self.settings.force => Err(CompareError::Busy(others)),
            found => {
                self.disturbed |= found.is_some();
                Ok(())
            }
        }
    }

    /// Waits until a side serves, for as long as something goes on.
    async fn until_served(&mut self, side: &SideChoice, of: &str) -> Result<ClusterStatus, CompareError> {
        let (mut changed, mut before) = (Instant::now(), None);
        // What serves on these workers already may be cut anew.
        tokio::time::sleep(SETTLE).await;
        loop {
            let status = self.client.status().await?;
            if status.pinned.is_empty() {
                let why = status.pin_ended.unwrap_or_else(|| "the pin was taken back".to_owned());
                return Err(CompareError::PinLost(why));
            }
            if is_served_by(&status, side) {
                return Ok(status);
            }
            let doing = doing(&status);
            (self.tell)(&format!("{of}, {}: {doing}", side.title()));
            let sign = sign_of_life(&status);
            if before.as_ref() != Some(&sign) {
                (changed, before) = (Instant::now(), Some(sign));
            } else if changed.elapsed() >= STUCK {
                return Err(CompareError::Stuck { side: side.title(), seconds: STUCK.as_secs(), doing });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// Whether the plan that serves lies on a side's workers, and no other is coming.
fn is_served_by(status: &ClusterStatus, side: &SideChoice) -> bool {
    let found: BTreeSet<&str> = status.stages.iter().map(|stage| stage.worker.as_str()).collect();
    let wanted: BTreeSet<&str> = side.workers.iter().map(String::as_str).collect();
    status.phase == Phase::Serving && found == wanted && status.note.is_none()
}

/// What a cluster does before it serves, for people.
fn doing(status: &ClusterStatus) -> String {
    let loaded = status.stages.iter().map(|stage| stage.loaded).sum::<f64>();
    // In tenths, so that not every look is worth a line.
    let loaded = (loaded / status.stages.len().max(1) as f64 * 10.0).floor() * 10.0;
    match (status.phase, status.note.as_ref().or(status.reason.as_ref())) {
        (Phase::Loading, _) => format!("{loaded:.0}% loaded"),
        (_, Some(what)) => what.clone(),
        (phase, None) => phase.as_str().to_owned(),
    }
}

/// What changes as long as something goes on: weights that are read show as resident memory, also beside a plan that serves.
fn sign_of_life(status: &ClusterStatus) -> (u64, Phase, u64, Option<String>) {
    let resident = status.workers.iter().map(|worker| worker.resident_bytes).sum();
    (status.epoch, status.phase, resident, status.note.clone())
}
