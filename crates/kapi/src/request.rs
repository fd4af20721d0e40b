//! What a request asks for: the verb and resource that its path and method stand for, and its options.

use std::borrow::Cow;

use http::Method;
use kcore::{
    Status,
    selector::{FieldSelector, LabelSelector},
};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::error::{ApiResult, FieldError, invalid};

/// What a request is about, as authorization and audit see it (`k8s.io/apiserver/pkg/endpoints/request.RequestInfo`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    /// Whether the path names a resource.
    pub is_resource: bool,
    /// The path, decoded.
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the HTTP method.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The version.
    pub version: String,
    /// The namespace; empty for all or none.
    pub namespace: String,
    /// The resource's plural name.
    pub resource: String,
    /// The subresource; empty for the resource itself.
    pub subresource: String,
    /// The object's name; empty for a collection.
    pub name: String,
    /// What follows the subresource, as in `proxy/some/path`.
    pub rest: String,
    /// To which fields a list, watch or deletion of a collection is restricted (KEP-4601).
    pub fields: FieldSelector,
    /// To which labels it is restricted.
    pub labels: LabelSelector,
}

impl RequestInfo {
    /// Reads method, path and query.
    #[must_use]
    pub fn new(method: &Method, path: &str, query: &Query) -> Self {
        let path = decode(path).into_owned();
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut info = Self { verb: method.as_str().to_lowercase(), ..Self::default() };
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => {
                info.path = path;
                return info;
            }
        };
        info.is_resource = true;
        // `watch/` is the old way to say `?watch=true`.
        let (old_watch, rest) = match rest {
            ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
            rest => (false, rest),
        };
        let rest = match rest {
            // A namespace is itself a resource, and what follows may be its subresource.
            ["namespaces", name, sub @ ("status" | "finalize"), ..] => {
                info.namespace = (*name).to_owned();
                &["namespaces", name, sub][..]
            }
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
                info.namespace = (*namespace).to_owned();
                rest
            }
            ["namespaces", namespace] => {
                info.namespace = (*namespace).to_owned();
                rest
            }
            rest => rest,
        };
        let word = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
        (info.resource, info.name, info.subresource) = (word(0), word(1), word(2));
        info.rest = rest.get(3..).unwrap_or_default().join("/");
        let watch = old_watch || query.flag("watch");
        info.verb = match (method, info.name.is_empty()) {
            (&Method::GET | &Method::HEAD, true) if watch => "watch",
            (&Method::GET | &Method::HEAD, true) => "list",
            (&Method::GET | &Method::HEAD, false) if watch && info.subresource.is_empty() => "watch",
            (&Method::GET | &Method::HEAD, false) => "get",
            (&Method::POST, _) => "create",
            (&Method::PUT, _) => "update",
            (&Method::PATCH, _) => "patch",
            (&Method::DELETE, true) => "deletecollection",
            (&Method::DELETE, false) => "delete",
            _ => "",
        }
        .to_owned();
        if matches!(info.verb.as_str(), "list" | "watch" | "deletecollection") {
            // What can't be read restricts nothing here, and is refused when the options are read.
            let parse = |key| query.get(key).unwrap_or_default();
            info.fields = FieldSelector::parse(parse("fieldSelector")).unwrap_or_default();
            info.labels = LabelSelector::parse(parse("labelSelector")).unwrap_or_default();
        }
        info.path = path;
        info
    }

    /// The request as authorization sees it: a list or watch of the one object that `metadata.name` is selected to be names
    /// that object.
    #[must_use]
    pub fn with_selected_name(&self) -> Cow<'_, Self> {
        let name = self.fields.required("metadata.name").filter(|name| {
            let segment = !matches!(*name, "" | "." | "..") && !name.contains(['/', '%']);
            self.name.is_empty() && segment && matches!(self.verb.as_str(), "list" | "watch")
        });
        match name {
            Some(name) => Cow::Owned(Self { name: name.to_owned(), ..self.clone() }),
            None => Cow::Borrowed(self),
        }
    }
}

fn decode(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}

