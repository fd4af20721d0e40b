//! The objects that a policy takes its parameters from (`policy/generic.CollectParams`).

use std::sync::Arc;

use kstore::Range;
use serde_json::Value;

use super::{Binding, Policy, scope::NULL};
use crate::{admission::matching::Asked, convert, objects::stored, registry::Resource};

/// How many objects a selector may choose; more are an error.
const PARAMS_MAX: usize = 10_000;

impl Policy {
    /// The kind of the parameters; `None` if there are none.
    ///
    /// # Errors
    /// When it is not served.
    pub(super) fn param_resource(&self, asked: &Asked<'_>) -> Result<Option<Arc<Resource>>, String> {
        let Some((api_version, kind)) = &self.params else {
            return Ok(None);
        };
        asked.request.objects.registry().find_kind(api_version, kind).map(Some).ok_or_else(|| {
            let shown =
                if api_version.contains('/') { api_version.clone() } else { format!("/{api_version}") };
            format!("failed to find resource referenced by paramKind: '{shown}, Kind={kind}'")
        })
    }
}

impl Binding {
    /// The objects that this binding takes its parameters from; null stands for none.
    ///
    /// # Errors
    /// When they can't be had, or there are none and that refuses the request.
    pub(super) async fn params(
        &self,
        asked: &Asked<'_>,
        resource: Option<&Resource>,
    ) -> Result<Vec<Value>, String> {
        let (Some(resource), Some(reference)) = (resource, &self.params) else {
            return Ok(vec![NULL.clone()]);
        };
        let own = reference["namespace"].as_str().unwrap_or_default();
        let namespace = match (resource.def.namespaced, own) {
            (true, "") if asked.namespace().is_empty() => {
                let why =
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources";
                return Err(why.to_owned());
            }
            (true, "") => asked.namespace(),
            (true, own) => own,
            (false, "") => "",
            (false, _) => {
                let why = "paramRef.namespace must not be provided for a cluster-scoped `paramKind`";
                return Err(why.to_owned());
            }
        };
        let objects = asked.request.objects;
        let found = match reference["name"].as_str().filter(|name| !name.is_empty()) {
            Some(name) => objects.get(resource, namespace, name).into_iter().collect(),
            None => {
                let prefix = if resource.def.namespaced { format!("{namespace}/") } else { String::new() };
                let snapshot = objects.snapshot();
                let all = snapshot.range(resource.table, Range::prefix(prefix));
                let all = all.map(|entry| stored(&resource.def, &entry));
                let selected = all.filter(|object| {
                    let labels = object.header().labels.iter();
                    let labels = labels.map(|(key, value)| (key.to_owned(), Value::from(value)));
                    kkinds::selects(&reference["selector"], &Value::Object(labels.collect()))
                });
                selected.take(PARAMS_MAX + 1).collect::<Vec<_>>()
            }
        };
        if found.len() > PARAMS_MAX {
            return Err(format!("more than {PARAMS_MAX} objects are selected as parameters"));
        }
        if found.is_empty() && reference["parameterNotFoundAction"] == "Deny" {
            let why = "no params found for policy binding with `Deny` parameterNotFoundAction";
            return Err(why.to_owned());
        }
        let mut params = Vec::with_capacity(found.len());
        for object in found {
            let served = convert::served(objects, resource, &object).await;
            params.push(served.map_err(|error| error.0.message)?);
        }
        Ok(params)
    }
}
