//! The messages of the etcd v3 API, as far as they are spoken here.
//!
//! Names and numbers are those of etcd's `rpc.proto` and `kv.proto` (etcd API reference v3); what a peer sends beyond them is
//! ignored, as protobuf wants it. Written by hand, so that nobody who builds this crate needs a protobuf compiler.

mod cluster;
mod kv;
mod lease;
mod watch;

pub(crate) use cluster::*;
pub(crate) use kv::*;
pub(crate) use lease::*;
pub(crate) use watch::*;

/// What every answer begins with.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct ResponseHeader {
    #[prost(uint64, tag = "1")]
    pub(crate) cluster_id: u64,
    #[prost(uint64, tag = "2")]
    pub(crate) member_id: u64,
    #[prost(int64, tag = "3")]
    pub(crate) revision: i64,
    #[prost(uint64, tag = "4")]
    pub(crate) raft_term: u64,
}

/// A request or an answer without fields of its own.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Empty {}

/// An answer that says no more than where the store is.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct HeaderOnly {
    #[prost(message, optional, tag = "1")]
    pub(crate) header: Option<ResponseHeader>,
}
