//! Security contexts of pods and containers, but for Windows.

use std::collections::BTreeSet;

use kschema::error::FieldError;
use serde_json::Value;

use super::{containers::all_containers, spec::Scope, windows};
use crate::{
    check::{Internal, Look, Path, Report},
    volume_source::descending_path,
};

type Errors = Vec<FieldError>;

/// The longest name of a sysctl, in bytes.
const SYSCTL_BYTES_MAX: usize = 253;
/// The longest name of an AppArmor profile, in bytes.
const PROFILE_BYTES_MAX: usize = 4095;
const PROFILE_TYPES: [&str; 3] = ["Localhost", "RuntimeDefault", "Unconfined"];

fn id(object: &Value, path: &Path<'_>, key: &str, errors: &mut Errors) {
    errors.in_range(object, path, key, 0, i64::from(i32::MAX));
}

/// Checks the pod's security context.
pub(crate) fn validate_pod(scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    let spec = scope.spec;
    let Some(context) = spec.get_some("securityContext") else {
        return;
    };
    let path = path.field("securityContext");
    if !context.as_object().is_some_and(serde_json::Map::is_empty) {
        ids(context, &path, errors);
    }
    if spec.flag("shareProcessNamespace") && spec.flag("hostPID") {
        let why = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.field("shareProcessNamespace"), true, why);
    }
    sysctls(scope, context, &path.field("sysctls"), errors);
    errors.optional_one_of(context, &path, "fsGroupChangePolicy", &["Always", "OnRootMismatch"]);
    seccomp(context, &path, errors);
    windows::validate_options(context, &path, errors);
    app_armor(context, &path, errors);
    errors.optional_one_of(context, &path, "supplementalGroupsPolicy", &["Merge", "Strict"]);
    let policies: &[&str] =
        if scope.options.se_linux_policies { &["MountOption", "Recursive"] } else { &["Recursive"] };
    errors.optional_one_of(context, &path, "seLinuxChangePolicy", policies);
}

fn ids(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    for key in ["fsGroup", "runAsUser", "runAsGroup"] {
        id(context, path, key, errors);
    }
    let list = path.field("supplementalGroups");
    for (index, group) in context.list("supplementalGroups").iter().enumerate() {
        let group = group.as_i64().unwrap_or_default();
        if !(0..=i64::from(i32::MAX)).contains(&group) {
            errors.invalid(&list.index(index), group, "must be between 0 and 2147483647, inclusive");
        }
    }
}

fn sysctls(scope: &Scope<'_>, context: &Value, list: &Path<'_>, errors: &mut Errors) {
    const SEGMENT: &str = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let mut names = BTreeSet::new();
    for (index, sysctl) in context.list("sysctls").iter().enumerate() {
        let (item, name) = (list.index(index), sysctl.text("name"));
        let path = item.field("name");
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl(name) {
            let why = format!(
                "must have at most {SYSCTL_BYTES_MAX} characters and match regex ^({SEGMENT}[\\./])*{SEGMENT}$"
            );
            errors.invalid(&path, name, why);
        } else if names.contains(name) {
            errors.duplicate(&path, name);
        }
        if !scope.options.lax_sysctls {
            host_sysctl(scope.spec, name, &path, errors);
        }
        names.insert(name);
    }
}

fn is_sysctl(name: &str) -> bool {
    let low = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= SYSCTL_BYTES_MAX
        && name.split(['.', '/']).all(|part| {
            let bytes = part.as_bytes();
            bytes.first().is_some_and(low)
                && bytes.last().is_some_and(low)
                && bytes.iter().all(|byte| low(byte) || matches!(byte, b'-' | b'_'))
        })
}

/// A sysctl of a namespace that the pod shares with the host would be the host's.
fn host_sysctl(spec: &Value, name: &str, path: &Path<'_>, errors: &mut Errors) {
    const IPC: [&str; 10] = [
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
        "kernel.shm",
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.msg",
    ];
    // A name with slashes has them for dots, and dots for slashes.
    let separated_by_slashes = name.find(['.', '/']).is_some_and(|at| name.as_bytes()[at] == b'/');
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    let name_with_dots: String =
        if separated_by_slashes { name.chars().map(swap).collect() } else { name.to_owned() };
    let plain = name_with_dots.split('*').next().unwrap_or_default();
    if spec.flag("hostNetwork") && plain.starts_with("net.") {
        errors.invalid(path, name, "may not be specified when 'hostNetwork' is true");
    } else if spec.flag("hostIPC") && (IPC.contains(&plain) || plain.starts_with("fs.mqueue.")) {
        errors.invalid(path, name, "may not be specified when 'hostIPC' is true");
    }
}

