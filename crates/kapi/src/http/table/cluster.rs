//! What a cluster consists of: nodes, namespaces, events and the small kinds of the core group.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    columns::{
        AGE, CREATED_AT, Cell, Column, NAME, Table, at, condition, count, list, number, plain, text, text_or,
    },
    duration,
};

pub(super) const TABLES: &[Table] = &[
    Table::new(
        "nodes",
        &[
            NAME,
            Column::text("Status", "Whether the node is ready and takes pods.", Cell::Text(node_status)),
            Column::text("Roles", "The node's roles, from its labels.", Cell::Text(node_roles)),
            AGE,
            Column::text(
                "Version",
                "The version of the node's agent.",
                Cell::Field("status.nodeInfo.kubeletVersion"),
            ),
            Column::text(
                "Internal-IP",
                "The node's address inside the cluster.",
                Cell::Text(|node| node_address(node, "InternalIP")),
            )
            .wide(),
            Column::text(
                "External-IP",
                "The node's address outside the cluster.",
                Cell::Text(|node| node_address(node, "ExternalIP")),
            )
            .wide(),
            Column::text(
                "OS-Image",
                "The node's operating system.",
                Cell::FieldOr("status.nodeInfo.osImage", "<unknown>"),
            )
            .wide(),
            Column::text("Kernel-Version", "The node's kernel and architecture.", Cell::Text(node_kernel))
                .wide(),
            Column::text(
                "Container-Runtime",
                "What runs the node's containers.",
                Cell::FieldOr("status.nodeInfo.containerRuntimeVersion", "<unknown>"),
            )
            .wide(),
        ],
    ),
    Table::new(
        "namespaces",
        &[
            NAME,
            Column::text("Status", "Whether the namespace is active or ends.", Cell::Field("status.phase")),
            AGE,
        ],
    ),
    Table::new("events", EVENT),
    Table::new("events.events.k8s.io", EVENT),
    Table::new(
        "configmaps",
        &[
            NAME,
            Column::text(
                "Data",
                "How many entries it has.",
                Cell::Json(|map| Value::from(count(&map["data"]) + count(&map["binaryData"]))),
            ),
            AGE,
        ],
    ),
    Table::new(
        "secrets",
        &[
            NAME,
            Column::text("Type", "What the secret is for.", Cell::Field("type")),
            Column::text("Data", "How many entries it has.", Cell::Count("data")),
            AGE,
        ],
    ),
    Table::new("serviceaccounts", &[NAME, AGE]),
    Table::new(
        "resourcequotas",
        &[
            NAME,
            Column::text(
                "Request",
                "What is requested of the quota.",
                Cell::Text(|quota| quota_of(quota, false)),
            ),
            Column::text("Limit", "What is limited by the quota.", Cell::Text(|quota| quota_of(quota, true))),
            AGE,
        ],
    ),
    Table::new("limitranges", &[NAME, CREATED_AT]),
    Table::new(
        "componentstatuses",
        &[
            NAME,
            Column::text("Status", "Whether the component is healthy.", Cell::Text(component_status)),
            Column::text(
                "Message",
                "What the component says.",
                Cell::Text(|status| component(status, "message")),
            ),
            Column::text("Error", "The component's error.", Cell::Text(|status| component(status, "error"))),
        ],
    ),
    Table::new(
        "leases.coordination.k8s.io",
        &[NAME, Column::text("Holder", "Who holds the lease.", Cell::Field("spec.holderIdentity")), AGE],
    ),
    Table::new(
        "leasecandidates.coordination.k8s.io",
        &[
            NAME,
            Column::text("LeaseName", "The lease that is applied for.", Cell::Field("spec.leaseName")),
            Column::text("BinaryVersion", "The candidate's version.", Cell::Field("spec.binaryVersion")),
            Column::text(
                "EmulationVersion",
                "The version that the candidate behaves as.",
                Cell::Field("spec.emulationVersion"),
            ),
            AGE,
        ],
    ),
];

