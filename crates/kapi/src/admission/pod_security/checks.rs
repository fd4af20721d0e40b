//! The checks of the standard: which there are in which version, and what they have in common.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    baseline,
    level::{Level, LevelVersion, Version},
    restricted,
};

/// What a check found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) reason: String,
    pub(super) detail: String,
}

impl Finding {
    pub(super) fn new(reason: impl Into<String>, detail: impl Into<String>) -> Option<Self> {
        Some(Self { reason: reason.into(), detail: detail.into() })
    }

    /// All findings with their details, in one line.
    pub(super) fn details(findings: &[Self]) -> String {
        let one = |Self { reason, detail }: &Self| {
            if detail.is_empty() { reason.clone() } else { format!("{reason} ({detail})") }
        };
        findings.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// The reasons alone.
    pub(super) fn reasons(findings: &[Self]) -> String {
        findings.iter().map(|finding| finding.reason.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// A pod, or what pods are made of: metadata and specification.
pub(super) struct Pod<'p> {
    pub(super) meta: &'p Value,
    pub(super) spec: &'p Value,
    /// The minor version that the check is to be done as in.
    pub(super) minor: u64,
}

impl<'p> Pod<'p> {
    /// All containers: those of the beginning, the others, and the ephemeral ones.
    pub(super) fn containers(&self) -> impl Iterator<Item = &'p Value> + use<'p> {
        let spec = self.spec;
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        lists.into_iter().flat_map(move |key| spec[key].as_array().into_iter().flatten())
    }

    pub(super) fn is_windows(&self) -> bool {
        self.minor >= 25 && self.spec["os"]["name"] == "windows"
    }

    /// Whether the pod's users are others outside of it, which some checks rely on since 1.35.
    pub(super) fn has_own_users(&self) -> bool {
        self.minor >= 35 && self.spec["hostUsers"] == false
    }
}

pub(super) fn name(container: &Value) -> String {
    container["name"].as_str().unwrap_or_default().to_owned()
}

pub(super) fn plural<'w>(one: &'w str, several: &'w str, count: usize) -> &'w str {
    if count == 1 { one } else { several }
}

/// Texts in quotes.
pub(super) fn quoted<'t>(texts: impl IntoIterator<Item = &'t String>) -> String {
    let texts: Vec<&str> = texts.into_iter().map(String::as_str).collect();
    if texts.is_empty() { String::new() } else { format!("\"{}\"", texts.join("\", \"")) }
}

/// `container "a"`, `containers "a", "b"`.
pub(super) fn containers(names: &[String]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// Who has set something: the pod, and containers.
pub(super) fn setters(pod: bool, names: &[String]) -> Option<String> {
    let mut all = Vec::new();
    if pod {
        all.push("pod".to_owned());
    }
    if !names.is_empty() {
        all.push(containers(names));
    }
    (!all.is_empty()).then(|| all.join(" and "))
}

/// The containers that something holds for, and the values that are wrong in them.
pub(super) fn bad(
    pod: &Pod<'_>,
    wrong: impl Fn(&Value, &mut BTreeSet<String>) -> bool,
) -> (Vec<String>, BTreeSet<String>) {
    let mut values = BTreeSet::new();
    let names = pod.containers().filter(|container| wrong(container, &mut values)).map(name).collect();
    (names, values)
}

type Check = fn(&Pod<'_>) -> Option<Finding>;

/// A check and the first minor version that has it.
struct Known {
    since: u64,
    check: Check,
    /// The first version whose restricted level has another check in its place.
    replaced: u64,
}

const NEVER: u64 = u64::MAX;

const fn known(since: u64, check: Check, replaced: u64) -> Known {
    Known { since, check, replaced }
}

/// The checks of the baseline in the order of their names.
const BASELINE: [Known; 13] = [
    known(0, baseline::app_armor, NEVER),
    known(0, baseline::capabilities, 22),
    known(0, baseline::host_namespaces, NEVER),
    known(0, baseline::host_paths, 0),
    known(0, baseline::host_ports, NEVER),
    known(34, baseline::host_probes, NEVER),
    known(0, baseline::privileged, NEVER),
    known(0, baseline::proc_mount, 35),
    known(0, baseline::se_linux, NEVER),
    known(0, baseline::seccomp_annotations, 19),
    known(19, baseline::seccomp, 19),
    known(0, baseline::sysctls, NEVER),
    known(0, baseline::windows, NEVER),
];

/// The checks that the restricted level adds.
const RESTRICTED: [Known; 7] = [
    known(8, restricted::privilege_escalation, NEVER),
    known(22, restricted::capabilities, NEVER),
    known(35, restricted::proc_mount, NEVER),
    known(0, restricted::volumes, NEVER),
    known(0, restricted::non_root, NEVER),
    known(23, restricted::user, NEVER),
    known(19, restricted::seccomp, NEVER),
];

/// The newest version that changed a check; later ones are as this one.
const NEWEST: u64 = 35;
/// The version in which seccomp profiles became fields.
const SECCOMP_FIELDS: u64 = 19;

/// What keeps a pod from being of this level.
pub(super) fn evaluate(of: LevelVersion, pod: &Value) -> Vec<Finding> {
    if of.level == Level::Privileged {
        return Vec::new();
    }
    let minor = match of.version {
        Version::Latest => NEWEST,
        Version::Minor(minor) => minor.min(NEWEST),
    };
    let pod = Pod { meta: &pod["metadata"], spec: &pod["spec"], minor };
    let strict = of.level == Level::Restricted;
    let annotations: Check = baseline::seccomp_annotations;
    let basic = BASELINE.iter().filter(|known| {
        let is_old = std::ptr::fn_addr_eq(known.check, annotations) && minor >= SECCOMP_FIELDS;
        known.since <= minor && !is_old && !(strict && minor >= known.replaced)
    });
    let more = RESTRICTED.iter().filter(|known| strict && known.since <= minor);
    basic.chain(more).filter_map(|known| (known.check)(&pod)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(level: Level, minor: u64, spec: Value, annotations: &Value) -> String {
        let mut spec = spec;
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c"}]);
        }
        let pod = json!({"metadata": {"annotations": annotations}, "spec": spec});
        Finding::details(&evaluate(LevelVersion { level, version: Version::Minor(minor) }, &pod))
    }

    /// Expected results: `pod-security-admission/policy/check_*_test.go`.
    #[test]
    fn the_baseline_is_checked_as_upstream_does() {
        let context = |context: Value| json!({"containers": [{"name": "a", "securityContext": context}]});
        let none = json!({});
        for (minor, spec, annotations, expected) in [
            (35, json!({}), &none, ""),
            (
                35,
                json!({"hostNetwork": true, "hostIPC": true}),
                &none,
                "host namespaces (hostNetwork=true, hostIPC=true)",
            ),
            (
                35,
                context(json!({"privileged": true})),
                &none,
                "privileged (container \"a\" must not set securityContext.privileged=true)",
            ),
            (
                35,
                context(json!({"capabilities": {"add": ["FOO", "CHOWN", "BAR"]}})),
                &none,
                "non-default capabilities (container \"a\" must not include \"BAR\", \"FOO\" in securityContext.capabilities.add)",
            ),
            (
                35,
                json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
                &none,
                "hostPath volumes (volume \"v\")",
            ),
            (
                35,
                json!({"containers": [{"name": "a", "ports": [{"hostPort": 10}]}, {"name": "b", "ports": [{"hostPort": 20}]}]}),
                &none,
                "hostPort (containers \"a\", \"b\" use hostPorts 10, 20)",
            ),
            (
                34,
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]}),
                &none,
                "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h\")",
            ),
            (
                33,
                json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]}),
                &none,
                "",
            ),
            (
                35,
                context(json!({"procMount": "Unmasked"})),
                &none,
                "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
            ),
            (
                35,
                json!({"hostUsers": false, "containers": [{"name": "a", "securityContext": {"procMount": "Unmasked"}}]}),
                &none,
                "",
            ),
            (
                30,
                json!({"securityContext": {"seLinuxOptions": {"type": "container_engine_t", "user": "u"}}}),
                &none,
                "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"container_engine_t\"; user may not be set)",
            ),
            (31, json!({"securityContext": {"seLinuxOptions": {"type": "container_engine_t"}}}), &none, ""),
            (
                18,
                json!({}),
                &json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}),
                "seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
            ),
            (19, json!({}), &json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}), ""),
            (
                19,
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
                &none,
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                26,
                json!({"securityContext": {"sysctls": [{"name": "net.ipv4.ip_local_reserved_ports"}]}}),
                &none,
                "forbidden sysctls (net.ipv4.ip_local_reserved_ports)",
            ),
            (
                27,
                json!({"securityContext": {"sysctls": [{"name": "net.ipv4.ip_local_reserved_ports"}]}}),
                &none,
                "",
            ),
            (
                35,
                json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
                &none,
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                35,
                context(json!({"appArmorProfile": {"type": "Unconfined"}})),
                &json!({"container.apparmor.security.beta.kubernetes.io/a": "unconfined"}),
                "forbidden AppArmor profiles (container \"a\" and annotation must not set AppArmor profile type to \"Unconfined\", \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")",
            ),
        ] {
            assert_eq!(
                found(Level::Baseline, minor, spec.clone(), annotations),
                expected,
                "1.{minor} {spec}"
            );
        }
    }

    #[test]
    fn the_restricted_level_is_checked_as_upstream_does() {
        const ESCALATES: &str = "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)";
        const CAPABLE: &str = "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])";
        const ROOT: &str =
            "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)";
        const SECCOMP: &str = "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
        let good = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}]});
        let with = |key: &str, value: Value| {
            let mut spec = good.clone();
            spec[key] = value;
            spec
        };
        let context = |key: &str, value: Value| {
            let mut spec = good.clone();
            spec["containers"][0]["securityContext"][key] = value;
            spec
        };
        let all = [ESCALATES, CAPABLE, ROOT, SECCOMP].join(", ");
        for (minor, spec, expected) in [
            (35, good.clone(), ""),
            (35, json!({}), &*all),
            (7, json!({}), ROOT),
            (35, json!({"os": {"name": "windows"}}), ROOT),
            (35, json!({"os": {"name": "windows"}, "hostUsers": false}), ""),
            (
                35,
                context("capabilities", json!({"drop": ["ALL"], "add": ["CHOWN"]})),
                "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
            ),
            (35, context("runAsUser", json!(0)), "runAsUser=0 (container \"c\" must not set runAsUser=0)"),
            (22, context("runAsUser", json!(0)), ""),
            (
                35,
                context("runAsNonRoot", json!(false)),
                "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
            ),
            (
                35,
                with(
                    "volumes",
                    json!([{"name": "a", "hostPath": {"path": "/"}}, {"name": "b", "nfs": {}}, {"name": "c", "emptyDir": {}}]),
                ),
                "restricted volume types (volumes \"a\", \"b\" use restricted volume types \"hostPath\", \"nfs\")",
            ),
        ] {
            assert_eq!(
                found(Level::Restricted, minor, spec.clone(), &json!({})),
                expected,
                "1.{minor} {spec}"
            );
        }
    }
}
