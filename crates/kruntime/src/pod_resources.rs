//! Which containers have which devices, processors and memory alone: upstream's pod resources API (`podresources/v1`; KEP-606, KEP-2043,
//! KEP-3695), for agents on the node such as those that watch devices.
//!
//! Nodes that take plug-ins serve it at [`SOCKET`] below their `state_dir`.

use std::{fs, io, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::{
    agent::{Inner, Node, is_over},
    grpc::serve::{self, Answers, answer, decode},
    machine::is_sidecar,
};

pub(crate) mod proto;

/// Where the API is served below a node's `state_dir`; upstream's is `/var/lib/kubelet/pod-resources/kubelet.sock`.
pub const SOCKET: &str = "pod-resources/kubelet.sock";

const SERVICE: &str = "/v1.PodResourcesLister/";
/// How many questions wait to be answered.
const QUESTIONS_MAX: usize = 64;
/// How many questions a second are answered, and how many at once (upstream's `DefaultQPS` and `DefaultBurstTokens`).
const QUESTIONS_PER_SECOND: f64 = 100.0;
const QUESTIONS_AT_ONCE: f64 = 10.0;
/// How soon the socket is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// So many questions, and no more.
struct Limiter {
    left: f64,
    at: Instant,
}

impl Limiter {
    fn new(now: Instant) -> Self {
        Self { left: QUESTIONS_AT_ONCE, at: now }
    }

    fn allows(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + since * QUESTIONS_PER_SECOND).min(QUESTIONS_AT_ONCE);
        self.at = now;
        let is_allowed = self.left >= 1.0;
        if is_allowed {
            self.left -= 1.0;
        }
        is_allowed
    }
}

struct Question {
    method: String,
    bytes: Bytes,
    tell: oneshot::Sender<Answers>,
}

/// Opens the socket, in place of an earlier one.
fn open(socket: &Path, ask: mpsc::Sender<Question>) -> io::Result<AbortOnDropHandle<()>> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o750))?;
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let handler = move |method: String, bytes: Bytes| {
        let ask = ask.clone();
        async move {
            let (tell, told) = oneshot::channel();
            let gone = || answer(Err::<proto::Empty, _>(Status::unavailable("the node is stopping")));
            if ask.send(Question { method, bytes, tell }).await.is_err() {
                return gone();
            }
            told.await.unwrap_or_else(|_| gone())
        }
        .boxed()
    };
    serve::serve(socket, Arc::new(handler))
}

