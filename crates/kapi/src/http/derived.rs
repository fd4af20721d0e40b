//! Reading kinds that are made of others.

use std::sync::Arc;

use http::{Response, StatusCode};
use kcore::{Status, Stored, clock::format_time};
use serde_json::{Map, Value, json};

use super::resource::Request;
use crate::{body::Body, derived::Derive, error::ApiResult, list, registry::Resource};

impl Request<'_> {
    fn source(&self, derive: &dyn Derive) -> ApiResult<Arc<Resource>> {
        let from = derive.from();
        let found = self.server.objects.registry().find(&from.group, &from.version, &from.resource);
        Ok(found.ok_or_else(Status::no_such_path)?)
    }

    /// The objects that are made of these; where nothing is known there is none.
    async fn derive(&self, resource: &Resource, derive: &dyn Derive, of: &[Arc<Stored>]) -> Vec<Value> {
        let made_at = format_time(self.server.objects.clock().now());
        let parts = derive.derive(of).await;
        let whole = of.iter().zip(parts).filter_map(|(object, fields)| {
            let (header, Value::Object(fields)) = (object.header(), fields?) else { return None };
            let mut metadata = json!({"name": &*header.name, "creationTimestamp": made_at});
            if resource.def.namespaced {
                metadata["namespace"] = json!(&*header.namespace);
            }
            if !header.labels.is_empty() {
                let labels = header.labels.iter().map(|(key, value)| (key.to_owned(), json!(value)));
                metadata["labels"] = Value::Object(labels.collect());
            }
            let mut value = Map::new();
            value.insert("kind".to_owned(), json!(resource.def.kind));
            value.insert("apiVersion".to_owned(), json!(resource.api_version()));
            value.insert("metadata".to_owned(), metadata);
            value.extend(fields);
            Some(Value::Object(value))
        });
        whole.collect()
    }

    pub(super) async fn get_derived(
        &self,
        resource: &Resource,
        derive: &dyn Derive,
    ) -> ApiResult<Response<Body>> {
        let form = self.form(resource, false)?;
        let source = self.source(derive)?;
        let of = self.server.objects.get(&source, self.namespace(resource), &self.info.name);
        let made = match of {
            Some(of) => self.derive(resource, derive, &[of]).await.pop(),
            None => None,
        };
        let def = &resource.def;
        let value = made.ok_or_else(|| Status::not_found(&def.group, &def.plural, &self.info.name))?;
        self.object_response(resource, StatusCode::OK, &value, form)
    }

    pub(super) async fn list_derived(
        &self,
        resource: &Resource,
        derive: &dyn Derive,
    ) -> ApiResult<Response<Body>> {
        let form = self.form(resource, false)?;
        let source = self.source(derive)?;
        let options = self.list_options(resource, false)?;
        let page = list::list(&self.server.objects, &source, self.namespace(resource), &options).await?;
        let mut meta = json!({});
        if !page.continue_.is_empty() {
            meta["continue"] = json!(page.continue_);
        }
        let values = self.derive(resource, derive, &page.items).await;
        self.list_response(resource, &values, &meta, form)
    }
}
