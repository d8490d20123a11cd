//! What is drawn of a cluster, and what keys do.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use brigade_coordinator::status::{
    ActiveRequest, ClusterStatus, EventRecord, Health, HealthState, LinkStatus, MachineStatus, ModelStatus,
    Phase, RateStatus, RequestStatus, Severity, StageStatus, StageTrace, StepTrace, WorkerStatus,
};
use brigade_coordinator::top::{Connection, Input, Key, MOST_EVENTS, Pane, Place, Poll, Top, draw, key_of};

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A cluster of so many stages that serves three requests.
fn serving(count: u32) -> ClusterStatus {
    let stage = |stage: u32| StageStatus {
        stage,
        worker: format!("id-{stage}"),
        name: format!("mac-{stage}"),
        layer_start: stage * 10,
        layer_end: (stage + 1) * 10,
        embedding: stage == 0,
        head: stage + 1 == count,
        state: "active".to_owned(),
        weight_bytes: 40 << 20,
        cache_bytes: 8 << 20,
        decode_us_p50: 2500,
        predicted_decode_us: 2400,
        step_share: 1.0 / f64::from(count),
        busy: 0.42,
        ..StageStatus::default()
    };
    let worker = |stage: u32| WorkerStatus {
        id: format!("id-{stage}"),
        name: format!("mac-{stage}"),
        host: format!("host-{stage}"),
        state: "attached".to_owned(),
        device: "metal".to_owned(),
        budget_bytes: 64 << 20,
        resident_bytes: 48 << 20,
        machine: MachineStatus {
            memory_bytes: 64 << 30,
            memory_available_bytes: 32 << 30,
            temperature_celsius: Some(61.0),
            power_watts: Some(45.0),
            ..MachineStatus::default()
        },
        links: vec![LinkStatus {
            peer_name: format!("mac-{}", stage + 1),
            address: "169.254.1.2:7481".to_owned(),
            choice: "shortest of 2 round trips".to_owned(),
            rtt_us: 180,
            sent_bytes_per_s: 2_000_000.0,
            loss: 0.015,
            ..LinkStatus::default()
        }],
        ..WorkerStatus::default()
    };
    ClusterStatus {
        incarnation: 1,
        phase: Phase::Serving,
        model: ModelStatus { id: "DeepSeek-R1.Q4_K_M".to_owned(), ..ModelStatus::default() },
        cache_tokens: 1000,
        cache_tokens_reserved: 250,
        stages: (0..count).map(stage).collect(),
        workers: (0..count).map(worker).collect(),
        requests: RequestStatus { running: 2, waiting: 1, ..RequestStatus::default() },
        rates: RateStatus { generated_tokens_per_s: 31.5, ..RateStatus::default() },
        active: (0..3)
            .map(|id| ActiveRequest {
                id: 100 + id,
                state: if id == 2 { "waiting" } else { "decode" }.to_owned(),
                prompt_tokens: 512,
                prompt_tokens_done: 512,
                generated_tokens: 17,
                max_tokens: 256,
                age_s: 3.5,
            })
            .collect(),
        ..ClusterStatus::default()
    }
}

fn step(number: u64, stages: u32) -> StepTrace {
    let took_us = stages * 100_000;
    let stage =
        |stage| StageTrace { came_us: stage * 100_000 + 10_000, queued_us: 10_000, computed_us: 70_000 };
    let stages = (0..stages).map(stage).collect();
    StepTrace { step: number, kind: "decode".to_owned(), rows: 1, took_us, stages, ..StepTrace::default() }
}

fn event(id: u64, text: &str) -> EventRecord {
    let (kind, text) = ("worker".to_owned(), text.to_owned());
    EventRecord { id, at_ms: 1_000_000, severity: Severity::Warning, kind, worker: None, text }
}

fn poll(status: ClusterStatus) -> Input {
    Input::Polled(Box::new(Poll { status, at_ms: 1_003_000, ..Poll::default() }))
}

fn shown(status: ClusterStatus) -> Top {
    let mut top = Top::new("http://127.0.0.1:7480");
    assert!(top.update(poll(status), at(0)));
    top
}

fn press(top: &mut Top, keys: &[Key]) -> bool {
    keys.iter().all(|key| top.update(Input::Key(*key), top.now))
}

