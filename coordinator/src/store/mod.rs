//! The models on this machine: pulled from a path, a web server or a hub, checked, listed and removed.
//!
//! A [`Store`] is the directory where workers look for models, too: GGUF files lie in it as they are, a model in
//! safetensors is a directory in it. Under `.brigade` it keeps a record of each model that it pulled, and what of
//! unfinished ones has come. Nothing gets its final name before it is whole and checked, and no name that a server or a
//! record says leads out of the directory: `names` checks it, and `disk` follows no links.
//!
//! What to fetch is decided purely (`source`, `choice`, `ledger`, `spans`); `web`, `hub`, `fetch` and `disk` are the shells
//! around it.

mod addresses;
mod check;
mod choice;
mod digest;
mod disk;
mod error;
mod fetch;
mod hub;
mod ledger;
mod local;
pub(crate) mod names;
mod plan;
mod progress;
mod pull;
mod record;
mod shelf;
mod source;
mod spans;
mod watch;
mod web;

pub use addresses::is_private;
pub use check::{Checkup, FileCheckup, FileState};
pub use choice::ChoiceError;
pub use digest::{Digest, ParseDigestError};
pub use error::StoreError;
pub use hub::{ENDPOINT, HubSettings};
pub use names::{FileName, ModelName, NameError};
pub use progress::Progress;
pub use pull::{PullOptions, Pulled};
pub use record::{Checked, Form, Record, StoredFile};
pub use shelf::{Found, Removed, Store, Unfinished, default_directory};
pub use source::{Repository, Source, SourceError};
pub use watch::{Phase, Unwatched, Watch};
pub use web::{Patience, Token, WebError};
