//! Calls to a server of the Container Runtime Interface over its socket.

use std::{path::Path, time::Duration};

use prost::Message;
use tonic::{Status, Streaming};

use super::pb;
use crate::{grpc::SocketClient, runtime::RuntimeError};

/// How long a call may take (upstream's `runtimeRequestTimeout`); pulls may take longer, stops their grace more.
pub(super) const CALL_TIME_MAX: Duration = Duration::from_secs(120);
/// How long a pull may take.
pub(super) const PULL_TIME_MAX: Duration = Duration::from_secs(60 * 60);
/// The largest message, in bytes (upstream's `maxMsgSize`).
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A connection that is made when it is needed, and again when it was lost.
#[derive(Clone, Debug)]
pub(super) struct CriClient(SocketClient);

impl CriClient {
    /// A client of the server behind this socket. Nothing is sent yet.
    pub(super) fn new(socket: &Path) -> Self {
        Self(SocketClient::new(socket, MESSAGE_BYTES_MAX))
    }

    /// One call, such as `RuntimeService/Version`.
    pub(super) async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.call_within(CALL_TIME_MAX, method, request).await
    }

    /// One call that may take so long.
    pub(super) async fn call_within<Q, A>(
        &self,
        time_max: Duration,
        method: &'static str,
        request: Q,
    ) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.0.call(time_max, &path(method), request).await
    }

    /// A call whose answers go on.
    pub(super) async fn stream<Q, A>(&self, method: &'static str, request: Q) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.0.stream(&path(method), request).await
    }
}

fn path(method: &str) -> String {
    format!("/runtime.v1.{method}")
}

/// Gives a container that runs other resources.
pub(super) async fn update(
    shared: &super::Shared,
    request: pb::UpdateContainerResourcesRequest,
) -> Result<(), RuntimeError> {
    let method = "RuntimeService/UpdateContainerResources";
    shared.client.call::<_, pb::Empty>(method, request).await.map(drop).map_err(super::refused)
}
