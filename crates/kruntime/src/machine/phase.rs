//! The pod's phase, from the states of its containers.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, PodSpec};

use super::{is_sidecar, restart::should_restart, restart_all};

#[derive(Default)]
struct Count {
    pending_init: usize,
    pending_sidecars: usize,
    failed_init: usize,
    unknown: usize,
    running: usize,
    waiting: usize,
    stopped: usize,
    stopped_for_good: usize,
    succeeded: usize,
}

/// The exit code that counts for a container that doesn't run: of its state, or of its last one while it waits.
fn exit_code(status: &ContainerStatus) -> Option<i32> {
    let state = status.state.as_ref()?;
    let terminated = state.terminated.as_ref().or_else(|| status.last_state.as_ref()?.terminated.as_ref());
    terminated.map(|terminated| terminated.exit_code)
}

/// Whether a container that ended so is to start again, by its rules and policies or together with all others.
fn restarts(spec: &PodSpec, container: &Container, status: &ContainerStatus, code: i32) -> bool {
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let terminated = status.state.as_ref().and_then(|state| state.terminated.as_ref()).or(last);
    let is_removed = terminated.is_some_and(|end| end.reason.as_deref() == Some(restart_all::REASON));
    is_removed || should_restart(spec, container, code)
}

fn is_running(status: &ContainerStatus) -> bool {
    status.state.as_ref().is_some_and(|state| state.running.is_some())
}

fn status_of<'a>(statuses: &'a [ContainerStatus], container: &Container) -> Option<&'a ContainerStatus> {
    statuses.iter().find(|status| status.name == container.name)
}

/// The phase (`getPhase` of upstream's kubelet). `ended` says that the containers won't start again whatever the
/// policy, `initialized` that a main container was started before.
pub(super) fn phase(
    spec: &PodSpec,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    ended: bool,
    initialized: bool,
) -> &'static str {
    let mut count = Count::default();
    for container in spec.init_containers.iter().flatten() {
        if is_sidecar(container) {
            count_sidecar(&mut count, status_of(init, container));
        } else {
            count_init(&mut count, spec, container, status_of(init, container));
        }
    }
    for container in &spec.containers {
        count_main(&mut count, spec, container, status_of(main, container));
    }
    if count.failed_init > 0 {
        return "Failed";
    }
    if count.pending_init > 0 || (count.pending_sidecars > 0 && !initialized) || count.waiting > 0 {
        return "Pending";
    }
    if count.running > 0 && count.unknown == 0 {
        return "Running";
    }
    if count.running == 0 && count.stopped > 0 && count.unknown == 0 {
        return match (ended || count.stopped == count.stopped_for_good, count.stopped == count.succeeded) {
            (false, _) => "Running",
            (true, true) => "Succeeded",
            (true, false) => "Failed",
        };
    }
    "Pending"
}

fn count_init(count: &mut Count, spec: &PodSpec, container: &Container, status: Option<&ContainerStatus>) {
    match status {
        Some(status) if !is_running(status) => match exit_code(status) {
            Some(0) => {}
            Some(code) => count.failed_init += usize::from(!restarts(spec, container, status, code)),
            None => count.pending_init += 1,
        },
        _ => count.pending_init += 1,
    }
}

fn count_sidecar(count: &mut Count, status: Option<&ContainerStatus>) {
    let Some(status) = status else {
        count.unknown += 1;
        return;
    };
    if is_running(status) {
        count.pending_sidecars += usize::from(status.started != Some(true));
        count.running += 1;
    } else if exit_code(status).is_none() {
        count.pending_sidecars += 1;
        count.waiting += 1;
    }
}

fn count_main(count: &mut Count, spec: &PodSpec, container: &Container, status: Option<&ContainerStatus>) {
    let Some(status) = status else {
        count.unknown += 1;
        return;
    };
    if is_running(status) {
        count.running += 1;
        return;
    }
    let terminated = status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    match exit_code(status) {
        Some(code) => {
            count.stopped += 1;
            count.stopped_for_good += usize::from(!restarts(spec, container, status, code));
            count.succeeded += usize::from(terminated && code == 0);
        }
        None => count.waiting += 1,
    }
}
