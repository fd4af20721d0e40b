//! Regular expressions in RE2's syntax as Go reads them: what is wrong with them in Go's words, and what they are in the
//! syntax of the `regex` crate.
//!
//! The two are close, but Go's classes are ASCII, don't nest and have no set operations, a brace that is no repetition is a
//! brace, `\Q..\E` quotes, and octal escapes are known. The rules are those of Go's `regexp/syntax`.

mod class;
mod escape;
mod group;

use std::fmt;

/// The most repetitions that may be asked for, those within each other multiplied.
const REPEAT_MAX: u64 = 1000;
/// The largest program that a pattern may become, in instructions.
const SIZE_MAX: u64 = (128 << 20) / 40;
/// How deep a pattern may nest.
const HEIGHT_MAX: u32 = 1000;

/// What is wrong with a pattern, displayed as Go does: `error parsing regexp: missing closing ): ...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError {
    what: &'static str,
    part: String,
}

impl PatternError {
    fn new(what: &'static str, part: &str) -> Self {
        Self { what, part: part.to_owned() }
    }

    /// That a pattern becomes too large a program, for whoever compiles it and has limits of its own.
    #[must_use]
    pub fn too_large(pattern: &str) -> Self {
        Self::new("expression too large", pattern)
    }
}

impl fmt::Display for PatternError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error parsing regexp: {}: `{}`", self.what, self.part)
    }
}

impl std::error::Error for PatternError {}

/// Writes a pattern in the syntax of the `regex` crate. `knows` tells whether a class of characters by name (`Greek`, `L`)
/// exists; it is asked for `\p{..}` only.
///
/// ```
/// use kcore::pattern::translate;
/// assert_eq!(translate(r"^\d+$", &|_| true).unwrap(), "^[0-9]+$");
/// let error = translate("a(b", &|_| true).unwrap_err();
/// assert_eq!(error.to_string(), "error parsing regexp: missing closing ): `a(b`");
/// ```
///
/// # Errors
/// The first thing that is wrong with it.
pub fn translate(pattern: &str, knows: &dyn Fn(&str) -> bool) -> Result<String, PatternError> {
    let out = String::with_capacity(pattern.len() + 16);
    let mut reader =
        Reader { pattern, rest: pattern, out, stack: Vec::new(), repeated: None, flags_at: None, knows };
    while let Some(letter) = reader.rest.chars().next() {
        reader.step(letter)?;
    }
    reader.collapse();
    if reader.stack.iter().any(|item| matches!(item, Item::Open { .. })) {
        return Err(PatternError::new("missing closing )", pattern));
    }
    Ok(reader.out)
}

/// What a part of a pattern comes to.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// Repetitions within each other, multiplied.
    repeats: u64,
    size: u64,
    height: u32,
}

impl Node {
    const LEAF: Self = Self { repeats: 1, size: 1, height: 1 };
}

/// What has been read and not been put together.
#[derive(Clone, Copy, Debug)]
enum Item {
    Open { captures: bool },
    Bar,
    Node(Node),
}

struct Reader<'p> {
    pattern: &'p str,
    rest: &'p str,
    out: String,
    stack: Vec<Item>,
    /// What has just been repeated, from its operator on.
    repeated: Option<&'p str>,
    /// Where flags have just been set in the output; what is repeated now stands before them.
    flags_at: Option<usize>,
    knows: &'p dyn Fn(&str) -> bool,
}

