//! YAML as upstream reads it: the tree that it stands for, and the keys that stand twice in it.
//!
//! The text is first put together to nodes that know their lines, then read as `go.yaml.in/yaml/v2` does: YAML 1.1's words
//! for scalars, merge keys, and a limit on what aliases may unfold to. Only the first document counts.

mod scalar;

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use granit_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::{Map, Value};

use self::scalar::{Scalar, resolve};

/// How deep a document may be nested, as deep as one of JSON.
const DEPTH_MAX: usize = kschema::json::DEPTH_MAX;
/// How many nodes may be read before aliases may bring only a part of them.
const ALIASES_FREE_NODES: usize = 400_000;
/// How many nodes may be read before aliases may bring only a tenth of them.
const ALIASES_FEW_NODES: usize = 4_000_000;

/// A document.
#[derive(Debug, PartialEq)]
pub(crate) struct Document {
    /// What it stands for; of keys that stand twice the last counts.
    pub(crate) value: Value,
    /// The keys that stand twice, with their lines, in upstream's words.
    pub(crate) twice: Vec<String>,
}

/// Reads the first document of a text.
///
/// # Errors
/// When it is no YAML, or has something that JSON has not.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| format!("yaml: {error}"))?;
    let Some((nodes, root)) = compose(text)? else {
        return Ok(Document { value: Value::Null, twice: Vec::new() });
    };
    let mut reader = Reader {
        nodes: &nodes,
        twice: Vec::new(),
        open: HashSet::new(),
        read: 0,
        aliased: 0,
        alias_depth: 0,
    };
    let value = reader.value(root, 0)?;
    Ok(Document { value, twice: reader.twice })
}

/// What is told of keys that stand twice where they are refused.
pub(crate) fn faults(lines: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))
}

type Id = usize;

struct Node<'t> {
    /// The line where it begins, from one.
    line: usize,
    content: Content<'t>,
}

enum Content<'t> {
    Scalar {
        text: Cow<'t, str>,
        plain: bool,
        tag: Option<Cow<'t, str>>,
    },
    List(Vec<Id>),
    /// Keys and values in turn.
    Map(Vec<Id>),
    Alias(Id),
}

/// The short name of a tag: that of YAML's own, or all of it.
fn tag_name<'t>(tag: Cow<'t, Tag>) -> Cow<'t, str> {
    match tag.core_suffix() {
        Some(name) => name.to_owned().into(),
        None => tag.original().into(),
    }
}

/// The nodes of the first document, and which of them is the whole.
fn compose(text: &str) -> Result<Option<(Vec<Node<'_>>, Id)>, String> {
    let mut nodes: Vec<Node<'_>> = Vec::new();
    let mut anchors: HashMap<usize, Id> = HashMap::new();
    let mut open: Vec<Id> = Vec::new();
    let mut before = 1;
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| format!("yaml: line {}: {}", error.marker().line(), error.info()))?;
        // A block scalar's text begins below the `|` or `>` where it begins for upstream.
        let is_block = matches!(event, Event::Scalar(_, ScalarStyle::Literal | ScalarStyle::Folded, ..));
        let line = if is_block { before } else { span.start.line() };
        before = span.end.line();
        let (anchor, content, opens) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                (anchor, Content::Scalar { text, plain, tag: tag.map(tag_name) }, false)
            }
            Event::SequenceStart(_, anchor, _) => (anchor, Content::List(Vec::new()), true),
            Event::MappingStart(_, anchor, _) => (anchor, Content::Map(Vec::new()), true),
            Event::Alias(anchor) => {
                let known = anchors.get(&anchor).ok_or("yaml: unknown anchor referenced")?;
                (0, Content::Alias(*known), false)
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let ended = open.pop();
                if open.is_empty() {
                    return Ok(ended.map(|root| (nodes, root)));
                }
                continue;
            }
            Event::DocumentEnd => return Ok(None),
            _ => continue,
        };
        let id = nodes.len();
        nodes.push(Node { line, content });
        if anchor != 0 {
            anchors.insert(anchor, id);
        }
        match open.last().map(|parent| &mut nodes[*parent].content) {
            Some(Content::List(items) | Content::Map(items)) => items.push(id),
            _ if !opens => return Ok(Some((nodes, id))),
            _ => {}
        }
        if opens {
            if open.len() >= DEPTH_MAX {
                return Err(format!("yaml: exceeded max depth of {DEPTH_MAX}"));
            }
            open.push(id);
        }
    }
    Ok(None)
}

