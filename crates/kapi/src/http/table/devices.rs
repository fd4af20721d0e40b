//! Devices (`resource.k8s.io`).

use jiff::Timestamp;
use serde_json::Value;

use super::{
    columns::{AGE, Cell, Column, NAME, Table, at, is_deleting, list, number},
    duration,
};

pub(super) const TABLES: &[Table] = &[
    Table::new("deviceclasses.resource.k8s.io", &[NAME, AGE]),
    Table::new("resourceclaimtemplates.resource.k8s.io", &[NAME, AGE]),
    Table::new(
        "resourceclaims.resource.k8s.io",
        &[
            NAME,
            Column::text(
                "State",
                "Whether the claim is pending, allocated, reserved.",
                Cell::Text(claim_state),
            ),
            AGE,
        ],
    ),
    Table::new(
        "resourceslices.resource.k8s.io",
        &[
            NAME,
            Column::text("Node", "The node that has the devices.", Cell::Field("spec.nodeName")),
            Column::text("Driver", "The driver of the devices.", Cell::Field("spec.driver")),
            Column::text("Pool", "The pool of the devices.", Cell::Field("spec.pool.name")),
            AGE,
        ],
    ),
    Table::new(
        "devicetaintrules.resource.k8s.io",
        &[
            NAME,
            Column::text("Key", "The taint's key.", Cell::Field("spec.taint.key")),
            Column::text("Value", "The taint's value.", Cell::Field("spec.taint.value")),
            Column::text("Effect", "What the taint does to pods.", Cell::Field("spec.taint.effect")),
            Column::text(
                "TimeAdded",
                "How long ago the taint was added.",
                Cell::Since("spec.taint.timeAdded", ""),
            ),
            AGE,
        ],
    ),
    Table::new(
        "resourcepoolstatusrequests.resource.k8s.io",
        &[
            NAME,
            Column::text("Driver", "The driver whose pools are asked for.", Cell::Field("spec.driver")),
            Column::text(
                "Total",
                "How many devices there are.",
                Cell::Text(|request| sum(request, "totalDevices")),
            ),
            Column::text(
                "Available",
                "How many devices are available.",
                Cell::Text(|request| sum(request, "availableDevices")),
            ),
            Column::text(
                "Allocated",
                "How many devices are allocated.",
                Cell::Text(|request| sum(request, "allocatedDevices")),
            ),
            Column::text(
                "Unavailable",
                "How many devices are unavailable.",
                Cell::Text(|request| sum(request, "unavailableDevices")),
            ),
            Column::text("Errors", "How many pools are not valid.", Cell::Text(errors)),
            Column::integer("Pools", "How many pools match.", Cell::Number("status.poolCount")),
            Column::text("Status", "How far the request is.", Cell::Text(pool_status)),
            Column::text("Completed", "How long ago it was answered.", Cell::Timed(completed)),
        ],
    ),
];

fn claim_state(claim: &Value) -> String {
    let mut states = Vec::new();
    let deleted = is_deleting(claim);
    if deleted {
        states.push("deleted");
    }
    if !at(claim, "status.allocation").is_null() {
        states.push("allocated");
        if !list(claim, "status.reservedFor").is_empty() {
            states.push("reserved");
        }
    } else if !deleted {
        states.push("pending");
    }
    states.join(",")
}

/// The first condition that says how a request ended.
fn outcome(request: &Value) -> Option<&Value> {
    let mut conditions = list(request, "status.conditions").iter();
    conditions.find(|condition| {
        condition["status"] == "True" && (condition["type"] == "Complete" || condition["type"] == "Failed")
    })
}

/// The pools of a request that has been answered and did not fail.
fn pools(request: &Value) -> Option<&[Value]> {
    let failed = outcome(request).is_some_and(|condition| condition["type"] == "Failed");
    (!request["status"].is_null() && !failed).then(|| list(request, "status.pools"))
}

fn sum(request: &Value, field: &str) -> String {
    pools(request).map_or_else(
        || "-".to_owned(),
        |pools| pools.iter().map(|pool| number(pool, field)).sum::<i64>().to_string(),
    )
}

fn errors(request: &Value) -> String {
    pools(request).map_or_else(
        || "-".to_owned(),
        |pools| pools.iter().filter(|pool| !pool["validationError"].is_null()).count().to_string(),
    )
}

fn pool_status(request: &Value) -> String {
    let Some(outcome) = outcome(request) else {
        return "Pending".to_owned();
    };
    if outcome["type"] == "Failed" {
        return "Failed".to_owned();
    }
    let (shown, all) = (list(request, "status.pools").len(), number(request, "status.poolCount"));
    if usize::try_from(all).is_ok_and(|all| all > shown) {
        format!("Complete ({shown}/{all} pools)")
    } else {
        "Complete".to_owned()
    }
}

fn completed(request: &Value, now: Timestamp) -> String {
    match outcome(request) {
        Some(outcome) if outcome["type"] == "Complete" => {
            duration::since(&outcome["lastTransitionTime"], now)
        }
        _ => "<none>".to_owned(),
    }
}
