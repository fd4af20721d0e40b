use serde_json::{Value, json};

use super::*;

const GIB: i64 = 1 << 30;

/// After `canResizePod` of upstream's allocation manager: what is requested of processors and memory, what the node has, what others
/// have of it.
#[test]
fn a_change_is_made_put_off_or_refused() {
    let room = |used: [i64; 2]| Room { capacity: [4000, 8 * GIB], used, ..Room::default() };
    let infeasible = |text: &str| Err(Pending::Infeasible(text.to_owned()));
    let deferred = |text: &str| Err(Pending::Deferred(text.to_owned()));
    let cases = [
        ([4000, 8 * GIB], false, [0, 0], Ok(())),
        ([1000, GIB], false, [3000, 7 * GIB], Ok(())),
        (
            [4001, GIB],
            false,
            [0, 0],
            infeasible("Node didn't have enough capacity: cpu, requested: 4001, capacity: 4000"),
        ),
        (
            [4001, 9 * GIB],
            false,
            [0, 0],
            infeasible(
                "Node didn't have enough capacity: memory, requested: 9663676416, capacity: 8589934592",
            ),
        ),
        (
            [1000, GIB],
            false,
            [3001, 0],
            deferred("Node didn't have enough resource: cpu, requested: 1000, used: 3001, capacity: 4000"),
        ),
        (
            [1000, 2 * GIB],
            false,
            [0, 7 * GIB],
            deferred(
                "Node didn't have enough resource: memory, requested: 2147483648, used: 7516192768, capacity: 8589934592",
            ),
        ),
        ([0, GIB], false, [5000, 0], Ok(())),
        ([1, 1], true, [0, 0], infeasible("In-place resize of static-pods is not supported")),
    ];
    for (requests, is_static, used, expected) in cases {
        assert_eq!(decide(requests, is_static, &room(used)), expected, "{requests:?} {used:?}");
    }
}

#[test]
fn restarts_are_for_what_has_changed() {
    let resources = |cpu: &str, memory: &str| -> ResourceRequirements {
        serde_json::from_value(json!({"requests": {"cpu": cpu}, "limits": {"cpu": cpu, "memory": memory}}))
            .unwrap()
    };
    let container = |policy: &Value| -> Container {
        serde_json::from_value(json!({"name": "c", "resizePolicy": policy})).unwrap()
    };
    let memory = json!([
        {"resourceName": "cpu", "restartPolicy": "NotRequired"},
        {"resourceName": "memory", "restartPolicy": "RestartContainer"},
    ]);
    for (policy, wants, expected) in [
        (&json!(null), ("2", "2Gi"), false),
        (&memory, ("2", "1Gi"), false),
        (&memory, ("2", "2Gi"), true),
        (&memory, ("1", "2Gi"), true),
        // The same amount in other words.
        (&memory, ("1000m", "1024Mi"), false),
    ] {
        let (has, wants) = (resources("1", "1Gi"), resources(wants.0, wants.1));
        assert_eq!(needs_restart(&container(policy), &has, &wants), expected, "{policy} {wants:?}");
    }
}

/// An agent that comes back knows from the API what was given, not what is wanted since.
#[test]
fn what_was_given_is_known_again() {
    let amounts = |cpu: &str| json!({"cpu": cpu});
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [
            {"name": "told", "resources": {"requests": amounts("3")}},
            {"name": "new", "resources": {"requests": amounts("1")}},
            {"name": "none"},
        ]},
        "status": {"containerStatuses": [{
            "name": "told", "image": "i", "imageID": "", "ready": true, "restartCount": 0,
            "allocatedResources": amounts("2"), "resources": {"requests": amounts("1")},
        }]},
    }))
    .unwrap();
    let mut machine = PodMachine::default();
    assert!(machine.wants_resize(&pod));
    assert_eq!(machine.allocated(pod.spec.as_ref().unwrap()), [3000, 0]);
    let cramped = Room { capacity: [4000, GIB], used: [1000, 0], ..Room::default() };
    assert!(!machine.consider_resize(&pod, false, &cramped) && machine.is_resize_pending());
    let free = Room { used: [0, 0], ..cramped };
    assert!(machine.consider_resize(&pod, false, &free) && !machine.is_resize_pending());
    assert_eq!(machine.allocated(pod.spec.as_ref().unwrap()), [4000, 0]);
    assert!(!machine.consider_resize(&pod, false, &free), "nothing is left to do");
    // A pod that takes back what it wanted waits for nothing.
    let wants = |pod: &mut Pod, cpu: &str| {
        let container = &mut pod.spec.as_mut().unwrap().containers[0];
        container.resources = serde_json::from_value(json!({"requests": {"cpu": cpu}})).unwrap();
    };
    wants(&mut pod, "9");
    assert!(!machine.consider_resize(&pod, false, &free) && machine.is_resize_pending());
    wants(&mut pod, "3000m");
    assert!(!machine.wants_resize(&pod) && !machine.is_resize_pending());
}
