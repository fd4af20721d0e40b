//! From a path to the method behind it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{FutureExt, Stream, StreamExt, stream::BoxStream};
use http::{Request, Response};
use http_body::Body as HttpBody;
use prost::Message;
use tonic::{
    Code, Status, Streaming,
    body::Body,
    server::{Grpc, ServerStreamingService, StreamingService},
};
use tonic_prost::ProstCodec;

use super::{
    Face, REQUEST_OVERHEAD_BYTES,
    unary::{self, Effort},
};
use crate::proto as pb;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

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

/// How long a message may be; what it carries is checked with more care.
fn message_bytes_max(face: &Face) -> usize {
    face.settings.request_bytes_max + REQUEST_OVERHEAD_BYTES
}

fn effort_of(much: bool) -> Effort {
    if much { Effort::Much } else { Effort::Little }
}

/// Whether a transaction has operations on ranges, or others in it that may.
fn reaches_far(txn: &pb::TxnRequest) -> bool {
    let compares = txn.compare.iter().any(|compare| !compare.range_end.is_empty());
    compares
        || txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
            Some(pb::Request::Range(range)) => !range.range_end.is_empty(),
            Some(pb::Request::DeleteRange(delete)) => !delete.range_end.is_empty(),
            Some(pb::Request::Txn(_)) => true,
            Some(pb::Request::Put(_)) | None => false,
        })
}

fn server<Q, A>(face: &Face) -> Grpc<ProstCodec<A, Q>>
where
    Q: Message + Default + 'static,
    A: Message + 'static,
{
    Grpc::new(ProstCodec::default())
        .max_decoding_message_size(message_bytes_max(face))
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
        ($method:ident) => {
            unary!($method, |_, _| Effort::Little)
        };
        ($method:ident, $effort:expr) => {
            match unary::ask(request, message_bytes_max(&face)).await {
                Ok(asked) => {
                    let effort: fn(&Face, &_) -> Effort = $effort;
                    let effort = effort(&face, &asked);
                    unary::answer(effort, async move { face.$method(asked).await }).await
                }
                Err(status) => status.into_http(),
            }
        };
    }
    let path = request.uri().path().to_owned();
    match path.strip_prefix("/etcdserverpb.").unwrap_or(&path) {
        "KV/Range" => unary!(range, Face::effort_of_range),
        "KV/Put" => unary!(put),
        "KV/DeleteRange" => {
            unary!(delete_range, |_, asked: &pb::DeleteRangeRequest| effort_of(!asked.range_end.is_empty()))
        }
        "KV/Txn" => unary!(txn, |_, asked| effort_of(reaches_far(asked))),
        "KV/Compact" => unary!(compact),
        "Watch/Watch" => {
            let watch = |asked| -> Answers<pb::WatchResponse> {
                Answers::new(super::watch::WatchStream::new(face.clone(), asked))
            };
            server(&face).streaming(Both(watch), request).await
        }
        "Lease/LeaseGrant" => unary!(lease_grant),
        "Lease/LeaseRevoke" => unary!(lease_revoke),
        "Lease/LeaseKeepAlive" => {
            let alive = |asked: Streaming<pb::LeaseIdRequest>| -> Answers<pb::LeaseKeepAliveResponse> {
                let face = face.clone();
                Answers::new(asked.then(move |asked| face.clone().lease_keep_alive(asked)))
            };
            server(&face).streaming(Both(alive), request).await
        }
        "Lease/LeaseTimeToLive" => unary!(lease_time_to_live),
        "Lease/LeaseLeases" => unary!(lease_leases),
        "Cluster/MemberList" => unary!(member_list),
        "Maintenance/Alarm" => unary!(alarm),
        "Maintenance/Status" => unary!(status, |_, _| Effort::Much),
        "Maintenance/Defragment" => unary!(defragment),
        "Maintenance/Hash" => unary!(hash_now, |_, _| Effort::Much),
        "Maintenance/HashKV" => unary!(hash, |_, _| Effort::Much),
        "Maintenance/Snapshot" => {
            let copy = |_: pb::Empty| face.clone().snapshot_stream();
            server(&face).server_streaming(Streams(copy), request).await
        }
        "Maintenance/MoveLeader" => super::faults::bad_transferee().into_http(),
        "Auth/AuthStatus" => unary!(auth_status),
        "Auth/Authenticate" => unary!(authenticate),
        "/grpc.health.v1.Health/Check" => unary!(health),
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
