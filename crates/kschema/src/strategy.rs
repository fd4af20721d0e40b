//! What a schema can't say about a kind: defaults that depend on other fields, what may change, what must be valid.

use std::fmt::Debug;

use serde_json::Value;

use crate::{error::FieldError, fields::drop_status};

/// What the cluster holds when something is picked for an object.
pub trait Held {
    /// Whether an object holds this [claim](Strategy::claims).
    fn is_taken(&self, claim: &str) -> bool;

    /// The networks that services may get addresses from now, in CIDR notation: those of all ServiceCIDRs that are ready (KEP-1880).
    /// `None`: there is no ServiceCIDR, so that what is configured holds.
    fn networks(&self) -> Option<Vec<String>>;
}

/// A function tells what is taken, and there is no ServiceCIDR.
impl<F: Fn(&str) -> bool> Held for F {
    fn is_taken(&self, claim: &str) -> bool {
        self(claim)
    }

    fn networks(&self) -> Option<Vec<String>> {
        None
    }
}

/// What the server asks about a kind when one of its objects is written.
///
/// Objects come in the storage version, decoded, without unknown fields and with the plain defaults of the schema filled
/// in. Methods are called on the request path, possibly several times for one write (a conflict is tried again), so they
/// must neither block nor keep anything.
pub trait Strategy: Debug + Send + Sync + 'static {
    /// Fills in defaults that depend on other fields.
    fn default(&self, _object: &mut Value) {}

    /// Prepares an object for its creation: clears what callers may not set, sets the first status.
    fn prepare_create(&self, object: &mut Value) {
        drop_status(object);
    }

    /// Prepares a changed object: keeps what callers may not change. The status has been kept already.
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}

    /// Prepares a change through the subresource `status`, after everything but the status (and the metadata that such a
    /// write may touch) has been made what it was: fills in and restores what callers may leave out of a status.
    fn prepare_status(&self, _object: &mut Value, _old: &Value) {}

    /// Prepares a change through a subresource that is a view of the object, other than `status` and `scale` (pods:
    /// `ephemeralcontainers`, `resize`; namespaces: `finalize`; certificate signing requests: `approval`): makes everything
    /// what it was that this subresource may not change. Called where [`prepare_update`](Self::prepare_update) is for the
    /// object itself.
    fn prepare_subresource(&self, _subresource: &str, _object: &mut Value, _old: &Value) {}

    /// Checks an object before it is created or changed.
    fn validate(&self, _object: &Value, _errors: &mut Vec<FieldError>) {}

    /// Checks a change, after [`validate`](Self::validate).
    fn validate_update(&self, _object: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}

    /// Everything that is checked when an object is created, after its metadata. What the server calls; a kind overrides it
    /// only for what does not hold for changes.
    fn validate_create(&self, object: &Value, errors: &mut Vec<FieldError>) {
        self.validate(object, errors);
    }

    /// Everything that is checked when an object is changed through the main resource (or `scale`), after its metadata. What
    /// the server calls; a kind overrides it where what the old object held may stay although it is not valid any more.
    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Vec<FieldError>) {
        self.validate(object, errors);
        self.validate_update(object, old, errors);
    }

    /// Checks a change through the subresource `status`, after [`prepare_status`](Self::prepare_status). The rest of the
    /// object is what it was.
    fn validate_status(&self, _object: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}

    /// Checks a change through another subresource, after [`prepare_subresource`](Self::prepare_subresource). `false`: this
    /// kind has no rules of its own for it, and the server applies those of the main resource.
    fn validate_subresource(
        &self,
        _subresource: &str,
        _object: &Value,
        _old: &Value,
        _errors: &mut Vec<FieldError>,
    ) -> bool {
        false
    }

    /// What the caller should know although the object is valid, each line for a `Warning:` header. Called once for each
    /// write, after validation, with the object as it will be stored: `old` is missing when the object is created.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// [`warnings`](Self::warnings) for a change through a subresource.
    fn subresource_warnings(&self, _subresource: &str, _object: &Value, _old: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Which fields (paths joined by dots) a write to the main resource (`""`) or to a subresource resets, so that its
    /// manager does not come to own them (`GetResetFields`). Called for each write that changes field ownership.
    fn reset_fields(&self, subresource: &str) -> &'static [&'static str] {
        match subresource {
            "" => &["status"],
            "status" => &["spec"],
            _ => &[],
        }
    }

    /// What a name must look like.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// For kinds that are deleted gracefully: how many seconds of grace this object gets, when `requested` asks for some.
    /// `None`: the kind is deleted at once.
    fn grace_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// The fields (paths joined by dots) that [`grace_seconds`](Self::grace_seconds) and [`claims`](Self::claims) look at.
    /// A deletion that needs no more of the object then reads no more of it. `None`: anything.
    fn deletion_fields(&self) -> Option<&'static [&'static str]> {
        None
    }

    /// Things that only one object of the cluster may hold, such as a cluster IP. They are claimed and freed in the same
    /// transaction that writes the object.
    fn claims(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    /// Whether [`allocate`](Self::allocate) ever picks something.
    fn allocates(&self) -> bool {
        false
    }

    /// Picks what the object wants and does not name, such as a cluster IP.
    fn allocate(
        &self,
        _object: &mut Value,
        _old: Option<&Value>,
        _held: &dyn Held,
    ) -> Result<(), FieldError> {
        Ok(())
    }
}

