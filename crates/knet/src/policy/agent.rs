//! Follows NetworkPolicies, pods and namespaces and tells an enforcer what to do.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kreconcile::{Change, Informer, Informers, RunError, Runnable, Selection};
use tokio_util::sync::CancellationToken;

use super::{Compiler, Name, PodFacts, PolicyEnforcer, PolicyFacts};

/// How long after a failure the enforcer is told again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// Keeps a node's enforcer up to date.
///
/// ```no_run
/// # fn example(informers: &kreconcile::Informers) {
/// use std::sync::Arc;
/// use kreconcile::{Manager, Start};
/// use knet::policy::{PolicyAgent, nftables::NftablesPolicies};
/// let agent = PolicyAgent::new(informers, Arc::new(NftablesPolicies::default()), Some("node-1".into()));
/// let manager = Manager::new().add(Start::Always, agent);
/// # }
/// ```
#[derive(Debug)]
pub struct PolicyAgent {
    policies: Informer<NetworkPolicy>,
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    enforcer: Arc<dyn PolicyEnforcer>,
    node: Option<String>,
}

fn name(change: &Change) -> Name {
    let header = change.header();
    (Arc::from(&*header.namespace), Arc::from(&*header.name))
}

fn tell_policies(compiler: &mut Compiler, batch: &[Change]) {
    for change in batch {
        let policy = change.new_as::<NetworkPolicy>();
        compiler.set_policy(name(change), policy.and_then(|policy| PolicyFacts::of(&policy)));
    }
}

fn tell_pods(compiler: &mut Compiler, batch: &[Change]) {
    for change in batch {
        let pod = change.new_as::<Pod>();
        compiler.set_pod(name(change), pod.and_then(|pod| PodFacts::of(&pod)));
    }
}

fn tell_namespaces(compiler: &mut Compiler, batch: &[Change]) {
    for change in batch {
        let labels = change.new.as_ref().map(|namespace| {
            let labels = namespace.header().labels.iter();
            labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        });
        compiler.set_namespace(name(change).1, labels);
    }
}

impl PolicyAgent {
    /// An agent that tells `enforcer`, which stands on `node`; without a node it is told of all pods.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn new(informers: &Informers, enforcer: Arc<dyn PolicyEnforcer>, node: Option<String>) -> Self {
        Self {
            policies: informers.of::<NetworkPolicy>(Selection::all()),
            pods: informers.of::<Pod>(Selection::all()),
            namespaces: informers.of::<Namespace>(Selection::all()),
            enforcer,
            node,
        }
    }

    async fn follow(&self) {
        let mut policies = self.policies.subscribe();
        let mut pods = self.pods.subscribe();
        let mut namespaces = self.namespaces.subscribe();
        let mut compiler = Compiler::new(self.node.clone());
        // The first table is told when it is whole, so that nothing is cut for want of its peers.
        self.policies.synced().await;
        self.pods.synced().await;
        self.namespaces.synced().await;
        tell_namespaces(&mut compiler, &namespaces.try_next());
        tell_pods(&mut compiler, &pods.try_next());
        tell_policies(&mut compiler, &policies.try_next());
        let mut failed = !self.enforce(&mut compiler).await;
        loop {
            tokio::select! {
                batch = policies.next() => {
                    let Some(batch) = batch else { return };
                    tell_policies(&mut compiler, &batch);
                }
                batch = pods.next() => {
                    let Some(batch) = batch else { return };
                    tell_pods(&mut compiler, &batch);
                }
                batch = namespaces.next() => {
                    let Some(batch) = batch else { return };
                    tell_namespaces(&mut compiler, &batch);
                }
                () = tokio::time::sleep(RETRY_AFTER), if failed => {}
            }
            if failed || !compiler.change().is_empty() {
                failed = !self.enforce(&mut compiler).await;
            }
        }
    }

    async fn enforce(&self, compiler: &mut Compiler) -> bool {
        match self.enforcer.enforce(compiler.table(), compiler.change()).await {
            Ok(()) => {
                compiler.settle();
                true
            }
            Err(error) => {
                tracing::warn!(%error, "network policies are not enforced yet");
                false
            }
        }
    }
}

#[async_trait]
impl Runnable for PolicyAgent {
    fn name(&self) -> &str {
        "network-policy"
    }

    async fn run(&self, stop: CancellationToken) -> Result<(), RunError> {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow() => {}
        }
        Ok(())
    }
}
