//! RE2's regular expressions, as Go has them, on the `regex` crate.

use std::fmt::Write;

use crate::error::EvalError;

/// The largest compiled pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 10 << 20;
/// The most repetitions that a pattern may ask for (RE2's limit).
const REPEAT_MAX: u32 = 1000;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(regex::Regex);

impl Pattern {
    /// Compiles a pattern in RE2's syntax; the crate's additions to it are taken literally or refused.
    pub(crate) fn compile(pattern: &str) -> Result<Self, EvalError> {
        let translated = translate(pattern).map_err(EvalError::new)?;
        regex::RegexBuilder::new(&translated)
            .size_limit(PATTERN_BYTES_MAX)
            .build()
            .map(Self)
            .map_err(|error| EvalError::new(format!("error parsing regexp: {}", reason(&error, pattern))))
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

/// What is wrong with a pattern in Go's words, for the usual mistakes.
fn reason(error: &regex::Error, pattern: &str) -> String {
    let text = error.to_string();
    let told: &[(&str, &str)] = &[
        ("unclosed character class", "missing closing ]"),
        ("unclosed group", "missing closing )"),
        ("unopened group", "unexpected )"),
        ("repetition operator missing expression", "missing argument to repetition operator"),
        ("look-around", "invalid or unsupported Perl syntax"),
        ("unrecognized escape", "invalid escape sequence"),
        ("invalid character class range", "invalid character class range"),
        ("exceeds size limit", "expression too large"),
    ];
    let found = told.iter().find(|(ours, _)| text.contains(ours)).map_or("invalid pattern", |(_, gos)| gos);
    format!("{found}: `{pattern}`")
}

/// Rewrites what the two syntaxes mean differently: Perl's classes are ASCII in RE2, classes don't nest and have no
/// set operations, a brace that is no repetition is a brace, repetitions can't be repeated, and `\Q..\E` quotes.
fn translate(pattern: &str) -> Result<String, String> {
    let out = String::with_capacity(pattern.len() + 16);
    let mut translator = Translator { pattern, rest: pattern, out, class: Class::Outside, repeated: None };
    while let Some(letter) = translator.rest.chars().next() {
        if translator.class == Class::Outside {
            translator.outside(letter)?;
        } else {
            translator.inside(letter);
        }
    }
    Ok(translator.out)
}

/// Where in a character class a translation is.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    Outside,
    Start,
    Inside,
}

struct Translator<'p> {
    pattern: &'p str,
    rest: &'p str,
    out: String,
    class: Class,
    /// Where the repetition that has just been read begins.
    repeated: Option<usize>,
}

impl<'p> Translator<'p> {
    fn outside(&mut self, letter: char) -> Result<(), String> {
        let place = self.pattern.len() - self.rest.len();
        let after = &self.rest[letter.len_utf8()..];
        let before = self.repeated.take();
        self.rest = after;
        match letter {
            '\\' => self.rest = translate_escape(after, false, &mut self.out),
            '[' => {
                self.class = Class::Start;
                self.out.push('[');
                if let Some(tail) = after.strip_prefix('^') {
                    self.out.push('^');
                    self.rest = tail;
                }
            }
            '{' => match repetition(after)? {
                Some(tail) => self.repeat(before, place, tail)?,
                None => self.out.push_str("\\{"),
            },
            // A group's flags begin with a question mark too.
            '?' if self.out.ends_with('(') && !self.out.ends_with("\\(") => self.out.push('?'),
            '*' | '+' | '?' => self.repeat(before, place, after)?,
            '}' => self.out.push_str("\\}"),
            _ => self.out.push(letter),
        }
        Ok(())
    }

    /// A repetition from `place` up to `tail`, which may be lazy.
    fn repeat(&mut self, before: Option<usize>, place: usize, tail: &'p str) -> Result<(), String> {
        nested(self.pattern, before, self.pattern.len() - tail.len())?;
        let tail = tail.strip_prefix('?').unwrap_or(tail);
        self.out.push_str(&self.pattern[place..self.pattern.len() - tail.len()]);
        self.rest = tail;
        self.repeated = Some(place);
        Ok(())
    }

