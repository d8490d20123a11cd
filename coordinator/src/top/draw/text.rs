//! Numbers, bars and words as they are painted.

use brigade_shard::units::Bytes;
use ratatui::style::Color;

use crate::status::{HealthState, StageStatus};

/// A bar of `width` columns that shows `share`, from 0 to 1, with its percentage.
pub(super) fn bar(share: f64, width: usize) -> String {
    let share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
    let room = width.saturating_sub(5);
    // Only what is full looks full, and only what is empty looks empty.
    let filled = match (share * room as f64).round() as usize {
        0 if share > 0.0 => 1.min(room),
        n if n >= room && share < 1.0 => room.saturating_sub(1),
        n => n,
    };
    format!("{}{} {:>3.0}%", "\u{2588}".repeat(filled), "\u{2591}".repeat(room - filled), share * 100.0)
}

/// The share of `whole` that `part` is; 0 where there is no whole.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Bytes per second.
pub(super) fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", Bytes(bytes_per_s.max(0.0) as u64))
}

/// What a stage holds, in as few characters as can be.
pub(super) fn holds(stage: &StageStatus) -> String {
    let embedding = if stage.embedding { "embd+" } else { "" };
    let head = if stage.head { "+head" } else { "" };
    format!("{embedding}{}..{}{head}", stage.layer_start, stage.layer_end)
}

/// How a stage is, with how far it has loaded.
pub(super) fn loading_word(word: &str, stage: &StageStatus) -> String {
    match word {
        "loading" => format!("loading {:.0}%", stage.loaded * 100.0),
        word => word.to_owned(),
    }
}

pub(super) fn health_color(state: HealthState) -> Color {
    match state {
        HealthState::Ok => Color::Green,
        HealthState::Loading => Color::Cyan,
        HealthState::Draining => Color::Blue,
        HealthState::Slow | HealthState::Hot => Color::Yellow,
        HealthState::Full | HealthState::Swapping => Color::Magenta,
        HealthState::Hung | HealthState::Unreachable => Color::Red,
    }
}

/// The colour of a word that says how a stage or worker is.
pub(super) fn word_color(word: &str) -> Color {
    match word {
        "ok" | "active" => Color::Green,
        "draining" | "drained" => Color::Blue,
        "slow" | "hot" => Color::Yellow,
        "full" | "swapping" => Color::Magenta,
        "hung" | "unreachable" | "failed" => Color::Red,
        // Loading, loaded, connected: on its way.
        _ => Color::Cyan,
    }
}
