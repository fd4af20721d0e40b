//! Requests that go on to a node's agent: logs, exec, attach and port forwarding.
//!
//! The server finds the pod's node, opens a connection to its agent, and passes the request on with the kubelet's path. An
//! upgraded connection is then copied byte by byte both ways: what is spoken on it is between the client and the agent.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{HeaderMap, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use kcore::Status;
use serde_json::Value;
use tracing::debug;

use super::{resource::Request, tunnel};
use crate::{
    body::Body,
    error::{ApiError, ApiResult},
    node::NodeTarget,
    registry::Resource,
    request::RequestInfo,
};

/// The subresources that a node answers.
pub(super) fn is_node_request(resource: &Resource, subresource: &str) -> bool {
    resource.def.group.is_empty()
        && resource.def.plural == "pods"
        && ["log", "exec", "attach", "portforward"].contains(&subresource)
}

/// Passes the request on.
pub(super) async fn serve<B>(
    request: &Request<'_>,
    resource: &Arc<Resource>,
    _body: B,
) -> ApiResult<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: fmt::Display + Send,
{
    let info = request.info;
    if info.subresource != "log" && info.verb != "create" {
        // WebSockets begin with a GET, and who may read must not be able to act by that (feature gate
        // AuthorizePodWebsocketUpgradeCreatePermission).
        let ask = RequestInfo { verb: "create".into(), ..info.clone() };
        request.server.authorize(request.user, &ask).await?;
    }
    let pod = request.server.objects.get(resource, &info.namespace, &info.name);
    let pod =
        pod.ok_or_else(|| Status::not_found("", "pods", &info.name))?.value().map_err(Status::internal)?;
    let container = if info.subresource == "portforward" {
        String::new()
    } else {
        container_of(&pod, request.query.get("container"), &info.name)?
    };
    let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else {
        if info.subresource == "log" {
            // A pod that never ran anywhere has an empty log.
            return Ok(Response::new(Body::empty()));
        }
        return Err(Status::bad_request(format!("pod {} does not have a host assigned", info.name)).into());
    };
    if info.subresource == "log" {
        check_started(&pod, &container, request.query.flag("previous"))?;
    }
    let path = node_path(request, &container);
    let dialer = request.server.nodes.as_ref().ok_or_else(|| {
        Status::failure(503, "ServiceUnavailable", "this server has no way to reach the agents of its nodes")
    })?;
    let unreachable = |error: &dyn fmt::Display| {
        ApiError::from(Status::failure(502, "BadGateway", format!("error dialing node {node}: {error}")))
    };
    let object = request.server.objects.find("", "v1", "nodes", "", node).and_then(|node| node.value().ok());
    let connection =
        dialer.dial(&NodeTarget::of(node, object.as_ref())).await.map_err(|error| unreachable(&error))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(connection)).await.map_err(|error| unreachable(&error))?;
    let driver = AbortOnDrop(tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "connection to a node's agent ended");
        }
    }));
    let mut onward =
        http::Request::builder().method(request.parts.method.clone()).uri(path).header(header::HOST, node);
    if let Some(headers) = onward.headers_mut() {
        copy_headers(&request.parts.headers, headers);
    }
    let onward =
        onward.body(Empty::<Bytes>::new()).map_err(|error| Status::bad_request(error.to_string()))?;
    let answer = sender.send_request(onward).await.map_err(|error| unreachable(&error))?;
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return tunnel::open(request.parts, answer, driver);
    }
    stream_answer(answer, driver).await
}

/// Ends the connection's driver when the answer has been read or dropped.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_PROTOCOL,
    ] {
        for value in from.get_all(&name) {
            to.append(&name, value.clone());
        }
    }
    for value in from.get_all("x-stream-protocol-version") {
        to.append("x-stream-protocol-version", value.clone());
    }
}

