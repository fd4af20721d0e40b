//! Patches: pure functions from an object and a patch to the new object.

mod diff;
mod json;
mod order;
mod strategic;

use kcore::Status;
use serde_json::Value;

pub use self::{
    diff::diff,
    json::{JsonPatchError, Operation, apply as apply_json},
};
use crate::{
    error::{ApiError, ApiResult},
    types::{Catalog, Type},
};

/// How many operations a JSON patch may have (`maxJSONPatchOperations`).
pub const OPERATIONS_MAX: usize = 10_000;
/// How large a JSON patch may make an object by copying, in bytes.
pub const PATCHED_BYTES_MAX: usize = 3 * 1024 * 1024;

/// A patch, by its media type.
#[derive(Clone, Debug)]
pub enum Patch {
    /// RFC 6902.
    Json(Vec<Operation>),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own, which merges lists by their keys.
    Strategic(Value),
}

/// The media types of patches that are read here, as a 415 lists them.
pub const MEDIA_TYPES: [&str; 4] =
    ["application/json-patch+json", "application/merge-patch+json", STRATEGIC, APPLY];
/// The media type of a strategic merge patch.
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";
/// The media type of server-side apply, which [`crate::apply`] does.
pub const APPLY: &str = "application/apply-patch+yaml";

impl Patch {
    /// Reads a patch of this media type.
    ///
    /// # Errors
    /// 415 for another media type, 400 for a body that is no patch, 413 for too many operations.
    pub fn parse(media_type: &str, body: Value) -> ApiResult<Self> {
        match media_type {
            "application/json-patch+json" => {
                let patch: Vec<Operation> =
                    serde_json::from_value(body).map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))?;
                if patch.len() > OPERATIONS_MAX {
                    let count = patch.len();
                    return Err(Status::too_large(format!(
                        "The allowed maximum operations in a JSON patch is {OPERATIONS_MAX}, got {count}"
                    ))
                    .into());
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => Ok(Self::Merge(body)),
            "application/strategic-merge-patch+json" if body.is_object() => Ok(Self::Strategic(body)),
            "application/strategic-merge-patch+json" => {
                Err(Status::bad_request("error decoding patch: json: cannot unmarshal a value that is not an object into Go value of type map[string]interface {}").into())
            }
            other => Err(Status::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                MEDIA_TYPES.join(", ")
            ))
            .about("", "", other)
            .into()),
        }
    }

    /// Whether the patch may look into `metadata.managedFields`, or change it.
    #[must_use]
    pub fn may_touch_owners(&self) -> bool {
        match self {
            Self::Json(_) => true,
            Self::Merge(patch) | Self::Strategic(patch) => {
                patch.get("metadata").is_some_and(|metadata| metadata.get("managedFields").is_some())
            }
        }
    }

    /// The patched object.
    ///
    /// # Errors
    /// 422 when a JSON patch does not apply, 400 when a strategic patch makes no sense for the schema.
    pub fn apply(&self, catalog: &Catalog, schema: &Type, object: &Value) -> ApiResult<Value> {
        match self {
            Self::Json(patch) => {
                // The reason stays here: upstream says no more than this either.
                json::apply(object, patch).map_err(|_| {
                    let why = "the server rejected our request due to an error in our request";
                    let mut status = Status::failure(422, "Invalid", why);
                    status.details = Some(kcore::status::StatusDetails::default());
                    ApiError::from(status)
                })
            }
            Self::Merge(patch) => {
                let mut patched = object.clone();
                json_patch::merge(&mut patched, patch);
                if !patched.is_object() {
                    return Err(Status::bad_request("a merge patch must be an object").into());
                }
                Ok(patched)
            }
            Self::Strategic(patch) => strategic::apply(catalog, schema, object, patch),
        }
    }
}
