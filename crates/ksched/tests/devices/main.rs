//! What claims get: cases from upstream's tests, and random ones against a naive reference.

mod cases;
mod random;
mod reference;

use std::sync::Arc;

use k8s_openapi::api::resource::v1::{AllocationResult, DeviceClass, ResourceClaim, ResourceSlice};
use ksched::{
    Snapshot,
    build::node,
    devices::{AllocateError, Allocated, Demand, Inventory, Selectors, allocate},
};
use serde_json::{Value, from_value};

/// Classes, slices, claims to allocate, and results that claims have already.
#[derive(Clone, Debug)]
struct World {
    classes: Vec<Value>,
    slices: Vec<Value>,
    claims: Vec<Value>,
    allocated: Vec<Value>,
}

impl World {
    fn allocate(&self, on: &str) -> Result<Option<Vec<AllocationResult>>, AllocateError> {
        let mut snapshot = Snapshot::new();
        let catalog = snapshot.catalog_mut();
        for class in &self.classes {
            catalog.set(Arc::new(from_value::<DeviceClass>(class.clone()).unwrap()));
        }
        for slice in &self.slices {
            catalog.set(Arc::new(from_value::<ResourceSlice>(slice.clone()).unwrap()));
        }
        let claims: Vec<Arc<ResourceClaim>> =
            self.claims.iter().map(|claim| Arc::new(from_value(claim.clone()).unwrap())).collect();
        let mut allocated = Allocated::default();
        for result in &self.allocated {
            allocated.add(&from_value(serde_json::json!({"devices": {"results": [result]}})).unwrap());
        }
        let demand = Demand::read(&claims, catalog, &Selectors::default())?;
        let node = node(on).label("zone", if on == "n1" { "east" } else { "west" }).info();
        allocate(&demand, &Inventory::of(catalog), &allocated, &node)
    }
}

/// `request=driver/pool/device` for each device, with what is consumed and who may use it; claims are joined by ` | `.
fn show(outcome: Result<Option<Vec<AllocationResult>>, AllocateError>) -> String {
    let claims = match outcome {
        Ok(None) => return "none".to_owned(),
        Err(error) => return format!("error: {error}"),
        Ok(Some(claims)) => claims,
    };
    let claims = claims.iter().map(|claim| {
        let devices = claim.devices.clone().unwrap_or_default();
        let mut words: Vec<String> = Vec::new();
        for result in devices.results.iter().flatten() {
            let mut text = format!("{}={}/{}/{}", result.request, result.driver, result.pool, result.device);
            if result.admin_access == Some(true) {
                text.push_str(" (admin)");
            }
            for (name, amount) in result.consumed_capacity.iter().flatten() {
                text.push_str(&format!(" {name}:{}", amount.0));
            }
            if result.share_id.is_some() {
                text.push_str(" (share)");
            }
            words.push(text);
        }
        for config in devices.config.iter().flatten() {
            let driver = config.opaque.as_ref().map_or("", |opaque| &opaque.driver);
            words.push(format!(
                "{}{:?}:{driver}",
                config.source,
                config.requests.clone().unwrap_or_default()
            ));
        }
        let mut terms = claim.node_selector.iter().flat_map(|selector| &selector.node_selector_terms);
        if let Some(term) = terms.next() {
            let all = term.match_fields.iter().chain(&term.match_expressions).flatten();
            let all: Vec<_> = all
                .map(|one| {
                    format!(
                        "{} {} {}",
                        one.key,
                        one.operator,
                        one.values.clone().unwrap_or_default().join(",")
                    )
                })
                .collect();
            words.push(format!("@{}", all.join(" & ")));
        }
        words.join("; ")
    });
    claims.collect::<Vec<_>>().join(" | ")
}
