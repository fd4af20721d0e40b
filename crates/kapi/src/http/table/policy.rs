//! Priorities, runtime classes, flow control, admission and what extends the API.

use serde_json::Value;

use super::{
    columns::{
        AGE, CREATED_AT, Cell, Column, NAME, Table, at, condition, list, number, plain, text, text_or,
    },
    labels,
};

const WEBHOOKS: Column =
    Column::integer("Webhooks", "How many webhooks are configured.", Cell::Count("webhooks"));
const PARAM_KIND: Column =
    Column::text("ParamKind", "The kind of the policy's parameters.", Cell::Text(param_kind));
const BINDING: &[Column] = &[
    NAME,
    Column::text("PolicyName", "The policy that is bound.", Cell::Field("spec.policyName")),
    Column::text("ParamRef", "The policy's parameters.", Cell::Text(param_ref)),
    AGE,
];
const POD_GROUP: &[Column] = &[
    NAME,
    Column::text(
        "Policy",
        "How the group's pods are scheduled.",
        Cell::Text(|group| {
            if at(group, "spec.schedulingPolicy.gang").is_null() { "Basic" } else { "Gang" }.to_owned()
        }),
    ),
    Column::text(
        "Workload",
        "The workload that the group belongs to.",
        Cell::FieldOr("spec.workloadRef.workloadName", "<none>"),
    ),
    Column::text("Status", "Whether the group is scheduled.", Cell::Text(group_status)),
    AGE,
];

pub(super) const TABLES: &[Table] = &[
    Table::new(
        "priorityclasses.scheduling.k8s.io",
        &[
            NAME,
            Column::integer("Value", "The priority of pods of this class.", Cell::Number("value")),
            Column::boolean(
                "Global-Default",
                "Whether pods without a class get this one.",
                Cell::Flag("globalDefault", false),
            ),
            AGE,
            Column::text(
                "PreemptionPolicy",
                "Whether pods of this class may push others out.",
                Cell::Field("preemptionPolicy"),
            ),
        ],
    ),
    Table::new("workloads.scheduling.k8s.io", &[NAME, AGE]),
    Table::new("podgroups.scheduling.k8s.io", POD_GROUP),
    Table::new(
        "runtimeclasses.node.k8s.io",
        &[
            NAME,
            Column::text("Handler", "The runtime that the class stands for.", Cell::Field("handler")),
            AGE,
        ],
    ),
    Table {
        resource: "flowschemas.flowcontrol.apiserver.k8s.io",
        columns: &[
            NAME,
            Column::text(
                "PriorityLevel",
                "The level that matching requests go to.",
                Cell::Field("spec.priorityLevelConfiguration.name"),
            ),
            Column::text(
                "MatchingPrecedence",
                "Which schema is tried first: the lowest.",
                Cell::Number("spec.matchingPrecedence"),
            ),
            Column::text(
                "DistinguisherMethod",
                "What tells flows apart.",
                Cell::FieldOr("spec.distinguisherMethod.type", "<none>"),
            ),
            AGE,
            Column::text(
                "MissingPL",
                "Whether the level is missing.",
                Cell::Text(|schema| {
                    condition(schema, "Dangling")
                        .map_or("?", |condition| text(condition, "status"))
                        .to_owned()
                }),
            ),
        ],
        conditions: None,
        order: Some(|schema| {
            (number(schema, "spec.matchingPrecedence"), text(schema, "metadata.name").to_owned())
        }),
        reads: &[],
    },
    Table::new(
        "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io",
        &[
            NAME,
            Column::text("Type", "Whether requests of this level are limited.", Cell::Field("spec.type")),
            Column::text(
                "NominalConcurrencyShares",
                "The level's share of all requests at once.",
                Cell::Json(|level| level_cell(level, "spec.limited", "nominalConcurrencyShares")),
            ),
            Column::text(
                "Queues",
                "How many queues the level has.",
                Cell::Json(|level| level_cell(level, QUEUING, "queues")),
            ),
            Column::text(
                "HandSize",
                "How many queues a flow is dealt.",
                Cell::Json(|level| level_cell(level, QUEUING, "handSize")),
            ),
            Column::text(
                "QueueLengthLimit",
                "How long a queue may be.",
                Cell::Json(|level| level_cell(level, QUEUING, "queueLengthLimit")),
            ),
            AGE,
        ],
    ),
    Table::new("mutatingwebhookconfigurations.admissionregistration.k8s.io", &[NAME, WEBHOOKS, AGE]),
    Table::new("validatingwebhookconfigurations.admissionregistration.k8s.io", &[NAME, WEBHOOKS, AGE]),
    Table::new(
        "validatingadmissionpolicies.admissionregistration.k8s.io",
        &[
            NAME,
            Column::integer("Validations", "How many rules the policy has.", Cell::Count("spec.validations")),
            PARAM_KIND,
            AGE,
        ],
    ),
    Table::new(
        "mutatingadmissionpolicies.admissionregistration.k8s.io",
        &[
            NAME,
            Column::integer("Mutations", "How many mutations the policy has.", Cell::Count("spec.mutations")),
            PARAM_KIND,
            AGE,
        ],
    ),
    Table::new("validatingadmissionpolicybindings.admissionregistration.k8s.io", BINDING),
    Table::new("mutatingadmissionpolicybindings.admissionregistration.k8s.io", BINDING),
    Table::new("customresourcedefinitions.apiextensions.k8s.io", &[NAME, CREATED_AT]),
    Table::new(
        "apiservices.apiregistration.k8s.io",
        &[
            NAME,
            Column::text("Service", "The service that serves the group version.", Cell::Text(api_service)),
            Column::text("Available", "Whether the group version is served.", Cell::Text(api_available)),
            AGE,
        ],
    ),
    Table::new(
        "storageversions.internal.apiserver.k8s.io",
        &[
            NAME,
            Column::text(
                "CommonEncodingVersion",
                "The version that all servers write.",
                Cell::FieldOr("status.commonEncodingVersion", "<unset>"),
            ),
            Column::text(
                "StorageVersions",
                "The version that each server writes.",
                Cell::Text(storage_versions),
            ),
            AGE,
        ],
    ),
    Table::new(
        "storageversionmigrations.storagemigration.k8s.io",
        &[
            Column::text("Name", "The migration's name.", Cell::Field("metadata.name")),
            Column::text("Resource", "What is migrated.", Cell::Text(migrated)),
            Column::text("Status", "How far the migration is.", Cell::Text(migration_status)),
        ],
    ),
];

