//! gRPC's health protocol (`grpc.health.v1`; KEP-2727). Its two messages have one field each, so they are written and read here without
//! a protobuf library. What is said of failures is what `grpc_health_probe` and upstream's kubelet say.

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;
use tokio_util::task::AbortOnDropHandle;

use super::{ANSWER_BYTES_MAX, HandlerError, dial, pod_address};
use crate::agent::PodEntry;

/// The names of `google.rpc.Code`, in Go's form.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// The code of a server that doesn't know the protocol.
const UNIMPLEMENTED: usize = 12;

/// `Health/Check` of the service has to answer SERVING.
pub(crate) async fn grpc(entry: &PodEntry, action: &GRPCAction) -> Result<(), HandlerError> {
    let port = u16::try_from(action.port).map_err(|_| HandlerError::Bad("invalid port".to_owned()))?;
    let authority = format!("{}:{port}", pod_address(entry)?);
    let failed = |error: &dyn std::fmt::Display| {
        HandlerError::Bad(format!("error: failed to connect service at {authority:?}: {error}"))
    };
    let stream = dial(entry, None, port).await.map_err(|error| failed(&error))?;
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.37")
        .body(Full::new(Bytes::from(question(action.service.as_deref().unwrap_or_default()))))?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
    let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
    if response.status() != StatusCode::OK {
        return Err(HandlerError::Status(response.status().as_u16()));
    }
    let (head, body) = response.into_parts();
    let collected = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let collected =
        collected.map_err(|error| HandlerError::Bad(format!("error: health rpc probe failed: {error}")))?;
    // A server that has nothing to say tells its status with the headers.
    let trailers = collected.trailers().unwrap_or(&head.headers).clone();
    judge(&trailers, &collected.to_bytes()).map_err(HandlerError::Bad)
}

/// A `HealthCheckRequest` for this service, in gRPC's frame.
fn question(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push(u8::try_from(length & 0x7f).unwrap_or_default() | 0x80);
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap_or_default());
        message.extend(service.as_bytes());
    }
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap_or_default().to_be_bytes());
    frame.extend(message);
    frame
}

/// What the answer means; why not, otherwise.
fn judge(trailers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let text = |name: &str| trailers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // A call without a status was broken off.
    let code: usize = text("grpc-status").parse().unwrap_or(2);
    let message = unescape(text("grpc-message"));
    match code {
        0 => {}
        UNIMPLEMENTED => {
            return Err(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ));
        }
        code => {
            let name = CODES.get(code).map_or_else(|| format!("Code({code})"), |name| (*name).to_owned());
            return Err(format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}"));
        }
    }
    let status = status(body).ok_or("error: health rpc probe failed: the answer can't be read")?;
    let name = match status {
        1 => return Ok(()),
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    };
    Err(format!("service unhealthy (responded with {name:?})"))
}

/// The status of a `HealthCheckResponse` in gRPC's frame; `None`: it is none, or compressed, which was not asked for.
fn status(body: &[u8]) -> Option<u64> {
    let (head, message) = body.split_at_checked(5)?;
    let length = u32::from_be_bytes(head[1..5].try_into().ok()?);
    if head[0] != 0 || usize::try_from(length) != Ok(message.len()) {
        return None;
    }
    let (mut rest, mut status) = (message, 0);
    while !rest.is_empty() {
        let key = varint(&mut rest)?;
        match key & 7 {
            0 => {
                let value = varint(&mut rest)?;
                if key >> 3 == 1 {
                    status = value;
                }
            }
            1 => rest = rest.get(8..)?,
            2 => {
                let length = usize::try_from(varint(&mut rest)?).ok()?;
                rest = rest.get(length..)?;
            }
            5 => rest = rest.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (first, others) = rest.split_first()?;
        *rest = others;
        value |= u64::from(first & 0x7f).checked_shl(shift)?;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Undoes the percent encoding of `grpc-message`; what isn't any stays as it is.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        match (bytes[at], hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_asked_for_by_names_of_any_length() {
        assert_eq!(question(""), [0, 0, 0, 0, 0]);
        assert_eq!(question("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        let long = question(&"x".repeat(300));
        assert_eq!(long[..8], [0, 0, 0, 1, 47, 0x0a, 0xac, 0x02]);
        assert_eq!(long.len(), 5 + 303);
    }

    #[test]
    fn answers_are_judged_as_upstream_does() {
        let frame = |message: &[u8]| {
            let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
            frame.extend(message);
            frame
        };
        let unreadable = "error: health rpc probe failed: the answer can't be read";
        for (code, message, body, expected) in [
            ("0", "", frame(&[8, 1]), ""),
            ("0", "", frame(&[8, 2, 8, 1]), ""),
            ("0", "", frame(&[0x12, 1, 7, 8, 1]), ""),
            ("0", "", frame(&[0x15, 0, 0, 0, 0, 8, 1]), ""),
            ("0", "", frame(&[]), "service unhealthy (responded with \"UNKNOWN\")"),
            ("0", "", frame(&[8, 2]), "service unhealthy (responded with \"NOT_SERVING\")"),
            ("0", "", frame(&[8, 3]), "service unhealthy (responded with \"SERVICE_UNKNOWN\")"),
            ("0", "", frame(&[8, 0x81, 1]), "service unhealthy (responded with \"129\")"),
            ("0", "", vec![], unreadable),
            ("0", "", vec![0, 0, 0, 0, 9, 8, 1], unreadable),
            ("0", "", vec![1, 0, 0, 0, 2, 8, 1], unreadable),
            ("0", "", frame(&[8]), unreadable),
            ("0", "", frame(&[0x12, 200, 1]), unreadable),
            ("0", "", frame(&[8, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1]), unreadable),
            (
                "5",
                "unknown%20service%",
                frame(&[8, 1]),
                "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service%",
            ),
            (
                "12",
                "no such method",
                vec![],
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no such method",
            ),
            ("99", "", vec![], "error: health rpc probe failed: rpc error: code = Code(99) desc = "),
            ("", "", frame(&[8, 1]), "error: health rpc probe failed: rpc error: code = Unknown desc = "),
        ] {
            let mut trailers = HeaderMap::new();
            for (name, value) in [("grpc-status", code), ("grpc-message", message)] {
                if !value.is_empty() {
                    trailers.insert(name, value.parse().unwrap());
                }
            }
            let judged = judge(&trailers, &body).err().unwrap_or_default();
            assert_eq!(judged, expected, "{code} {message} {body:?}");
        }
    }
}
