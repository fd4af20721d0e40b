//! `'..'.format([..])` (cel-go's `ext/formatting.go`, with its English locale), and its check where text and arguments
//! are written out.

use std::fmt::Write;

use crate::{
    ast::{Call, Element, Expr, ExprKind, Id, Literal},
    checker::{Checked, Ref},
    error::EvalError,
    eval::Eval,
    types::Type,
    value::{Key, List, Map, Value, check_text},
};

/// The number of digits after the point where none is given.
const PRECISION: usize = 6;
/// The most digits after the point that may be asked for.
const PRECISION_MAX: usize = 1000;

/// What an argument is written as.
#[derive(Clone, Copy)]
enum Clause {
    Text,
    Decimal,
    Fixed(usize),
    Scientific(usize),
    Binary,
    Hex { upper: bool },
    Octal,
}

/// A part of a format: text as it is, or an argument.
enum Part<'t> {
    Text(&'t str),
    Clause(Clause),
}

/// The first part of `rest`, and what follows it.
fn next_part(rest: &str) -> Result<(Part<'_>, &str), String> {
    let Some(after) = rest.strip_prefix('%') else {
        let end = rest.find('%').unwrap_or(rest.len());
        return Ok((Part::Text(&rest[..end]), &rest[end..]));
    };
    if let Some(tail) = after.strip_prefix('%') {
        return Ok((Part::Text("%"), tail));
    }
    if after.is_empty() {
        return Err("unexpected end of string".to_owned());
    }
    clause(after).map_err(|why| format!("could not parse formatting clause: {why}"))
}

fn clause(text: &str) -> Result<(Part<'_>, &str), String> {
    let (mut precision, mut rest) = (PRECISION, text);
    if let Some(digits) = text.strip_prefix('.') {
        let end = digits.find(|letter: char| !letter.is_ascii_digit());
        let end = end.ok_or("error while parsing precision: could not find end of precision specifier")?;
        let read = digits[..end].parse::<usize>().ok().filter(|precision| *precision <= PRECISION_MAX);
        precision = read.ok_or_else(|| {
            format!(
                "error while parsing precision: error while converting precision to integer: strconv.Atoi: parsing \"{}\": invalid syntax",
                &digits[..end]
            )
        })?;
        rest = &digits[end..];
    }
    let letter = rest.chars().next().unwrap_or('%');
    let clause = match letter {
        's' => Clause::Text,
        'd' => Clause::Decimal,
        'f' => Clause::Fixed(precision),
        'e' => Clause::Scientific(precision),
        'b' => Clause::Binary,
        'x' => Clause::Hex { upper: false },
        'X' => Clause::Hex { upper: true },
        'o' => Clause::Octal,
        other => return Err(format!("unrecognized formatting clause \"{other}\"")),
    };
    Ok((Part::Clause(clause), &rest[letter.len_utf8()..]))
}

/// `format`
pub(super) fn format<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let [Value::String(text), Value::List(list)] = args else {
        return Err(EvalError::no_such_overload());
    };
    let mut out = String::with_capacity(text.len());
    let mut rest: &str = text;
    let mut index = 0;
    while !rest.is_empty() {
        let (part, after) = next_part(rest).map_err(EvalError::new)?;
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Clause(clause) => {
                let value = list.get(index)?;
                let value = value.ok_or_else(|| EvalError::new(format!("index {index} out of range")))?;
                index += 1;
                let text = written(clause, &value)
                    .map_err(|why| EvalError::new(format!("error during formatting: {why}")))?;
                out.push_str(&text);
                check_text(out.len())?;
            }
        }
        rest = after;
    }
    Ok(Value::from(out))
}

/// Why a clause does not take a type.
fn refusal(clause: Clause, type_name: &str) -> String {
    let takes = match clause {
        Clause::Text => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, and timestamps"
        }
        Clause::Decimal => "decimal clause can only be used on integers",
        Clause::Fixed(_) => "fixed-point clause can only be used on doubles",
        Clause::Scientific(_) => "scientific clause can only be used on doubles",
        Clause::Binary => "only integers and bools can be formatted as binary",
        Clause::Hex { .. } => "only integers, byte buffers, and strings can be formatted as hex",
        Clause::Octal => "octal clause can only be used on integers",
    };
    format!("{takes}, was given {type_name}")
}

