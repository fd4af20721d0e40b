//! The messages of plug-ins for dynamic resources (`dra/v1`'s and `dra/v1beta1`'s `api.proto`, which are the same).

use std::collections::BTreeMap;

/// A claim, in `NodePrepareResourcesRequest` and `NodeUnprepareResourcesRequest`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(crate) struct Claim {
    #[prost(string, tag = "1")]
    pub(crate) namespace: String,
    #[prost(string, tag = "2")]
    pub(crate) uid: String,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

/// `NodePrepareResourcesRequest` and `NodeUnprepareResourcesRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Claims {
    #[prost(message, repeated, tag = "1")]
    pub(crate) claims: Vec<Claim>,
}

/// `NodePrepareResourcesResponse`, by the claims' uids.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Prepared {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) claims: BTreeMap<String, PreparedClaim>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct PreparedClaim {
    #[prost(message, repeated, tag = "1")]
    pub(crate) devices: Vec<Device>,
    #[prost(string, tag = "2")]
    pub(crate) error: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Device {
    #[prost(string, repeated, tag = "1")]
    pub(crate) request_names: Vec<String>,
    #[prost(string, tag = "2")]
    pub(crate) pool_name: String,
    #[prost(string, tag = "3")]
    pub(crate) device_name: String,
    #[prost(string, repeated, tag = "4")]
    pub(crate) cdi_device_ids: Vec<String>,
    #[prost(string, optional, tag = "5")]
    pub(crate) share_id: Option<String>,
}

/// `NodeUnprepareResourcesResponse`, by the claims' uids.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Unprepared {
    #[prost(btree_map = "string, message", tag = "1")]
    pub(crate) claims: BTreeMap<String, UnpreparedClaim>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct UnpreparedClaim {
    #[prost(string, tag = "1")]
    pub(crate) error: String,
}
