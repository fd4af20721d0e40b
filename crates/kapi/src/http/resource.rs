//! The verbs of a resource on the wire.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use kcore::{Status, Stored, kind::split_api_version, local::WantLocal};
use serde_json::{Value, json};

use super::{
    add_warnings, bytes_response, decode, json_response, media_type,
    negotiate::{self, Form},
    read_body, table, upgrade, watch as wire,
};
use crate::{
    authn::UserInfo,
    body::Body,
    convert, custom,
    delete::Deleted,
    error::{ApiError, ApiResult},
    list::{self, Page},
    objects::stored,
    patch::Patch,
    registry::{Resource, Verbs},
    request::{DeleteOptions, FieldValidation, ListOptions, Query, RequestInfo, WriteOptions},
    schema::{Type, check},
    server::Inner,
    subresource, watch,
    write::{Call, Written, in_version},
};

/// Lists whose JSON is larger than this are sent in chunks while they are encoded.
const CHUNK_BYTES: usize = 128 * 1024;

/// A request for a resource.
pub(super) struct Request<'a> {
    pub(super) server: &'a Arc<Inner>,
    pub(super) parts: &'a Parts,
    pub(super) info: &'a RequestInfo,
    pub(super) query: &'a Query,
    pub(super) user: &'a Arc<UserInfo>,
}

