//! The libraries that Kubernetes adds to the language (`apiserver/pkg/cel/environment/base.go` says which; each file
//! names its source).

mod authz;
mod devices;
pub(crate) mod format;
pub(crate) mod format_text;
mod json_patch;
mod list_extensions;
mod lists;
mod network;
mod patterns;
mod quantities;
mod sets;
mod strings;
mod versions;
mod web;

pub(crate) use self::devices::INCLUDES_MAX;
use crate::functions::Functions;

/// Those of every environment.
pub(crate) fn add(functions: &mut Functions) {
    web::add(functions);
    patterns::add(functions);
    strings::add(functions);
    lists::add(functions);
    authz::add(functions);
    quantities::add(functions);
    sets::add(functions);
    network::add(functions);
    format::add(functions);
    versions::add(functions);
    list_extensions::add(functions);
}

/// Those of selectors of devices.
pub(crate) fn add_devices(functions: &mut Functions) {
    devices::add(functions);
}

/// Those of mutating policies.
pub(crate) fn add_mutation(functions: &mut Functions) {
    json_patch::add(functions);
}
