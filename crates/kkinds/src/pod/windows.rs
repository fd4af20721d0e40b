//! What pods for Windows may say, and what only they may say.

use kschema::error::FieldError;
use serde_json::Value;

use super::containers::all_containers;
use crate::check::{Look, Path, Report, form};

type Errors = Vec<FieldError>;

/// The largest credential specification, in KiB.
const CREDENTIAL_KIB_MAX: usize = 64;
/// The longest parts of a user's name (Windows' own limits).
const DOMAIN_BYTES_MAX: usize = 256;
const USER_BYTES_MAX: usize = 104;

/// Checks `windowsOptions` of a context.
pub(crate) fn validate_options(context: &Value, path: &Path<'_>, errors: &mut Errors) {
    let Some(options) = context.get_some("windowsOptions") else {
        return;
    };
    let path = path.field("windowsOptions");
    if let Some(name) = options.some_text("gmsaCredentialSpecName") {
        errors.faults(&path.field("gmsaCredentialSpecName"), name, form::dns_subdomain(name));
    }
    if let Some(spec) = options.some_text("gmsaCredentialSpec") {
        let field = path.field("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&field, spec, "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > CREDENTIAL_KIB_MAX * 1024 {
            let why = format!("gmsaCredentialSpec size must be under {CREDENTIAL_KIB_MAX} KiB");
            errors.invalid(&field, spec, why);
        }
    }
    if let Some(name) = options.some_text("runAsUserName") {
        for fault in user_faults(name) {
            errors.invalid(&path.field("runAsUserName"), name, fault);
        }
    }
}

/// What is wrong with `DOMAIN\user`.
fn user_faults(name: &str) -> Vec<String> {
    if name.is_empty() {
        return vec!["runAsUserName cannot be an empty string".to_owned()];
    }
    if name.bytes().any(|byte| byte.is_ascii_control()) {
        return vec!["runAsUserName cannot contain control characters".to_owned()];
    }
    let (domain, user) = match name.split_once('\\') {
        Some((_, rest)) if rest.contains('\\') => {
            return vec!["runAsUserName cannot contain more than one backslash".to_owned()];
        }
        Some((domain, user)) => (Some(domain), user),
        None => (None, name),
    };
    let mut faults = Vec::new();
    let mut check = |bad: bool, words: String| {
        if bad {
            faults.push(words);
        }
    };
    if let Some(domain) = domain {
        check(
            domain.len() >= DOMAIN_BYTES_MAX,
            format!("runAsUserName's Domain length must be under {DOMAIN_BYTES_MAX} characters"),
        );
        check(
            !is_net_bios(domain) && !is_dns(domain),
            "runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned(),
        );
    }
    check(user.is_empty(), "runAsUserName's User cannot be empty".to_owned());
    check(
        user.len() > USER_BYTES_MAX,
        format!("runAsUserName's User length must not be longer than {USER_BYTES_MAX} characters"),
    );
    check(
        !user.is_empty() && user.chars().all(|c| matches!(c, '.' | ' ')),
        "runAsUserName's User cannot contain only periods or spaces".to_owned(),
    );
    check(
        user.contains(|c| "\"/\\:;|=,+*?<>@[]".contains(c)),
        "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]".to_owned(),
    );
    faults
}

fn is_net_bios(domain: &str) -> bool {
    let length = domain.chars().count();
    (1..=15).contains(&length) && !domain.starts_with('.') && !domain.contains(|c| "\\/:*?\"<>|".contains(c))
}

fn is_dns(domain: &str) -> bool {
    domain.split('.').all(|label| {
        let bytes = label.as_bytes();
        (1..=63).contains(&bytes.len())
            && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    })
}

/// Whether a context says that processes run on the host.
fn host_process(context: Option<&Value>) -> Option<bool> {
    context?.get_some("windowsOptions")?.some_flag("hostProcess")
}

/// Containers that run on the host are alone in their pod (KEP-1981).
pub(crate) fn validate_host_process(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let of_pod = host_process(spec.get("securityContext"));
    let (mut all, mut on_host) = (0, 0);
    for (list, index, container) in all_containers(spec) {
        all += 1;
        let own = host_process(container.get("securityContext"));
        if let (Some(pod), Some(own)) = (of_pod, own)
            && pod != own
        {
            let why = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            let list = path.field(list);
            errors.invalid(&list.index(index).field("securityContext.windowsOptions.hostProcess"), own, why);
        }
        on_host += usize::from(own.or(of_pod).unwrap_or(false));
    }
    if on_host > 0 {
        if on_host != all {
            let why = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
            errors.invalid(path, "", why);
        }
        if !spec.flag("hostNetwork") {
            let why = "hostNetwork must be true if pod contains any hostProcess containers";
            errors.invalid(&path.field("hostNetwork"), false, why);
        }
    }
}

/// A pod for Linux says nothing about Windows.
pub(crate) fn validate_linux(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const WHY: &str = "windows options cannot be set for a linux pod";
    const FIELD: &str = "securityContext.windowsOptions";
    let given =
        |holder: &Value| holder.get("securityContext").is_some_and(|context| context.has("windowsOptions"));
    if given(spec) {
        errors.forbidden(&path.field(FIELD), WHY);
    }
    for (list, index, container) in all_containers(spec) {
        if given(container) {
            let list = path.field(list);
            errors.forbidden(&list.index(index).field(FIELD), WHY);
        }
    }
}

/// A pod for Windows says nothing about Linux.
pub(crate) fn validate(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const WHY: &str = "cannot be set for a windows pod";
    // What stands in the security context, and what stands beside it, in upstream's order.
    const OF_POD: [(&str, bool); 15] = [
        ("appArmorProfile", true),
        ("seLinuxOptions", true),
        ("hostUsers", false),
        ("hostPID", false),
        ("hostIPC", false),
        ("seccompProfile", true),
        ("fsGroup", true),
        ("fsGroupChangePolicy", true),
        ("sysctls", true),
        ("shareProcessNamespace", false),
        ("runAsUser", true),
        ("runAsGroup", true),
        ("supplementalGroups", true),
        ("supplementalGroupsPolicy", true),
        ("seLinuxChangePolicy", true),
    ];
    const OF_CONTAINER: [&str; 10] = [
        "appArmorProfile",
        "seLinuxOptions",
        "seccompProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "privileged",
        "allowPrivilegeEscalation",
        "procMount",
        "runAsUser",
        "runAsGroup",
    ];
    let context = spec.get_some("securityContext");
    let own = path.field("securityContext");
    for (key, inside) in OF_POD {
        let (holder, at) = if inside { (context, &own) } else { (Some(spec), path) };
        let given = match key {
            "hostPID" | "hostIPC" => spec.flag(key),
            "sysctls" => context.is_some_and(|context| context.count(key) > 0),
            _ => holder.is_some_and(|holder| holder.has(key)),
        };
        if given && context.is_some() {
            errors.forbidden(&at.field(key), WHY);
        }
    }
    for (list, index, container) in all_containers(spec) {
        let Some(context) = container.get_some("securityContext") else {
            continue;
        };
        let list = path.field(list);
        let item = list.index(index);
        let own = item.field("securityContext");
        for key in OF_CONTAINER.into_iter().filter(|key| context.has(key)) {
            errors.forbidden(&own.field(key), WHY);
        }
    }
}
