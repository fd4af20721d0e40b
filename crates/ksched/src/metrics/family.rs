//! The metrics that there are.

/// One metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Family {
    ScheduleAttempts,
    AttemptDuration,
    AlgorithmDuration,
    SliDuration,
    Attempts,
    Pending,
    Incoming,
    Unschedulable,
    Victims,
    Preemptions,
    ExtensionPoint,
    Plugin,
    Evaluations,
    NodeHint,
    Batch,
    QueueingHint,
    EventHandling,
    PermitWait,
    CacheSize,
    Goroutines,
    AfterFlush,
    PreemptionDuration,
    PreemptionExecutions,
    GroupAttempts,
    GroupDuration,
    GroupAlgorithm,
    InFlightEvents,
    BatchFlushed,
    StoreResults,
    ApiCalls,
    ApiCallDuration,
    ApiCallsPending,
    ClaimCreates,
    ConditionsAllocations,
    ConditionsWait,
}

struct Description {
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    /// The first bound of a histogram, the factor from one to the next, and how many there are.
    buckets: (f64, f64, usize),
    help: &'static str,
}

impl Family {
    fn describe(self) -> Description {
        let (name, kind, labels, buckets, help): (_, _, &[&str], _, _) = match self {
            Self::ScheduleAttempts => (
                "scheduler_schedule_attempts_total",
                "counter",
                &["result", "profile"],
                (0.0, 1.0, 0),
                "Tries to schedule pods, by how they ended.",
            ),
            Self::AttemptDuration => (
                "scheduler_scheduling_attempt_duration_seconds",
                "histogram",
                &["result", "profile"],
                (0.001, 2.0, 15),
                "How long tries took, the binding included, in seconds.",
            ),
            Self::AlgorithmDuration => (
                "scheduler_scheduling_algorithm_duration_seconds",
                "histogram",
                &[],
                (0.001, 2.0, 15),
                "How long decisions took, in seconds.",
            ),
            Self::SliDuration => (
                "scheduler_pod_scheduling_sli_duration_seconds",
                "histogram",
                &["attempts"],
                (0.01, 2.0, 20),
                "How long pods took to be bound since they could first be scheduled, in seconds.",
            ),
            Self::Attempts => (
                "scheduler_pod_scheduling_attempts",
                "histogram",
                &[],
                (1.0, 2.0, 5),
                "How many tries it took to bind a pod.",
            ),
            Self::Pending => {
                ("scheduler_pending_pods", "gauge", &["queue"], (0.0, 1.0, 0), "Pods that wait, by where.")
            }
            Self::Incoming => (
                "scheduler_queue_incoming_pods_total",
                "counter",
                &["queue", "event"],
                (0.0, 1.0, 0),
                "Pods that came into a queue, by which and why.",
            ),
            Self::Unschedulable => (
                "scheduler_unschedulable_pods",
                "gauge",
                &["plugin", "profile"],
                (0.0, 1.0, 0),
                "Pods in the queue that a plug-in has rejected at their last try.",
            ),
            Self::Victims => (
                "scheduler_preemption_victims",
                "histogram",
                &[],
                (1.0, 2.0, 7),
                "How many pods had to go to make room for one.",
            ),
            Self::Preemptions => (
                "scheduler_preemption_attempts_total",
                "counter",
                &[],
                (0.0, 1.0, 0),
                "How often room was made or could not be made.",
            ),
            Self::ExtensionPoint => (
                "scheduler_framework_extension_point_duration_seconds",
                "histogram",
                &["extension_point", "status", "profile"],
                (0.0001, 2.0, 12),
                "How long all plug-ins of an extension point took, in seconds.",
            ),
            Self::Plugin => (
                "scheduler_plugin_execution_duration_seconds",
                "histogram",
                &["plugin", "extension_point", "status"],
                (1e-05, 1.5, 20),
                "How long a plug-in took, in seconds.",
            ),
            Self::Evaluations => (
                "scheduler_plugin_evaluation_total",
                "counter",
                &["plugin", "extension_point", "profile"],
                (0.0, 1.0, 0),
                "How many questions plug-ins were asked: one for each pod, or each pod and node.",
            ),
            Self::NodeHint => (
                "scheduler_get_node_hint_duration_seconds",
                "histogram",
                &["hinted", "profile"],
                (1e-05, 2.0, 12),
                "How long it took to find a node in what is kept for equal pods, in seconds.",
            ),
            Self::Batch => (
                "scheduler_batch_attempts_total",
                "counter",
                &["profile", "result"],
                (0.0, 1.0, 0),
                "Decisions, by whether what is kept for equal pods was of use.",
            ),
            Self::QueueingHint => (
                "scheduler_queueing_hint_execution_duration_seconds",
                "histogram",
                &["plugin", "event", "hint"],
                (1e-05, 1.5, 20),
                "How long queueing hints took, in seconds.",
            ),
            Self::EventHandling => (
                "scheduler_event_handling_duration_seconds",
                "histogram",
                &["event"],
                (0.0001, 2.0, 12),
                "How long it took to take over what has happened in the cluster, in seconds.",
            ),
            Self::Goroutines => (
                "scheduler_goroutines",
                "gauge",
                &["operation"],
                (0.0, 1.0, 0),
                "Tasks that are under way, by what they do.",
            ),
            Self::AfterFlush => (
                "scheduler_pod_scheduled_after_flush_total",
                "counter",
                &[],
                (0.0, 1.0, 0),
                "Pods that got a node at a try that no event but the time brought about.",
            ),
            Self::PreemptionDuration => (
                "scheduler_preemption_goroutines_duration_seconds",
                "histogram",
                &["result"],
                (0.01, 2.0, 20),
                "How long it took to have victims removed, in seconds.",
            ),
            Self::PreemptionExecutions => (
                "scheduler_preemption_goroutines_execution_total",
                "counter",
                &["result"],
                (0.0, 1.0, 0),
                "How often victims were removed, or could not be.",
            ),
            Self::GroupAttempts => (
                "scheduler_podgroup_schedule_attempts_total",
                "counter",
                &["result", "profile"],
                (0.0, 1.0, 0),
                "Tries to schedule pod groups, by how they ended.",
            ),
            Self::GroupDuration => (
                "scheduler_podgroup_scheduling_attempt_duration_seconds",
                "histogram",
                &["result", "profile"],
                (0.001, 2.0, 15),
                "How long tries of pod groups took, in seconds.",
            ),
            Self::GroupAlgorithm => (
                "scheduler_podgroup_scheduling_algorithm_duration_seconds",
                "histogram",
                &[],
                (0.001, 2.0, 15),
                "How long decisions on pod groups took, in seconds.",
            ),
            Self::PermitWait => (
                "scheduler_permit_wait_duration_seconds",
                "histogram",
                &["result"],
                (0.001, 2.0, 15),
                "How long pods waited for a permission, in seconds.",
            ),
            Self::CacheSize => (
                "scheduler_cache_size",
                "gauge",
                &["type"],
                (0.0, 1.0, 0),
                "Nodes, pods, and pods whose place is not shown yet.",
            ),
            Self::InFlightEvents => (
                "scheduler_inflight_events",
                "gauge",
                &["event"],
                (0.0, 1.0, 0),
                "Events that are kept for pods that wait for a permission, and those pods.",
            ),
            Self::BatchFlushed => (
                "scheduler_batch_cache_flushed_total",
                "counter",
                &["profile", "reason"],
                (0.0, 1.0, 0),
                "How often what was kept for equal pods had become void, by why.",
            ),
            Self::StoreResults => (
                "scheduler_store_schedule_results_duration_seconds",
                "histogram",
                &["profile"],
                (1e-05, 2.0, 12),
                "How long it took to ask all nodes for what is then kept for equal pods, in seconds.",
            ),
            Self::ApiCalls => (
                "scheduler_async_api_call_execution_total",
                "counter",
                &["call_type", "result"],
                (0.0, 1.0, 0),
                "Requests that were made beside the decisions, by how they ended.",
            ),
            Self::ApiCallDuration => (
                "scheduler_async_api_call_execution_duration_seconds",
                "histogram",
                &["call_type", "result"],
                (0.001, 2.0, 15),
                "How long requests took that were made beside the decisions, in seconds.",
            ),
            Self::ApiCallsPending => (
                "scheduler_pending_async_api_calls",
                "gauge",
                &["call_type"],
                (0.0, 1.0, 0),
                "Requests beside the decisions that have no answer yet.",
            ),
            Self::ClaimCreates => (
                "scheduler_resourceclaim_creates_total",
                "counter",
                &["status"],
                (0.0, 1.0, 0),
                "Claims that were made for extended resources, or could not be.",
            ),
            Self::ConditionsAllocations => (
                "scheduler_dra_bindingconditions_allocations_total",
                "counter",
                &["profile", "driver", "status"],
                (0.0, 1.0, 0),
                "Devices with binding conditions that pods were given, by what became of the conditions.",
            ),
            Self::ConditionsWait => (
                "scheduler_dra_bindingconditions_wait_duration_seconds",
                "histogram",
                &["profile", "driver", "status"],
                (0.1, 2.0, 14),
                "How long pods waited for the binding conditions of devices, in seconds.",
            ),
        };
        Description { name, kind, labels, buckets, help }
    }

    pub(super) fn name(self) -> &'static str {
        self.describe().name
    }

    pub(super) fn kind(self) -> &'static str {
        self.describe().kind
    }

    pub(super) fn help(self) -> &'static str {
        self.describe().help
    }

    pub(super) fn labels(self) -> &'static [&'static str] {
        self.describe().labels
    }

    /// The upper bounds of a histogram; none of anything else.
    pub(super) fn bounds(self) -> impl Iterator<Item = f64> {
        let (first, factor, count) = self.describe().buckets;
        std::iter::successors(Some(first), move |bound| Some(bound * factor)).take(count)
    }
}
