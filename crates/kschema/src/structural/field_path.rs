//! Paths to fields that a schema describes: of rules (`fieldPath`) and of selectable fields.

use serde_json::Value;

/// The schema of the field at the end of a path such as `.spec.x` or `.spec['a.b']`, and the names on the way.
///
/// # Errors
/// In upstream's words, when there is no such path in the schema.
pub(super) fn resolve<'s>(
    schema: &'s Value,
    path: &str,
    allow_brackets: bool,
) -> Result<(&'s Value, Vec<String>), String> {
    let (mut schema, mut rest, mut names) = (schema, path, Vec::new());
    while let Some(first) = rest.chars().next() {
        let name = match first {
            '.' => {
                let end = rest[1..].find(['.', '[', ']']).map_or(rest.len(), |end| end + 1);
                let name = &rest[1..end];
                if name.is_empty() && end == rest.len() {
                    return Err("unexpected end of JSON path".to_owned());
                }
                rest = &rest[end..];
                name.to_owned()
            }
            '[' if !allow_brackets => return Err("array notation is not allowed".to_owned()),
            '[' => {
                let (name, after) = quoted(&rest[1..])?;
                rest = after;
                name
            }
            _ => {
                let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
                return Err(format!("expected [ or . but got: {}", rest.get(..end).unwrap_or(rest)));
            }
        };
        schema = step(schema, &name).ok_or_else(|| "does not refer to a valid field".to_owned())?;
        names.push(name);
    }
    Ok((schema, names))
}

fn step<'s>(schema: &'s Value, name: &str) -> Option<&'s Value> {
    match schema.get("properties") {
        Some(Value::Object(properties)) if !properties.is_empty() => properties.get(name),
        _ => schema.get("additionalProperties").filter(|other| other.is_object()),
    }
}

/// `'name']` and what follows it.
fn quoted(text: &str) -> Result<(String, &str), String> {
    let wrong =
        || format!("expected single quoted string but got {}", text.split(']').next().unwrap_or_default());
    let mut name = String::new();
    let mut chars = text.strip_prefix('\'').ok_or_else(wrong)?.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, escaped)) => name.push(escaped),
                None => break,
            },
            '\'' => {
                let after = &text[at + 2..];
                let after =
                    after.strip_prefix(']').ok_or_else(|| "unexpected end of JSON path".to_owned())?;
                return Ok((name, after));
            }
            c => name.push(c),
        }
    }
    Err(wrong())
}