    fn inside(&mut self, letter: char) {
        let at_start = self.class == Class::Start;
        let after = &self.rest[letter.len_utf8()..];
        self.class = Class::Inside;
        self.rest = after;
        match letter {
            '\\' => self.rest = translate_escape(after, true, &mut self.out),
            '[' => match after.strip_prefix(':').and_then(|name| name.split_once(":]")) {
                Some((name, tail)) => {
                    let _ = write!(self.out, "[:{name}:]");
                    self.rest = tail;
                }
                None => self.out.push_str("\\["),
            },
            ']' if at_start => self.out.push_str("\\]"),
            ']' => {
                self.class = Class::Outside;
                self.out.push(']');
            }
            '&' | '~' => {
                self.out.push('\\');
                self.out.push(letter);
            }
            '-' if at_start || after.starts_with(']') || after.starts_with('-') => self.out.push_str("\\-"),
            _ => self.out.push(letter),
        }
    }
}

/// Refuses a repetition that ends at `end` where another one has just been read.
fn nested(pattern: &str, before: Option<usize>, end: usize) -> Result<(), String> {
    match before {
        None => Ok(()),
        Some(start) => {
            let shown = pattern.get(start..end).unwrap_or_default();
            Err(format!("error parsing regexp: invalid nested repetition operator: `{shown}`"))
        }
    }
}

/// What follows `n}`, `n,}` or `n,m}`, if `text` is one.
fn repetition(text: &str) -> Result<Option<&str>, String> {
    let Some((body, rest)) = text.split_once('}') else {
        return Ok(None);
    };
    let (least, most) = body.split_once(',').unwrap_or((body, body));
    let number = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !number(least) || !(most.is_empty() || number(most)) {
        return Ok(None);
    }
    for digits in [least, most] {
        let fits = digits.parse::<u32>().is_ok_and(|count| count <= REPEAT_MAX);
        if !digits.is_empty() && !fits {
            return Err(format!("error parsing regexp: invalid repeat count: `{{{body}}}`"));
        }
    }
    Ok(Some(rest))
}

/// Writes the escape that follows a backslash and gives what follows it.
fn translate_escape<'t>(after: &'t str, in_class: bool, out: &mut String) -> &'t str {
    let Some(letter) = after.chars().next() else {
        out.push('\\');
        return after;
    };
    let tail = &after[letter.len_utf8()..];
    let class = match letter {
        'd' => Some("0-9"),
        'w' => Some("0-9A-Za-z_"),
        's' => Some("\\t\\n\\x0C\\r "),
        'D' => Some("^0-9"),
        'W' => Some("^0-9A-Za-z_"),
        'S' => Some("^\\t\\n\\x0C\\r "),
        _ => None,
    };
    match (letter, class) {
        (_, Some(class)) if in_class && !class.starts_with('^') => out.push_str(class),
        (_, Some(class)) => {
            let _ = write!(out, "[{class}]");
        }
        ('b' | 'B', _) if !in_class => {
            let _ = write!(out, "(?-u:\\{letter})");
        }
        ('Q', _) => {
            let (quoted, rest) = tail.split_once("\\E").unwrap_or((tail, ""));
            out.push_str(&regex::escape(quoted));
            return rest;
        }
        // RE2 lets any mark be escaped.
        (letter, _) if letter.is_ascii_punctuation() => {
            if matches!(
                letter,
                '_' | '"' | '\'' | ',' | '%' | '=' | '!' | ':' | ';' | '@' | '`' | '/' | '<' | '>'
            ) {
                out.push(letter);
            } else {
                out.push('\\');
                out.push(letter);
            }
        }
        _ => {
            out.push('\\');
            out.push(letter);
        }
    }
    tail
}