/// What a name must look like (Kubernetes, "Object Names and IDs").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// A lower-case RFC 1123 subdomain of at most 253 bytes.
    Subdomain,
    /// A lower-case RFC 1123 label of at most 63 bytes.
    Label,
    /// A lower-case RFC 1035 label of at most 63 bytes.
    Label1035,
    /// Anything that fits into a path.
    PathSegment,
}

impl NameRule {
    /// What is wrong with `name`, in upstream's words. `prefix`: it is a `generateName`, to which five characters come.
    #[must_use]
    pub fn fault(self, name: &str, prefix: bool) -> Option<String> {
        self.faults(name, prefix).into_iter().next()
    }

    /// Everything that is wrong with `name`. See [`fault`](Self::fault).
    #[must_use]
    pub fn faults(self, name: &str, prefix: bool) -> Vec<String> {
        const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
        const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
        // Upstream masks the trailing dash of a prefix (and the character before it), as the generated part follows it.
        let masked;
        let text = match name.strip_suffix('-') {
            Some(stem) if prefix && !stem.is_empty() && self != Self::PathSegment => {
                let cut = stem.char_indices().next_back().map_or(0, |(at, _)| at);
                masked = format!("{}a", &stem[..cut]);
                &masked
            }
            _ => name,
        };
        let mut faults = Vec::new();
        let mut check = |limit: usize, good: bool, words: &str| {
            if text.len() > limit {
                faults.push(format!("must be no more than {limit} characters"));
            }
            if !good {
                faults.push(words.to_owned());
            }
        };
        let label = kcore::selector::is_dns_label(text);
        match self {
            Self::Subdomain => check(253, kcore::selector::is_dns_subdomain(text), SUBDOMAIN),
            Self::Label if !label && kcore::selector::is_dns_subdomain(text) => {
                check(63, false, "must not contain dots");
            }
            Self::Label => check(63, label, LABEL),
            Self::Label1035 => {
                check(63, label && text.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035);
            }
            Self::PathSegment if !prefix && matches!(text, "." | "..") => {
                faults.push(format!("may not be '{text}'"));
            }
            Self::PathSegment => {
                let parts = ["/", "%"].into_iter().filter(|part| text.contains(part));
                faults.extend(parts.map(|part| format!("may not contain '{part}'")));
            }
        }
        faults
    }
}

/// A kind without rules of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Strategy for Plain {}
