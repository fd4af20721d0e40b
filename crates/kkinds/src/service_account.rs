//! Service accounts.

use kschema::{fields::items_mut, strategy::Strategy};
use serde_json::{Value, json};

use crate::check::Look;

/// The strategy of `serviceaccounts`.
#[derive(Debug)]
pub(crate) struct ServiceAccounts;

const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Of a reference to a secret only the name counts.
fn clean(object: &mut Value) {
    for secret in items_mut(object, "secrets") {
        *secret = match secret.text("name") {
            "" => json!({}),
            name => json!({"name": name}),
        };
    }
}

impl Strategy for ServiceAccounts {
    fn prepare_create(&self, object: &mut Value) {
        clean(object);
    }

    fn prepare_update(&self, object: &mut Value, _old: &Value) {
        clean(object);
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let annotated =
            |object: &Value| object["metadata"].get("annotations").is_some_and(|map| map.has(MOUNTABLE));
        if annotated(object) && !old.is_some_and(annotated) {
            return vec![format!(
                "metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"
            )];
        }
        Vec::new()
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