fn written(clause: Clause, value: &Value<'_>) -> Result<String, String> {
    let refused = || Err(refusal(clause, value.type_name()));
    Ok(match (clause, value) {
        (Clause::Text, value) => match plain(value)? {
            Some(text) => text,
            None => return refused(),
        },
        (Clause::Decimal, Value::Int(value)) => value.to_string(),
        (Clause::Decimal, Value::Uint(value)) => value.to_string(),
        (Clause::Fixed(precision), value) => match number(value) {
            Some(number) => grouped(&finite(number).unwrap_or_else(|| format!("{number:.precision$}"))),
            None => return refused(),
        },
        (Clause::Scientific(precision), value) => match number(value) {
            Some(number) => finite(number).unwrap_or_else(|| scientific(number, precision)),
            None => return refused(),
        },
        (Clause::Binary, Value::Int(value)) => signed(*value, |size| format!("{size:b}")),
        (Clause::Binary, Value::Uint(value)) => format!("{value:b}"),
        (Clause::Binary, Value::Bool(value)) => u8::from(*value).to_string(),
        (Clause::Octal, Value::Int(value)) => signed(*value, |size| format!("{size:o}")),
        (Clause::Octal, Value::Uint(value)) => format!("{value:o}"),
        (Clause::Hex { upper }, value) => {
            let text = match value {
                Value::Int(value) => signed(*value, |size| format!("{size:x}")),
                Value::Uint(value) => format!("{value:x}"),
                Value::String(text) => hex(text.as_bytes()),
                Value::Bytes(bytes) => hex(bytes),
                _ => return refused(),
            };
            if upper { text.to_uppercase() } else { text }
        }
        _ => return refused(),
    })
}

