//! Delivery: tensors of a model from machines that have them to those that need them.
//!
//! A connection of its own between two peers, QUIC like a link and authenticated alike, so that what is under way of
//! weights stands before no frame of a step. The end that needs something opens a stream for every question ([`Ask`]); the
//! other end answers from its [`Shelf`]. A model is named by its fingerprint, a piece of it by the number of its chunk
//! ([`brigade_shard::chunks`]): no message can name a file.
//!
//! What a chunk must be is in pages of hashes, which the coordinator signs together with the fingerprint ([`Document`]); so
//! a chunk may come from anybody.

use std::sync::atomic::{AtomicU64, Ordering};

use brigade_shard::units::Bytes;

mod document;
mod files;
mod message;
mod serve;
mod source;

pub use document::{
    About, Authority, ChunkHash, Document, DocumentError, Edition, PAGE_CHUNKS, chunks_of_page, page_of,
};
pub use files::FileReader;
pub use message::{Answer, Ask, CachedModel, Checked, Holder};
pub use serve::{ChunkReader, Shelf};
pub use source::{ChunkStream, DeliveryError, Source};

pub(crate) use serve::serve;

/// What has crossed delivery connections of a socket, answers with all that is around chunks.
#[derive(Debug, Default)]
pub struct Delivered {
    fetched: AtomicU64,
    given: AtomicU64,
}

impl Delivered {
    /// What has come.
    pub fn fetched(&self) -> Bytes {
        Bytes(self.fetched.load(Ordering::Relaxed))
    }

    /// What has gone to others.
    pub fn given(&self) -> Bytes {
        Bytes(self.given.load(Ordering::Relaxed))
    }

    fn came(&self, bytes: usize) {
        self.fetched.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn went(&self, bytes: usize) {
        self.given.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
