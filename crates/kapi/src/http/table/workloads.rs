//! Workloads: what makes pods.

use jiff::Timestamp;
use serde_json::Value;

use super::{
    columns::{
        AGE, Cell, Column, NAME, Table, at, is_deleting, is_true, join, list, number, plain, text, text_or,
    },
    duration, labels,
};

const CONTAINERS: Column = Column::text(
    "Containers",
    "The names of the template's containers.",
    Cell::Text(|object| containers(object, "name")),
)
.wide();
const IMAGES: Column = Column::text(
    "Images",
    "The images of the template's containers.",
    Cell::Text(|object| containers(object, "image")),
)
.wide();
const SELECTOR: Column = Column::text(
    "Selector",
    "Which pods belong to the object.",
    Cell::Text(|object| labels::selector(&object["spec"]["selector"])),
)
.wide();
const READY: Column =
    Column::text("Ready", "How many pods are ready, of how many wanted.", Cell::Text(ready));

pub(super) const TABLES: &[Table] = &[
    Table::new(
        "deployments.apps",
        &[
            NAME,
            READY,
            Column::text(
                "Up-to-date",
                "How many pods have the current template.",
                Cell::Number("status.updatedReplicas"),
            ),
            Column::text(
                "Available",
                "How many pods have been ready for long enough.",
                Cell::Number("status.availableReplicas"),
            ),
            AGE,
            CONTAINERS,
            IMAGES,
            Column::text(
                "Selector",
                "Which pods belong to the object.",
                Cell::Text(|object| labels::plain_selector(&object["spec"]["selector"])),
            )
            .wide(),
        ],
    ),
    Table::new("replicasets.apps", &[NAME, DESIRED, CURRENT, READY_COUNT, AGE, CONTAINERS, IMAGES, SELECTOR]),
    Table::new(
        "replicationcontrollers",
        &[
            NAME,
            DESIRED,
            CURRENT,
            READY_COUNT,
            AGE,
            CONTAINERS,
            IMAGES,
            Column::text(
                "Selector",
                "Which pods belong to the object.",
                Cell::Text(|object| labels::format(&object["spec"]["selector"])),
            )
            .wide(),
        ],
    ),
    Table::new("statefulsets.apps", &[NAME, READY, AGE, CONTAINERS, IMAGES]),
    Table::new(
        "daemonsets.apps",
        &[
            NAME,
            Column::integer(
                "Desired",
                "How many nodes should run the pod.",
                Cell::Number("status.desiredNumberScheduled"),
            ),
            Column::integer(
                "Current",
                "How many nodes run the pod and should.",
                Cell::Number("status.currentNumberScheduled"),
            ),
            Column::integer(
                "Ready",
                "How many nodes run the pod and it is ready.",
                Cell::Number("status.numberReady"),
            ),
            Column::integer(
                "Up-to-date",
                "How many nodes run the current template.",
                Cell::Number("status.updatedNumberScheduled"),
            ),
            Column::integer(
                "Available",
                "How many nodes run the pod and it is available.",
                Cell::Number("status.numberAvailable"),
            ),
            Column::text(
                "Node Selector",
                "Which nodes the pods may run on.",
                Cell::Text(|set| labels::format(at(set, "spec.template.spec.nodeSelector"))),
            ),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    Table::new(
        "jobs.batch",
        &[
            NAME,
            Column::text("Status", "What the job does, in a word.", Cell::Text(job_status)),
            Column::text(
                "Completions",
                "How many pods succeeded, of how many wanted.",
                Cell::Text(completions),
            ),
            Column::text(
                "Duration",
                "How long the job took, or has been running.",
                Cell::Timed(job_duration),
            ),
            AGE,
            CONTAINERS,
            IMAGES,
            SELECTOR,
        ],
    ),
    Table::new(
        "cronjobs.batch",
        &[
            NAME,
            Column::text("Schedule", "When jobs are started, in cron's form.", Cell::Field("spec.schedule")),
            Column::text(
                "Timezone",
                "The time zone of the schedule.",
                Cell::FieldOr("spec.timeZone", "<none>"),
            ),
            Column::boolean("Suspend", "Whether no jobs are started.", Cell::Text(suspended)),
            Column::integer("Active", "How many jobs run.", Cell::Count("status.active")),
            Column::text(
                "Last Schedule",
                "How long ago the last job was started.",
                Cell::Since("status.lastScheduleTime", "<none>"),
            ),
            AGE,
            CONTAINERS,
            IMAGES,
            Column::text(
                "Selector",
                "Which pods belong to the jobs.",
                Cell::Text(|object| labels::selector(at(object, "spec.jobTemplate.spec.selector"))),
            )
            .wide(),
        ],
    ),
    Table::new(
        "podtemplates",
        &[
            NAME,
            Column::text(
                "Containers",
                "The names of the template's containers.",
                Cell::Text(|object| join(list(object, "template.spec.containers"), "name", ",")),
            ),
            Column::text(
                "Images",
                "The images of the template's containers.",
                Cell::Text(|object| join(list(object, "template.spec.containers"), "image", ",")),
            ),
            Column::text(
                "Pod Labels",
                "The labels of the template.",
                Cell::Text(|object| labels::format(at(object, "template.metadata.labels"))),
            ),
        ],
    ),
    Table::new(
        "controllerrevisions.apps",
        &[
            NAME,
            Column::text("Controller", "What the revision belongs to.", Cell::Text(controller)),
            Column::text("Revision", "The number of the revision.", Cell::Number("revision")),
            AGE,
        ],
    ),
    Table::new(
        "horizontalpodautoscalers.autoscaling",
        &[
            NAME,
            Column::text(
                "Reference",
                "What is scaled.",
                Cell::Text(|hpa| {
                    format!(
                        "{}/{}",
                        text(hpa, "spec.scaleTargetRef.kind"),
                        text(hpa, "spec.scaleTargetRef.name")
                    )
                }),
            ),
            Column::text("Targets", "What is measured and what it should be.", Cell::Text(metrics)),
            Column::text(
                "MinPods",
                "The fewest pods.",
                Cell::Text(|hpa| match at(hpa, "spec.minReplicas") {
                    Value::Null => "<unset>".to_owned(),
                    least => plain(least),
                }),
            ),
            Column::text("MaxPods", "The most pods.", Cell::Number("spec.maxReplicas")),
            Column::text("Replicas", "How many pods there are.", Cell::Number("status.currentReplicas")),
            AGE,
        ],
    ),
    Table::new(
        "poddisruptionbudgets.policy",
        &[
            NAME,
            Column::text(
                "Min Available",
                "How many pods must be available.",
                Cell::Text(|budget| or_not_available(at(budget, "spec.minAvailable"))),
            ),
            Column::text(
                "Max Unavailable",
                "How many pods may be unavailable.",
                Cell::Text(|budget| or_not_available(at(budget, "spec.maxUnavailable"))),
            ),
            Column::integer(
                "Allowed Disruptions",
                "How many pods may be disrupted now.",
                Cell::Number("status.disruptionsAllowed"),
            ),
            AGE,
        ],
    ),
];

const DESIRED: Column =
    Column::integer("Desired", "How many pods are wanted.", Cell::Number("spec.replicas"));
const CURRENT: Column =
    Column::integer("Current", "How many pods there are.", Cell::Number("status.replicas"));
const READY_COUNT: Column =
    Column::integer("Ready", "How many pods are ready.", Cell::Number("status.readyReplicas"));

/// A field of each container of the pod template, wherever the kind keeps it.
fn containers(object: &Value, field: &str) -> String {
    let template = at(object, "spec.template");
    let template = if template.is_null() { at(object, "spec.jobTemplate.spec.template") } else { template };
    join(list(template, "spec.containers"), field, ",")
}

fn ready(object: &Value) -> String {
    format!("{}/{}", number(object, "status.readyReplicas"), number(object, "spec.replicas"))
}

fn job_status(job: &Value) -> String {
    let status = if is_true(job, "Complete") {
        "Complete"
    } else if is_true(job, "Failed") {
        "Failed"
    } else if is_deleting(job) {
        "Terminating"
    } else {
        let conditions = ["Suspended", "FailureTarget", "SuccessCriteriaMet"];
        conditions.into_iter().find(|kind| is_true(job, kind)).unwrap_or("Running")
    };
    status.to_owned()
}

fn completions(job: &Value) -> String {
    let succeeded = number(job, "status.succeeded");
    match (at(job, "spec.completions").as_i64(), number(job, "spec.parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel @ 2..) => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: Timestamp) -> String {
    let started = duration::time(at(job, "status.startTime"));
    let ended = duration::time(at(job, "status.completionTime")).unwrap_or(now);
    started.map(|started| duration::between(started, ended)).unwrap_or_default()
}

fn suspended(job: &Value) -> String {
    match at(job, "spec.suspend").as_bool() {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    }
    .to_owned()
}

/// The object's controller as `kind.group/name`.
fn controller(object: &Value) -> String {
    let owners = list(object, "metadata.ownerReferences");
    let Some(owner) = owners.iter().find(|owner| owner["controller"] == true) else {
        return "<none>".to_owned();
    };
    let (group, _) = kcore::kind::split_api_version(text(owner, "apiVersion"));
    let kind = text(owner, "kind").to_lowercase();
    let dot = if group.is_empty() { "" } else { "." };
    format!("{kind}{dot}{group}/{}", text(owner, "name"))
}

fn or_not_available(value: &Value) -> String {
    if value.is_null() { "N/A".to_owned() } else { plain(value) }
}

/// What is measured and wanted, for the first two metrics.
fn metrics(hpa: &Value) -> String {
    const SHOWN: usize = 2;
    let wanted = at(hpa, "spec.targetCPUUtilizationPercentage");
    if wanted.is_number() {
        // autoscaling/v1 knows one metric, which it keeps in fields of its own.
        let current = at(hpa, "status.currentCPUUtilizationPercentage").as_i64();
        return format!("cpu: {}/{}%", percent(current, "<unknown>"), plain(wanted));
    }
    let specs = list(hpa, "spec.metrics");
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let statuses = list(hpa, "status.currentMetrics");
    let shown: Vec<String> = specs
        .iter()
        .take(SHOWN)
        .enumerate()
        .map(|(index, spec)| metric(spec, statuses.get(index).unwrap_or(&Value::Null)))
        .collect();
    let shown = shown.join(", ");
    if specs.len() > SHOWN { format!("{shown} + {} more...", specs.len() - SHOWN) } else { shown }
}

fn metric(spec: &Value, status: &Value) -> String {
    let field = match text(spec, "type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let (target, current) = (&spec[field]["target"], &status[field]["current"]);
    let of_current = |name: &'static str| text_or(current, name, "<unknown>").to_owned();
    let average = text(target, "averageValue");
    match field {
        "resource" | "containerResource" => {
            let name = text(&spec[field], "name");
            if average.is_empty() {
                let now = percent(current["averageUtilization"].as_i64(), "<unknown>");
                format!("{name}: {now}/{}", percent(target["averageUtilization"].as_i64(), "<auto>"))
            } else {
                format!("{name}: {}/{average}", of_current("averageValue"))
            }
        }
        "pods" => format!("{}/{average}", of_current("averageValue")),
        _ if average.is_empty() => format!("{}/{}", of_current("value"), text(target, "value")),
        _ => format!("{}/{average} (avg)", of_current("averageValue")),
    }
}

fn percent(value: Option<i64>, otherwise: &str) -> String {
    value.map_or_else(|| otherwise.to_owned(), |value| format!("{value}%"))
}
