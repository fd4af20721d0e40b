//! How much of a device's capacity a request takes (KEP-5075; upstream's `consumable_capacity.go`).

use std::collections::BTreeMap;

use k8s_openapi::{
    api::resource::v1::{CapacityRequestPolicy, DeviceCapacity},
    apimachinery::pkg::api::resource::Quantity as ApiQuantity,
};
use kcore::{Quantity, quantity::Format};

/// One capacity of a device.
#[derive(Clone, Debug)]
pub(super) struct Capacity {
    pub(super) value: Quantity,
    /// What is taken when a request does not say.
    default: Option<Quantity>,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    Any,
    Range { min: Quantity, max: Option<Quantity>, step: Option<Quantity> },
    Values(Vec<Quantity>),
}

/// The API server lets only quantities in; anything else counts as nothing.
fn read(quantity: &ApiQuantity) -> Quantity {
    Quantity::parse(&quantity.0).unwrap_or_default()
}

pub(super) fn amounts(map: Option<&BTreeMap<String, ApiQuantity>>) -> BTreeMap<String, Quantity> {
    map.into_iter().flatten().map(|(name, amount)| (name.clone(), read(amount))).collect()
}

impl Capacity {
    pub(super) fn read(capacity: &DeviceCapacity) -> Self {
        let policy = capacity.request_policy.as_ref();
        Self {
            value: read(&capacity.value),
            default: policy.and_then(|policy| policy.default.as_ref()).map(read),
            rule: policy.map_or(Rule::Any, Rule::read),
        }
    }

    /// What a request takes: what it asks for, rounded up to what can be had.
    fn consumed(&self, asked: Option<Quantity>) -> Quantity {
        let Some(asked) = asked else { return self.default.unwrap_or(self.value) };
        match &self.rule {
            Rule::Any => asked,
            Rule::Range { min, .. } if asked < *min => *min,
            Rule::Range { min, step, .. } => match step.map(|step| step.value()) {
                Some(step) if step > 0 => {
                    let over = asked.value().saturating_sub(min.value());
                    let steps = over / step + i64::from(over % step != 0);
                    let rounded = min.value().saturating_add(steps.saturating_mul(step));
                    Quantity::with_format(rounded, Format::BinarySi)
                }
                _ => asked,
            },
            Rule::Values(values) => values.iter().copied().find(|value| asked <= *value).unwrap_or(asked),
        }
    }

    /// Whether so much can be had at once.
    fn allows(&self, amount: Quantity) -> bool {
        if self.default == Some(amount) {
            return true;
        }
        match &self.rule {
            Rule::Any => true,
            Rule::Range { min, max, step } => {
                let on_step = |step: &Quantity| {
                    step.value() <= 0 || amount.value().saturating_sub(min.value()) % step.value() == 0
                };
                max.is_none_or(|max| amount <= max) && step.as_ref().is_none_or(on_step)
            }
            Rule::Values(values) => values.is_empty() || values.contains(&amount),
        }
    }
}

impl Rule {
    fn read(policy: &CapacityRequestPolicy) -> Self {
        if let Some(range) = &policy.valid_range {
            return Self::Range {
                min: read(&range.min),
                max: range.max.as_ref().map(read),
                step: range.step.as_ref().map(read),
            };
        }
        let values = policy.valid_values.as_ref();
        values.map_or(Self::Any, |values| Self::Values(values.iter().map(read).collect()))
    }
}

/// What a request takes of each capacity of a device.
pub(super) fn consumed(
    capacities: &BTreeMap<String, Capacity>,
    asked: &BTreeMap<String, Quantity>,
) -> BTreeMap<String, Quantity> {
    let each = capacities.iter();
    each.map(|(name, capacity)| (name.clone(), capacity.consumed(asked.get(name).copied()))).collect()
}

/// Whether a request fits into a device beside what is taken already.
pub(super) fn fits(
    capacities: &BTreeMap<String, Capacity>,
    asked: &BTreeMap<String, Quantity>,
    taken: &[Option<&BTreeMap<String, Quantity>>],
) -> bool {
    asked.keys().all(|name| capacities.contains_key(name))
        && capacities.iter().all(|(name, capacity)| {
            let mut total = capacity.consumed(asked.get(name).copied());
            let allowed = capacity.allows(total);
            for amount in taken.iter().filter_map(|taken| (*taken)?.get(name)) {
                total += *amount;
            }
            allowed && total <= capacity.value
        })
}