impl<'p> Reader<'p> {
    fn step(&mut self, letter: char) -> Result<(), PatternError> {
        let (before, repeated) = (self.rest, self.repeated.take());
        let flags_at = self.flags_at.take();
        let after = &before[letter.len_utf8()..];
        match letter {
            '(' if after.starts_with('?') => {
                let start = self.out.len();
                if self.flags(before)? {
                    self.flags_at = Some(flags_at.unwrap_or(start));
                }
                return Ok(());
            }
            '(' => {
                self.out.push('(');
                self.stack.push(Item::Open { captures: true });
            }
            '|' => {
                self.out.push('|');
                self.collapse();
                self.stack.push(Item::Bar);
            }
            ')' => self.close()?,
            '[' => {
                self.rest = self.class(before)?;
                return self.push(Node::LEAF);
            }
            '*' | '+' | '?' => {
                let range = (0, if letter == '?' { Some(1) } else { None });
                self.flags_at = flags_at;
                return self.repeat(before, after, range, repeated);
            }
            '{' => match repetition(after) {
                Some((least, most, tail)) => {
                    let fits = |count: u64| count <= REPEAT_MAX;
                    if !fits(least) || !most.is_none_or(|most| fits(most) && least <= most) {
                        return Err(PatternError::new("invalid repeat count", until(before, tail)));
                    }
                    self.flags_at = flags_at;
                    return self.repeat(before, tail, (least, most), repeated);
                }
                None => {
                    self.out.push_str("\\{");
                    self.push(Node::LEAF)?;
                }
            },
            '\\' => {
                self.rest = self.escape(before)?;
                return Ok(());
            }
            _ => {
                if letter == '}' || letter == ']' {
                    self.out.push('\\');
                }
                self.out.push(letter);
                self.push(Node::LEAF)?;
            }
        }
        self.rest = after;
        Ok(())
    }

    /// Adds a part; it may make the whole too large.
    fn push(&mut self, node: Node) -> Result<(), PatternError> {
        if node.size > SIZE_MAX {
            return Err(PatternError::too_large(self.pattern));
        }
        if node.height > HEIGHT_MAX {
            return Err(PatternError::new("expression nests too deeply", self.pattern));
        }
        self.stack.push(Item::Node(node));
        Ok(())
    }

    /// Puts the parts since the last mark together.
    fn collapse(&mut self) {
        let start = self.stack.iter().rposition(|item| !matches!(item, Item::Node(_))).map_or(0, |at| at + 1);
        let parts = self.stack.len() - start;
        let mut whole = Node { repeats: 1, size: 0, height: 0 };
        for item in self.stack.drain(start..) {
            if let Item::Node(node) = item {
                whole.repeats = whole.repeats.max(node.repeats);
                whole.size = whole.size.saturating_add(node.size);
                whole.height = whole.height.max(node.height);
            }
        }
        whole.height += u32::from(parts != 1);
        whole.size = whole.size.max(1);
        self.stack.push(Item::Node(whole));
    }

    /// Closes a group.
    fn close(&mut self) -> Result<(), PatternError> {
        self.collapse();
        let Some(open) = self.stack.iter().rposition(|item| matches!(item, Item::Open { .. })) else {
            return Err(PatternError::new("unexpected )", self.pattern));
        };
        self.out.push(')');
        let mut whole = Node { repeats: 1, size: 0, height: 0 };
        let mut captures = false;
        let mut bars = 0;
        for item in self.stack.drain(open..) {
            match item {
                Item::Open { captures: named } => captures = named,
                Item::Bar => bars += 1,
                Item::Node(node) => {
                    whole.repeats = whole.repeats.max(node.repeats);
                    whole.size = whole.size.saturating_add(node.size);
                    whole.height = whole.height.max(node.height);
                }
            }
        }
        whole.size = whole.size.saturating_add(bars);
        whole.height += u32::from(bars > 0);
        if captures {
            whole.size = whole.size.saturating_add(2);
            whole.height += 1;
        }
        self.push(whole)
    }

