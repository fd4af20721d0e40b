//! Leases, and those who would hold them (KEP-4355).

use std::cmp::Ordering;

use kschema::{
    error::FieldError,
    strategy::{NameRule, Strategy},
};
use serde_json::Value;

use crate::check::{Look, Path, Report, form};

type Errors = Vec<FieldError>;

/// The strategy of `leases`.
#[derive(Debug)]
pub(crate) struct Leases;

/// The strategy of `leasecandidates`.
#[derive(Debug)]
pub(crate) struct LeaseCandidates;

const OLDEST: &str = "OldestEmulationVersion";

/// Upstream's path has the field twice where it reports a strategy.
fn strategy(value: &str, path: &Path<'_>, errors: &mut Errors) {
    let field = path.field("strategy");
    if value.contains('/') {
        errors.faults(&field, value, form::qualified_name(value));
    } else if value != OLDEST {
        errors.unsupported(&field, value, &[OLDEST]);
    }
}

impl Strategy for Leases {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let (spec, path) = (&object["spec"], Path::root("spec"));
        if let Some(seconds) = spec.some_int("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
            errors.invalid(&path.field("leaseDurationSeconds"), seconds, "must be greater than 0");
        }
        errors.not_negative(spec, &path, "leaseTransitions");
        if let Some(value) = spec.some_text("strategy") {
            strategy(value, &path.field("strategy"), errors);
        }
        if !spec.text("preferredHolder").is_empty() && spec.text("strategy").is_empty() {
            let why = "may only be specified if `strategy` is defined";
            errors.forbidden(&path.field("preferredHolder"), why);
        }
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

/// A version as <https://semver.org> orders it.
struct Version<'a> {
    numbers: [u64; 3],
    pre: Option<&'a str>,
}

impl<'a> Version<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let word = |text: &str| {
            !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let number = |text: &str| -> Option<u64> {
            let good =
                text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
            if good { text.parse().ok() } else { None }
        };
        let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
        let (core, pre) = rest.split_once('-').map_or((rest, None), |(core, pre)| (core, Some(pre)));
        if [build, pre].into_iter().flatten().any(|part| !part.split('.').all(word)) {
            return None;
        }
        let mut parts = core.split('.');
        let mut next = || parts.next().and_then(number);
        let numbers = [next()?, next()?, next()?];
        parts.next().is_none().then_some(Self { numbers, pre })
    }

    fn compare(&self, other: &Self) -> Ordering {
        self.numbers.cmp(&other.numbers).then_with(|| match (self.pre, other.pre) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(one), Some(other)) => compare_pre(one, other),
        })
    }
}

fn compare_pre(one: &str, other: &str) -> Ordering {
    // A number is less than a word, and fewer parts are less than more.
    let parts = |text: &str| -> Vec<(bool, u64, String)> {
        text.split('.')
            .map(|part| match part.parse() {
                Ok(number) => (false, number, String::new()),
                Err(_) => (true, 0, part.to_owned()),
            })
            .collect()
    };
    parts(one).cmp(&parts(other))
}

impl Strategy for LeaseCandidates {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let name = object["metadata"].text("name");
        errors.faults(&Path::root("metadata.name"), name, form::config_key(name));
        self.validate(object, errors);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        const WHY: &str = "must be a valid semantic version";
        let (spec, path) = (&object["spec"], Path::root("spec"));
        errors.needs(spec, &path, "leaseName");
        let (emulated, binary) = (spec.text("emulationVersion"), spec.text("binaryVersion"));
        let parsed = Version::parse(emulated);
        if !emulated.is_empty() && parsed.is_none() {
            errors.invalid(&path.field("emulationVersion"), emulated, WHY);
        }
        let field = path.field("binaryVersion");
        let own = Version::parse(binary);
        if binary.is_empty() {
            errors.required(&field, "");
        } else if own.is_none() {
            errors.invalid(&field, binary, WHY);
        }
        let zero = || Version { numbers: [0; 3], pre: None };
        let (parsed, own) = (parsed.unwrap_or_else(zero), own.unwrap_or_else(zero));
        if !binary.is_empty() && !emulated.is_empty() && own.compare(&parsed) == Ordering::Less {
            errors.invalid(&field, binary, "must be greater than or equal to `emulationVersion`");
        }
        let field = path.field("strategy");
        match spec.text("strategy") {
            "" => errors.required(&field, ""),
            found => {
                if found == OLDEST && parsed.compare(&zero()) == Ordering::Equal {
                    let why = "must be specified when `strategy` is 'OldestEmulationVersion'";
                    errors.required(&path.field("emulationVersion"), why);
                }
                strategy(found, &field, errors);
            }
        }
    }

    fn validate_update(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.immutable(&object["spec"], &old["spec"], &Path::root("spec"), "leaseName");
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