const EVENT: &[Column] = &[
    Column::text("Last Seen", "How long ago it happened last.", Cell::Timed(|event, now| seen(event, now).0)),
    Column::text("Type", "Whether it is normal or a warning.", Cell::Field("type")),
    Column::text("Reason", "What happened, in a word.", Cell::Field("reason")),
    Column::text("Object", "What it happened to.", Cell::Text(event_object)),
    Column::text(
        "Subobject",
        "Which part of the object.",
        Cell::Text(|event| text(regarding(event), "fieldPath").to_owned()),
    )
    .wide(),
    Column::text("Source", "Who says so.", Cell::Text(event_source)).wide(),
    Column::text(
        "Message",
        "What happened, in words.",
        Cell::Text(|event| text_or(event, "message", text(event, "note")).trim().to_owned()),
    ),
    Column::text(
        "First Seen",
        "How long ago it happened first.",
        Cell::Timed(|event, now| seen(event, now).1),
    )
    .wide(),
    Column::text("Count", "How often it happened.", Cell::Json(|event| Value::from(event_count(event))))
        .wide(),
    Column::text("Name", "The event's name.", Cell::Field("metadata.name")).named().wide(),
];

/// What the event is about; `events.k8s.io` has another name for it.
fn regarding(event: &Value) -> &Value {
    match &event["involvedObject"] {
        Value::Null => &event["regarding"],
        object => object,
    }
}

fn event_object(event: &Value) -> String {
    let object = regarding(event);
    let kind = text(object, "kind").to_lowercase();
    match text(object, "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

/// The field of either group's events.
fn either<'a>(event: &'a Value, core: &str, other: &str) -> &'a Value {
    match &event[core] {
        Value::Null => &event[other],
        value => value,
    }
}

/// How long ago it happened last and first.
fn seen(event: &Value, now: Timestamp) -> (String, String) {
    let first = match either(event, "firstTimestamp", "deprecatedFirstTimestamp") {
        Value::Null => &event["eventTime"],
        time => time,
    };
    let last = match either(event, "lastTimestamp", "deprecatedLastTimestamp") {
        Value::Null => first,
        time => time,
    };
    let last = if event["series"].is_object() { &event["series"]["lastObservedTime"] } else { last };
    (duration::since(last, now), duration::since(first, now))
}

fn event_count(event: &Value) -> i64 {
    if event["series"].is_object() {
        return number(event, "series.count");
    }
    either(event, "count", "deprecatedCount").as_i64().unwrap_or_default().max(1)
}

fn event_source(event: &Value) -> String {
    let source = either(event, "source", "deprecatedSource");
    let reporter = text_or(event, "reportingComponent", text(event, "reportingController"));
    let component = text_or(source, "component", reporter);
    match text_or(source, "host", text(event, "reportingInstance")) {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

fn node_status(node: &Value) -> String {
    let status = match condition(node, "Ready") {
        Some(ready) if ready["status"] == "True" => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if at(node, "spec.unschedulable") == true {
        format!("{status},SchedulingDisabled")
    } else {
        status.to_owned()
    }
}

fn node_roles(node: &Value) -> String {
    let labels = at(node, "metadata.labels").as_object().into_iter().flatten();
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() { "<none>".to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn node_address(node: &Value, kind: &str) -> String {
    let mut addresses = list(node, "status.addresses").iter();
    let found = addresses.find(|address| address["type"] == kind);
    found.map_or("<none>", |address| text(address, "address")).to_owned()
}

fn node_kernel(node: &Value) -> String {
    let kernel = text_or(node, "status.nodeInfo.kernelVersion", "<unknown>");
    match text(node, "status.nodeInfo.architecture") {
        "" => kernel.to_owned(),
        architecture => format!("{kernel} ({architecture})"),
    }
}

/// What is used of what is there, for the resources that are limits or for the others.
fn quota_of(quota: &Value, limits: bool) -> String {
    let hard = at(quota, "status.hard").as_object().into_iter().flatten();
    let mut all: Vec<(&String, &Value)> =
        hard.filter(|(resource, _)| resource.starts_with("limits.") == limits).collect();
    all.sort_unstable_by_key(|(resource, _)| *resource);
    let written = all.into_iter().map(|(resource, hard)| {
        let used = match &quota["status"]["used"][resource] {
            Value::Null => "0".to_owned(),
            used => plain(used),
        };
        format!("{resource}: {used}/{}", plain(hard))
    });
    written.collect::<Vec<_>>().join(", ")
}

fn healthy(status: &Value) -> Option<&Value> {
    list(status, "conditions").iter().find(|condition| condition["type"] == "Healthy")
}

fn component_status(status: &Value) -> String {
    let word = match healthy(status) {
        Some(condition) if condition["status"] == "True" => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    word.to_owned()
}

fn component(status: &Value, field: &str) -> String {
    healthy(status).map(|condition| text(condition, field).to_owned()).unwrap_or_default()
}