    /// A repetition that begins at `before`; `after` follows it, but may make it lazy.
    fn repeat(
        &mut self,
        before: &'p str,
        after: &'p str,
        (least, most): (u64, Option<u64>),
        repeated: Option<&'p str>,
    ) -> Result<(), PatternError> {
        let tail = after.strip_prefix('?').unwrap_or(after);
        if let Some(earlier) = repeated {
            return Err(PatternError::new("invalid nested repetition operator", until(earlier, tail)));
        }
        let Some(Item::Node(inner)) = self.stack.last().copied() else {
            return Err(PatternError::new("missing argument to repetition operator", until(before, tail)));
        };
        self.stack.pop();
        let mut whole = Node { height: inner.height + 1, ..inner };
        if before.starts_with('{') {
            whole.repeats = match most {
                Some(0) => 0,
                None if least == 0 => inner.repeats,
                most => most.unwrap_or(least).saturating_mul(inner.repeats.max(1)),
            };
            whole.size = match most {
                None => inner.size.saturating_mul(least.max(1)).saturating_add(2),
                Some(most) => inner.size.saturating_mul(most).saturating_add(most - least).max(1),
            };
        } else {
            whole.size = inner.size.saturating_add(2);
        }
        if whole.size > SIZE_MAX {
            return Err(PatternError::too_large(self.pattern));
        }
        let counted = least >= 2 || most.is_some_and(|most| most >= 2);
        if before.starts_with('{') && counted && whole.repeats > REPEAT_MAX {
            return Err(PatternError::new("invalid repeat count", until(before, tail)));
        }
        self.push(whole)?;
        let at = self.flags_at.take().unwrap_or(self.out.len());
        self.out.insert_str(at, until(before, tail));
        self.rest = tail;
        self.repeated = Some(before);
        Ok(())
    }
}

/// The part of a text before `tail`, which is its end.
fn until<'t>(text: &'t str, tail: &str) -> &'t str {
    text.get(..text.len() - tail.len()).unwrap_or_default()
}

