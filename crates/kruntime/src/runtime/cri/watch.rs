//! Notices what the server's containers do by themselves: by its events where it has them, else by looking again and again.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::MissedTickBehavior};
use tonic::{Code, Status, Streaming};

use super::{
    Shared,
    convert::owned,
    pods::{self, Known, Pod},
    proto as pb,
};
use crate::{
    logs::{self, FILE_BYTES_MAX, Progress},
    runtime::{ContainerPhase, PodUid},
};

/// How often a server without events is looked at (upstream's `genericPlegRelistPeriod`).
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often one with events is, in case that one was lost (upstream's `eventedPlegRelistPeriod`).
pub const LOOK_EVERY_WITH_EVENTS: Duration = Duration::from_secs(300);
/// How often the sizes of logs are looked at (upstream's `containerLogMonitorInterval`).
const ROTATE_EVERY: Duration = Duration::from_secs(10);
/// How often a log is looked at while somebody follows it: a server doesn't tell that it wrote.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// Goes on until the runtime is gone.
pub(super) async fn run(shared: Weak<Shared>) {
    let mut has_events = true;
    loop {
        let events = match shared.upgrade() {
            None => return,
            Some(shared) if has_events => {
                shared
                    .client
                    .stream::<_, pb::ContainerEvent>("RuntimeService/GetContainerEvents", pb::Empty {})
                    .await
            }
            Some(_) => Err(Status::new(Code::Unimplemented, "asked before")),
        };
        match events {
            Ok(events) => follow_events(&shared, events).await,
            Err(error) => {
                has_events = error.code() != Code::Unimplemented;
                poll(&shared, has_events).await;
            }
        }
    }
}

/// Looks at the server until the runtime is gone; once only when events are to be tried again.
async fn poll(shared: &Weak<Shared>, once: bool) {
    let mut rotated = tokio::time::Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(shared) = shared.upgrade() else { return };
        look(&shared).await;
        if rotated.elapsed() >= ROTATE_EVERY {
            rotated = tokio::time::Instant::now();
            rotate_logs(&shared).await;
        }
        if once {
            return;
        }
    }
}

async fn follow_events(weak: &Weak<Shared>, mut events: Streaming<pb::ContainerEvent>) {
    let mut looks = tokio::time::interval(LOOK_EVERY_WITH_EVENTS);
    let mut rotations = tokio::time::interval(ROTATE_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rotations.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.message() => {
                let Some(shared) = weak.upgrade() else { return };
                let Ok(Some(event)) = event else {
                    // What happened meanwhile was not told.
                    look(&shared).await;
                    return tokio::time::sleep(LOOK_EVERY).await;
                };
                let uid = event.pod_sandbox_status.and_then(|status| status.metadata).map(|names| names.uid);
                let pod = uid.and_then(|uid| shared.pod(&PodUid::from(uid.as_str())).ok());
                match pod {
                    Some(pod) => look_at(&shared, vec![pod]).await,
                    None => continue,
                }
            }
            _ = looks.tick() => {
                let Some(shared) = weak.upgrade() else { return };
                look(&shared).await;
            }
            _ = rotations.tick() => {
                let Some(shared) = weak.upgrade() else { return };
                rotate_logs(&shared).await;
            }
        }
    }
}

/// Looks at all pods.
pub(super) async fn look(shared: &Shared) {
    let pods: Vec<_> = shared.pods().values().cloned().collect();
    if !pods.is_empty() {
        look_at(shared, pods).await;
    }
}

