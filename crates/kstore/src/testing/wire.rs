//! A bare client of etcd's API, for measuring and comparing servers: nothing is kept, nothing is followed.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use tonic::{Status, Streaming};

use crate::{Range, RemoteError, etcd::Channels, proto as pb};

/// How long one call may take.
const CALL_TIME: Duration = Duration::from_secs(60);

/// One connection to a server.
#[derive(Debug)]
pub struct WireClient(Channels);

/// The events of one watch.
#[derive(Debug)]
pub struct WireWatch(Streaming<pb::WatchResponse>);

impl WireClient {
    /// A connection, made with the first call.
    ///
    /// # Errors
    /// When the endpoint is not a URL.
    pub fn new(endpoint: &str) -> Result<WireClient, RemoteError> {
        Channels::new(&[endpoint.to_owned()], None, None, CALL_TIME).map(WireClient)
    }

    /// Creates a key as a Kubernetes API server does; whether it was not there before.
    ///
    /// # Errors
    /// What the server says.
    pub async fn create(&self, key: impl Into<Bytes>, value: Bytes) -> Result<bool, Status> {
        let key: Bytes = key.into();
        let compare = pb::Compare {
            target: pb::CompareTarget::Mod as i32,
            key: key.clone(),
            target_union: Some(pb::TargetUnion::ModRevision(0)),
            ..Default::default()
        };
        let put = pb::Request::Put(pb::PutRequest { key, value, ..Default::default() });
        let success = vec![pb::RequestOp { request: Some(put) }];
        let txn = pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() };
        let response: pb::TxnResponse = self.0.call_once("KV/Txn", txn).await?;
        Ok(response.succeeded)
    }

    /// Reads all keys with a prefix, or counts them; how many there are.
    ///
    /// # Errors
    /// What the server says.
    pub async fn range(&self, prefix: &str, count_only: bool) -> Result<usize, Status> {
        let Range { start: key, end } = Range::prefix(prefix.to_owned());
        let range_end = end.unwrap_or_else(|| Bytes::from_static(&[0]));
        let request = pb::RangeRequest { key, range_end, count_only, ..Default::default() };
        let response: pb::RangeResponse = self.0.call_once("KV/Range", request).await?;
        Ok(if count_only { response.count.unsigned_abs() as usize } else { response.kvs.len() })
    }

    /// Watches all keys with a prefix from now on; returns when the server has begun.
    ///
    /// # Errors
    /// What the server says.
    pub async fn watch(&self, prefix: &str) -> Result<WireWatch, Status> {
        let Range { start: key, end } = Range::prefix(prefix.to_owned());
        let range_end = end.unwrap_or_else(|| Bytes::from_static(&[0]));
        let create = pb::WatchCreateRequest { key, range_end, ..Default::default() };
        let first = pb::WatchRequest { request_union: Some(pb::WatchUnion::Create(create)) };
        let requests = stream::iter([first]).chain(stream::pending());
        let mut answers: Streaming<pb::WatchResponse> = self.0.stream("Watch/Watch", requests).await?;
        while let Some(answer) = answers.message().await? {
            if answer.created {
                break;
            }
        }
        Ok(WireWatch(answers))
    }
}

impl WireWatch {
    /// How many events came next; none once the server has ended the watch.
    ///
    /// # Errors
    /// What the server says.
    pub async fn next(&mut self) -> Result<Option<usize>, Status> {
        Ok(self.0.message().await?.map(|answer| answer.events.len()))
    }
}
