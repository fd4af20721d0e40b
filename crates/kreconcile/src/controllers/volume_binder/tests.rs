use std::sync::Arc;

use k8s_openapi::api::{
    core::v1::{PersistentVolume, PersistentVolumeClaim},
    storage::v1::StorageClass,
};
use serde_json::{Value, json};

use super::{
    decide::{
        ClaimStep, Unmatched, VolumeStep, bind_claim, bind_volume, bound, can_not_reclaim, claim_status,
        default_class, named, unbind_volume, unmatched, volume_step,
    },
    matching::best_match,
};

fn merged(mut base: Value, changes: Value) -> Value {
    fn merge(base: &mut Value, changes: Value) {
        match (base, changes) {
            (Value::Object(base), Value::Object(changes)) => {
                for (key, value) in changes {
                    merge(base.entry(key).or_insert(Value::Null), value);
                }
            }
            (base, changes) => *base = changes,
        }
    }
    merge(&mut base, changes);
    base
}

fn volume(name: &str, changes: Value) -> Arc<PersistentVolume> {
    let base = json!({
        "metadata": {"name": name},
        "spec": {"capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "gold",
            "persistentVolumeReclaimPolicy": "Retain"},
        "status": {"phase": "Available"},
    });
    Arc::new(serde_json::from_value(merged(base, changes)).unwrap())
}

fn claim(changes: Value) -> PersistentVolumeClaim {
    let base = json!({
        "metadata": {"name": "data", "namespace": "n", "uid": "u"},
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "gold",
            "resources": {"requests": {"storage": "5Gi"}}},
        "status": {"phase": "Pending"},
    });
    serde_json::from_value(merged(base, changes)).unwrap()
}

fn reference(name: &str, uid: &str) -> Value {
    json!({"spec": {"claimRef": {"namespace": "n", "name": name, "uid": uid}}})
}

fn size(text: &str) -> Value {
    json!({"spec": {"capacity": {"storage": text}}})
}

/// The cases of upstream's `TestMatchVolume` and `TestFindMatchVolumeWithNode` (pkg/controller/volume/persistentvolume).
#[test]
fn the_smallest_volume_that_suits_is_found() {
    let modes = |modes: Value| json!({"spec": {"accessModes": modes}});
    let volumes = [
        volume("big", size("50Gi")),
        volume("ten-b", json!({})),
        volume("ten-a", json!({})),
        volume("tiny", size("1Gi")),
        volume("many-modes", merged(size("6Gi"), modes(json!(["ReadWriteOnce", "ReadWriteMany"])))),
        volume("labelled", merged(size("20Gi"), json!({"metadata": {"labels": {"disk": "ssd"}}}))),
        volume("block", merged(size("6Gi"), json!({"spec": {"volumeMode": "Block"}}))),
        volume("none", merged(size("6Gi"), json!({"spec": {"storageClassName": ""}}))),
        volume("taken", merged(size("6Gi"), reference("other", "x"))),
        volume("failed", merged(size("6Gi"), json!({"status": {"phase": "Failed"}}))),
        volume(
            "going",
            merged(size("6Gi"), json!({"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z"}})),
        ),
        volume("attributes", merged(size("6Gi"), json!({"spec": {"volumeAttributesClassName": "fast"}}))),
        volume("aside", merged(size("9Gi"), reference("kept", ""))),
    ];
    let spec = |fields: Value| json!({"spec": fields});
    let cases = [
        (json!({}), false, Some("ten-a")),
        (json!({}), true, None),
        (spec(json!({"resources": {"requests": {"storage": "11Gi"}}})), false, Some("labelled")),
        (spec(json!({"resources": {"requests": {"storage": "51Gi"}}})), false, None),
        (spec(json!({"accessModes": ["ReadWriteMany"]})), false, Some("many-modes")),
        (spec(json!({"accessModes": ["ReadOnlyMany"]})), false, None),
        (spec(json!({"selector": {"matchLabels": {"disk": "ssd"}}})), false, Some("labelled")),
        (spec(json!({"selector": {"matchLabels": {"disk": "hdd"}}})), false, None),
        (spec(json!({"volumeMode": "Block"})), false, Some("block")),
        (spec(json!({"storageClassName": ""})), false, Some("none")),
        (spec(json!({"volumeAttributesClassName": "fast"})), false, Some("attributes")),
        // What is set aside for the claim needs no class, and comes first among those with the same modes.
        (json!({"metadata": {"name": "kept"}}), true, Some("aside")),
        (json!({"metadata": {"name": "kept"}, "spec": {"storageClassName": "silver"}}), false, Some("aside")),
    ];
    for (changes, delayed, expected) in cases {
        let found = best_match(&claim(changes.clone()), &volumes, delayed);
        let found = found.and_then(|volume| volume.metadata.name.as_deref());
        assert_eq!(found, expected, "{changes}");
    }
}

