//! The quality-of-service class of a pod (`pkg/apis/core/helper/qos`).

use kcore::Quantity;
use serde_json::Value;

use crate::check::{
    Look,
    quantity::{self, Amounts},
};

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub(crate) fn class(spec: &Value) -> &'static str {
    let (mut requests, mut limits) = (Amounts::new(), Amounts::new());
    let mut guaranteed = true;
    if let Some(resources) = spec.get_some("resources") {
        add(&mut requests, resources, "requests");
        let limited = add(&mut limits, resources, "limits");
        guaranteed = resources.count("limits") == 0 || limited == 2;
    } else {
        for container in spec.list("containers").iter().chain(spec.list("initContainers")) {
            let resources = container.get("resources").unwrap_or(&Value::Null);
            add(&mut requests, resources, "requests");
            guaranteed &= add(&mut limits, resources, "limits") == 2;
        }
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    let covered = || requests.iter().all(|(name, asked)| limits.get(name) == Some(asked));
    if guaranteed && requests.len() == limits.len() && covered() { "Guaranteed" } else { "Burstable" }
}

/// Adds what counts; returns how many kinds of it there were.
fn add<'a>(sum: &mut Amounts<'a>, resources: &'a Value, kind: &str) -> usize {
    let mut kinds = 0;
    for (name, value) in resources.map(kind).filter(|(name, _)| matches!(*name, "cpu" | "memory")) {
        let amount = quantity::amount(value);
        if amount > Quantity::default() {
            kinds += 1;
            sum.entry(name).and_modify(|total| *total += amount).or_insert(amount);
        }
    }
    kinds
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// From `pkg/apis/core/helper/qos/qos_test.go`.
    #[test]
    fn classes_are_upstreams() {
        let one =
            |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
        let both = json!({"cpu": "100m", "memory": "100Mi"});
        for (containers, class_expected) in [
            (vec![one(both.clone(), both.clone())], "Guaranteed"),
            (vec![one(both.clone(), both.clone()), one(json!({}), json!({}))], "Burstable"),
            (vec![one(json!({}), json!({}))], "BestEffort"),
            (vec![one(json!({"storage": "1Gi"}), json!({}))], "BestEffort"),
            (vec![one(json!({"cpu": "100m"}), json!({"cpu": "100m"}))], "Burstable"),
            (vec![one(both.clone(), json!({"cpu": "200m", "memory": "100Mi"}))], "Burstable"),
            (vec![one(json!({"cpu": "0"}), json!({"cpu": "0"}))], "BestEffort"),
        ] {
            assert_eq!(class(&json!({"containers": containers})), class_expected, "{containers:?}");
        }
        let whole = json!({"resources": {"requests": both, "limits": both}, "containers": [{}]});
        assert_eq!(class(&whole), "Guaranteed");
    }
}
