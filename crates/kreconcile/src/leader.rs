//! One of several: leader election by Lease.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kcore::{Clock, clock::format_micro_time};
use kube::Client;
use rand::Rng;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::request::{self, Requests};

/// How long others wait, from the last renewal they have seen, before they take the lease (client-go's default).
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// How long a leader tries to renew before it gives up (client-go's default).
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait between two tries (client-go's default).
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// By how much the wait between two tries is made longer, at most, at random (client-go's `JitterFactor`).
pub const RETRY_JITTER: f64 = 1.2;

/// Makes sure that one of several acts at a time, by a `coordination.k8s.io/v1` Lease, as client-go's `leaderelection`.
///
/// Who leads is decided by compare-and-swap on the Lease. Expiry goes by how long *this* process has seen the record
/// unchanged, so clocks need not agree. The leader stops itself after [`RENEW_DEADLINE`] without a renewal, before others
/// may start after [`LEASE_DURATION`]. For a moment there can still be two leaders if a process stands still; writes
/// that must not happen twice carry a precondition, or [`Leadership::term`] as a fencing token.
///
/// ```no_run
/// # async fn example(client: kube::Client, clock: std::sync::Arc<dyn kcore::Clock>) {
/// use kreconcile::LeaderElector;
/// use tokio_util::sync::CancellationToken;
///
/// let elector = LeaderElector::new(client, clock, "kube-system", "my-controller", "host-1_6f9c");
/// elector.run(CancellationToken::new(), |leadership| async move {
///     println!("leading, term {}", leadership.term);
///     leadership.lost.cancelled().await;
/// }).await;
/// # }
/// ```
pub struct LeaderElector {
    requests: Requests,
    clock: Arc<dyn Clock>,
    namespace: String,
    name: String,
    identity: String,
    durations: Durations,
    observed: Mutex<Observed>,
    leader: watch::Sender<String>,
}

#[derive(Clone, Copy, Debug)]
struct Durations {
    lease: Duration,
    renew: Duration,
    retry: Duration,
}

/// The Lease as last seen, and when it was first seen so.
#[derive(Default)]
struct Observed {
    lease: Option<Value>,
    at: Option<Instant>,
}

/// What a leader is given.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Leadership {
    /// Cancelled when the lease is lost or the elector is told to stop: the leader must then end.
    pub lost: CancellationToken,
    /// The Lease's count of transitions: it grows with each change of leader.
    pub term: i64,
}

impl fmt::Debug for LeaderElector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderElector")
            .field("lease", &format_args!("{}/{}", self.namespace, self.name))
            .field("identity", &self.identity)
            .field("leader", &*self.leader.borrow())
            .finish_non_exhaustive()
    }
}

impl LeaderElector {
    /// A candidate called `identity`, unique among the candidates, for the Lease `namespace`/`name`.
    pub fn new(
        client: Client,
        clock: Arc<dyn Clock>,
        namespace: impl Into<String>,
        name: impl Into<String>,
        identity: impl Into<String>,
    ) -> Self {
        Self {
            requests: Requests::new(client),
            clock,
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            durations: Durations { lease: LEASE_DURATION, renew: RENEW_DEADLINE, retry: RETRY_PERIOD },
            observed: Mutex::default(),
            leader: watch::Sender::new(String::new()),
        }
    }

    /// Other times than the defaults. `lease` must be longer than `renew`, and that longer than `retry` times
    /// [`RETRY_JITTER`]; values that are not are raised.
    #[must_use]
    pub fn durations(mut self, lease: Duration, renew: Duration, retry: Duration) -> Self {
        let renew = renew.max(retry.mul_f64(RETRY_JITTER) + Duration::from_millis(1));
        self.durations = Durations { lease: lease.max(renew + Duration::from_secs(1)), renew, retry };
        self
    }

    /// Who leads, as far as is known; empty when nobody does.
    #[must_use]
    pub fn leader(&self) -> watch::Receiver<String> {
        self.leader.subscribe()
    }