const QUEUING: &str = "spec.limited.limitResponse.queuing";

fn level_cell(level: &Value, place: &str, field: &str) -> Value {
    match at(level, place) {
        Value::Null => Value::from("<none>"),
        found => Value::from(number(found, field)),
    }
}

fn param_kind(policy: &Value) -> String {
    match at(policy, "spec.paramKind") {
        Value::Null => "<unset>".to_owned(),
        kind => format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")),
    }
}

fn param_ref(binding: &Value) -> String {
    let reference = at(binding, "spec.paramRef");
    match (text(reference, "name"), &reference["selector"]) {
        ("", Value::Null) => "<unset>".to_owned(),
        ("", selector) => labels::go_selector(selector),
        // Whether parameters are in a namespace can't be told from here.
        (name, _) => format!("{}/{name}", text_or(reference, "namespace", "*")),
    }
}

fn group_status(group: &Value) -> String {
    if let Some(target) = condition(group, "DisruptionTarget") {
        return text(target, "reason").to_owned();
    }
    let word = match condition(group, "PodGroupScheduled") {
        Some(scheduled) if scheduled["status"] == "True" => "Scheduled",
        Some(_) => "Unschedulable",
        None => "Pending",
    };
    word.to_owned()
}

fn api_service(service: &Value) -> String {
    match at(service, "spec.service") {
        Value::Null => "Local".to_owned(),
        found => format!("{}/{}", text(found, "namespace"), text(found, "name")),
    }
}

fn api_available(service: &Value) -> String {
    let Some(available) = condition(service, "Available") else {
        return "Unknown".to_owned();
    };
    match (text(available, "status"), text(available, "reason")) {
        (status, reason) if status != "True" && !reason.is_empty() => format!("{status} ({reason})"),
        (status, _) => status.to_owned(),
    }
}

fn storage_versions(version: &Value) -> String {
    let servers = list(version, "status.storageVersions").iter();
    let written = servers
        .map(|server| format!("{}={}", text(server, "apiServerID"), plain(&server["encodingVersion"])));
    super::columns::first_three(&written.collect::<Vec<_>>(), "<unset>")
}

fn migrated(migration: &Value) -> String {
    let resource = at(migration, "spec.resource");
    match text(resource, "group") {
        "" => text(resource, "resource").to_owned(),
        group => format!("{}.{group}", text(resource, "resource")),
    }
}

fn migration_status(migration: &Value) -> String {
    let conditions = list(migration, "status.conditions").iter();
    let holding =
        conditions.filter(|condition| condition["status"] == "True").map(|condition| text(condition, "type"));
    holding
        .rev()
        .find(|kind| ["Running", "Failed", "Succeeded"].contains(kind))
        .unwrap_or("Unknown")
        .to_owned()
}
