//! Pods.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    columns::{AGE, Cell, Column, NAME, Table, condition, is_deleting, is_true, list, number, text},
    duration,
};

pub(super) const TABLES: &[Table] = &[Table {
    resource: "pods",
    columns: &[
        NAME,
        Column::text("Ready", "How many of the pod's containers are ready.", Cell::Several(summary)),
        Column::text("Status", "What the pod's containers do, in a word.", Cell::Made),
        Column::text("Restarts", "How often the pod's containers were restarted, and when last.", Cell::Made),
        AGE,
        Column::text("IP", "The pod's first address.", Cell::Text(address)).wide(),
        Column::text("Node", "The node that the pod is bound to.", Cell::FieldOr("spec.nodeName", "<none>"))
            .wide(),
        Column::text(
            "Nominated Node",
            "The node on which room is being made for the pod.",
            Cell::FieldOr("status.nominatedNodeName", "<none>"),
        )
        .wide(),
        Column::text(
            "Readiness Gates",
            "How many of the further conditions of readiness hold.",
            Cell::Text(gates),
        )
        .wide(),
    ],
    conditions: Some(completed),
    order: None,
    reads: &[
        "metadata.name",
        "metadata.creationTimestamp",
        "metadata.deletionTimestamp",
        "spec.nodeName",
        "spec.containers.name",
        "spec.initContainers.name",
        "spec.initContainers.restartPolicy",
        "spec.readinessGates",
        "status.phase",
        "status.reason",
        "status.conditions",
        "status.podIPs",
        "status.nominatedNodeName",
        "status.initContainerStatuses",
        "status.containerStatuses",
    ],
}];

/// What is shown of a pod's containers.
struct Summary {
    status: String,
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let mut status = match text(pod, "status.reason") {
            "" => text(pod, "status.phase").to_owned(),
            reason => reason.to_owned(),
        };
        if condition(pod, "PodScheduled").is_some_and(|condition| condition["reason"] == "SchedulingGated") {
            status = "SchedulingGated".to_owned();
        }
        let sidecars = list(pod, "spec.initContainers").iter().filter(|container| is_sidecar(container));
        let total = list(pod, "spec.containers").len() + sidecars.count();
        let mut summary = Self { status, ready: 0, total, restarts: 0, last_restart: None };
        let (initializing, sidecar_restarts, sidecar_last) = summary.init_containers(pod);
        if !initializing || is_true(pod, "Initialized") {
            (summary.restarts, summary.last_restart) = (sidecar_restarts, sidecar_last);
            summary.containers(pod);
        }
        if is_deleting(pod) {
            if text(pod, "status.reason") == "NodeLost" {
                summary.status = "Unknown".to_owned();
            } else if !["Succeeded", "Failed"].contains(&text(pod, "status.phase")) {
                summary.status = "Terminating".to_owned();
            }
        }
        summary
    }

    /// Goes through the init containers up to the first that is not done; returns whether there is one, and how often and
    /// when last sidecars were restarted.
    fn init_containers(&mut self, pod: &Value) -> (bool, i64, Option<Timestamp>) {
        let specs = list(pod, "spec.initContainers");
        let (mut sidecar_restarts, mut sidecar_last) = (0, None);
        for (index, container) in list(pod, "status.initContainerStatuses").iter().enumerate() {
            let restarted = last_restart(container);
            self.restarts += number(container, "restartCount");
            self.last_restart = self.last_restart.max(restarted);
            let sidecar = specs.iter().any(|spec| spec["name"] == container["name"] && is_sidecar(spec));
            if sidecar {
                sidecar_restarts += number(container, "restartCount");
                sidecar_last = sidecar_last.max(restarted);
            }
            let terminated = &container["state"]["terminated"];
            if terminated.is_object() && number(terminated, "exitCode") == 0 {
                continue;
            }
            if sidecar && container["started"] == true {
                self.ready += usize::from(container["ready"] == true);
                continue;
            }
            let why = if terminated.is_object() {
                terminated_reason(terminated)
            } else {
                match text(container, "state.waiting.reason") {
                    "" | "PodInitializing" => format!("{index}/{}", specs.len()),
                    reason => reason.to_owned(),
                }
            };
            self.status = format!("Init:{why}");
            return (true, sidecar_restarts, sidecar_last);
        }
        (false, sidecar_restarts, sidecar_last)
    }

    fn containers(&mut self, pod: &Value) {
        let (mut running, mut failure) = (false, None);
        for container in list(pod, "status.containerStatuses").iter().rev() {
            self.restarts += number(container, "restartCount");
            self.last_restart = self.last_restart.max(last_restart(container));
            let terminated = &container["state"]["terminated"];
            let waiting = text(container, "state.waiting.reason");
            if !waiting.is_empty() {
                self.status = waiting.to_owned();
            } else if terminated.is_object() {
                self.status = terminated_reason(terminated);
                if number(terminated, "exitCode") != 0 {
                    failure = Some(self.status.clone());
                }
            } else if container["ready"] == true && container["state"]["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.status == "Completed" {
            if running && is_true(pod, "Ready") {
                self.status = "Running".to_owned();
            } else if let Some(failure) = failure {
                self.status = failure;
            } else if running {
                self.status = "NotReady".to_owned();
            }
        }
    }
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

fn last_restart(container: &Value) -> Option<Timestamp> {
    duration::time(&container["lastState"]["terminated"]["finishedAt"])
}

fn terminated_reason(terminated: &Value) -> String {
    match (text(terminated, "reason"), number(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

/// The cells that tell of the containers: how many are ready, what they do, how often they were restarted.
fn summary(pod: &Value, now: Timestamp) -> Vec<String> {
    let Summary { status, ready, total, restarts, last_restart } = Summary::of(pod);
    let restarts = match last_restart {
        Some(last) if restarts > 0 => format!("{restarts} ({} ago)", duration::between(last, now)),
        _ => restarts.to_string(),
    };
    vec![format!("{ready}/{total}"), status, restarts]
}

fn address(pod: &Value) -> String {
    let first = list(pod, "status.podIPs").first().map_or("", |address| text(address, "ip"));
    if first.is_empty() { "<none>".to_owned() } else { first.to_owned() }
}

fn gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let open = gates.iter().filter(|gate| is_true(pod, text(gate, "conditionType"))).count();
    format!("{open}/{}", gates.len())
}

/// That a pod has come to its end, which lets clients leave it out.
fn completed(pod: &Value) -> Option<Value> {
    let message = match text(pod, "status.phase") {
        "Succeeded" => "The pod has completed successfully.",
        "Failed" => "The pod failed.",
        _ => return None,
    };
    Some(
        json!([{"type": "Completed", "status": "True", "reason": pod["status"]["phase"], "message": message}]),
    )
}
