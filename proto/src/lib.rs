//! Everything that crosses a wire between coordinator and workers.
//!
//! The control plane is gRPC ([`control`], served by [`control_server`] and dialled by [`control_client`]), the data
//! plane is QUIC ([`link`]) carrying [`step`] frames, and weights on connections of their own ([`delivery`]); both are
//! mutual TLS with the same [`identity`]. Protobuf types stop at the edge of this crate: callers see the domain types of
//! [`ids`], [`control`], [`sampling`] and [`step`]. What to send and when is decided elsewhere. Because both programs need
//! them, [`doctor`], which looks for what may stand in the way, [`worker_processes`], which keeps workers running, and
//! [`device_choice`], which says where, are here, too.

mod convert;
mod hidden;
mod pb;
mod tls_listener;

pub mod control;
pub mod control_client;
pub mod control_server;
pub mod delivery;
pub mod device_choice;
pub mod doctor;
pub mod frame;
pub mod health;
pub mod identity;
pub mod ids;
pub mod link;
pub mod refusal;
pub mod sampling;
pub mod step;
pub mod worker_processes;

pub use convert::InvalidMessage;
pub use hidden::HiddenShapeError;
