//! The CEL selectors of classes and requests.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::resource::v1::DeviceAttribute;
use kcel::{Bindings, DeviceEnv, Program, SELECTOR_COST_MAX, Value};
use kcore::Quantity;

use crate::devices::inventory::DeviceInfo;

/// How many compiled selectors are kept; the one that was made first goes first.
pub const SELECTORS_MAX: usize = 100;

/// A compiled selector, or what is wrong with it.
type Compiled = Result<Arc<Program>, String>;

/// Compiles selectors, and keeps what it has compiled: the selectors of a few classes are asked for again and again.
pub struct Selectors {
    env: DeviceEnv,
    kept: Mutex<VecDeque<(String, Compiled)>>,
}

impl fmt::Debug for Selectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Selectors")
    }
}

impl Default for Selectors {
    fn default() -> Self {
        Self { env: DeviceEnv::new(), kept: Mutex::default() }
    }
}

impl Selectors {
    fn compile(&self, expression: &str) -> Compiled {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, compiled)) = kept.iter().find(|(known, _)| known == expression) {
            return compiled.clone();
        }
        let compiled = self.env.compile(expression).map(Arc::new).map_err(|error| error.to_string());
        if kept.len() == SELECTORS_MAX {
            kept.pop_front();
        }
        kept.push_back((expression.to_owned(), compiled.clone()));
        compiled
    }
}

/// A selector of a class or of a request.
#[derive(Clone, Debug)]
pub(super) struct Selector {
    /// For messages: `class NAME: selector #0` or `claim NAMESPACE/NAME: selector #0`.
    label: String,
    compiled: Compiled,
}

impl Selector {
    pub(super) fn new(label: String, expression: &str, selectors: &Selectors) -> Self {
        Self { label, compiled: selectors.compile(expression) }
    }
}

/// Whether a device matches all of the selectors.
pub(super) fn matches(selectors: &[Selector], device: &DeviceInfo) -> Result<bool, String> {
    if selectors.is_empty() {
        return Ok(true);
    }
    let mut value = None;
    for Selector { label, compiled } in selectors {
        let program = compiled.as_ref().map_err(|error| format!("{label}: CEL compile error: {error}"))?;
        let failed = |error: String| format!("{label}: CEL runtime error: {error}");
        let value = match &value {
            Some(value) => value,
            None => value.insert(self::value(device).map_err(failed)?),
        };
        let outcome = program.eval(&Bindings::new().with("device", value.clone()), SELECTOR_COST_MAX);
        let result = outcome.result.map_err(|error| failed(error.to_string()))?;
        match result.as_bool() {
            Some(true) => {}
            Some(false) => return Ok(false),
            None => return Err(failed("CEL result could not be converted to bool".to_owned())),
        }
    }
    Ok(true)
}

/// A device as expressions see it.
fn value(device: &DeviceInfo) -> Result<Value<'_>, String> {
    let mut attributes: BTreeMap<&str, Vec<(&str, Value<'_>)>> = BTreeMap::new();
    for (name, attribute) in device.object.attributes.iter().flatten() {
        let (domain, id) = name.split_once('/').unwrap_or((&device.driver, name));
        let value = attribute_value(attribute).map_err(|error| format!("attribute {name}: {error}"))?;
        attributes.entry(domain).or_default().push((id, value));
    }
    let mut capacity: BTreeMap<&str, Vec<(&str, Value<'_>)>> = BTreeMap::new();
    for (name, amount) in device.object.capacity.iter().flatten() {
        let (domain, id) = name.split_once('/').unwrap_or((&device.driver, name));
        let amount = Quantity::parse(&amount.value.0).unwrap_or_default();
        capacity.entry(domain).or_default().push((id, Value::quantity(amount)));
    }
    let by_domain = |map: BTreeMap<_, Vec<_>>| {
        let domains = map.into_iter().map(|(domain, values)| (domain, Value::map(values)));
        Value::map_with_default(domains.collect::<Vec<_>>(), Value::map([]))
    };
    Ok(Value::map([
        ("driver", Value::from(&*device.driver)),
        ("allowMultipleAllocations", Value::from(device.is_shared)),
        ("attributes", by_domain(attributes)),
        ("capacity", by_domain(capacity)),
    ]))
}

fn attribute_value(attribute: &DeviceAttribute) -> Result<Value<'_>, String> {
    if let Some(int) = attribute.int {
        Ok(Value::from(int))
    } else if let Some(bool) = attribute.bool {
        Ok(Value::from(bool))
    } else if let Some(text) = &attribute.string {
        Ok(Value::from(text.as_str()))
    } else if let Some(version) = &attribute.version {
        Value::semver(version).map_err(|error| format!("parse semantic version: {error}"))
    } else {
        Err("unsupported attribute value".to_owned())
    }
}