/// `n}`, `n,}` or `n,m}` at the start of a text, and what follows it. Numbers that don't fit are as large as can be.
fn repetition(text: &str) -> Option<(u64, Option<u64>, &str)> {
    let (least, rest) = number(text)?;
    let (most, rest) = match rest.strip_prefix(',') {
        None => (Some(least), rest),
        Some(rest) if rest.starts_with('}') => (None, rest),
        Some(rest) => number(rest).map(|(most, rest)| (Some(most), rest))?,
    };
    Some((least, most, rest.strip_prefix('}')?))
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let digits = &text[..end];
    let good = !digits.is_empty() && (digits.len() == 1 || !digits.starts_with('0'));
    good.then(|| (digits.parse().unwrap_or(u64::MAX), &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pattern: &str) -> String {
        let knows = |name: &str| ["L", "Lu", "Greek"].contains(&name);
        translate(pattern, &knows).unwrap_or_else(|error| error.to_string())
    }

    /// Expected results: Go's `regexp/syntax/parse.go` and `parse_test.go`.
    #[test]
    fn faults_are_told_in_gos_words() {
        for (pattern, expected) in [
            ("(", "missing closing ): `(`"),
            ("a(b(c)", "missing closing ): `a(b(c)`"),
            (")", "unexpected ): `)`"),
            ("a)b", "unexpected ): `a)b`"),
            ("[a", "missing closing ]: `[a`"),
            ("x[a-", "missing closing ]: `[a-`"),
            ("[b-a]", "invalid character class range: `b-a`"),
            ("[[:word", "missing closing ]: `[[:word`"),
            ("[[:what:]]", "invalid character class range: `[:what:]`"),
            ("*", "missing argument to repetition operator: `*`"),
            ("a|*?", "missing argument to repetition operator: `*?`"),
            ("(+)", "missing argument to repetition operator: `+`"),
            ("(?i)?", "missing argument to repetition operator: `?`"),
            ("{1}", "missing argument to repetition operator: `{1}`"),
            ("a**", "invalid nested repetition operator: `**`"),
            ("a+?*", "invalid nested repetition operator: `+?*`"),
            ("a{2}{3}?", "invalid nested repetition operator: `{2}{3}?`"),
            ("a{1001}", "invalid repeat count: `{1001}`"),
            ("a{2,1}", "invalid repeat count: `{2,1}`"),
            ("a{1,99999999999999999999}", "invalid repeat count: `{1,99999999999999999999}`"),
            ("(a{100}){11}", "invalid repeat count: `{11}`"),
            ("((a{100}){100}){2}", "invalid repeat count: `{100}`"),
            ("\\", "trailing backslash at end of expression: ``"),
            ("[a\\", "trailing backslash at end of expression: ``"),
            ("\\q", "invalid escape sequence: `\\q`"),
            ("\\8", "invalid escape sequence: `\\8`"),
            ("\\1a", "invalid escape sequence: `\\1`"),
            ("\\xg0", "invalid escape sequence: `\\xg0`"),
            ("\\x{110000}", "invalid escape sequence: `\\x{110000`"),
            ("\\Ca", "invalid escape sequence: `\\C`"),
            ("[\\b]", "invalid escape sequence: `\\b`"),
            ("[a-\\d]", "invalid escape sequence: `\\d`"),
            ("(?=a)", "invalid or unsupported Perl syntax: `(?=`"),
            ("(?!a)", "invalid or unsupported Perl syntax: `(?!`"),
            ("(?<=a)b", "invalid named capture: `(?<=a)b`"),
            ("(?x)a", "invalid or unsupported Perl syntax: `(?x`"),
            ("(?i--s)", "invalid or unsupported Perl syntax: `(?i--`"),
            ("(?", "invalid or unsupported Perl syntax: `(?`"),
            ("(?P<n", "invalid named capture: `(?P<n`"),
            ("(?P<a b>x)", "invalid named capture: `(?P<a b>`"),
            ("(?<>x)", "invalid named capture: `(?<>`"),
            ("\\pX", "invalid character class range: `\\pX`"),
            ("a\\p{Klingon}", "invalid character class range: `\\p{Klingon}`"),
            ("[\\P{x]", "invalid character class range: `\\P{x]`"),
            ("((((a{10}){10}){10}){10}){10}", "invalid repeat count: `{10}`"),
        ] {
            assert_eq!(told(pattern), format!("error parsing regexp: {expected}"), "{pattern}");
        }
        let deep = "(".repeat(1001) + &")".repeat(1001);
        assert!(told(&deep).contains("expression nests too deeply"));
    }

    /// Expected results: the syntax of the `regex` crate, by hand.
    #[test]
    fn patterns_are_translated() {
        for (pattern, expected) in [
            ("", ""),
            ("a{,2}b{x}{01}", "a\\{,2\\}b\\{x\\}\\{01\\}"),
            ("a{2,}?b{0}c*?", "a{2,}?b{0}c*?"),
            ("\\d\\W[\\d\\S]", "[0-9][^0-9A-Za-z_][0-9[^\\t\\n\\x0C\\r ]]"),
            ("\\bx\\B", "(?-u:\\b)x(?-u:\\B)"),
            ("\\Qa.b\\E*\\Q(", "a\\.b*\\("),
            ("[]a-]", "[\\]a\\-]"),
            ("[^-&&~~[a]", "[^\\-\\&\\&\\~\\~\\[a]"),
            ("[[:alpha:][:^digit:]]", "[[:alpha:][:^digit:]]"),
            ("(?P<9>a)(?<b>c)", "(a)(c)"),
            ("(?i)a(?-s:b)|(?U)c", "(?i)a(?-s:b)|(?U)c"),
            ("a(?i)(?s)*b(?s)", "a*(?i)(?s)b(?s)"),
            ("\\012\\0\\x41\\x{1f600}\\a\\v", "\\x{a}\\x{0}A\\x{1f600}\\x{7}\\x{b}"),
            ("\\_\\.\\-\\/\\\"", "_\\.\\-/\""),
            ("\\pL\\P{Greek}\\p{^Lu}[\\pL]", "\\p{L}\\P{Greek}\\P{Lu}[\\p{L}]"),
            ("\\Aa\\z", "\\Aa\\z"),
            ("^*$+", "^*$+"),
            ("a]}", "a\\]\\}"),
        ] {
            assert_eq!(told(pattern), expected, "{pattern}");
        }
    }
}
