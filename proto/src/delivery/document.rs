//! What the coordinator vouches for: a model's outline, and pages of its chunks' hashes.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use brigade_shard::chunks::Chunks;
use brigade_shard::model_file::Fingerprint;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::identity::{CoordinatorIdentity, IdentityError, TransportIdentity, is_signed_by};

/// Chunks whose hashes stand on one page: the first of them can be checked once as much as a quarter of a GiB has been
/// hashed, and a page is small enough to be asked for at any time.
pub const PAGE_CHUNKS: u32 = 256;
/// What is signed begins so: nothing else that the CA's key signs does.
const CONTEXT: &[u8] = b"brigade model document 1\0";

/// The page that holds a chunk's hash.
pub const fn page_of(chunk: u32) -> u32 {
    chunk / PAGE_CHUNKS
}

/// The numbers of the chunks whose hashes are on a page; none past the last one.
pub fn chunks_of_page(chunks: &Chunks, page: u32) -> Range<u32> {
    let first = |page: u32| page.saturating_mul(PAGE_CHUNKS).min(chunks.count());
    first(page)..first(page.saturating_add(1))
}

/// Tells contents of one fingerprint apart: it changes when a file is written to, which its header need not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Edition(pub u64);

impl fmt::Display for Edition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The BLAKE3 hash of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHash([u8; ChunkHash::BYTES]);

impl ChunkHash {
    /// Bytes of a hash.
    pub const BYTES: usize = 32;

    /// The hash of a chunk's bytes.
    pub fn of(chunk: &[u8]) -> ChunkHash {
        ChunkHash(*blake3::hash(chunk).as_bytes())
    }

    /// All bytes.
    pub const fn as_bytes(&self) -> &[u8; ChunkHash::BYTES] {
        &self.0
    }

    /// The hashes of a page; `None` where it is not made of whole ones.
    pub fn page(content: &[u8]) -> Option<Vec<ChunkHash>> {
        let (hashes, []) = content.as_chunks() else {
            return None;
        };
        Some(hashes.iter().map(|hash| ChunkHash(*hash)).collect())
    }
}

/// What a document is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The model's outline, as JSON.
    Outline,
    /// Hashes of [`PAGE_CHUNKS`] chunks, or of fewer on the last page, one after another.
    Hashes {
        /// Which page, from 0.
        page: u32,
    },
}

/// A statement about a model that the coordinator has signed.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// Of which contents.
    pub edition: Edition,
    /// What it says.
    pub content: Bytes,
    /// By the coordinator's CA.
    pub signature: Bytes,
}

/// A document that is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not signed by this cluster's coordinator")]
pub struct DocumentError;

impl Document {
    /// A document with `identity`'s signature.
    ///
    /// # Errors
    /// Where signing fails.
    pub fn signed(
        identity: &CoordinatorIdentity,
        model: &Fingerprint,
        edition: Edition,
        about: About,
        content: Bytes,
    ) -> Result<Document, IdentityError> {
        let signature = identity.sign(&statement(model, edition, about, &content))?;
        Ok(Document { edition, content, signature: signature.into() })
    }

    /// It as it is kept in a file: edition, length of the signature, signature, content; numbers little-endian.
    pub fn to_bytes(&self) -> Vec<u8> {
        let len = (self.signature.len() as u32).to_le_bytes();
        [&self.edition.0.to_le_bytes(), &len[..], &self.signature, &self.content].concat()
    }

    /// The document that a file keeps; `None` where it keeps none. Its signature is for the caller to check.
    pub fn from_bytes(bytes: &[u8]) -> Option<Document> {
        let (edition, rest) = bytes.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let (signature, content) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        Some(Document {
            edition: Edition(u64::from_le_bytes(*edition)),
            content: Bytes::copy_from_slice(content),
            signature: Bytes::copy_from_slice(signature),
        })
    }

    /// Checks that the coordinator has said so of this model.
    ///
    /// # Errors
    /// Where it has not.
    pub fn check(
        &self,
        authority: &Authority,
        model: &Fingerprint,
        about: About,
    ) -> Result<(), DocumentError> {
        let statement = statement(model, self.edition, about, &self.content);
        if authority.has_signed(&statement, &self.signature) { Ok(()) } else { Err(DocumentError) }
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({}, {} bytes)", self.edition, self.content.len())
    }
}

/// Whose signatures count: the CA that an identity trusts.
#[derive(Clone, Debug)]
pub struct Authority(Arc<TransportIdentity>);

impl Authority {
    /// The one of an identity.
    pub fn of(identity: TransportIdentity) -> Authority {
        Authority(Arc::new(identity))
    }

    fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        is_signed_by(self.0.ca(), message, signature)
    }
}

fn statement(model: &Fingerprint, edition: Edition, about: About, content: &[u8]) -> Vec<u8> {
    let (kind, page) = match about {
        About::Outline => (0u8, 0),
        About::Hashes { page } => (1, page),
    };
    [CONTEXT, model.as_bytes(), &edition.0.to_le_bytes(), &[kind], &page.to_le_bytes(), content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_is_its_coordinators_and_about_one_thing() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let identity = CoordinatorIdentity::load_or_create(dir.path()).unwrap();
        let stranger = CoordinatorIdentity::load_or_create(other.path()).unwrap();
        let (model, edition) = (Fingerprint::new([3; 32]), Edition(7));
        let about = About::Hashes { page: 2 };
        let document =
            Document::signed(&identity, &model, edition, about, Bytes::from_static(&[9; 64])).unwrap();
        let authority = Authority::of((&identity).into());
        assert_eq!(document.check(&authority, &model, about), Ok(()));
        assert_eq!(Document::from_bytes(&document.to_bytes()).as_ref(), Some(&document));
        assert_eq!(Document::from_bytes(&document.to_bytes()[..40]), None);
        assert_eq!(ChunkHash::page(&document.content).unwrap().len(), 2);
        let refused = |document: &Document, authority: &Authority, model: &Fingerprint, about| {
            assert_eq!(document.check(authority, model, about), Err(DocumentError));
        };
        refused(&document, &Authority::of((&stranger).into()), &model, about);
        refused(&document, &authority, &Fingerprint::new([4; 32]), about);
        refused(&document, &authority, &model, About::Hashes { page: 3 });
        refused(&document, &authority, &model, About::Outline);
        refused(&Document { edition: Edition(8), ..document.clone() }, &authority, &model, about);
        refused(
            &Document { content: Bytes::from_static(&[8; 64]), ..document.clone() },
            &authority,
            &model,
            about,
        );
        refused(&Document { signature: Bytes::new(), ..document }, &authority, &model, about);
        assert_eq!(ChunkHash::page(&[0; 33]), None);
    }
}
