//! From text to tokens.

use crate::error::CompileErrors;

/// What a token is; names, numbers and strings are read from the source again where they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tok {
    Ident,
    /// An identifier between backquotes.
    Quoted,
    Int,
    Uint,
    Float,
    Str,
    Bytes,
    /// A keyword or a mark.
    Mark(&'static str),
    End,
}

/// A token and its bytes in the source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token {
    pub(crate) tok: Tok,
    pub(crate) start: u32,
    pub(crate) end: u32,
}

/// Longer marks before their prefixes.
const MARKS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%",
];
const KEYWORDS: &[&str] = &["in", "true", "false", "null"];

/// Splits `source` into tokens, the last of which is [`Tok::End`]; what is no token is reported and skipped.
pub(crate) fn tokens(source: &str, errors: &mut CompileErrors) -> Vec<Token> {
    let mut tokens = Vec::with_capacity(source.len() / 3 + 1);
    let bytes = source.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &source[at..];
        let skipped = blank(rest);
        if skipped > 0 {
            at += skipped;
            continue;
        }
        match token(rest) {
            Some((tok, length)) => {
                tokens.push(Token { tok, start: at as u32, end: (at + length) as u32 });
                at += length;
            }
            None => {
                let length = unreadable(rest);
                errors.report(
                    at as u32,
                    format!("Syntax error: token recognition error at: '{}'", &rest[..length]),
                );
                at += length;
            }
        }
    }
    tokens.push(Token { tok: Tok::End, start: at as u32, end: at as u32 });
    tokens
}

/// The length of the white space or comment that `rest` begins with.
fn blank(rest: &str) -> usize {
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    rest.len() - rest.trim_start_matches(['\t', ' ', '\r', '\n', '\u{c}']).len()
}

/// How much of what is no token is skipped: a string up to what it can't contain, half of a mark together with the
/// character after it, else one character.
fn unreadable(rest: &str) -> usize {
    let through = |index: usize| rest.char_indices().nth(index).map_or(rest.len(), |(at, _)| at);
    if rest.starts_with(['|', '&', '=']) {
        return through(2);
    }
    let quote = rest.trim_start_matches(['b', 'B', 'r', 'R']);
    if quote.starts_with(['"', '\'']) {
        return match string(rest) {
            Err(length) if length > 0 => length,
            _ => rest.find('\n').unwrap_or(rest.len()),
        };
    }
    through(1)
}

fn token(rest: &str) -> Option<(Tok, usize)> {
    let bytes = rest.as_bytes();
    match string(rest) {
        Ok(Some(found)) => return Some(found),
        Err(_) => return None,
        Ok(None) => {}
    }
    let first = bytes[0];
    if first.is_ascii_alphabetic() || first == b'_' {
        let length = run(bytes, |byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let keyword = KEYWORDS.iter().find(|keyword| **keyword == &rest[..length]);
        return Some((keyword.map_or(Tok::Ident, |keyword| Tok::Mark(keyword)), length));
    }
    if first.is_ascii_digit() || (first == b'.' && bytes.get(1).is_some_and(u8::is_ascii_digit)) {
        return Some(number(bytes));
    }
    if first == b'`' {
        let inner = run(&bytes[1..], |byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'/' | b' ')
        });
        return (inner > 0 && bytes.get(inner + 1) == Some(&b'`')).then_some((Tok::Quoted, inner + 2));
    }
    MARKS.iter().find(|mark| rest.starts_with(**mark)).map(|mark| (Tok::Mark(mark), mark.len()))
}

fn run(bytes: &[u8], is: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|byte| !is(*byte)).unwrap_or(bytes.len())
}

fn number(bytes: &[u8]) -> (Tok, usize) {
    let unsigned = |length: usize| match bytes.get(length) {
        Some(b'u' | b'U') => (Tok::Uint, length + 1),
        _ => (Tok::Int, length),
    };
    if bytes.starts_with(b"0x") && bytes.get(2).is_some_and(u8::is_ascii_hexdigit) {
        return unsigned(2 + run(&bytes[2..], |byte| byte.is_ascii_hexdigit()));
    }
    let digits = |from: usize| from + run(&bytes[from..], |byte| byte.is_ascii_digit());
    let whole = digits(0);
    let mut length = whole;
    if bytes.get(length) == Some(&b'.') && bytes.get(length + 1).is_some_and(u8::is_ascii_digit) {
        length = digits(length + 1);
    }
    if matches!(bytes.get(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
        if bytes.get(length + 1 + sign).is_some_and(u8::is_ascii_digit) {
            length = digits(length + 1 + sign);
        }
    }
    if length == whole { unsigned(length) } else { (Tok::Float, length) }
}

/// A string or bytes literal at the beginning of `rest`, if there is one; or the length of the beginning that can't be
/// continued to one.
fn string(rest: &str) -> Result<Option<(Tok, usize)>, usize> {
    let bytes = rest.as_bytes();
    let is_bytes = matches!(bytes[0], b'b' | b'B');
    let mut at = usize::from(is_bytes);
    let raw = matches!(bytes.get(at), Some(b'r' | b'R'));
    at += usize::from(raw);
    let Some(quote) = bytes.get(at).copied().filter(|byte| matches!(byte, b'"' | b'\'')) else {
        return Ok(None);
    };
    let triple = bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote);
    let tok = if is_bytes { Tok::Bytes } else { Tok::Str };
    let mut at = at + if triple { 3 } else { 1 };
    loop {
        let Some(byte) = bytes.get(at).copied() else {
            return Err(rest.len());
        };
        if byte == quote {
            if !triple {
                return Ok(Some((tok, at + 1)));
            }
            if bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote) {
                return Ok(Some((tok, at + 3)));
            }
        }
        if byte == b'\\' && !raw {
            at += escape(&rest[at..]).map_err(|length| at + length)?;
        } else if matches!(byte, b'\n' | b'\r') && !triple {
            return Err(at);
        } else {
            at += 1;
        }
    }
}

/// The length of the escape at the beginning of `rest`, or of what can't be continued to one.
fn escape(rest: &str) -> Result<usize, usize> {
    let letter = rest[1..].chars().next().ok_or(rest.len())?;
    let (start, length, radix) = match letter {
        'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`' => return Ok(2),
        'x' | 'X' => (2, 2, 16),
        'u' => (2, 4, 16),
        'U' => (2, 8, 16),
        '0'..='3' => (1, 3, 8),
        other => return Err(1 + other.len_utf8()),
    };
    for (index, digit) in rest[start..].chars().take(length).enumerate() {
        if !digit.is_digit(radix) {
            return Err(start + index + digit.len_utf8());
        }
    }
    if rest.len() < start + length { Err(rest.len()) } else { Ok(start + length) }
}
