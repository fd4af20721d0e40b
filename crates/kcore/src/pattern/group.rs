//! What stands behind `(?`: names and flags.

use super::{Item, PatternError, Reader, until};

impl<'p> Reader<'p> {
    /// Reads what begins with `(?`; whether it only sets flags.
    pub(super) fn flags(&mut self, text: &'p str) -> Result<bool, PatternError> {
        let name = text.strip_prefix("(?P<").filter(|rest| !rest.is_empty());
        if let Some(rest) = name.or_else(|| text.strip_prefix("(?<").filter(|rest| !rest.is_empty())) {
            const WHAT: &str = "invalid named capture";
            let Some((name, tail)) = rest.split_once('>') else {
                return Err(PatternError::new(WHAT, text));
            };
            if name.is_empty() || !name.chars().all(|letter| letter == '_' || letter.is_ascii_alphanumeric())
            {
                return Err(PatternError::new(WHAT, until(text, tail)));
            }
            // Nobody asks for groups by their names, and Go allows more of them.
            self.out.push('(');
            self.stack.push(Item::Open { captures: true });
            self.rest = tail;
            return Ok(false);
        }
        let mut rest = text[2..].chars();
        let (mut negated, mut any) = (false, false);
        while let Some(letter) = rest.next() {
            match letter {
                'i' | 'm' | 's' | 'U' => any = true,
                '-' if !negated => (negated, any) = (true, false),
                ':' | ')' if !negated || any => {
                    let flags = until(text, rest.as_str());
                    // No flags at all are not allowed here, but mean nothing there.
                    if flags != "(?)" {
                        self.out.push_str(flags);
                    }
                    if letter == ':' {
                        self.stack.push(Item::Open { captures: false });
                    }
                    self.rest = rest.as_str();
                    return Ok(letter == ')');
                }
                _ => break,
            }
        }
        Err(PatternError::new("invalid or unsupported Perl syntax", until(text, rest.as_str())))
    }
}
