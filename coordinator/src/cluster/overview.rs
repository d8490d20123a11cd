//! The cluster's state in the words of the API.

use std::time::{Duration, Instant};

use brigade_proto::control::{CardTelemetry, DeliveryProgress, MachineTelemetry, StageMemory, Throttle};
use brigade_proto::ids::Incarnation;

use super::clients::Clients;
use super::core::Draft;
use super::handle::ModelInfo;
use super::statistics::{Share, Statistics};
use super::traffic::Traffic;
use crate::deployment::{Deployment, Progress, StageRun};
use crate::health::{Contact, Facts, WorkerFacts};
use crate::membership::{Member, Membership, Presence};
use crate::scheduler::{Counts, Scheduler};
use crate::status::{
    CardStatus, ClusterStatus, DeliveryStatus, DraftStatus, FailureStatus, Health, MOST_ACTIVE,
    MachineStatus, ModelStatus, MoveStatus, PredictionStatus, ProcessStatus, PullStatus, RecoveryStatus,
    RequestStatus, StageStatus, Throttling, WorkerStatus,
};

/// What the status is made of.
pub(super) struct Sources<'a> {
    pub(super) incarnation: Incarnation,
    pub(super) model: &'a ModelStatus,
    pub(super) membership: &'a Membership,
    pub(super) deployment: &'a Deployment,
    pub(super) scheduler: &'a Scheduler,
    pub(super) draft: Option<&'a Draft>,
    pub(super) counts: Counts,
    pub(super) statistics: &'a Statistics,
    pub(super) traffic: &'a Traffic,
    pub(super) clients: &'a Clients,
    pub(super) recovery: RecoveryStatus,
    pub(super) moves: MoveStatus,
    pub(super) failure: FailureStatus,
    pub(super) pulls: Vec<PullStatus>,
}

impl Sources<'_> {
    /// The status at this moment, but for how healthy all is.
    pub(super) fn status(&self, now: Instant) -> ClusterStatus {
        let deployment = self.deployment;
        let (plan, pinned) = (deployment.plan(), deployment.pinned());
        let shares = self.statistics.shares(now);
        let share = |place: usize| shares.get(place).copied().unwrap_or_default();
        let active = self.scheduler.active(MOST_ACTIVE);
        ClusterStatus {
            version: env!("CARGO_PKG_VERSION").into(),
            incarnation: self.incarnation.0,
            phase: deployment.phase(),
            reason: deployment.reason(),
            recovering: self.scheduler.is_recovering(),
            model: self.model.clone(),
            epoch: deployment.epoch().0,
            context: plan.map_or(self.scheduler.last_context(), |plan| plan.context),
            cache_tokens: plan.map_or(0, |plan| plan.cache_tokens),
            cache_tokens_reserved: self.counts.cache_tokens_reserved,
            wire: deployment.wire().as_str().into(),
            cache_tokens_kept: self.counts.cache_tokens_kept,
            stages: deployment
                .stages()
                .iter()
                .enumerate()
                .map(|(place, stage)| self.stage(place, stage, share(place)))
                .collect(),
            workers: self.membership.members().map(|member| self.worker(member, now)).collect(),
            pulls: self.pulls.clone(),
            predicted: plan.map_or_else(PredictionStatus::default, |plan| PredictionStatus {
                decode_tokens_per_s: plan.predicted.decode_tokens_per_s,
                ttft_ms: plan.predicted.ttft_ms,
                bottleneck: plan.bottleneck.clone(),
            }),
            draft: self.draft.map(|draft| draft_status(draft, &self.counts)),
            requests: requests(&self.counts),
            steps: self.statistics.summary(),
            recovery: self.recovery,
            moves: self.moves,
            failure: self.failure.clone(),
            note: deployment.note().map(ToOwned::to_owned),
            pinned: pinned.map(|pinned| pinned.names.clone()).unwrap_or_default(),
            pinned_s: pinned.map_or(0.0, |pinned| now.saturating_duration_since(pinned.since).as_secs_f64()),
            pinned_by: pinned.and_then(|pinned| pinned.by.clone()),
            pin_ended: deployment.pin_ended(now).map(ToOwned::to_owned),
            health: Health::default(),
            rates: self.clients.rates(&self.counts, now),
            active: active.iter().map(|active| self.clients.active(active, now)).collect(),
        }
    }

    fn worker(&self, member: &Member, now: Instant) -> WorkerStatus {
        let links = self.traffic.links(&member.id, self.membership);
        let status = WorkerStatus { links, ..worker(member, now) };
        if !self.membership.is_draining(&member.id) || status.state == "lost" {
            return status;
        }
        let used = self.deployment.uses(&member.id)
            || self.draft.is_some_and(|draft| draft.deployment.uses(&member.id));
        WorkerStatus { state: if used { "draining" } else { "drained" }.into(), ..status }
    }

    fn stage(&self, place: usize, stage: &StageRun, share: Share) -> StageStatus {
        let shard = stage.planned.shard;
        let times = self.statistics.stage(place);
        let StageMemory { weights, cache, workspace } = stage.memory;
        StageStatus {
            stage: place as u32,
            worker: stage.worker.to_string(),
            name: stage.name.clone(),
            layer_start: shard.layers.start as u32,
            layer_end: shard.layers.end as u32,
            embedding: shard.embedding,
            head: shard.head,
            state: stage.progress.as_str().into(),
            loaded: stage.loaded_share,
            delivery: stage.delivery.as_ref().filter(|_| stage.progress == Progress::Loading).map(delivery),
            streamed_layers: stage.planned.streamed_layers as u32,
            weight_bytes: weights.0,
            cache_bytes: cache.0,
            workspace_bytes: workspace.0,
            next_address: stage.next_address.map(|address| address.to_string()),
            next_rtt_us: stage.next_rtt_us,
            queued_us_p50: times.map_or(0, |times| times.queued.median()),
            decode_us_p50: times.map_or(0, |times| times.decode.median()),
            prefill_us_p50: times.map_or(0, |times| times.prefill.median()),
            totals: times.map(|times| times.totals).unwrap_or_default(),
            health: Health::default(),
            queued_us_p99: times.map_or(0, |times| times.queued.quantile(0.99)),
            decode_us_p99: times.map_or(0, |times| times.decode.quantile(0.99)),
            sent_us_p50: times.map_or(0, |times| times.sent.median()),
            predicted_decode_us: (stage.planned.decode_ms * 1e3) as u32,
            step_share: share.of_step,
            busy: share.busy,
        }
    }
}

