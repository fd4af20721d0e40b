//! Volumes and what provides them.

use serde_json::Value;

use super::columns::{AGE, Cell, Column, NAME, Table, at, is_deleting, join, list, plain, text, text_or};

const UNSET: &str = "<unset>";
const VOLUME_MODE: Column = Column::text(
    "VolumeMode",
    "Whether it is a file system or a block device.",
    Cell::FieldOr("spec.volumeMode", UNSET),
)
.wide();
const STATUS: Column = Column::text("Status", "What state it is in.", Cell::Text(phase));
const STORAGE_CLASS: Column = Column::text("StorageClass", "Its storage class.", Cell::Text(storage_class));
const ATTRIBUTES_CLASS: Column = Column::text(
    "VolumeAttributesClass",
    "Its class of volume attributes.",
    Cell::FieldOr("spec.volumeAttributesClassName", UNSET),
);

pub(super) const TABLES: &[Table] = &[
    Table::new(
        "persistentvolumes",
        &[
            NAME,
            Column::text(
                "Capacity",
                "How much it holds.",
                Cell::Text(|volume| text_or(volume, "spec.capacity.storage", "0").to_owned()),
            ),
            Column::text(
                "Access Modes",
                "How it may be mounted.",
                Cell::Text(|volume| access_modes(at(volume, "spec.accessModes"))),
            ),
            Column::text(
                "Reclaim Policy",
                "What happens when it is released.",
                Cell::Field("spec.persistentVolumeReclaimPolicy"),
            ),
            STATUS,
            Column::text("Claim", "The claim that it is bound to.", Cell::Text(claim)),
            STORAGE_CLASS,
            ATTRIBUTES_CLASS,
            Column::text("Reason", "Why it is in its state.", Cell::Field("status.reason")),
            AGE,
            VOLUME_MODE,
        ],
    ),
    Table::new(
        "persistentvolumeclaims",
        &[
            NAME,
            STATUS,
            Column::text("Volume", "The volume that it is bound to.", Cell::Field("spec.volumeName")),
            Column::text(
                "Capacity",
                "How much the volume holds.",
                Cell::Text(|claim| {
                    if text(claim, "spec.volumeName").is_empty() {
                        ""
                    } else {
                        text_or(claim, "status.capacity.storage", "0")
                    }
                    .to_owned()
                }),
            ),
            Column::text(
                "Access Modes",
                "How the volume may be mounted.",
                Cell::Text(|claim| {
                    if text(claim, "spec.volumeName").is_empty() {
                        String::new()
                    } else {
                        access_modes(at(claim, "status.accessModes"))
                    }
                }),
            ),
            STORAGE_CLASS,
            ATTRIBUTES_CLASS,
            AGE,
            VOLUME_MODE,
        ],
    ),
    Table::new(
        "storageclasses.storage.k8s.io",
        &[
            Column::text("Name", "The name, and whether it is the default class.", Cell::Text(class_name))
                .named(),
            Column::text("Provisioner", "Who provides volumes of this class.", Cell::Field("provisioner")),
            Column::text(
                "ReclaimPolicy",
                "What happens to volumes that are released.",
                Cell::FieldOr("reclaimPolicy", "Delete"),
            ),
            Column::text(
                "VolumeBindingMode",
                "When volumes are provided and bound.",
                Cell::FieldOr("volumeBindingMode", "Immediate"),
            ),
            Column::text(
                "AllowVolumeExpansion",
                "Whether volumes may grow.",
                Cell::Flag("allowVolumeExpansion", false),
            ),
            AGE,
        ],
    ),
    Table::new(
        "volumeattributesclasses.storage.k8s.io",
        &[
            NAME,
            Column::text("DriverName", "The driver that knows the attributes.", Cell::Field("driverName")),
            AGE,
        ],
    ),
    Table::new(
        "volumeattachments.storage.k8s.io",
        &[
            NAME,
            Column::text("Attacher", "Who attaches the volume.", Cell::Field("spec.attacher")).named(),
            Column::text("PV", "The volume.", Cell::Field("spec.source.persistentVolumeName")),
            Column::text("Node", "The node that it is attached to.", Cell::Field("spec.nodeName")),
            Column::boolean("Attached", "Whether it is attached.", Cell::Flag("status.attached", false)),
            AGE,
        ],
    ),
    Table::new(
        "csinodes.storage.k8s.io",
        &[
            NAME,
            Column::integer("Drivers", "How many drivers the node has.", Cell::Count("spec.drivers")),
            AGE,
        ],
    ),
    Table::new(
        "csidrivers.storage.k8s.io",
        &[
            NAME,
            Column::boolean(
                "AttachRequired",
                "Whether volumes must be attached.",
                Cell::Flag("spec.attachRequired", true),
            ),
            Column::boolean(
                "PodInfoOnMount",
                "Whether mounting tells the driver of the pod.",
                Cell::Flag("spec.podInfoOnMount", false),
            ),
            Column::boolean(
                "StorageCapacity",
                "Whether the driver says how much room there is.",
                Cell::Flag("spec.storageCapacity", false),
            ),
            Column::text(
                "TokenRequests",
                "The audiences of the tokens that the driver gets.",
                Cell::Text(token_requests),
            ),
            Column::boolean(
                "RequiresRepublish",
                "Whether volumes are published again and again.",
                Cell::Flag("spec.requiresRepublish", false),
            ),
            Column::text(
                "Modes",
                "The kinds of volumes that the driver provides.",
                Cell::Text(lifecycle_modes),
            ),
            AGE,
        ],
    ),
    Table::new(
        "csistoragecapacities.storage.k8s.io",
        &[
            NAME,
            Column::text("StorageClassName", "The storage class.", Cell::Field("storageClassName")),
            Column::text("Capacity", "How much room there is.", Cell::FieldOr("capacity", UNSET)),
        ],
    ),
];

fn phase(object: &Value) -> String {
    if is_deleting(object) { "Terminating" } else { text(object, "status.phase") }.to_owned()
}

/// The modes in short, each once, in upstream's order.
fn access_modes(modes: &Value) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| modes.as_array().is_some_and(|modes| modes.iter().any(|other| other == mode));
    SHORT.into_iter().filter(|(mode, _)| has(mode)).map(|(_, short)| short).collect::<Vec<_>>().join(",")
}

/// The storage class; the annotation is what came before the field.
fn storage_class(object: &Value) -> String {
    match &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"] {
        Value::String(class) => class.clone(),
        _ => text(object, "spec.storageClassName").to_owned(),
    }
}

fn claim(volume: &Value) -> String {
    match at(volume, "spec.claimRef") {
        Value::Null => String::new(),
        claim => format!("{}/{}", text(claim, "namespace"), text(claim, "name")),
    }
}

fn class_name(class: &Value) -> String {
    let name = text(class, "metadata.name");
    let annotations = &class["metadata"]["annotations"];
    let keys =
        ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
    if keys.iter().any(|key| annotations[key] == "true") {
        format!("{name} (default)")
    } else {
        name.to_owned()
    }
}

fn token_requests(driver: &Value) -> String {
    if at(driver, "spec.tokenRequests").is_null() {
        return UNSET.to_owned();
    }
    join(list(driver, "spec.tokenRequests"), "audience", ",")
}

fn lifecycle_modes(driver: &Value) -> String {
    let modes: Vec<String> = list(driver, "spec.volumeLifecycleModes").iter().map(plain).collect();
    if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") }
}
