//! What claims ask for.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceRequest, DeviceSelector, DeviceTaint, DeviceToleration,
    ExactDeviceRequest, ResourceClaim,
};
use kcore::Quantity;

use crate::{
    devices::{
        AllocateError,
        capacity::amounts,
        constraint::Constraint,
        selector::{Selector, Selectors},
    },
    snapshot::catalog::Catalog,
};

/// How many devices a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Count(usize),
    All,
}

/// A request, or an alternative of one.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Tells it from all others of the demand.
    pub(super) number: usize,
    /// The request's name.
    pub(super) request: String,
    /// The request's name; for an alternative `request/alternative`.
    pub(super) full_name: String,
    /// Its own name, for messages.
    pub(super) name: String,
    pub(super) class: Arc<DeviceClass>,
    pub(super) mode: Mode,
    pub(super) admin: bool,
    /// The class's, then its own.
    pub(super) selectors: Vec<Selector>,
    pub(super) tolerations: Option<Vec<DeviceToleration>>,
    pub(super) capacity: BTreeMap<String, Quantity>,
}

impl Wanted {
    /// Whether nothing about a device keeps it from being given out: taints that are not tolerated do.
    pub(super) fn tolerates(&self, taints: Option<&Vec<DeviceTaint>>) -> bool {
        let mut repelling = taints.into_iter().flatten().filter(|taint| {
            // Other effects, `None` among them, keep nobody away.
            matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
        });
        repelling.all(|taint| {
            let mut tolerations = self.tolerations.iter().flatten();
            tolerations.any(|toleration| tolerates(toleration, taint))
        })
    }
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    fn set(text: &Option<String>) -> Option<&str> {
        text.as_deref().filter(|text| !text.is_empty())
    }
    set(&toleration.effect).is_none_or(|effect| effect == taint.effect)
        && set(&toleration.key).is_none_or(|key| key == taint.key)
        && match set(&toleration.operator) {
            None | Some("Equal") => {
                toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
            }
            Some(operator) => operator == "Exists",
        }
}

/// A request with its alternatives: one that has none is its only one.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) is_prioritized: bool,
    pub(super) alternatives: Vec<Wanted>,
}

#[derive(Clone, Debug)]
pub(super) struct ClaimDemand {
    pub(super) claim: Arc<ResourceClaim>,
    /// `namespace/name`.
    pub(super) label: String,
    pub(super) requests: Vec<Request>,
    pub(super) constraints: Vec<Constraint>,
}

/// What claims ask for, read once for all nodes.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    pub(super) claims: Vec<ClaimDemand>,
    pub(super) wanted: usize,
}

impl Demand {
    /// Reads the claims and the classes that they name.
    ///
    /// # Errors
    /// When a class does not exist, or something is asked for that is not known.
    pub fn read(
        claims: &[Arc<ResourceClaim>],
        catalog: &Catalog,
        selectors: &Selectors,
    ) -> Result<Self, AllocateError> {
        let mut reader = Reader { catalog, selectors, number: 0 };
        let claims = claims.iter().map(|claim| reader.claim(claim)).collect::<Result<_, _>>();
        let claims = claims.map_err(AllocateError::Claim)?;
        Ok(Self { claims, wanted: reader.number })
    }

    /// Whether there is nothing to allocate.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// The claims, in the order of the results.
    pub fn claims(&self) -> impl Iterator<Item = &Arc<ResourceClaim>> {
        self.claims.iter().map(|demand| &demand.claim)
    }
}

struct Reader<'a> {
    catalog: &'a Catalog,
    selectors: &'a Selectors,
    number: usize,
}

/// What requests and alternatives have in common.
struct Parts<'a> {
    name: &'a str,
    full_name: String,
    class: &'a str,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: Option<bool>,
    selectors: Option<&'a Vec<DeviceSelector>>,
    tolerations: Option<&'a Vec<DeviceToleration>>,
    capacity: Option<&'a CapacityRequirements>,
}

impl<'a> Parts<'a> {
    fn exact(request: &'a DeviceRequest, exact: &'a ExactDeviceRequest) -> Self {
        Self {
            name: &request.name,
            full_name: request.name.clone(),
            class: &exact.device_class_name,
            mode: exact.allocation_mode.as_deref(),
            count: exact.count,
            admin: exact.admin_access,
            selectors: exact.selectors.as_ref(),
            tolerations: exact.tolerations.as_ref(),
            capacity: exact.capacity.as_ref(),
        }
    }
}