fn terminal(top: &Top, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(top, frame)).unwrap();
    terminal
}

/// The picture's lines.
fn picture(top: &Top, width: u16, height: u16) -> String {
    let terminal = terminal(top, width, height);
    let cells = terminal.backend().buffer().content();
    let line =
        |row: &[ratatui::buffer::Cell]| row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>();
    let lines: Vec<String> = cells.chunks(width.into()).map(line).collect();
    lines.join("\n")
}

#[track_caller]
fn holds_all(picture: &str, texts: &[&str]) {
    for text in texts {
        assert!(picture.contains(text), "`{text}` is missing in\n{picture}");
    }
}

#[test]
fn a_pin_is_told_with_its_age_and_whose_it_is_and_its_end_with_the_reason() {
    let pinned = vec!["mac-1".to_owned(), "mac-2".to_owned()];
    let mut status = ClusterStatus { pinned, pinned_s: 190.0, ..serving(3) };
    holds_all(&picture(&shown(status.clone()), 80, 24), &["pinned to mac-1, mac-2 for 3m ", "mac-0"]);
    status.pinned_by = Some("brigade compare".to_owned());
    for (width, height) in [(40, 10), (80, 24), (140, 50)] {
        holds_all(&picture(&shown(status.clone()), width, height), &["pinned to mac-1, mac-2 for 3m by"]);
    }
    assert!(!picture(&shown(status.clone()), 80, 9).contains("pinned"), "there is no room");
    status.pinned.clear();
    status.pin_ended = Some("the pin to mac-1 is given up: mac-1 is drained".to_owned());
    holds_all(&picture(&shown(status), 80, 24), &["pinned no more: the pin to mac-1 is given up"]);
    assert!(!picture(&shown(serving(3)), 80, 24).contains("pinned"));
}

#[test]
fn a_usual_terminal_shows_the_pipeline_and_every_list() {
    let mut top = shown(serving(3));
    let events = vec![event(1, "mac-1 has joined")];
    let at_ms = 1_003_000;
    top.update(
        Input::Polled(Box::new(Poll { status: serving(3), events, at_ms, ..Poll::default() })),
        at(250),
    );
    let picture = picture(&top, 80, 24);
    let texts = [
        "DeepSeek-R1.Q4_K_M",
        "serving",
        "ok",
        "2 running",
        "1 waiting",
        "cache 25%",
        "0 mac-0",
        "2 mac-2",
        "embd+0..10",
        "20..30+head",
        "42%",
        "2.5 ms",
        "75%",
        "31.5 tokens/s",
        "stages",
        "workers",
        "events",
        "mac-1 has joined",
        "3s",
        "q quit",
    ];
    holds_all(&picture, &texts);
}

#[test]
fn a_large_terminal_shows_details_and_requests_beside_the_rest() {
    let picture = picture(&shown(serving(4)), 160, 50);
    let texts = [
        "details",
        "requests",
        "512/512",
        "17/256",
        "2.4 ms predicted",
        "host-0",
        "61 C",
        "45 W",
        "32.0 GiB of 64.0 GiB free",
        "mac-1 at 169.254.1.2:7481",
        "180 us round trip",
        "1.5% lost",
        "shortest of 2 round trips",
        "3 mac-3",
    ];
    holds_all(&picture, &texts);
}

#[test]
fn a_small_terminal_shows_one_list_at_a_time() {
    let mut top = shown(serving(3));
    let stages = picture(&top, 40, 10);
    holds_all(&stages, &["[ 0]", "[ 2]", "stages", "mac-2"]);
    assert!(!stages.contains("workers"), "{stages}");
    press(&mut top, &[Key::Tab, Key::Tab]);
    holds_all(&picture(&top, 40, 10), &["requests", "101"]);
    assert!(picture(&top, 10, 3).contains("too small"));
}

