//! What the devices of a claim must have in common, or must not.

use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceConstraint};

use crate::devices::{demand::Wanted, inventory::DeviceInfo};

/// The value of an attribute, as far as constraints compare it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attribute {
    Text(String),
    Int(i64),
    Bool(bool),
    Version(String),
    /// Of a kind that equals nothing.
    Unknown,
}

impl Attribute {
    fn read(attribute: &DeviceAttribute) -> Self {
        if let Some(text) = &attribute.string {
            Self::Text(text.clone())
        } else if let Some(int) = attribute.int {
            Self::Int(int)
        } else if let Some(bool) = attribute.bool {
            Self::Bool(bool)
        } else if let Some(version) = &attribute.version {
            Self::Version(version.clone())
        } else {
            Self::Unknown
        }
    }

    fn equals(&self, other: &Self) -> bool {
        *self != Self::Unknown && self == other
    }
}

/// A constraint of a claim.
#[derive(Clone, Debug)]
pub(super) struct Constraint {
    /// The requests that it is about; all when empty.
    requests: Vec<String>,
    attribute: String,
    distinct: bool,
}

impl Constraint {
    /// `None` when it is of a kind that is not known.
    pub(super) fn read(constraint: &DeviceConstraint) -> Option<Self> {
        let requests = constraint.requests.clone().unwrap_or_default();
        let matching = constraint.match_attribute.clone().map(|attribute| (attribute, false));
        let distinct = || constraint.distinct_attribute.clone().map(|attribute| (attribute, true));
        let (attribute, distinct) = matching.or_else(distinct)?;
        Some(Self { requests, attribute, distinct })
    }

    fn concerns(&self, wanted: &Wanted) -> bool {
        self.requests.is_empty()
            || self.requests.contains(&wanted.request)
            || self.requests.contains(&wanted.full_name)
    }
}

/// The values of the devices that were chosen so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Chosen {
    values: Vec<Attribute>,
}

impl Chosen {
    /// Whether a device may be chosen beside those that were. If so it counts as chosen.
    pub(super) fn add(&mut self, constraint: &Constraint, wanted: &Wanted, device: &DeviceInfo) -> bool {
        if !constraint.concerns(wanted) {
            return true;
        }
        let Some(value) = lookup(device, &constraint.attribute) else { return false };
        let value = Attribute::read(value);
        let ok = if constraint.distinct {
            self.values.is_empty()
                || value != Attribute::Unknown && self.values.iter().all(|known| !value.equals(known))
        } else {
            self.values.first().is_none_or(|first| value.equals(first))
        };
        if ok {
            self.values.push(value);
        }
        ok
    }

    /// Takes the last device back that was added for this request.
    pub(super) fn remove(&mut self, constraint: &Constraint, wanted: &Wanted) {
        if constraint.concerns(wanted) {
            self.values.pop();
        }
    }
}

/// Names without a domain are those of the driver.
fn lookup<'a>(device: &'a DeviceInfo, name: &str) -> Option<&'a DeviceAttribute> {
    let attributes = device.object.attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        if domain == &*device.driver { attributes.get(id) } else { None }
    })
}
