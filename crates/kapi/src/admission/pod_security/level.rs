//! The levels and versions of the standard, and what a namespace's labels say of them.

use std::fmt;

use super::PREFIX;
use crate::{admission::AdmissionRequest, error::FieldError};

/// A level of the standard; greater is stricter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

/// A version of the standard: the minor version of Kubernetes 1 that it came with, or the latest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Version {
    #[default]
    Latest,
    Minor(u64),
}

/// A level as it was in a version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// What a namespace asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: LevelVersion,
    pub(super) audit: LevelVersion,
    pub(super) warn: LevelVersion,
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })?;
        match self.version {
            Version::Latest => f.write_str(":latest"),
            Version::Minor(minor) => write!(f, ":v1.{minor}"),
        }
    }
}

impl LevelVersion {
    /// Tells the audit log what is enforced.
    pub(super) fn tell(&self, request: &AdmissionRequest<'_>) {
        const KEY: &str = "pod-security.kubernetes.io/enforce-policy";
        // Most namespaces have no labels, and this is told of every pod.
        if *self == Self::default() {
            request.annotate(KEY, "privileged:latest");
        } else {
            request.annotate(KEY, self.to_string());
        }
    }
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

fn parse_version(text: &str) -> Option<Version> {
    if text == "latest" {
        return Some(Version::Latest);
    }
    let minor = text.strip_prefix("v1.")?;
    let is_number =
        minor.bytes().all(|byte| byte.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
    minor.parse().ok().filter(|_| is_number).map(Version::Minor)
}

/// The labels for a mode's level and version.
macro_rules! labels {
    ($mode:literal) => {
        [
            concat!("pod-security.kubernetes.io/", $mode),
            concat!("pod-security.kubernetes.io/", $mode, "-version"),
        ]
    };
}

const ENFORCE: [&str; 2] = labels!("enforce");
const AUDIT: [&str; 2] = labels!("audit");
const WARN: [&str; 2] = labels!("warn");

impl Policy {
    /// What labels say, and what is wrong with them. What can't be read is restricted where it is enforced, and nothing
    /// elsewhere.
    pub(super) fn of_labels<'l>(label: impl Fn(&str) -> Option<&'l str>) -> (Self, Vec<FieldError>) {
        let mut policy = Self::default();
        let mut errors = Vec::new();
        let mut read = |[key, version_key]: [&str; 2], place: &mut LevelVersion, failed: Level| {
            let level = label(key);
            let parsed = level.map(parse_level);
            place.level = parsed.unwrap_or(Some(Level::Privileged)).unwrap_or(failed);
            let mut fault = |key: &str, value: &str, why: &str| {
                errors.push(FieldError::invalid_text(format!("metadata.labels[{key}]"), value, why));
            };
            if let (Some(text), Some(None)) = (level, parsed) {
                fault(key, text, "must be one of privileged, baseline, restricted");
            }
            let version = label(version_key);
            if let Some(text) = version {
                place.version = parse_version(text).unwrap_or_else(|| {
                    fault(version_key, text, "must be \"latest\" or \"v1.x\"");
                    Version::Latest
                });
            }
            (parsed.is_some(), matches!(parsed, Some(Some(_))), version.is_some())
        };
        let (_, enforces, _) = read(ENFORCE, &mut policy.enforce, Level::Restricted);
        read(AUDIT, &mut policy.audit, Level::Privileged);
        let (warns, _, warns_version) = read(WARN, &mut policy.warn, Level::Privileged);
        if !warns && enforces && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if !warns_version {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    pub(super) fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|one| one.level == Level::Privileged)
    }

    /// What of it comes from labels.
    pub(super) fn labelled(&self, has: impl Fn(&str) -> bool) -> String {
        let parts = [(ENFORCE, self.enforce), (AUDIT, self.audit), (WARN, self.warn)];
        let parts = parts
            .iter()
            .filter(|(keys, of)| of.level != Level::Privileged && keys.iter().any(|key| has(key)));
        let parts = parts.map(|([key, _], of)| format!("{}={of}", key.trim_start_matches(PREFIX)));
        parts.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Expected results: `pod-security-admission/api/helpers_test.go`.
    #[test]
    fn labels_are_read_as_upstream_does() {
        for (labels, expected, faults) in [
            (&[][..], "privileged:latest privileged:latest privileged:latest", 0),
            (&[("enforce", "baseline")], "baseline:latest privileged:latest baseline:latest", 0),
            (
                &[("enforce", "restricted"), ("enforce-version", "v1.22"), ("warn", "baseline")],
                "restricted:v1.22 privileged:latest baseline:latest",
                0,
            ),
            (
                &[("enforce", "baseline"), ("enforce-version", "v1.0"), ("warn-version", "v1.9")],
                "baseline:v1.0 privileged:latest baseline:v1.9",
                0,
            ),
            (
                &[("enforce", "x"), ("audit", "y"), ("warn", "z")],
                "restricted:latest privileged:latest privileged:latest",
                3,
            ),
            (
                &[("audit", "restricted"), ("audit-version", "v1.01")],
                "privileged:latest restricted:latest privileged:latest",
                1,
            ),
        ] {
            let map: BTreeMap<String, &str> =
                labels.iter().map(|(key, value)| (format!("{PREFIX}{key}"), *value)).collect();
            let (policy, errors) = Policy::of_labels(|key| map.get(key).copied());
            let found = format!("{} {} {}", policy.enforce, policy.audit, policy.warn);
            assert_eq!((&*found, errors.len()), (expected, faults), "{labels:?}");
        }
    }
}
