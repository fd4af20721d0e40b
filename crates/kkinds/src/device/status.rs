//! Which devices a claim has been given, to whom, and how they are.

use kschema::{error::FieldError, quote::Quoted, quote::json_text};
use serde_json::Value;

use super::{
    CONFIGS_MAX, binding,
    claim::{request_name, request_names},
    configuration, fits, label, pool, raw, uid,
};
use crate::{
    check::{Internal, Look, Path, Report, Shown, address::parse_network_lenient, condition, same_at, texts},
    pod::affinity,
    volume_source::csi_driver,
};

type Errors = Vec<FieldError>;

const USERS_MAX: usize = 256;
const RESULTS_MAX: usize = 32;
const CONDITIONS_MAX: usize = 8;
const DATA_BYTES_MAX: usize = 10 * 1024;
const INTERFACE_BYTES_MAX: usize = 256;
const HARDWARE_BYTES_MAX: usize = 128;
const ADDRESSES_MAX: usize = 16;

/// What tells a device, or a share of one.
/// What identifies a device, as messages show it.
struct Identity<'d>([&'d str; 4]);

impl Shown for Identity<'_> {
    fn shown(&self) -> String {
        let keys = ["Driver", "Pool", "Device", "ShareID"];
        let fields = keys.iter().zip(self.0).map(|(key, text)| format!("\"{key}\":{}", json_text(text)));
        format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
    }
}

fn identity(device: &Value) -> [&str; 4] {
    ["driver", "pool", "device", "shareID"].map(|key| device.text(key))
}

fn results(status: &Value) -> &[Value] {
    status.pointer("/allocation/devices").map_or(&[], |devices| devices.list("results"))
}

/// What drivers have said about devices goes with the devices.
pub(super) fn forget_freed(object: &mut Value, old: &Value) {
    let given = |status: &Value| -> Vec<Vec<String>> {
        results(status).iter().map(|one| identity(one).map(str::to_owned).to_vec()).collect()
    };
    let (was, is) = (given(&old["status"]), given(&object["status"]));
    let freed = |device: &Value| {
        let key = identity(device).map(str::to_owned).to_vec();
        was.contains(&key) && !is.contains(&key)
    };
    let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) else {
        return;
    };
    if let Some(devices) = status.get_mut("devices").and_then(Value::as_array_mut) {
        devices.retain(|device| !freed(device));
        if devices.is_empty() {
            status.remove("devices");
        }
    }
}

/// Checks a change of the status.
pub(super) fn validate(object: &Value, old: &Value, errors: &mut Errors) {
    let (status, was, path) = (&object["status"], &old["status"], Path::root("status"));
    let none = Value::Null;
    let asked = object["spec"].get("devices").unwrap_or(&none);
    let (list, users) = (path.field("reservedFor"), status.list("reservedFor"));
    if fits(users.len(), USERS_MAX, &list, errors) {
        for (index, user) in users.iter().enumerate() {
            ["resource", "name", "uid"].iter().for_each(|key| errors.needs(user, &list.index(index), key));
        }
        for (index, user) in users.iter().enumerate() {
            let uid = user.text("uid");
            if users[..index].iter().any(|other| other.text("uid") == uid) {
                errors.duplicate(&list.index(index), uid);
            }
        }
    }
    let allocation = status.get_some("allocation");
    devices(status, &path.field("devices"), errors);
    if !users.is_empty() {
        let leaving = object["metadata"].has("deletionTimestamp");
        if allocation.is_none() {
            errors.forbidden(&list, "may not be specified when `allocated` is not set");
        } else if leaving && !users.iter().all(|user| was.list("reservedFor").contains(user)) {
            let why =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.forbidden(&list, why);
        }
    }
    let Some(found) = allocation else {
        return;
    };
    if was.has("allocation") {
        if !same_at(status, was, "allocation") {
            errors.invalid(
                &path.field("allocation"),
                Internal("~resource.v1.AllocationResult", Some(found)),
                "field is immutable",
            );
        }
    } else {
        allocated(found, asked, &path.field("allocation"), errors);
    }
}