#[test]
fn sixteen_stages_have_room_at_every_width() {
    let mut top = shown(serving(16));
    let small = picture(&top, 80, 24);
    holds_all(&small, &["[ 0]", "[15]", "mac-0"]);
    for _ in 0..15 {
        press(&mut top, &[Key::Right]);
    }
    assert_eq!(top.selected_stage().map(|stage| stage.stage), Some(15));
    holds_all(&picture(&top, 80, 24), &["mac-15"]);
    holds_all(&picture(&top, 40, 10), &["[15]", "mac-15"]);
    holds_all(&picture(&top, 160, 50), &["[15]", "mac-15", "150..160+head"]);
    holds_all(&picture(&top, 300, 60), &["15 mac-15", "0 mac-0"]);
}

#[test]
fn a_step_is_seen_on_its_way() {
    let mut top = shown(serving(2));
    // It takes 200 ms and is shown for a second: each stage has half of it.
    let steps = vec![step(7, 2)];
    top.update(Input::Polled(Box::new(Poll { status: serving(2), steps, ..Poll::default() })), at(1000));
    assert_eq!(top.seen().0, 7);
    let mut places = Vec::new();
    for ms in [1010, 1070, 1200, 1470, 1520, 1700, 1980, 2100] {
        top.update(Input::Tick, at(ms));
        places.push(top.replay.as_ref().and_then(|replay| replay.place(top.now)));
    }
    use Place::{Computing, Link, Queued};
    let wanted = [Link(0), Queued(0), Computing(0), Link(1), Link(1), Computing(1), Link(2)];
    assert_eq!(places, [wanted.map(Some).as_slice(), &[None]].concat());
    for (ms, mark) in [(1200, "\u{25cf} 0 mac-0"), (1700, "\u{25cf} 1 mac-1"), (1070, "\u{25cb} 0 mac-0")] {
        top.update(Input::Tick, at(ms));
        holds_all(&picture(&top, 80, 24), &[mark]);
    }
    top.update(Input::Tick, at(1480));
    holds_all(&picture(&top, 80, 24), &["\u{25cf}\u{25b6}"]);
    top.update(Input::Tick, at(2500));
    assert!(!picture(&top, 80, 24).contains('\u{25cf}'), "it has come home");
}

#[test]
fn a_hung_stage_keeps_the_step_and_says_why() {
    let mut status = serving(3);
    let health = Health {
        state: HealthState::Hung,
        reason: Some("computes one step for 12 s".to_owned()),
        advice: Some("restart mac-1".to_owned()),
    };
    status.stages[1].health = health.clone();
    status.workers[1].health = health.clone();
    status.health = health;
    let mut top = shown(status);
    press(&mut top, &[Key::Right]);
    for (width, height) in [(80, 24), (160, 50)] {
        let picture = picture(&top, width, height);
        holds_all(&picture, &["\u{25cf} 1 mac-1", "hung", "computes one step for 12 s: restart mac-1"]);
    }
    let terminal = terminal(&top, 80, 24);
    let red = terminal.backend().buffer().content().iter().filter(|cell| cell.fg == Color::Red).count();
    assert!(red > 40, "its box is red: {red} cells");
}

#[test]
fn a_lost_worker_and_its_stage_are_unreachable_and_the_reason_is_told_unasked() {
    let mut status = serving(2);
    status.workers[1].state = "lost".to_owned();
    let health = Health {
        state: HealthState::Unreachable,
        reason: Some("it was killed".to_owned()),
        advice: Some("start it again".to_owned()),
    };
    (status.workers[1].health, status.stages[1].health) = (health.clone(), health);
    let name = status.workers[1].name.clone();
    let picture = picture(&shown(status), 160, 50);
    holds_all(&picture, &["unreachable", &format!("{name}: it was killed: start it again")]);
    let row = picture.lines().find(|line| line.contains(&name) && line.contains("unreachable"));
    assert!(row.is_some_and(|row| !row.contains("lost")), "one word for one thing: {picture}");
}

#[test]
fn loading_is_shown_with_how_far_it_is() {
    let mut status = serving(2);
    status.phase = Phase::Loading;
    status.reason = Some("loading 2 stages".to_owned());
    for stage in &mut status.stages {
        stage.state = "loading".to_owned();
        stage.loaded = 0.43;
    }
    holds_all(&picture(&shown(status), 80, 24), &["loading 43%", "loading 2 stages"]);
    let nothing =
        ClusterStatus { reason: Some("waiting for workers".to_owned()), ..ClusterStatus::default() };
    for (width, height) in [(40, 10), (80, 24), (160, 50)] {
        holds_all(&picture(&shown(nothing.clone()), width, height), &["waiting for workers"]);
    }
}

