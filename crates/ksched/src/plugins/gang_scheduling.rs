//! The pods of a gang are bound together or not at all (KEP-4671).

use std::time::Duration;

use k8s_openapi::api::scheduling::v1beta1::PodGroup;

use crate::{
    booking::Booking,
    event::{ClusterEvent, Hint},
    groups::{GroupPolicy, GroupState, Groups},
    plugin::{Permit, PermitVerdict, PreEnqueue, QueueingHint, Rejection, Verdict},
    pod::PodInfo,
    snapshot::catalog::{Catalog, Interest},
    waiting::WaitingPods,
};

pub(crate) const NAME: &str = "GangScheduling";
/// Why pods of a gang are not bound although there is a place for them.
pub(crate) const WAITING: &str =
    "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled";
/// How long a pod of a gang waits for the others once it has its place (upstream's `permitTimeoutDuration`).
pub const GANG_WAIT_MAX: Duration = Duration::from_secs(300);

/// Holds pods with `spec.schedulingGroup` back until their `PodGroup` is there and, if that is a gang, `minCount` pods of it;
/// and from being bound until so many have a place.
///
/// The scheduler decides on all pods of a gang in turn, each beside the ones before, when one of them is next: if places for
/// `minCount` are found they are bound, else none is, and the places are free again at once.
#[derive(Clone, Copy, Debug, Default)]
pub struct GangScheduling;

fn same_group(a: &PodInfo, b: &PodInfo) -> bool {
    a.group.is_some() && a.group == b.group && a.namespace == b.namespace
}

impl PreEnqueue for GangScheduling {
    fn name(&self) -> &str {
        NAME
    }

    fn pre_enqueue(&self, pod: &PodInfo, groups: &Groups) -> Verdict {
        let (Some(name), Some(GroupState { policy, pods, .. })) = (&pod.group, groups.of(pod)) else {
            return Verdict::Pass;
        };
        match policy {
            None => Verdict::unresolvable(format!(
                "waiting for pods's pod group {name:?} to appear in scheduling queue"
            )),
            Some(GroupPolicy::Gang(least)) if pods < least => {
                Verdict::unresolvable("waiting for minCount pods from a gang to appear in scheduling queue")
            }
            Some(_) => Verdict::Pass,
        }
    }
}

impl Permit for GangScheduling {
    fn name(&self) -> &str {
        NAME
    }

    fn concerns(&self, pod: &PodInfo, _: &Catalog) -> bool {
        pod.group.is_some()
    }

    fn permit(&self, booking: &mut Booking<'_>, waiting: &WaitingPods, groups: &Groups) -> PermitVerdict {
        let pod = booking.pod;
        let (Some(name), Some(GroupState { policy, placed, .. })) = (&pod.group, groups.of(pod)) else {
            return PermitVerdict::Allow;
        };
        match policy {
            None => PermitVerdict::Reject(Rejection::unschedulable(format!(
                "failed to get podGroup {}/{name}: podgroup.scheduling.k8s.io {name:?} not found",
                pod.namespace
            ))),
            Some(GroupPolicy::Gang(least)) if placed < least => PermitVerdict::Wait(GANG_WAIT_MAX),
            Some(GroupPolicy::Basic) => PermitVerdict::Allow,
            Some(GroupPolicy::Gang(_)) => {
                for (other, _) in waiting.list().iter().filter(|(other, _)| same_group(pod, other)) {
                    waiting.allow(&other.uid, NAME);
                }
                PermitVerdict::Allow
            }
        }
    }
}

impl QueueingHint for GangScheduling {
    fn name(&self) -> &str {
        NAME
    }

    fn hint(&self, pod: &PodInfo, event: &ClusterEvent) -> Hint {
        Hint::queue_if(match event {
            ClusterEvent::PodAdded(added) | ClusterEvent::PodAssigned(added) => same_group(pod, added),
            // Since 1.37 `minCount` may change; that the scheduler writes the status helps nobody.
            ClusterEvent::Object(event) => event.of::<PodGroup>().is_some_and(|(old, new)| {
                let meta = new.map(|group| &group.metadata);
                old.map(GroupPolicy::of) != new.map(GroupPolicy::of)
                    && meta.is_some_and(|meta| {
                        meta.namespace.as_deref() == Some(&*pod.namespace)
                            && meta.name.as_deref() == pod.group.as_deref()
                    })
            }),
            _ => false,
        })
    }

    fn wants_new_pod(&self, pod: &PodInfo) -> bool {
        pod.group.is_some()
    }