/// The parameters of a query string, decoded.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads a query string.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |text: &str| decode(&text.replace('+', " ")).into_owned();
            (plain(key), plain(value))
        });
        Self(pairs.collect())
    }

    /// The first value of a parameter, if it is there and not empty.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// A boolean parameter: there, and neither `false` nor `0` (apimachinery's conversion of queries).
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.optional_flag(key).unwrap_or(false)
    }

    fn optional_flag(&self, key: &str) -> Option<bool> {
        let (_, value) = self.0.iter().find(|(name, _)| name == key)?;
        Some(value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    fn number(&self, key: &str) -> ApiResult<Option<i64>> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        let number = text.parse().ok();
        let why = || Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"));
        Ok(Some(number.ok_or_else(why)?))
    }
}

/// How a list's resource version is meant (`resourceVersionMatch`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevisionMatch {
    /// Exactly this revision.
    Exact,
    /// This revision or a later one.
    NotOlderThan,
}

/// The options of get, list and watch (`metav1.ListOptions`).
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// What the labels must be.
    pub labels: LabelSelector,
    /// What the fields must be.
    pub fields: FieldSelector,
    /// How many items at most; 0 for all.
    pub limit: usize,
    /// Where to go on.
    pub continue_: Option<String>,
    /// The revision asked for; `None` for "most recent", 0 for "any".
    pub revision: Option<u64>,
    /// How the revision is meant.
    pub revision_match: Option<RevisionMatch>,
    /// Whether a watch may send bookmarks.
    pub bookmarks: bool,
    /// Whether a watch begins with the current objects; `None` for the rule of the resource version.
    pub initial_events: Option<bool>,
    /// When the watch ends, in seconds.
    pub timeout_seconds: Option<u64>,
}

