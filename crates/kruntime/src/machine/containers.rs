//! The statuses of a pod's containers.

use std::sync::Arc;

use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, Pod, PodSpec, VolumeMountStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    Busy, Input, Memory, PodMachine, find, is_regular_init, restart::should_restart, restart_all, started,
};
use crate::runtime::{ContainerPhase, Exit, ObservedContainer, ProbeKind};

/// Which list of the status a container is in.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Role {
    Init,
    Main,
    Ephemeral,
}

/// `exit` as the API says it. Times have whole seconds there.
pub(super) fn terminated(exit: &Exit, id: &str, scheme: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(format!("{scheme}://{id}")),
        exit_code: exit.code,
        finished_at: Some(Time(exit.finished_at)),
        message: exit.message.clone(),
        reason: Some(exit.reason.to_owned()),
        signal: exit.signal,
        started_at: Some(Time(exit.started_at)),
    }
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..ContainerState::default()
    }
}

fn known<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}

/// How often the API says that the container was restarted: what a machine without memory goes on from.
pub(super) fn restart_count(pod: &Pod, name: &str) -> u32 {
    known(pod, name).map_or(0, |status| {
        let ran = status.container_id.is_some();
        u32::try_from(status.restart_count).unwrap_or_default() + u32::from(ran)
    })
}

impl PodMachine {
    /// The status of `container`.
    pub(super) fn container_status(
        &self,
        input: &Input<'_>,
        spec: &PodSpec,
        container: &Container,
        role: Role,
        ending: bool,
    ) -> ContainerStatus {
        let nothing = Memory::default();
        let memory = self.memory.get(container.name.as_str()).unwrap_or(&nothing);
        let seen = find(input.observed, &container.name);
        let name: Arc<str> = container.name.as_str().into();
        let starting = input.busy.contains(&Busy::Start(Arc::clone(&name)));
        let mut status = ContainerStatus {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            started: Some(false),
            volume_mounts: mounts(container),
            ..ContainerStatus::default()
        };
        status.last_state = memory
            .last
            .clone()
            .map(|last| ContainerState { terminated: Some(last), ..ContainerState::default() })
            .or_else(|| known(input.pod, &container.name).and_then(|status| status.last_state.clone()))
            // There even when it is empty, as upstream writes it.
            .or_else(|| Some(ContainerState::default()));
        if let Some(attempt) = self.removed_attempt(&container.name).filter(|_| seen.is_none()) {
            status.restart_count = i32::try_from(attempt).unwrap_or(i32::MAX);
            status.state = Some(match &memory.refused {
                Some(_) => not_started(input, spec, memory, container),
                None => waiting(restart_all::REASON, Some(restart_all::message())),
            });
            return status;
        }
        let Some(seen) = seen else {
            status.restart_count = known(input.pod, &container.name).map_or(0, |known| known.restart_count);
            status.state = Some(not_started(input, spec, memory, container));
            return status;
        };
        status.restart_count = i32::try_from(seen.attempt).unwrap_or(i32::MAX);
        status.container_id = Some(format!("{}://{}", input.scheme, seen.id));
        status.image_id = seen.image_id.clone().unwrap_or_else(|| status.image.clone());
        if let Some((given, has)) = self.shown_resources(container) {
            status.allocated_resources = given.requests;
            status.resources = Some(has);
        }
        match &seen.phase {
            ContainerPhase::Running { started_at } => {
                if starting {
                    status.state = Some(not_started(input, spec, memory, container));
                    return status;
                }
                status.state = Some(ContainerState {
                    running: Some(ContainerStateRunning { started_at: Some(Time(*started_at)) }),
                    ..ContainerState::default()
                });
                let started = role == Role::Ephemeral || started(input, container);
                status.started = Some(started);
                status.ready =
                    started && !is_regular_init(spec, container) && is_ready(input, container, &name);
            }
            ContainerPhase::Exited(exit) => {
                status.ready = exit.code == 0 && is_regular_init(spec, container);
                self.describe_exit(input, spec, container, seen, exit, ending, &mut status);
            }
        }
        status
    }

    /// A container that ended: it stays so, or waits for its restart.
    #[allow(clippy::too_many_arguments, reason = "the parts of one decision, used once")]
    fn describe_exit(
        &self,
        input: &Input<'_>,
        spec: &PodSpec,
        container: &Container,
        seen: &ObservedContainer,
        exit: &Exit,
        ending: bool,
        status: &mut ContainerStatus,
    ) {
        let ended = ContainerState {
            terminated: Some(terminated(exit, &seen.id, input.scheme)),
            ..ContainerState::default()
        };
        let memory = self.memory.get(&seen.name);
        let restarts = !ending
            && (exit.code != 0 || !is_regular_init(spec, container))
            && should_restart(spec, container, exit.code);
        let refused = memory.and_then(|memory| memory.refused.as_ref());
        let backoff = memory.filter(|memory| memory.backoff.until(exit.finished_at, input.now).is_some());
        status.state = Some(match (restarts, refused, backoff) {
            (true, Some(refusal), _) => {
                status.last_state = Some(ended);
                waiting(refusal.reason, Some(refusal.message.clone()))
            }
            (true, None, Some(memory)) => {
                status.last_state = Some(ended);
                waiting("CrashLoopBackOff", Some(crash_loop(input, container, memory)))
            }
            _ => ended,
        });
    }
}

fn crash_loop(input: &Input<'_>, container: &Container, memory: &Memory) -> String {
    let meta = &input.pod.metadata;
    let seconds = memory.backoff.wait().as_secs();
    let wait =
        if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) };
    format!(
        "back-off {wait} restarting failed container={} pod={}_{}({})",
        container.name,
        meta.name.as_deref().unwrap_or_default(),
        meta.namespace.as_deref().unwrap_or_default(),
        meta.uid.as_deref().unwrap_or_default(),
    )
}

/// The state of a container that has not started yet.
fn not_started(input: &Input<'_>, spec: &PodSpec, memory: &Memory, container: &Container) -> ContainerState {
    if let Some(refusal) = &memory.refused {
        // As upstream, the reason changes once the error is being waited out.
        return if refusal.reason == "ErrImagePull" && refusal.times > 1 {
            let image = container.image.as_deref().unwrap_or_default();
            let message = format!("Back-off pulling image {image:?}: ErrImagePull: {}", refusal.message);
            waiting("ImagePullBackOff", Some(message))
        } else {
            waiting(refusal.reason, Some(refusal.message.clone()))
        };
    }
    let ended =
        known(input.pod, &container.name).and_then(|status| status.state.as_ref()?.terminated.clone());
    if let Some(ended) = ended {
        return ContainerState { terminated: Some(ended), ..ContainerState::default() };
    }
    let has_init = spec.init_containers.as_ref().is_some_and(|init| !init.is_empty());
    waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, None)
}

fn is_ready(input: &Input<'_>, container: &Container, name: &Arc<str>) -> bool {
    container.readiness_probe.is_none()
        || input.probes.get(&(Arc::clone(name), ProbeKind::Readiness)).copied().unwrap_or(false)
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref().filter(|mounts| !mounts.is_empty())?;
    let statuses = mounts.iter().map(|mount| VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: mount.read_only,
        recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".to_owned()),
        volume_status: None,
    });
    Some(statuses.collect())
}