fn delivery(delivery: &DeliveryProgress) -> DeliveryStatus {
    let left = delivery.wanted.saturating_sub(delivery.fetched).0 as f64;
    DeliveryStatus {
        fetched_bytes: delivery.fetched.0,
        wanted_bytes: delivery.wanted.0,
        bytes_per_s: delivery.bytes_per_s,
        eta_s: (delivery.bytes_per_s > 0.0).then(|| left / delivery.bytes_per_s),
        sources: delivery.sources.iter().map(ToString::to_string).collect(),
    }
}

/// What health is judged by beside the status.
pub(super) fn facts(
    membership: &Membership,
    deployment: &Deployment,
    draft: Option<&Draft>,
    statistics: &Statistics,
    now: Instant,
) -> Facts {
    let worker = |member: &Member| {
        let contact = match (&member.presence, membership.suspected_since(&member.id)) {
            (Presence::Lost { since, reason }, _) => Contact::Lost { since: *since, reason: reason.clone() },
            (_, Some(since)) => Contact::Doubted { since },
            (_, None) => Contact::There,
        };
        // Of several stages on a worker the one whose steps take the longest.
        let drafts = draft.and_then(|draft| draft.deployment.longest_step(&member.id));
        WorkerFacts {
            contact,
            computing: Duration::from_millis(member.telemetry.computing_ms.into()),
            longest_step: deployment.longest_step(&member.id).max(drafts),
        }
    };
    Facts { workers: membership.members().map(worker).collect(), paces: statistics.paces(now) }
}

fn draft_status(draft: &Draft, counts: &Counts) -> DraftStatus {
    let stage = draft.deployment.stages().first();
    DraftStatus {
        id: draft.id.clone(),
        phase: draft.deployment.phase(),
        reason: draft.deployment.reason(),
        worker: stage.map(|stage| stage.name.clone()),
        memory_bytes: stage.map_or(0, |stage| stage.memory.total().0),
        loaded: stage.map_or(0.0, |stage| stage.loaded_share),
        cache_tokens: draft.deployment.plan().map_or(0, |plan| plan.cache_tokens),
        cache_tokens_reserved: counts.draft_cache_tokens_reserved,
        rests: counts.draft_model_rests,
    }
}

