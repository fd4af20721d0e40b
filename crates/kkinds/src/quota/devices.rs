//! What ResourceClaims use.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1::{DeviceRequest, ResourceClaim};
use kcore::Quantity;

use super::Amounts;

/// What follows the name of a device class in the name of the resource that counts its devices (KEP-4381).
const CLASS_SUFFIX: &str = ".deviceclass.resource.k8s.io/devices";
const CLAIMS: &str = "count/resourceclaims.resource.k8s.io";
/// How many devices a claim can get: what one is charged that wants all there are (upstream's `AllocationResultsMaxSize`).
const DEVICES_MAX: i64 = 32;

pub(super) fn is_device_resource(name: &str) -> bool {
    name == CLAIMS || is_class_resource(name)
}

/// Whether it counts the devices of a class.
pub(super) fn is_class_resource(name: &str) -> bool {
    name.ends_with(CLASS_SUFFIX)
}

/// What one claim uses: itself, and of each device class as many devices as it may get in the worst case. Of alternatives the one with
/// the most of a class counts. A mode that is not known counts nothing.
#[must_use]
pub fn device_usage(claim: &ResourceClaim) -> Amounts {
    let mut usage: Amounts = [(CLAIMS.to_owned(), Quantity::from_value(1))].into();
    for request in
        claim.spec.iter().flat_map(|spec| &spec.devices).flat_map(|devices| devices.requests.iter().flatten())
    {
        for (class, count) in worst(request) {
            *usage.entry(format!("{class}{CLASS_SUFFIX}")).or_default() += Quantity::from_value(count);
        }
    }
    usage
}

/// The most devices of each class that a request can be given.
fn worst(request: &DeviceRequest) -> BTreeMap<&str, i64> {
    // What the server leaves out has its default.
    let number = |mode: Option<&str>, count: Option<i64>| match mode.unwrap_or("ExactCount") {
        "ExactCount" => count.unwrap_or(1),
        "All" => DEVICES_MAX,
        _ => 0,
    };
    let mut most = BTreeMap::new();
    let mut note = |class, count: i64| {
        let known = most.entry(class).or_insert(0);
        *known = count.max(*known);
    };
    let alternatives = request.first_available.as_deref().unwrap_or_default();
    for one in alternatives {
        note(one.device_class_name.as_str(), number(one.allocation_mode.as_deref(), one.count));
    }
    if let (true, Some(exactly)) = (alternatives.is_empty(), &request.exactly) {
        note(exactly.device_class_name.as_str(), number(exactly.allocation_mode.as_deref(), exactly.count));
    }
    most
}