/// The rules of upstream's `syncUnboundClaim` for claims that name a volume, and of `syncBoundClaim`.
#[test]
fn claims_are_bound_or_told_why_not() {
    let why = |step: ClaimStep| match step {
        ClaimStep::Bind(_) => "bind".to_owned(),
        ClaimStep::Pending(None) => "pending".to_owned(),
        ClaimStep::Pending(Some((reason, message))) => format!("{reason}: {message}"),
        ClaimStep::Retry(reason, message) => format!("retry {reason}: {message}"),
        ClaimStep::Lost(reason, _) => format!("lost {reason}"),
    };
    let names_it = json!({"spec": {"volumeName": "v"}});
    let by_controller = merged(
        names_it.clone(),
        json!({"metadata": {"annotations": {"pv.kubernetes.io/bound-by-controller": "yes"}}}),
    );
    let mismatch = |why: &str| format!("VolumeMismatch: Cannot bind to requested volume \"v\": {why}");
    let taken = "FailedBinding: volume \"v\" already bound to a different claim.";
    let cases = [
        (&names_it, None, "pending".to_owned()),
        (&names_it, Some(json!({})), "bind".to_owned()),
        (&names_it, Some(size("1Gi")), mismatch("requested PV is too small")),
        (
            &names_it,
            Some(json!({"spec": {"storageClassName": ""}})),
            mismatch("storageClassName does not match"),
        ),
        (&names_it, Some(json!({"spec": {"volumeMode": "Block"}})), mismatch("incompatible volumeMode")),
        (
            &names_it,
            Some(json!({"spec": {"accessModes": ["ReadOnlyMany"]}})),
            mismatch("incompatible accessMode"),
        ),
        (
            &names_it,
            Some(json!({"spec": {"volumeAttributesClassName": "x"}})),
            mismatch("volumeAttributesClassName does not match"),
        ),
        (
            &names_it,
            Some(json!({"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z"}})),
            mismatch("the volume is marked for deletion \"v\""),
        ),
        (&names_it, Some(reference("data", "")), "bind".to_owned()),
        (&names_it, Some(reference("data", "u")), "bind".to_owned()),
        (&names_it, Some(reference("data", "before")), taken.to_owned()),
        (&by_controller, Some(reference("other", "x")), format!("retry {taken}")),
    ];
    for (changes, known, expected) in cases {
        let known = known.map(|changes| volume("v", changes));
        assert_eq!(why(named(&claim(changes.clone()), known.as_ref())), expected, "{changes} {known:?}");
    }
    let cases = [
        (json!({}), Some(reference("data", "u")), "lost ClaimLost"),
        (names_it.clone(), None, "lost ClaimLost"),
        (names_it.clone(), Some(json!({})), "bind"),
        (names_it.clone(), Some(reference("data", "u")), "bind"),
        (names_it, Some(reference("data", "other")), "lost ClaimMisbound"),
    ];
    for (changes, known, expected) in cases {
        let known = known.map(|changes| volume("v", changes));
        assert_eq!(why(bound(&claim(changes.clone()), known.as_ref())), expected, "{changes} {known:?}");
    }
}

