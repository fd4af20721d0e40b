//! Policies: to which Services TLS is spoken, and how (GEP-1897).

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        CONTROLLER,
        types::{
            BackendTLSPolicy, GROUP, LocalObjectReference, ParentReference, PolicyAncestorStatus,
            PolicyTargetReference, SubjectAltName,
        },
    },
    Input, Key, age, condition, key,
    listener::Fault,
};
use crate::http_proxy::{Authorities, BackendTls, SubjectName};

/// How many Gateways a status tells of (the API's limit of `status.ancestors`).
const ANCESTORS_MAX: usize = 16;
/// Where a ConfigMap has its bundle.
const BUNDLE: &str = "ca.crt";

/// A Service and one of its ports, by name; `None` for all that are not named.
type Target = (Key, Option<String>);

/// What is known of a policy.
struct Judged<'a> {
    policy: &'a BackendTLSPolicy,
    accepted: Result<(), Fault>,
    resolved: Result<(), Fault>,
    /// `None` when nobody can be spoken to by it.
    tls: Option<BackendTls>,
    services: BTreeSet<Key>,
}

/// All policies.
pub(super) struct Policies<'a> {
    all: Vec<Judged<'a>>,
    targets: BTreeMap<Target, usize>,
}

impl<'a> Policies<'a> {
    pub(super) fn of(input: &Input<'a>) -> Self {
        let mut policies: Vec<&'a BackendTLSPolicy> = input.policies.iter().map(AsRef::as_ref).collect();
        policies.sort_by_key(|policy| age(&policy.metadata));
        let mut found = Self { all: Vec::new(), targets: BTreeMap::new() };
        for policy in policies {
            let mut judged = judge(policy, input);
            for target in &policy.spec.target_refs {
                if let Err(fault) = found.aim(&mut judged, target, input) {
                    judged.accepted = judged.accepted.and(Err(fault));
                }
            }
            found.all.push(judged);
        }
        found
    }

    /// Has a policy count for a target, unless an older one does.
    fn aim(
        &mut self,
        judged: &mut Judged<'_>,
        target: &PolicyTargetReference,
        input: &Input<'_>,
    ) -> Result<(), Fault> {
        if (target.group.as_str(), target.kind.as_str()) != ("", "Service") {
            return Err(("Invalid", format!("targets of the kind {:?} are not supported", target.kind)));
        }
        let namespace = judged.policy.metadata.namespace.clone().unwrap_or_default();
        let service = (namespace, target.name.clone());
        judged.services.insert(service.clone());
        let section = target.section_name.clone().filter(|name| !name.is_empty());
        let is_there = input.objects.service(&service.0, &service.1).is_some();
        let number = self.all.len();
        if *self.targets.entry((service, section)).or_insert(number) != number {
            return Err(("Conflicted", format!("an older policy is for the service {:?}", target.name)));
        }
        if is_there {
            Ok(())
        } else {
            Err(("TargetNotFound", format!("there is no service {:?}", target.name)))
        }
    }

    /// How the port of this name of a Service is spoken to: `None` in the clear, and an error when a policy wants TLS that can't be.
    pub(super) fn tls(&self, namespace: &str, service: &str, port: &str) -> Option<Result<BackendTls, ()>> {
        let service = (namespace.to_owned(), service.to_owned());
        let named = Some(port).filter(|port| !port.is_empty());
        let named = named.and_then(|port| self.targets.get(&(service.clone(), Some(port.to_owned()))));
        let found = named.or_else(|| self.targets.get(&(service, None)))?;
        Some(self.all.get(*found).and_then(|judged| judged.tls.clone()).ok_or(()))
    }

