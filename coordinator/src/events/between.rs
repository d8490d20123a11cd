//! What happened between two looks at the cluster.

use brigade_shard::units::Bytes;

use super::{Event, Kind};
use crate::status::{
    ClusterStatus, DraftStatus, Health, HealthState, Phase, Severity, StageStatus, WorkerStatus,
};

/// What happened from `before` to `after`, in the order in which it is best told. An empty status (no version yet) is the
/// one before the start.
pub fn between(before: &ClusterStatus, after: &ClusterStatus) -> Vec<Event> {
    let mut events = Vec::new();
    if before.version.is_empty() {
        let (version, model, start) = (&after.version, &after.model.id, after.incarnation);
        let text =
            format!("the coordinator {version} serves {model}; it is start {start} of its state directory");
        events.push(Event::new(Severity::Info, Kind::Coordinator, text));
    }
    if after.phase == Phase::Stopping {
        if before.phase != Phase::Stopping {
            events.push(Event::new(Severity::Info, Kind::Coordinator, "the coordinator is shutting down"));
        }
        // Stages and workers go because of that.
        return events;
    }
    let told: Vec<&str> = workers(before, after, &mut events);
    plan(before, after, &mut events);
    recoveries(before, after, &mut events);
    health(before, after, &told, &mut events);
    draft(before.draft.as_ref(), after.draft.as_ref(), &mut events);
    events
}

/// Who came, went, is emptied or used again; the ids of those of whom something was told.
fn workers<'a>(before: &ClusterStatus, after: &'a ClusterStatus, events: &mut Vec<Event>) -> Vec<&'a str> {
    let mut told = Vec::new();
    for worker in &after.workers {
        let was = before.workers.iter().find(|was| was.id == worker.id);
        if let Some(event) = presence(was, worker) {
            events.push(event.of(&worker.name));
            told.push(worker.id.as_str());
        }
    }
    // The lost are forgotten after a while; one that was there and is not listed has left.
    let listed = |id: &str| after.workers.iter().any(|worker| worker.id == id);
    for gone in before.workers.iter().filter(|worker| worker.state != "lost" && !listed(&worker.id)) {
        events.push(Event::new(Severity::Info, Kind::Worker, "left").of(&gone.name));
    }
    told
}

fn presence(was: Option<&WorkerStatus>, worker: &WorkerStatus) -> Option<Event> {
    let event = |severity, text: String| Some(Event::new(severity, Kind::Worker, text));
    let state_before = was.map_or("lost", |was| was.state.as_str());
    match (state_before, worker.state.as_str()) {
        ("lost", "lost") => {
            // Its loss may be told before its cause is known.
            let cause = worker.health.reason.as_ref()?;
            let known = was.is_none_or(|was| was.health.reason.as_ref() == Some(cause));
            if known { None } else { event(Severity::Warning, format!("is lost: {cause}")) }
        }
        (_, "lost") => match &worker.health.reason {
            Some(cause) => event(Severity::Warning, format!("is lost: {cause}")),
            None => event(Severity::Warning, "is lost".to_owned()),
        },
        ("lost", _) => event(
            Severity::Info,
            format!(
                "attached from {}: {} with {}",
                worker.address,
                worker.device,
                Bytes(worker.budget_bytes)
            ),
        ),
        (before, now) if before == now => None,
        (_, "draining") => event(Severity::Info, "is being drained".to_owned()),
        (_, "drained") => event(Severity::Info, "is drained: it may be unplugged".to_owned()),
        _ => event(Severity::Info, "is taken back into use".to_owned()),
    }
}

/// What runs where, or why nothing does.
fn plan(before: &ClusterStatus, after: &ClusterStatus, events: &mut Vec<Event>) {
    let mut tell = |severity, text: String| events.push(Event::new(severity, Kind::Plan, text));
    if after.failure.count > before.failure.count {
        let served = before.phase == Phase::Serving;
        let severity = if served { Severity::Error } else { Severity::Warning };
        tell(severity, format!("plan {} failed: {}", before.epoch.max(1), after.failure.reason));
    }
    let is_new = after.phase != before.phase || after.epoch != before.epoch;
    match after.phase {
        Phase::Serving if is_new => {
            let text =
                format!("plan {} serves {} tokens: {}", after.epoch, after.context, places(&after.stages));
            tell(Severity::Info, text);
        }
        Phase::Loading if is_new => {
            tell(Severity::Info, format!("plan {} is loaded: {}", after.epoch, places(&after.stages)));
        }
        Phase::Waiting if is_new || after.reason != before.reason => {
            // Before the first plan nobody was served: that is no trouble.
            let severity = if after.failure.count == 0 { Severity::Info } else { Severity::Error };
            tell(severity, after.reason.clone().unwrap_or_else(|| "there is no plan".to_owned()));
        }
        _ => {}
    }
    if after.pinned != before.pinned {
        match (&after.pinned[..], &after.pin_ended) {
            ([], Some(why)) => tell(Severity::Warning, why.clone()),
            ([], None) => {
                tell(Severity::Info, format!("the pin to {} is taken back", before.pinned.join(", ")));
            }
            (workers, _) => tell(Severity::Info, format!("the plan is pinned to {}", workers.join(", "))),
        }
    }
    if after.note != before.note
        && let Some(note) = &after.note
    {
        tell(Severity::Info, note.clone());
    }
}

