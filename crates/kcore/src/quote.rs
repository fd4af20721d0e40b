//! Texts as Go writes them, of which upstream's messages are made.

use std::fmt::{self, Write as _};

/// A text in quotes, as `strconv.Quote` (`%q`) writes it.
///
/// ```
/// assert_eq!(kcore::quote::Quoted("a\"b\u{7f}\u{200b}é").to_string(), r#""a\"b\x7f\u200bé""#);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Quoted<'t>(pub &'t str);

/// Whether Go prints a character as it is: letters, marks, numbers, punctuation, symbols, and the space.
fn is_printable(letter: char) -> bool {
    if letter.is_ascii() {
        return (' '..='~').contains(&letter);
    }
    // After another character, combining marks are not escaped for being such.
    let mut pair = String::from("a");
    pair.push(letter);
    pair.escape_debug().nth(1) != Some('\\')
}

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for letter in self.0.chars() {
            match letter {
                '"' | '\\' => write!(f, "\\{letter}")?,
                '\u{7}' => f.write_str("\\a")?,
                '\u{8}' => f.write_str("\\b")?,
                '\u{c}' => f.write_str("\\f")?,
                '\n' => f.write_str("\\n")?,
                '\r' => f.write_str("\\r")?,
                '\t' => f.write_str("\\t")?,
                '\u{b}' => f.write_str("\\v")?,
                _ if is_printable(letter) => f.write_char(letter)?,
                _ => match u32::from(letter) {
                    code @ ..0x80 => write!(f, "\\x{code:02x}")?,
                    code @ ..0x10000 => write!(f, "\\u{code:04x}")?,
                    code => write!(f, "\\U{code:08x}")?,
                },
            }
        }
        f.write_char('"')
    }
}

/// A text as `json.Marshal` writes it, which escapes what HTML knows.
///
/// ```
/// assert_eq!(kcore::quote::json_text("a<b>\u{1}é"), "\"a\\u003cb\\u003e\\u0001é\"");
/// ```
#[must_use]
pub fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => {
                out.push('\\');
                out.push(letter);
            }
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\0'..='\u{1f}' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(letter)));
            }
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: a kube-apiserver 1.36 that refuses such labels and paths.
    #[test]
    fn texts_are_quoted_as_go_does() {
        let text = "x\u{e9}\u{301}\u{200b}\u{1}\u{7f}\t\n'\"\\\u{2028}\u{1f600}\u{feff}\u{a0}\u{ad}";
        let expected =
            "\"x\u{e9}\u{301}\\u200b\\x01\\x7f\\t\\n'\\\"\\\\\\u2028\u{1f600}\\ufeff\\u00a0\\u00ad\"";
        assert_eq!(Quoted(text).to_string(), expected);
        let expected = "\"/b\\u003c\\u0026\\u003eé\\u2028\\u0001\\\"'\"";
        assert_eq!(json_text("/b<&>é\u{2028}\u{1}\"'"), expected);
    }
}