    /// What becomes of the policies, by the Gateways that have routes to Services.
    pub(super) fn statuses(
        &self,
        used: &BTreeMap<Key, BTreeSet<Key>>,
    ) -> BTreeMap<Key, Vec<PolicyAncestorStatus>> {
        let mut statuses = BTreeMap::new();
        for judged in &self.all {
            let meta = &judged.policy.metadata;
            let told = |kind: &str, result: &Result<(), Fault>| match result {
                Ok(()) => condition(meta, kind, true, kind, ""),
                Err((reason, message)) => condition(meta, kind, false, reason, message.as_str()),
            };
            let gateways: BTreeSet<&Key> =
                judged.services.iter().filter_map(|service| used.get(service)).flatten().collect();
            let ancestors =
                gateways.into_iter().take(ANCESTORS_MAX).map(|(namespace, name)| PolicyAncestorStatus {
                    ancestor_ref: ParentReference {
                        group: Some(GROUP.to_owned()),
                        kind: Some("Gateway".to_owned()),
                        namespace: Some(namespace.clone()),
                        name: name.clone(),
                        ..ParentReference::default()
                    },
                    controller_name: CONTROLLER.to_owned(),
                    conditions: vec![
                        told("Accepted", &judged.accepted),
                        told("ResolvedRefs", &judged.resolved),
                    ],
                });
            let ancestors: Vec<_> = ancestors.collect();
            if !ancestors.is_empty() {
                statuses.insert(key(meta), ancestors);
            }
        }
        statuses
    }
}

fn judge<'a>(policy: &'a BackendTLSPolicy, input: &Input<'_>) -> Judged<'a> {
    let mut resolved = Ok(());
    let tls = read(policy, input, &mut resolved);
    let (accepted, tls) = match tls {
        Ok(tls) => (Ok(()), Some(tls)),
        Err(fault) => (Err(fault), None),
    };
    Judged { policy, accepted, resolved, tls, services: BTreeSet::new() }
}

fn read(
    policy: &BackendTLSPolicy,
    input: &Input<'_>,
    resolved: &mut Result<(), Fault>,
) -> Result<BackendTls, Fault> {
    let invalid = |why: String| ("Invalid", why);
    let spec = &policy.spec;
    if let Some(option) = spec.options.keys().next() {
        return Err(invalid(format!("the option {option:?} is not known")));
    }
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let references = &spec.validation.ca_certificate_refs;
    let well_known = spec.validation.well_known_ca_certificates.as_deref().unwrap_or_default();
    let authorities = match (references.as_slice(), well_known) {
        ([], "System") => (input.system_authorities)().map_err(invalid)?,
        ([], "") => return Err(invalid("no authority is named".to_owned())),
        (_, "") => {
            let mut found = Vec::new();
            for reference in references {
                match bundle(namespace, reference, input) {
                    Ok(authorities) => found.push(authorities),
                    Err(fault) => *resolved = std::mem::replace(resolved, Ok(())).and(Err(fault)),
                }
            }
            Authorities::all(&found).map_err(|_| {
                ("NoValidCACertificate", "none of the authorities that are named can be used".to_owned())
            })?
        }
        ([], other) => return Err(invalid(format!("the well-known authorities {other:?} are not known"))),
        _ => return Err(invalid("there are authorities of two kinds".to_owned())),
    };
    let names = spec.validation.subject_alt_names.iter().map(subject_name);
    let names = names.collect::<Result<Vec<_>, _>>().map_err(invalid)?;
    BackendTls::new(&spec.validation.hostname, &names, &authorities)
        .map_err(|error| invalid(error.to_string()))
}

fn bundle(
    namespace: &str,
    reference: &LocalObjectReference,
    input: &Input<'_>,
) -> Result<Authorities, Fault> {
    let LocalObjectReference { group, kind, name } = reference;
    if (group.as_str(), kind.as_str()) != ("", "ConfigMap") {
        return Err(("InvalidKind", format!("authorities of the kind {kind:?} are not supported")));
    }
    let invalid = |why: &str| ("InvalidCACertificateRef", format!("the config map {namespace}/{name} {why}"));
    let map = (input.config_map)(namespace, name).ok_or_else(|| invalid("is not there"))?;
    let bundle = map.data.as_ref().and_then(|data| data.get(BUNDLE));
    let bundle = bundle.ok_or_else(|| invalid("has no ca.crt"))?;
    Authorities::from_pem(bundle.as_bytes())
        .map_err(|error| invalid(&format!("has a ca.crt that can't be used: {error}")))
}

fn subject_name(wanted: &SubjectAltName) -> Result<SubjectName, String> {
    let text = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(Into::into);
    let name = match wanted.kind.as_str() {
        "Hostname" => text(&wanted.hostname).map(SubjectName::Host),
        "URI" => text(&wanted.uri).map(SubjectName::Uri),
        other => return Err(format!("names of the type {other:?} are not known")),
    };
    name.ok_or_else(|| format!("a name of the type {} is empty", wanted.kind))
}
