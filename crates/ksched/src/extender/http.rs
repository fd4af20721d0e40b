//! Extenders that are reached by HTTP.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    body::Bytes,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Mutex,
};
use tokio_rustls::TlsConnector;

use crate::{
    candidate::Candidate,
    extender::{
        Extender, ExtenderError, Filtered,
        tls::TlsOptions,
        wire::{
            BindingArgs, BindingResult, ExtenderArgs, FilterResult, HostPriority, MetaPod, MetaVictims,
            NoMetadata, NodeList, PreemptionArgs, PreemptionResult, Victims,
        },
    },
    pod::PodInfo,
    snapshot::{NodeIndex, Snapshot},
};

/// How long an extender may take unless it is given another time (upstream's `DefaultExtenderTimeout`).
pub const HTTP_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What kube-scheduler's configuration says of an extender. A verb that is empty is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpExtenderOptions {
    /// Where it is; a verb is added to it for each question.
    pub url_prefix: String,
    /// Asks which nodes will do.
    pub filter_verb: String,
    /// Asks where room is made.
    pub preempt_verb: String,
    /// Asks how good nodes are.
    pub prioritize_verb: String,
    /// What scores are multiplied by.
    pub weight: i64,
    /// Binds.
    pub bind_verb: String,
    /// Takes any certificate when no authority is given.
    pub enable_https: bool,
    /// How it is known.
    pub tls: TlsOptions,
    /// How long it may take; [`HTTP_TIMEOUT`] when it is zero.
    pub timeout: Duration,
    /// Knows nodes and pods itself: it is told their names and uids only.
    pub node_cache_capable: bool,
    /// The extended resources that it has a say about; all pods when there are none.
    pub managed_resources: Vec<String>,
    /// Scheduling goes on without it.
    pub ignorable: bool,
}

/// An extender that is reached by HTTP.
///
/// Keeps one connection open, as it is asked one question after the other.
pub struct HttpExtender {
    options: HttpExtenderOptions,
    prefix: Prefix,
    connection: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

struct Prefix {
    host: String,
    port: u16,
    /// Without a slash at its end.
    path: String,
    authority: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl fmt::Debug for HttpExtender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpExtender").field(&self.options.url_prefix).finish()
    }
}

