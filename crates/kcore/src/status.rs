//! Errors as Kubernetes speaks them: `metav1.Status`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The answer to a request that has no object to show: an error, or the success of a deletion.
///
/// The shape and the words are those of `metav1.Status` (Kubernetes API conventions, "Response Status Kind"). Every error
/// that the API server gives is one of these.
///
/// ```
/// let status = kcore::Status::not_found("apps", "deployments", "web");
/// assert_eq!(status.code, 404);
/// assert_eq!(status.message, "deployments.apps \"web\" not found");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Always `Status`.
    pub kind: String,
    /// Always `v1`.
    pub api_version: String,
    /// Empty but for the list fields of a 410.
    pub metadata: StatusMeta,
    /// `Success` or `Failure`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// For programs: one of the `StatusReason` words, such as `NotFound`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// What the error is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<StatusDetails>,
    /// The HTTP status code.
    pub code: u16,
}

/// The `metadata` of a [`Status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusMeta {
    /// A token to go on with, in a 410 for an expired list.
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_: String,
}

/// What a [`Status`] is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusDetails {
    /// The object's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// The resource, or the kind for validation errors.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The object's uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// One entry per fault found.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<StatusCause>,
    /// When to try again, in seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

/// One fault: what kind, in which field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusCause {
    /// A `CauseType` word, such as `FieldValueInvalid`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The field's path, such as `spec.ports[0].port`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Default for Status {
    fn default() -> Self {
        Self {
            kind: "Status".to_owned(),
            api_version: "v1".to_owned(),
            metadata: StatusMeta::default(),
            status: "Failure".to_owned(),
            message: String::new(),
            reason: String::new(),
            details: None,
            code: 500,
        }
    }
}

/// `resource.group`, or the resource alone for the core group.
fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn about(group: &str, resource: &str, name: &str) -> Option<StatusDetails> {
    Some(StatusDetails {
        name: name.to_owned(),
        group: group.to_owned(),
        kind: resource.to_owned(),
        ..StatusDetails::default()
    })
}

impl Status {
    /// A failure with this code, reason and message, and no details.
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), ..Self::default() }
    }

    /// A success about an object, as a deletion answers.
    #[must_use]
    pub fn success(group: &str, resource: &str, name: &str, uid: &str) -> Self {
        let details =
            about(group, resource, name).map(|details| StatusDetails { uid: uid.to_owned(), ..details });
        Self { status: "Success".to_owned(), code: 200, details, ..Self::default() }
    }

    /// Adds details about an object.
    #[must_use]
    pub fn about(mut self, group: &str, resource: &str, name: &str) -> Self {
        self.details = about(group, resource, name);
        self
    }

    /// 404: the object is not there.
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(404, "NotFound", format!("{} \"{name}\" not found", qualified(group, resource)))
            .about(group, resource, name)
    }

    /// 404: nothing is served at this path.
    #[must_use]
    pub fn no_such_path() -> Self {
        let mut status = Self::failure(404, "NotFound", "the server could not find the requested resource");
        status.details = Some(StatusDetails::default());
        status
    }

    /// 409: an object of that name is there already.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        Self::failure(
            409,
            "AlreadyExists",
            format!("{} \"{name}\" already exists", qualified(group, resource)),
        )
        .about(group, resource, name)
    }

    /// 409: the object is not in the state that the request assumes.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", qualified(group, resource));
        Self::failure(409, "Conflict", message).about(group, resource, name)
    }

    /// 403: the caller may not, or not now.
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, why: &str) -> Self {
        let what = qualified(group, resource);
        let message = match (what.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{what} is forbidden: {why}"),
            (false, false) => format!("{what} \"{name}\" is forbidden: {why}"),
        };
        Self::failure(403, "Forbidden", message).about(group, resource, name)
    }

    /// 400: the request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, "BadRequest", message)
    }

    /// 401: the caller did not say who they are, or lied.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::failure(401, "Unauthorized", "Unauthorized")
    }

    /// 405: the resource does not know this verb.
    #[must_use]
    pub fn method_not_allowed(group: &str, resource: &str, verb: &str) -> Self {
        let message =
            format!("{verb} is not supported on resources of kind \"{}\"", qualified(group, resource));
        Self::failure(405, "MethodNotAllowed", message).about(group, resource, "")
    }

    /// 410: the revision asked for has been compacted away.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, "Expired", message)
    }

    /// 413: the body is larger than the limit.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::failure(413, "RequestEntityTooLarge", message)
    }

    /// 415: a body in a media type that the endpoint does not read.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::failure(415, "UnsupportedMediaType", message)
    }

    /// 500: a fault of the server.
    pub fn internal(why: impl fmt::Display) -> Self {
        let mut status = Self::failure(500, "InternalError", format!("Internal error occurred: {why}"));
        let cause = StatusCause { message: why.to_string(), ..StatusCause::default() };
        status.details = Some(StatusDetails { causes: vec![cause], ..StatusDetails::default() });
        status
    }

    /// Whether the reason is `reason`.
    #[must_use]
    pub fn is(&self, reason: &str) -> bool {
        self.reason == reason
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} {})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for Status {}
