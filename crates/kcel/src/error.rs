//! What can go wrong: when an expression is compiled, and when it is evaluated.

use std::{borrow::Cow, fmt};

/// The longest line that is shown below a message, in bytes.
const SNIPPET_BYTES_MAX: usize = 16_384;
/// The most errors that are reported for one expression.
pub const ERRORS_MAX: usize = 100;

/// One thing that is wrong with an expression, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issue {
    message: String,
    line: i64,
    column: i64,
}

impl Issue {
    /// What is wrong, in cel-go's words.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The line, counted from 1; -1 when the error belongs to no place.
    #[must_use]
    pub const fn line(&self) -> i64 {
        self.line
    }

    /// The column in characters, counted from 1.
    #[must_use]
    pub const fn column(&self) -> i64 {
        self.column + 1
    }
}

/// Everything that is wrong with an expression, displayed as cel-go displays it: a line with position and message for
/// each error, the line of source, and a mark below the place.
///
/// ```
/// let env = kcel::Env::builder().build();
/// let errors = env.compile("x + 1").unwrap_err();
/// assert_eq!(
///     errors.to_string(),
///     "ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x + 1\n | ^"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileErrors {
    source: String,
    issues: Vec<Issue>,
    count: usize,
    phase: Phase,
}

/// When an error was found. Displayed as upstream begins its message: `compilation failed` or `program instantiation
/// failed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Phase {
    /// When the expression was parsed and checked.
    #[default]
    Compilation,
    /// When it was made ready to be evaluated: a constant that can't be computed, a pattern that is none.
    Instantiation,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compilation => "compilation failed",
            Self::Instantiation => "program instantiation failed",
        })
    }
}

impl CompileErrors {
    pub(crate) fn new(source: &str) -> Self {
        Self { source: source.to_owned(), issues: Vec::new(), count: 0, phase: Phase::Compilation }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.issues.is_empty()
    }

    /// Reports an error at a byte offset of the source.
    pub(crate) fn report(&mut self, offset: u32, message: impl Into<String>) {
        self.count += 1;
        if self.issues.len() < ERRORS_MAX {
            let before = self.source.get(..offset as usize).unwrap_or(&self.source);
            let line_start = before.rfind('\n').map_or(0, |end| end + 1);
            let line = before.bytes().filter(|byte| *byte == b'\n').count() as i64 + 1;
            // In no text at all the end is at column 0, and there is no line to show.
            let column =
                if self.source.is_empty() { -1 } else { before[line_start..].chars().count() as i64 };
            self.issues.push(Issue { message: message.into(), line, column });
        }
    }

    /// Reports an error that belongs to no place.
    pub(crate) fn report_nowhere(&mut self, message: impl Into<String>) {
        self.count += 1;
        if self.issues.len() < ERRORS_MAX {
            self.issues.push(Issue { message: message.into(), line: -1, column: -1 });
        }
    }

    /// The one error of making an expression ready.
    pub(crate) fn instantiation(mut self, message: impl Into<String>) -> Self {
        self.report_nowhere(message);
        self.phase = Phase::Instantiation;
        self
    }

    /// When the errors were found.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        self.phase
    }

    /// The errors, sorted by position.
    #[must_use]
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    pub(crate) fn sorted(mut self) -> Self {
        self.issues.sort_by_key(|issue| (issue.line, issue.column));
        self
    }

    fn write_issue(&self, f: &mut fmt::Formatter<'_>, issue: &Issue) -> fmt::Result {
        if self.phase == Phase::Instantiation {
            return f.write_str(&issue.message);
        }
        write!(f, "ERROR: <input>:{}:{}: {}", issue.line, issue.column + 1, issue.message)?;
        let line = usize::try_from(issue.line).ok().and_then(|line| self.source.split('\n').nth(line - 1));
        let Some(line) = line.filter(|line| line.len() <= SNIPPET_BYTES_MAX && issue.column >= 0) else {
            return Ok(());
        };
        write!(f, "\n | {}\n | ", line.replace('\t', " "))?;
        let mut rest = line.chars();
        for _ in 0..issue.column {
            match rest.next() {
                Some(letter) => f.write_str(if letter.is_ascii() { "." } else { "\u{ff0e}" })?,
                None => break,
            }
        }
        let wide = rest.next().is_some_and(|letter| !letter.is_ascii());
        f.write_str(if wide { "\u{ff3e}" } else { "^" })
    }
}

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, issue) in self.issues.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            self.write_issue(f, issue)?;
        }
        if self.count > self.issues.len() {
            write!(f, "\n{} more errors were truncated", self.count - self.issues.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileErrors {}

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// CEL's own error, in cel-go's words: `no such key: x`, `division by zero`, `no such overload`, ...
    #[error("{0}")]
    Failed(Cow<'static, str>),
    /// The evaluation was ended because it cost more than the limit.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimit,
}

impl EvalError {
    pub(crate) fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self::Failed(message.into())
    }

    pub(crate) const fn no_such_overload() -> Self {
        Self::Failed(Cow::Borrowed("no such overload"))
    }
}
