//! A server of gRPC behind a socket.

use std::{convert::Infallible, io, path::Path, sync::Arc};

use bytes::{Buf as _, Bytes};
use futures::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::UnixListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::plugins::MESSAGE_BYTES_MAX;

/// How many connections are served at the same time; others wait.
const CONNECTIONS_MAX: usize = 64;

/// The messages of an answer.
pub(crate) type Answers = BoxStream<'static, Result<Vec<u8>, Status>>;

/// Answers calls: the method's path and the request's message in, messages out.
pub(crate) type Handler = Arc<dyn Fn(String, Bytes) -> BoxFuture<'static, Answers> + Send + Sync>;

/// One message.
pub(crate) fn answer(answer: Result<impl Message, Status>) -> Answers {
    let answer = answer.map(|message| message.encode_to_vec());
    futures::stream::once(async move { answer }).boxed()
}

/// Reads a request.
pub(crate) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, Status> {
    M::decode(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Serves at a socket until the handle is dropped.
pub(crate) fn serve(socket: &Path, handler: Handler) -> io::Result<AbortOnDropHandle<()>> {
    if let Some(dir) = socket.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let listener = UnixListener::bind(socket)?;
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let handler = Arc::clone(&handler);
            let service = hyper::service::service_fn(move |request| respond(request, Arc::clone(&handler)));
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            while connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            connections.spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    })))
}

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>;

async fn respond(request: Request<Incoming>, handler: Handler) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let answers = match Limited::new(request.into_body(), MESSAGE_BYTES_MAX).collect().await {
        Ok(body) => {
            let mut bytes = body.to_bytes();
            // A flag for compression, which nobody asks for, and the length.
            bytes.advance(5.min(bytes.len()));
            handler(path, bytes).await
        }
        Err(error) => answer(Err::<(), _>(Status::resource_exhausted(error.to_string()))),
    };
    let frames = futures::stream::unfold(Some(answers), |answers| async move {
        let mut answers = answers?;
        match answers.next().await {
            Some(Ok(message)) => {
                let mut framed = vec![0];
                framed.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
                framed.extend_from_slice(&message);
                Some((Ok(Frame::data(Bytes::from(framed))), Some(answers)))
            }
            Some(Err(status)) => Some((Ok(Frame::trailers(trailers(&status))), None)),
            None => Some((Ok(Frame::trailers(trailers(&Status::ok("")))), None)),
        }
    });
    let mut response = Response::new(StreamBody::new(frames.boxed()));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    Ok(response)
}

fn trailers(status: &Status) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(i32::from(status.code())));
    if let Ok(message) = HeaderValue::from_str(status.message()) {
        trailers.insert("grpc-message", message);
    }
    trailers
}
