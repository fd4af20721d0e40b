//! Secrets.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kschema::{error::FieldError, fields::child, strategy::Strategy};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, form},
    config_map::{DATA_BYTES_MAX, decoded_bytes, validate_immutable},
};

/// The strategy of `secrets`.
#[derive(Debug)]
pub(crate) struct Secrets;

impl Strategy for Secrets {
    /// `stringData` is written into `data` and never read back.
    fn default(&self, object: &mut Value) {
        let Some(Value::Object(texts)) = object.as_object_mut().and_then(|map| map.remove("stringData"))
        else {
            return;
        };
        for (key, text) in texts {
            let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
            child(object, "data")[key] = json!(encoded);
        }
    }

    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Vec<FieldError>) {
        let (path, data) = (Path::root("data"), &object["data"]);
        let mut bytes = 0;
        for (key, value) in object.map("data") {
            errors.faults(&path.key(key), key, form::config_key(key));
            bytes += decoded_bytes(value);
        }
        if bytes > DATA_BYTES_MAX {
            errors.too_long(&path, DATA_BYTES_MAX);
        }
        match object.text("type") {
            "kubernetes.io/service-account-token" => {
                const NAME: &str = "kubernetes.io/service-account.name";
                if object["metadata"]["annotations"].text(NAME).is_empty() {
                    errors.required(&Path::root("metadata.annotations").key(NAME), "");
                }
            }
            "kubernetes.io/dockercfg" => docker_config(data, ".dockercfg", &path, errors),
            "kubernetes.io/dockerconfigjson" => docker_config(data, ".dockerconfigjson", &path, errors),
            "kubernetes.io/basic-auth" if !data.has("username") && !data.has("password") => {
                for key in ["username", "password"] {
                    errors.required(&path.key(key), "");
                }
            }
            "kubernetes.io/ssh-auth" if data.text("ssh-privatekey").is_empty() => {
                errors.required(&path.key("ssh-privatekey"), "");
            }
            "kubernetes.io/tls" => {
                for key in ["tls.crt", "tls.key"].into_iter().filter(|key| !data.has(key)) {
                    errors.required(&path.key(key), "");
                }
            }
            _ => {}
        }
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        errors.immutable(object, old, &Path::root(""), "type");
        validate_immutable(object, old, &["data"], errors);
        self.validate(object, errors);
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        if object.text("type") != "kubernetes.io/tls" {
            return Vec::new();
        }
        // A pair that has no PEM at all is named; whether certificate and key belong together is not looked into.
        let has_pem = |key: &str| {
            let decoded = STANDARD.decode(object["data"].text(key)).unwrap_or_default();
            decoded.windows(11).any(|window| window == b"-----BEGIN ")
        };
        for (key, word) in [("tls.crt", "certificate"), ("tls.key", "key")] {
            if !has_pem(key) {
                return vec![format!("tls: failed to find any PEM data in {word} input")];
            }
        }
        Vec::new()
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

fn docker_config(data: &Value, key: &str, path: &Path<'_>, errors: &mut Vec<FieldError>) {
    let Some(encoded) = data.some_text(key) else {
        errors.required(&path.key(key), "");
        return;
    };
    let decoded = STANDARD.decode(encoded).unwrap_or_default();
    if let Some(fault) = json_fault(&decoded) {
        errors.invalid(&path.key(key), "<secret contents redacted>", fault);
    }
}

/// Why bytes are no JSON object, in the words of Go's decoder.
fn json_fault(bytes: &[u8]) -> Option<String> {
    let kind = match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(_) | Value::Null) => return None,
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Bool(_)) => "bool",
        Ok(Value::Number(_)) => "number",
        Err(error) if error.is_eof() => return Some("unexpected end of JSON input".to_owned()),
        Err(error) => {
            let at = bytes.iter().find(|byte| !byte.is_ascii_whitespace()).copied().unwrap_or(b' ');
            let starts = matches!(at, b'{' | b'[' | b'"' | b'-' | b't' | b'f' | b'n') || at.is_ascii_digit();
            return Some(if starts {
                error.to_string()
            } else {
                format!("invalid character '{}' looking for beginning of value", char::from(at))
            });
        }
    };
    Some(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
}
