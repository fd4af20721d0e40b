//! The checks of the baseline level (`pod-security-admission/policy/check_*.go`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::checks::{Finding, Pod, bad, containers, plural, quoted, setters};

fn annotations<'p>(pod: &Pod<'p>) -> impl Iterator<Item = (&'p str, &'p str)> + use<'p> {
    let all = pod.meta["annotations"].as_object().into_iter().flatten();
    all.map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()))
}

/// The value, if it is set and not one of those allowed.
fn wrong_type<'v>(profile: &'v Value, allowed: &[&str]) -> Option<&'v str> {
    let found = profile.is_object().then(|| profile["type"].as_str().unwrap_or_default())?;
    (!allowed.contains(&found)).then_some(found)
}

pub(super) const PROFILES: [&str; 2] = ["RuntimeDefault", "Localhost"];

pub(super) fn app_armor(pod: &Pod<'_>) -> Option<Finding> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let profile = |of: &Value, values: &mut BTreeSet<String>| {
        let found = wrong_type(&of["securityContext"]["appArmorProfile"], &PROFILES);
        found.map(|found| values.insert(found.to_owned())).is_some()
    };
    let (names, mut values) = bad(pod, profile);
    let by_pod = profile(pod.spec, &mut values);
    let mut values: Vec<String> = values.into_iter().collect();
    let allowed =
        |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    let wrong = annotations(pod).filter(|(key, value)| key.starts_with(PREFIX) && !allowed(value));
    let mut wrong: Vec<String> = wrong.map(|(key, value)| format!("{key}={value:?}")).collect();
    wrong.sort();
    let mut who: Vec<String> = setters(by_pod, &names).into_iter().collect();
    if !wrong.is_empty() {
        who.push(plural("annotation", "annotations", wrong.len()).to_owned());
        values.extend(wrong);
    }
    if who.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    let detail = format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values));
    Finding::new(reason, detail)
}

pub(super) fn capabilities(pod: &Pod<'_>) -> Option<Finding> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let (names, values) = bad(pod, |container, values| added(container, &ALLOWED, values));
    let detail = format!(
        "{} must not include {} in securityContext.capabilities.add",
        containers(&names),
        quoted(&values)
    );
    if names.is_empty() { None } else { Finding::new("non-default capabilities", detail) }
}

/// Whether a container adds capabilities that it may not; they are put among the values.
pub(super) fn added(container: &Value, allowed: &[&str], values: &mut BTreeSet<String>) -> bool {
    let list = container["securityContext"]["capabilities"]["add"].as_array().into_iter().flatten();
    let wrong = list.filter_map(Value::as_str).filter(|name| !allowed.contains(name));
    let wrong: Vec<String> = wrong.map(str::to_owned).collect();
    let is_bad = !wrong.is_empty();
    values.extend(wrong);
    is_bad
}

pub(super) fn host_namespaces(pod: &Pod<'_>) -> Option<Finding> {
    let shared = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|key| pod.spec[*key] == true);
    let shared: Vec<String> = shared.map(|key| format!("{key}=true")).collect();
    if shared.is_empty() { None } else { Finding::new("host namespaces", shared.join(", ")) }
}

pub(super) fn host_paths(pod: &Pod<'_>) -> Option<Finding> {
    let volumes = pod.spec["volumes"].as_array().into_iter().flatten();
    let names: Vec<String> =
        volumes.filter(|volume| !volume["hostPath"].is_null()).map(super::checks::name).collect();
    let detail = format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names));
    if names.is_empty() { None } else { Finding::new("hostPath volumes", detail) }
}

pub(super) fn host_ports(pod: &Pod<'_>) -> Option<Finding> {
    let (names, values) = bad(pod, |container, values| {
        let ports = container["ports"].as_array().into_iter().flatten();
        let ports = ports.filter_map(|port| port["hostPort"].as_i64()).filter(|port| *port != 0);
        let ports: Vec<String> = ports.map(|port| port.to_string()).collect();
        let is_bad = !ports.is_empty();
        values.extend(ports);
        is_bad
    });
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("hostPort", "hostPorts", values.len()),
        values.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    );
    if names.is_empty() { None } else { Finding::new("hostPort", detail) }
}

pub(super) fn host_probes(pod: &Pod<'_>) -> Option<Finding> {
    const HANDLERS: [&str; 5] =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let (names, values) = bad(pod, |container, values| {
        let handlers = HANDLERS.iter().filter_map(|path| container.pointer(path));
        let hosts = handlers.flat_map(|handler| {
            ["httpGet", "tcpSocket"].into_iter().filter_map(|kind| handler[kind]["host"].as_str())
        });
        let hosts: Vec<String> = hosts.filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let is_bad = !hosts.is_empty();
        values.extend(hosts);
        is_bad
    });
    let names: Vec<String> = names.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    let detail = format!(
        "{} {} {} {}",
        containers(&names),
        plural("uses", "use", names.len()),
        plural("probe or lifecycle host", "probe or lifecycle hosts", values.len()),
        quoted(&values)
    );
    if names.is_empty() { None } else { Finding::new("probe or lifecycle host", detail) }
}

pub(super) fn privileged(pod: &Pod<'_>) -> Option<Finding> {
    let (names, _) = bad(pod, |container, _| container["securityContext"]["privileged"] == true);
    let detail = format!("{} must not set securityContext.privileged=true", containers(&names));
    if names.is_empty() { None } else { Finding::new("privileged", detail) }
}

