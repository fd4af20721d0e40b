//! The decision about the pods of a gang, which go to their nodes together (upstream's pod group scheduling cycle).

use std::{cmp::Reverse, sync::Arc};

use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use tokio::time::Instant;

use crate::{
    decision::{Decision, Nomination},
    plugin::CycleState,
    plugins::{GANG_SCHEDULING, WAITING_FOR_GANG},
    pod::PodInfo,
    queue::QueuedPod,
    scheduler::core::Core,
};

/// What was decided about one pod.
enum Outcome {
    Place(Arc<str>, CycleState),
    None(Box<Decision>),
}

/// What becomes of a gang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Bound,
    WaitsForRoom,
    Rejected,
}

const UNSCHEDULABLE: &str = "pod group is unschedulable";
const WAITING_FOR_ROOM: &str = "pod group is unschedulable, pod group is waiting for preemption to complete";

impl Core {
    /// Decides on a pod and on all others of its gang that wait for a place, each beside the ones before. With places for
    /// `least` pods, those that run counted in, the ones that have a place are bound; with fewer, none is.
    pub(super) async fn schedule_gang(
        &mut self,
        profile: usize,
        first: QueuedPod,
        least: usize,
        now: Instant,
    ) {
        let (pod, since) = (Arc::clone(&first.pod), Instant::now());
        let members = self.members(profile, first, now);
        let (mut decided, mut nominated) = (Vec::new(), 0);
        for mut queued in members {
            queued.started = Instant::now();
            match self.plan(profile, &queued).await.map(|plan| self.placed(plan)) {
                Ok(Ok((node, cycle))) => {
                    self.assume(&queued.pod, &node);
                    decided.push((queued, Outcome::Place(node, cycle)));
                }
                Ok(Err(decision)) => {
                    if let Nomination::Node(node) = &decision.nomination {
                        // The others are decided on as if it were there already, which it is once room is made.
                        let node = Arc::clone(node);
                        self.assume(&queued.pod, &node);
                        nominated += 1;
                    }
                    decided.push((queued, Outcome::None(decision)));
                }
                Err(error) => self.errored(queued, &error, now),
            }
        }
        let decision = since.elapsed();
        let found = self.groups.state(&pod.namespace, pod.group.as_deref().unwrap_or_default()).placed;
        // When room must be made for one, all wait for it.
        let fate = match (found >= least, nominated) {
            (true, 0) => Fate::Bound,
            (true, _) => Fate::WaitsForRoom,
            (false, _) => Fate::Rejected,
        };
        for (queued, outcome) in &decided {
            if fate != Fate::Bound || matches!(outcome, Outcome::None(_)) {
                self.forget(&queued.pod.uid);
            }
        }
        for (queued, outcome) in decided {
            let plugins = vec![GANG_SCHEDULING.into()];
            match (fate, outcome) {
                (Fate::Bound, Outcome::Place(node, cycle)) => self.commit(profile, queued, node, cycle, now),
                (Fate::WaitsForRoom, Outcome::Place(node, _)) => {
                    self.reject(queued, plugins, WAITING_FOR_ROOM, &Nomination::Node(node), now);
                }
                (Fate::Rejected, Outcome::None(decision)) if decision.nominated().is_some() => {
                    // A gang that is not complete does not have others removed.
                    self.reject(queued, plugins, WAITING_FOR_GANG, &Nomination::Clear, now);
                }
                (_, Outcome::None(decision)) => self.no_node(queued, *decision, now),
                (Fate::Rejected, Outcome::Place(..)) => {
                    self.reject(queued, plugins, WAITING_FOR_GANG, &Nomination::Clear, now);
                }
            }
        }
        let result = match fate {
            Fate::Bound => "scheduled",
            Fate::WaitsForRoom => "waiting_on_preemption",
            Fate::Rejected => "unschedulable",
        };
        self.metrics.group(result, &pod.scheduler_name, decision, since.elapsed());
        self.tell_group(&pod, fate);
    }

    /// Writes what became of the gang into its `PodGroup`.
    fn tell_group(&mut self, pod: &PodInfo, fate: Fate) {
        let Some(name) = &pod.group else { return };
        let group = self.planner.snapshot().catalog().get::<PodGroup>(&pod.namespace, name);
        let Some(group) = group.cloned() else { return };
        let message = match fate {
            Fate::Bound => "",
            Fate::WaitsForRoom => WAITING_FOR_ROOM,
            Fate::Rejected => UNSCHEDULABLE,
        };
        self.reporter.group(&group, fate == Fate::Bound, message, &mut self.tasks);
    }

    /// The pods of the gang that can be decided on now: the most important first, then who waits longest.
    fn members(&mut self, profile: usize, first: QueuedPod, now: Instant) -> Vec<QueuedPod> {
        let mut members = Vec::new();
        for uid in self.groups.waiting(&first.pod) {
            if uid != first.pod.uid && !self.preempting.contains_key(&uid) {
                members.extend(self.queue.pop_this(&uid, now));
            }
        }
        let (mut members, others): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|queued| self.profile_of(&queued.pod) == Some(profile));
        for queued in others {
            let rejected_by = queued.rejected_by.clone();
            self.queue.failed(queued, rejected_by, now);
        }
        members.push(first);
        members
            .sort_by_key(|queued| (Reverse(queued.pod.priority), queued.first, Arc::clone(&queued.pod.name)));
        members
    }
}
