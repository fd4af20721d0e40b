//! What an embedder says about evictions, and which pods a node that is short of something takes.

use std::sync::Arc;

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Pod, Toleration};

use super::{CRITICAL_PRIORITY, PRESSURE_STAYS, Pressure, THRESHOLDS, Threshold};
use crate::{machine::qos, signals::NodeSignals};

/// The taint of a node that is short of memory.
const MEMORY_TAINT: &str = "node.kubernetes.io/memory-pressure";
const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// How a node looks after itself.
///
/// | field | default | upstream's name |
/// |---|---|---|
/// | `thresholds` | [`THRESHOLDS`]: `memory.available<100Mi`, `nodefs.available<10%`, `nodefs.inodesFree<5%`, `imagefs.available<15%`, `imagefs.inodesFree<5%` | `evictionHard`, `evictionSoft`, `evictionMinimumReclaim` |
/// | `grace_seconds_max` | 0 | `evictionMaxPodGracePeriod` |
/// | `pressure_stays` | 5 minutes | `evictionPressureTransitionPeriod` |
#[derive(Clone, Debug)]
pub struct EvictionOptions {
    /// What is measured.
    pub signals: Arc<dyn NodeSignals>,
    /// When something is done.
    pub thresholds: Vec<Threshold>,
    /// How many seconds a pod gets at most after a soft threshold; it always gets one.
    pub grace_seconds_max: u64,
    /// How long a condition stays after its last cause.
    pub pressure_stays: SignedDuration,
}

impl EvictionOptions {
    /// Upstream's defaults over these figures.
    #[must_use]
    pub fn new(signals: Arc<dyn NodeSignals>) -> Self {
        Self {
            signals,
            thresholds: THRESHOLDS.to_vec(),
            grace_seconds_max: 0,
            pressure_stays: PRESSURE_STAYS,
        }
    }
}

/// Whether the node ends this pod last of all and takes it always: it is static, or of the system's priority.
#[must_use]
pub fn is_critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
    is_static(pod) || priority >= CRITICAL_PRIORITY
}

/// Whether the pod is the node's own, from a file, or such a pod's mirror.
#[must_use]
pub fn is_static(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let source = annotations.and_then(|all| all.get(CONFIG_SOURCE));
    source.is_some_and(|source| source != "api")
        || annotations.is_some_and(|all| all.contains_key(CONFIG_MIRROR))
}

/// Why a node with these pressures does not take the pod; `None` when it does.
///
/// Critical pods are taken always. Under pressure of memory alone a pod that asks for resources is taken too, and one that doesn't
/// if it tolerates the taint of that.
#[must_use]
pub fn refusal(pod: &Pod, pressures: &[Pressure]) -> Option<String> {
    if pressures.is_empty() || is_critical(pod) {
        return None;
    }
    if *pressures == [Pressure::Memory] {
        let class = pod.spec.as_ref().map_or("BestEffort", qos);
        let tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
        if class != "BestEffort" || tolerations.into_iter().any(tolerates_memory_taint) {
            return None;
        }
    }
    let names: Vec<&str> = pressures.iter().map(|pressure| pressure.condition()).collect();
    Some(format!("The node had condition: [{}]. ", names.join(" ")))
}

/// The rule of `Toleration.ToleratesTaint` for a taint without value, of the effect `NoSchedule`.
fn tolerates_memory_taint(toleration: &Toleration) -> bool {
    let is =
        |own: &Option<String>, wanted: &str| own.as_deref().is_none_or(|own| own.is_empty() || own == wanted);
    let value = toleration.value.as_deref().unwrap_or_default();
    let matches = match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => value.is_empty() && toleration.key.as_deref().is_some_and(|key| !key.is_empty()),
        _ => false,
    };
    matches && is(&toleration.effect, "NoSchedule") && is(&toleration.key, MEMORY_TAINT)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// After `Admit` of upstream's eviction manager: who is taken under which pressure.
    #[test]
    fn a_node_that_is_short_takes_few_pods() {
        let pod = |spec: &Value, annotations: &Value| -> Pod {
            let value = json!({"metadata": {"annotations": annotations}, "spec": spec});
            serde_json::from_value(value).unwrap()
        };
        let plain = json!({"containers": [{"name": "c"}]});
        let burstable = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]});
        let with = |toleration: Value| json!({"containers": [{"name": "c"}], "tolerations": [toleration]});
        let critical = json!({"containers": [{"name": "c"}], "priority": 2_000_000_000});
        let none = json!({});
        let memory_key = "node.kubernetes.io/memory-pressure";
        let (memory, disk, both) =
            (vec![Pressure::Memory], vec![Pressure::Disk], vec![Pressure::Memory, Pressure::Disk]);
        let only_memory = Some("The node had condition: [MemoryPressure]. ");
        let cases = [
            (&plain, &none, &Vec::new(), None),
            (&plain, &none, &memory, only_memory),
            (&burstable, &none, &memory, None),
            (
                &with(json!({"key": memory_key, "operator": "Exists", "effect": "NoSchedule"})),
                &none,
                &memory,
                None,
            ),
            (&with(json!({"operator": "Exists"})), &none, &memory, None),
            (&with(json!({"key": memory_key})), &none, &memory, None),
            (&with(json!({"key": memory_key, "value": "x"})), &none, &memory, only_memory),
            (
                &with(json!({"key": memory_key, "operator": "Exists", "effect": "NoExecute"})),
                &none,
                &memory,
                only_memory,
            ),
            (&with(json!({"key": "other", "operator": "Exists"})), &none, &memory, only_memory),
            (&burstable, &none, &disk, Some("The node had condition: [DiskPressure]. ")),
            (&burstable, &none, &both, Some("The node had condition: [MemoryPressure DiskPressure]. ")),
            (&critical, &none, &both, None),
            (&plain, &json!({"kubernetes.io/config.source": "file"}), &both, None),
            (&plain, &json!({"kubernetes.io/config.source": "api"}), &memory, only_memory),
        ];
        for (spec, annotations, pressures, expected) in cases {
            let found = refusal(&pod(spec, annotations), pressures);
            assert_eq!(found.as_deref(), expected, "{spec} {annotations} {pressures:?}");
        }
    }
}