impl ListOptions {
    /// Reads the options of a list, or of a watch.
    ///
    /// # Errors
    /// 400 when a parameter can't be read, 422 when parameters contradict each other.
    pub fn parse(query: &Query, watch: bool) -> ApiResult<Self> {
        let bad = |error: &dyn std::fmt::Display| Status::bad_request(error.to_string());
        let labels = query.get("labelSelector").unwrap_or_default();
        let labels = LabelSelector::parse(labels).map_err(|error| bad(&error))?;
        let fields = query.get("fieldSelector").unwrap_or_default();
        let fields = FieldSelector::parse(fields).map_err(|error| bad(&error))?;
        let revision_match = match query.get("resourceVersionMatch") {
            Some("Exact") => Some(RevisionMatch::Exact),
            Some("NotOlderThan") => Some(RevisionMatch::NotOlderThan),
            _ => None,
        };
        let options = Self {
            labels,
            fields,
            limit: usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0),
            continue_: query.get("continue").map(str::to_owned),
            revision: None,
            revision_match,
            bookmarks: query.flag("allowWatchBookmarks"),
            initial_events: query.optional_flag("sendInitialEvents"),
            timeout_seconds: query.number("timeoutSeconds")?.and_then(|seconds| u64::try_from(seconds).ok()),
        };
        let errors = if watch { options.watch_contradictions(query) } else { options.contradictions(query) };
        if !errors.is_empty() {
            return Err(invalid("meta.k8s.io", "ListOptions", "", &errors));
        }
        let Some(text) = query.get("resourceVersion") else {
            return Ok(options);
        };
        let revision = if watch {
            plain_revision(text)?
        } else {
            let wrong = |error| Status::bad_request(format!("invalid resource version: {error}"));
            revision(text).map_err(wrong)?
        };
        Ok(Self { revision: Some(revision), ..options })
    }

    /// The rules of `ValidateListOptions` (KEP-2523).
    fn contradictions(&self, query: &Query) -> Vec<FieldError> {
        const FIELD: &str = "resourceVersionMatch";
        let mut errors = Vec::new();
        let mut forbid = |field: &str, why: &str| errors.push(FieldError::forbidden(field, why));
        let revision = query.get("resourceVersion");
        let asked = query.get(FIELD);
        if asked.is_some() {
            if revision.is_none() {
                forbid(FIELD, "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if self.continue_.is_some() {
                forbid(FIELD, "resourceVersionMatch is forbidden when continue is provided");
            }
            if self.revision_match == Some(RevisionMatch::Exact) && revision == Some("0") {
                forbid(FIELD, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
        }
        if let Some(other) = asked.filter(|_| self.revision_match.is_none()) {
            errors.push(FieldError::not_supported(FIELD, other, &["Exact", "NotOlderThan", ""]));
        }
        if self.initial_events.is_some() {
            errors
                .push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
        }
        errors
    }

    /// The rules of `ValidateListOptions` for watches (KEP-3157).
    fn watch_contradictions(&self, query: &Query) -> Vec<FieldError> {
        const FIELD: &str = "resourceVersionMatch";
        let mut errors = Vec::new();
        let not_older = self.revision_match == Some(RevisionMatch::NotOlderThan);
        if self.initial_events.is_some() && !not_older {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            errors.push(FieldError::forbidden(FIELD, why));
        }
        let Some(asked) = query.get(FIELD) else {
            return errors;
        };
        if self.initial_events.is_none() {
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            errors.push(FieldError::forbidden(FIELD, why));
        }
        if !not_older {
            errors.push(FieldError::not_supported(FIELD, asked, &["NotOlderThan"]));
        }
        if self.continue_.is_some() {
            let why = "resourceVersionMatch is forbidden when continue is provided";
            errors.push(FieldError::forbidden(FIELD, why));
        }
        errors
    }
}

/// `resourceVersion` as a number.
fn revision(text: &str) -> Result<u64, FieldError> {
    text.parse().map_err(|_| {
        let why = format_args!("strconv.ParseUint: parsing {text:?}: invalid syntax");
        FieldError::invalid_text("resourceVersion", text, why)
    })
}

/// The `resourceVersion` of a get or a watch.
///
/// # Errors
/// 500 without a reason when it is none, as a kube-apiserver answers.
pub(crate) fn plain_revision(text: &str) -> ApiResult<u64> {
    Ok(revision(text).map_err(|error| Status::failure(500, "", error.to_string()))?)
}

/// `resourceVersion` as a number.
///
/// # Errors
/// 400 when it is none.
pub fn parse_revision(text: &str) -> ApiResult<u64> {
    Ok(revision(text).map_err(|error| Status::bad_request(error.to_string()))?)
}

/// What happens to unknown and duplicate fields (`fieldValidation`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped silently.
    Ignore,
    /// Dropped, with a warning header each. The default.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

/// The options of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Whether nothing is to be kept.
    pub dry_run: bool,
    /// What happens to unknown and duplicate fields.
    pub field_validation: FieldValidation,
    /// Who writes.
    pub field_manager: String,
    /// Whether an apply takes fields over from other managers.
    pub force: bool,
}

impl WriteOptions {
    /// Reads the options from a query.
    ///
    /// # Errors
    /// 422 when an option has a value that is not supported.
    pub fn parse(query: &Query, kind: &str) -> ApiResult<Self> {
        let dry_run = parse_dry_run(query.all("dryRun"), kind)?;
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                let error =
                    FieldError::not_supported("fieldValidation", other, &["Ignore", "Strict", "Warn"]);
                return Err(invalid("meta.k8s.io", kind, "", &[error]));
            }
        };
        let field_manager = query.get("fieldManager").unwrap_or_default().to_owned();
        if field_manager.len() > 128 {
            return Err(invalid("meta.k8s.io", kind, "", &[FieldError::too_long("fieldManager", 128)]));
        }
        Ok(Self { dry_run, field_validation, field_manager, force: query.flag("force") })
    }
}

fn parse_dry_run<'a>(values: impl Iterator<Item = &'a str>, kind: &str) -> ApiResult<bool> {
    let mut dry_run = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            let error = FieldError::not_supported("dryRun", value, &["All"]);
            return Err(invalid("meta.k8s.io", kind, "", &[error]));
        }
        dry_run = true;
    }
    Ok(dry_run)
}