    /// Whether this candidate leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        *self.leader.borrow() == self.identity
    }

    /// Takes part until `stop`: each time the lease is won, `lead` is called, told when it is lost, and waited for. At
    /// the stop the lease is given back, after `lead` has ended.
    ///
    /// # Cancel safety
    /// When the future is dropped so is what `lead` gave; the lease then runs out.
    pub async fn run<F: Future<Output = ()>>(&self, stop: CancellationToken, lead: impl Fn(Leadership) -> F) {
        while !stop.is_cancelled() {
            let Some(term) = stop.run_until_cancelled(self.acquire()).await else { return };
            tracing::info!(lease = self.name, identity = self.identity, term, "became the leader");
            let lost = CancellationToken::new();
            let leading = lead(Leadership { lost: lost.clone(), term });
            tokio::pin!(leading);
            tokio::select! {
                () = self.renew() => tracing::warn!(lease = self.name, "lost the lease"),
                () = &mut leading => {
                    // The leader has nothing more to do, but keeps the others out until the stop.
                    tokio::select! {
                        () = self.renew() => {}
                        () = stop.cancelled() => self.release().await,
                    }
                    continue;
                }
                () = stop.cancelled() => {
                    lost.cancel();
                    // Renewing goes on while the leader winds up, so that nobody starts beside it.
                    tokio::select! {
                        () = &mut leading => {}
                        () = async { self.renew().await; std::future::pending().await } => {}
                    }
                    self.release().await;
                    return;
                }
            }
            lost.cancel();
            leading.await;
        }
    }

    async fn acquire(&self) -> i64 {
        loop {
            match self.try_acquire_or_renew().await {
                Ok(Some(term)) => return term,
                Ok(None) => {}
                Err(error) => tracing::debug!(lease = self.name, %error, "the lease can't be acquired"),
            }
            let longer = rand::rng().random_range(0.0..RETRY_JITTER);
            tokio::time::sleep(self.durations.retry.mul_f64(1.0 + longer)).await;
        }
    }

    /// Renews until that fails for too long.
    async fn renew(&self) {
        let mut renewed = now();
        loop {
            tokio::time::sleep(self.durations.retry).await;
            let deadline = renewed + self.durations.renew;
            match tokio::time::timeout_at(deadline, self.try_acquire_or_renew()).await {
                Ok(Ok(Some(_))) => renewed = now(),
                Ok(Ok(None)) => tracing::debug!(lease = self.name, "another one holds the lease"),
                Ok(Err(error)) => tracing::warn!(lease = self.name, %error, "the lease can't be renewed"),
                Err(_) => {}
            }
            if now() >= deadline {
                self.leader.send_replace(String::new());
                return;
            }
        }
    }

    fn path(&self, name: &str) -> String {
        let namespace = &self.namespace;
        let slash = if name.is_empty() { "" } else { "/" };
        format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases{slash}{name}")
    }

    fn observed(&self) -> std::sync::MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, lease: Value) {
        let mut observed = self.observed();
        if observed.lease.as_ref().is_none_or(|known| known["spec"] != lease["spec"]) {
            observed.at = Some(now());
        }
        self.leader.send_if_modified(|leader| {
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
            let changed = leader != holder;
            if changed {
                holder.clone_into(leader);
            }
            changed
        });
        observed.lease = Some(lease);
    }

    /// The record is another's and has not been seen to run out.
    fn held_by_another(&self) -> bool {
        let observed = self.observed();
        let (Some(lease), Some(at)) = (&observed.lease, observed.at) else { return false };
        let spec = &lease["spec"];
        let holder = spec["holderIdentity"].as_str().unwrap_or_default();
        let seconds = spec["leaseDurationSeconds"].as_u64().unwrap_or_default();
        !holder.is_empty() && holder != self.identity && now() < at + Duration::from_secs(seconds)
    }

    /// The number of transitions when this candidate holds the lease after the call, `None` when another does.
    async fn try_acquire_or_renew(&self) -> Result<Option<i64>, kube::Error> {
        // A leader knows what it wrote last and saves itself the reading.
        let mine =
            self.observed().lease.clone().filter(|lease| lease["spec"]["holderIdentity"] == *self.identity);
        if let Some(lease) = mine
            && let Ok(term) = self.write(lease).await
        {
            return Ok(Some(term));
        }
        let lease = match self.requests.get::<Value>(&self.path(&self.name)).await {
            Ok(lease) => lease,
            Err(error) if request::is_not_found(&error) => return self.create().await.map(Some),
            Err(error) => return Err(error),
        };
        self.observe(lease.clone());
        if self.held_by_another() {
            return Ok(None);
        }
        match self.write(lease).await {
            Ok(term) => Ok(Some(term)),
            Err(error) if request::is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self) -> Result<i64, kube::Error> {
        let now = format_micro_time(self.clock.now());
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self.namespace, "name": self.name},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": self.durations.lease.as_secs(),
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        });
        let body = serde_json::to_vec(&lease).map_err(kube::Error::SerdeError)?;
        self.observe(self.requests.create(&self.path(""), body).await?);
        Ok(0)
    }

    /// Writes the record as this candidate's, if it is still the one that was read.
    async fn write(&self, mut lease: Value) -> Result<i64, kube::Error> {
        let now = format_micro_time(self.clock.now());
        let spec = &mut lease["spec"];
        let transitions = spec["leaseTransitions"].as_i64().unwrap_or_default();
        let term = if spec["holderIdentity"] == *self.identity { transitions } else { transitions + 1 };
        if term != transitions || !spec["acquireTime"].is_string() {
            spec["acquireTime"] = now.as_str().into();
        }
        spec["holderIdentity"] = self.identity.as_str().into();
        spec["leaseDurationSeconds"] = self.durations.lease.as_secs().into();
        spec["leaseTransitions"] = term.into();
        spec["renewTime"] = now.into();
        self.observe(self.requests.replace(&self.path(&self.name), &lease).await?);
        Ok(term)
    }

    /// Gives the lease back, so that others need not wait until it runs out.
    async fn release(&self) {
        let Some(mut lease) = self.observed().lease.clone() else { return };
        if lease["spec"]["holderIdentity"] != *self.identity {
            return;
        }
        let now = format_micro_time(self.clock.now());
        let spec = &mut lease["spec"];
        spec["holderIdentity"] = "".into();
        spec["leaseDurationSeconds"] = 1.into();
        spec["acquireTime"] = now.as_str().into();
        spec["renewTime"] = now.into();
        let path = self.path(&self.name);
        let write = self.requests.replace::<Value>(&path, &lease);
        match tokio::time::timeout(self.durations.renew, write).await {
            Ok(Ok(lease)) => self.observe(lease),
            Ok(Err(error)) => tracing::debug!(lease = self.name, %error, "the lease can't be given back"),
            Err(_) => tracing::debug!(lease = self.name, "the lease can't be given back in time"),
        }
    }
}

fn now() -> Instant {
    Instant::now()
}
