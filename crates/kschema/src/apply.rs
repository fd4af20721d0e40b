//! Server-side apply (KEP-555): who owns which field of an object, and what an apply makes of it.
//!
//! [`FieldManager`] is the way in: [`on_update`](FieldManager::on_update) keeps `metadata.managedFields` right over a create,
//! update or patch, [`on_apply`](FieldManager::on_apply) merges what somebody applies. [`Set`] is a set of fields and
//! [`PathElement`] a step to one; [`scale`] translates ownership for the scale subresource. The rules are those of
//! structured-merge-diff v6 and of `apimachinery/pkg/util/managedfields`; nothing here does I/O or reads a clock.
//!
//! ```
//! use kschema::{Type, apply::{ConvertError, FieldManager, Set, Versions}, builtin};
//! use serde_json::{Value, json};
//!
//! /// One version, nothing to convert.
//! struct OneVersion(Type);
//! impl Versions for OneVersion {
//!     fn schema(&self, api_version: &str) -> Option<&Type> {
//!         (api_version == "v1").then_some(&self.0)
//!     }
//!     fn convert(&self, _: &Value, _: &str) -> Result<Value, ConvertError> {
//!         Err(ConvertError::NoSuchVersion)
//!     }
//! }
//!
//! let catalog = builtin::catalog();
//! let versions = OneVersion(Type::Named(catalog.find("~core.v1.ConfigMap").unwrap()));
//! let manager = FieldManager { catalog: &catalog, versions: &versions, api_version: "v1", kind: "ConfigMap", subresource: "" };
//! let now = "2026-01-01T00:00:00Z".parse()?;
//! let config = |data| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data});
//!
//! let live = manager.on_apply(&json!({}), &config(json!({"x": "1", "y": "1"})), "alice", false, now)?.unwrap();
//! // Applying the same again changes nothing.
//! assert_eq!(manager.on_apply(&live, &config(json!({"x": "1", "y": "1"})), "alice", false, now)?, None);
//! // Bob may not change what Alice owns, unless he insists; what she no longer applies goes.
//! let refused = manager.on_apply(&live, &config(json!({"x": "2"})), "bob", false, now).unwrap_err();
//! assert_eq!(refused.0.message, "Apply failed with 1 conflict: conflict with \"alice\": .data.x");
//! let live = manager.on_apply(&live, &config(json!({"x": "1"})), "alice", false, now)?.unwrap();
//! assert_eq!(live["data"], json!({"x": "1"}));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compare;
mod configuration;
mod conflict;
mod fields_v1;
mod last_applied;
mod managed;
mod manager;
mod merge;
mod owned;
mod path;
mod reconcile;
pub mod scale;
mod set;
mod settled;
mod shape;
mod typed;
mod updater;

use serde_json::Value;

pub(crate) use self::path::equal as equal_values;
pub use self::{
    configuration::{ConfigurationError, merge_configuration},
    fields_v1::FieldsError,
    managed::{
        MANAGER_BYTES_MAX, ManagedFieldsError, keep_times, validate as validate_managed_fields,
        validate_entries, validate_manager,
    },
    manager::{FieldManager, UPDATE_MANAGERS_MAX},
    path::PathElement,
    set::Set,
};
use crate::types::Type;

/// The versions of a kind, as apply asks for them: entries of `managedFields` may speak of fields in another version than the
/// request's.
///
/// Implemented by whoever keeps the kinds. Asked within one call of [`FieldManager`], possibly often; must answer the same
/// throughout.
pub trait Versions {
    /// The type of the kind in a version such as `apps/v1`; `None` if there is no such version (any more): what was owned in it
    /// is forgotten. [`Type::Any`] stands for a kind without a schema.
    fn schema(&self, api_version: &str) -> Option<&Type>;

    /// The object in another version.
    ///
    /// # Errors
    /// [`ConvertError::NoSuchVersion`] forgets what was owned in that version; [`ConvertError::Failed`] refuses an apply, and
    /// makes an update lose its `managedFields`, as upstream does.
    fn convert(&self, object: &Value, api_version: &str) -> Result<Value, ConvertError>;

    /// Fields that a request of this kind to this endpoint does not change whatever it says, such as the status for the main
    /// resource, and so does not come to own.
    fn reset_fields(&self, _api_version: &str) -> Option<&Set> {
        None
    }
}

/// Why an object cannot be had in another version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// There is no such version of the kind.
    #[error("no such version")]
    NoSuchVersion,
    /// The conversion failed.
    #[error("{0}")]
    Failed(String),
}
