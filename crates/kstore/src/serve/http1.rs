//! What is asked without gRPC: is it there, is it well, which version is it.

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;

use super::{CLUSTER_VERSION, ETCD_VERSION, Face};

/// Answers everything that is not a call of gRPC.
pub(super) async fn answer<B>(face: &Face, request: &Request<B>) -> Response<Full<Bytes>> {
    let json = "application/json";
    let text = "text/plain; charset=utf-8";
    let (status, kind, body) = match request.uri().path() {
        "/health" => match face.store.barrier().await {
            Ok(_) => (StatusCode::OK, json, r#"{"health":"true","reason":""}"#.to_owned()),
            Err(error) => {
                let reason = error.to_string().replace(['"', '\\'], "'");
                let body = format!(r#"{{"health":"false","reason":"{reason}"}}"#);
                (StatusCode::SERVICE_UNAVAILABLE, json, body)
            }
        },
        "/livez" => (StatusCode::OK, text, "ok\n".to_owned()),
        "/readyz" => match face.store.barrier().await {
            Ok(_) => (StatusCode::OK, text, "ok\n".to_owned()),
            Err(error) => (StatusCode::SERVICE_UNAVAILABLE, text, format!("{error}\n")),
        },
        "/version" => {
            let body = format!(r#"{{"etcdserver":"{ETCD_VERSION}","etcdcluster":"{CLUSTER_VERSION}"}}"#);
            (StatusCode::OK, json, body)
        }
        _ => (StatusCode::NOT_FOUND, text, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
