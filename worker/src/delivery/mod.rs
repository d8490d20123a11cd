//! Weights that are not on this machine: fetched, checked, kept, and given on to others.
//!
//! A thread of its own ([`Service`]) asks and answers; loads give it orders ([`Delivery`]) and read what has come
//! ([`Delivered`]) out of the cache ([`Cache`]), while the rest is still on its way.

mod activity;
mod cache;
mod delivered;
mod fetch;
mod kept;
mod service;
mod shelf;

pub use activity::Activity;
pub use cache::{Cache, CacheError, Listed};
pub use delivered::Delivered;
pub use kept::{KeepError, KeptModel};
pub use service::{Delivery, FetchProgress, Home, Manners, Service, ServiceError, Ticket};
pub use shelf::WorkerShelf;
