//! What every [`ContainerRuntime`] has to keep, as a test.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::io::AsyncReadExt;

use crate::runtime::{
    ContainerConfig, ContainerPhase, ContainerRuntime, ExecRequest, Exit, LogOptions, ObservedContainer,
    PodUid, RuntimeError, SandboxConfig,
};

#[cfg(all(feature = "plugins", target_os = "linux"))]
pub mod csi;
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub mod device;
#[cfg(all(feature = "plugins", target_os = "linux"))]
pub mod dra;
#[cfg(all(feature = "oci", target_os = "linux"))]
pub mod images;

/// How long the suite waits for anything.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// A sandbox for tests. Its annotations tell the simulated runtime what the commands of [`container`] tell a real one.
#[must_use]
pub fn sandbox(name: &str) -> SandboxConfig {
    let script = [
        ("run-time.short", "0s"),
        ("exit-code.short", "3"),
        ("log.short", "out\nmore"),
        ("start-error.missing", "no such program"),
        ("log.long", "ready"),
    ];
    let prefix = crate::runtime::simulated::ANNOTATION_PREFIX;
    let annotations: BTreeMap<_, _> =
        script.iter().map(|(key, value)| (format!("{prefix}{key}"), (*value).to_owned())).collect();
    SandboxConfig {
        namespace: "default".into(),
        name: name.into(),
        node: "node".into(),
        hostname: name.to_owned(),
        annotations: Arc::new(annotations),
        ..SandboxConfig::default()
    }
}

/// A container for tests: `short` writes two lines and ends with 3, `long` runs until it is stopped, `missing` can't be
/// started.
#[must_use]
pub fn container(name: &str, attempt: u32) -> ContainerConfig {
    let command: &[&str] = match name {
        "short" => &["sh", "-c", "echo out; echo more; exit 3"],
        "missing" => &["no-such-program-anywhere"],
        _ => &["sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done"],
    };
    ContainerConfig {
        name: name.into(),
        attempt,
        image: "test".to_owned(),
        command: command.iter().map(|text| (*text).to_owned()).collect(),
        ..ContainerConfig::default()
    }
}

/// Containers that run get other shares of the node; those that don't run get none. `has` says whether the container has the shares, as far
/// as can be seen from outside.
pub async fn check_resize(
    runtime: Arc<dyn ContainerRuntime>,
    has: impl Fn(&PodUid, &str, &crate::runtime::Resources) -> bool,
) {
    let shares = |cpu: i64, memory: i64| crate::runtime::Resources {
        cpu_shares: Some(256),
        cpu_quota_us: Some(cpu),
        cpu_period_us: Some(100_000),
        memory_bytes_max: Some(memory),
        ..crate::runtime::Resources::default()
    };
    let uid = PodUid::from("resized");
    runtime.run_pod(&uid, &sandbox("resized")).await.unwrap();
    let refused = runtime.resize(&uid, "long", &shares(20_000, 64 << 20)).await;
    assert!(matches!(refused, Err(RuntimeError::NotRunning(_))), "{refused:?}");
    let mut config = container("long", 0);
    config.resources = shares(20_000, 64 << 20);
    runtime.start(&uid, &config).await.unwrap();
    assert!(has(&uid, "long", &config.resources));
    for wanted in [shares(50_000, 128 << 20), shares(10_000, 32 << 20)] {
        runtime.resize(&uid, "long", &wanted).await.unwrap();
        assert!(has(&uid, "long", &wanted), "{wanted:?}");
    }
    let seen = runtime.observe(&uid);
    let phase = &seen.containers[0].phase;
    assert!(matches!(phase, ContainerPhase::Running { .. }) && seen.containers[0].attempt == 0, "{seen:?}");
    runtime.remove_pod(&uid).await.unwrap();
}

/// Containers are bound to processors when they start, and to others while they run. `has` says whether a container is bound to these, as far as
/// can be seen from outside; `first` and `second` are processors that the machine has.
pub async fn check_cpus(
    runtime: Arc<dyn ContainerRuntime>,
    [first, second]: [crate::managers::CpuSet; 2],
    has: impl Fn(&PodUid, &str, &crate::managers::CpuSet) -> bool,
) {
    let uid = PodUid::from("bound");
    runtime.run_pod(&uid, &sandbox("bound")).await.unwrap();
    let refused = runtime.set_cpus(&uid, "long", &first).await;
    assert!(matches!(refused, Err(RuntimeError::NotRunning(_))), "{refused:?}");
    let mut config = container("long", 0);
    config.resources.cpuset_cpus = Some(first.to_string());
    config.resources.cpu_shares = Some(256);
    runtime.start(&uid, &config).await.unwrap();
    assert!(has(&uid, "long", &first));
    for wanted in [&second, &first, &first] {
        runtime.set_cpus(&uid, "long", wanted).await.unwrap();
        assert!(has(&uid, "long", wanted), "{wanted}");
    }
    let seen = runtime.observe(&uid);
    let phase = &seen.containers[0].phase;
    assert!(matches!(phase, ContainerPhase::Running { .. }) && seen.containers[0].attempt == 0, "{seen:?}");
    runtime.remove_pod(&uid).await.unwrap();
}