impl HttpExtender {
    /// Makes one; it is not called yet.
    ///
    /// # Errors
    /// When the URL is none, or certificates can't be read.
    pub fn new(mut options: HttpExtenderOptions) -> Result<Self, ExtenderError> {
        let url = &options.url_prefix;
        let wrong = |why: String| ExtenderError::new(format!("{url:?}: {why}"));
        let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| wrong(error.to_string()))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("is no URL of http or https".to_owned())),
        };
        let host = uri.host().ok_or_else(|| wrong("has no host".to_owned()))?.trim_matches(['[', ']']);
        let tls = if secure {
            let connector = TlsConnector::from(Arc::new(options.tls.client(options.enable_https)?));
            let name = Some(options.tls.server_name.clone()).filter(|name| !name.is_empty());
            let name = ServerName::try_from(name.unwrap_or_else(|| host.to_owned()));
            Some((connector, name.map_err(|error| wrong(error.to_string()))?))
        } else {
            None
        };
        let prefix = Prefix {
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            path: uri.path().trim_end_matches('/').to_owned(),
            authority: uri.authority().map(ToString::to_string).unwrap_or_default(),
            tls,
        };
        if options.timeout.is_zero() {
            options.timeout = HTTP_TIMEOUT;
        }
        Ok(Self { options, prefix, connection: Mutex::new(None) })
    }

    async fn ask<A: Serialize + Sync, R: DeserializeOwned>(
        &self,
        verb: &str,
        question: &A,
    ) -> Result<R, ExtenderError> {
        let url = format!("{}/{verb}", self.options.url_prefix.trim_end_matches('/'));
        let failed = |why: &dyn fmt::Display| ExtenderError::new(format!("Post {url:?}: {why}"));
        let body = serde_json::to_vec(question).map_err(|error| failed(&error))?;
        let asked = tokio::time::timeout(self.options.timeout, self.post(verb, body.into()));
        let late = |_| failed(&"context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
        let (code, answer) = asked.await.map_err(late)?.map_err(|error| failed(&error))?;
        if code != StatusCode::OK {
            let code = code.as_u16();
            return Err(ExtenderError::new(format!("failed {verb} with extender at URL {url}, code {code}")));
        }
        serde_json::from_slice(&answer).map_err(|error| failed(&error))
    }

    /// On the connection that is open, or on a new one when there is none or it has just been closed.
    async fn post(&self, verb: &str, body: Bytes) -> Result<(StatusCode, Bytes), String> {
        let mut connection = self.connection.lock().await;
        let mut answer = None;
        if let Some(mut sender) = connection.take()
            && sender.ready().await.is_ok()
        {
            match sender.send_request(self.request(verb, &body)?).await {
                Ok(response) => answer = Some((sender, response)),
                // The other side had closed it before it saw the request.
                Err(error) if error.is_canceled() || error.is_closed() => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let (sender, response) = match answer {
            Some(answer) => answer,
            None => {
                let mut sender = self.connect().await?;
                let sent = sender.send_request(self.request(verb, &body)?).await;
                (sender, sent.map_err(|error| error.to_string())?)
            }
        };
        let (code, body) = (response.status(), response.into_body());
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| error.to_string())?;
        *connection = Some(sender);
        Ok((code, body.to_bytes()))
    }

    fn request(&self, verb: &str, body: &Bytes) -> Result<Request<Full<Bytes>>, String> {
        Request::builder()
            .method(Method::POST)
            .uri(format!("{}/{verb}", self.prefix.path))
            .header(header::HOST, &self.prefix.authority)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| error.to_string())
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let stream = TcpStream::connect((&*self.prefix.host, self.prefix.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match &self.prefix.tls {
            None => handshake(stream).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                handshake(stream.map_err(|error| error.to_string())?).await
            }
        }
    }

    fn args<'a>(&self, pod: &'a PodInfo, snapshot: &'a Snapshot, nodes: &[NodeIndex]) -> ExtenderArgs<'a> {
        let all = nodes.iter().map(|&node| snapshot.node(node).info());
        let (nodes, node_names) = if self.options.node_cache_capable {
            (None, Some(all.map(|node| &*node.name).collect()))
        } else {
            let items = all.map(|node| &*node.object).collect();
            (Some(NodeList { metadata: NoMetadata {}, items }), None)
        };
        ExtenderArgs { pod: &pod.object, nodes, node_names }
    }

    fn preemption_args<'a>(
        &self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        candidates: &'a [Candidate],
    ) -> PreemptionArgs<'a> {
        let named = candidates.iter().map(|candidate| (&*snapshot.names()[candidate.node], candidate));
        let mut args =
            PreemptionArgs { pod: &pod.object, node_name_to_victims: None, node_name_to_meta_victims: None };
        if self.options.node_cache_capable {
            let uids = |victims: &[Arc<PodInfo>]| {
                victims.iter().map(|victim| MetaPod { uid: victim.uid.to_string() }).collect()
            };
            let meta = named.map(|(node, Candidate { victims, violations, .. })| {
                (node, MetaVictims { pods: uids(victims), violations: *violations })
            });
            args.node_name_to_meta_victims = Some(meta.collect());
        } else {
            let full = named.map(|(node, Candidate { victims, violations, .. })| {
                let pods = victims.iter().map(|victim| &*victim.object).collect();
                (node, Victims { pods, violations: *violations })
            });
            args.node_name_to_victims = Some(full.collect());
        }
        args
    }

    /// The node with a name that an extender gave.
    fn named(
        &self,
        snapshot: &Snapshot,
        asked: &[NodeIndex],
        name: &str,
    ) -> Result<NodeIndex, ExtenderError> {
        let known = snapshot.find(name).filter(|node| asked.contains(node));
        known.ok_or_else(|| {
            let url = &self.options.url_prefix;
            ExtenderError::new(format!(
                "extender {url:?} claims a filtered node {name:?} which is not found in the input node list"
            ))
        })
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection): (_, http1::Connection<_, Full<Bytes>>) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    // Ends when the sender is dropped, or the other side closes it.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to an extender ended");
        }
    });
    Ok(sender)
}

#[async_trait]
impl Extender for HttpExtender {
    fn name(&self) -> &str {
        &self.options.url_prefix
    }