struct Reader<'n, 't> {
    nodes: &'n [Node<'t>],
    twice: Vec<String>,
    /// The aliases that are being unfolded.
    open: HashSet<Id>,
    /// How many nodes have been read, and how many of them because of an alias.
    read: usize,
    aliased: usize,
    alias_depth: usize,
}

/// A map that is being read.
#[derive(Default)]
struct Entries {
    map: Map<String, Value>,
    keys: HashSet<Scalar>,
}

impl Reader<'_, '_> {
    fn count(&mut self) -> Result<(), String> {
        self.read += 1;
        self.aliased += usize::from(self.alias_depth > 0);
        let percent = match self.read {
            ..=ALIASES_FREE_NODES => 99,
            ALIASES_FEW_NODES.. => 10,
            read => 99 - 89 * (read - ALIASES_FREE_NODES) / (ALIASES_FEW_NODES - ALIASES_FREE_NODES),
        };
        if self.aliased > 100 && self.read > 1_000 && self.aliased * 100 > self.read * percent {
            return Err("yaml: document contains excessive aliasing".to_owned());
        }
        Ok(())
    }

    fn value(&mut self, id: Id, depth: usize) -> Result<Value, String> {
        self.count()?;
        if depth > DEPTH_MAX {
            return Err(format!("yaml: exceeded max depth of {DEPTH_MAX}"));
        }
        match &self.nodes[id].content {
            Content::Scalar { text, plain, tag } => resolve(text, *plain, tag.as_deref())?.into_value(),
            Content::List(items) => {
                let items = items.iter().map(|item| self.value(*item, depth + 1));
                items.collect::<Result<_, _>>().map(Value::Array)
            }
            Content::Map(_) => {
                let mut entries = Entries::default();
                self.entries(id, &mut entries, depth)?;
                Ok(Value::Object(entries.map))
            }
            Content::Alias(target) => self.unfold(*target, |reader| reader.value(*target, depth + 1)),
        }
    }

    fn unfold<T>(
        &mut self,
        target: Id,
        read: impl FnOnce(&mut Self) -> Result<T, String>,
    ) -> Result<T, String> {
        if !self.open.insert(target) {
            return Err("yaml: anchor value contains itself".to_owned());
        }
        self.alias_depth += 1;
        let read = read(self);
        self.alias_depth -= 1;
        self.open.remove(&target);
        read
    }

    /// Adds the entries of a map to those that are there.
    fn entries(&mut self, id: Id, into: &mut Entries, depth: usize) -> Result<(), String> {
        let nodes = self.nodes;
        let Content::Map(pairs) = &nodes[id].content else {
            return Err("yaml: map merge requires map or sequence of maps as the value".to_owned());
        };
        for pair in pairs.chunks_exact(2) {
            let (key, value) = (pair[0], pair[1]);
            if self.is_merge(key) {
                self.merge(value, into, depth + 1)?;
                continue;
            }
            let key = self.key(key)?;
            let found = self.value(value, depth + 1)?;
            if !into.keys.insert(key.clone()) && self.twice.len() < kschema::check::FIELD_ERRORS_MAX {
                self.twice.push(format!("line {}: key {key} already set in map", nodes[value].line));
            }
            into.map.insert(key.into_key()?, found);
        }
        Ok(())
    }

