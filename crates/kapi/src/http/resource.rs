//! The verbs of a resource on the wire.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};
use kcore::{Status, Stored, local::WantLocal};
use serde_json::{Value, json};

use super::{
    add_warnings, binary, bytes_response, connect, json_response,
    negotiate::{self, Form},
    proxy, read_body,
    stream::chunked,
    table, upgrade, watch as wire, yaml_response,
};
use crate::{
    admission::policy,
    aggregate,
    audit::Trail,
    authn::UserInfo,
    body::Body,
    convert, custom,
    error::{ApiError, ApiResult},
    list, objects,
    registry::{Resource, Verbs},
    request::{Given, ListOptions, Query, RequestInfo},
    server::Inner,
    subresource, watch,
    write::{Call, Warnings},
};

/// What the metadata of an object is, alone.
const METADATA_KIND: &str = "PartialObjectMetadata";
/// What a list of that is.
pub(super) const METADATA_LIST: &str = "PartialObjectMetadataList";
/// The version of both.
pub(super) const METADATA_VERSION: &str = "meta.k8s.io/v1";

/// A request for a resource.
pub(super) struct Request<'a> {
    pub(super) server: &'a Arc<Inner>,
    pub(super) parts: &'a Parts,
    pub(super) info: &'a RequestInfo,
    pub(super) query: &'a Query,
    pub(super) user: &'a Arc<UserInfo>,
    /// Who comes to own what is written.
    pub(super) manager: String,
    /// What the caller is told beside the answer.
    pub(super) warnings: Warnings,
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
                match registry.find(&info.group, &info.version, &info.resource) {
                    Some(resource) => resource,
                    None if registry.has_version(&info.group, &info.version) => {
                        return Err(Status::no_such_path().into());
                    }
                    None => return Ok(super::unknown_path()),
                }
            }
        };
        self.check_verb(&resource)?;
        if !info.subresource.is_empty() {
            if !resource.has_subresource(&info.subresource) {
                return Err(Status::no_such_path().into());
            }
            let proxied = proxy::is_proxied(&resource, &info.subresource);
            if proxied || upgrade::is_node_request(&resource, &info.subresource) {
                self.admit_connection(&resource).await?;
                let mut response = if proxied {
                    self.proxy(&resource, body).await?
                } else {
                    upgrade::serve(self, &resource, body).await?
                };
                add_warnings(&mut response, &self.warnings.take());
                return Ok(response);
            }
        }
        let answer = self.answer(&resource, body).await;
        self.annotate(&resource);
        let mut response = answer?;
        add_warnings(&mut response, &self.warnings.take());
        if let Some(warning) = deprecation(&resource) {
            add_warnings(&mut response, &[warning.to_owned()]);
        }
        if let Some(warning) =
            resource.version().structure.as_ref().and_then(|structure| structure.warning.as_ref())
        {
            add_warnings(&mut response, std::slice::from_ref(warning));
        }
        Ok(response)
    }

    /// Asks admission whether a connection may be made. Logs are read, not connected to.
    async fn admit_connection(&self, resource: &Resource) -> ApiResult<()> {
        if self.info.subresource == "log" {
            return Ok(());
        }
        let mut options = connect::options(&resource.def.kind, self.info, self.query);
        let admitted = self.call(resource, false).connect(&mut options).await;
        self.annotate(resource);
        admitted
    }

    /// Tells the audit log what admission has to say.
    fn annotate(&self, resource: &Resource) {
        if let Some(trail) = self.trail().filter(|trail| trail.is_kept()) {
            for (key, value) in self.warnings.notes.annotations() {
                trail.annotate(&key, || value);
            }
            if deprecation(resource).is_some() {
                trail.annotate("k8s.io/deprecated", || "true".to_owned());
            }
        }
    }

    /// Where the audit of this request is put together, if there is one.
    fn trail(&self) -> Option<&Arc<Trail>> {
        self.parts.extensions.get::<Arc<Trail>>()
    }

    /// Tells the audit of this request, if there is one.
    pub(super) fn told(&self, tell: impl FnOnce(&Trail)) {
        if let Some(trail) = self.trail() {
            tell(trail);
        }
    }

    async fn answer<B>(&self, resource: &Arc<Resource>, body: B) -> ApiResult<Response<Body>>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display + Send,
    {
        self.catch_up().await?;
        let writes = match self.info.verb.as_str() {
            "get" => return self.get(resource).await,
            "list" => return self.list(resource).await,
            "watch" => return self.watch(resource).await,
            "delete" | "deletecollection" => self.delete(resource, self.read(resource, body).await?).await,
            "create" => self.create(resource, self.read(resource, body).await?).await,
            "update" => self.update(resource, self.read(resource, body).await?).await,
            "patch" => self.patch(resource, self.read(resource, body).await?).await,
            _ => return Err(self.not_allowed(resource)),
        };
        let def = &resource.def;
        let defines = def.group == custom::GROUP && def.plural == custom::PLURAL;
        if defines || def.definition().is_some_and(|definition| definition.terminating) {
            custom::settle(self.server).await?;
        }
        if aggregate::is_api_services(resource) && self.info.subresource.is_empty() {
            aggregate::settle(self.server).await?;
        }
        if policy::is_checked(resource) && self.info.subresource.is_empty() {
            policy::settle(self.server).await?;
        }
        writes
    }

    /// Reads the body of a request that writes.
    async fn read<B>(&self, resource: &Resource, body: B) -> ApiResult<Bytes>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: fmt::Display + Send,
    {
        let body = read_body(body).await?;
        let def = &resource.def;
        self.server.metrics.received(&def.group, &def.plural, &self.info.verb, body.len());
        Ok(body)
    }

    /// Waits until everything is here that any server over the same store has answered, so that a client may go from one
    /// to the other. Where the store is this server's own there is nothing to wait for. Lists and watches wait themselves, and
    /// "any version" doesn't.
    async fn catch_up(&self) -> ApiResult<()> {
        let any = self.info.verb == "get" && self.query.get("resourceVersion") == Some("0");
        if !any && !matches!(self.info.verb.as_str(), "list" | "watch") {
            self.server.objects.store().barrier().await.map_err(Status::internal)?;
        }
        Ok(())
    }

    pub(super) fn not_allowed(&self, resource: &Resource) -> ApiError {
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
            (false, _) if info.subresource == "proxy" => true,
            (false, _) if ["binding", "eviction", "token"].contains(&info.subresource.as_str()) => {
                info.verb == "create"
            }
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
            foreign_admission: self.server.is_foreign(resource),
            user: self.user,
            resource,
            subresource: &self.info.subresource,
            namespace: self.namespace(resource),
            name: &self.info.name,
            dry_run,
            given: Given::Query(self.query),
            manager: Some(&self.manager),
            warnings: Some(&self.warnings),
        }
    }

    async fn get(&self, resource: &Arc<Resource>) -> ApiResult<Response<Body>> {
        if let Some(derive) = resource.def.definition().and_then(|definition| definition.derived.as_deref()) {
            return self.get_derived(resource, derive).await;
        }
        let form = self.form(resource, false)?;
        let def = &resource.def;
        self.server.objects.settle(resource, self.namespace(resource), &self.info.name).await;
        let object = self.server.objects.get(resource, self.namespace(resource), &self.info.name);
        let object = object.ok_or_else(|| Status::not_found(&def.group, &def.plural, &self.info.name))?;
        objects::readable(&object)?;
        if let Some(wanted) = self.query.get("resourceVersion") {
            let wanted = crate::request::plain_revision(wanted)?;
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
            return Ok(bytes_response(StatusCode::OK, object.json()));
        }
        if form == Form::Protobuf {
            let message = binary::message(&self.server.objects, resource, &object).await?;
            return Ok(binary::response(StatusCode::OK, binary::object(resource, &message)));
        }
        let value = convert::served(&self.server.objects, resource, &object).await?;
        self.object_response(resource, StatusCode::OK, &value, form)
    }

    /// One object in the form that was asked for.
    pub(super) fn object_response(
        &self,
        resource: &Resource,
        code: StatusCode,
        value: &Value,
        form: Form,
    ) -> ApiResult<Response<Body>> {
        let catalog = self.server.objects.registry().catalog();
        Ok(match form {
            Form::Object => json_response(code, value),
            Form::Metadata => json_response(code, &metadata_of(value)),
            Form::Protobuf => binary::response(code, binary::encode(catalog, value)?),
            Form::MetadataProtobuf => binary::response(code, binary::encode(catalog, &metadata_of(value))?),
            Form::Yaml => yaml_response(code, value)?,
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

    /// The form that the caller wants of an answer about this resource.
    pub(super) fn form(&self, resource: &Resource, watch: bool) -> ApiResult<Form> {
        negotiate::form(&self.parts.headers, resource.def.definition().is_none(), watch)
    }

    fn now(&self) -> jiff::Timestamp {
        self.server.objects.clock().now()
    }

    async fn list(&self, resource: &Arc<Resource>) -> ApiResult<Response<Body>> {
        if let Some(derive) = resource.def.definition().and_then(|definition| definition.derived.as_deref()) {
            return self.list_derived(resource, derive).await;
        }
        let form = self.form(resource, false)?;
        let options = self.list_options(resource, false)?;
        let page = list::list(&self.server.objects, resource, self.namespace(resource), &options).await?;
        let def = &resource.def;
        self.server.metrics.listed(&def.group, &def.plural, page.evaluated, page.items.len());
        let mut meta = json!({"resourceVersion": page.revision.to_string()});
        if !page.continue_.is_empty() {
            meta["continue"] = json!(page.continue_);
        }
        if let Some(remaining) = page.remaining.filter(|remaining| *remaining > 0) {
            meta["remainingItemCount"] = json!(remaining);
        }
        let items = page.items;
        if !matches!(form, Form::Yaml | Form::Protobuf)
            && items.iter().all(|item| convert::is_as_served(resource, item))
        {
            return self.stored_list(resource, &meta, items, form);
        }
        if form == Form::Protobuf {
            return binary::list(&self.server.objects, resource, &meta, &items).await;
        }
        let mut values = Vec::with_capacity(items.len());
        for item in &items {
            values.push(convert::served(&self.server.objects, resource, item).await?);
        }
        self.list_response(resource, &values, &meta, form)
    }

    /// A list of objects that are served as they are stored: made in pieces, while it is sent.
    fn stored_list(
        &self,
        resource: &Arc<Resource>,
        meta: &Value,
        items: Vec<Arc<Stored>>,
        form: Form,
    ) -> ApiResult<Response<Body>> {
        Ok(match form {
            Form::Table => {
                let rows = table::Rows::new(resource, table::Include::of_query(self.query), self.now());
                let (head, items) = (rows.head(meta), rows.ordered(items));
                stream_list(head, items, move |item, out| rows.write(item, out))
            }
            Form::Metadata => {
                let before =
                    format!(r#"{{"kind":"{METADATA_KIND}","apiVersion":"{METADATA_VERSION}","metadata":"#);
                stream_list(list_head(METADATA_LIST, METADATA_VERSION, meta), items, move |item, out| {
                    out.extend_from_slice(before.as_bytes());
                    item.write_metadata(out);
                    out.push(b'}');
                })
            }
            Form::MetadataProtobuf => {
                return binary::metadata_list(self.server.objects.registry().catalog(), meta, &items);
            }
            Form::Object | Form::Yaml | Form::Protobuf => {
                let head = list_head(&list_kind(resource), &resource.api_version(), meta);
                stream_list(head, items, |item, out| item.write_json(out))
            }
        })
    }

    /// A list of objects in the form that was asked for.
    pub(super) fn list_response(
        &self,
        resource: &Resource,
        values: &[Value],
        meta: &Value,
        form: Form,
    ) -> ApiResult<Response<Body>> {
        let partial = |values: &[Value]| {
            let items: Vec<Value> = values.iter().map(metadata_of).collect();
            json!({"kind": METADATA_LIST, "apiVersion": METADATA_VERSION, "metadata": meta, "items": items})
        };
        let whole = || json!({"kind": list_kind(resource), "apiVersion": resource.api_version(), "metadata": meta, "items": values});
        let catalog = self.server.objects.registry().catalog();
        Ok(match form {
            Form::Object | Form::Protobuf => json_response(StatusCode::OK, &whole()),
            Form::Yaml => yaml_response(StatusCode::OK, &whole())?,
            Form::Table => {
                let include = table::Include::of_query(self.query);
                json_response(StatusCode::OK, &table::of(resource, values, meta, true, include, self.now()))
            }
            Form::Metadata => json_response(StatusCode::OK, &partial(values)),
            Form::MetadataProtobuf => {
                binary::response(StatusCode::OK, binary::encode(catalog, &partial(values))?)
            }
        })
    }

    pub(super) fn list_options(&self, resource: &Resource, watch: bool) -> ApiResult<ListOptions> {
        let mut options = ListOptions::parse(self.query, watch)?;
        if !self.info.name.is_empty() {
            let own = kcore::selector::FieldSelector::parse(&format!("metadata.name={}", self.info.name));
            options.fields = own.map_err(|error| Status::bad_request(error.to_string()))?;
        }
        let def = &resource.def;
        convert::rename_selected(def, &mut options.fields).map_err(Status::bad_request)?;
        let unknown = options.fields.terms().iter().find(|term| !def.is_selectable(&term.path));
        if let Some(term) = unknown {
            let why = if def.selectable.is_empty() {
                format!(
                    "\"{}\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                    term.path
                )
            } else {
                format!("field label not supported: {}", term.path)
            };
            return Err(Status::bad_request(why).into());
        }
        Ok(options)
    }

    async fn watch(&self, resource: &Arc<Resource>) -> ApiResult<Response<Body>> {
        let form = self.form(resource, true)?;
        let options = self.list_options(resource, true)?;
        let session = watch::open(&self.server.objects, resource, self.namespace(resource), options).await?;
        let local = self.parts.extensions.get::<WantLocal>();
        Ok(wire::respond(session, resource, form, table::Include::of_query(self.query), self.server, local))
    }
}

/// What callers of a built-in kind that is on its way out are told (`APILifecycleDeprecated` upstream).
fn deprecation(resource: &Resource) -> Option<&'static str> {
    match (resource.def.group.as_str(), resource.def.plural.as_str()) {
        ("", "componentstatuses") => Some("v1 ComponentStatus is deprecated in v1.19+"),
        ("", "endpoints") => {
            Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
        }
        _ => None,
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
    partial(&value["metadata"])
}

/// The same, of the metadata.
pub(super) fn partial(metadata: &Value) -> Value {
    json!({"kind": METADATA_KIND, "apiVersion": METADATA_VERSION, "metadata": metadata})
}

fn list_head(kind: &str, api_version: &str, meta: &Value) -> String {
    format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",\"metadata\":{meta},\"items\":[")
}

/// A list in JSON, made while it is sent. `head` is what comes before the items.
fn stream_list(
    head: String,
    items: Vec<Arc<Stored>>,
    write: impl Fn(&Stored, &mut Vec<u8>) + Send + 'static,
) -> Response<Body> {
    chunked(head.into_bytes(), items, b"]}\n".to_vec(), move |item, is_first, out| {
        if !is_first {
            out.push(b',');
        }
        write(item, out);
    })
}