    fn is_interested(&self, pod: &PodInfo) -> bool {
        let managed = &self.options.managed_resources;
        if managed.is_empty() {
            return true;
        }
        let Some(spec) = &pod.object.spec else { return false };
        let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        containers.any(|container| {
            let resources = container.resources.iter();
            let names = resources.flat_map(|resources| {
                resources.requests.iter().chain(&resources.limits).flat_map(BTreeMap::keys)
            });
            names.into_iter().any(|name| managed.contains(name))
        })
    }

    fn is_ignorable(&self) -> bool {
        self.options.ignorable
    }

    async fn filter(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
    ) -> Result<Option<Filtered>, ExtenderError> {
        if self.options.filter_verb.is_empty() {
            return Ok(None);
        }
        let question = self.args(pod, snapshot, nodes);
        let answer: FilterResult = self.ask(&self.options.filter_verb, &question).await?;
        if !answer.error.is_empty() {
            return Err(ExtenderError::new(answer.error));
        }
        let names: Vec<String> = match (answer.node_names, answer.nodes) {
            (Some(names), _) if self.options.node_cache_capable => names,
            (_, Some(list)) => list.items.into_iter().map(|node| node.metadata.name).collect(),
            _ => Vec::new(),
        };
        let left: Result<Vec<_>, _> = names.iter().map(|name| self.named(snapshot, nodes, name)).collect();
        let reasons = |all: BTreeMap<String, String>| {
            all.into_iter().filter_map(|(name, why)| Some((snapshot.find(&name)?, why))).collect()
        };
        Ok(Some(Filtered {
            nodes: left?,
            failed: reasons(answer.failed_nodes),
            unresolvable: reasons(answer.failed_and_unresolvable_nodes),
        }))
    }

    fn weight(&self) -> i64 {
        self.options.weight
    }

    async fn prioritize(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
    ) -> Result<Option<Vec<(NodeIndex, i64)>>, ExtenderError> {
        if self.options.prioritize_verb.is_empty() {
            return Ok(None);
        }
        let question = self.args(pod, snapshot, nodes);
        let answer: Option<Vec<HostPriority>> = self.ask(&self.options.prioritize_verb, &question).await?;
        let scores = answer.unwrap_or_default().into_iter();
        Ok(Some(scores.filter_map(|given| Some((snapshot.find(&given.host)?, given.score))).collect()))
    }

    async fn preempt(
        &self,
        pod: &PodInfo,
        snapshot: &Snapshot,
        candidates: &[Candidate],
    ) -> Result<Option<Vec<Candidate>>, ExtenderError> {
        if self.options.preempt_verb.is_empty() {
            return Ok(None);
        }
        let question = self.preemption_args(pod, snapshot, candidates);
        let answer: PreemptionResult = self.ask(&self.options.preempt_verb, &question).await?;
        let mut left = Vec::new();
        for (name, victims) in answer.victims {
            let node = snapshot
                .find(&name)
                .ok_or_else(|| ExtenderError::new(format!("nodeinfo not found for node name {name:?}")))?;
            let MetaVictims { pods, violations } =
                victims.unwrap_or(MetaVictims { pods: Vec::new(), violations: 0 });
            let there = snapshot.node(node).pods();
            let mut victims = Vec::new();
            for MetaPod { uid } in pods {
                let victim = there.iter().find(|pod| *pod.uid == *uid).ok_or_else(|| {
                    let url = &self.options.url_prefix;
                    ExtenderError::new(format!(
                        "extender: {url} claims to preempt pod (UID: {uid}) on node: {name}, but the pod is not \
                         found on that node"
                    ))
                })?;
                victims.push(Arc::clone(victim));
            }
            left.push(Candidate { node, victims, violations });
        }
        Ok(Some(left))
    }

    async fn bind(&self, pod: &PodInfo, node: &str) -> Result<bool, ExtenderError> {
        if self.options.bind_verb.is_empty() {
            return Ok(false);
        }
        let question = BindingArgs { name: &pod.name, namespace: &pod.namespace, uid: &pod.uid, node };
        let answer: BindingResult = self.ask(&self.options.bind_verb, &question).await?;
        if answer.error.is_empty() { Ok(true) } else { Err(ExtenderError::new(answer.error)) }
    }
}
