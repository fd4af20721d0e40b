//! Volumes that are to be attached to nodes.

use kschema::{error::FieldError, strategy::Strategy};
use serde_json::{Value, json};

use crate::{
    check::{Look, Path, Report, form},
    persistent_volume,
    volume_source::csi_driver,
};

type Errors = Vec<FieldError>;

/// The strategy of `volumeattachments`.
#[derive(Debug)]
pub(crate) struct VolumeAttachments;

const METADATA_BYTES_MAX: usize = 256 * 1024;
const MESSAGE_BYTES_MAX: usize = 1024;

fn validate_spec(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    csi_driver(spec.text("attacher"), &path.field("attacher"), errors);
    let (source, field) = (&spec["source"], path.field("source"));
    match (source.get_some("inlineVolumeSpec"), source.some_text("persistentVolumeName")) {
        (None, None) => errors.required(&field, ONE),
        (Some(_), Some(_)) => errors.forbidden(&field, ONE),
        (None, Some("")) => {
            errors.required(
                &field.field("persistentVolumeName"),
                "must specify non empty persistentVolumeName",
            );
        }
        (None, Some(_)) => {}
        (Some(inline), None) => {
            let path = field.field("inlineVolumeSpec");
            persistent_volume::validate_spec(inline, "", true, None, &path, errors);
        }
    }
    let node = spec.text("nodeName");
    errors.faults(&path.field("nodeName"), node, form::dns_subdomain(node));
}

fn validate_status(status: &Value, path: &Path<'_>, errors: &mut Errors) {
    let bytes: usize = status
        .map("attachmentMetadata")
        .map(|(key, value)| key.len() + value.as_str().map_or(0, str::len))
        .sum();
    if bytes > METADATA_BYTES_MAX {
        errors.too_long(&path.field("attachmentMetadata"), METADATA_BYTES_MAX);
    }
    for key in ["attachError", "detachError"] {
        let Some(error) = status.get_some(key) else {
            continue;
        };
        let path = path.field(key);
        if error.text("message").len() > MESSAGE_BYTES_MAX {
            // Upstream names the other limit here.
            errors.too_long(&path.field("message"), METADATA_BYTES_MAX);
        }
        errors.in_range(error, &path, "errorCode", 0, i64::from(i32::MAX));
    }
}

impl Strategy for VolumeAttachments {
    fn prepare_create(&self, object: &mut Value) {
        object["status"] = json!({"attached": false});
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        validate_spec(&object["spec"], &Path::root("spec"), errors);
        validate_status(&object["status"], &Path::root("status"), errors);
        if let Some(name) = object["spec"]["source"].some_text("persistentVolumeName") {
            let path = Path::root("spec.source.persistentVolumeName");
            errors.faults(&path, name, form::dns_subdomain(name));
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable_of(object, old, &Path::root(""), "spec", "~storage.v1.VolumeAttachmentSpec");
    }

    fn validate_status(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.validate_change(object, old, errors);
    }

    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["metadata", "spec"],
            _ => &[],
        }
    }
}