/// Pods of a RuntimeClass: of the handler `known`, which `runtime` was configured with, they run; of another they are refused.
pub async fn check_handlers(runtime: Arc<dyn ContainerRuntime>, known: &str) {
    let of = |handler: &str| SandboxConfig { runtime_handler: handler.to_owned(), ..sandbox("handled") };
    let (uid, other) = (PodUid::from("handled"), PodUid::from("not-handled"));
    let refused = runtime.run_pod(&other, &of("no-such-handler")).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::Config(_)), "{refused}");
    assert_eq!(refused.to_string(), "no runtime for \"no-such-handler\" is configured");
    assert!(runtime.observe(&other).addresses.is_none());
    assert!(runtime.info().handlers.iter().any(|handler| handler == known));
    runtime.run_pod(&uid, &of(known)).await.unwrap();
    runtime.start(&uid, &container("long", 0)).await.unwrap();
    let seen = runtime.observe(&uid);
    assert!(matches!(seen.containers[0].phase, ContainerPhase::Running { .. }), "{seen:?}");
    runtime.stop(&uid, "long", Duration::from_secs(10)).await.unwrap();
    runtime.remove_pod(&uid).await.unwrap();
    assert_eq!(runtime.observe(&uid), crate::runtime::ObservedPod::default());
}

/// Waits until the pod's container is as `is` wants it.
///
/// # Panics
/// When that takes longer than half a minute.
pub async fn wait_for(
    runtime: &dyn ContainerRuntime,
    pod: &PodUid,
    name: &str,
    is: impl Fn(&ObservedContainer) -> bool,
) -> ObservedContainer {
    let mut changes = runtime.changes();
    let found = async {
        loop {
            let observed = runtime.observe(pod);
            if let Some(found) = observed.containers.into_iter().find(|c| *c.name == *name && is(c)) {
                return found;
            }
            assert!(changes.next().await.is_some(), "the changes end while the runtime lives");
        }
    };
    tokio::time::timeout(WAIT_MAX, found).await.expect("the container never came to be as expected")
}

fn exit(container: &ObservedContainer) -> Option<&Exit> {
    match &container.phase {
        ContainerPhase::Exited(exit) => Some(exit),
        ContainerPhase::Running { .. } => None,
    }
}

async fn log(runtime: &dyn ContainerRuntime, pod: &PodUid, name: &str, options: LogOptions) -> String {
    let stream = runtime.logs(pod, name, options).await.expect("a container that was started has a log");
    let pieces: Vec<_> = stream.map(|piece| piece.expect("a log can be read")).collect().await;
    String::from_utf8_lossy(&pieces.concat()).into_owned()
}

/// Checks the promises of [`ContainerRuntime`] on a runtime that has no pods.
///
/// # Panics
/// When a promise is broken.
pub async fn check_runtime(runtime: Arc<dyn ContainerRuntime>) {
    let runtime = &*runtime;
    check_sandboxes(runtime).await;
    check_exit_and_restart(runtime).await;
    check_start_error(runtime).await;
    check_stop_and_exec(runtime).await;
    assert!(runtime.pods().is_empty(), "pods that were removed are gone");
}

async fn check_sandboxes(runtime: &dyn ContainerRuntime) {
    let (one, other) = (PodUid::from("one"), PodUid::from("other"));
    assert_eq!(runtime.observe(&one).addresses, None, "a pod that isn't there is empty");
    let address: Vec<IpAddr> = runtime.run_pod(&one, &sandbox("one")).await.expect("a sandbox");
    let again = runtime.run_pod(&one, &sandbox("one")).await.expect("a sandbox that is there");
    assert_eq!(again, address, "a pod keeps its address");
    let second = runtime.run_pod(&other, &sandbox("other")).await.expect("a second sandbox");
    assert_ne!(second, address, "two pods have two addresses");
    assert_eq!(runtime.observe(&one).addresses, Some(address));
    assert_eq!(runtime.pods().len(), 2);
    runtime.remove_pod(&one).await.expect("a pod can be removed");
    runtime.remove_pod(&one).await.expect("a pod that isn't there is no error");
    runtime.remove_pod(&other).await.expect("a pod can be removed");
    let lost = runtime.start(&one, &container("short", 0)).await;
    assert!(matches!(lost, Err(RuntimeError::PodNotFound(_))), "a container needs a sandbox");
}

