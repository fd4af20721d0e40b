//! Pods keep to the security standard of their namespace (KEP-2579, `k8s.io/pod-security-admission`).

mod baseline;
mod checks;
mod level;
mod restricted;

use std::collections::{BTreeMap, HashSet};

use async_trait::async_trait;
use kcore::{Status, Stored};
use kstore::Range;
use serde_json::Value;

use self::{
    checks::{Finding, evaluate},
    level::{Level, LevelVersion, Policy},
};
use super::{Admission, AdmissionRequest, Operation, Phase};
use crate::{
    error::{ApiResult, invalid},
    objects::stored,
};

/// How many pods of a namespace are looked at when its level rises (`defaultNamespaceMaxPodsToCheck`).
pub const PODS_CHECKED_MAX: usize = 3000;

/// What the labels of namespaces begin with, and the annotations of the audit log.
const PREFIX: &str = "pod-security.kubernetes.io/";
const PASSED_OVER: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

/// Upstream's `PodSecurity`: what a namespace enforces refuses pods, what it warns of is told to whoever writes pods and
/// workloads, what it audits is told to the audit log.
///
/// ```
/// use kapi::admission::PodSecurity;
///
/// let step = PodSecurity::new().exempt_namespace("kube-system").exempt_user("operator");
/// # let _ = step;
/// ```
#[derive(Clone, Debug, Default)]
pub struct PodSecurity {
    namespaces: HashSet<String>,
    users: HashSet<String>,
    classes: HashSet<String>,
}

impl PodSecurity {
    /// Without exemptions; what has no labels is privileged.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at nothing in this namespace.
    #[must_use]
    pub fn exempt_namespace(mut self, name: impl Into<String>) -> Self {
        self.namespaces.insert(name.into());
        self
    }

    /// Looks at nothing that this user writes.
    #[must_use]
    pub fn exempt_user(mut self, name: impl Into<String>) -> Self {
        self.users.insert(name.into());
        self
    }

    /// Looks at no pods of this runtime class.
    #[must_use]
    pub fn exempt_runtime_class(mut self, name: impl Into<String>) -> Self {
        self.classes.insert(name.into());
        self
    }
}

#[async_trait]
impl Admission for PodSecurity {
    fn name(&self) -> &str {
        "PodSecurity"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate
            && matches!(request.operation, Operation::Create | Operation::Update)
            && matches!(&*request.resource.def.group, "" | "apps" | "batch")
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        if request.operation == Operation::Delete {
            return Ok(());
        }
        match (def.group.as_str(), def.plural.as_str()) {
            ("", "namespaces") => self.namespace(request, object),
            ("", "pods") => self.pod(request, object),
            _ => self.workload(request, object),
        }
    }
}

/// Where a workload has its pods' metadata and specification.
fn template<'o>(group: &str, plural: &str, object: &'o Value) -> Option<&'o Value> {
    let path = match (group, plural) {
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => "/spec/template",
        ("", "podtemplates") => "/template",
        ("batch", "cronjobs") => "/spec/jobTemplate/spec/template",
        _ => return None,
    };
    object.pointer(path).filter(|template| template.is_object())
}

impl PodSecurity {
    /// The policy of the namespace of a request; `None` if the request is exempt.
    fn policy(&self, request: &AdmissionRequest<'_>) -> Option<(Policy, bool)> {
        let reason = if self.namespaces.contains(request.namespace) {
            "namespace"
        } else if self.users.contains(&request.user.name) {
            "user"
        } else {
            let namespace = request.objects.find("", "v1", "namespaces", "", request.namespace);
            return Some(namespace.map_or((Policy::default(), true), |namespace| {
                let labels = &namespace.header().labels;
                let (policy, errors) = Policy::of_labels(|key| labels.get(key));
                if !errors.is_empty() {
                    let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
                    let why = crate::authz::aggregate(&errors);
                    request.annotate(format!("{PREFIX}error"), format!("Failed to parse policy: {why}"));
                }
                (policy, errors.is_empty())
            }));
        };
        request.annotate(format!("{PREFIX}exempt"), reason);
        None
    }

    fn pod(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        if PASSED_OVER.contains(&request.subresource) {
            return Ok(());
        }
        let Some((policy, is_sound)) = self.policy(request) else {
            return Ok(());
        };
        if is_sound && policy.is_privileged() {
            policy.enforce.tell(request);
            return Ok(());
        }
        if request.operation == Operation::Update
            && request.old.is_some_and(|old| !is_significant(object, old))
        {
            return Ok(());
        }
        self.evaluate(request, &policy, object, true)
    }

    fn workload(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let def = &request.resource.def;
        let Some(template) =
            template(&def.group, &def.plural, object).filter(|_| request.subresource.is_empty())
        else {
            return Ok(());
        };
        let Some((policy, is_sound)) = self.policy(request) else {
            return Ok(());
        };
        let is_quiet = [policy.warn, policy.audit].iter().all(|one| one.level == Level::Privileged);
        if is_sound && is_quiet { Ok(()) } else { self.evaluate(request, &policy, template, false) }
    }