/// The layers of each stage, and who holds them.
fn places(stages: &[StageStatus]) -> String {
    let place =
        |stage: &StageStatus| format!("layers {}..{} on {}", stage.layer_start, stage.layer_end, stage.name);
    stages.iter().map(place).collect::<Vec<_>>().join(", ")
}

fn recoveries(before: &ClusterStatus, after: &ClusterStatus, events: &mut Vec<Event>) {
    let (recovery, moves) = (&after.recovery, &after.moves);
    if recovery.count > before.recovery.count {
        let all = recovery.detect_ms + recovery.plan_ms + recovery.load_ms + recovery.replay_ms;
        let text = format!(
            "recovered {all} ms after the last sign of life: detected within {} ms, planned in {} ms, loaded and \
             connected in {} ms, replayed in {} ms",
            recovery.detect_ms, recovery.plan_ms, recovery.load_ms, recovery.replay_ms
        );
        events.push(Event::new(Severity::Info, Kind::Recovery, text));
    }
    if moves.count > before.moves.count {
        let text = format!(
            "another plan took over by choice: loaded and connected in {} ms, replayed in {} ms",
            moves.load_ms, moves.replay_ms
        );
        events.push(Event::new(Severity::Info, Kind::Recovery, text));
    }
}

/// Changes of how workers and stages are, apart from what their coming and going says; `told` are the workers of whom
/// that was said.
fn health(before: &ClusterStatus, after: &ClusterStatus, told: &[&str], events: &mut Vec<Event>) {
    let mut of_stages = Vec::new();
    for stage in &after.stages {
        let same = |was: &&StageStatus| {
            was.worker == stage.worker
                && (was.layer_start, was.layer_end) == (stage.layer_start, stage.layer_end)
        };
        let was = before.stages.iter().find(same).map_or(HealthState::Ok, |was| was.health.state);
        if told.contains(&stage.worker.as_str()) {
            continue;
        }
        if let Some(event) = health_event(was, &stage.health, &format!("stage {} ", stage.stage)) {
            events.push(event.of(&stage.name));
            of_stages.push((stage.worker.as_str(), stage.health.state));
        }
    }
    for worker in after.workers.iter().filter(|worker| !told.contains(&worker.id.as_str())) {
        let was = before.workers.iter().find(|was| was.id == worker.id);
        let was = was.map_or(HealthState::Ok, |was| was.health.state);
        // What its stage says need not be said again.
        let known = of_stages.contains(&(worker.id.as_str(), worker.health.state));
        if !known && let Some(event) = health_event(was, &worker.health, "") {
            events.push(event.of(&worker.name));
        }
    }
}

fn health_event(was: HealthState, health: &Health, subject: &str) -> Option<Event> {
    use HealthState::{Draining, Full, Hot, Hung, Loading, Ok, Slow, Swapping, Unreachable};
    // Plans and the workers' own states tell of loading and draining.
    let worst = |state| if matches!(state, Loading | Draining) { Ok } else { state };
    if worst(was) == worst(health.state) {
        return None;
    }
    let severity = match worst(health.state) {
        Ok | Loading | Draining => Severity::Info,
        Slow | Hot | Full | Swapping => Severity::Warning,
        Hung | Unreachable => Severity::Error,
    };
    let mut text = match worst(health.state) {
        Ok => format!("{subject}is ok again"),
        state => format!("{subject}is {}", state.as_str()),
    };
    if worst(health.state) != Ok {
        health.reason.iter().for_each(|reason| text.push_str(&format!(": {reason}")));
        health.advice.iter().for_each(|advice| text.push_str(&format!("; {advice}")));
    }
    Some(Event::new(severity, Kind::Health, text))
}

