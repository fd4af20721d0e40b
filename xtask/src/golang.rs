//! Writes what Go's types say and no schema does: which fields are pointers (`pointers.txt`), and which are written even when
//! nothing is said of them (`always.txt`).
//!
//! The source is a directory laid out as upstream's `staging/src/k8s.io`. Types are read line by line, as `gofmt` lays them out.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::tables::{Definition, long, schema};

/// The file of fields that are pointers.
pub(crate) const POINTERS: &str = "crates/kschema/src/pointers.txt";
/// The file of fields that are always written.
pub(crate) const ALWAYS: &str = "crates/kschema/src/always.txt";
const POINTERS_HEAD: &str = "# Scalar fields that are pointers in Go: definition, field. Their zero value is a value; that of all others means \"not given\".\n";
const ALWAYS_HEAD: &str = "# Fields that upstream writes even when nothing is said of them (no `omitempty`, or a struct): a definition, then field=what it writes.\n";

/// A struct's fields in their order.
type Struct = Vec<Member>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    /// The name in JSON; empty for what stands inline.
    name: String,
    /// The type as it is written, without the star.
    ty: String,
    pointer: bool,
    omits: Omits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Omits {
    Nothing,
    Empty,
    Zero,
}

/// Both files' contents, made from the directory and the schema table.
pub(crate) fn tables(root: &Path) -> Result<(String, String)> {
    let mut structs = BTreeMap::new();
    read(root, root, &mut structs)?;
    let (mut pointers, mut always) = (POINTERS_HEAD.to_owned(), ALWAYS_HEAD.to_owned());
    let mut definitions = schema()?;
    definitions.sort_by(|a, b| a.short.cmp(&b.short));
    for definition in definitions {
        let mut members = Vec::new();
        collect(&structs, &long(&definition.short), &mut members, 0);
        members.sort_by(|a, b| a.name.cmp(&b.name));
        let mut written = Vec::new();
        for member in &members {
            let Some(ty) = definition.fields.get(&member.name) else { continue };
            if ["apiVersion", "kind"].contains(&member.name.as_str()) && definition.has_kind {
                continue;
            }
            if member.pointer && ty.len() == 1 && "silbd".contains(ty.as_str()) {
                pointers.push_str(&format!("{} {}\n", definition.short, member.name));
            }
            if let Some(value) = value(member, ty) {
                written.push(format!("{}={value}", member.name));
            }
        }
        if !written.is_empty() {
            always.push_str(&format!("{} {}\n", definition.short, written.join(" ")));
        }
    }
    Ok((pointers, always))
}

/// Writes both files.
pub(crate) fn generate(root: &Path) -> Result<()> {
    let (pointers, always) = tables(root)?;
    fs::write(POINTERS, pointers)?;
    fs::write(ALWAYS, always)?;
    Ok(())
}

/// What Go writes of a field of which nothing is said; `None` when it writes nothing. `ty` is the type in the schema table.
fn value(member: &Member, ty: &str) -> Option<&'static str> {
    let plain = !member.pointer && !member.ty.starts_with('[') && !member.ty.starts_with("map[");
    let is_struct = plain && (ty.starts_with('@') || ["q", "x", "t", "u"].contains(&ty));
    match member.omits {
        Omits::Zero => return None,
        // Go finds no struct empty.
        Omits::Empty if !is_struct => return None,
        _ => {}
    }
    Some(match ty {
        _ if !plain => "null",
        _ if member.ty.ends_with("Quantity") => "\"0\"",
        _ if member.ty.ends_with("IntOrString") => "0",
        "@^Time" | "@^MicroTime" | "t" | "u" => "null",
        "b" => "false",
        "i" | "l" | "d" => "0",
        _ if ["RawExtension", "JSON"].iter().any(|raw| member.ty.ends_with(raw)) => "null",
        _ if ty.starts_with('@') => "{}",
        "s" => "\"\"",
        _ => "null",
    })
}

/// A struct's fields, those of inline structs among them.
fn collect(structs: &BTreeMap<String, Struct>, name: &str, members: &mut Vec<Member>, depth: usize) {
    const DEPTH_MAX: usize = 8;
    for member in structs.get(name).into_iter().flatten() {
        if !member.name.is_empty() {
            members.push(member.clone());
        } else if depth < DEPTH_MAX {
            // Inline structs are of the same package, or of core/v1, which others call v1.
            let package = name.rsplit_once('.').map_or("", |(package, _)| package);
            let inner = match member.ty.split_once('.') {
                None => format!("{package}.{}", member.ty),
                Some(("metav1", inner)) => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{inner}"),
                Some((_, inner)) => format!("io.k8s.api.core.v1.{inner}"),
            };
            collect(structs, &inner, members, depth + 1);
        }
    }
}

