//! RE2's regular expressions, as Go has them, on the `regex` crate.

use kcore::pattern::{PatternError, translate};

use crate::error::EvalError;

/// The largest compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 10 << 20;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(regex::Regex);

impl Pattern {
    /// Compiles a pattern in RE2's syntax; the crate's additions to it are taken literally or refused.
    pub(crate) fn compile(pattern: &str) -> Result<Self, EvalError> {
        let refused = |error: PatternError| EvalError::new(error.to_string());
        let knows = |class: &str| regex::Regex::new(&format!("\\p{{{class}}}")).is_ok();
        let translated = translate(pattern, &knows).map_err(refused)?;
        let regex = regex::RegexBuilder::new(&translated).size_limit(PATTERN_BYTES_MAX).build();
        regex.map(Self).map_err(|_| refused(PatternError::too_large(pattern)))
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// The first match, or nothing.
    pub(crate) fn find<'t>(&self, text: &'t str) -> &'t str {
        self.0.find(text).map_or("", |found| found.as_str())
    }

    /// The first `count` matches; all of them if it is negative.
    pub(crate) fn find_all<'t>(&self, text: &'t str, count: i64) -> Vec<&'t str> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.0.find_iter(text).take(count).map(|found| found.as_str()).collect()
    }
}