/// Serves the API for a node until it is dropped.
pub(crate) async fn run(inner: &Inner, node: &Node) {
    let Some(socket) = node.config.state_dir.as_ref().map(|dir| dir.join(SOCKET)) else { return };
    let (ask, mut asked) = mpsc::channel(QUESTIONS_MAX);
    let _server = loop {
        match open(&socket, ask.clone()) {
            Ok(server) => break server,
            Err(error) => {
                tracing::warn!(node = %node.config.name, %error, "the socket for pod resources can't be made");
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let mut limiter = Limiter::new(Instant::now());
    while let Some(Question { method, bytes, tell }) = asked.recv().await {
        let answers = if limiter.allows(Instant::now()) {
            respond(inner, node, &method, bytes)
        } else {
            answer(Err::<proto::Empty, _>(Status::resource_exhausted("rejected by rate limit")))
        };
        // Who has gone meanwhile is told nothing.
        let _ = tell.send(answers);
    }
}

fn respond(inner: &Inner, node: &Node, method: &str, bytes: Bytes) -> Answers {
    match method.strip_prefix(SERVICE) {
        Some("List") => answer(Ok(list(inner, node))),
        Some("GetAllocatableResources") => answer(Ok(allocatable(node))),
        Some("Get") => answer(decode(bytes).and_then(|request| get(inner, node, &request))),
        _ => answer(Err::<proto::Empty, _>(Status::unimplemented(format!("unknown method {method}")))),
    }
}

/// The pods that have not ended, by namespace and name.
fn list(inner: &Inner, node: &Node) -> proto::ListPodResourcesResponse {
    let entries: Vec<_> = inner.entries().values().cloned().collect();
    let of_node = entries.into_iter().filter(|entry| entry.node.config.name == node.config.name);
    let mut pods: Vec<_> = of_node.map(|entry| entry.pod()).filter(|pod| !is_over(pod)).collect();
    pods.sort_by(|one, other| {
        (&one.metadata.namespace, &one.metadata.name).cmp(&(&other.metadata.namespace, &other.metadata.name))
    });
    proto::ListPodResourcesResponse { pod_resources: pods.iter().map(|pod| of_pod(node, pod)).collect() }
}

fn get(
    inner: &Inner,
    node: &Node,
    request: &proto::GetPodResourcesRequest,
) -> Result<proto::GetPodResourcesResponse, Status> {
    let (namespace, name) = (&request.pod_namespace, &request.pod_name);
    let entry = inner.entry_named(&node.config.name, namespace, name);
    let entry =
        entry.ok_or_else(|| Status::unknown(format!("pod {name} in namespace {namespace} not found")))?;
    Ok(proto::GetPodResourcesResponse { pod_resources: Some(of_pod(node, &entry.pod())) })
}

fn allocatable(node: &Node) -> proto::AllocatableResourcesResponse {
    let managers = node.config.managers.as_ref();
    proto::AllocatableResourcesResponse {
        devices: node.devices.as_ref().map(|devices| devices.tell_healthy()).unwrap_or_default(),
        cpu_ids: managers.map(|managers| managers.tell_allocatable_cpus()).unwrap_or_default(),
        memory: managers.map(|managers| managers.tell_allocatable_memory()).unwrap_or_default(),
    }
}

/// Containers and sidecars; init containers that end have ended, or keep what the containers after them get.
fn told(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.iter();
    spec.flat_map(|spec| {
        let init = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
        init.chain(&spec.containers)
    })
}

fn of_pod(node: &Node, pod: &Pod) -> proto::PodResources {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let managers = node.config.managers.as_ref();
    let of_container = |container: &Container| proto::ContainerResources {
        name: container.name.clone(),
        devices: node.devices.as_ref().map(|all| all.tell(uid, &container.name)).unwrap_or_default(),
        cpu_ids: managers.map(|all| all.tell_cpus(uid, &container.name)).unwrap_or_default(),
        memory: managers.map(|all| all.tell_memory(uid, &container.name)).unwrap_or_default(),
        dynamic_resources: node.claims.as_ref().map(|all| all.tell(pod, container)).unwrap_or_default(),
    };
    proto::PodResources {
        name: pod.metadata.name.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        containers: told(pod).map(of_container).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_questions_than_upstreams_are_answered() {
        let mut limiter = Limiter::new(Instant::now());
        let mut count = |after: Duration| {
            let now = Instant::now() + after;
            (0..1000).filter(|_| limiter.allows(now)).count()
        };
        assert_eq!(count(Duration::ZERO), 10);
        assert_eq!(count(Duration::from_millis(5)), 0);
        assert_eq!(count(Duration::from_millis(35)), 3);
        assert_eq!(count(Duration::from_secs(60)), 10);
    }

    /// As the wire has it.
    #[test]
    fn messages_have_upstreams_numbers() {
        let device = proto::ContainerDevices {
            resource_name: "r".to_owned(),
            device_ids: vec!["d".to_owned()],
            topology: Some(proto::TopologyInfo::of([1])),
        };
        let claim = proto::ClaimResource {
            cdi_devices: vec![proto::CdiDevice { name: "x".to_owned() }],
            driver_name: "d".to_owned(),
            pool_name: "p".to_owned(),
            device_name: "n".to_owned(),
            share_id: Some("s".to_owned()),
        };
        let claim = proto::DynamicResource {
            claim_name: "c".to_owned(),
            claim_namespace: "n".to_owned(),
            claim_resources: vec![claim],
        };
        let device = prost::Message::encode_to_vec(&device);
        assert_eq!(device, b"\x0a\x01r\x12\x01d\x1a\x04\x0a\x02\x08\x01");
        let claim = prost::Message::encode_to_vec(&claim);
        let inner = b"\x0a\x03\x0a\x01x\x12\x01d\x1a\x01p\x22\x01n\x2a\x01s";
        let expected =
            [&b"\x12\x01c\x1a\x01n\x22"[..], &[u8::try_from(inner.len()).unwrap()], inner].concat();
        assert_eq!(claim, expected);
    }
}
