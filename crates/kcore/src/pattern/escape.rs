//! Escapes, outside of classes and inside.

use std::fmt::Write as _;

use super::{Node, PatternError, Reader, until};

impl<'p> Reader<'p> {
    /// Reads the escape at the start of `text`, and gives what follows it.
    pub(super) fn escape(&mut self, text: &'p str) -> Result<&'p str, PatternError> {
        let after = &text[1..];
        let letter = after.chars().next();
        let tail = || &after[letter.map_or(0, char::len_utf8)..];
        match letter {
            Some('A' | 'z') => self.out.push_str(&text[..2]),
            Some('b' | 'B') => {
                let _ = write!(self.out, "(?-u:{})", &text[..2]);
            }
            Some('C') => return Err(PatternError::new("invalid escape sequence", &text[..2])),
            Some('Q') => {
                let (quoted, rest) = after[1..].split_once("\\E").unwrap_or((&after[1..], ""));
                for letter in quoted.chars() {
                    self.literal(letter);
                    self.push(Node::LEAF)?;
                }
                return Ok(rest);
            }
            _ => {
                if let Some((class, rest)) = self.named(text)? {
                    self.out.push_str(&class);
                    self.push(Node::LEAF)?;
                    return Ok(rest);
                }
                if let Some(class) = perl(text) {
                    let _ = write!(self.out, "[{class}]");
                } else {
                    let (letter, rest) = single(text)?;
                    self.literal(letter);
                    self.push(Node::LEAF)?;
                    return Ok(rest);
                }
            }
        }
        self.push(Node::LEAF)?;
        Ok(tail())
    }

    /// Writes a character that stands for itself.
    pub(super) fn literal(&mut self, letter: char) {
        if letter.is_control() || u32::from(letter) > 0x7f {
            let _ = write!(self.out, "\\x{{{:x}}}", u32::from(letter));
        } else if is_meta(letter) {
            self.out.push('\\');
            self.out.push(letter);
        } else {
            self.out.push(letter);
        }
    }

    /// `\pL`, `\P{Greek}`: the class, and what follows it.
    pub(super) fn named(&self, text: &'p str) -> Result<Option<(String, &'p str)>, PatternError> {
        const WHAT: &str = "invalid character class range";
        let Some(after) = text.strip_prefix("\\p").or_else(|| text.strip_prefix("\\P")) else {
            return Ok(None);
        };
        let Some(first) = after.chars().next() else {
            return Ok(None);
        };
        let (name, rest) = if first == '{' {
            after[1..].split_once('}').ok_or_else(|| PatternError::new(WHAT, text))?
        } else {
            after.split_at(first.len_utf8())
        };
        let (known, twice) = name.strip_prefix('^').map_or((name, false), |known| (known, true));
        if known.is_empty() || !(self.knows)(known) {
            return Err(PatternError::new(WHAT, until(text, rest)));
        }
        let negated = text.starts_with("\\P") != twice;
        Ok(Some((format!("\\{}{{{known}}}", if negated { 'P' } else { 'p' }), rest)))
    }
}

/// What has a meaning somewhere in the `regex` crate's syntax.
fn is_meta(letter: char) -> bool {
    matches!(
        letter,
        '\\' | '.'
            | '+'
            | '*'
            | '?'
            | '('
            | ')'
            | '|'
            | '['
            | ']'
            | '{'
            | '}'
            | '^'
            | '$'
            | '#'
            | '&'
            | '-'
            | '~'
    )
}

/// The characters of `\d` and the like, which are ASCII's.
pub(super) fn perl(text: &str) -> Option<&'static str> {
    Some(match text.get(..2)? {
        "\\d" => "0-9",
        "\\w" => "0-9A-Za-z_",
        "\\s" => "\\t\\n\\x0C\\r ",
        "\\D" => "^0-9",
        "\\W" => "^0-9A-Za-z_",
        "\\S" => "^\\t\\n\\x0C\\r ",
        _ => return None,
    })
}

/// An escape for one character, and what follows it.
pub(super) fn single(text: &str) -> Result<(char, &str), PatternError> {
    let mut rest = text[1..].chars();
    let Some(letter) = rest.next() else {
        return Err(PatternError::new("trailing backslash at end of expression", ""));
    };
    let octal = |rest: &str| rest.chars().next().and_then(|letter| letter.to_digit(8));
    let found = match letter {
        '1'..='7' if octal(rest.as_str()).is_none() => None,
        '0'..='7' => {
            let mut code = letter.to_digit(8).unwrap_or(0);
            for _ in 1..3 {
                let Some(digit) = octal(rest.as_str()) else { break };
                code = code * 8 + digit;
                rest.next();
            }
            char::from_u32(code)
        }
        'x' => hexadecimal(&mut rest),
        'a' => Some('\u{7}'),
        'f' => Some('\u{c}'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'v' => Some('\u{b}'),
        _ if letter.is_ascii() && !letter.is_ascii_alphanumeric() => Some(letter),
        _ => None,
    };
    match found {
        Some(letter) => Ok((letter, rest.as_str())),
        None => Err(PatternError::new("invalid escape sequence", until(text, rest.as_str()))),
    }
}

/// Two digits, or any number of them in braces; stops behind what is wrong.
fn hexadecimal(rest: &mut std::str::Chars<'_>) -> Option<char> {
    let first = rest.next()?;
    if first != '{' {
        let second = rest.next();
        return char::from_u32(first.to_digit(16)? * 16 + second?.to_digit(16)?);
    }
    let (mut code, mut digits) = (0_u32, 0);
    loop {
        let letter = rest.next()?;
        if letter == '}' {
            // Go takes what is no character, too; nothing is such a character.
            return if digits == 0 { None } else { char::from_u32(code) };
        }
        code = code * 16 + letter.to_digit(16)?;
        if code > u32::from(char::MAX) {
            return None;
        }
        digits += 1;
    }
}
