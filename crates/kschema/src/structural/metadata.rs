//! Objects within objects: their `apiVersion`, `kind` and `metadata` are what every object's are.

use serde_json::{Map, Value};

use super::{Structural, prune::Place};
use crate::{
    check,
    error::FieldError,
    types::{Catalog, Type},
};

impl Structural {
    /// Brings the metadata of the object, and of the objects within it, into the form of ObjectMeta; returns the paths of the
    /// unknown fields in it, which go. With `drop_invalid`, what does not fit goes, too: so what has been stored before can
    /// always be read.
    ///
    /// # Errors
    /// The first value that does not fit.
    pub fn coerce_metadata(
        &self,
        catalog: &Catalog,
        object: &mut Value,
        drop_invalid: bool,
    ) -> Result<Vec<String>, FieldError> {
        let Some(id) = catalog.find("^ObjectMeta") else { return Ok(Vec::new()) };
        let mut walk = Coerce { catalog, metadata: Type::Named(id), drop_invalid, unknown: Vec::new() };
        walk.value(self, object, &Place::Root)?;
        walk.unknown.sort();
        Ok(walk.unknown)
    }

    /// Checks the objects within the object (not the object itself): what they are, and their metadata.
    pub fn validate_metadata(&self, catalog: &Catalog, object: &Value, errors: &mut Vec<FieldError>) {
        let metadata = catalog.find("^ObjectMeta").map(Type::Named);
        for (name, property) in &self.properties {
            if let Some(value) = object.get(&**name) {
                validate(
                    catalog,
                    metadata.as_ref(),
                    property,
                    value,
                    &Place::Key(&Place::Root, name),
                    errors,
                );
            }
        }
    }
}

impl Structural {
    /// [`validate_metadata`](Self::validate_metadata) of a part, which may be an object itself.
    pub(super) fn validate_part_metadata(
        &self,
        catalog: &Catalog,
        value: &Value,
        errors: &mut Vec<FieldError>,
    ) {
        let metadata = catalog.find("^ObjectMeta").map(Type::Named);
        validate(catalog, metadata.as_ref(), self, value, &Place::Root, errors);
    }
}

struct Coerce<'a> {
    catalog: &'a Catalog,
    metadata: Type,
    drop_invalid: bool,
    unknown: Vec<String>,
}

