//! What pods and nodes use, for the resource metrics API: of this process its agent tells, of other nodes their summaries, as
//! metrics-server once read them (`/stats/summary`).

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kapi::{
    node::{NodeDialer, NodeTarget},
    usage::{Measured, Usage, UsageSource},
};
use kruntime::{NodeAgent, PodUid, stats::RESOLUTION};
use kube::{Api, Client, api::ListParams};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

/// How many nodes are read at the same time.
const NODES_AT_ONCE: usize = 16;
/// How long one node may take (metrics-server's `--kubelet-request-timeout`).
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest summary that is read, in bytes.
const SUMMARY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many questions wait; more are answered with what is known already.
const QUESTIONS_MAX: usize = 64;
/// How many nodes a page of the list has.
const PAGE: u32 = 500;

type PodUsage = Measured<Vec<(Arc<str>, Usage)>>;

/// What was read of nodes elsewhere.
#[derive(Clone, Debug, Default)]
struct Known {
    pods: HashMap<Box<str>, PodUsage>,
    nodes: BTreeMap<Box<str>, Measured<Usage>>,
}

/// Asks the agent of this process, and then who reads nodes elsewhere.
pub(crate) struct NodesUsage {
    /// Weak, because the agent's clients hold the server, and the server holds this.
    agent: OnceLock<Weak<NodeAgent>>,
    known: Arc<Mutex<Known>>,
    questions: mpsc::Sender<oneshot::Sender<()>>,
}

impl fmt::Debug for NodesUsage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodesUsage").finish_non_exhaustive()
    }
}

/// Reads nodes elsewhere while somebody asks. A task of its own, since it holds a client of the server that asks it.
pub(crate) struct RemoteUsage {
    known: Arc<Mutex<Known>>,
    questions: mpsc::Receiver<oneshot::Sender<()>>,
}

impl NodesUsage {
    /// The source, and who reads for it.
    pub(crate) fn new() -> (Self, RemoteUsage) {
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let known = Arc::<Mutex<Known>>::default();
        let remote = RemoteUsage { known: Arc::clone(&known), questions: asked };
        (Self { agent: OnceLock::new(), known, questions }, remote)
    }

    /// Tells which agent the nodes of this process have; only the first one counts.
    pub(crate) fn set(&self, agent: &Arc<NodeAgent>) {
        self.agent.get_or_init(|| Arc::downgrade(agent));
    }

    fn agent(&self) -> Option<Arc<NodeAgent>> {
        self.agent.get().and_then(Weak::upgrade)
    }