/// The rules of upstream's `syncUnboundClaim` for claims that no volume suits, `provisionClaim` and `GetDefaultClass`.
#[test]
fn claims_that_nothing_suits_wait_or_get_a_volume() {
    let class = |name: &str, provisioner: &str, delayed: bool| -> StorageClass {
        let mode = if delayed { "WaitForFirstConsumer" } else { "Immediate" };
        serde_json::from_value(
            json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode}),
        )
        .unwrap()
    };
    let (now, later) = (class("gold", "x.io/disk", false), class("gold", "x.io/disk", true));
    let never = class("gold", "kubernetes.io/no-provisioner", false);
    let waits = |reason, message: &str| Unmatched::Wait(reason, message.to_owned());
    let no_class = json!({"spec": {"storageClassName": null}});
    let node = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "a"}}});
    let no_volume = "no persistent volumes available for this claim and no storage class is set";
    let cases = [
        (json!({}), Some(&now), None, &[][..], Unmatched::Provision("x.io/disk".to_owned())),
        (
            json!({}),
            None,
            None,
            &[],
            Unmatched::CanNotProvision("storageclass.storage.k8s.io \"gold\" not found".to_owned()),
        ),
        (
            json!({}),
            Some(&never),
            None,
            &[],
            Unmatched::CanNotProvision(
                "no volume plugin matched name: kubernetes.io/no-provisioner".to_owned(),
            ),
        ),
        (
            json!({}),
            Some(&later),
            None,
            &[],
            waits("WaitForFirstConsumer", "waiting for first consumer to be created before binding"),
        ),
        (
            json!({}),
            Some(&later),
            None,
            &["p"],
            waits("WaitForPodScheduled", "waiting for pod p to be scheduled"),
        ),
        (
            json!({}),
            Some(&later),
            None,
            &["p", "q"],
            waits("WaitForPodScheduled", "waiting for pods p,q to be scheduled"),
        ),
        (node, Some(&later), None, &["p"], Unmatched::Provision("x.io/disk".to_owned())),
        (no_class.clone(), None, None, &[], waits("FailedBinding", no_volume)),
        (no_class, None, Some("std"), &[], Unmatched::AssignClass("std".to_owned())),
        (
            json!({"spec": {"storageClassName": ""}}),
            None,
            Some("std"),
            &[],
            waits("FailedBinding", no_volume),
        ),
    ];
    for (changes, class, default, pods, expected) in cases {
        let pods: Vec<String> = pods.iter().map(|pod| (*pod).to_owned()).collect();
        assert_eq!(unmatched(&claim(changes.clone()), class, default, &pods), expected, "{changes}");
    }
    let made = |name: &str, default: &str, at: &str| -> Arc<StorageClass> {
        let annotations = json!({"storageclass.kubernetes.io/is-default-class": default});
        let metadata = json!({"name": name, "annotations": annotations, "creationTimestamp": at});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "provisioner": "x"})).unwrap())
    };
    let (old, new) = ("2029-01-01T00:00:00Z", "2030-01-01T00:00:00Z");
    let classes =
        [made("a", "true", old), made("c", "true", new), made("b", "true", new), made("d", "false", new)];
    assert_eq!(default_class(&classes), Some("b"));
    assert_eq!(default_class(&classes[3..]), None);
}

