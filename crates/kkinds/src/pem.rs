//! PEM blocks as Go's `encoding/pem` finds them: what is between blocks, and what is no block, is passed over.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{GeneralPurpose, GeneralPurposeConfig},
};

const BEGIN: &str = "\n-----BEGIN ";
const END: &str = "\n-----END ";
const DASHES: &str = "-----";

/// Go does not look at the bits that are left over after the last byte.
const BASE64: GeneralPurpose =
    GeneralPurpose::new(&STANDARD, GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true));

/// One block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block<'a> {
    /// What stands behind `BEGIN`.
    pub(crate) kind: &'a str,
    /// Whether there are headers before the content.
    pub(crate) headers: bool,
    /// The content, decoded.
    pub(crate) bytes: Vec<u8>,
}

/// The blocks of a text, in order.
#[derive(Debug)]
pub(crate) struct Blocks<'a>(&'a str);

/// Reads the blocks of a text.
pub(crate) const fn blocks(text: &str) -> Blocks<'_> {
    Blocks(text)
}

/// Splits the first line off, without the white space at its end.
fn line(text: &str) -> (&str, &str) {
    let (line, rest) = text.split_once('\n').unwrap_or((text, ""));
    (line.trim_end_matches([' ', '\t', '\r']), rest)
}

/// What one attempt to read a block came to.
enum Attempt<'a> {
    /// A block, and what follows it.
    Found(Block<'a>, &'a str),
    /// No block; the next may start here.
    Passed(&'a str),
    /// No block, and none will follow.
    Over,
}

fn attempt(text: &str) -> Attempt<'_> {
    let Some(rest) = text.strip_prefix(&BEGIN[1..]).or_else(|| text.split_once(BEGIN).map(|(_, rest)| rest))
    else {
        return Attempt::Over;
    };
    let (first, mut rest) = line(rest);
    let Some(kind) = first.strip_suffix(DASHES) else {
        return Attempt::Passed(rest);
    };
    let mut headers = false;
    loop {
        if rest.is_empty() {
            return Attempt::Over;
        }
        let (first, next) = line(rest);
        if !first.contains(':') {
            break;
        }
        (headers, rest) = (true, next);
    }
    // Only a block without headers may end at once.
    let (content, trailer) = match rest.strip_prefix(&END[1..]).filter(|_| !headers) {
        Some(trailer) => ("", trailer),
        None => match rest.split_once(END) {
            Some(parts) => parts,
            None => return Attempt::Over,
        },
    };
    let ended = trailer.strip_prefix(kind).and_then(|rest| rest.strip_prefix(DASHES));
    let Some(("", after)) = ended.map(line) else {
        return Attempt::Passed(trailer);
    };
    let content: Vec<u8> =
        content.bytes().filter(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n')).collect();
    match BASE64.decode(content) {
        Ok(bytes) => Attempt::Found(Block { kind, headers, bytes }, after),
        Err(_) => Attempt::Passed(trailer),
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        let mut text = self.0;
        loop {
            match attempt(text) {
                Attempt::Found(block, after) => {
                    self.0 = after;
                    return Some(block);
                }
                Attempt::Passed(after) => text = after,
                Attempt::Over => {
                    self.0 = "";
                    return None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::blocks;

    /// <https://pkg.go.dev/encoding/pem#Decode>
    #[test]
    fn blocks_are_found_where_go_finds_them() {
        for (text, expected) in [
            ("", ""),
            ("-----BEGIN A-----\nYQ==\n-----END A-----", "A a"),
            ("before\n-----BEGIN A-----\r\nYQ\n==\n-----END A-----  \nafter", "A a"),
            ("before -----BEGIN A-----\nYQ==\n-----END A-----\n", ""),
            ("-----BEGIN A-----\n-----END A-----\n", "A "),
            ("-----BEGIN A-----\nKey: value\n\nYQ==\n-----END A-----\n", "A+ a"),
            ("-----BEGIN A-----\nKey: value\n-----END A-----\n", ""),
            ("-----BEGIN A-----\nYQ==\n-----END B-----\n", ""),
            ("-----BEGIN A-----\nYQ==\n-----END A-----x\n", ""),
            ("-----BEGIN A-----\nYQ\n-----END A-----\n-----BEGIN B-----\nYg==\n-----END B-----\n", "B b"),
            ("-----BEGIN A\nYQ==\n-----BEGIN B-----\nYg==\n-----END B-----\n", "B b"),
            (
                "-----BEGIN A-----\nYQ==\n-----END A-----\n\n-----BEGIN B-----\nYg==\n-----END B-----\n",
                "A a, B b",
            ),
        ] {
            let found: Vec<String> = blocks(text)
                .map(|block| {
                    let (mark, content) =
                        (if block.headers { "+" } else { "" }, String::from_utf8_lossy(&block.bytes));
                    format!("{}{mark} {content}", block.kind)
                })
                .collect();
            assert_eq!(found.join(", "), expected, "{text:?}");
        }
    }
}
