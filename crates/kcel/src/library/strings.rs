//! cel-go's extension of strings, version 2 (`ext/strings.go`). Indexes count characters.

use super::format_text;
use crate::{
    error::EvalError,
    eval::Eval,
    functions::Functions,
    value::{Value, check_text},
};

pub(super) fn add(functions: &mut Functions) {
    functions.member("charAt", char_at, &[("string_char_at_int", "(string, int) string")]);
    functions.member(
        "indexOf",
        index_of,
        &[
            ("string_index_of_string", "(string, string) int"),
            ("string_index_of_string_int", "(string, string, int) int"),
        ],
    );
    functions.member(
        "lastIndexOf",
        last_index_of,
        &[
            ("string_last_index_of_string", "(string, string) int"),
            ("string_last_index_of_string_int", "(string, string, int) int"),
        ],
    );
    functions.member("lowerAscii", lower_ascii, &[("string_lower_ascii", "(string) string")]);
    functions.member("upperAscii", upper_ascii, &[("string_upper_ascii", "(string) string")]);
    functions.member(
        "replace",
        replace,
        &[
            ("string_replace_string_string", "(string, string, string) string"),
            ("string_replace_string_string_int", "(string, string, string, int) string"),
        ],
    );
    functions.member(
        "split",
        split,
        &[
            ("string_split_string", "(string, string) list<string>"),
            ("string_split_string_int", "(string, string, int) list<string>"),
        ],
    );
    functions.member(
        "substring",
        substring,
        &[
            ("string_substring_int", "(string, int) string"),
            ("string_substring_int_int", "(string, int, int) string"),
        ],
    );
    functions.member("trim", trim, &[("string_trim", "(string) string")]);
    functions.member("format", format_text::format, &[("string_format", "(string, list<dyn>) string")]);
    functions.global("strings.quote", quote, &[("strings_quote", "(string) string")]);
    functions.member(
        "join",
        join,
        &[("list_join", "(list<string>) string"), ("list_join_string", "(list<string>, string) string")],
    );
}

fn out_of_range<'a>(index: i64) -> Eval<'a> {
    Err(EvalError::new(format!("index out of range: {index}")))
}

fn letters(text: &str) -> Vec<char> {
    text.chars().collect()
}

fn char_at<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::String(text), Value::Int(index)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let letters = letters(text);
    match usize::try_from(*index) {
        Ok(at) if at < letters.len() => Ok(Value::from(letters[at].to_string())),
        Ok(at) if at == letters.len() => Ok(Value::from("")),
        _ => out_of_range(*index),
    }
}

fn index_of<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (text, part, offset) = match args {
        [Value::String(text), Value::String(part)] => (text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(offset)] => (text, part, *offset),
        _ => return Err(EvalError::no_such_overload()),
    };
    if part.is_empty() {
        return Ok(Value::Int(offset));
    }
    let (text, part) = (letters(text), letters(part));
    let Ok(from) = usize::try_from(offset) else {
        return out_of_range(offset);
    };
    let mut places = from..(text.len() + 1).saturating_sub(part.len());
    let found = places.find(|at| text[*at..].starts_with(&part));
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn last_index_of<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (text, part, offset) = match args {
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(offset)] => (text, part, Some(*offset)),
        _ => return Err(EvalError::no_such_overload()),
    };
    let (text, part) = (letters(text), letters(part));
    if part.is_empty() {
        return Ok(Value::Int(offset.unwrap_or(text.len() as i64)));
    }
    let from = match offset {
        None => text.len(),
        Some(offset) => match usize::try_from(offset) {
            Ok(from) if from >= text.len() => return Ok(Value::Int(-1)),
            Ok(from) => from,
            Err(_) => return out_of_range(offset),
        },
    };
    if part.len() > text.len() {
        return Ok(Value::Int(-1));
    }
    let mut places = (0..=from.min(text.len() - part.len())).rev();
    let found = places.find(|at| text[*at..].starts_with(&part));
    Ok(Value::Int(found.map_or(-1, |at| at as i64)))
}

fn lower_ascii<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text)] => Ok(Value::from(text.to_ascii_lowercase())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn upper_ascii<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text)] => Ok(Value::from(text.to_ascii_uppercase())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn replace<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (text, old, new, count) = match args {
        [Value::String(text), Value::String(old), Value::String(new)] => (text, old, new, -1),
        [Value::String(text), Value::String(old), Value::String(new), Value::Int(count)] => {
            (text, old, new, *count)
        }
        _ => return Err(EvalError::no_such_overload()),
    };
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if new.len() > old.len() {
        let found = text.matches(&**old).take(count).count();
        check_text(text.len().saturating_add(found.saturating_mul(new.len())))?;
    }
    Ok(Value::from(text.replacen(&**old, new, count)))
}

fn split<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (text, separator, limit) = match args {
        [Value::String(text), Value::String(separator)] => (text, separator, -1),
        [Value::String(text), Value::String(separator), Value::Int(limit)] => (text, separator, *limit),
        _ => return Err(EvalError::no_such_overload()),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let parts: Vec<&str> = match limit {
        0 => Vec::new(),
        _ if separator.is_empty() => split_letters(text, limit),
        _ => text.splitn(limit, &**separator).collect(),
    };
    Ok(Value::from(parts.into_iter().map(|part| Value::from(part.to_owned())).collect::<Vec<_>>()))
}

/// The characters of `text`, the last part being all that is left beyond `limit`.
fn split_letters(text: &str, limit: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = text;
    while let Some(letter) = rest.chars().next() {
        if parts.len() + 1 == limit {
            parts.push(rest);
            break;
        }
        let (part, after) = rest.split_at(letter.len_utf8());
        parts.push(part);
        rest = after;
    }
    parts
}

fn substring<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (text, start, end) = match args {
        [Value::String(text), Value::Int(start)] => (text, *start, None),
        [Value::String(text), Value::Int(start), Value::Int(end)] => (text, *start, Some(*end)),
        _ => return Err(EvalError::no_such_overload()),
    };
    let letters = letters(text);
    let length = letters.len() as i64;
    let end = end.unwrap_or_else(|| length.max(start));
    if start > end {
        return Err(EvalError::new(format!("invalid substring range. start: {start}, end: {end}")));
    }
    for index in [start, end] {
        if !(0..=length).contains(&index) {
            return out_of_range(index);
        }
    }
    Ok(Value::from(letters[start as usize..end as usize].iter().collect::<String>()))
}

fn trim<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [Value::String(text)] => Ok(Value::from(text.trim().to_owned())),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn quote<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::String(text)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for letter in text.chars() {
        match letter {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    Ok(Value::from(quoted))
}

fn join<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return Err(EvalError::no_such_overload()),
    };
    let mut joined = String::new();
    for (index, value) in list.iter().enumerate() {
        let value = value?;
        let Value::String(text) = &value else {
            return Err(EvalError::new(format!("join: invalid input: {}", value.shown())));
        };
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
        check_text(joined.len().saturating_add(separator.len()))?;
    }
    Ok(Value::from(joined))
}