/// The path in the kubelet's own API.
fn node_path(request: &Request<'_>, container: &str) -> String {
    let info = request.info;
    let (namespace, name) = (&info.namespace, &info.name);
    let query = request.parts.uri.query().unwrap_or_default();
    let without = |query: &str| {
        query.split('&').filter(|pair| !pair.starts_with("container=")).collect::<Vec<_>>().join("&")
    };
    let query = match info.subresource.as_str() {
        // The kubelet calls the streams input, output and error.
        "exec" | "attach" => without(query)
            .split('&')
            .map(|pair| match pair.split_once('=') {
                Some(("stdin", value)) => format!("input={}", number(value)),
                Some(("stdout", value)) => format!("output={}", number(value)),
                Some(("stderr", value)) => format!("error={}", number(value)),
                Some(("tty", value)) => format!("tty={}", number(value)),
                _ => pair.to_owned(),
            })
            .collect::<Vec<_>>()
            .join("&"),
        _ => without(query),
    };
    let path = match info.subresource.as_str() {
        "log" => format!("/containerLogs/{namespace}/{name}/{container}"),
        "portforward" => format!("/portForward/{namespace}/{name}"),
        other => format!("/{other}/{namespace}/{name}/{container}"),
    };
    if query.is_empty() { path } else { format!("{path}?{query}") }
}

fn number(value: &str) -> &'static str {
    if matches!(value, "true" | "1") { "1" } else { "0" }
}

/// The container that is meant: the one that is named, or the only one, or the one that an annotation names.
fn container_of(pod: &Value, asked: Option<&str>, name: &str) -> ApiResult<String> {
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let names = |list: &str| -> Vec<String> {
        let list = pod["spec"][list].as_array().into_iter().flatten();
        list.filter_map(|container| container["name"].as_str()).map(str::to_owned).collect()
    };
    if let Some(asked) = asked {
        if lists.iter().any(|list| names(list).iter().any(|name| name == asked)) {
            return Ok(asked.to_owned());
        }
        return Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")).into());
    }
    let containers = names("containers");
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    if let Some(annotated) = annotated.filter(|annotated| containers.iter().any(|name| name == annotated)) {
        return Ok(annotated.to_owned());
    }
    match containers.as_slice() {
        [one] => Ok(one.clone()),
        several => {
            let mut why = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                several.join(" ")
            );
            let init = names("initContainers");
            if !init.is_empty() {
                why.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Status::bad_request(why).into())
        }
    }
}

/// A container that is still waiting has no log (`kubelet.validateContainerLogStatus`).
fn check_started(pod: &Value, container: &str, previous: bool) -> ApiResult<()> {
    let lists = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"];
    let statuses = lists.iter().filter_map(|list| pod["status"][*list].as_array()).flatten();
    let status = statuses.into_iter().find(|status| status["name"] == container);
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let refuse = |why: String| Err(Status::bad_request(why).into());
    let Some(status) = status else {
        return refuse(format!(
            "container {container:?} in pod {name:?} is waiting to start: ContainerCreating"
        ));
    };
    if previous && !status["lastState"]["terminated"].is_object() {
        return refuse(format!("previous terminated container {container:?} in pod {name:?} not found"));
    }
    let waiting = &status["state"]["waiting"];
    if !previous && waiting.is_object() && !status["lastState"]["terminated"].is_object() {
        let reason = waiting["reason"].as_str().unwrap_or("ContainerCreating");
        return refuse(format!("container {container:?} in pod {name:?} is waiting to start: {reason}"));
    }
    Ok(())
}

async fn stream_answer(
    answer: Response<hyper::body::Incoming>,
    driver: AbortOnDrop,
) -> ApiResult<Response<Body>> {
    let (parts, body) = answer.into_parts();
    if !parts.status.is_success() {
        let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        if let Ok(status) = serde_json::from_str::<Status>(&text) {
            return Err(status.into());
        }
        let reason = match parts.status {
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::BAD_REQUEST => "BadRequest",
            StatusCode::NOT_IMPLEMENTED => "NotImplemented",
            _ => "InternalError",
        };
        return Err(Status::failure(parts.status.as_u16(), reason, text).into());
    }
    let frames = body.into_data_stream().take_while(|frame| std::future::ready(frame.is_ok())).filter_map(
        move |frame| {
            let _driver = &driver;
            std::future::ready(frame.ok())
        },
    );
    let mut response = Response::new(Body::stream(frames));
    if let Some(kind) = parts.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    Ok(response)
}