fn signed(value: i64, write: impl Fn(u64) -> String) -> String {
    let sign = if value < 0 { "-" } else { "" };
    format!("{sign}{}", write(value.unsigned_abs()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// A double, or the words for those that are no numbers.
fn number(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Double(number) => Some(*number),
        Value::String(text) => match &**text {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// The text of what has no digits.
fn finite(number: f64) -> Option<String> {
    if number.is_nan() {
        return Some("NaN".to_owned());
    }
    number.is_infinite().then(|| if number > 0.0 { "\u{221e}" } else { "-\u{221e}" }.to_owned())
}

/// Thousands are separated.
fn grouped(text: &str) -> String {
    let (sign, digits) = text.strip_prefix('-').map_or(("", text), |digits| ("-", digits));
    let (whole, fraction) =
        digits.split_once('.').map_or((digits, None), |(whole, rest)| (whole, Some(rest)));
    let mut out = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) && digit.is_ascii_digit() {
            out.push(',');
        }
        out.push(digit);
    }
    if let Some(fraction) = fraction {
        out.push('.');
        out.push_str(fraction);
    }
    out
}

/// `1.052033x10^03`, with a multiplication sign and raised digits.
fn scientific(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = exponent.strip_prefix('-').map_or(("", exponent), |digits| ("\u{207b}", digits));
    let raised: String = format!("{digits:0>2}")
        .chars()
        .map(|digit| match digit {
            '1' => '\u{b9}',
            '2' => '\u{b2}',
            '3' => '\u{b3}',
            digit => char::from_u32(0x2070 + digit.to_digit(10).unwrap_or(0)).unwrap_or(digit),
        })
        .collect();
    format!("{mantissa}\u{d7}10{sign}{raised}")
}

/// An argument of `%s`; none if its type has no text.
fn plain(value: &Value<'_>) -> Result<Option<String>, String> {
    Ok(Some(match value {
        Value::List(list) => list_text(list)?,
        Value::Map(map) => map_text(map)?,
        Value::Null => "null".to_owned(),
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => return Err("invalid UTF-8 in bytes, cannot convert to string".to_owned()),
        },
        Value::Type(name) => (**name).to_owned(),
        Value::Int(_)
        | Value::Uint(_)
        | Value::Double(_)
        | Value::Bool(_)
        | Value::String(_)
        | Value::Timestamp(_)
        | Value::Duration(_) => value.shown(),
        _ => return Ok(None),
    }))
}

/// A value inside a list or a map, as a literal.
fn quoted(value: &Value<'_>) -> Result<String, String> {
    Ok(match value {
        Value::String(text) => format!("{:?}", &**text),
        Value::Bytes(bytes) => format!("b{:?}", String::from_utf8_lossy(bytes)),
        Value::Double(number) => match finite(*number) {
            Some(_) => format!("{:?}", value.shown()),
            None => format!("{number:.PRECISION$}"),
        },
        Value::Timestamp(_) => format!("timestamp({:?})", value.shown()),
        Value::Duration(_) => format!("duration({:?})", value.shown()),
        Value::Type(name) => format!("type({})", &**name),
        value => plain(value)?.ok_or_else(|| format!("no formatting function for {}", value.type_name()))?,
    })
}

fn list_text(list: &List<'_>) -> Result<String, String> {
    let mut parts = Vec::with_capacity(list.len());
    let mut length = 0_usize;
    for value in list.iter() {
        let part = quoted(&value.map_err(|error| error.to_string())?)?;
        length += part.len();
        check_text(length).map_err(|error| error.to_string())?;
        parts.push(part);
    }
    Ok(format!("[{}]", parts.join(", ")))
}

fn map_text(map: &Map<'_>) -> Result<String, String> {
    let mut parts = Vec::with_capacity(map.len());
    for (key, value) in map.entries().map_err(|error| error.to_string())? {
        if Key::of(&key).is_none() {
            return Err(format!("no formatting function for map key of type {}", key.type_name()));
        }
        parts.push((quoted(&key)?, quoted(&value)?));
    }
    parts.sort();
    let parts: Vec<String> = parts.into_iter().map(|(key, value)| format!("{key}:{value}")).collect();
    Ok(format!("{{{}}}", parts.join(", ")))
}

/// What is wrong with a call of `format` whose text and arguments are written out, and where.
pub(crate) fn check(checked: &Checked, id: Id, call: &Call) -> Option<(Id, String)> {
    let target = call.target.as_ref()?;
    let (ExprKind::Literal(Literal::String(text)), [argument]) = (&target.kind, call.args.as_slice()) else {
        return None;
    };
    let ExprKind::List(elements) = &argument.kind else {
        return None;
    };
    if call.function != "format" {
        return None;
    }
    let mut used = 0;
    let mut rest: &str = text;
    while !rest.is_empty() {
        let (part, after) = match next_part(rest) {
            Ok(found) => found,
            Err(why) => return Some((id, why)),
        };
        if let Part::Clause(clause) = part {
            let Some(Element { value, .. }) = elements.get(used) else {
                return Some((id, format!("index {used} out of range")));
            };
            used += 1;
            if let Some((place, of)) = refused_type(checked, clause, value) {
                return Some((place, format!("error during formatting: {}", refusal(clause, &of))));
            }
        }
        rest = after;
    }
    (elements.len() > used).then(|| {
        let given = elements.len();
        (id, format!("too many arguments supplied to string.format (expected {used}, got {given})"))
    })
}

/// The part of an argument whose type a clause does not take.
fn refused_type(checked: &Checked, clause: Clause, value: &Expr) -> Option<(Id, String)> {
    let of = checked.type_of(value);
    let fits = match clause {
        Clause::Text => !matches!(of, Type::Opaque(_) | Type::Object(_) | Type::Optional(_) | Type::Error),
        Clause::Decimal | Clause::Octal => matches!(of, Type::Int | Type::Uint | Type::Dyn),
        Clause::Fixed(_) | Clause::Scientific(_) => matches!(of, Type::Double | Type::String | Type::Dyn),
        Clause::Binary => matches!(of, Type::Int | Type::Uint | Type::Bool | Type::Dyn),
        Clause::Hex { .. } => matches!(of, Type::Int | Type::Uint | Type::String | Type::Bytes | Type::Dyn),
    };
    let written_out = matches!(value.kind, ExprKind::List(_) | ExprKind::Map(_));
    if !fits {
        // A reference to a type's name is a value of type `type`, whatever it names.
        if matches!(checked.reference(value), Some(Ref::TypeName(_))) && matches!(clause, Clause::Text) {
            return None;
        }
        return Some((value.id, of.runtime_name().to_owned()));
    }
    match clause {
        Clause::Text if written_out => {
            value.children().into_iter().find_map(|child| refused_type(checked, clause, child))
        }
        _ => None,
    }
}
