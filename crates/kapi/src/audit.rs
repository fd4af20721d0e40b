//! Who asked for what, and what came of it (Kubernetes, "Auditing").
//!
//! A [`AuditPolicy`] says how much is kept of which request, an [`AuditSink`] where it goes: [`AuditLog`] writes files,
//! [`AuditWebhook`] posts batches, an embedder's own sink is one function. A server without a sink does none of this.

mod event;
mod log;
mod policy;
mod trail;
mod webhook;

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::future::BoxFuture;

pub(crate) use self::trail::{Audit, Trail};
pub use self::{
    event::{AuditEvent, ObjectReference, PeerAddress, USER_AGENT_BYTES_MAX},
    log::{AuditLog, LogConfig},
    policy::{AuditPolicy, Level, Stage},
    trail::RESPONSE_BYTES_MAX,
    webhook::{AuditWebhook, BatchConfig, CALLS_MAX, RETRIES_MAX},
};

/// Is told of every stage of every request that the policy picks.
///
/// Called on the request path, from many tasks at once: it must not wait for others and should hand on what it keeps. It
/// can't refuse a request. A panic of it ends the request.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use kapi::{ApiServer, audit::{AuditEvent, AuditPolicy, AuditSink}, authn::UserInfo};
/// use tower::ServiceExt as _;
///
/// #[derive(Debug, Default)]
/// struct Lines(Mutex<Vec<String>>);
///
/// impl AuditSink for Lines {
///     fn record(&self, event: &AuditEvent<'_>) {
///         let user = event.user.map_or("", |user| &user.name);
///         self.0.lock().unwrap().push(format!("{user} {} {} {}", event.request.verb, event.request.resource, event.code));
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let lines = Arc::new(Lines::default());
/// let policy = AuditPolicy::parse(
///     "{apiVersion: audit.k8s.io/v1, kind: Policy, omitStages: [RequestReceived], rules: [{level: Metadata}]}",
/// )?;
/// let server = ApiServer::builder().audit(policy, Arc::clone(&lines) as _).build()?;
/// let request = http::Request::get("/api/v1/namespaces").body(http_body_util::Empty::<bytes::Bytes>::new())?;
/// server.as_user(UserInfo::new("ann", ["dev"])).oneshot(request).await?;
/// assert_eq!(*lines.0.lock().unwrap(), ["ann list namespaces 403"]);
/// # Ok(()) }
/// ```
pub trait AuditSink: Debug + Send + Sync + 'static {
    /// Takes note of a stage.
    fn record(&self, event: &AuditEvent<'_>);

    /// Takes note of a request before anything is done for it (`RequestReceived`). Default: [`record`](Self::record), and the
    /// request goes on.
    ///
    /// # Errors
    /// Why the event is not kept: the caller gets a 500, and nothing is done. For sinks without which nothing may happen.
    fn begin(&self, event: &AuditEvent<'_>) -> Result<(), String> {
        self.record(event);
        Ok(())
    }

    /// Hands on what waits. Called at the end of a cluster, which waits [`FLUSH_MAX`] for it. Default: nothing waits.
    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// How long the end of a server waits for its audit's sink.
pub const FLUSH_MAX: Duration = Duration::from_secs(10);

impl AuditSink for Vec<Arc<dyn AuditSink>> {
    /// Tells all of them, in their order.
    fn record(&self, event: &AuditEvent<'_>) {
        self.iter().for_each(|sink| sink.record(event));
    }

    /// All are told, also when one refuses; the first refusal counts.
    fn begin(&self, event: &AuditEvent<'_>) -> Result<(), String> {
        let said: Vec<_> = self.iter().map(|sink| sink.begin(event)).collect();
        said.into_iter().collect()
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(futures::future::join_all(self.iter().map(|sink| sink.flush())).await) })
    }
}