async fn check_exit_and_restart(runtime: &dyn ContainerRuntime) {
    let pod = PodUid::from("exits");
    runtime.run_pod(&pod, &sandbox("exits")).await.expect("a sandbox");
    runtime.start(&pod, &container("short", 0)).await.expect("a start");
    let first = wait_for(runtime, &pod, "short", |c| exit(c).is_some()).await;
    let ended = exit(&first).expect("it has ended");
    assert_eq!((ended.code, ended.reason, first.attempt), (3, "Error", 0));
    assert!(ended.started_at <= ended.finished_at);
    assert_eq!(log(runtime, &pod, "short", LogOptions::default()).await, "out\nmore\n");
    let follow = LogOptions { follow: true, tail_lines: Some(1), ..LogOptions::default() };
    assert_eq!(log(runtime, &pod, "short", follow).await, "more\n", "a followed log ends with its container");
    runtime.start(&pod, &container("short", 1)).await.expect("a restart");
    let second = wait_for(runtime, &pod, "short", |c| c.attempt == 1 && exit(c).is_some()).await;
    assert_ne!(first.id, second.id, "each start has an id of its own");
    let previous = LogOptions { attempt: Some(0), ..LogOptions::default() };
    assert_eq!(
        log(runtime, &pod, "short", previous).await,
        "out\nmore\n",
        "the log of the start before stays"
    );
    assert_eq!(runtime.observe(&pod).containers.len(), 1, "a restart replaces");
    runtime.stop(&pod, "short", Duration::ZERO).await.expect("stopping what doesn't run is no error");
    runtime.remove_pod(&pod).await.expect("a pod can be removed");
}

async fn check_start_error(runtime: &dyn ContainerRuntime) {
    let pod = PodUid::from("missing");
    runtime.run_pod(&pod, &sandbox("missing")).await.expect("a sandbox");
    runtime.start(&pod, &container("missing", 0)).await.expect("a program that can't be started is no error");
    let found = wait_for(runtime, &pod, "missing", |c| exit(c).is_some()).await;
    let ended = exit(&found).expect("it has ended");
    assert_eq!((ended.code, ended.reason), (128, "StartError"));
    assert!(ended.message.is_some());
    runtime.remove_pod(&pod).await.expect("a pod can be removed");
}

async fn check_stop_and_exec(runtime: &dyn ContainerRuntime) {
    let pod = PodUid::from("stops");
    runtime.run_pod(&pod, &sandbox("stops")).await.expect("a sandbox");
    runtime.start(&pod, &container("long", 0)).await.expect("a start");
    wait_for(runtime, &pod, "long", |c| exit(c).is_none()).await;
    let follow = LogOptions { follow: true, limit_bytes: Some(6), ..LogOptions::default() };
    assert_eq!(log(runtime, &pod, "long", follow).await, "ready\n");
    check_usage(runtime, &pod).await;
    let request = ExecRequest { command: vec!["echo".to_owned(), "hi".to_owned()], ..ExecRequest::default() };
    let mut session = runtime.exec(&pod, "long", request.clone()).await.expect("a program can be run");
    let mut text = String::new();
    let mut output = session.stdout.take().expect("there is output");
    output.read_to_string(&mut text).await.expect("output can be read");
    assert!(text.contains("hi"), "{text:?}");
    assert_eq!(session.exit.await.expect("an exit code"), 0);
    let attached = runtime.attach(&pod, "long").await.expect("a running container can be attached to");
    runtime.stop(&pod, "long", WAIT_MAX).await.expect("a stop");
    let found = wait_for(runtime, &pod, "long", |c| exit(c).is_some()).await;
    assert_eq!(exit(&found).map(|exit| exit.code), Some(0), "a container that ends in time ends by itself");
    assert_eq!(attached.exit.await.expect("an exit code"), 0, "an attachment ends with its container");
    let refused = runtime.exec(&pod, "long", request).await;
    assert!(matches!(refused, Err(RuntimeError::NotRunning(_))), "nothing runs in what has ended");
    let left: usize =
        runtime.usage(std::slice::from_ref(&pod)).await.iter().map(|(_, readings)| readings.len()).sum();
    assert_eq!(left, 0, "what doesn't run uses nothing");
    runtime.remove_pod(&pod).await.expect("a pod can be removed");
}

/// A runtime may know nothing of what is used; what it knows is of pods that it was asked about, and counts up.
async fn check_usage(runtime: &dyn ContainerRuntime, pod: &PodUid) {
    let asked = [PodUid::from("nobody"), pod.clone()];
    let first = runtime.usage(&asked).await;
    assert!(first.iter().all(|(uid, _)| uid == pod), "pods that aren't there are left out");
    let second = runtime.usage(&asked).await;
    for ((_, before), (_, after)) in first.iter().zip(&second) {
        assert_eq!(before.len(), 1, "a running container has one reading");
        assert!(*before[0].name == *"long" && before[0].cpu <= after[0].cpu, "{before:?} {after:?}");
    }
}
