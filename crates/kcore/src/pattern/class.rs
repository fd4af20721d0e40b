//! Classes of characters in brackets.

use super::{PatternError, Reader, escape, until};

/// The classes that POSIX names.
const POSIX: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

impl<'p> Reader<'p> {
    /// Reads the class at the start of `text`, and gives what follows it.
    pub(super) fn class(&mut self, text: &'p str) -> Result<&'p str, PatternError> {
        const RANGE: &str = "invalid character class range";
        let mut rest = &text[1..];
        self.out.push('[');
        if let Some(after) = rest.strip_prefix('^') {
            self.out.push('^');
            rest = after;
        }
        let mut first = true;
        loop {
            if let Some(after) = rest.strip_prefix(']').filter(|_| !first) {
                self.out.push(']');
                return Ok(after);
            }
            first = false;
            if let Some((name, after)) = rest.strip_prefix("[:").and_then(|rest| rest.split_once(":]")) {
                if !POSIX.contains(&name.strip_prefix('^').unwrap_or(name)) {
                    return Err(PatternError::new(RANGE, until(rest, after)));
                }
                self.out.push_str(until(rest, after));
                rest = after;
                continue;
            }
            if let Some((class, after)) = self.named(rest)? {
                self.out.push_str(&class);
                rest = after;
                continue;
            }
            if let Some(class) = escape::perl(rest) {
                let negated = class.starts_with('^');
                self.out.push_str(if negated { "[" } else { "" });
                self.out.push_str(class);
                self.out.push_str(if negated { "]" } else { "" });
                rest = &rest[2..];
                continue;
            }
            let range = rest;
            let (low, after) = member(rest, text)?;
            rest = after;
            self.literal(low);
            if let Some(after) =
                rest.strip_prefix('-').filter(|after| !after.is_empty() && !after.starts_with(']'))
            {
                let (high, after) = member(after, text)?;
                rest = after;
                if high < low {
                    return Err(PatternError::new(RANGE, until(range, rest)));
                }
                self.out.push('-');
                self.literal(high);
            }
        }
    }
}

/// One character of a class, and what follows it.
fn member<'t>(rest: &'t str, class: &str) -> Result<(char, &'t str), PatternError> {
    match rest.chars().next() {
        None => Err(PatternError::new("missing closing ]", class)),
        Some('\\') => escape::single(rest),
        Some(letter) => Ok((letter, &rest[letter.len_utf8()..])),
    }
}
