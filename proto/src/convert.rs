//! Between the wire's protobuf messages and domain types.
//!
//! What comes in is checked as a whole before anything else sees it: every id, count, enum and length; the error names
//! the field. What goes out is only rewritten.

mod control;
pub(crate) mod fields;
pub(crate) mod step;

/// A message from a peer that breaks the protocol.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("field `{field}` {problem}")]
pub struct InvalidMessage {
    field: &'static str,
    problem: String,
}

impl InvalidMessage {
    pub(crate) fn new(field: &'static str, problem: impl Into<String>) -> InvalidMessage {
        InvalidMessage { field, problem: problem.into() }
    }

    /// The field that is wrong.
    pub fn field(&self) -> &'static str {
        self.field
    }
}
