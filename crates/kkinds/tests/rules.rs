//! The rules of every kind as tables of cases, in `rules/*.txt`: an object, what is changed about it, and what comes of it.
//!
//! A file starts with the sources of its facts, then has blocks, separated by empty lines:
//! ```text
//! kind pods ~core.v1.Pod           which resource and definition the following blocks are about
//! {"metadata": ..., "spec": ...}   the object that the cases start from
//!
//! create a container needs a name  what is done (create, update, status, or another subresource), and what it shows
//! /spec/containers/0/name ""       sets a field (no value: removes it)
//! old /spec/nodeName "a"           for changes: sets a field of the old object, too
//! > spec.containers[0].name: Required value      an expected fault, in this order; its further lines are source or a difference
//! ! metadata.name: ...             an expected warning
//! = /spec/dnsPolicy "ClusterFirst" the field's value in the end (no value: it is missing)
//! ```
//! Where Go walks a map, upstream's faults come in any order; here they come in the order of the keys. A real server also tells
//! what other parts of it find, such as admission.
//!
//! `UPDATE_RULES=1 cargo test -p kkinds --test rules` writes what comes of each case into the files, to be reviewed as a diff.

use std::{fmt::Write as _, fs, path::Path, sync::Arc};

use kkinds::{
    ServiceAddresses,
    strategies::{Strategies, builtin},
};
use kschema::{Catalog, Type, check::check, strategy::Strategy};
use serde_json::{Value, json};

/// A clock that stands still at 2026-01-02T03:04:05Z.
#[derive(Debug)]
struct Always;

impl kcore::Clock for Always {
    fn now(&self) -> jiff::Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("a time")
    }
}

struct Kind {
    strategy: Arc<dyn Strategy>,
    ty: Type,
    base: Value,
}

#[derive(Default)]
struct Outcome {
    errors: Vec<String>,
    warnings: Vec<String>,
    object: Value,
}

/// Sets what a pointer names, with what is missing on the way; `-` is the end of a list.
fn set(object: &mut Value, pointer: &str, value: Option<Value>) {
    let mut at = object;
    let parts: Vec<String> =
        pointer.split('/').skip(1).map(|part| part.replace("~1", "/").replace("~0", "~")).collect();
    let (last, way) = parts.split_last().expect("a pointer has a part");
    for (index, part) in way.iter().enumerate() {
        if at.is_null() {
            *at = json!({});
        }
        let next_is_list = parts[index + 1] == "-" || parts[index + 1] == "0";
        at = match at {
            Value::Array(list) => {
                let index = part.parse().unwrap_or(list.len());
                while list.len() <= index {
                    list.push(Value::Null);
                }
                &mut list[index]
            }
            other => &mut other[part.as_str()],
        };
        if at.is_null() && next_is_list {
            *at = json!([]);
        }
    }
    match (at, value) {
        (Value::Array(list), Some(value)) => match last.parse::<usize>() {
            Ok(index) if index < list.len() => list[index] = value,
            _ => list.push(value),
        },
        (Value::Array(list), None) => {
            list.remove(last.parse().expect("an index"));
        }
        (Value::Object(map), None) => {
            map.remove(last);
        }
        (other, value) => {
            if other.is_null() {
                *other = json!({});
            }
            other[last.as_str()] = value.unwrap_or_default();
        }
    }
}

impl Kind {
    /// What decoding does: types, canonical forms, plain defaults, then the kind's own.
    fn decode(&self, catalog: &Catalog, mut object: Value) -> Value {
        let unknown =
            check(catalog, &self.ty, &mut object).unwrap_or_else(|error| panic!("{error}: {object}"));
        assert!(unknown.is_empty(), "unknown fields {unknown:?}");
        self.strategy.default(&mut object);
        object
    }

