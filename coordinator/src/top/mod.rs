//! `brigade top`: a running cluster in a terminal.
//!
//! [`Top`] is what is shown and what keys do, a state machine that takes what was polled, keys and the time from
//! outside; [`draw`] paints it. [`Screen`] takes the terminal and gives it back. The command that polls a coordinator
//! stands in `cli`.

mod draw;
mod keys;
mod replay;
mod screen;
mod state;

pub use draw::draw;
pub use keys::{Key, key_of};
pub use replay::{Place, Replay};
pub use screen::Screen;
pub use state::{Connection, Input, MOST_EVENTS, Pane, Poll, Top};