impl Coerce<'_> {
    fn value(&mut self, schema: &Structural, value: &mut Value, at: &Place<'_>) -> Result<(), FieldError> {
        match value {
            Value::Object(map) => {
                if schema.is_object {
                    self.object(map, at)?;
                }
                for (key, value) in map.iter_mut() {
                    let place = Place::Key(at, key);
                    if let Some(child) = schema.child(key) {
                        self.value(child, value, &place)?;
                    }
                }
                Ok(())
            }
            Value::Array(list) => {
                let Some(items) = &schema.items else { return Ok(()) };
                for (index, item) in list.iter_mut().enumerate() {
                    self.value(items, item, &Place::Index(at, index))?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn object(&mut self, map: &mut Map<String, Value>, at: &Place<'_>) -> Result<(), FieldError> {
        for key in ["apiVersion", "kind"] {
            match map.get(key) {
                None | Some(Value::String(_)) => {}
                Some(_) if self.drop_invalid => {
                    map.remove(key);
                }
                Some(other) => {
                    return Err(FieldError::invalid(
                        Place::Key(at, key).to_string(),
                        other,
                        "must be a string",
                    ));
                }
            }
        }
        let Some(metadata) = map.get_mut("metadata") else { return Ok(()) };
        let place = Place::Key(at, "metadata");
        let before = metadata.clone();
        match check::check(self.catalog, &self.metadata, metadata) {
            Ok(unknown) => {
                self.unknown.extend(unknown.iter().map(|path| format!("{place}.{path}")));
                Ok(())
            }
            Err(error) if !self.drop_invalid => Err(FieldError::invalid(place.to_string(), before, error)),
            Err(_) => {
                *metadata = before;
                self.drop_fields(metadata);
                Ok(())
            }
        }
    }

    /// Keeps the fields that fit on their own.
    fn drop_fields(&self, metadata: &mut Value) {
        let Some(map) = metadata.as_object_mut() else { return };
        map.retain(|key, value| {
            let mut alone = Value::Object(Map::from_iter([(key.clone(), value.take())]));
            let fits = check::check(self.catalog, &self.metadata, &mut alone).is_ok();
            match alone.as_object_mut().and_then(|alone| alone.remove(key)) {
                Some(rest) if fits => {
                    *value = rest;
                    true
                }
                _ => false,
            }
        });
    }
}

fn validate(
    catalog: &Catalog,
    metadata: Option<&Type>,
    schema: &Structural,
    value: &Value,
    at: &Place<'_>,
    errors: &mut Vec<FieldError>,
) {
    match value {
        Value::Object(map) => {
            if schema.is_object {
                validate_object(catalog, metadata, map, at, errors);
            }
            for (key, value) in map {
                let place = if schema.properties.contains_key(key.as_str()) {
                    Place::Key(at, key)
                } else {
                    Place::Entry(at, key)
                };
                if let Some(child) = schema.child(key) {
                    validate(catalog, metadata, child, value, &place, errors);
                }
            }
        }
        Value::Array(list) => {
            let Some(items) = &schema.items else { return };
            for (index, item) in list.iter().enumerate() {
                validate(catalog, metadata, items, item, &Place::Index(at, index), errors);
            }
        }
        _ => {}
    }
}

fn validate_object(
    catalog: &Catalog,
    metadata: Option<&Type>,
    map: &Map<String, Value>,
    at: &Place<'_>,
    errors: &mut Vec<FieldError>,
) {
    let place = |key: &'static str| Place::Key(at, key).to_string();
    for key in ["apiVersion", "kind"] {
        match map.get(key) {
            None => errors.push(FieldError::required(place(key), "")),
            Some(Value::String(text)) if text.is_empty() => {
                errors.push(FieldError::invalid_text(place(key), text, "must not be empty"));
            }
            Some(Value::String(text)) => errors.extend(object_field_fault(key, text, place(key))),
            Some(other) => errors.push(FieldError::invalid(place(key), other, "must be a string")),
        }
    }
    if let (Some(given), Some(ty)) = (map.get("metadata"), metadata) {
        let mut checked = given.clone();
        match check::check(catalog, ty, &mut checked) {
            Err(error) => errors.push(FieldError::invalid(place("metadata"), given, error)),
            Ok(_) => validate_names(&checked, &Place::Key(at, "metadata"), errors),
        }
    }
}

fn object_field_fault(key: &str, text: &str, place: String) -> Option<FieldError> {
    if key == "apiVersion" {
        let is_good = text.matches('/').count() < 2;
        return (!is_good).then(|| {
            FieldError::invalid_text(place, text, format!("unexpected GroupVersion string: {text}"))
        });
    }
    let lower = text.to_lowercase();
    let fault = crate::strategy::NameRule::Label1035.fault(&lower, false)?;
    let detail = format!("may have mixed case, but should otherwise match: {fault}");
    Some(FieldError::invalid_text(place, text, detail))
}

/// The names and labels of an object within an object.
fn validate_names(metadata: &Value, at: &Place<'_>, errors: &mut Vec<FieldError>) {
    use crate::strategy::NameRule::PathSegment;
    for (key, prefix) in [("name", false), ("generateName", true)] {
        let Some(name) = metadata[key].as_str().filter(|name| !name.is_empty()) else { continue };
        if let Some(fault) = PathSegment.fault(name, prefix) {
            errors.push(FieldError::invalid_text(Place::Key(at, key).to_string(), name, fault));
        }
    }
    let labels = Place::Key(at, "labels");
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        if let Some(fault) = kcore::selector::key_fault(key) {
            errors.push(FieldError::invalid_text(labels.to_string(), key, fault));
        }
        if let Some(fault) = kcore::selector::value_fault(value) {
            errors.push(FieldError::invalid_text(labels.to_string(), value, fault));
        }
    }
}
