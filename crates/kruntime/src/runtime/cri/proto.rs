//! The messages of the Container Runtime Interface, version 1, as far as they are spoken here.
//!
//! Names and numbers are those of `cri-api`'s `pkg/apis/runtime/v1/api.proto`; what a server sends beyond them is ignored, as
//! protobuf wants it. Written by hand, so that nobody who builds this crate needs a protobuf compiler. Messages that look the same
//! on the wire share a type.

mod container;
mod image;
mod sandbox;

pub(super) use container::*;
pub(super) use image::*;
pub(super) use sandbox::*;

/// A number that may be missing (`Int64Value`).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(in crate::runtime::cri) struct Value64 {
    #[prost(int64, tag = "1")]
    pub(in crate::runtime::cri) value: i64,
}

impl From<u32> for Value64 {
    fn from(value: u32) -> Self {
        Self { value: value.into() }
    }
}
