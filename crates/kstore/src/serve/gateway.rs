//! The JSON gateway: `POST /v3/kv/range` and so on, for those who have `curl` and no client of gRPC.
//!
//! Paths, names and forms are those of etcd's gateway (grpc-gateway over etcd's `rpc.proto`, as 3.5 answers): keys and values
//! in base64, 64-bit numbers in quotes, what is 0 left out. A request is written anew as one of gRPC and answered by the
//! same methods, so nothing is decided here. Methods with many answers give one line for each, `{"result": ...}`. A body may
//! have several requests for them; it is read to its end first.

#[cfg(test)]
mod differential;
mod json;
mod shapes;

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use serde_json::{Value, json};
use tonic::{Code, Status, body::Body};

use super::{
    Face, REQUEST_OVERHEAD_BYTES,
    grpc::{self, BoxError},
    unary::PREFIX_BYTES,
};
use shapes::{Answers, ROUTES, Route};

/// Base64 and the names make a request so many times longer.
const JSON_GROWTH_MAX: usize = 2;

/// Whether a path is one of the gateway's.
pub(super) fn is_mine(path: &str) -> bool {
    path.starts_with("/v3/")
}

fn text(status: StatusCode, words: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(words)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// Answers a request.
pub(super) async fn answer<B>(face: Arc<Face>, request: Request<B>) -> Response<Body>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    let Some(route) = ROUTES.iter().find(|route| request.uri().path() == route.path) else {
        return text(StatusCode::NOT_FOUND, "Not Found\n");
    };
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
    }
    let max = JSON_GROWTH_MAX * (face.settings.request_bytes_max + REQUEST_OVERHEAD_BYTES);
    let asked = match asked(request, route, max).await {
        Ok(asked) => asked,
        Err(status) => return refuse(&status),
    };
    let first = stream::iter([Ok::<_, std::convert::Infallible>(Frame::data(asked))]);
    let body = match route.answers {
        // The end of a body is the end of its requests, and not of what was asked for.
        Answers::ManyForever => Body::new(StreamBody::new(first.chain(stream::pending()))),
        Answers::One | Answers::Many => Body::new(StreamBody::new(first)),
    };
    let mut call = Request::new(body);
    *call.method_mut() = Method::POST;
    *call.uri_mut() = http::Uri::from_static(route.method);
    let grpc = HeaderValue::from_static("application/grpc");
    call.headers_mut().insert(header::CONTENT_TYPE, grpc);
    let response = grpc::call(face, call).await;
    if let Some(status) =
        Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok)
    {
        return refuse(&status);
    }
    match route.answers {
        Answers::One => one(route, response.into_body()).await,
        Answers::Many | Answers::ManyForever => many(route, response.into_body()),
    }
}

/// The requests in a body, as gRPC sends them.
async fn asked<B>(request: Request<B>, route: &Route, max: usize) -> Result<Bytes, Status>
where
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    let body = Limited::new(request.into_body(), max).collect().await;
    let body = body.map_err(|error| Status::invalid_argument(error.to_string()))?.to_bytes();
    let mut values = serde_json::Deserializer::from_slice(&body).into_iter::<Value>();
    let mut messages = BytesMut::new();
    loop {
        let value = match values.next() {
            Some(value) => value.map_err(|error| Status::invalid_argument(error.to_string()))?,
            // One request of nothing is a request with nothing in it.
            None if messages.is_empty() && matches!(route.answers, Answers::One) => json!({}),
            None => return Ok(messages.freeze()),
        };
        let message = json::to_wire(route.asked, &value).map_err(Status::invalid_argument)?;
        messages.put_u8(0);
        messages.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
        messages.put_slice(&message);
        if matches!(route.answers, Answers::One) {
            return Ok(messages.freeze());
        }
    }
}

async fn one(route: &Route, body: Body) -> Response<Body> {
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(status) => return refuse(&status),
    };
    let failed = collected.trailers().and_then(failure);
    let mut bytes = BytesMut::from(collected.to_bytes());
    match (failed, message(&mut bytes).map(|message| json::from_wire(route.answered, message))) {
        (None, Some(Ok(value))) => respond(StatusCode::OK, Body::new(Full::from(value.to_string()))),
        (Some(status), _) => refuse(&status),
        (None, _) => refuse(&Status::internal("the answer can't be read")),
    }
}

/// One line for each answer, when it is there.
fn many(route: &'static Route, body: Body) -> Response<Body> {
    let lines = stream::unfold(Some((body, BytesMut::new())), move |open| async move {
        let (mut body, mut bytes) = open?;
        loop {
            if let Some(message) = message(&mut bytes) {
                let line = match json::from_wire(route.answered, message) {
                    Ok(value) => json!({ "result": value }),
                    Err(_) => last_line(&Status::internal("the answer can't be read")),
                };
                return Some((frame(&line), Some((body, bytes))));
            }
            let status = match body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) => {
                        bytes.extend_from_slice(&data);
                        continue;
                    }
                    Err(frame) => failure(frame.trailers_ref()?)?,
                },
                Err(status) => status,
            };
            return Some((frame(&last_line(&status)), None));
        }
    });
    respond(StatusCode::OK, Body::new(StreamBody::new(lines)))
}

fn frame(line: &Value) -> Result<Frame<Bytes>, std::convert::Infallible> {
    Ok(Frame::data(Bytes::from(format!("{line}\n"))))
}

/// Takes the next message, if it is there whole.
fn message(bytes: &mut BytesMut) -> Option<Bytes> {
    let length = u32::from_be_bytes(bytes.get(1..PREFIX_BYTES)?.try_into().ok()?) as usize;
    if bytes.len() < PREFIX_BYTES + length {
        return None;
    }
    bytes.advance(PREFIX_BYTES);
    Some(bytes.split_to(length).freeze())
}

fn failure(trailers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(trailers).filter(|status| status.code() != Code::Ok)
}

fn respond(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(status: &Status) -> Response<Body> {
    let words = status.message();
    let body = json!({ "error": words, "code": i32::from(status.code()), "message": words });
    respond(http_status(status.code()), Body::new(Full::from(body.to_string())))
}

/// What a stream ends with that has failed.
fn last_line(status: &Status) -> Value {
    let http = http_status(status.code());
    let words = http.canonical_reason().unwrap_or_default();
    json!({ "error": {
        "grpc_code": i32::from(status.code()),
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": words,
    } })
}

/// As grpc-gateway's `HTTPStatusFromCode`.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
