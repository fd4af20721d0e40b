//! The controllers of kube-controller-manager. See [`defaults`] for the table.
//!
//! Each is a function from a [`Context`] to something that runs, so any of them can be left out or replaced. What a
//! controller decides is a pure function in its file; the loop around it does the requests. Names, reasons, messages and
//! conditions are those of Kubernetes 1.37.

use std::{fmt, sync::Arc, time::Duration};

use kcore::Clock;
use kube::Client;

use crate::{events::EventRecorder, informer::Informers, manager::Runnable, request::Requests};

mod claim;
mod pod_state;
mod pod_writes;
mod replica_set;

pub use replica_set::replica_set;

/// Gives the client of the controller with this name.
pub type IdentityFn = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// What the built-in controllers share: informers, time, events and settings.
#[derive(Clone)]
pub struct Context {
    informers: Informers,
    clock: Arc<dyn Clock>,
    recorder: EventRecorder,
    identities: Option<IdentityFn>,
    settings: Settings,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What can be set, with upstream's defaults.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// The bundle in PEM that goes into each namespace's ConfigMap `kube-root-ca.crt`. Default: none, and no ConfigMap.
    pub root_ca: Option<Arc<str>>,
    /// How long a node may be silent before it counts as lost (`--node-monitor-grace-period`). Default: 50 s.
    pub node_monitor_grace: Duration,
    /// How long a node that has just appeared may be silent (`--node-startup-grace-period`). Default: 60 s.
    pub node_startup_grace: Duration,
    /// How often nodes are looked at (`--node-monitor-period`). Default: 5 s.
    pub node_monitor_period: Duration,
    /// How many ended pods are kept in the cluster (`--terminated-pod-gc-threshold`); 0 keeps all. Default: 12,500.
    pub terminated_pods_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            root_ca: None,
            node_monitor_grace: Duration::from_secs(50),
            node_startup_grace: Duration::from_secs(60),
            node_monitor_period: Duration::from_secs(5),
            terminated_pods_max: 12_500,
        }
    }
}

impl Context {
    /// A context whose controllers all use `client`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> Self {
        Self {
            recorder: EventRecorder::new(client.clone(), Arc::clone(&clock), "kube-controller-manager"),
            informers: Informers::new(client),
            clock,
            identities: None,
            settings: Settings::default(),
        }
    }

    /// Each controller writes with an identity of its own, which this function gives by the controller's name. Informers
    /// and events keep the shared one.
    #[must_use]
    pub fn identities(mut self, identities: IdentityFn) -> Self {
        self.identities = Some(identities);
        self
    }

    /// Other settings than the defaults.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// The informers that all controllers share.
    #[must_use]
    pub fn informers(&self) -> &Informers {
        &self.informers
    }

    /// The clock that all controllers go by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// A recorder for the events of a component.
    #[must_use]
    pub fn recorder(&self, component: &str) -> EventRecorder {
        self.recorder.component(component)
    }

    pub(crate) fn requests(&self, controller: &str) -> Requests {
        let client = match &self.identities {
            Some(identities) => identities(controller),
            None => self.informers.client().clone(),
        };
        Requests::new(client)
    }
}

/// Every built-in controller, by name, in the order in which they are started.
#[must_use]
pub fn defaults(context: &Context) -> Vec<Arc<dyn Runnable>> {
    vec![Arc::new(replica_set(context))]
}
