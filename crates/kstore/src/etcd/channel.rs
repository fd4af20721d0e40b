//! Calls to the members of a cluster: to one of them, and to the next when it fails.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::PathAndQuery;
use prost::Message;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_prost::ProstCodec;

use super::{EtcdTls, MESSAGE_BYTES_MAX, failed};
use crate::{RemoteError, proto as pb};

/// How long a connection may take to be made.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// A connection is asked whether it is alive after this long without a word, and given this long to answer.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const ALIVE_TIME_MAX: Duration = Duration::from_secs(5);

/// What is wrong with an etcd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EtcdError {
    /// No endpoint was given.
    #[error("there are no endpoints of etcd")]
    NoEndpoints,
    /// An endpoint is not a URL, or its TLS can't be set up.
    #[error("{endpoint} can't be an endpoint of etcd")]
    BadEndpoint {
        /// The endpoint.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// It said no, or can't be reached.
    #[error("etcd: {}", .0.message())]
    Refused(#[source] Status),
    /// A watch was ended by the server.
    #[error("etcd ended the watch: {0}")]
    WatchEnded(String),
}

/// The members of a cluster.
pub(crate) struct Channels {
    members: Vec<Channel>,
    /// Who is asked first.
    current: AtomicUsize,
    user: Option<(String, String)>,
    token: RwLock<Option<MetadataValue<Ascii>>>,
    call_time: Duration,
}

impl fmt::Debug for Channels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channels").field("members", &self.members.len()).finish_non_exhaustive()
    }
}

impl Channels {
    pub(crate) fn new(
        endpoints: &[String],
        tls: Option<&EtcdTls>,
        user: Option<(String, String)>,
        call_time: Duration,
    ) -> Result<Self, RemoteError> {
        let fault = |error: EtcdError| RemoteError::Failed(Arc::new(error));
        if endpoints.is_empty() {
            return Err(fault(EtcdError::NoEndpoints));
        }
        let members = endpoints.iter().map(|endpoint| {
            let bad = |source| EtcdError::BadEndpoint { endpoint: endpoint.clone(), source };
            member(endpoint, tls).map_err(bad)
        });
        let members = members.collect::<Result<Vec<_>, _>>().map_err(fault)?;
        Ok(Channels { members, current: AtomicUsize::new(0), user, token: RwLock::default(), call_time })
    }

    /// One call, tried at each member until one answers. For what may be done twice.
    pub(super) async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, RemoteError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.attempt(method, request, |_| true).await.map_err(failed)
    }

    /// One call, tried again only where it is sure that it was not done.
    pub(crate) async fn call_once<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        self.attempt(method, request, not_sent).await
    }

    async fn attempt<Q, A>(
        &self,
        method: &'static str,
        request: Q,
        again: fn(&Status) -> bool,
    ) -> Result<A, Status>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut last = Status::new(Code::Unavailable, "no member was asked");
        let mut logged_in = false;
        // Each member once, and one more time for a token that has run out.
        for _ in 0..=self.members.len() {
            let at = self.current.load(Ordering::Relaxed);
            let status = match self.ask(at, method, request.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if status.code() == Code::Unauthenticated && self.user.is_some() && !logged_in {
                logged_in = true;
                if let Err(status) = self.log_in(at).await {
                    self.leave(at);
                    last = status;
                }
                continue;
            }
            let elsewhere =
                matches!(status.code(), Code::Unavailable | Code::Unknown | Code::DeadlineExceeded);
            if elsewhere {
                self.leave(at);
            }
            if !elsewhere || !again(&status) {
                return Err(status);
            }
            last = status;
        }
        Err(last)
    }

    async fn ask<Q, A>(&self, at: usize, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        if self.user.is_some() && self.token().is_none() {
            self.log_in(at).await?;
        }
        let mut request = Request::new(request);
        self.sign(&mut request);
        let call = unary(self.member(at), method, request);
        tokio::time::timeout(self.call_time, call)
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "the call took too long")))
    }

    /// Opens a stream with the member that is asked first.
    pub(crate) async fn stream<Q, A>(
        &self,
        method: &'static str,
        requests: impl futures::Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Status>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let at = self.current.load(Ordering::Relaxed);
        if self.user.is_some() && self.token().is_none() {
            self.log_in(at).await?;
        }
        let mut request = Request::new(requests);
        self.sign(&mut request);
        // A member that was cut off from the others ends the stream, so that it is opened elsewhere.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let opened = async {
            let mut client = client(self.member(at));
            ready(&mut client).await?;
            let codec = ProstCodec::<Q, A>::default();
            client.streaming(request, path(method), codec).await.map(tonic::Response::into_inner)
        };
        let opened = tokio::time::timeout(self.call_time, opened)
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "the call took too long")));
        if let Err(status) = &opened {
            if status.code() == Code::Unauthenticated {
                *self.token.write().unwrap_or_else(PoisonError::into_inner) = None;
            }
            self.leave(at);
        }
        opened
    }

    /// Asks another member from now on.
    pub(super) fn leave(&self, at: usize) {
        let next = at.wrapping_add(1);
        let _ = self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn member(&self, at: usize) -> Channel {
        self.members[at % self.members.len()].clone()
    }

    fn token(&self) -> Option<MetadataValue<Ascii>> {
        self.token.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn sign<T>(&self, request: &mut Request<T>) {
        if let Some(token) = self.token() {
            request.metadata_mut().insert("token", token);
        }
    }

    async fn log_in(&self, at: usize) -> Result<(), Status> {
        let Some((name, password)) = self.user.clone() else { return Ok(()) };
        let request = Request::new(pb::AuthenticateRequest { name, password });
        let call = unary::<_, pb::AuthenticateResponse>(self.member(at), "Auth/Authenticate", request);
        let answer = tokio::time::timeout(self.call_time, call)
            .await
            .unwrap_or_else(|_| Err(Status::new(Code::DeadlineExceeded, "the call took too long")))?;
        let bad = |_| Status::new(Code::Internal, "etcd gave a token that can't be sent");
        let token = MetadataValue::try_from(answer.token).map_err(bad)?;
        *self.token.write().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }
}

/// Whether the request never left: the connection could not be made.
fn not_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

fn member(endpoint: &str, tls: Option<&EtcdTls>) -> Result<Channel, tonic::transport::Error> {
    let mut made = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(CONNECT_TIME_MAX)
        .http2_keep_alive_interval(ALIVE_INTERVAL)
        .keep_alive_timeout(ALIVE_TIME_MAX)
        .keep_alive_while_idle(false)
        .tcp_nodelay(true);
    if let Some(tls) = tls {
        let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem));
        if let Some((certificate, key)) = &tls.identity_pem {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name);
        }
        made = made.tls_config(config)?;
    }
    Ok(made.connect_lazy())
}

fn client(channel: Channel) -> Grpc<Channel> {
    Grpc::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

async fn ready(client: &mut Grpc<Channel>) -> Result<(), Status> {
    client.ready().await.map_err(|error| Status::from_error(Box::new(error)))
}

fn path(method: &'static str) -> PathAndQuery {
    let path = format!("/etcdserverpb.{method}");
    // The methods are constants of this crate, all of them good paths.
    PathAndQuery::try_from(path).unwrap_or_else(|_| PathAndQuery::from_static("/"))
}

async fn unary<Q, A>(channel: Channel, method: &'static str, request: Request<Q>) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    let mut client = client(channel);
    ready(&mut client).await?;
    let codec = ProstCodec::<Q, A>::default();
    client.unary(request, path(method), codec).await.map(tonic::Response::into_inner)
}