impl Request<'_> {
    /// Answers it.
    pub(super) async fn serve<B>(&self, body: B) -> ApiResult<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display + Send,
    {
        let info = self.info;
        let registry = self.server.objects.registry();
        let built_in = registry.find(&info.group, &info.version, &info.resource);
        let resource = match built_in {
            Some(resource) if resource.def.definition().is_none_or(|definition| !definition.from_object) => {
                resource
            }
            _ => {
                self.server.customs.sync(&self.server.objects);
                let found = registry.find(&info.group, &info.version, &info.resource);
                found.ok_or_else(Status::no_such_path)?
            }
        };
        self.check_verb(&resource)?;
        if !info.subresource.is_empty() {
            if !resource.has_subresource(&info.subresource) {
                return Err(Status::no_such_path().into());
            }
            if upgrade::is_node_request(&resource, &info.subresource) {
                return upgrade::serve(self, &resource, body).await;
            }
        }
        let mut response = self.answer(&resource, body).await?;
        if let Some(warning) =
            resource.version().structure.as_ref().and_then(|structure| structure.warning.as_ref())
        {
            add_warnings(&mut response, std::slice::from_ref(warning));
        }
        Ok(response)
    }

    async fn answer<B>(&self, resource: &Arc<Resource>, body: B) -> ApiResult<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display + Send,
    {
        let writes = match self.info.verb.as_str() {
            "get" => return self.get(resource).await,
            "list" => return self.list(resource).await,
            "watch" => return self.watch(resource).await,
            "delete" | "deletecollection" => self.delete(resource, read_body(body).await?).await,
            "create" => self.create(resource, read_body(body).await?).await,
            "update" => self.update(resource, read_body(body).await?).await,
            "patch" => self.patch(resource, read_body(body).await?).await,
            _ => return Err(self.not_allowed(resource)),
        };
        let def = &resource.def;
        let defines = def.group == custom::GROUP && def.plural == custom::PLURAL;
        if defines || def.definition().is_some_and(|definition| definition.terminating) {
            custom::settle(self.server).await?;
        }
        writes
    }

    fn not_allowed(&self, resource: &Resource) -> ApiError {
        let def = &resource.def;
        let why = "the server does not allow this method on the requested resource";
        Status::failure(405, "MethodNotAllowed", why).about(&def.group, &def.plural, &self.info.name).into()
    }

    fn check_verb(&self, resource: &Resource) -> ApiResult<()> {
        let info = self.info;
        let def = &resource.def;
        if def.namespaced && info.namespace.is_empty() && !matches!(info.verb.as_str(), "list" | "watch") {
            // Objects of all namespaces can only be listed and watched.
            return Err(self.not_allowed(resource));
        }
        if !def.namespaced && !info.namespace.is_empty() && def.plural != "namespaces" {
            return Err(Status::no_such_path().into());
        }
        let allowed = match (info.subresource.is_empty(), def.verbs) {
            (false, _) => !matches!(info.verb.as_str(), "list" | "watch" | "deletecollection" | "delete"),
            (true, Verbs::All) => true,
            (true, verbs) => verbs.names().contains(&info.verb.as_str()),
        };
        if allowed { Ok(()) } else { Err(self.not_allowed(resource)) }
    }

    /// The namespace that objects of the resource are kept under.
    pub(super) fn namespace(&self, resource: &Resource) -> &str {
        if resource.def.namespaced { &self.info.namespace } else { "" }
    }

    pub(super) fn call<'b>(&'b self, resource: &'b Resource, dry_run: bool) -> Call<'b> {
        Call {
            objects: &self.server.objects,
            admission: &self.server.admission,
            foreign_admission: self.server.foreign_admission,
            user: self.user,
            resource,
            subresource: &self.info.subresource,
            namespace: self.namespace(resource),
            name: &self.info.name,
            dry_run,
        }
    }

    async fn get(&self, resource: &Arc<Resource>) -> ApiResult<Response<Body>> {
        let form = negotiate::form(&self.parts.headers)?;
        let def = &resource.def;
        let object = self.server.objects.get(resource, self.namespace(resource), &self.info.name);
        let object = object.ok_or_else(|| Status::not_found(&def.group, &def.plural, &self.info.name))?;
        if let Some(wanted) = self.query.get("resourceVersion") {
            let wanted = crate::request::parse_revision(wanted)?;
            let current = self.server.objects.snapshot().revision().get();
            if wanted > current {
                return Err(list::too_large_revision(wanted, current));
            }
        }
        if self.info.subresource == "scale" {
            let value = convert::hub(&self.server.objects, resource, &object).await?;
            return self.object_response(
                resource,
                StatusCode::OK,
                &subresource::scale_of(resource, &value)?,
                form,
            );
        }
        if form == Form::Object && convert::is_as_served(resource, &object) {
            return Ok(bytes_response(StatusCode::OK, object.json().clone()));
        }
        let value = convert::served(&self.server.objects, resource, &object).await?;
        self.object_response(resource, StatusCode::OK, &value, form)
    }

    /// One object in the form that was asked for.
    fn object_response(
        &self,
        resource: &Resource,
        code: StatusCode,
        value: &Value,
        form: Form,
    ) -> ApiResult<Response<Body>> {
        Ok(match form {
            Form::Object => json_response(code, value),
            Form::Metadata => json_response(code, &metadata_of(value)),
            Form::Table => {
                let meta = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let include = table::Include::of_query(self.query);
                json_response(
                    code,
                    &table::of(resource, std::slice::from_ref(value), &meta, true, include, self.now()),
                )
            }
        })
    }

    fn now(&self) -> jiff::Timestamp {
        self.server.objects.clock().now()
    }

    async fn list(&self, resource: &Arc<Resource>) -> ApiResult<Response<Body>> {
        let form = negotiate::form(&self.parts.headers)?;
        let options = self.list_options(resource, false)?;
        let page = list::list(&self.server.objects, resource, self.namespace(resource), &options).await?;
        let mut meta = json!({"resourceVersion": page.revision.to_string()});
        if !page.continue_.is_empty() {
            meta["continue"] = json!(page.continue_);
        }
        if let Some(remaining) = page.remaining.filter(|remaining| *remaining > 0) {
            meta["remainingItemCount"] = json!(remaining);
        }
        if form == Form::Object && page.items.iter().all(|item| convert::is_as_served(resource, item)) {
            return Ok(stream_list(resource, &meta, page));
        }
        let mut values = Vec::with_capacity(page.items.len());
        for item in &page.items {
            values.push(convert::served(&self.server.objects, resource, item).await?);
        }
        Ok(json_response(
            StatusCode::OK,
            &match form {
                Form::Object => {
                    json!({"kind": list_kind(resource), "apiVersion": resource.api_version(), "metadata": meta, "items": values})
                }
                Form::Table => table::of(
                    resource,
                    &values,
                    &meta,
                    true,
                    table::Include::of_query(self.query),
                    self.now(),
                ),
                Form::Metadata => {
                    let items: Vec<Value> = values.iter().map(metadata_of).collect();
                    json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "items": items})
                }
            },
        ))
    }

    fn list_options(&self, resource: &Resource, watch: bool) -> ApiResult<ListOptions> {
        let mut options = ListOptions::parse(self.query, watch)?;
        if !self.info.name.is_empty() {
            let own = kcore::selector::FieldSelector::parse(&format!("metadata.name={}", self.info.name));
            options.fields = own.map_err(|error| Status::bad_request(error.to_string()))?;
        }
        let def = &resource.def;
        let unknown = options.fields.terms().iter().find(|term| !def.is_selectable(&term.path));
        if let Some(term) = unknown {
            let gvr = resource.gvr();
            let fields = self.query.get("fieldSelector").unwrap_or_default();
            let why = if def.selectable.is_empty() {
                format!(
                    "\"{}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    term.path
                )
            } else {
                format!("field label not supported: {}", term.path)
            };
            return Err(Status::bad_request(format!(
                "Unable to find {:?} that match label selector {:?}, field selector {fields:?}: {why}",
                gvr.to_string(),
                options.labels.to_string()
            ))
            .into());
        }
        Ok(options)
    }

    async fn watch(&self, resource: &Arc<Resource>) -> ApiResult<Response<Body>> {
        let form = negotiate::form(&self.parts.headers)?;
        let options = self.list_options(resource, true)?;
        let session = watch::open(&self.server.objects, resource, self.namespace(resource), options).await?;
        let local = self.parts.extensions.get::<WantLocal>();
        Ok(wire::respond(session, resource, form, table::Include::of_query(self.query), self.server, local))
    }

    fn decode(&self, media_type: &str, bytes: &[u8]) -> ApiResult<(Value, Vec<String>)> {
        decode(self.server.objects.registry().catalog(), media_type, bytes)
    }

    /// Decodes an object of the resource: its type is checked, unknown fields go as the options say.
    pub(super) fn decode_object(
        &self,
        resource: &Resource,
        media_type: &str,
        bytes: &[u8],
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> ApiResult<Value> {
        let (mut object, duplicates) = self.decode(media_type, bytes)?;
        if !object.is_object() {
            let why = "couldn't get version/kind; json parse error: json: cannot unmarshal a value that is not an object into Go value of type struct";
            return Err(Status::bad_request(why).into());
        }
        let (api_version, kind) = (resource.api_version(), &resource.def.kind);
        self.check_kind(&mut object, &api_version, kind)?;
        self.check_fields(resource, &mut object, duplicates, options, warnings)?;
        Ok(object)
    }

    fn check_kind(&self, object: &mut Value, api_version: &str, kind: &str) -> ApiResult<()> {
        match object.get("apiVersion").and_then(Value::as_str) {
            None | Some("") => object["apiVersion"] = json!(api_version),
            Some(given) if given != api_version => {
                return Err(Status::bad_request(format!("the API version in the data ({given}) does not match the expected API version ({api_version})")).into());
            }
            Some(_) => {}
        }
        match object.get("kind").and_then(Value::as_str) {
            None | Some("") => object["kind"] = json!(kind),
            Some(given) if given != kind => {
                let version = split_api_version(api_version).1;
                return Err(Status::bad_request(format!("{given} in version {version:?} cannot be handled as a {kind}: the kind in the data does not match the expected kind")).into());
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Checks types and unknown fields of an object in the version of the request.
    fn check_fields(
        &self,
        resource: &Resource,
        object: &mut Value,
        duplicates: Vec<String>,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        let (version, kind) = (&resource.version().name, &resource.def.kind);
        let fault = |why: &dyn fmt::Display| {
            ApiError::from(Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {kind}: {why}"
            )))
        };
        let catalog = self.server.objects.registry().catalog();
        let unknown = match &resource.version().structure {
            None => {
                check::check(catalog, &resource.version().schema, object).map_err(|error| fault(&error))?
            }
            Some(structure) => {
                let mut unknown = structure.schema.prune(object);
                let meta = catalog.find("^ObjectMeta").map_or(Type::Any, Type::Named);
                let fields =
                    object.get_mut("metadata").map(|meta_value| check::check(catalog, &meta, meta_value));
                let fields = fields.transpose().map_err(|error| fault(&error))?.unwrap_or_default();
                unknown.extend(fields.iter().map(|path| format!("metadata.{path}")));
                unknown
            }
        };
        let texts = duplicates
            .iter()
            .map(|path| format!("duplicate field {path:?}"))
            .chain(unknown.iter().map(|path| format!("unknown field {path:?}")));
        let texts: Vec<String> = texts.collect();
        match options.field_validation {
            FieldValidation::Strict if !texts.is_empty() => {
                Err(fault(&format_args!("strict decoding error: {}", texts.join(", "))))
            }
            FieldValidation::Warn => {
                warnings.extend(texts);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn create(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let options = WriteOptions::parse(self.query, "CreateOptions")?;
        if resource.def.definition().is_some_and(|definition| definition.terminating) {
            let why = "create not allowed while custom resource definition is terminating";
            let def = &resource.def;
            return Err(Status::forbidden(&def.group, &def.plural, &self.info.name, why).into());
        }
        let form = negotiate::form(&self.parts.headers)?;
        let media_type = media_type(&self.parts.headers);
        if !self.info.subresource.is_empty() || resource.def.verbs == Verbs::CreateOnly {
            let (object, _) = self.decode(&media_type, &body)?;
            let (code, value) =
                subresource::create(self.server, self.user, &self.call(resource, options.dry_run), object)
                    .await?;
            return Ok(json_response(code, &value));
        }
        if !self.info.name.is_empty() {
            return Err(self.not_allowed(resource));
        }
        let mut warnings = Vec::new();
        let mut object = self.decode_object(resource, &media_type, &body, &options, &mut warnings)?;
        convert::to_hub(resource, &mut object);
        let written = self.call(resource, options.dry_run).create(object).await?;
        self.written_response(resource, StatusCode::CREATED, &written, form, &warnings).await
    }

    async fn written_response(
        &self,
        resource: &Resource,
        code: StatusCode,
        written: &Written,
        form: Form,
        warnings: &[String],
    ) -> ApiResult<Response<Body>> {
        let mut response = match written {
            Written::Stored(stored) if form == Form::Object && convert::is_as_served(resource, stored) => {
                bytes_response(code, stored.json().clone())
            }
            Written::Stored(stored) => {
                let value = convert::served(&self.server.objects, resource, stored).await?;
                self.object_response(resource, code, &value, form)?
            }
            Written::DryRun(value) => {
                self.object_response(resource, code, &in_version(resource, value.clone()), form)?
            }
        };
        add_warnings(&mut response, warnings);
        Ok(response)
    }

    async fn update(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let options = WriteOptions::parse(self.query, "UpdateOptions")?;
        let form = negotiate::form(&self.parts.headers)?;
        let media_type = media_type(&self.parts.headers);
        let mut warnings = Vec::new();
        let call = self.call(resource, options.dry_run);
        if self.info.subresource == "scale" {
            let (scale, _) = self.decode(&media_type, &body)?;
            let value = subresource::update_scale(&call, &|_| Ok(scale.clone())).await?;
            return self.object_response(resource, StatusCode::OK, &value, form);
        }
        if self.info.subresource == "token"
            || self.info.subresource == "eviction"
            || self.info.subresource == "binding"
        {
            return Err(self.not_allowed(resource));
        }
        let mut object = self.decode_object(resource, &media_type, &body, &options, &mut warnings)?;
        convert::to_hub(resource, &mut object);
        let missing = self.server.objects.get(resource, call.namespace, call.name).is_none();
        if missing && resource.def.traits.create_on_update && self.info.subresource.is_empty() {
            let named = object["metadata"]["name"].as_str() == Some(call.name);
            if !named {
                return Err(
                    Status::bad_request("the name of the object does not match the name on the URL").into()
                );
            }
            let written = call.create(object).await?;
            return self.written_response(resource, StatusCode::CREATED, &written, form, &warnings).await;
        }
        let written = if self.info.subresource == "finalize" {
            call.update(&|old| Ok(subresource::finalized(old, &object))).await?
        } else {
            call.update(&|_| Ok(object.clone())).await?
        };
        self.written_response(resource, StatusCode::OK, &written, form, &warnings).await
    }

    async fn patch(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let options = WriteOptions::parse(self.query, "PatchOptions")?;
        let form = negotiate::form(&self.parts.headers)?;
        let patch_type = media_type(&self.parts.headers);
        let known = crate::patch::MEDIA_TYPES.contains(&patch_type.as_str());
        let (patch, duplicates) =
            if known { self.decode("application/json", &body)? } else { (Value::Null, Vec::new()) };
        let patch = Patch::parse(&patch_type, patch)?;
        let call = self.call(resource, options.dry_run);
        let catalog = self.server.objects.registry().catalog();
        if self.info.subresource == "scale" {
            let value = subresource::update_scale(&call, &|scale| {
                patch.apply(catalog, &crate::schema::Type::Any, scale)
            })
            .await?;
            return self.object_response(resource, StatusCode::OK, &value, form);
        }
        let warnings = std::sync::Mutex::new(Vec::new());
        let change = |old: &Value| -> ApiResult<Value> {
            let current = if convert::is_identity(resource) || resource.def.definition().is_some() {
                Cow::Borrowed(old)
            } else {
                Cow::Owned(in_version(resource, old.clone()))
            };
            let mut patched = patch.apply(catalog, &resource.version().schema, &current)?;
            let (api_version, kind) = (resource.api_version(), &resource.def.kind);
            self.check_kind(&mut patched, &api_version, kind)?;
            let mut found = Vec::new();
            self.check_fields(resource, &mut patched, duplicates.clone(), &options, &mut found)?;
            *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
            convert::to_hub(resource, &mut patched);
            Ok(patched)
        };
        let written = call.update(&change).await?;
        let warnings = warnings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.written_response(resource, StatusCode::OK, &written, form, &warnings).await
    }

    async fn delete(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let media_type = media_type(&self.parts.headers);
        let body = if body.is_empty() { None } else { Some(self.decode(&media_type, &body)?.0) };
        let options = DeleteOptions::parse(self.query, body.as_ref())?;
        if self.info.verb == "deletecollection" {
            return self.delete_collection(resource, &options).await;
        }
        let deleted = self.call(resource, options.dry_run).delete(&options).await?;
        let def = &resource.def;
        let value = match deleted {
            Deleted::Gone(last) if !def.traits.returns_deleted => {
                let uid = last["metadata"]["uid"].as_str().unwrap_or_default();
                return Ok(super::status_response(&Status::success(
                    &def.group,
                    &def.plural,
                    &self.info.name,
                    uid,
                )));
            }
            Deleted::Gone(object) | Deleted::Later(object) => in_version(resource, object),
        };
        Ok(json_response(StatusCode::OK, &value))
    }

    async fn delete_collection(
        &self,
        resource: &Arc<Resource>,
        options: &DeleteOptions,
    ) -> ApiResult<Response<Body>> {
        let selection = self.list_options(resource, false)?;
        let mut items = Vec::new();
        for entry in list::entries(&self.server.objects, resource, self.namespace(resource), &selection) {
            let object: Arc<Stored> = stored(&resource.def, &entry);
            let header = object.header();
            let mut call = self.call(resource, options.dry_run);
            (call.namespace, call.name) = (&header.namespace, &header.name);
            match call.delete(options).await {
                Ok(Deleted::Gone(value) | Deleted::Later(value)) => items.push(in_version(resource, value)),
                // Somebody else deleted it in the meantime: that is what was asked for.
                Err(error) if error.0.is("NotFound") => {}
                Err(error) => return Err(error),
            }
        }
        let meta = json!({"resourceVersion": self.server.objects.snapshot().revision().to_string()});
        let list = json!({"kind": list_kind(resource), "apiVersion": resource.api_version(), "metadata": meta, "items": items});
        Ok(json_response(StatusCode::OK, &list))
    }
}

pub(super) fn list_kind(resource: &Resource) -> String {
    match resource.def.definition() {
        Some(definition) if !definition.list_kind.is_empty() => definition.list_kind.clone(),
        _ => format!("{}List", resource.def.kind),
    }
}

/// An object's metadata as a `PartialObjectMetadata`.
pub(super) fn metadata_of(value: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": value["metadata"]})
}

/// A list in chunks: each is made from the shared objects when the one before has been taken, so a large list costs no
/// second copy of itself.
fn stream_list(resource: &Resource, meta: &Value, page: Page) -> Response<Body> {
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{meta},\"items\":[",
        list_kind(resource),
        resource.api_version()
    );
    let mut items = page.items.into_iter();
    let mut first = true;
    let mut chunk = move |mut out: Vec<u8>| -> (Vec<u8>, bool) {
        for item in items.by_ref() {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            item.write_json(&mut out);
            if out.len() >= CHUNK_BYTES {
                return (out, true);
            }
        }
        out.extend_from_slice(b"]}\n");
        (out, false)
    };
    let (out, more) = chunk(head.into_bytes());
    if !more {
        return bytes_response(StatusCode::OK, out);
    }
    let rest = futures::stream::unfold(Some(chunk), |chunk| async move {
        let mut chunk = chunk?;
        let (out, more) = chunk(Vec::with_capacity(CHUNK_BYTES + 4096));
        Some((Bytes::from(out), more.then_some(chunk)))
    });
    let chunks = futures::StreamExt::chain(futures::stream::once(std::future::ready(Bytes::from(out))), rest);
    let (parts, _) = bytes_response(StatusCode::OK, Bytes::new()).into_parts();
    Response::from_parts(parts, Body::stream(chunks))
}
