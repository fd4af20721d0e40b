//! Roles, who has them, and certificates.

use serde_json::Value;

use super::{
    columns::{AGE, CREATED_AT, Cell, Column, NAME, Table, at, list, text},
    duration, labels,
};

const BINDING: &[Column] = &[
    NAME,
    Column::text(
        "Role",
        "The role that is given.",
        Cell::Text(|binding| format!("{}/{}", text(binding, "roleRef.kind"), text(binding, "roleRef.name"))),
    ),
    AGE,
    Column::text("Users", "The users that have the role.", Cell::Text(|binding| subjects(binding, "User")))
        .wide(),
    Column::text(
        "Groups",
        "The groups that have the role.",
        Cell::Text(|binding| subjects(binding, "Group")),
    )
    .wide(),
    Column::text(
        "ServiceAccounts",
        "The service accounts that have the role.",
        Cell::Text(|binding| subjects(binding, "ServiceAccount")),
    )
    .wide(),
];

pub(super) const TABLES: &[Table] = &[
    Table::new("roles.rbac.authorization.k8s.io", &[NAME, CREATED_AT]),
    Table::new("clusterroles.rbac.authorization.k8s.io", &[NAME, CREATED_AT]),
    Table::new("rolebindings.rbac.authorization.k8s.io", BINDING),
    Table::new("clusterrolebindings.rbac.authorization.k8s.io", BINDING),
    Table::new(
        "certificatesigningrequests.certificates.k8s.io",
        &[
            NAME,
            AGE,
            Column::text("SignerName", "Who is asked to sign.", Cell::FieldOr("spec.signerName", "<none>")),
            Column::text("Requestor", "Who asks.", Cell::Field("spec.username")),
            Column::text(
                "RequestedDuration",
                "How long the certificate should hold.",
                Cell::Text(requested_duration),
            ),
            Column::text("Condition", "What became of the request.", Cell::Text(request_condition)),
        ],
    ),
    Table::new(
        "clustertrustbundles.certificates.k8s.io",
        &[
            NAME,
            Column::text(
                "SignerName",
                "The signer that the bundle belongs to.",
                Cell::FieldOr("spec.signerName", "<none>"),
            ),
        ],
    ),
    Table::new(
        "podcertificaterequests.certificates.k8s.io",
        &[
            NAME,
            Column::text("PodName", "The pod that the certificate is for.", Cell::Field("spec.podName")),
            Column::text(
                "ServiceAccountName",
                "The pod's service account.",
                Cell::Field("spec.serviceAccountName"),
            ),
            Column::text("NodeName", "The pod's node.", Cell::Field("spec.nodeName")),
            Column::text("SignerName", "Who is asked to sign.", Cell::Field("spec.signerName")),
            Column::text("State", "Pending, Issued, Denied or Failed.", Cell::Text(pod_request_state)),
            Column::text(
                "UnverifiedUserAnnotations",
                "What the pod says of itself.",
                Cell::Text(|request| labels::format(at(request, "spec.unverifiedUserAnnotations"))),
            ),
        ],
    ),
];

fn subjects(binding: &Value, kind: &str) -> String {
    let found = list(binding, "subjects").iter().filter(|subject| subject["kind"] == kind);
    let names = found.map(|subject| {
        let name = text(subject, "name");
        if kind == "ServiceAccount" {
            format!("{}/{name}", text(subject, "namespace"))
        } else {
            name.to_owned()
        }
    });
    names.collect::<Vec<_>>().join(", ")
}

fn requested_duration(request: &Value) -> String {
    at(request, "spec.expirationSeconds").as_i64().map_or_else(|| "<none>".to_owned(), duration::human)
}

fn request_condition(request: &Value) -> String {
    let has = |kind: &str| super::columns::condition(request, kind).is_some();
    let mut written = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if has("Failed") {
        written.push_str(",Failed");
    }
    if !text(request, "status.certificate").is_empty() {
        written.push_str(",Issued");
    }
    written
}

fn pod_request_state(request: &Value) -> String {
    let kinds = list(request, "status.conditions").iter().map(|condition| text(condition, "type"));
    kinds.rev().find(|kind| ["Issued", "Denied", "Failed"].contains(kind)).unwrap_or("Pending").to_owned()
}
