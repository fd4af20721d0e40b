//! What a pod needs besides its place, and its way to the binding.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    metrics::{
        Meter,
        meter::{self, verdict_status},
    },
    plugin::{CycleState, PermitVerdict, Rejection, Verdict},
    pod::PodInfo,
    profile::{Entry, Profile},
    queue::QueuedPod,
    scheduler::{
        binding::{self, Job, Wait},
        core::Core,
    },
};

impl Core {
    /// Books, permits and binds a pod that has its place.
    pub(super) fn commit(
        &mut self,
        number: usize,
        queued: QueuedPod,
        node: Arc<str>,
        mut cycle: CycleState,
        now: Instant,
    ) {
        let profiles = Arc::clone(&self.profiles);
        let profile = &profiles[number];
        let mut waits = Vec::new();
        let meter = self.meter(&queued);
        let refused = self.book(profile, &queued.pod, &node, &mut cycle, &mut waits, &meter);
        if let Some((plugin, rejection)) = refused {
            self.end_booking(number, &queued, &node, &mut cycle, false);
            self.refused(queued, &plugin, &rejection, now);
            return;
        }
        let wait = (!waits.is_empty()).then(|| {
            let names = waits.iter().map(|(name, _)| Arc::clone(name)).collect();
            self.queue.takes_off(&queued.pod);
            Wait { answer: self.waiting.add(&queued.pod, &node, names), times: waits }
        });
        let catalog = self.planner.snapshot().catalog();
        let pre_bind = profile.points.pre_bind.iter();
        let pre_bind = pre_bind.filter(|entry| entry.plugin.concerns(&queued.pod, catalog));
        let pre_bind = pre_bind.map(|entry| Arc::clone(&entry.plugin)).collect();
        let (client, observer) = (self.client.clone(), self.observer.clone());
        let extenders = Arc::clone(&self.extenders);
        let metrics = self.metrics.clone();
        let job = Job {
            metrics,
            meter,
            client,
            profiles,
            profile: number,
            extenders,
            cycle,
            queued,
            node,
            wait,
            pre_bind,
            observer,
            clock: self.reporter.parts().0,
        };
        self.bindings += 1;
        self.tasks.spawn(binding::run(job, self.waiting.clone()));
    }

    /// Measures the present try of a pod.
    pub(super) fn meter(&self, queued: &QueuedPod) -> Meter {
        Meter::new(&self.metrics, &queued.pod, queued.attempts)
    }

    /// Has the plug-ins that the pod concerns book and permit; gives the first that refuses.
    fn book(
        &mut self,
        profile: &Profile,
        pod: &Arc<PodInfo>,
        node: &Arc<str>,
        cycle: &mut CycleState,
        waits: &mut Vec<(Arc<str>, Duration)>,
        meter: &Meter,
    ) -> Option<(Arc<str>, Rejection)> {
        if !profile.points.concern(pod, self.planner.snapshot().catalog()) {
            return None;
        }
        let begin = meter.begin();
        let refused = self.reserve(profile, pod, node, cycle, meter);
        let status =
            refused.as_ref().map_or(meter::SUCCESS, |(_, said)| meter::finality_status(said.finality));
        meter.point("Reserve", status, begin);
        if refused.is_some() {
            return refused;
        }
        let begin = meter.begin();
        let refused = self.permit(profile, pod, node, cycle, waits, meter);
        let status = match &refused {
            Some((_, said)) => meter::finality_status(said.finality),
            None if waits.is_empty() => meter::SUCCESS,
            None => meter::WAIT,
        };
        meter.point("Permit", status, begin);
        refused
    }

    fn reserve(
        &mut self,
        profile: &Profile,
        pod: &Arc<PodInfo>,
        node: &Arc<str>,
        cycle: &mut CycleState,
        meter: &Meter,
    ) -> Option<(Arc<str>, Rejection)> {
        for Entry { name, plugin, .. } in &profile.points.reserve {
            if !plugin.concerns(pod, self.planner.snapshot().catalog()) {
                continue;
            }
            let begin = meter.begin_plugin();
            let verdict = self.planner.book(cycle, pod, node, |booking| plugin.reserve(booking));
            meter.plugin(name, "Reserve", verdict_status(&verdict), begin);
            if let Verdict::Reject(rejection) = verdict {
                return Some((Arc::clone(name), rejection));
            }
        }
        None
    }

    fn permit(
        &mut self,
        profile: &Profile,
        pod: &Arc<PodInfo>,
        node: &Arc<str>,
        cycle: &mut CycleState,
        waits: &mut Vec<(Arc<str>, Duration)>,
        meter: &Meter,
    ) -> Option<(Arc<str>, Rejection)> {
        for Entry { name, plugin, .. } in &profile.points.permit {
            if !plugin.concerns(pod, self.planner.snapshot().catalog()) {
                continue;
            }
            let (waiting, groups, begin) = (&self.waiting, &self.groups, meter.begin_plugin());
            let verdict =
                self.planner.book(cycle, pod, node, |booking| plugin.permit(booking, waiting, groups));
            let status = match &verdict {
                PermitVerdict::Allow => meter::SUCCESS,
                PermitVerdict::Reject(rejection) => meter::finality_status(rejection.finality),
                PermitVerdict::Wait(_) => meter::WAIT,
            };
            meter.plugin(name, "Permit", status, begin);
            match verdict {
                PermitVerdict::Allow => {}
                PermitVerdict::Reject(rejection) => return Some((Arc::clone(name), rejection)),
                PermitVerdict::Wait(time) => waits.push((Arc::clone(name), time)),
            }
        }
        None
    }

    /// Has the plug-ins forget what they booked, or give it back when the pod is not bound.
    pub(super) fn end_booking(
        &mut self,
        profile: usize,
        queued: &QueuedPod,
        node: &Arc<str>,
        cycle: &mut CycleState,
        is_bound: bool,
    ) {
        let (profiles, pod) = (Arc::clone(&self.profiles), &queued.pod);
        let entries = profiles[profile].points.reserve.iter().rev();
        if is_bound {
            for Entry { plugin, .. } in entries {
                self.planner.book(cycle, pod, node, |booking| plugin.settle(booking));
            }
            return;
        }
        let meter = self.meter(queued);
        let begin = meter.begin();
        for Entry { name, plugin, .. } in entries {
            let begin = meter.begin_plugin();
            self.planner.book(cycle, pod, node, |booking| plugin.unreserve(booking));
            meter.plugin(name, "Unreserve", meter::SUCCESS, begin);
        }
        meter.point("Unreserve", meter::SUCCESS, begin);
    }
}
