//! Runtime classes.

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::Value;

use crate::{
    check::{Internal, Look, Path, Report, form, labels},
    node_labels,
    pod::{options::Options, resources, tolerations},
};

type Errors = Vec<FieldError>;

/// The strategy of `runtimeclasses`.
#[derive(Debug)]
pub(crate) struct RuntimeClasses;

impl Strategy for RuntimeClasses {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        errors.name(&Path::root("handler"), object.text("handler"), form::dns_label);
        if let Some(overhead) = object.get_some("overhead") {
            let fixed = overhead.get_some("podFixed").unwrap_or(&Value::Null);
            resources::validate_overhead(fixed, Options::default(), &Path::root("overhead"), errors);
        }
        let Some(scheduling) = object.get_some("scheduling") else {
            return;
        };
        let path = Path::root("scheduling");
        labels::labels(scheduling, &path, "nodeSelector", errors);
        let (list, found) = (path.field("tolerations"), scheduling.list("tolerations"));
        tolerations::validate(found, Options::default(), &list, errors);
        let key = |toleration: &'_ Value| {
            ["key", "operator", "value", "effect"].map(|key| toleration.text(key).to_owned())
        };
        for (index, one) in found.iter().enumerate() {
            if found[..index].iter().any(|other| key(other) == key(one)) {
                errors.duplicate(&list.index(index), Internal("~core.v1.Toleration", Some(one)));
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable(object, old, &Path::root(""), "handler");
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let scheduling = object.get_some("scheduling").unwrap_or(&Value::Null);
        let keys = scheduling.map("nodeSelector").filter_map(|(key, _)| node_labels::deprecated(key));
        keys.map(|why| format!("scheduling.nodeSelector: {why}")).collect()
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