    fn interests(&self) -> Vec<Interest> {
        vec![Interest::of::<PodGroup>()]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{Snapshot, build::pod, event::ObjectEvent, plugin::CycleState};

    fn groups(policy: Option<GroupPolicy>, waiting: usize, placed: usize) -> Groups {
        let groups = Groups::default();
        groups.set_policy("default", "train", policy);
        for number in 0..waiting {
            groups.waits(&Arc::new(pod(&format!("w{number}")).group("train").info()));
        }
        for number in 0..placed {
            groups.placed(&Arc::new(pod(&format!("p{number}")).group("train").info()));
        }
        groups
    }

    /// The cases of upstream's `Test_GangSchedulingPreEnqueue` and `Test_GangSchedulingPermit`
    /// (`gangscheduling/gangscheduling_test.go`).
    #[test]
    fn pods_wait_for_their_gang() {
        let (few, alone) = (
            "waiting for minCount pods from a gang to appear in scheduling queue",
            "waiting for pods's pod group \"train\" to appear in scheduling queue",
        );
        let missing = "failed to get podGroup default/train: podgroup.scheduling.k8s.io \"train\" not found";
        let missing = PermitVerdict::Reject(Rejection::unschedulable(missing));
        let wait = PermitVerdict::Wait(GANG_WAIT_MAX);
        let gang = |least| Some(GroupPolicy::Gang(least));
        for (policy, waiting, placed, enters, permitted) in [
            (None, 3, 0, Verdict::unresolvable(alone), missing.clone()),
            (Some(GroupPolicy::Basic), 1, 0, Verdict::Pass, PermitVerdict::Allow),
            (gang(3), 2, 0, Verdict::unresolvable(few), wait.clone()),
            (gang(3), 3, 0, Verdict::Pass, wait.clone()),
            (gang(3), 1, 2, Verdict::Pass, wait),
            (gang(3), 0, 3, Verdict::Pass, PermitVerdict::Allow),
            (gang(3), 4, 3, Verdict::Pass, PermitVerdict::Allow),
        ] {
            let groups = groups(policy, waiting, placed);
            let member = Arc::new(pod("w0").group("train").info());
            assert_eq!(GangScheduling.pre_enqueue(&member, &groups), enters, "{policy:?} {waiting} {placed}");
            let (mut cycle, mut snapshot, node) = (CycleState::default(), Snapshot::new(), Arc::from("a"));
            let mut booking = Booking::new(&mut cycle, &member, &node, &mut snapshot);
            let verdict = GangScheduling.permit(&mut booking, &WaitingPods::default(), &groups);
            assert_eq!(verdict, permitted, "{policy:?} {waiting} {placed}");
        }
        let plain = pod("plain").info();
        assert_eq!(GangScheduling.pre_enqueue(&plain, &groups(gang(9), 0, 0)), Verdict::Pass);
        assert!(!Permit::concerns(&GangScheduling, &plain, &Catalog::default()));
    }

    /// The cases of upstream's `Test_isSchedulableAfterPodAdded` and `Test_isSchedulableAfterPodGroupAdded`.
    #[test]
    fn what_belongs_to_the_gang_wakes_it() {
        let member = |name: &str, group: &str| Arc::new(pod(name).group(group).info());
        let elsewhere = pod("x").group("train").edit(|pod| pod.metadata.namespace = Some("other".to_owned()));
        let group = |namespace: &str, name: &str| {
            let object = json!({"metadata": {"namespace": namespace, "name": name},
                "spec": {"schedulingPolicy": {"gang": {"minCount": 2}}}});
            let object: PodGroup = serde_json::from_value(object).unwrap();
            ClusterEvent::Object(ObjectEvent::new(None, Some(Arc::new(object))))
        };
        let waiting = member("w", "train");
        for (event, expected) in [
            (ClusterEvent::PodAdded(member("x", "train")), Hint::Queue),
            (ClusterEvent::PodAdded(member("x", "serve")), Hint::Skip),
            (ClusterEvent::PodAdded(Arc::new(elsewhere.info())), Hint::Skip),
            (ClusterEvent::PodAdded(Arc::new(pod("x").info())), Hint::Skip),
            (group("default", "train"), Hint::Queue),
            (group("default", "serve"), Hint::Skip),
            (group("other", "train"), Hint::Skip),
        ] {
            assert_eq!(GangScheduling.hint(&waiting, &event), expected, "{event:?}");
        }
    }
}
