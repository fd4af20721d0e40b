//! Requests that go on to a node, as far as the server itself answers them.

use std::sync::Arc;

use kapi::{
    ApiServer,
    authn::UserInfo,
    authz::{Authorizer, Reason, Verdict},
    request::RequestInfo,
};
use serde_json::json;

use crate::harness::json_as;

/// Lets a caller read everything, and write whole objects.
#[derive(Debug)]
struct Reader;

#[async_trait::async_trait]
impl Authorizer for Reader {
    async fn authorize(&self, _: &UserInfo, request: &RequestInfo) -> Verdict {
        let allowed = request.verb == "get" || request.subresource.is_empty();
        if allowed { Verdict::Allow(Reason::none()) } else { Verdict::NoOpinion(Reason::none()) }
    }
}

/// A WebSocket begins with a GET, which must not let a reader run programs (kubernetes/kubernetes#133515).
#[tokio::test]
async fn whoever_opens_a_stream_must_be_allowed_to_create_it() {
    let server = ApiServer::builder().authorizer(Arc::new(Reader)).build().unwrap();
    for (path, code, message) in [
        ("log", 404, "pods \"p\" not found"),
        ("exec?command=ls", 403, "cannot create resource \"pods/exec\""),
        ("attach", 403, "cannot create resource \"pods/attach\""),
        ("portforward", 403, "cannot create resource \"pods/portforward\""),
    ] {
        let path = format!("/api/v1/namespaces/default/pods/p/{path}");
        let reader = UserInfo::new("reader", [""; 0]);
        let (found, status) = json_as(&server, reader, "GET", &path, &json!({})).await;
        assert_eq!(found, code, "{path}: {status}");
        assert!(status["message"].as_str().unwrap().contains(message), "{path}: {status}");
    }
}
