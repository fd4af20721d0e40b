//! Calls to a server of the Container Runtime Interface over its socket.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// How long a call may take (upstream's `runtimeRequestTimeout`); pulls may take longer, stops their grace more.
pub(super) const CALL_TIME_MAX: Duration = Duration::from_secs(120);
/// How long a pull may take.
pub(super) const PULL_TIME_MAX: Duration = Duration::from_secs(60 * 60);
/// The largest message, in bytes (upstream's `maxMsgSize`).
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A connection that is made when it is needed, and again when it was lost.
#[derive(Clone, Debug)]
pub(super) struct CriClient {
    channel: Channel,
}

impl CriClient {
    /// A client of the server behind this socket. Nothing is sent yet.
    pub(super) fn new(socket: &Path) -> Self {
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let socket: PathBuf = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not looked at: the socket is what counts.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        Self { channel }
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
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
        let call = async {
            let mut grpc = self.grpc();
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(Request::new(request), path(method), codec).await.map(tonic::Response::into_inner)
        };
        let late = || Status::new(Code::DeadlineExceeded, format!("{method} took longer than {time_max:?}"));
        tokio::time::timeout(time_max, call).await.unwrap_or_else(|_| Err(late()))
    }

    /// A call whose answers go on.
    pub(super) async fn stream<Q, A>(&self, method: &'static str, request: Q) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let codec = ProstCodec::<Q, A>::default();
        grpc.server_streaming(Request::new(request), path(method), codec)
            .await
            .map(tonic::Response::into_inner)
    }
}

fn path(method: &'static str) -> PathAndQuery {
    let path = format!("/runtime.v1.{method}");
    // The methods are constants of this crate, all of them good paths.
    PathAndQuery::try_from(path).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}
