//! The verbs that write, on the wire: bodies are decoded and checked, answers are put together.

use std::{borrow::Cow, fmt, sync::Arc};

use bytes::Bytes;
use http::{Response, StatusCode};
use kcore::{Status, Stored, kind::split_api_version};
use serde_json::{Value, json};

use super::{
    Duplicates, add_warnings, binary, bytes_response, decode, json_response, media_type,
    negotiate::Form,
    resource::{Request, list_kind},
    touched, yaml,
};
use crate::{
    body::Body,
    convert,
    delete::Deleted,
    error::{ApiError, ApiResult, FieldError, invalid},
    list,
    objects::stored,
    patch::{APPLY, MEDIA_TYPES, Patch, STRATEGIC},
    registry::{Resource, Verbs},
    request::{DeleteOptions, FieldValidation, WriteOptions},
    schema::{Type, check},
    subresource,
    write::{Written, in_version},
};

/// What is answered to a body that is none of this kind.
fn unfit(kind: &str, version: &str, why: &dyn fmt::Display) -> ApiError {
    Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {why}")).into()
}

/// What is told of an object: what has been found before, then its unknown fields.
fn all_told(told: &[String], unknown: &[String]) -> Vec<String> {
    told.iter().cloned().chain(unknown.iter().map(|path| format!("unknown field {path:?}"))).collect()
}

/// Reads what somebody applies: YAML, and the keys that stand twice in it.
fn read_applied(body: &[u8]) -> ApiResult<(Value, Vec<String>)> {
    // Most clients send JSON, which is YAML too, and is read faster as what it is. Only YAML's reader knows the lines.
    if body.first() == Some(&b'{')
        && let Ok((patch, duplicates)) = kschema::json::parse(body)
        && duplicates.is_empty()
    {
        return Ok((patch, Vec::new()));
    }
    let refused =
        |why: &dyn fmt::Display| ApiError::from(Status::bad_request(format!("error decoding YAML: {why}")));
    let document =
        yaml::parse(body).map_err(|why| refused(&format_args!("error converting YAML to JSON: {why}")))?;
    let found = match &document.value {
        Value::Object(_) => return Ok((document.value, document.twice)),
        // Nothing is an object without fields.
        Value::Null => return Ok((json!({}), Vec::new())),
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
    };
    Err(refused(&format_args!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
    )))
}

fn strict(texts: &[String]) -> String {
    format!("strict decoding error: {}", texts.join(", "))
}

/// Shows a tree as Go's `%+v` does, which is how a strategic patch is quoted.
struct GoValue<'a>(&'a Value);

impl fmt::Display for GoValue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Trees come from the JSON reader, which bounds how deep they are.
        match self.0 {
            Value::Null => f.write_str("<nil>"),
            Value::String(text) => f.write_str(text),
            Value::Array(items) => {
                f.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if index == 0 { "" } else { " " }, GoValue(item))?;
                }
                f.write_str("]")
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                f.write_str("map[")?;
                for (index, (key, value)) in entries.into_iter().enumerate() {
                    write!(f, "{}{key}:{}", if index == 0 { "" } else { " " }, GoValue(value))?;
                }
                f.write_str("]")
            }
            Value::Bool(_) | Value::Number(_) => write!(f, "{}", self.0),
        }
    }
}

/// What is told of fields that no operation of a JSON patch has, and of those that stand twice, operation by operation.
fn strange_operations(operations: &[Value], duplicates: &[String]) -> Vec<String> {
    const FIELDS: [&str; 4] = ["op", "path", "from", "value"];
    let unknown = operations.iter().enumerate().flat_map(|(index, operation)| {
        let keys = operation.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
        keys.filter(|key| !FIELDS.contains(key))
            .map(move |key| (index, format!("json patch unknown field \"[{index}].{key}\"")))
    });
    let known_twice = duplicates.iter().filter_map(|path| {
        let (index, field) = path.strip_prefix('[')?.split_once("].")?;
        let index: usize = index.parse().ok()?;
        // Upstream's decoder looks for what it has seen before only among the fields that it knows.
        let name = field.split(['.', '[']).next().unwrap_or_default();
        FIELDS.contains(&name).then(|| (index, format!("json patch duplicate field {path:?}")))
    });
    let mut told: Vec<(usize, String)> = unknown.take(check::FIELD_ERRORS_MAX).chain(known_twice).collect();
    told.sort_by_key(|(index, _)| *index);
    told.into_iter().map(|(_, text)| text).collect()
}

