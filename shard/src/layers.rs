//! Ranges of layers, and the shards that a model is cut into.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A half-open range of transformer blocks, `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LayerRange {
    /// The first layer held.
    pub start: usize,
    /// One past the last layer held.
    pub end: usize,
}

impl LayerRange {
    /// The range `start..end`; `None` where `end` comes before `start`.
    pub fn new(start: usize, end: usize) -> Option<LayerRange> {
        (start <= end).then_some(LayerRange { start, end })
    }

    /// How many layers the range holds.
    pub fn len(self) -> usize {
        self.end - self.start
    }

    /// Whether the range holds no layer.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// The layers' indices, in order.
    pub fn iter(self) -> std::ops::Range<usize> {
        self.start..self.end
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A part of a model: some layers, and whichever end of the model touches them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shard {
    /// The layers held.
    pub layers: LayerRange,
    /// Whether it holds the token embedding, and so takes token ids instead of hidden states.
    pub embedding: bool,
    /// Whether it holds the output norm and head, and so samples instead of passing hidden states on.
    pub head: bool,
}

impl Shard {
    /// The shard of `layers` in a model of `layer_count` layers: it holds an end of the model where it touches it.
    pub fn of(layers: LayerRange, layer_count: usize) -> Shard {
        Shard { layers, embedding: layers.start == 0, head: layers.end == layer_count }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let embedding = if self.embedding { "embedding + " } else { "" };
        let head = if self.head { " + head" } else { "" };
        write!(f, "{embedding}layers {}{head}", self.layers)
    }
}
