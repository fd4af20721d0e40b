//! Calls that are asked once and answered once: from the body of a request to the body of its answer.
//!
//! A call with little to do is done where its connection is. One with much to do is done, and its answer encoded, in a task of
//! its own, so that its neighbours on the connection don't wait for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body::Body as HttpBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use prost::Message;
use tokio::task::JoinSet;
use tonic::{Status, body::Body};

use super::grpc::BoxError;

/// What stands before each message: whether it is compressed, and its length.
pub(super) const PREFIX_BYTES: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Where a call is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effort {
    /// Where its connection is.
    Little,
    /// In a task of its own.
    Much,
}

/// Reads the one message of a request that is no longer than `max`.
pub(super) async fn ask<Q, B>(request: Request<B>, max: usize) -> Result<Q, Status>
where
    Q: Message + Default,
    B: HttpBody + Send + 'static,
    B::Error: Into<BoxError> + Send,
{
    let body = Limited::new(request.into_body(), PREFIX_BYTES + max).collect().await;
    let body = body.map_err(|error| match error.is::<LengthLimitError>() {
        true => Status::resource_exhausted(format!("grpc: received message larger than max ({max})")),
        false => Status::internal(format!("the request can't be read: {error}")),
    })?;
    message(body.to_bytes())
}

/// The one message in a body.
fn message<Q: Message + Default>(mut body: Bytes) -> Result<Q, Status> {
    if body.len() < PREFIX_BYTES {
        return Err(Status::internal("the request has no message"));
    }
    let (compressed, length) = (body.get_u8(), body.get_u32() as usize);
    if compressed != 0 {
        return Err(Status::unimplemented("messages can't be compressed here"));
    }
    if body.len() != length {
        return Err(Status::internal("the request must have one message, whole"));
    }
    Q::decode(body).map_err(|error| Status::internal(format!("failed to decode Protobuf message: {error}")))
}

/// Waits for what a method says and makes an answer of it.
pub(super) async fn answer<A: Message + 'static>(
    effort: Effort,
    method: impl Future<Output = Result<A, Status>> + Send + 'static,
) -> Response<Body> {
    let encoded = async move { method.await.map(|answer| encode(&answer)) };
    let encoded = match effort {
        Effort::Little => encoded.await,
        Effort::Much => {
            // Ends with the call, should its client go away.
            let mut task = JoinSet::new();
            task.spawn(encoded);
            let ended = task.join_next().await.and_then(Result::ok);
            ended.unwrap_or_else(|| Err(Status::internal("the call was given up")))
        }
    };
    match encoded {
        Ok(message) => respond(message),
        Err(status) => status.into_http(),
    }
}

fn encode(answer: &impl Message) -> Bytes {
    let length = answer.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    // A message that is longer than its length can say can't be sent; nothing here makes 4 GiB of one.
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    answer.encode_raw(&mut bytes);
    bytes.freeze()
}

fn respond(message: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
    let mut response = Response::new(Body::new(body));
    response.headers_mut().insert(header::CONTENT_TYPE, GRPC);
    response
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::proto as pb;

    /// gRPC over HTTP/2, "Length-Prefixed-Message": what a body may be.
    #[tokio::test]
    async fn a_body_is_one_whole_message() {
        let put = pb::PutRequest { key: "k".into(), ..Default::default() };
        let whole = encode(&put).to_vec();
        let twice = [&whole[..], &whole[..]].concat();
        let compressed: Vec<u8> = [&[1], &whole[1..]].concat();
        let garbage = [&[0, 0, 0, 0, 2, 0xff, 0xff][..]].concat();
        let large = encode(&pb::PutRequest { key: vec![b'k'; 200].into(), ..Default::default() }).to_vec();
        let cases = [
            ("whole", whole.clone(), Ok(put)),
            ("nothing", Vec::new(), Err(Code::Internal)),
            ("cut", whole[..whole.len() - 1].to_vec(), Err(Code::Internal)),
            ("two", twice, Err(Code::Internal)),
            ("compressed", compressed, Err(Code::Unimplemented)),
            ("no message of that kind", garbage, Err(Code::Internal)),
            ("too large", large, Err(Code::ResourceExhausted)),
        ];
        for (name, body, expected) in cases {
            let request = Request::new(Full::new(Bytes::from(body)));
            let asked: Result<pb::PutRequest, Code> = ask(request, 100).await.map_err(|status| status.code());
            assert_eq!(asked, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_the_same_wherever_it_is_made() {
        for effort in [Effort::Little, Effort::Much] {
            let header =
                pb::HeaderOnly { header: Some(pb::ResponseHeader { revision: 7, ..Default::default() }) };
            let response = answer(effort, std::future::ready(Ok(header))).await;
            let body = response.into_body().collect().await.unwrap();
            assert_eq!(body.trailers().unwrap()["grpc-status"], "0", "{effort:?}");
            assert_eq!(message::<pb::HeaderOnly>(body.to_bytes()).unwrap(), header, "{effort:?}");
            let refused =
                answer::<pb::HeaderOnly>(effort, std::future::ready(Err(Status::aborted("no")))).await;
            assert_eq!(refused.headers()["grpc-status"], "10", "{effort:?}");
        }
    }
}
