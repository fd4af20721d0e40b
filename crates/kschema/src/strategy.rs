//! What a schema can't say about a kind: defaults that depend on other fields, what may change, what must be valid.

use std::fmt::Debug;

use serde_json::Value;

use crate::{error::FieldError, fields::drop_status};

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

    /// Checks an object before it is created or changed.
    fn validate(&self, _object: &Value, _errors: &mut Vec<FieldError>) {}

    /// Checks a change, after [`validate`](Self::validate).
    fn validate_update(&self, _object: &Value, _old: &Value, _errors: &mut Vec<FieldError>) {}

    /// What a name must look like.
    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// For kinds that are deleted gracefully: how many seconds of grace this object gets, when `requested` asks for some.
    /// `None`: the kind is deleted at once.
    fn grace_seconds(&self, _object: &Value, _requested: Option<i64>) -> Option<i64> {
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

    /// Picks what the object wants and does not name, such as a cluster IP. `taken` tells whether a claim is held.
    fn allocate(
        &self,
        _object: &mut Value,
        _old: Option<&Value>,
        _taken: &dyn Fn(&str) -> bool,
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
        const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
        const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
        const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
        // Upstream masks the trailing dash of a prefix, as the generated part follows it.
        let masked;
        let text = match name.strip_suffix('-') {
            Some(stem) if prefix => {
                masked = format!("{stem}a");
                &masked
            }
            _ => name,
        };
        let too_long =
            |limit: usize| (text.len() > limit).then(|| format!("must be no more than {limit} bytes"));
        let fault = |good: bool, words: &str| (!good).then(|| words.to_owned());
        match self {
            Self::Subdomain => {
                too_long(253).or_else(|| fault(kcore::selector::is_dns_subdomain(text), SUBDOMAIN))
            }
            Self::Label => too_long(63).or_else(|| fault(kcore::selector::is_dns_label(text), LABEL)),
            Self::Label1035 => too_long(63).or_else(|| {
                let good =
                    text.starts_with(|c: char| c.is_ascii_lowercase()) && kcore::selector::is_dns_label(text);
                fault(good, LABEL_1035)
            }),
            Self::PathSegment => match text {
                "." | ".." => Some(format!("may not be '{text}'")),
                _ => text.chars().find(|c| matches!(c, '/' | '%')).map(|c| format!("may not contain '{c}'")),
            },
        }
    }
}

/// A kind without rules of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Plain;

impl Strategy for Plain {}
