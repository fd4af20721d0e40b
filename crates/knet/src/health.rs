//! How a node's proxy does, told by HTTP: to whoever supervises it, and to load balancers that ask which nodes have endpoints.
//!
//! [`ProxyHealth`] is what the proxy's agent notes, [`HealthServer`] serves it at `/healthz` (the node should get new traffic), `/livez`
//! (the proxy works) and `/proxyMode`, and [`ServiceHealth`] serves each Service's `healthCheckNodePort`. What is answered is what
//! upstream's kube-proxy answers (`pkg/proxy/healthcheck`).

mod http;
mod service;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kcore::Clock;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use self::http::Reply;
pub use self::service::{LocalEndpoints, ServiceHealth, ServiceHealthAgent};

/// For how long a change may wait to be served until the proxy isn't healthy any more: twice upstream's `syncPeriod`.
pub const PENDING_MAX: Duration = Duration::from_secs(60);

/// What a proxy's agent notes of it.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use std::sync::Arc;
/// use knet::health::ProxyHealth;
/// let health = ProxyHealth::new(Arc::new(kcore::TokioClock::new()));
/// health.pending();
/// assert!(health.is_healthy(), "a change may wait for a while");
/// health.updated();
/// # });
/// ```
#[derive(Debug)]
pub struct ProxyHealth {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    updated: Option<Timestamp>,
    /// Since when the oldest change waits.
    pending: Option<Timestamp>,
    eligible: bool,
}

impl ProxyHealth {
    /// That of a proxy which has done nothing yet; its node is eligible.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::new(State { updated: None, pending: None, eligible: true }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that there is a change to be served.
    pub fn pending(&self) {
        let now = self.clock.now();
        self.state().pending.get_or_insert(now);
    }

    /// Notes that all changes are served.
    pub fn updated(&self) {
        let now = self.clock.now();
        let mut state = self.state();
        (state.pending, state.updated) = (None, Some(now));
    }

    /// Notes whether the node should get new traffic: not when it is deleted, or about to be.
    pub fn set_eligible(&self, eligible: bool) {
        self.state().eligible = eligible;
    }

    /// Whether no change has waited for longer than [`PENDING_MAX`].
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        let now = self.clock.now();
        let waited = |since: Timestamp| Duration::try_from(now.duration_since(since)).unwrap_or_default();
        self.state().pending.is_none_or(|since| waited(since) < PENDING_MAX)
    }

    /// What `/healthz` (with the node) or `/livez` answers.
    fn report(&self, with_node: bool) -> Reply {
        let (now, healthy) = (self.clock.now(), self.is_healthy());
        let state = self.state();
        let good = healthy && (!with_node || state.eligible);
        let shown = |at: Option<Timestamp>| at.map_or("0001-01-01T00:00:00Z".to_owned(), |at| at.to_string());
        let mut body = json!({
            "lastUpdated": shown(if good { Some(now) } else { state.updated }),
            "currentTime": shown(Some(now)),
            "healthy": healthy,
        });
        if with_node {
            body["nodeEligible"] = state.eligible.into();
        }
        if state.updated.is_some() {
            let family = json!({"lastUpdated": shown(state.updated), "healthy": healthy});
            body["status"] = json!({"IPv4": family, "IPv6": family});
        }
        Reply::json(good, Value::to_string(&body))
    }
}

/// Serves a proxy's health. Dropping it ends it.
///
/// ```no_run
/// # async fn example() -> std::io::Result<()> {
/// use std::sync::Arc;
/// use knet::health::{HealthServer, ProxyHealth};
/// let health = Arc::new(ProxyHealth::new(Arc::new(kcore::TokioClock::new())));
/// let server = HealthServer::start(([0, 0, 0, 0], 10256).into(), health, "nftables").await?;
/// println!("{}", server.address());
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct HealthServer {
    address: SocketAddr,
    _stop: DropGuard,
}

impl HealthServer {
    /// Serves at an address (upstream's: port 10256); `mode` is what `/proxyMode` says.
    ///
    /// # Errors
    /// When the address can't be listened on.
    pub async fn start(
        address: SocketAddr,
        health: Arc<ProxyHealth>,
        mode: impl Into<String>,
    ) -> io::Result<Self> {
        let (stop, mode) = (CancellationToken::new(), mode.into());
        let answer = move |path: &str| match path {
            "/healthz" => health.report(true),
            "/livez" => health.report(false),
            "/proxyMode" => Reply::text(mode.clone()),
            _ => Reply::not_found(),
        };
        let address = http::serve(address, Arc::new(answer), stop.clone()).await?;
        Ok(Self { address, _stop: stop.drop_guard() })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}