    fn create(&self, catalog: &Catalog, object: Value) -> Outcome {
        let mut object = self.decode(catalog, object);
        // What is not stored has no name, and gets no identity.
        if object["metadata"]["name"].is_string() {
            object["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
            object["metadata"]["creationTimestamp"] = json!("2026-01-02T03:04:05Z");
        }
        self.strategy.prepare_create(&mut object);
        let allocated = self.strategy.allocate(&mut object, None, &|_: &str| false);
        let mut errors = Vec::new();
        self.strategy.validate_create(&object, &mut errors);
        errors.extend(allocated.err());
        let warnings = self.strategy.warnings(&object, None);
        Outcome { errors: errors.iter().map(ToString::to_string).collect(), warnings, object }
    }

    fn change(&self, catalog: &Catalog, verb: &str, old: &Value, object: Value) -> Outcome {
        let mut object = self.decode(catalog, object);
        let mut errors = Vec::new();
        let warnings = match verb {
            "update" => {
                self.strategy.prepare_update(&mut object, old);
                let allocated = self.strategy.allocate(&mut object, Some(old), &|_: &str| false);
                self.strategy.validate_change(&object, old, &mut errors);
                errors.extend(allocated.err());
                self.strategy.warnings(&object, Some(old))
            }
            "status" => {
                self.strategy.prepare_status(&mut object, old);
                self.strategy.validate_status(&object, old, &mut errors);
                self.strategy.subresource_warnings("status", &object, old)
            }
            _ => {
                self.strategy.prepare_subresource(verb, &mut object, old);
                assert!(
                    self.strategy.validate_subresource(verb, &object, old, &mut errors),
                    "no rules for {verb}"
                );
                self.strategy.subresource_warnings(verb, &object, old)
            }
        };
        Outcome { errors: errors.iter().map(ToString::to_string).collect(), warnings, object }
    }
}

/// Runs one block; returns it as it should be.
fn run(catalog: &Catalog, kind: &Kind, block: &str) -> String {
    let mut lines = block.lines();
    let head = lines.next().unwrap_or_default();
    let mut in_fault = false;
    let verb = head.split(' ').next().unwrap_or_default();
    let (mut old, mut new, mut shown, mut kept) = (kind.base.clone(), Vec::new(), Vec::new(), Vec::new());
    for line in lines {
        // Faults of expressions show the source in further lines.
        if in_fault && [" ", "ERROR: ", "@@", "-", "+"].iter().any(|start| line.starts_with(start)) {
            continue;
        }
        in_fault = line.starts_with("> ");
        let parse = |line: &str| -> (String, Option<Value>) {
            let (pointer, value) = line.split_once(' ').map_or((line, None), |(at, text)| (at, Some(text)));
            let value = value
                .map(|text| serde_json::from_str(text).unwrap_or_else(|error| panic!("{line}: {error}")));
            (pointer.to_owned(), value)
        };
        if let Some(rest) = line.strip_prefix("old ") {
            let (pointer, value) = parse(rest);
            set(&mut old, &pointer, value);
            kept.push(line);
        } else if let Some(rest) = line.strip_prefix("= ") {
            shown.push(parse(rest).0);
        } else if line.starts_with('/') {
            new.push(parse(line));
            kept.push(line);
        } else if line.starts_with('#') {
            kept.push(line);
        } else {
            assert!(in_fault || line.starts_with("! "), "{line}");
        }
    }
    let changed = |mut object: Value| {
        for (pointer, value) in new.clone() {
            set(&mut object, &pointer, value);
        }
        object
    };
    let outcome = if verb == "create" {
        kind.create(catalog, changed(old))
    } else {
        // The old object is as it was stored, but that a server may have written a status since.
        let status = old.get("status").cloned();
        let mut stored = kind.create(catalog, old).object;
        if let Some(status) = status {
            stored["status"] = status;
        }
        let new = changed(stored.clone());
        kind.change(catalog, verb, &stored, new)
    };
    let mut text = format!("{head}\n");
    kept.iter().for_each(|line| writeln!(text, "{line}").expect("a string grows"));
    outcome.errors.iter().for_each(|error| writeln!(text, "> {}", error.trim_end()).expect("a string grows"));
    outcome.warnings.iter().for_each(|warning| writeln!(text, "! {warning}").expect("a string grows"));
    for pointer in shown {
        let value = outcome.object.pointer(&pointer).map(|value| format!(" {value}")).unwrap_or_default();
        writeln!(text, "= {pointer}{value}").expect("a string grows");
    }
    text
}

#[test]
fn every_kind_follows_upstreams_rules() {
    let catalog = kschema::builtin::catalog();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules");
    let update = std::env::var_os("UPDATE_RULES").is_some();
    let (mut cases, mut wrong) = (0, String::new());
    let mut files: Vec<_> =
        fs::read_dir(&folder).expect("the folder is there").flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let text = fs::read_to_string(&file).expect("the file can be read");
        let mut kind: Option<Kind> = None;
        let mut written = String::new();
        for block in text.split("\n\n").map(str::trim).filter(|block| !block.is_empty()) {
            let actual = if let Some(rest) = block.strip_prefix("kind ") {
                let (head, base) = rest.split_once('\n').expect("a kind has an object");
                let (resource, definition) = head.split_once(' ').expect("a kind has a definition");
                let id = catalog.find(definition).unwrap_or_else(|| panic!("no definition {definition}"));
                let base = serde_json::from_str(base).unwrap_or_else(|error| panic!("{head}: {error}"));
                let addresses = ServiceAddresses::default();
                let strategies = Strategies { addresses: Arc::new(addresses), clock: Arc::new(Always) };
                let strategy = builtin(resource, &strategies);
                kind = Some(Kind { strategy, ty: Type::Named(id), base });
                format!("{block}\n")
            } else if block.starts_with('#') {
                format!("{block}\n")
            } else {
                cases += 1;
                run(&catalog, kind.as_ref().expect("a kind comes first"), block)
            };
            if actual.trim() != block {
                let _ = writeln!(wrong, "{}:\n--- expected\n{block}\n--- actual\n{actual}", file.display());
            }
            if !written.is_empty() {
                written.push('\n');
            }
            written.push_str(&actual);
        }
        if update {
            fs::write(&file, written).expect("the file can be written");
        }
    }
    assert!(cases > 50, "only {cases} cases were found");
    assert!(update || wrong.is_empty(), "{wrong}");
}