#[test]
fn names_from_elsewhere_break_no_picture() {
    let mut status = serving(3);
    for name in ["w".repeat(200), "\u{1b}[2J\u{7}bell".to_owned(), "机器".repeat(40)] {
        status.stages[0].name = name.clone();
        status.workers[0].name = name.clone();
        status.model.id = name.clone();
        status.active[0].state = name;
        for (width, height) in [(20, 5), (40, 10), (61, 17), (80, 24), (160, 50)] {
            let mut top = shown(status.clone());
            press(&mut top, &[Key::Enter]);
            let picture = picture(&top, width, height);
            assert!(!picture.contains(['\u{1b}', '\u{7}']), "{picture:?}");
        }
    }
}

#[test]
fn a_coordinator_that_is_gone_is_told_until_it_is_back() {
    let mut top = shown(serving(2));
    top.update(Input::Gone("connection refused".to_owned()), at(1000));
    top.update(Input::Gone("connection refused".to_owned()), at(5000));
    let gone = picture(&top, 80, 24);
    holds_all(&gone, &["no answer for 4s; trying again", "connection refused", "mac-1"]);
    // Its next start counts steps and tokens from nothing.
    let steps = vec![step(3, 2)];
    let status = ClusterStatus { incarnation: 2, ..serving(2) };
    top.update(Input::Polled(Box::new(Poll { status, steps, ..Poll::default() })), at(6000));
    assert_eq!((&top.connection, top.seen().0), (&Connection::Live, 3));
    assert!(!picture(&top, 80, 24).contains("no answer"));
    let mut early = Top::new("http://host:1");
    early.update(Input::Gone("nobody listens".to_owned()), at(10));
    holds_all(&picture(&early, 80, 24), &["http://host:1", "nobody listens"]);
}

#[test]
fn lines_show_what_was_generated_since_the_answer_before() {
    let mut top = shown(serving(2));
    let mut status = serving(2);
    status.requests.generated_tokens = 10;
    let steps = vec![step(1, 2), step(2, 2)];
    top.update(Input::Polled(Box::new(Poll { status, steps, ..Poll::default() })), at(500));
    assert_eq!((top.tokens_per_s.back(), top.step_us.back()), (Some(&20), Some(&200_000)));
    for poll_number in 2..1000 {
        top.update(poll(serving(2)), at(500 * poll_number));
    }
    assert_eq!((top.tokens_per_s.len(), top.step_us.back()), (240, Some(&0)), "what is kept has an end");
}

#[test]
fn events_are_kept_up_to_a_bound_the_newest_first() {
    let mut top = shown(serving(1));
    let events = (1..=MOST_EVENTS as u64 + 50).map(|id| event(id, &format!("number {id}"))).collect();
    let more = Poll { status: serving(1), events, ..Poll::default() };
    top.update(Input::Polled(Box::new(more)), at(250));
    let kept = top.events();
    assert_eq!((kept.len(), kept[0].id, top.seen().1), (MOST_EVENTS, 250, 250));
}

#[test]
fn keys_move_between_lists_and_in_them() {
    let mut top = shown(serving(3));
    assert_eq!(top.pane, Pane::Stages);
    press(&mut top, &[Key::Down, Key::Down, Key::Down, Key::Down]);
    assert_eq!(top.selected_stage().map(|stage| stage.stage), Some(2), "no farther than to the end");
    press(&mut top, &[Key::Left]);
    assert_eq!(top.selected_worker().map(|worker| worker.name.as_str()), Some("mac-1"));
    press(&mut top, &[Key::Tab]);
    assert_eq!(top.pane, Pane::Workers);
    press(&mut top, &[Key::End]);
    assert_eq!(top.selected_worker().map(|worker| worker.name.as_str()), Some("mac-2"));
    press(&mut top, &[Key::Home, Key::BackTab, Key::BackTab]);
    assert_eq!(top.pane, Pane::Events);
    press(&mut top, &[Key::PageDown, Key::PageUp, Key::Up]);
    top.update(poll(serving(1)), at(250));
    assert_eq!(top.selected_stage().map(|stage| stage.stage), Some(0), "fewer stages than before");
    top.update(poll(ClusterStatus::default()), at(500));
    assert_eq!(top.selected_stage(), None);
}

