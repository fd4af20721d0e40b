//! A container runtime of your own: this one lets the simulated runtime do the work and tells what is started.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Result, ensure};
use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod;
use kcore::SystemClock;
use kplane::Cluster;
use kruntime::{
    ContainerRuntime, PodUid, RuntimeError,
    runtime::{
        ChangeStream, ContainerConfig, ExecRequest, LogOptions, LogStream, ObservedPod, RuntimeInfo,
        SandboxConfig, Session, simulated::SimulatedRuntime,
    },
};
use kube::{Api, api::PostParams};
use serde_json::json;

#[derive(Debug)]
struct Telling {
    inner: SimulatedRuntime,
    started: Mutex<Vec<String>>,
}

#[async_trait]
impl ContainerRuntime for Telling {
    fn info(&self) -> RuntimeInfo {
        RuntimeInfo { version: "telling://1.0".to_owned(), ..self.inner.info() }
    }

    async fn start(&self, pod: &PodUid, config: &ContainerConfig) -> Result<(), RuntimeError> {
        let told = format!("{} from {}", config.name, config.image);
        println!("starting {told}");
        self.started.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(told);
        self.inner.start(pod, config).await
    }

    async fn run_pod(&self, pod: &PodUid, config: &SandboxConfig) -> Result<Vec<IpAddr>, RuntimeError> {
        self.inner.run_pod(pod, config).await
    }

    async fn stop(&self, pod: &PodUid, container: &str, grace: Duration) -> Result<(), RuntimeError> {
        self.inner.stop(pod, container, grace).await
    }

    async fn remove_pod(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        self.inner.remove_pod(pod).await
    }

    fn observe(&self, pod: &PodUid) -> ObservedPod {
        self.inner.observe(pod)
    }

    fn pods(&self) -> Vec<PodUid> {
        self.inner.pods()
    }

    fn changes(&self) -> ChangeStream {
        self.inner.changes()
    }

    async fn exec(
        &self,
        pod: &PodUid,
        container: &str,
        request: ExecRequest,
    ) -> Result<Session, RuntimeError> {
        self.inner.exec(pod, container, request).await
    }

    async fn attach(&self, pod: &PodUid, container: &str) -> Result<Session, RuntimeError> {
        self.inner.attach(pod, container).await
    }

    async fn logs(
        &self,
        pod: &PodUid,
        container: &str,
        options: LogOptions,
    ) -> Result<LogStream, RuntimeError> {
        self.inner.logs(pod, container, options).await
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let runtime =
        Arc::new(Telling { inner: SimulatedRuntime::new(Arc::new(SystemClock)), started: Mutex::default() });
    let cluster = Cluster::builder().runtime(Arc::clone(&runtime) as _).start().await?;
    let patience = Duration::from_secs(10);
    let account = |account: Option<&k8s_openapi::api::core::v1::ServiceAccount>| account.is_some();
    cluster.wait_until("default", "default", patience, account).await?;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "node-1", "containers": [{"name": "c", "image": "example/c"}]}});
    Api::<Pod>::default_namespaced(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let running = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref())
            .is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    cluster.wait_until::<Pod>("default", "p", patience, running).await?;
    ensure!(
        *runtime.started.lock().unwrap_or_else(std::sync::PoisonError::into_inner) == ["c from example/c"]
    );
    cluster.shutdown().await?;
    Ok(())
}