fn worker(member: &Member, now: Instant) -> WorkerStatus {
    let (capabilities, telemetry) = (&member.capabilities, &member.telemetry);
    let (state, last_seen) = match &member.presence {
        Presence::Attached { heard, .. } => ("attached", *heard),
        Presence::Suspected { since } | Presence::Lost { since, .. } => ("lost", *since),
    };
    WorkerStatus {
        id: member.id.to_string(),
        name: capabilities.name.clone(),
        host: capabilities.host.clone(),
        state: state.into(),
        address: member.remote.to_string(),
        device: capabilities.device.to_string(),
        device_name: capabilities.device_name.clone(),
        budget_bytes: capabilities.budget.0,
        resident_bytes: telemetry.resident.0,
        peak_resident_bytes: telemetry.peak_resident.0,
        threads: capabilities.threads,
        stretch: capabilities.stretch,
        bandwidth_bytes_per_s: capabilities.bandwidth_bytes_per_s,
        flops_per_s: capabilities.flops_per_s,
        last_seen_s: now.saturating_duration_since(last_seen).as_secs_f64(),
        sequences: telemetry.sequences,
        cache_tokens_used: telemetry.cache_tokens_used,
        frames_fenced: telemetry.frames_fenced,
        fetched_bytes: telemetry.fetched.0,
        given_bytes: telemetry.given.0,
        health: Health::default(),
        machine: machine(&telemetry.machine),
        process: ProcessStatus {
            processors: telemetry.process.processors,
            read_bytes_per_s: telemetry.process.read_bytes_per_s,
            written_bytes_per_s: telemetry.process.written_bytes_per_s,
        },
        card: telemetry.card.as_ref().map(card),
        links: Vec::new(),
    }
}

fn machine(machine: &MachineTelemetry) -> MachineStatus {
    MachineStatus {
        memory_bytes: machine.memory.0,
        memory_available_bytes: machine.memory_available.0,
        swap_used_bytes: machine.swap_used.0,
        paged_in_bytes_per_s: machine.paged_in_bytes_per_s,
        processors_busy: machine.processors_busy,
        temperature_celsius: machine.temperature_celsius,
        power_watts: machine.power_watts,
        throttle: throttling(machine.throttle),
    }
}

fn card(card: &CardTelemetry) -> CardStatus {
    CardStatus {
        memory_bytes: card.memory.0,
        memory_free_bytes: card.memory_free.0,
        busy: card.busy,
        temperature_celsius: card.temperature_celsius,
        power_watts: card.power_watts,
        throttle: throttling(card.throttle),
    }
}

fn throttling(throttle: Throttle) -> Option<Throttling> {
    match throttle {
        Throttle::Unknown => None,
        Throttle::None => Some(Throttling::None),
        Throttle::Heat => Some(Throttling::Heat),
        Throttle::Power => Some(Throttling::Power),
    }
}

fn requests(counts: &Counts) -> RequestStatus {
    RequestStatus {
        running: counts.running,
        waiting: counts.waiting,
        finished: counts.finished,
        cancelled: counts.cancelled,
        failed: counts.failed,
        prompt_tokens: counts.prompt_tokens,
        prompt_tokens_reused: counts.prompt_tokens_reused,
        prefix_hits: counts.prefix_hits,
        pages_evicted: counts.pages_evicted,
        generated_tokens: counts.generated_tokens,
        draft_tokens: counts.draft_tokens,
        draft_tokens_accepted: counts.draft_tokens_accepted,
        draft_model_tokens: counts.draft_model_tokens,
        draft_model_tokens_accepted: counts.draft_model_tokens_accepted,
        steps_ahead: counts.steps_ahead,
        recovered: counts.recovered,
        recovered_inexact: counts.recovered_inexact,
        moved: counts.moved,
    }
}

/// What the API says of the model.
pub(super) fn model_status(model: &ModelInfo) -> ModelStatus {
    ModelStatus {
        id: model.id.clone(),
        fingerprint: model.fingerprint.to_string(),
        layers: model.layers as u32,
        weight_bytes: model.weights.0,
        vocabulary: u32::try_from(model.vocab).unwrap_or(u32::MAX),
    }
}