/// A draft model that comes or goes.
fn draft(before: Option<&DraftStatus>, after: Option<&DraftStatus>, events: &mut Vec<Event>) {
    let Some(after) = after else { return };
    let serves = |draft: &DraftStatus| draft.phase == Phase::Serving;
    let event = match (before.is_some_and(serves), serves(after)) {
        (false, true) => Event::new(Severity::Info, Kind::Draft, format!("{} drafts answers", after.id)),
        (true, false) => {
            let reason = after.reason.as_deref().unwrap_or("it is not there");
            let text = format!("answers go on without {}: {reason}", after.id);
            Event::new(Severity::Info, Kind::Draft, text)
        }
        _ => return,
    };
    let worker = before.and_then(|draft| draft.worker.as_ref()).or(after.worker.as_ref());
    let worker = if serves(after) { after.worker.as_ref() } else { worker };
    events.push(match worker {
        Some(worker) => event.of(worker),
        None => event,
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{FailureStatus, ModelStatus, MoveStatus, RecoveryStatus};

    fn worker(name: &str, state: &str) -> WorkerStatus {
        WorkerStatus {
            id: format!("{name}-1"),
            name: name.into(),
            state: state.into(),
            address: "10.0.0.2:5000".into(),
            device: "cpu".into(),
            budget_bytes: 64 << 20,
            ..WorkerStatus::default()
        }
    }

    fn stage(place: u32, name: &str) -> StageStatus {
        StageStatus {
            stage: place,
            worker: format!("{name}-1"),
            name: name.into(),
            layer_start: place * 10,
            layer_end: place * 10 + 10,
            ..StageStatus::default()
        }
    }

    fn serving() -> ClusterStatus {
        ClusterStatus {
            version: "0.1.0".into(),
            incarnation: 1,
            model: ModelStatus { id: "tiny".into(), ..ModelStatus::default() },
            phase: Phase::Serving,
            epoch: 4,
            context: 256,
            stages: vec![stage(0, "anna"), stage(1, "ben")],
            workers: vec![worker("anna", "attached"), worker("ben", "attached")],
            ..ClusterStatus::default()
        }
    }

    fn lines(events: &[Event]) -> Vec<String> {
        let line = |event: &Event| {
            let worker = event.worker.as_deref().unwrap_or("-");
            format!("{:?} {} {worker}: {}", event.severity, event.kind.as_str(), event.text)
        };
        events.iter().map(line).collect()
    }

    #[test]
    fn nothing_has_happened_between_equal_looks() {
        assert_eq!(between(&serving(), &serving()), []);
    }

    #[test]
    fn a_start_and_an_end_are_told_once() {
        let waiting = ClusterStatus {
            phase: Phase::Waiting,
            reason: Some("waiting for workers: 0 of 2".into()),
            stages: Vec::new(),
            workers: Vec::new(),
            ..serving()
        };
        assert_eq!(
            lines(&between(&ClusterStatus::default(), &waiting)),
            [
                "Info coordinator -: the coordinator 0.1.0 serves tiny; it is start 1 of its state directory",
                "Info plan -: waiting for workers: 0 of 2"
            ]
        );
        let stopping = ClusterStatus { phase: Phase::Stopping, stages: Vec::new(), ..serving() };
        assert_eq!(
            lines(&between(&serving(), &stopping)),
            ["Info coordinator -: the coordinator is shutting down"]
        );
        assert_eq!(between(&stopping, &stopping), []);
    }

    #[test]
    fn a_lost_worker_a_failed_plan_and_its_recovery_are_told() {
        let mut lost = serving();
        lost.workers[1].state = "lost".into();
        lost.phase = Phase::Waiting;
        lost.reason = Some("needs 40.0 MiB more".into());
        lost.failure = FailureStatus { count: 1, reason: "the data link to ben broke".into() };
        lost.stages.clear();
        assert_eq!(
            lines(&between(&serving(), &lost)),
            [
                "Warning worker ben: is lost",
                "Error plan -: plan 4 failed: the data link to ben broke",
                "Error plan -: needs 40.0 MiB more"
            ]
        );
        // The cause is told once it is known, and not again.
        let mut explained = lost.clone();
        explained.workers[1].health = Health {
            state: HealthState::Unreachable,
            reason: Some("its data plane does not answer".into()),
            advice: None,
        };
        assert_eq!(
            lines(&between(&lost, &explained)),
            ["Warning worker ben: is lost: its data plane does not answer"]
        );
        assert_eq!(between(&explained, &explained), []);

        let mut back = serving();
        back.epoch = 5;
        back.failure = lost.failure.clone();
        back.recovery = RecoveryStatus { count: 1, detect_ms: 5, plan_ms: 6, load_ms: 7, replay_ms: 8 };
        assert_eq!(
            lines(&between(&explained, &back)),
            [
                "Info worker ben: attached from 10.0.0.2:5000: cpu with 64.0 MiB",
                "Info plan -: plan 5 serves 256 tokens: layers 0..10 on anna, layers 10..20 on ben",
                "Info recovery -: recovered 26 ms after the last sign of life: detected within 5 ms, planned in 6 ms, \
                 loaded and connected in 7 ms, replayed in 8 ms"
            ]
        );
    }

    #[test]
    fn draining_a_move_and_a_note_are_told() {
        let mut draining = serving();
        draining.workers[1].state = "draining".into();
        draining.workers[1].health.state = HealthState::Draining;
        draining.note = Some("ben is emptied".into());
        assert_eq!(
            lines(&between(&serving(), &draining)),
            ["Info worker ben: is being drained", "Info plan -: ben is emptied"]
        );
        let mut drained = draining.clone();
        drained.workers[1].state = "drained".into();
        drained.note = None;
        drained.epoch = 5;
        drained.stages = vec![stage(0, "anna")];
        drained.moves = MoveStatus { count: 1, load_ms: 12, replay_ms: 3 };
        assert_eq!(
            lines(&between(&draining, &drained)),
            [
                "Info worker ben: is drained: it may be unplugged",
                "Info plan -: plan 5 serves 256 tokens: layers 0..10 on anna",
                "Info recovery -: another plan took over by choice: loaded and connected in 12 ms, replayed in 3 ms"
            ]
        );
        let mut back = drained.clone();
        back.workers[1].state = "attached".into();
        back.workers[1].health.state = HealthState::Ok;
        assert_eq!(lines(&between(&drained, &back)), ["Info worker ben: is taken back into use"]);
        back.workers.remove(1);
        let mut was = back.clone();
        was.workers.push(worker("ben", "attached"));
        assert_eq!(lines(&between(&was, &back)), ["Info worker ben: left"]);
    }

    #[test]
    fn health_is_told_when_its_state_changes_and_once_for_a_stage_and_its_worker() {
        let health = |state, reason: &str| Health {
            state,
            reason: Some(reason.into()),
            advice: Some("move 4 layers to anna".into()),
        };
        let mut slow = serving();
        slow.stages[1].health = health(HealthState::Slow, "it takes 61% of the step");
        slow.workers[1].health = health(HealthState::Slow, "it takes 61% of the step");
        assert_eq!(
            lines(&between(&serving(), &slow)),
            ["Warning health ben: stage 1 is slow: it takes 61% of the step; move 4 layers to anna"]
        );
        let mut still = slow.clone();
        still.stages[1].health.reason = Some("it takes 62% of the step".into());
        assert_eq!(between(&slow, &still), []);
        assert_eq!(lines(&between(&slow, &serving())).len(), 1);
        assert_eq!(lines(&between(&slow, &serving()))[0], "Info health ben: stage 1 is ok again");
        let mut hung = serving();
        hung.workers[0].health = health(HealthState::Hung, "it answers");
        assert_eq!(
            lines(&between(&serving(), &hung)),
            ["Error health anna: is hung: it answers; move 4 layers to anna"]
        );
        let mut loading = serving();
        loading.stages[0].health.state = HealthState::Loading;
        assert_eq!(between(&serving(), &loading), []);
        assert_eq!(between(&loading, &serving()), []);
    }

    #[test]
    fn a_draft_model_comes_and_goes() {
        let draft = |phase, reason: Option<&str>| DraftStatus {
            id: "small".into(),
            phase,
            reason: reason.map(Into::into),
            worker: Some("anna".into()),
            ..DraftStatus::default()
        };
        let waiting = ClusterStatus { draft: Some(draft(Phase::Waiting, None)), ..serving() };
        let there = ClusterStatus { draft: Some(draft(Phase::Serving, None)), ..serving() };
        let gone = ClusterStatus { draft: Some(draft(Phase::Waiting, Some("no room"))), ..serving() };
        assert_eq!(between(&serving(), &waiting), []);
        assert_eq!(lines(&between(&waiting, &there)), ["Info draft anna: small drafts answers"]);
        assert_eq!(lines(&between(&there, &gone)), ["Info draft anna: answers go on without small: no room"]);
    }
}
