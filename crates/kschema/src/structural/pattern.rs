//! `pattern`: regular expressions as Go has them.

use kcore::pattern::{PatternError, translate};
use regex::{Regex, RegexBuilder};

/// The largest compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 10 << 20;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Pattern {
    source: Box<str>,
    regex: Regex,
}

impl Pattern {
    /// Compiles a pattern in RE2's syntax.
    ///
    /// # Errors
    /// What is wrong with it, in Go's words.
    pub fn new(source: &str) -> Result<Self, PatternError> {
        let knows = |class: &str| Regex::new(&format!("\\p{{{class}}}")).is_ok();
        let translated = translate(source, &knows)?;
        let regex = RegexBuilder::new(&translated).size_limit(PATTERN_BYTES_MAX).build();
        let regex = regex.map_err(|_| PatternError::too_large(source))?;
        Ok(Self { source: source.into(), regex })
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether it is found in a text.
    #[must_use]
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }
}