fn read(root: &Path, folder: &Path, structs: &mut BTreeMap<String, Struct>) -> Result<()> {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("reading {}", folder.display()))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    entries.sort();
    let package =
        folder.strip_prefix(root)?.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join(".");
    for path in entries {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            read(root, &path, structs)?;
        } else if name.ends_with(".go") && !name.ends_with("_test.go") && !name.contains("generated") {
            parse(&format!("io.k8s.{package}"), &fs::read_to_string(&path)?, structs);
        }
    }
    Ok(())
}

fn parse(package: &str, text: &str, structs: &mut BTreeMap<String, Struct>) {
    let mut current: Option<(String, Struct)> = None;
    for line in text.lines() {
        let declared = line.strip_prefix("type ").and_then(|rest| rest.strip_suffix(" struct {"));
        if let Some(name) = declared {
            current = Some((format!("{package}.{name}"), Struct::new()));
        } else if line == "}" {
            structs.extend(current.take());
        } else if let Some((_, members)) = &mut current {
            members.extend(member(line.trim()));
        } else if let Some((name, base)) = line.strip_prefix("type ").and_then(|rest| rest.split_once(' '))
            && base.chars().all(|letter| letter.is_alphanumeric())
            && let Some(members) = structs.get(&format!("{package}.{base}")).cloned()
        {
            structs.insert(format!("{package}.{name}"), members);
        }
    }
}

fn member(line: &str) -> Option<Member> {
    let (declared, tags) = line.split_once('`')?;
    if line.starts_with("//") {
        return None;
    }
    let json = tags.split_once("json:\"")?.1.split('"').next()?;
    let mut parts = json.split(',');
    let name = parts.next().unwrap_or_default();
    if name == "-" {
        return None;
    }
    let mut omits = Omits::Nothing;
    for part in parts {
        match part {
            "omitempty" if omits == Omits::Nothing => omits = Omits::Empty,
            "omitzero" => omits = Omits::Zero,
            _ => {}
        }
    }
    let ty = declared.split_whitespace().next_back()?;
    let pointer = ty.starts_with('*');
    Some(Member { name: name.to_owned(), ty: ty.trim_start_matches('*').to_owned(), pointer, omits })
}

/// What a definition of the schema table must have for these tables.
impl Definition {
    /// Whether a field of this name and type is there, for tests.
    #[cfg(test)]
    fn of(short: &str, fields: &[(&str, &str)]) -> Self {
        let fields = fields.iter().map(|(name, ty)| ((*name).to_owned(), (*ty).to_owned())).collect();
        Self { short: short.to_owned(), has_kind: false, fields }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_as_gofmt_lays_them_out() {
        let text = "// Pod is\ntype Pod struct {\n\tmetav1.TypeMeta `json:\",inline\"`\n\t// metadata\n\t// +optional\n\t\
            metav1.ObjectMeta `json:\"metadata,omitempty\" protobuf:\"bytes,1\"`\n\tGrace *int64 `json:\"grace,omitempty\"`\n\t\
            Since metav1.Time `json:\"since,omitzero\"`\n\thidden int\n}\ntype Other Pod\n";
        let mut structs = BTreeMap::new();
        parse("p", text, &mut structs);
        let member = |name: &str, ty: &str, pointer, omits| Member {
            name: name.into(),
            ty: ty.into(),
            pointer,
            omits,
        };
        let pod = vec![
            member("", "metav1.TypeMeta", false, Omits::Nothing),
            member("metadata", "metav1.ObjectMeta", false, Omits::Empty),
            member("grace", "int64", true, Omits::Empty),
            member("since", "metav1.Time", false, Omits::Zero),
        ];
        assert_eq!(structs, BTreeMap::from([("p.Pod".to_owned(), pod.clone()), ("p.Other".to_owned(), pod)]));
    }

    /// `encoding/json`: what is written of a value that is zero.
    #[test]
    fn zero_values_are_written_as_go_does() {
        let definition = Definition::of(
            "~a.v1.B",
            &[("a", "s"), ("b", "@^Time"), ("c", "[s"), ("d", "@~a.v1.C"), ("e", "q")],
        );
        for (name, ty, pointer, omits, expected) in [
            ("a", "string", false, Omits::Nothing, Some("\"\"")),
            ("a", "string", false, Omits::Empty, None),
            ("a", "string", true, Omits::Nothing, Some("null")),
            ("b", "metav1.Time", false, Omits::Empty, Some("null")),
            ("b", "metav1.Time", false, Omits::Zero, None),
            ("b", "metav1.Time", true, Omits::Empty, None),
            ("c", "[]string", false, Omits::Nothing, Some("null")),
            ("d", "C", false, Omits::Empty, Some("{}")),
            ("e", "resource.Quantity", false, Omits::Nothing, Some("\"0\"")),
        ] {
            let member = Member { name: name.into(), ty: ty.into(), pointer, omits };
            assert_eq!(value(&member, &definition.fields[name]), expected, "{member:?}");
        }
    }
}