    /// Lets nodes elsewhere be read, unless they were lately.
    async fn refresh(&self) {
        let (done, is_done) = oneshot::channel();
        if self.questions.try_send(done).is_ok() {
            // An end without an answer is that of the cluster.
            let _ = is_done.await;
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl UsageSource for NodesUsage {
    async fn pods(&self, uids: &[Box<str>]) -> Vec<Option<PodUsage>> {
        let mut all = match self.agent() {
            None => vec![None; uids.len()],
            Some(agent) => {
                let uids: Vec<PodUid> = uids.iter().map(|uid| PodUid::from(&**uid)).collect();
                agent.pod_stats(&uids).await.into_iter().map(|pod| pod.map(of_pod)).collect()
            }
        };
        if all.iter().any(Option::is_none) {
            self.refresh().await;
            let known = self.known();
            for (one, uid) in all.iter_mut().zip(uids).filter(|(one, _)| one.is_none()) {
                *one = known.pods.get(uid).cloned();
            }
        }
        all
    }

    async fn nodes(&self, names: &[Box<str>]) -> Vec<Option<Measured<Usage>>> {
        let mut all: Vec<_> = match self.agent() {
            None => vec![None; names.len()],
            Some(agent) => agent
                .node_stats(names)
                .await
                .into_iter()
                .map(|stats| {
                    stats.map(|node| Measured {
                        at: node.at,
                        window: node.window,
                        usage: Usage { cpu_nanocores: node.cpu_nanocores, memory_bytes: node.memory_bytes },
                    })
                })
                .collect(),
        };
        if all.iter().any(Option::is_none) {
            self.refresh().await;
            let known = self.known();
            for (one, name) in all.iter_mut().zip(names).filter(|(one, _)| one.is_none()) {
                *one = known.nodes.get(name).cloned();
            }
        }
        all
    }
}

fn of_pod(pod: kruntime::stats::PodStats) -> PodUsage {
    let containers = pod.containers.into_iter().map(|container| {
        let usage = Usage { cpu_nanocores: container.cpu_nanocores, memory_bytes: container.memory_bytes };
        (container.name, usage)
    });
    Measured { at: pod.at, window: pod.window, usage: containers.collect() }
}

impl RemoteUsage {
    /// Reads the nodes that are not `local` whenever somebody asks and the last time is [`RESOLUTION`] ago.
    pub(crate) async fn run(
        mut self,
        client: Client,
        dialer: Arc<dyn NodeDialer>,
        local: Option<Arc<NodeAgent>>,
    ) {
        let mut last: Option<Instant> = None;
        while let Some(question) = self.questions.recv().await {
            if last.is_none_or(|last| last.elapsed() >= RESOLUTION) {
                let known = read(&client, &dialer, local.as_deref()).await;
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
                last = Some(Instant::now());
            }
            let _ = question.send(());
        }
    }
}

async fn read(client: &Client, dialer: &Arc<dyn NodeDialer>, local: Option<&NodeAgent>) -> Known {
    let here = local.map(NodeAgent::nodes).unwrap_or_default();
    let mut known = Known::default();
    let targets = match others(client, &here).await {
        Ok(targets) => targets,
        Err(error) => {
            tracing::warn!(%error, "nodes can't be listed for their use");
            return known;
        }
    };
    let mut summaries = futures::stream::iter(targets)
        .map(|target| async move {
            let summary = timeout(SUMMARY_TIMEOUT, summary(dialer, &target)).await;
            (target.name, summary.unwrap_or_else(|late| Err(late.into())))
        })
        .buffer_unordered(NODES_AT_ONCE);
    while let Some((node, summary)) = summaries.next().await {
        match summary {
            Ok(summary) => take(&mut known, &node, &summary),
            Err(error) => tracing::debug!(%node, %error, "a node's use can't be read"),
        }
    }
    known
}

/// The nodes that are not in this process.
async fn others(client: &Client, here: &[Arc<str>]) -> Result<Vec<NodeTarget>, kube::Error> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut page = ListParams::default().limit(PAGE);
    let mut targets = Vec::new();
    loop {
        let list = nodes.list(&page).await?;
        for node in &list.items {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            if !here.iter().any(|local| **local == *name) {
                let value = serde_json::to_value(node).map_err(kube::Error::SerdeError)?;
                targets.push(NodeTarget::of(name, Some(&value)));
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(targets),
        }
    }
}

async fn summary(dialer: &Arc<dyn NodeDialer>, target: &NodeTarget) -> io::Result<Value> {
    let stream = dialer.dial(target).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let request = http::Request::get("/stats/summary?only_cpu_and_memory=true").header("host", &target.name);
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    if !answer.status().is_success() {
        return Err(io::Error::other(format!("the node answers {}", answer.status())));
    }
    let body = Limited::new(answer.into_body(), SUMMARY_BYTES_MAX).collect().await;
    Ok(serde_json::from_slice(&body.map_err(io::Error::other)?.to_bytes())?)
}

/// Takes over what a summary says; what lacks an amount is left out, as by metrics-server.
fn take(known: &mut Known, node: &str, summary: &Value) {
    let amounts = |of: &Value| -> Option<(Timestamp, Usage)> {
        let cpu = &of["cpu"];
        let at: Timestamp = cpu["time"].as_str()?.parse().ok()?;
        let memory_bytes = of["memory"]["workingSetBytes"].as_u64()?;
        Some((at, Usage { cpu_nanocores: cpu["usageNanoCores"].as_u64()?, memory_bytes }))
    };
    if let Some((at, usage)) = amounts(&summary["node"]) {
        known.nodes.insert(node.into(), Measured { at, window: RESOLUTION, usage });
    }
    for pod in summary["pods"].as_array().into_iter().flatten() {
        let Some(uid) = pod["podRef"]["uid"].as_str() else { continue };
        let mut at: Option<Timestamp> = None;
        let mut containers = Vec::new();
        for container in pod["containers"].as_array().into_iter().flatten() {
            let (Some(name), Some((when, usage))) = (container["name"].as_str(), amounts(container)) else {
                continue;
            };
            at = Some(at.map_or(when, |at| at.min(when)));
            containers.push((Arc::from(name), usage));
        }
        if let Some(at) = at {
            known.pods.insert(uid.into(), Measured { at, window: RESOLUTION, usage: containers });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn summaries_are_read_and_what_is_missing_is_left_out() {
        let of = |time: &str, cores: u64| {
            json!({"name": "c", "cpu": {"time": time, "usageNanoCores": cores},
                "memory": {"workingSetBytes": 4096}})
        };
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z");
        let summary = json!({
            "node": of(late, 9),
            "pods": [
                {"podRef": {"uid": "both"}, "containers": [of(late, 1), of(early, 2)]},
                {"podRef": {"uid": "none"}, "containers": []},
                {"podRef": {"uid": "half"}, "containers": [{"name": "c", "cpu": {"time": late}}]},
                {"podRef": {}, "containers": [of(late, 1)]},
            ],
        });
        let mut known = Known::default();
        take(&mut known, "n", &summary);
        let usage = |cpu_nanocores| Usage { cpu_nanocores, memory_bytes: 4096 };
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        assert_eq!(known.nodes["n"], Measured { at: at(late), window: RESOLUTION, usage: usage(9) });
        let containers = vec![(Arc::from("c"), usage(1)), (Arc::from("c"), usage(2))];
        assert_eq!(known.pods.len(), 1);
        assert_eq!(known.pods["both"], Measured { at: at(early), window: RESOLUTION, usage: containers });
        take(&mut known, "n", &json!({"pods": 1}));
    }
}