/// The rules of upstream's `syncVolume` and `reclaimVolume`.
#[test]
fn volumes_follow_their_claims() {
    let bound_to = |name: &str| claim(json!({"spec": {"volumeName": name}}));
    let made = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": "x"}},
        "spec": {"persistentVolumeReclaimPolicy": "Delete"}});
    let ours = reference("data", "u");
    let cases = [
        (json!({}), None, VolumeStep::Phase("Available")),
        (reference("data", ""), Some(bound_to("v")), VolumeStep::Phase("Available")),
        (ours.clone(), Some(bound_to("v")), VolumeStep::Phase("Bound")),
        (ours.clone(), Some(claim(json!({}))), VolumeStep::Wait),
        (ours.clone(), Some(claim(json!({"spec": {"volumeMode": "Block"}}))), VolumeStep::Mismatch),
        (ours.clone(), None, VolumeStep::Release),
        (ours.clone(), Some(bound_to("other")), VolumeStep::Unbind),
        (merged(ours, made), Some(bound_to("other")), VolumeStep::Release),
    ];
    for (changes, claim, expected) in cases {
        assert_eq!(volume_step(&volume("v", changes.clone()), claim.as_ref()), expected, "{changes}");
    }
    let policy = |policy: &str, by: &str| {
        json!({"spec": {"persistentVolumeReclaimPolicy": policy},
            "metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": by}}})
    };
    let no_plugin =
        "error getting deleter volume plugin for volume \"v\": no deletable volume plugin matched";
    let cases = [
        (policy("Retain", ""), None),
        (policy("Recycle", ""), Some(("VolumeFailedRecycle", "No recycler plugin found for the volume!"))),
        (policy("Delete", "x.io/disk"), None),
        (policy("Delete", ""), Some(("VolumeFailedDelete", no_plugin))),
        (
            policy("Delete", "kubernetes.io/gone"),
            Some(("VolumeFailedDelete", "no volume plugin matched name: kubernetes.io/gone")),
        ),
        (merged(policy("Delete", ""), json!({"spec": {"csi": {"driver": "d", "volumeHandle": "h"}}})), None),
        (
            policy("What", ""),
            Some(("VolumeUnknownReclaimPolicy", "Volume has unrecognized PersistentVolumeReclaimPolicy")),
        ),
    ];
    for (changes, expected) in cases {
        let why = can_not_reclaim(&volume("v", changes.clone()));
        assert_eq!(why.as_ref().map(|(reason, why)| (*reason, why.as_str())), expected, "{changes}");
    }
}

/// The rules of upstream's `GetBindVolumeToClaim`, `bindClaimToVolume`, `unbindVolume` and `updateClaimStatus`.
#[test]
fn both_sides_say_whom_they_are_bound_to() {
    let (free, mine) = (volume("v", json!({})), volume("v", reference("data", "u")));
    let claim_unbound = claim(json!({}));
    let patch = bind_volume(&free, &claim_unbound).unwrap();
    assert_eq!(patch["spec"]["claimRef"]["uid"], "u");
    assert_eq!(patch["metadata"]["annotations"], json!({"pv.kubernetes.io/bound-by-controller": "yes"}));
    let aside = bind_volume(&volume("v", reference("data", "")), &claim_unbound).unwrap();
    assert!(aside["metadata"].is_null(), "its author bound it");
    assert_eq!(bind_volume(&mine, &claim_unbound), None);

    let both =
        json!({"pv.kubernetes.io/bound-by-controller": "yes", "pv.kubernetes.io/bind-completed": "yes"});
    let patch = bind_claim(&claim_unbound, &mine).unwrap();
    assert_eq!(patch, json!({"spec": {"volumeName": "v"}, "metadata": {"annotations": both}}));
    let named = claim(json!({"spec": {"volumeName": "v"}}));
    let completed = json!({"pv.kubernetes.io/bind-completed": "yes"});
    assert_eq!(bind_claim(&named, &mine).unwrap(), json!({"metadata": {"annotations": completed}}));
    let done = claim(json!({"spec": {"volumeName": "v"}, "metadata": {"annotations": both}}));
    assert_eq!(bind_claim(&done, &mine), None);

    assert_eq!(unbind_volume(&mine), json!({"spec": {"claimRef": {"uid": null}}}));
    let ours = merged(reference("data", "u"), json!({"metadata": {"annotations": both}}));
    assert_eq!(unbind_volume(&volume("v", ours))["spec"], json!({"claimRef": null}));

    let fast = volume("v", json!({"spec": {"volumeAttributesClassName": "fast"}}));
    let status = serde_json::to_value(claim_status(&claim_unbound, "Bound", Some(&fast))).unwrap();
    let expected = json!({"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"},
        "currentVolumeAttributesClassName": "fast"});
    assert_eq!(status, expected);
    let bound = claim(json!({"status": expected}));
    let grown = volume("v", size("20Gi"));
    assert_eq!(claim_status(&bound, "Bound", Some(&grown)).capacity, bound.status.as_ref().unwrap().capacity);
    let lost = serde_json::to_value(claim_status(&bound, "Lost", None)).unwrap();
    assert_eq!(lost, json!({"phase": "Lost"}));
}
