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

/// How much of what is no token is skipped: an unfinished string up to its line's end, else one character.
fn unreadable(rest: &str) -> usize {
    if rest.starts_with(['"', '\'']) {
        return rest.find('\n').unwrap_or(rest.len());
    }
    rest.chars().next().map_or(1, char::len_utf8)
}

fn token(rest: &str) -> Option<(Tok, usize)> {
    let bytes = rest.as_bytes();
    if let Some(found) = string(rest) {
        return Some(found);
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

/// A string or bytes literal at the beginning of `rest`.
fn string(rest: &str) -> Option<(Tok, usize)> {
    let bytes = rest.as_bytes();
    let is_bytes = matches!(bytes[0], b'b' | b'B');
    let mut at = usize::from(is_bytes);
    let raw = matches!(bytes.get(at), Some(b'r' | b'R'));
    at += usize::from(raw);
    let quote = *bytes.get(at).filter(|byte| matches!(byte, b'"' | b'\''))?;
    let triple = bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote);
    let tok = if is_bytes { Tok::Bytes } else { Tok::Str };
    let mut at = at + if triple { 3 } else { 1 };
    loop {
        let byte = *bytes.get(at)?;
        if byte == quote {
            if !triple {
                return Some((tok, at + 1));
            }
            if bytes.get(at + 1) == Some(&quote) && bytes.get(at + 2) == Some(&quote) {
                return Some((tok, at + 3));
            }
        }
        if byte == b'\\' && !raw {
            at += 1;
        } else if matches!(byte, b'\n' | b'\r') && !triple {
            return None;
        }
        at += 1;
    }
}