impl Reader<'_> {
    fn claim(&mut self, claim: &Arc<ResourceClaim>) -> Result<ClaimDemand, String> {
        let meta = &claim.metadata;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let label = format!("{}/{}", text(&meta.namespace), text(&meta.name));
        let devices = claim.spec.as_ref().and_then(|spec| spec.devices.clone()).unwrap_or_default();
        let mut requests = Vec::new();
        for request in devices.requests.iter().flatten() {
            requests.push(self.request(&label, request)?);
        }
        let mut constraints = Vec::new();
        for (index, constraint) in devices.constraints.iter().flatten().enumerate() {
            constraints.push(Constraint::read(constraint).ok_or_else(|| {
                format!("claim {label}, constraint #{index}: empty constraint (unsupported constraint type?)")
            })?);
        }
        Ok(ClaimDemand { claim: Arc::clone(claim), label, requests, constraints })
    }

    fn request(&mut self, label: &str, request: &DeviceRequest) -> Result<Request, String> {
        if let Some(exact) = &request.exactly {
            let wanted = self.wanted(label, &request.name, Parts::exact(request, exact))?;
            return Ok(Request { is_prioritized: false, alternatives: vec![wanted] });
        }
        let mut alternatives = Vec::new();
        for sub in request.first_available.iter().flatten() {
            let parts = Parts {
                name: &sub.name,
                full_name: format!("{}/{}", request.name, sub.name),
                class: &sub.device_class_name,
                mode: sub.allocation_mode.as_deref(),
                count: sub.count,
                admin: None,
                selectors: sub.selectors.as_ref(),
                tolerations: sub.tolerations.as_ref(),
                capacity: sub.capacity.as_ref(),
            };
            alternatives.push(self.wanted(label, &request.name, parts)?);
        }
        if alternatives.is_empty() {
            return Err(format!("resource claim {label}, request {}: unknown request type", request.name));
        }
        Ok(Request { is_prioritized: true, alternatives })
    }

    fn wanted(&mut self, label: &str, request: &str, parts: Parts<'_>) -> Result<Wanted, String> {
        let Parts { name, class: class_name, .. } = parts;
        let place = format!("claim {label}, request {name}");
        if class_name.is_empty() {
            return Err(format!("{place}: missing device class name (unsupported request type?)"));
        }
        let class = self.catalog.get::<DeviceClass>("", class_name).ok_or_else(|| {
            format!(
                "{place}: could not retrieve device class {class_name}: deviceclass.resource.k8s.io {class_name:?} \
                 not found"
            )
        })?;
        let mode = match parts.mode {
            None | Some("" | "ExactCount") => {
                let count = parts.count.unwrap_or(1);
                Mode::Count(
                    usize::try_from(count)
                        .map_err(|_| format!("{place}: exact count {count} is too large"))?,
                )
            }
            Some("All") => Mode::All,
            Some(other) => return Err(format!("{place}: unsupported count mode {other}")),
        };
        let mut selectors = Vec::new();
        let own = parts.selectors.into_iter().flatten().enumerate();
        let of_class = class.spec.iter().flat_map(|spec| spec.selectors.iter().flatten()).enumerate();
        for (index, selector) in of_class {
            let label = format!("class {class_name}: selector #{index}");
            let expression = selector.cel.as_ref().map(|cel| cel.expression.as_str()).unwrap_or_default();
            selectors.push(Selector::new(label, expression, self.selectors));
        }
        for (index, selector) in own {
            let Some(cel) = &selector.cel else {
                return Err(format!(
                    "{place}, selector #{index}: CEL expression empty (unsupported selector type?)"
                ));
            };
            let label = format!("claim {label}: selector #{index}");
            selectors.push(Selector::new(label, &cel.expression, self.selectors));
        }
        let number = self.number;
        self.number += 1;
        Ok(Wanted {
            number,
            request: request.to_owned(),
            full_name: parts.full_name,
            name: name.to_owned(),
            class: Arc::clone(class),
            mode,
            admin: parts.admin == Some(true),
            selectors,
            tolerations: parts.tolerations.cloned(),
            capacity: amounts(parts.capacity.and_then(|capacity| capacity.requests.as_ref())),
        })
    }
}
