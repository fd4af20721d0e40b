//! Calls by gRPC to servers behind sockets of this machine.

pub(crate) mod serve;

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

/// A connection that is made when it is needed, and again when it was lost.
#[derive(Clone, Debug)]
pub(crate) struct SocketClient {
    channel: Channel,
    message_bytes_max: usize,
}

impl SocketClient {
    /// A client of the server behind this socket. Nothing is sent yet.
    pub(crate) fn new(socket: &Path, message_bytes_max: usize) -> Self {
        let socket = socket.to_owned();
        let connect = tower::service_fn(move |_| {
            let socket: PathBuf = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        // The address is not looked at: the socket is what counts.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(connect);
        Self { channel, message_bytes_max }
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone())
            .max_decoding_message_size(self.message_bytes_max)
            .max_encoding_message_size(self.message_bytes_max)
    }

    /// One call, such as `/csi.v1.Node/NodeGetInfo`, that may take so long.
    pub(crate) async fn call<Q, A>(&self, time_max: Duration, method: &str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let call = async {
            let mut grpc = self.grpc();
            grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
            let codec = ProstCodec::<Q, A>::default();
            grpc.unary(Request::new(request), path(method)?, codec).await.map(tonic::Response::into_inner)
        };
        let late = || Status::new(Code::DeadlineExceeded, format!("{method} took longer than {time_max:?}"));
        tokio::time::timeout(time_max, call).await.unwrap_or_else(|_| Err(late()))
    }

    /// A call whose answers go on.
    pub(crate) async fn stream<Q, A>(&self, method: &str, request: Q) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut grpc = self.grpc();
        grpc.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
        let codec = ProstCodec::<Q, A>::default();
        grpc.server_streaming(Request::new(request), path(method)?, codec)
            .await
            .map(tonic::Response::into_inner)
    }
}

fn path(method: &str) -> Result<PathAndQuery, Status> {
    PathAndQuery::try_from(method).map_err(|error| Status::internal(error.to_string()))
}

/// An error in the words of Go's gRPC, which upstream's messages show.
pub(crate) fn words(status: &Status) -> String {
    format!("rpc error: code = {} desc = {}", code(status.code()), status.message())
}

/// Go's name of a code.
fn code(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
