//! What a container may use and do: its own words, its pod's, and the defaults, as one.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{AppArmorProfile, Container, Pod, PodSpec, SeccompProfile},
    apimachinery::pkg::api::resource::Quantity,
};

use crate::{
    demand,
    machine::qos,
    runtime::{AppArmor, ContainerConfig, Resources, RuntimeError, Seccomp, Security},
};

/// The least share and quota that the kernel takes, and the period that upstream asks for
/// (`pkg/kubelet/cm/helpers_linux.go`).
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
const QUOTA_US_MIN: i64 = 1000;
const PERIOD_US: i64 = 100_000;

/// Puts the rights of pod and container into `config`.
pub(super) fn set_security(
    config: &mut ContainerConfig,
    pod: &Pod,
    container: &Container,
) -> Result<(), RuntimeError> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let own = container.security_context.as_ref();
    let id = |id: i64| {
        u32::try_from(id).map_err(|_| RuntimeError::Config("a user or group id is out of range".to_owned()))
    };
    let user = own.and_then(|c| c.run_as_user).or(of_pod.and_then(|c| c.run_as_user));
    let group = own.and_then(|c| c.run_as_group).or(of_pod.and_then(|c| c.run_as_group));
    config.run_as_user = user.map(id).transpose()?;
    config.run_as_group = group.map(id).transpose()?;
    let non_root = own.and_then(|c| c.run_as_non_root).or(of_pod.and_then(|c| c.run_as_non_root));
    config.run_as_non_root = non_root.unwrap_or(false);
    let groups = of_pod.into_iter().flat_map(|c| c.supplemental_groups.iter().flatten().chain(&c.fs_group));
    let capabilities = own.and_then(|c| c.capabilities.as_ref());
    let profile =
        own.and_then(|c| c.seccomp_profile.as_ref()).or(of_pod.and_then(|c| c.seccomp_profile.as_ref()));
    let policy = of_pod.and_then(|c| c.supplemental_groups_policy.as_deref());
    config.security = Security {
        privileged: own.and_then(|c| c.privileged).unwrap_or(false),
        no_new_privileges: own.and_then(|c| c.allow_privilege_escalation) == Some(false),
        read_only_root: own.and_then(|c| c.read_only_root_filesystem).unwrap_or(false),
        add_capabilities: capabilities.and_then(|c| c.add.clone()).unwrap_or_default(),
        drop_capabilities: capabilities.and_then(|c| c.drop.clone()).unwrap_or_default(),
        supplemental_groups: groups.map(|group| id(*group)).collect::<Result<_, _>>()?,
        strict_groups: policy == Some("Strict"),
        seccomp: profile.map_or(Ok(Seccomp::Unconfined), seccomp)?,
        apparmor: own
            .and_then(|c| c.app_armor_profile.as_ref())
            .or(of_pod.and_then(|c| c.app_armor_profile.as_ref()))
            .map_or(Ok(AppArmor::Unset), apparmor)?,
        unmasked_proc: own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked"),
    };
    Ok(())
}

fn seccomp(profile: &SeccompProfile) -> Result<Seccomp, RuntimeError> {
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Unconfined", _) => Ok(Seccomp::Unconfined),
        ("RuntimeDefault", _) => Ok(Seccomp::RuntimeDefault),
        ("Localhost", Some(name)) if !name.is_empty() => Ok(Seccomp::Localhost(name.clone())),
        ("Localhost", _) => Err(RuntimeError::Config(
            "localhostProfile must be set if seccompProfile type is Localhost.".to_owned(),
        )),
        (other, _) => Err(RuntimeError::Config(format!("unknown seccomp profile type {other:?}"))),
    }
}

fn apparmor(profile: &AppArmorProfile) -> Result<AppArmor, RuntimeError> {
    match (profile.type_.as_str(), &profile.localhost_profile) {
        ("Unconfined", _) => Ok(AppArmor::Unconfined),
        ("RuntimeDefault", _) => Ok(AppArmor::RuntimeDefault),
        ("Localhost", Some(name)) if !name.is_empty() => Ok(AppArmor::Localhost(name.clone())),
        ("Localhost", _) => Err(RuntimeError::Config(
            "localhostProfile must be set if appArmorProfile type is Localhost.".to_owned(),
        )),
        (other, _) => Err(RuntimeError::Config(format!("unknown AppArmor profile type {other:?}"))),
    }
}

fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<kcore::Quantity> {
    kcore::Quantity::parse(&list?.get(name)?.0).ok()
}

/// What the container may use, on a node with `memory_capacity` bytes.
pub(super) fn resources(pod: &Pod, container: &Container, memory_capacity: i64) -> Resources {
    let own = container.resources.as_ref();
    let (requests, limits) = (own.and_then(|r| r.requests.as_ref()), own.and_then(|r| r.limits.as_ref()));
    let (request, limit) = (amount(requests, "cpu"), amount(limits, "cpu"));
    let share = request.or(limit).map_or(0, |cpu| cpu.milli());
    let shares = (share.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX);
    let quota = limit.map(|cpu| cpu.milli()).filter(|milli| *milli > 0);
    let quota = quota.map(|milli| (milli.saturating_mul(PERIOD_US) / 1000).max(QUOTA_US_MIN));
    let spec = pod.spec.as_ref();
    let is_critical = spec.and_then(|spec| spec.priority).is_some_and(|priority| priority >= 2_000_000_000);
    let class = spec.map_or("BestEffort", qos);
    let request = amount(requests, "memory").or(amount(limits, "memory")).map_or(0, |memory| memory.value());
    Resources {
        cpu_shares: u64::try_from(shares).ok(),
        cpu_quota_us: quota,
        cpu_period_us: quota.and_then(|_| u64::try_from(PERIOD_US).ok()),
        memory_bytes_max: amount(limits, "memory").map(|memory| memory.value()).filter(|bytes| *bytes > 0),
        oom_score_adj: Some(oom_score(class, is_critical, request, memory_capacity)),
        ..Resources::default()
    }
}