fn allocated(allocation: &Value, asked: &Value, path: &Path<'_>, errors: &mut Errors) {
    let none = Value::Null;
    let devices = allocation.get("devices").unwrap_or(&none);
    let (list, found) = (path.field("devices.results"), devices.list("results"));
    if fits(found.len(), RESULTS_MAX, &list, errors) {
        for (index, result) in found.iter().enumerate() {
            let item = list.index(index);
            request_name(result.text("request"), asked, &item.field("request"), errors);
            device(result, &item, errors);
            binding(result, &item, errors);
        }
    }
    let (list, found) = (path.field("devices.config"), devices.list("config"));
    if fits(found.len(), 2 * CONFIGS_MAX, &list, errors) {
        for (index, config) in found.iter().enumerate() {
            let item = list.index(index);
            errors.one_of(&item.field("source"), config.text("source"), &["FromClaim", "FromClass"]);
            request_names(config, asked, &item, errors);
            configuration(config, &item, errors);
        }
    }
    if let Some(selector) = allocation.get_some("nodeSelector") {
        affinity::node_selector(selector, false, &path.field("nodeSelector"), errors);
    }
}

fn device(device: &Value, path: &Path<'_>, errors: &mut Errors) {
    csi_driver(device.text("driver"), &path.field("driver"), errors);
    pool(device.text("pool"), &path.field("pool"), errors);
    label(device.text("device"), &path.field("device"), errors);
    if let Some(share) = device.some_text("shareID") {
        uid(share, &path.field("shareID"), errors);
    }
}

fn devices(status: &Value, list: &Path<'_>, errors: &mut Errors) {
    let found = status.list("devices");
    for (index, one) in found.iter().enumerate() {
        let item = list.index(index);
        device(one, &item, errors);
        if !results(status).iter().any(|result| identity(result) == identity(one)) {
            errors.invalid(&item, Identity(identity(one)), "must be an allocated device in the claim");
        }
        let conditions = one.list("conditions");
        fits(conditions.len(), CONDITIONS_MAX, &item.field("conditions"), errors);
        condition::validate(conditions, &item.field("conditions"), errors);
        if one.has("data") {
            raw(one.get_some("data"), DATA_BYTES_MAX, &item.field("data"), errors);
        }
        if let Some(network) = one.get_some("networkData") {
            network_data(network, &item.field("networkData"), errors);
        }
    }
    for (index, one) in found.iter().enumerate() {
        if found[..index].iter().any(|other| identity(other) == identity(one)) {
            errors.duplicate(&list.index(index), identity(one)[..3].join("/"));
        }
    }
}

fn network_data(network: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (key, limit) in [("interfaceName", INTERFACE_BYTES_MAX), ("hardwareAddress", HARDWARE_BYTES_MAX)] {
        if network.text(key).len() > limit {
            errors.too_long(&path.field(key), limit);
        }
    }
    let list = path.field("ips");
    let found: Vec<&str> = texts(network.list("ips")).collect();
    if fits(found.len(), ADDRESSES_MAX, &list, errors) {
        for (index, address) in found.iter().enumerate() {
            interface_address(address, &list.index(index), errors);
            if found[..index].contains(address) {
                errors.duplicate(&list.index(index), *address);
            }
        }
    }
}

/// Checks an address with the length of its network's prefix.
fn interface_address(value: &str, path: &Path<'_>, errors: &mut Errors) {
    let Some((address, length)) = parse_network_lenient(value) else {
        let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        errors.invalid(path, value, why);
        return;
    };
    let canonical = format!("{address}/{length}");
    if canonical != value {
        errors.invalid(
            path,
            value,
            format_args!("must be in canonical form ({canonical})", canonical = Quoted(&canonical)),
        );
    }
}