/// Looks at these pods: what has ended since is noted and told. What was known before the question counts alone, so an answer
/// can't be older than what it is compared with.
async fn look_at(shared: &Shared, pods: Vec<Arc<Pod>>) {
    let sandboxes: Vec<_> = pods.iter().filter(|pod| pod.is_ready()).collect();
    let running: Vec<(&Arc<Pod>, Arc<Known>)> = pods
        .iter()
        .flat_map(|pod| {
            let running: Vec<_> = pod.containers().iter().filter(|c| c.is_running()).cloned().collect();
            running.into_iter().map(move |container| (pod, container))
        })
        .collect();
    let one = if let [pod] = &pods[..] { pod.sandbox.clone() } else { String::new() };
    if !running.is_empty() {
        let filter = pb::ContainerFilter {
            pod_sandbox_id: one.clone(),
            label_selector: owned(&shared.owner),
            ..pb::ContainerFilter::default()
        };
        let request = pb::ListContainersRequest { filter: Some(filter) };
        let listed = shared.client.call("RuntimeService/ListContainers", request).await;
        match listed {
            Ok(pb::ListContainersResponse { containers }) => {
                let states: HashMap<String, pb::ContainerState> =
                    containers.into_iter().map(|found| (found.id.clone(), found.state())).collect();
                for (pod, container) in running {
                    if states.get(&container.id) != Some(&pb::ContainerState::Running) {
                        refresh(shared, pod, &container).await;
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "the containers can't be listed"),
        }
    }
    if sandboxes.is_empty() {
        return;
    }
    let filter = pb::PodSandboxFilter { id: one, label_selector: owned(&shared.owner) };
    let request = pb::ListPodSandboxRequest { filter: Some(filter) };
    match shared.client.call("RuntimeService/ListPodSandbox", request).await {
        Ok(pb::ListPodSandboxResponse { items }) => {
            let ready: HashSet<String> = items
                .into_iter()
                .filter(|found| found.state() == pb::PodSandboxState::Ready)
                .map(|found| found.id)
                .collect();
            for pod in sandboxes {
                if !ready.contains(&pod.sandbox) && pod.ready.swap(false, Ordering::AcqRel) {
                    shared.changes.tell(&pod_uid(pod));
                }
            }
        }
        Err(error) => tracing::debug!(%error, "the sandboxes can't be listed"),
    }
}

fn pod_uid(pod: &Pod) -> PodUid {
    PodUid::from(pod.wire.metadata.as_ref().map_or("", |names| names.uid.as_str()))
}

/// Asks how a container is that was running.
pub(super) async fn refresh(shared: &Shared, pod: &Pod, container: &Known) {
    let now = shared.options.clock.now();
    let exit = match shared.status(&container.id).await {
        Ok(status) => match pods::phase(&status, now) {
            Some(ContainerPhase::Exited(exit)) => exit,
            Some(ContainerPhase::Running { .. }) | None => return,
        },
        Err(error) if error.code() == Code::NotFound => {
            let ContainerPhase::Running { started_at } = *container.phase.borrow() else { return };
            pods::lost(started_at, now)
        }
        Err(error) => return tracing::debug!(%error, "a container's status can't be had"),
    };
    if container.end(exit) {
        shared.changes.tell(&pod_uid(pod));
    }
}

/// Rotates logs that have grown too long, and has the server begin new files.
async fn rotate_logs(shared: &Shared) {
    let pods: Vec<_> = shared.pods().values().cloned().collect();
    let running = pods.iter().flat_map(|pod| pod.containers().clone()).filter(|c| c.is_running());
    for container in running {
        if std::fs::metadata(&container.log).is_ok_and(|found| found.len() >= FILE_BYTES_MAX)
            && let Err(error) = rotate(shared, &container).await
        {
            tracing::warn!(container = container.id, %error, "a container's log can't be rotated");
        }
    }
}

pub(super) async fn rotate(shared: &Shared, container: &Known) -> Result<(), Status> {
    logs::shift(&container.log).map_err(|error| Status::new(Code::Internal, error.to_string()))?;
    let request = pb::ContainerId { container_id: container.id.clone() };
    shared.client.call::<_, pb::Empty>("RuntimeService/ReopenContainerLog", request).await.map(drop)
}

/// How far a log has come, as long as somebody wants to know.
pub(super) fn progress(container: &Arc<Known>) -> watch::Receiver<Progress> {
    let (sender, receiver) = watch::channel(Progress::default());
    let (log, mut phase) = (container.log.clone(), container.phase.subscribe());
    tokio::spawn(async move {
        let mut file = 0;
        loop {
            // Whether it had ended before the file was looked at: nothing is written afterwards.
            let ended = !matches!(*phase.borrow_and_update(), ContainerPhase::Running { .. });
            let (number, bytes) = measure(&log).unwrap_or((file, 0));
            sender.send_if_modified(|progress| {
                let rotations = progress.rotations + u64::from(file != 0 && number != file);
                let next = Progress { rotations, bytes, finished: ended };
                let is_news = *progress != next;
                *progress = next;
                is_news
            });
            file = number;
            if ended {
                return;
            }
            tokio::select! {
                () = sender.closed() => return,
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
                // The container is gone as a whole when nobody can tell.
                changed = phase.changed() => if changed.is_err() { return },
            }
        }
    });
    receiver
}

/// A file's number and size.
fn measure(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.len()))
}