/// The sysctls of an old pod that would be the host's, which was allowed once.
pub(crate) fn host_sysctls(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for sysctl in spec.get("securityContext").map(|context| context.list("sysctls")).unwrap_or_default() {
        host_sysctl(spec, sysctl.text("name"), path, errors);
    }
}

/// Checks `seccompProfile` of a context.
fn seccomp(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(profile) = context.get_some("seccompProfile") else {
        return;
    };
    let path = path.field("seccompProfile");
    let (kind, local, field) =
        (profile.text("type"), profile.some_text("localhostProfile"), path.field("localhostProfile"));
    match kind {
        "" => errors.required(&path.field("type"), "type is required when seccompProfile is set"),
        _ if !PROFILE_TYPES.contains(&kind) => errors.unsupported(&path.field("type"), kind, &PROFILE_TYPES),
        _ => {}
    }
    match local {
        None if kind == "Localhost" => errors.required(&field, "must be set when seccomp type is Localhost"),
        Some(local) if kind == "Localhost" => descending_path(local, &field, errors),
        Some(_) => errors.invalid(
            &field,
            Internal("~core.v1.SeccompProfile", Some(profile)),
            "can only be set when seccomp type is Localhost",
        ),
        None => {}
    }
}

/// Checks `appArmorProfile` of a context.
pub(crate) fn app_armor(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    const MISSING: &str = "must be set when AppArmor type is Localhost";
    let Some(profile) = context.get_some("appArmorProfile") else {
        return;
    };
    let path = path.field("appArmorProfile");
    let (local, field) = (profile.some_text("localhostProfile"), path.field("localhostProfile"));
    match (profile.text("type"), local) {
        ("Localhost", None) => errors.required(&field, MISSING),
        ("Localhost", Some(local)) => {
            if local.trim() != local {
                errors.invalid(&field, local, "must not be padded with whitespace");
            } else if local.is_empty() {
                errors.required(&field, MISSING);
            }
            if local.len() > PROFILE_BYTES_MAX {
                errors.too_long(&field, PROFILE_BYTES_MAX);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(local)) => {
            errors.invalid(&field, local, "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errors.required(&path.field("type"), "type is required when appArmorProfile is set"),
        (kind, _) => errors.unsupported(&path.field("type"), kind, &PROFILE_TYPES),
    }
}

/// Checks a container's security context.
pub(crate) fn validate_container(context: &Value, scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    id(context, path, "runAsUser", errors);
    id(context, path, "runAsGroup", errors);
    if let Some(kind) = context.some_text("procMount") {
        let field = path.field("procMount");
        if !["Default", "Unmasked"].contains(&kind) {
            errors.unsupported(&field, kind, &["Default", "Unmasked"]);
        }
        if scope.host_users && kind == "Unmasked" {
            errors.invalid(&field, kind, "`hostUsers` must be false to use `Unmasked`");
        }
    }
    seccomp(context, path, errors);
    if context.some_flag("allowPrivilegeEscalation") == Some(false) {
        if context.flag("privileged") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.invalid(path, Internal("~core.v1.SecurityContext", Some(context)), why);
        }
        let added = context.get("capabilities").map(|all| all.list("add")).unwrap_or_default();
        for _ in added.iter().filter(|capability| **capability == "CAP_SYS_ADMIN") {
            let why = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, Internal("~core.v1.SecurityContext", Some(context)), why);
        }
    }
    windows::validate_options(context, path, errors);
    app_armor(context, path, errors);
}

/// A pod in a user namespace of its own can't share the host's other ones (KEP-127).
pub(crate) fn validate_host_users(scope: &Scope<'_>, path: &Path<'_>, errors: &mut Errors) {
    const WHY: &str = "when `hostUsers` is false";
    if scope.host_users {
        return;
    }
    let spec = scope.spec;
    if spec.flag("hostNetwork") && !scope.options.lax_host_network {
        errors.forbidden(&path.field("hostNetwork"), WHY);
    }
    for (key, shown) in [("hostPID", "HostPID"), ("hostIPC", "HostIPC")] {
        if spec.flag(key) {
            errors.forbidden(&path.field(shown), WHY);
        }
    }
    for (list, index, container) in all_containers(spec).filter(|_| !scope.options.lax_devices) {
        if container.count("volumeDevices") > 0 {
            let list = path.field(list);
            errors.forbidden(&list.index(index).field("volumeDevices"), WHY);
        }
    }
}