pub(super) fn proc_mount(pod: &Pod<'_>) -> Option<Finding> {
    if pod.has_own_users() { None } else { any_proc_mount(pod) }
}

pub(super) fn any_proc_mount(pod: &Pod<'_>) -> Option<Finding> {
    let (names, values) = bad(pod, |container, values| {
        let kind = container["securityContext"]["procMount"].as_str().filter(|kind| *kind != "Default");
        kind.map(|kind| values.insert(kind.to_owned())).is_some()
    });
    let detail =
        format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(&values));
    if names.is_empty() { None } else { Finding::new("procMount", detail) }
}

pub(super) fn se_linux(pod: &Pod<'_>) -> Option<Finding> {
    let mut allowed = vec!["", "container_t", "container_init_t", "container_kvm_t"];
    if pod.minor >= 31 {
        allowed.push("container_engine_t");
    }
    let mut all: Vec<&Value> = pod.containers().collect();
    all.push(pod.spec);
    let sets = |key: &str| {
        all.iter().any(|of| {
            let text = of["securityContext"]["seLinuxOptions"][key].as_str();
            text.is_some_and(|text| !text.is_empty())
        })
    };
    let wrong = |of: &Value, values: &mut BTreeSet<String>| {
        let options = &of["securityContext"]["seLinuxOptions"];
        let text = |key: &str| options[key].as_str().unwrap_or_default();
        let is_wrong = !allowed.contains(&text("type"));
        if is_wrong {
            values.insert(text("type").to_owned());
        }
        is_wrong || !text("user").is_empty() || !text("role").is_empty()
    };
    let (names, mut values) = bad(pod, wrong);
    let by_pod = wrong(pod.spec, &mut values);
    let who = setters(by_pod, &names)?;
    let mut data = Vec::new();
    if !values.is_empty() {
        data.push(format!("{} {}", plural("type", "types", values.len()), quoted(&values)));
    }
    for key in ["user", "role"] {
        if sets(key) {
            data.push(format!("{key} may not be set"));
        }
    }
    let detail = format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; "));
    Finding::new("seLinuxOptions", detail)
}

/// Seccomp before it had fields.
pub(super) fn seccomp_annotations(pod: &Pod<'_>) -> Option<Finding> {
    const POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
    const CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
    let allowed = |value: &str| {
        ["runtime/default", "docker/default"].contains(&value) || value.starts_with("localhost/")
    };
    let own = |key: &str| {
        key == POD
            || key
                .strip_prefix(CONTAINER)
                .is_some_and(|name| pod.containers().any(|one| one["name"] == *name))
    };
    let wrong = annotations(pod).filter(|(key, value)| own(key) && !allowed(value));
    let wrong: BTreeSet<String> = wrong.map(|(key, value)| format!("{key}={value:?}")).collect();
    let list: Vec<&str> = wrong.iter().map(String::as_str).collect();
    let detail =
        format!("forbidden {} {}", plural("annotation", "annotations", wrong.len()), list.join(", "));
    if wrong.is_empty() { None } else { Finding::new("seccompProfile", detail) }
}

pub(super) fn seccomp(pod: &Pod<'_>) -> Option<Finding> {
    let wrong = |of: &Value, values: &mut BTreeSet<String>| {
        let found = wrong_type(&of["securityContext"]["seccompProfile"], &PROFILES);
        found.map(|found| values.insert(found.to_owned())).is_some()
    };
    let (names, mut values) = bad(pod, wrong);
    let by_pod = wrong(pod.spec, &mut values);
    let who = setters(by_pod, &names)?;
    let detail = format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&values));
    Finding::new("seccompProfile", detail)
}

pub(super) fn sysctls(pod: &Pod<'_>) -> Option<Finding> {
    /// With the first version that allows it.
    const ALLOWED: [(u64, &str); 12] = [
        (0, "kernel.shm_rmid_forced"),
        (0, "net.ipv4.ip_local_port_range"),
        (0, "net.ipv4.tcp_syncookies"),
        (0, "net.ipv4.ping_group_range"),
        (0, "net.ipv4.ip_unprivileged_port_start"),
        (27, "net.ipv4.ip_local_reserved_ports"),
        (29, "net.ipv4.tcp_keepalive_time"),
        (29, "net.ipv4.tcp_fin_timeout"),
        (29, "net.ipv4.tcp_keepalive_intvl"),
        (29, "net.ipv4.tcp_keepalive_probes"),
        (32, "net.ipv4.tcp_rmem"),
        (32, "net.ipv4.tcp_wmem"),
    ];
    let allowed = |name: &str| ALLOWED.iter().any(|(since, allowed)| *since <= pod.minor && *allowed == name);
    let all = pod.spec["securityContext"]["sysctls"].as_array().into_iter().flatten();
    let wrong = all.filter_map(|sysctl| sysctl["name"].as_str()).filter(|name| !allowed(name));
    let wrong: Vec<&str> = wrong.collect();
    if wrong.is_empty() { None } else { Finding::new("forbidden sysctls", wrong.join(", ")) }
}

pub(super) fn windows(pod: &Pod<'_>) -> Option<Finding> {
    let wrong = |of: &Value| of["securityContext"]["windowsOptions"]["hostProcess"] == true;
    let (names, _) = bad(pod, |container, _| wrong(container));
    let who = setters(wrong(pod.spec), &names)?;
    Finding::new("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}