    fn is_merge(&self, key: Id) -> bool {
        match &self.nodes[key].content {
            Content::Scalar { text, plain, tag } => text == "<<" && *plain && tag.is_none(),
            _ => false,
        }
    }

    fn key(&mut self, id: Id) -> Result<Scalar, String> {
        self.count()?;
        match &self.nodes[id].content {
            Content::Scalar { text, plain, tag } => resolve(text, *plain, tag.as_deref()),
            Content::Alias(target) => match &self.nodes[*target].content {
                Content::Scalar { text, plain, tag } => resolve(text, *plain, tag.as_deref()),
                _ => Err("yaml: invalid map key".to_owned()),
            },
            Content::List(_) | Content::Map(_) => Err("yaml: invalid map key".to_owned()),
        }
    }

    /// `<<`: the entries of another map, or of several, of which the first counts most.
    fn merge(&mut self, id: Id, into: &mut Entries, depth: usize) -> Result<(), String> {
        self.count()?;
        if depth > DEPTH_MAX {
            return Err(format!("yaml: exceeded max depth of {DEPTH_MAX}"));
        }
        let nodes = self.nodes;
        match &nodes[id].content {
            Content::Alias(target) => self.unfold(*target, |reader| reader.entries(*target, into, depth)),
            Content::List(items) => {
                for item in items.iter().rev() {
                    match &nodes[*item].content {
                        Content::Alias(target) => {
                            self.unfold(*target, |reader| reader.entries(*target, into, depth))?;
                        }
                        _ => self.entries(*item, into, depth)?,
                    }
                }
                Ok(())
            }
            _ => self.entries(id, into, depth),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What kube-apiserver 1.36 makes of these texts; the words for scalars are those of `go.yaml.in/yaml/v2`.
    #[test]
    fn texts_are_read_as_upstream_reads_them() {
        for (text, expected) in [
            ("", json!(null)),
            (
                "a: 1\nb: '1'\nc: yes\nd: \"no\"\ne: ~\nf:\n",
                json!({"a": 1, "b": "1", "c": true, "d": "no", "e": null, "f": null}),
            ),
            (
                "[0x1F, 0o17, 017, 08, 1_000, -5, +5, 0b11, 1e3, .5, 1.0]",
                json!([31, 15, 15, 8, 1000, -5, 5, 3, 1000, 0.5, 1]),
            ),
            (
                "[2026-01-02, 12:30, 1.2.3, v1, '', y, off, on]",
                json!(["2026-01-02", "12:30", "1.2.3", "v1", "", true, false, true]),
            ),
            ("[!!str 1, !!int \"7\", !!float 1, !custom x]", json!(["1", 7, 1, "x"])),
            ("[18446744073709551615, 99999999999999999999]", json!([18_446_744_073_709_551_615_u64, 1e20])),
            ("1: a\ntrue: b\n1.5: c\n", json!({"1": "a", "true": "b", "1.5": "c"})),
            (
                "a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\ne: *x\n",
                json!({"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}, "e": {"b": 1, "c": 2}}),
            ),
            (
                "a: &x {b: 1}\nc: &y {b: 2, d: 3}\ne:\n  <<: [*x, *y]\n",
                json!({"a": {"b": 1}, "c": {"b": 2, "d": 3}, "e": {"b": 1, "d": 3}}),
            ),
            ("a: |\n  x\n  y\nb: >-\n  x\n  y\n", json!({"a": "x\ny\n", "b": "x y"})),
            ("a: 1\n---\na: 2\n", json!({"a": 1})),
            ("{\"a\": [1, {\"b\": null}]}", json!({"a": [1, {"b": null}]})),
        ] {
            assert_eq!(parse(text.as_bytes()).map(|document| document.value), Ok(expected), "{text}");
        }
    }

    /// Asked of kube-apiserver 1.36 by `fieldValidation=Strict` with these texts as patches to apply.
    #[test]
    fn keys_that_stand_twice_are_told_with_the_lines_of_their_values() {
        for (text, expected) in [
            ("a: 1\nb: 2\na: 3\n", vec!["line 3: key \"a\" already set in map"]),
            (
                "data:\n  a: 1\n  a: 2\ndata:\n  b: 2\n",
                vec!["line 3: key \"a\" already set in map", "line 5: key \"data\" already set in map"],
            ),
            ("1: a\n1: b\n\"1\": c\n", vec!["line 2: key 1 already set in map"]),
            (
                "true: a\ntrue:\n  b\nyes: c\n",
                vec!["line 3: key true already set in map", "line 4: key true already set in map"],
            ),
            (
                "a: &x {b: 1}\nc:\n  <<: *x\n  b: 2\n\"q\\\"é\\n\": ''\n\"q\\\"é\\n\":\n",
                vec!["line 4: key \"b\" already set in map", "line 6: key \"q\\\"é\\n\" already set in map"],
            ),
            ("a: {b: 1,\n b: 2}\n", vec!["line 2: key \"b\" already set in map"]),
            (
                "a: |\n  x\na: |\n  y\nb: 1\nb:\nc:\nc:\n\n  d\n",
                vec![
                    "line 3: key \"a\" already set in map",
                    "line 6: key \"b\" already set in map",
                    "line 10: key \"c\" already set in map",
                ],
            ),
            (
                "- {a: 1, a: 2}\n- b:\n  - x\n  b:\n  - y\n",
                vec!["line 1: key \"a\" already set in map", "line 5: key \"b\" already set in map"],
            ),
            ("{\"a\":{\"b\":1,\"b\":2}}", vec!["line 1: key \"b\" already set in map"]),
        ] {
            assert_eq!(
                parse(text.as_bytes()).map(|document| document.twice),
                Ok(expected.into_iter().map(str::to_owned).collect()),
                "{text}"
            );
        }
    }

    /// Every kind in both texts: an object made up from its schema is the same after the way there and back.
    #[test]
    fn every_kind_survives_the_way_through_yaml() {
        let catalog = kschema::builtin::catalog();
        let mut count = 0;
        for (group, version, kind, id) in kschema::builtin::kinds(&catalog) {
            let object = kschema::testing::object_of(&catalog, (group, version, kind), id, 7);
            for text in [serde_saphyr::to_string(&object).unwrap(), object.to_string()] {
                let document = parse(text.as_bytes());
                assert_eq!(
                    document,
                    Ok(Document { value: object.clone(), twice: Vec::new() }),
                    "{kind}: {text}"
                );
            }
            count += 1;
        }
        assert!(count > 200, "only {count} kinds");
    }

    proptest::proptest! {
        #[test]
        fn no_text_breaks_the_reader(text in "([a-z0-9{}\\[\\]:,&*!|>'\"# \\n\\-~<.]|\\PC){0,60}") {
            let _ = parse(text.as_bytes());
        }
    }

    #[test]
    fn what_is_no_yaml_is_refused() {
        let bomb: String = (1..12).fold("a0: &a0 [x]\n".to_owned(), |text, index| {
            let aliases = vec![format!("*a{}", index - 1); 10].join(", ");
            format!("{text}a{index}: &a{index} [{aliases}]\n")
        });
        let deep = "[".repeat(DEPTH_MAX + 1);
        for (text, expected) in [
            ("a: {b: c\n", "yaml: line "),
            ("a: *b\n", "yaml: "),
            ("? [a]\n: b\n", "yaml: invalid map key"),
            ("~: a\n", "unsupported map key"),
            ("a: .inf\n", "json: unsupported value: +Inf"),
            ("a: !!int x\n", "yaml: cannot decode !!str `x` as a !!int"),
            ("a: &a [*a]\n", "yaml: anchor value contains itself"),
            ("<<: 1\n", "yaml: map merge requires map or sequence of maps as the value"),
            (&bomb, "yaml: document contains excessive aliasing"),
            (&deep, "yaml: "),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