#[test]
fn details_and_help_lie_over_a_small_picture() {
    let mut top = shown(serving(3));
    press(&mut top, &[Key::Right, Key::Enter]);
    holds_all(&picture(&top, 80, 24), &["details", "mac-1 on host-1", "169.254.1.2:7481"]);
    assert!(press(&mut top, &[Key::Escape]), "it closes what is open");
    assert!(!picture(&top, 80, 24).contains("\u{250c} details"), "{}", picture(&top, 80, 24));
    press(&mut top, &[Key::Char('?')]);
    holds_all(&picture(&top, 80, 24), &["show only rows that hold a text", "Ctrl-C"]);
    assert!(press(&mut top, &[Key::Char('q')]), "any key closes the help");
    assert!(!top.help);
}

#[test]
fn a_filter_leaves_the_rows_that_hold_it() {
    let mut top = shown(serving(3));
    let events = vec![event(1, "MAC-1 has joined"), event(2, "plan 2 serves")];
    top.update(Input::Polled(Box::new(Poll { status: serving(3), events, ..Poll::default() })), at(250));
    press(&mut top, &[Key::Char('/'), Key::Char('q'), Key::Backspace]);
    assert!(top.typing, "a q in a filter is no end");
    press(&mut top, &"mac-1".chars().map(Key::Char).collect::<Vec<_>>());
    let counts =
        |top: &Top| [top.stages().len(), top.workers().len(), top.requests().len(), top.events().len()];
    assert_eq!(counts(&top), [1, 1, 0, 1]);
    holds_all(&picture(&top, 80, 24), &["/mac-1", "0 mac-0"]);
    press(&mut top, &[Key::Enter]);
    holds_all(&picture(&top, 80, 24), &["only rows with `mac-1`"]);
    assert!(press(&mut top, &[Key::Escape]), "the filter goes first");
    assert_eq!(counts(&top), [3, 3, 3, 2]);
    press(&mut top, &[Key::Char('/')]);
    press(&mut top, &[Key::Char('x'); 500]);
    assert_eq!(top.filter.len(), 64);
    press(&mut top, &[Key::Escape]);
    assert_eq!((top.typing, top.filter.as_str()), (false, ""));
}

#[test]
fn a_paused_picture_stands_still() {
    let mut top = shown(serving(3));
    press(&mut top, &[Key::Char('p')]);
    top.update(poll(serving(1)), at(250));
    assert_eq!(top.stages().len(), 3);
    holds_all(&picture(&top, 80, 24), &["paused"]);
    press(&mut top, &[Key::Char('p')]);
    top.update(poll(serving(1)), at(500));
    assert_eq!(top.stages().len(), 1);
}

#[test]
fn three_keys_quit_also_before_anything_is_known() {
    for key in [Key::Char('q'), Key::Escape, Key::Interrupt] {
        assert!(!press(&mut Top::new("http://host:1"), &[key]), "{key:?}");
        assert!(!press(&mut shown(serving(2)), &[key]), "{key:?}");
    }
    for open in [Key::Char('?'), Key::Char('/'), Key::Enter] {
        assert!(!press(&mut shown(serving(2)), &[open, Key::Interrupt]), "Ctrl-C always does: {open:?}");
    }
}

#[test]
fn keys_come_from_the_terminal_as_they_are_meant() {
    use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
    let plain = |code| key_of(&KeyEvent::new(code, KeyModifiers::NONE));
    assert_eq!(plain(KeyCode::Char('?')), Some(Key::Char('?')));
    assert_eq!(plain(KeyCode::F(5)), None);
    assert_eq!(key_of(&KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Some(Key::Interrupt));
    assert_eq!(key_of(&KeyEvent::new(KeyCode::Char('x'), KeyModifiers::CONTROL)), None);
    let released = KeyEvent::new_with_kind(KeyCode::Char('q'), KeyModifiers::NONE, KeyEventKind::Release);
    assert_eq!(key_of(&released), None);
}