/// What the pod's overhead is, in the kernel's units; nothing when it has none.
pub(super) fn overhead(spec: &PodSpec) -> Resources {
    let (cpu, memory) = (demand::overhead(spec, "cpu"), demand::overhead(spec, "memory"));
    let shares = (cpu.saturating_mul(1024) / 1000).clamp(SHARES_MIN, SHARES_MAX);
    let quota = (cpu > 0).then(|| (cpu.saturating_mul(PERIOD_US) / 1000).max(QUOTA_US_MIN));
    Resources {
        cpu_shares: (cpu > 0).then_some(shares).and_then(|shares| u64::try_from(shares).ok()),
        cpu_quota_us: quota,
        cpu_period_us: quota.and_then(|_| u64::try_from(PERIOD_US).ok()),
        memory_bytes_max: (memory > 0).then_some(memory),
        ..Resources::default()
    }
}

/// Who asked for more of the machine's memory is killed later (`pkg/kubelet/qos/policy.go`).
fn oom_score(class: &str, is_critical: bool, request: i64, capacity: i64) -> i32 {
    match class {
        _ if is_critical => -997,
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let part = i128::from(request) * 1000 / i128::from(capacity.max(1));
            i32::try_from((1000 - part).clamp(3, 999)).unwrap_or(999)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After upstream's `TestMilliCPUToShares`, `TestMilliCPUToQuota` and `TestGetContainerOOMScoreAdjust`.
    #[test]
    fn resources_become_the_kernels() {
        type Case = (&'static str, &'static str, (u64, Option<i64>, Option<i64>, i32));
        let cases: [Case; 6] = [
            ("", "", (2, None, None, 1000)),
            ("cpu=100m,memory=1Gi", "", (102, None, None, 750)),
            ("", "cpu=500m,memory=64Mi", (512, Some(50_000), Some(64 << 20), -997)),
            ("cpu=250m", "cpu=1m", (256, Some(1000), None, 999)),
            ("cpu=1m,memory=4Gi", "memory=8Gi", (2, None, Some(8 << 30), 3)),
            ("cpu=1000", "", (262_144, None, None, 999)),
        ];
        for (requests, limits, (shares, quota, memory, score)) in cases {
            let list = |text: &str| -> BTreeMap<String, Quantity> {
                let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
                pairs.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned()))).collect()
            };
            let container = serde_json::json!({"name": "c", "resources": {
                "requests": list(requests), "limits": list(limits)}});
            let pod: Pod =
                serde_json::from_value(serde_json::json!({"spec": {"containers": [container]}})).unwrap();
            let container = &pod.spec.as_ref().unwrap().containers[0];
            let found = resources(&pod, container, 4 << 30);
            assert_eq!(
                (found.cpu_shares, found.cpu_quota_us, found.memory_bytes_max, found.oom_score_adj),
                (Some(shares), quota, memory, Some(score)),
                "{requests} / {limits}"
            );
        }
    }

    #[test]
    fn a_containers_words_go_before_its_pods() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "securityContext": {"runAsUser": 5, "runAsGroup": 6, "fsGroup": 7, "supplementalGroups": [8],
                "seccompProfile": {"type": "RuntimeDefault"}, "appArmorProfile": {"type": "RuntimeDefault"}, "supplementalGroupsPolicy": "Strict"},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 9, "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true, "procMount": "Unmasked", "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                "appArmorProfile": {"type": "Localhost", "localhostProfile": "own"},
                "seccompProfile": {"type": "Localhost", "localhostProfile": "p.json"}}}, {"name": "d"}],
        }}))
        .unwrap();
        let mut found = Vec::new();
        for container in &pod.spec.as_ref().unwrap().containers {
            let mut config = ContainerConfig::default();
            set_security(&mut config, &pod, container).unwrap();
            found.push(config);
        }
        assert_eq!((found[0].run_as_user, found[0].run_as_group), (Some(9), Some(6)));
        let expected = Security {
            no_new_privileges: true,
            read_only_root: true,
            add_capabilities: vec!["NET_ADMIN".to_owned()],
            drop_capabilities: vec!["ALL".to_owned()],
            supplemental_groups: vec![8, 7],
            strict_groups: true,
            seccomp: Seccomp::Localhost("p.json".to_owned()),
            apparmor: AppArmor::Localhost("own".to_owned()),
            unmasked_proc: true,
            ..Security::default()
        };
        assert_eq!(found[0].security, expected);
        assert_eq!(found[1].security.apparmor, AppArmor::RuntimeDefault);
        assert_eq!((found[1].run_as_user, &found[1].security.seccomp), (Some(5), &Seccomp::RuntimeDefault));
    }
}
