//! From a path to the method behind it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, Stream, StreamExt, future::MapOk, stream::BoxStream};
use http::{Request, Response};
use http_body::Body as HttpBody;
use prost::Message;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    server::{Grpc, ServerStreamingService, StreamingService, UnaryService},
};
use tonic_prost::ProstCodec;

use super::{Face, REQUEST_OVERHEAD_BYTES};
use crate::proto as pb;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The answers of a method that has many.
pub(super) struct Answers<A>(Option<BoxStream<'static, Result<A, Status>>>);

impl<A> Answers<A> {
    fn new(stream: impl Stream<Item = Result<A, Status>> + Send + 'static) -> Self {
        Answers(Some(Box::pin(stream)))
    }
}

impl<A> Stream for Answers<A> {
    type Item = Result<A, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.0 else { return Poll::Ready(None) };
        let next = std::task::ready!(stream.as_mut().poll_next(context));
        // A fault is the last answer, whatever the stream would say after it.
        if !matches!(next, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(next)
    }
}

/// A method that is asked once and answers once.
struct Unary<F>(F);

impl<Q, A, F, Fut> UnaryService<Q> for Unary<F>
where
    F: FnMut(Q) -> Fut,
    Fut: Future<Output = Result<A, Status>>,
{
    type Response = A;
    type Future = MapOk<Fut, fn(A) -> tonic::Response<A>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        futures::TryFutureExt::map_ok((self.0)(request.into_inner()), tonic::Response::new)
    }
}

/// A method that answers with a stream, and is asked once or with a stream.
struct Streams<F>(F);

type Ready<T> = std::future::Ready<T>;

impl<Q, A, F> ServerStreamingService<Q> for Streams<F>
where
    F: FnMut(Q) -> Answers<A>,
{
    type Response = A;
    type ResponseStream = Answers<A>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        std::future::ready(Ok(tonic::Response::new((self.0)(request.into_inner()))))
    }
}

struct Both<F>(F);

impl<Q, A, F> StreamingService<Q> for Both<F>
where
    F: FnMut(Streaming<Q>) -> Answers<A>,
{
    type Response = A;
    type ResponseStream = Answers<A>;
    type Future = Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<Q>>) -> Self::Future {
        std::future::ready(Ok(tonic::Response::new((self.0)(request.into_inner()))))
    }
}

fn server<Q, A>(face: &Face) -> Grpc<ProstCodec<A, Q>>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    Grpc::new(ProstCodec::default())
        .max_decoding_message_size(face.settings.request_bytes_max + REQUEST_OVERHEAD_BYTES)
        .max_encoding_message_size(usize::MAX)
}

/// Answers one call.
#[allow(clippy::too_many_lines, reason = "a table of the methods")]
pub(super) async fn call<B>(face: Arc<Face>, request: Request<B>) -> Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    macro_rules! unary {
        ($method:expr) => {
            server(&face).unary(Unary($method), request).await
        };
    }
    let path = request.uri().path().to_owned();
    let at = &face;
    match path.strip_prefix("/etcdserverpb.").unwrap_or(&path) {
        "KV/Range" => unary!(|q| at.range(q)),
        "KV/Put" => unary!(|q| at.put(q)),
        "KV/DeleteRange" => unary!(|q| at.delete_range(q)),
        "KV/Txn" => unary!(|q| at.txn(q)),
        "KV/Compact" => unary!(|q| at.compact(q)),
        "Watch/Watch" => {
            let watch = |asked| -> Answers<pb::WatchResponse> {
                Answers::new(super::watch::WatchStream::new(face.clone(), asked))
            };
            server(&face).streaming(Both(watch), request).await
        }
        "Lease/LeaseGrant" => unary!(|q| at.lease_grant(q)),
        "Lease/LeaseRevoke" => unary!(|q| at.lease_revoke(q)),
        "Lease/LeaseKeepAlive" => {
            let alive = |asked: Streaming<pb::LeaseIdRequest>| -> Answers<pb::LeaseKeepAliveResponse> {
                let face = face.clone();
                Answers::new(asked.then(move |asked| face.clone().lease_keep_alive(asked)))
            };
            server(&face).streaming(Both(alive), request).await
        }
        "Lease/LeaseTimeToLive" => unary!(|q| at.lease_time_to_live(q)),
        "Lease/LeaseLeases" => unary!(|q| at.lease_leases(q)),
        "Cluster/MemberList" => unary!(|q| at.member_list(q)),
        "Maintenance/Alarm" => unary!(|q| at.alarm(q)),
        "Maintenance/Status" => unary!(|q| at.status(q)),
        "Maintenance/Defragment" => unary!(|q| at.defragment(q)),
        "Maintenance/Hash" => unary!(|_: pb::Empty| at.hash(pb::HashKvRequest::default())),
        "Maintenance/HashKV" => unary!(|q| at.hash(q)),
        "Maintenance/Snapshot" => {
            let copy = |_: pb::Empty| face.clone().snapshot_stream();
            server(&face).server_streaming(Streams(copy), request).await
        }
        "Maintenance/MoveLeader" => {
            unary!(|_: pb::Empty| std::future::ready(Err::<pb::HeaderOnly, _>(
                super::faults::bad_transferee()
            )))
        }
        "Auth/AuthStatus" => unary!(|q| at.auth_status(q)),
        "Auth/Authenticate" => unary!(|q| at.authenticate(q)),
        "/grpc.health.v1.Health/Check" => unary!(|q| at.health(q)),
        method => {
            let why = format!("kplane's etcd has no method {}", method.trim_start_matches('/'));
            Status::new(Code::Unimplemented, why).into_http()
        }
    }
}

/// A stream of one answer that is made first.
pub(super) fn once_then<A: Send + 'static, S>(
    first: impl Future<Output = Result<S, Status>> + Send + 'static,
) -> Answers<A>
where
    S: Stream<Item = Result<A, Status>> + Send + 'static,
{
    let made = first.map(|made| match made {
        Ok(stream) => stream.left_stream(),
        Err(status) => futures::stream::once(std::future::ready(Err(status))).right_stream(),
    });
    Answers::new(made.flatten_stream())
}
