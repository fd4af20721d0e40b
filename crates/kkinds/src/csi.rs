//! What is known about CSI drivers: their needs, where they run, and how much room they have.

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::{
    check::{Internal, Look, Path, Report, form, labels, quantity, same, same_at, texts},
    node_labels,
    volume_source::csi_driver,
};

type Errors = Vec<FieldError>;

/// The strategy of `csidrivers`.
#[derive(Debug)]
pub(crate) struct CsiDrivers;

/// The strategy of `csinodes`.
#[derive(Debug)]
pub(crate) struct CsiNodes;

/// The strategy of `csistoragecapacities`.
#[derive(Debug)]
pub(crate) struct CsiStorageCapacities;

const NODE_ID_BYTES_MAX: usize = 256;
const TOKEN_SECONDS_MIN: i64 = 600;
const TOKEN_SECONDS_MAX: i64 = 1 << 32;
const UPDATE_SECONDS_MIN: i64 = 10;

fn tokens(spec: &Value, list: &Path<'_>, errors: &mut Errors) {
    let requests = spec.list("tokenRequests");
    for (index, request) in requests.iter().enumerate() {
        let path = list.index(index);
        let audience = request.text("audience");
        if requests[..index].iter().any(|other| other.text("audience") == audience) {
            errors.duplicate(&path.field("audience"), audience);
            continue;
        }
        let field = path.field("expirationSeconds");
        match request.some_int("expirationSeconds") {
            Some(seconds) if seconds < TOKEN_SECONDS_MIN => {
                errors.invalid(&field, seconds, "may not specify a duration less than 10 minutes");
            }
            Some(seconds) if seconds > TOKEN_SECONDS_MAX => {
                errors.invalid(&field, seconds, "may not specify a duration larger than 2^32 seconds");
            }
            _ => {}
        }
    }
}

impl Strategy for CsiDrivers {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        // Upstream writes the first one's name this way.
        for (key, shown) in [
            ("attachRequired", "attachedRequired"),
            ("podInfoOnMount", "podInfoOnMount"),
            ("storageCapacity", "storageCapacity"),
        ] {
            if !spec.has(key) {
                errors.required(&path.field(shown), "");
            }
        }
        let policies = ["File", "None", "ReadWriteOnceWithFSType"];
        errors.optional_one_of(spec, &path, "fsGroupPolicy", &policies);
        tokens(spec, &path.field("tokenRequests"), errors);
        let modes = ["Persistent", "Ephemeral"];
        for mode in texts(spec.list("volumeLifecycleModes")).filter(|mode| !modes.contains(mode)) {
            errors.unsupported(&path.field("volumeLifecycleModes"), mode, &modes);
        }
        if !spec.has("seLinuxMount") {
            errors.required(&path.field("seLinuxMount"), "");
        }
        let period = spec.some_int("nodeAllocatableUpdatePeriodSeconds");
        if let Some(period) = period.filter(|period| *period < UPDATE_SECONDS_MIN) {
            let field = path.field("nodeAllocatableUpdatePeriodSeconds");
            let why = format!("must be greater than or equal to {UPDATE_SECONDS_MIN} seconds");
            errors.invalid(&field, period, why);
        }
        if let Some(shown) = spec.some_flag("serviceAccountTokenInSecrets")
            && spec.count("tokenRequests") == 0
        {
            let why = "serviceAccountTokenInSecrets is set but no tokenRequests are specified";
            errors.invalid(&path.field("serviceAccountTokenInSecrets"), shown, why);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let (spec, was, path) = (&object["spec"], &old["spec"], Path::root("spec"));
        if spec.get_some("attachRequired") != was.get_some("attachRequired") {
            let shown = spec.get_some("attachRequired");
            errors.invalid(&path.field("attachedRequired"), shown, "field is immutable");
        }
        errors.immutable(spec, was, &path, "volumeLifecycleModes");
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let spec = &object["spec"];
        let asked = spec.count("tokenRequests") > 0 && !spec.has("serviceAccountTokenInSecrets");
        if asked && !old.is_some_and(|old| same_at(spec, &old["spec"], "tokenRequests")) {
            return vec!["spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent possible logging of tokens in volume attributes".to_owned()];
        }
        Vec::new()
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

fn driver(driver: &Value, before: &[Value], path: &Path<'_>, errors: &mut Errors) {
    let name = driver.text("name");
    csi_driver(name, &path.field("name"), errors);
    let (node, field) = (driver.text("nodeID"), path.field("nodeID"));
    if node.is_empty() {
        errors.required(&field, "");
    }
    if node.len() > NODE_ID_BYTES_MAX {
        errors.invalid(&field, node, format_args!("must be {NODE_ID_BYTES_MAX} characters or less"));
    }
    if let Some(allocatable) = driver.get_some("allocatable") {
        errors.not_negative(allocatable, &path.field("allocatable"), "count");
    }
    if before.iter().any(|other| other.text("name") == name) {
        errors.duplicate(&path.field("name"), name);
    }
    let keys: Vec<&str> = texts(driver.list("topologyKeys")).collect();
    for (index, key) in keys.iter().enumerate() {
        if key.is_empty() {
            errors.required(path, "");
        }
        if keys[..index].contains(key) {
            errors.duplicate(path, *key);
        }
        errors.faults(path, key, form::qualified_name(key));
    }
}

impl Strategy for CsiNodes {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let list = Path::root("spec.drivers");
        let drivers = object["spec"].list("drivers");
        for (index, one) in drivers.iter().enumerate() {
            driver(one, &drivers[..index], &list.index(index), errors);
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        let path = Path::root("spec.drivers");
        let without_room = |driver: &Value| {
            let mut driver = driver.clone();
            if let Some(map) = driver.as_object_mut() {
                map.remove("allocatable");
            }
            driver
        };
        for was in old["spec"].list("drivers") {
            let mut new = object["spec"].list("drivers").iter();
            if let Some(new) = new.find(|new| new.text("name") == was.text("name")) {
                let (new, was) = (without_room(new), without_room(was));
                if !same(&new, &was) {
                    errors.invalid(
                        &path,
                        Internal("~storage.v1.CSINodeDriver", Some(&new)),
                        "field is immutable",
                    );
                }
            }
        }
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

fn capacity(object: &Value, lax: bool, errors: &mut Errors) {
    let root = Path::root("");
    labels::selector(object.get_some("nodeTopology"), &Path::root("nodeTopology"), lax, errors);
    let class = object.text("storageClassName");
    errors.faults(&root.field("storageClassName"), class, form::dns_subdomain(class));
    if let Some(amount) = object.get_some("capacity") {
        quantity::value("capacity", amount, &Path::root("capacity"), errors);
    }
}

impl Strategy for CsiStorageCapacities {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        capacity(object, false, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        capacity(object, labels::is_faulty(old.get_some("nodeTopology")), errors);
        for key in ["nodeTopology", "storageClassName"] {
            errors.immutable(object, old, &Path::root(""), key);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        node_labels::selector_warnings(
            object.get_some("nodeTopology"),
            &Path::root("nodeTopology"),
            &mut out,
        );
        out
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
