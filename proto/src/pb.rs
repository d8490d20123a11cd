//! Code generated from the `.proto` files; it does not leave this crate.
#![expect(
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "the generator writes plain `allow`"
)]

tonic::include_proto!("brigade.v1");