impl Request<'_> {
    fn decode(&self, media_type: &str, bytes: &[u8]) -> ApiResult<(Value, Duplicates)> {
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
        self.check_fields(resource, &mut object, &duplicates, options, warnings)?;
        self.told(|trail| trail.object(&object));
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
        told: &Duplicates,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        let (version, kind) = (&resource.version().name, &resource.def.kind);
        let unknown = self.drop_unknown(resource, object).map_err(|why| unfit(kind, version, &why))?;
        Self::tell_fields(kind, version, &unknown, told, options, warnings)
    }

    /// Checks the types of an object in the version of the request; the paths of the unknown fields, which go.
    fn drop_unknown(&self, resource: &Resource, object: &mut Value) -> Result<Vec<String>, String> {
        let catalog = self.server.objects.registry().catalog();
        match &resource.version().structure {
            None => check::check(catalog, &resource.version().schema, object).map_err(|why| why.to_string()),
            Some(structure) => {
                let mut unknown = structure.schema.prune(object);
                let coerced = structure.schema.coerce_metadata(catalog, object, false);
                unknown.extend(coerced.map_err(|why| why.to_string())?);
                Ok(unknown)
            }
        }
    }

    /// The object with the patch applied, and what its sender is warned of (upstream's `jsonPatcher` and `smpPatcher`).
    fn patched(
        &self,
        resource: &Resource,
        (patch, told): (&Patch, &[String]),
        current: &Value,
        options: &WriteOptions,
    ) -> ApiResult<(Value, Vec<String>)> {
        let apply =
            || patch.apply(self.server.objects.registry().catalog(), &resource.version().schema, current);
        let refused = |why: &str| -> ApiError {
            let shown = match patch {
                Patch::Strategic(patch) => Ok(GoValue(patch).to_string()),
                // The fields in question are gone by now.
                Patch::Json(_) | Patch::Merge(_) => apply().map(|patched| patched.to_string()),
            };
            match shown {
                Ok(shown) => invalid("", "", "", &[FieldError::invalid_text("patch", &shown, why)]),
                Err(error) => error,
            }
        };
        let mut patched = apply()?;
        self.check_kind(&mut patched, &resource.api_version(), &resource.def.kind)?;
        let unknown = match (patch, &mut patched) {
            (
                Patch::Strategic(Value::Object(patch)) | Patch::Merge(Value::Object(patch)),
                Value::Object(whole),
            ) if resource.version().structure.is_none() => {
                let mut part = Value::Object(touched::take(whole, patch));
                let unknown = self.drop_unknown(resource, &mut part).map_err(|why| refused(&why))?;
                if let Value::Object(part) = part {
                    touched::put_back(whole, part, patch);
                }
                unknown
            }
            (_, patched) => self.drop_unknown(resource, patched).map_err(|why| refused(&why))?,
        };
        let texts = all_told(told, &unknown);
        match options.field_validation {
            FieldValidation::Strict if !texts.is_empty() => Err(refused(&strict(&texts))),
            FieldValidation::Warn => Ok((patched, texts)),
            _ => Ok((patched, Vec::new())),
        }
    }

    /// Tells of unknown fields, and of what has been found before, as the options say.
    fn tell_fields(
        kind: &str,
        version: &str,
        unknown: &[String],
        told: &Duplicates,
        options: &WriteOptions,
        warnings: &mut Vec<String>,
    ) -> ApiResult<()> {
        let refused = matches!(options.field_validation, FieldValidation::Strict);
        let texts = all_told(&told.told(refused), unknown);
        match options.field_validation {
            FieldValidation::Strict if !texts.is_empty() => Err(unfit(kind, version, &strict(&texts))),
            FieldValidation::Warn => {
                warnings.extend(texts);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn create(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let options = WriteOptions::parse(self.query, "CreateOptions")?;
        if resource.def.definition().is_some_and(|definition| definition.terminating) {
            let why = "create not allowed while custom resource definition is terminating";
            let def = &resource.def;
            return Err(Status::forbidden(&def.group, &def.plural, &self.info.name, why).into());
        }
        let form = self.form(resource, false)?;
        let media_type = media_type(&self.parts.headers);
        if resource.def.verbs == Verbs::CreateOnly {
            return self.review(resource, &media_type, &body, &options).await;
        }
        if self.info.subresource == "token" {
            return self.request_token(resource, &media_type, &body, &options, form).await;
        }
        if !self.info.subresource.is_empty() {
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

    /// What is created only to be answered: reviews, and bindings by their old address.
    async fn review(
        &self,
        resource: &Arc<Resource>,
        media_type: &str,
        body: &[u8],
        options: &WriteOptions,
    ) -> ApiResult<Response<Body>> {
        let mut warnings = Vec::new();
        let mut object = self.decode_object(resource, media_type, body, options, &mut warnings)?;
        let def = &resource.def;
        if def.namespaced {
            crate::meta::prepare_namespace(def, &self.info.namespace, &mut object)?;
        }
        def.strategy.default(&mut object);
        let mut errors = Vec::new();
        def.strategy.validate_create(&object, &mut errors);
        if !errors.is_empty() {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            return Err(invalid(&def.group, &def.kind, name, &errors));
        }
        let call = self.call(resource, options.dry_run);
        let (code, value) = subresource::create(self.server, self.user, &call, object).await?;
        let mut response = json_response(code, &value);
        add_warnings(&mut response, &warnings);
        Ok(response)
    }

    /// `TokenRequest`, which is of a group of its own.
    async fn request_token(
        &self,
        resource: &Arc<Resource>,
        media_type: &str,
        body: &[u8],
        options: &WriteOptions,
        form: Form,
    ) -> ApiResult<Response<Body>> {
        const KIND: &str = "TokenRequest";
        let (mut object, duplicates) = self.decode(media_type, body)?;
        if !object.is_object() {
            return Err(Status::bad_request("the body of the request is no object").into());
        }
        self.check_kind(&mut object, "authentication.k8s.io/v1", KIND)?;
        let catalog = self.server.objects.registry().catalog();
        let schema = catalog.find("~authentication.v1.TokenRequest").map_or(Type::Any, Type::Named);
        let unknown =
            check::check(catalog, &schema, &mut object).map_err(|error| unfit(KIND, "v1", &error))?;
        let mut warnings = Vec::new();
        Self::tell_fields(KIND, "v1", &unknown, &duplicates, options, &mut warnings)?;
        self.told(|trail| trail.object(&object));
        let call = self.call(resource, options.dry_run);
        let (code, value) = subresource::create(self.server, self.user, &call, object).await?;
        let mut response = self.object_response(resource, code, &value, form)?;
        add_warnings(&mut response, &warnings);
        Ok(response)
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
                // Made for this answer alone: keeping it would double what every object takes.
                let mut json = Vec::with_capacity(stored.raw().len() + 48);
                stored.write_json(&mut json);
                bytes_response(code, json)
            }
            Written::Stored(stored) if form == Form::Protobuf => {
                let message = binary::message(&self.server.objects, resource, stored).await?;
                binary::response(code, binary::object(resource, &message))
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

    pub(super) async fn update(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let options = WriteOptions::parse(self.query, "UpdateOptions")?;
        let form = self.form(resource, false)?;
        let media_type = media_type(&self.parts.headers);
        let mut warnings = Vec::new();
        let call = self.call(resource, options.dry_run);
        if self.info.subresource == "scale" {
            let (scale, _) = self.decode(&media_type, &body)?;
            self.told(|trail| trail.object(&scale));
            let value = subresource::update_scale(&call, &|_| Ok(scale.clone())).await?;
            return self.object_response(resource, StatusCode::OK, &value, form);
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
            // The first attempt takes the object; only one that lost a race needs it again.
            let first = std::sync::Mutex::new(Some(object));
            let change = |_: &Value| -> ApiResult<Value> {
                let first = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
                if let Some(object) = first {
                    return Ok(object);
                }
                let mut object =
                    self.decode_object(resource, &media_type, &body, &options, &mut Vec::new())?;
                convert::to_hub(resource, &mut object);
                Ok(object)
            };
            call.update(&change).await?
        };
        self.written_response(resource, StatusCode::OK, &written, form, &warnings).await
    }

    pub(super) async fn patch(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let options = WriteOptions::parse(self.query, "PatchOptions")?;
        let form = self.form(resource, false)?;
        let patch_type = media_type(&self.parts.headers);
        let custom = resource.def.definition().is_some();
        let accepted: Vec<&str> =
            MEDIA_TYPES.into_iter().filter(|kind| !custom || *kind != STRATEGIC).collect();
        if !accepted.contains(&&*patch_type) {
            return Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ))
            .about("", "", &patch_type)
            .into());
        }
        if patch_type == APPLY {
            return self.apply(resource, &body, &options, form).await;
        }
        if options.force {
            let error = FieldError::forbidden("force", "may not be specified for non-apply patch");
            return Err(invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        let (patch, duplicates) = self.decode("application/json", &body)?;
        self.told(|trail| trail.body(&patch));
        let told = match (&patch, &duplicates) {
            (Value::Array(operations), Duplicates::Paths(paths)) => strange_operations(operations, paths),
            _ => duplicates.told(false),
        };
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
            let mut current = if convert::is_identity(resource) || resource.def.definition().is_some() {
                Cow::Borrowed(old)
            } else {
                Cow::Owned(in_version(resource, old.clone()))
            };
            if patch.may_touch_owners() {
                kcore::object::open(current.to_mut());
            }
            let (mut patched, found) = self.patched(resource, (&patch, &told), &current, &options)?;
            *warnings.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = found;
            convert::to_hub(resource, &mut patched);
            Ok(patched)
        };
        let written = call.update(&change).await?;
        let warnings = warnings.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.written_response(resource, StatusCode::OK, &written, form, &warnings).await
    }

    /// Server-side apply.
    async fn apply(
        &self,
        resource: &Arc<Resource>,
        body: &[u8],
        options: &WriteOptions,
        form: Form,
    ) -> ApiResult<Response<Body>> {
        if options.field_manager.is_empty() {
            let error = FieldError::required("fieldManager", "is required for apply patch");
            return Err(invalid("meta.k8s.io", "PatchOptions", "", &[error]));
        }
        let (patch, twice) = read_applied(body)?;
        self.told(|trail| trail.body(&patch));
        let call = self.call(resource, options.dry_run);
        // Upstream looks for keys that stand twice once the patch has been merged, and for what it does not know while it is.
        let refuse = || -> ApiResult<()> {
            if twice.is_empty() || !matches!(options.field_validation, FieldValidation::Strict) {
                return Ok(());
            }
            let why = yaml::faults(&twice);
            Err(Status::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: {why}"
            ))
            .into())
        };
        let found = std::sync::Mutex::new(Vec::new());
        let decode = |object: &mut Value| -> ApiResult<()> {
            refuse()?;
            let mut warnings = Vec::new();
            self.check_fields(resource, object, &Duplicates::NONE, options, &mut warnings)?;
            *found.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = warnings;
            Ok(())
        };
        if self.info.subresource == "scale" {
            let value =
                subresource::apply_scale(&call, &patch, &options.field_manager, options.force).await?;
            return self.object_response(resource, StatusCode::OK, &value, form);
        }
        let (written, created) = call.apply(&patch, &options.field_manager, options.force, &decode).await?;
        // A patch that changes nothing has not been decoded.
        refuse()?;
        let code = if created { StatusCode::CREATED } else { StatusCode::OK };
        let mut warnings = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        if matches!(options.field_validation, FieldValidation::Warn) {
            warnings.splice(0..0, twice.iter().cloned());
        }
        self.written_response(resource, code, &written, form, &warnings).await
    }

    pub(super) async fn delete(&self, resource: &Arc<Resource>, body: Bytes) -> ApiResult<Response<Body>> {
        let media_type = media_type(&self.parts.headers);
        let body = if body.is_empty() { None } else { Some(self.decode(&media_type, &body)?.0) };
        let options = DeleteOptions::parse(self.query, body.as_ref())?;
        self.told(|trail| body.iter().for_each(|body| trail.body(body)));
        let form = self.form(resource, false)?;
        if self.info.verb == "deletecollection" {
            return self.delete_collection(resource, &options, form).await;
        }
        let deleted = self.call(resource, options.dry_run).delete(&options).await?;
        let def = &resource.def;
        match deleted {
            Deleted::Gone(last) if !def.traits.returns_deleted => {
                let status = Status::success(&def.group, &def.plural, &self.info.name, last.uid());
                if !matches!(form, Form::Protobuf | Form::MetadataProtobuf) {
                    return Ok(super::status_response(&status));
                }
                let status = serde_json::to_value(&status).map_err(Status::internal)?;
                let catalog = self.server.objects.registry().catalog();
                Ok(binary::response(StatusCode::OK, binary::encode(catalog, &status)?))
            }
            Deleted::Gone(object) | Deleted::Later(object) => {
                self.written_response(resource, StatusCode::OK, &object, form, &[]).await
            }
        }
    }

    async fn delete_collection(
        &self,
        resource: &Arc<Resource>,
        options: &DeleteOptions,
        form: Form,
    ) -> ApiResult<Response<Body>> {
        let selection = self.list_options(resource, false)?;
        let mut items = Vec::new();
        for entry in list::entries(&self.server.objects, resource, self.namespace(resource), &selection) {
            let object: Arc<Stored> = stored(&resource.def, &entry);
            let header = object.header();
            let mut call = self.call(resource, options.dry_run);
            (call.namespace, call.name) = (&header.namespace, &header.name);
            match call.delete(options).await {
                Ok(Deleted::Gone(last) | Deleted::Later(last)) => {
                    items.push(last.served(&self.server.objects, resource).await?);
                }
                // Somebody else deleted it in the meantime: that is what was asked for.
                Err(error) if error.0.is("NotFound") => {}
                Err(error) => return Err(error),
            }
        }
        let meta = json!({"resourceVersion": self.server.objects.snapshot().revision().to_string()});
        let list = json!({"kind": list_kind(resource), "apiVersion": resource.api_version(), "metadata": meta, "items": items});
        if matches!(form, Form::Protobuf) {
            let catalog = self.server.objects.registry().catalog();
            return Ok(binary::response(StatusCode::OK, binary::encode(catalog, &list)?));
        }
        Ok(json_response(StatusCode::OK, &list))
    }
}