/// What happens to the objects that a deleted object owns (`propagationPolicy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They stay and lose their owner.
    Orphan,
    /// They go after it.
    Background,
    /// They go before it.
    Foreground,
}

/// The options of a deletion (`metav1.DeleteOptions`), from the body and the query.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Whether nothing is to be kept.
    pub dry_run: bool,
    /// How long the object may take to end.
    pub grace_seconds: Option<i64>,
    /// The uid that the object must have.
    pub uid: Option<String>,
    /// The revision that the object must have.
    pub revision: Option<u64>,
    /// What happens to its dependents; `None` for the default of the kind.
    pub propagation: Option<Propagation>,
}

impl DeleteOptions {
    /// Reads the options; the body counts for what it says, the query for the rest.
    ///
    /// # Errors
    /// 400 or 422 when an option can't be read.
    pub fn parse(query: &Query, body: Option<&Value>) -> ApiResult<Self> {
        let body = body.unwrap_or(&Value::Null);
        let refuse = |error| invalid("meta.k8s.io", "DeleteOptions", "", &[error]);
        let listed = body["dryRun"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let dry_run = parse_dry_run(listed.chain(query.all("dryRun")), "DeleteOptions")?;
        let grace_seconds = match body["gracePeriodSeconds"].as_i64() {
            Some(seconds) => Some(seconds),
            None => query.number("gracePeriodSeconds")?,
        };
        if let Some(seconds) = grace_seconds.filter(|seconds| *seconds < 0) {
            let why = "must be greater than or equal to 0";
            return Err(refuse(FieldError::invalid("gracePeriodSeconds", seconds, why)));
        }
        let policy = body["propagationPolicy"].as_str().or_else(|| query.get("propagationPolicy"));
        let orphan = body["orphanDependents"]
            .as_bool()
            .or_else(|| query.get("orphanDependents").map(|text| text == "true"));
        let propagation = match (policy, orphan) {
            (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
            (Some("Background"), _) | (None, Some(false)) => Some(Propagation::Background),
            (Some("Foreground"), _) => Some(Propagation::Foreground),
            (None, None) => None,
            (Some(other), _) => {
                let supported = ["Background", "Foreground", "Orphan"];
                return Err(refuse(FieldError::not_supported("propagationPolicy", other, &supported)));
            }
        };
        let preconditions = &body["preconditions"];
        Ok(Self {
            dry_run,
            grace_seconds,
            uid: preconditions["uid"].as_str().map(str::to_owned),
            revision: preconditions["resourceVersion"]
                .as_str()
                .filter(|text| !text.is_empty())
                .map(parse_revision)
                .transpose()?,
            propagation,
        })
    }
}

/// What a caller gave along with a write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Given<'a> {
    /// Nothing: the server itself writes.
    Nothing,
    /// What the query of a create, an update or a patch says.
    Query(&'a Query),
    /// The options of a deletion.
    Delete(&'a DeleteOptions),
}

impl Given<'_> {
    /// The fields of `CreateOptions`, `UpdateOptions` or `DeleteOptions`, as far as they were given. A patch has those of what
    /// it comes to, as upstream.
    pub(crate) fn json(self, dry_run: bool) -> serde_json::Map<String, Value> {
        let mut fields = serde_json::Map::new();
        let mut set = |key: &str, value: Value| drop(fields.insert(key.to_owned(), value));
        if dry_run {
            set("dryRun", serde_json::json!(["All"]));
        }
        match self {
            Self::Nothing => {}
            Self::Query(query) => {
                for key in ["fieldManager", "fieldValidation"] {
                    if let Some(text) = query.get(key).filter(|text| !text.is_empty()) {
                        set(key, text.into());
                    }
                }
            }
            Self::Delete(options) => {
                if let Some(seconds) = options.grace_seconds {
                    set("gracePeriodSeconds", seconds.into());
                }
                let mut must = serde_json::Map::new();
                if let Some(uid) = &options.uid {
                    must.insert("uid".to_owned(), uid.as_str().into());
                }
                if let Some(revision) = options.revision {
                    must.insert("resourceVersion".to_owned(), revision.to_string().into());
                }
                if !must.is_empty() {
                    set("preconditions", must.into());
                }
                if let Some(propagation) = options.propagation {
                    set("propagationPolicy", format!("{propagation:?}").into());
                }
            }
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: Method, path: &str) -> [String; 7] {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let info = RequestInfo::new(&method, path, &Query::parse(query));
        [info.verb, info.group, info.version, info.namespace, info.resource, info.name, info.subresource]
    }

    #[test]
    fn paths_are_read_as_upstream() {
        for (method, path, expected) in [
            (Method::GET, "/api/v1/pods", ["list", "", "v1", "", "pods", "", ""]),
            (Method::GET, "/api/v1/namespaces", ["list", "", "v1", "", "namespaces", "", ""]),
            (Method::GET, "/api/v1/namespaces/a", ["get", "", "v1", "a", "namespaces", "a", ""]),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                ["update", "", "v1", "a", "namespaces", "a", "finalize"],
            ),
            (Method::GET, "/api/v1/namespaces/a/pods/b/log", ["get", "", "v1", "a", "pods", "b", "log"]),
            (
                Method::GET,
                "/apis/apps/v1/deployments?&watch=true",
                ["watch", "apps", "v1", "", "deployments", "", ""],
            ),
            (
                Method::GET,
                "/apis/apps/v1/watch/namespaces/a/deployments",
                ["watch", "apps", "v1", "a", "deployments", "", ""],
            ),
            (
                Method::DELETE,
                "/api/v1/namespaces/a/pods",
                ["deletecollection", "", "v1", "a", "pods", "", ""],
            ),
            (
                Method::POST,
                "/api/v1/namespaces/a/pods/b/eviction",
                ["create", "", "v1", "a", "pods", "b", "eviction"],
            ),
            (Method::PATCH, "/api/v1/nodes/n%2Fx", ["patch", "", "v1", "", "nodes", "n", "x"]),
            (Method::GET, "/version", ["get", "", "", "", "", "", ""]),
            (Method::GET, "/apis/apps/v1", ["get", "", "", "", "", "", ""]),
        ] {
            assert_eq!(info(method, path), expected, "{path}");
        }
    }

    #[test]
    fn a_list_of_one_object_names_it() {
        for (method, path, expected) in [
            (Method::GET, "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Dx", "x"),
            (Method::GET, "/api/v1/namespaces/a/secrets?watch=1&fieldSelector=metadata.name%3Dx", "x"),
            (Method::GET, "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name!%3Dx", ""),
            (Method::GET, "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3D..", ""),
            (Method::GET, "/api/v1/namespaces/a/secrets/y?fieldSelector=metadata.name%3Dx", "y"),
            (Method::DELETE, "/api/v1/namespaces/a/secrets?fieldSelector=metadata.name%3Dx", ""),
        ] {
            let (plain, query) = path.split_once('?').unwrap();
            let info = RequestInfo::new(&method, plain, &Query::parse(query));
            assert_eq!(info.with_selected_name().name, expected, "{path}");
        }
    }

    #[test]
    fn contradicting_list_options_are_refused() {
        for (query, watch, good) in [
            ("resourceVersionMatch=Exact", false, false),
            ("resourceVersionMatch=Exact&resourceVersion=0", false, false),
            ("resourceVersionMatch=Exact&resourceVersion=5", false, true),
            ("resourceVersionMatch=Sometimes&resourceVersion=5", false, false),
            ("resourceVersion=x", false, false),
            ("sendInitialEvents=true", false, false),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", true, true),
            ("sendInitialEvents=true&allowWatchBookmarks=true", true, false),
            ("resourceVersionMatch=NotOlderThan", true, false),
            ("limit=x", false, false),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", true, true),
            ("resourceVersionMatch=NotOlderThan&sendInitialEvents=no", true, true),
            ("labelSelector=a%20b", false, false),
        ] {
            assert_eq!(ListOptions::parse(&Query::parse(query), watch).is_ok(), good, "{query}");
        }
    }
}