    /// Holds a pod, or what pods are made of, against the policy.
    fn evaluate(
        &self,
        request: &AdmissionRequest<'_>,
        policy: &Policy,
        pod: &Value,
        enforce: bool,
    ) -> ApiResult<()> {
        if pod["spec"]["runtimeClassName"].as_str().is_some_and(|class| self.classes.contains(class)) {
            request.annotate(format!("{PREFIX}exempt"), "runtimeClass");
            return Ok(());
        }
        let detail = |of: LevelVersion| {
            let findings = evaluate(of, pod);
            (!findings.is_empty()).then(|| format!("{:?}: {}", of.to_string(), Finding::details(&findings)))
        };
        if enforce {
            policy.enforce.tell(request);
        }
        let enforced = if enforce { detail(policy.enforce) } else { None };
        if let Some(why) = detail(policy.audit) {
            request.annotate(format!("{PREFIX}audit-violations"), format!("would violate PodSecurity {why}"));
        }
        if let Some(why) = enforced {
            let def = &request.resource.def;
            let why = format!("violates PodSecurity {why}");
            return Err(Status::forbidden(&def.group, &def.plural, name(request, pod), &why).into());
        }
        if let Some(why) = detail(policy.warn) {
            request.warn(format!("would violate PodSecurity {why}"));
        }
        Ok(())
    }

    fn namespace(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        if !request.subresource.is_empty() {
            return Ok(());
        }
        let labels = |object: &Value| {
            let labels = object["metadata"]["labels"].clone();
            Policy::of_labels(|key| labels[key].as_str())
        };
        let (policy, errors) = labels(object);
        let before = request.old.map(labels);
        let is_new = before.as_ref().is_none_or(|(_, before)| before.is_empty() || *before != errors);
        if !errors.is_empty() && is_new {
            return Err(invalid("", "Namespace", request.name, &errors));
        }
        let name = name(request, object);
        let exempt = self.namespaces.contains(name);
        if let Some((before, _)) = before {
            let (new, old) = (policy.enforce, before.enforce);
            if new == old
                || new.level == Level::Privileged
                || (new.version == old.version && new.level <= old.level)
            {
                return Ok(());
            }
            if !exempt {
                self.rises(request, name, new);
                return Ok(());
            }
        }
        if exempt && !policy.is_privileged() {
            let shown = policy.labelled(|key| object["metadata"]["labels"].get(key).is_some());
            request.warn(format!(
                "namespace {name:?} is exempt from Pod Security, and the policy ({shown}) will be ignored"
            ));
        }
        Ok(())
    }

    /// Warns of the pods that are there and would be refused now.
    fn rises(&self, request: &AdmissionRequest<'_>, name: &str, enforce: LevelVersion) {
        let Some(resource) = request.objects.registry().find("", "v1", "pods") else {
            return;
        };
        let snapshot = request.objects.snapshot();
        let all = snapshot.range(resource.table, Range::prefix(format!("{name}/")));
        let pods = prioritized(all.map(|entry| stored(&resource.def, &entry)).collect());
        let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
        for pod in pods.iter().take(PODS_CHECKED_MAX) {
            // What can't be read is no pod.
            let Ok(value) = pod.value() else { continue };
            let class = value["spec"]["runtimeClassName"].as_str();
            if class.is_some_and(|class| self.classes.contains(class)) {
                continue;
            }
            let findings = evaluate(enforce, &value);
            if findings.is_empty() {
                continue;
            }
            let first = || (pod.header().name.to_string(), 0);
            let (least, count) = found.entry(Finding::reasons(&findings)).or_insert_with(first);
            if *pod.header().name < **least {
                *least = pod.header().name.to_string();
            }
            *count += 1;
        }
        if pods.len() > PODS_CHECKED_MAX {
            request.warn(format!(
                "new PodSecurity enforce level only checked against the first {PODS_CHECKED_MAX} of {} existing pods",
                pods.len()
            ));
        }
        if found.is_empty() {
            return;
        }
        request.warn(format!(
            "existing pods in namespace {name:?} violate the new PodSecurity enforce level {:?}",
            enforce.to_string()
        ));
        let mut warnings: Vec<String> = found
            .into_iter()
            .map(|(reasons, (first, count))| match count {
                1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                _ => format!("{first} (and {} other pods): {reasons}", count - 1),
            })
            .collect();
        warnings.sort();
        warnings.into_iter().for_each(|warning| request.warn(warning));
    }
}

/// Pods with one of each controller first, as those of one controller are mostly alike.
fn prioritized(pods: Vec<std::sync::Arc<Stored>>) -> Vec<std::sync::Arc<Stored>> {
    let mut seen = HashSet::new();
    let (mut first, rest): (Vec<_>, Vec<_>) = pods.into_iter().partition(|pod| {
        pod.header().controller().is_none_or(|controller| seen.insert(controller.uid.to_string()))
    });
    first.extend(rest);
    first
}

fn name<'a>(request: &'a AdmissionRequest<'_>, object: &'a Value) -> &'a str {
    let own = object["metadata"]["name"].as_str().unwrap_or_default();
    if request.name.is_empty() { own } else { request.name }
}

/// Whether a change of a pod can matter: its containers come, go, or get another image.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let list = |pod: &Value, key: &str| pod["spec"][key].as_array().cloned().unwrap_or_default();
    let differ = ["containers", "initContainers"].iter().any(|key| {
        let (new, old) = (list(pod, key), list(old, key));
        new.len() != old.len() || new.iter().zip(&old).any(|(new, old)| new["image"] != old["image"])
    });
    let before = list(old, "ephemeralContainers");
    let is_new = |container: &Value| {
        let same = before.iter().find(|other| other["name"] == container["name"]);
        same.is_none_or(|other| other["image"] != container["image"])
    };
    differ || list(pod, "ephemeralContainers").iter().any(is_new)
}
