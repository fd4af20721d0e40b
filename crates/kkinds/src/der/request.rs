//! Requests for certificates, read as Go's `asn1.Unmarshal` reads them into the struct of `crypto/x509`.

use super::{Bytes, key_fault, name_fault};

/// What a field of a Go struct is.
#[derive(Clone, Copy)]
enum Kind {
    /// A struct: a sequence of these fields; whatever follows them is let pass.
    Struct(&'static [Field]),
    /// `asn1.RawValue`
    Any,
    Int,
    ObjectId,
    Bits,
    /// `[]asn1.RawValue` with the context's tag 0.
    Attributes,
}

/// A field, by the name of its type.
#[derive(Clone, Copy)]
struct Field {
    name: &'static str,
    kind: Kind,
    optional: bool,
}

const fn field(name: &'static str, kind: Kind) -> Field {
    Field { name, kind, optional: false }
}

const ALGORITHM: [Field; 2] =
    [field("ObjectIdentifier", Kind::ObjectId), Field { name: "RawValue", kind: Kind::Any, optional: true }];
const KEY: [Field; 2] =
    [field("AlgorithmIdentifier", Kind::Struct(&ALGORITHM)), field("BitString", Kind::Bits)];
const CONTENT: [Field; 4] = [
    field("int", Kind::Int),
    field("RawValue", Kind::Any),
    field("publicKeyInfo", Kind::Struct(&KEY)),
    field("", Kind::Attributes),
];
const REQUEST: [Field; 3] = [
    field("tbsCertificateRequest", Kind::Struct(&CONTENT)),
    field("", Kind::Struct(&ALGORITHM)),
    field("BitString", Kind::Bits),
];
const WHOLE: Field = field("certificateRequest", Kind::Struct(&REQUEST));

/// What is wrong with a request; `None` if it can be read. What it asks for is not looked into.
pub(crate) fn request_fault(bytes: &[u8]) -> Option<String> {
    match read(bytes, 0, WHOLE) {
        Err(why) => Some(format!("asn1: {why}")),
        Ok(end) if end < bytes.len() => Some("asn1: syntax error: trailing data".to_owned()),
        Ok(_) => {
            let parts = Parts::read(bytes);
            key_fault(&parts.key_algorithm, &parts.key_parameters, &parts.key)
                .or_else(|| name_fault(Bytes(&parts.subject)))
                .map(str::to_owned)
        }
    }
}

/// What a request is made of; its form is known to be right.
#[derive(Default)]
pub(super) struct Parts {
    /// The key's algorithm.
    pub(super) key_algorithm: Vec<u8>,
    /// The whole element of its parameters.
    pub(super) key_parameters: Vec<u8>,
    /// The key itself.
    pub(super) key: Vec<u8>,
    subject: Vec<u8>,
    /// The algorithm of the signature.
    pub(super) signature: Vec<u8>,
}

fn next(bytes: &mut Bytes<'_>) -> Vec<u8> {
    bytes.any().map(|(_, content)| content.0.to_vec()).unwrap_or_default()
}

impl Parts {
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut parts = Self::default();
        let whole = next(&mut Bytes(bytes));
        let mut whole = Bytes(&whole);
        let content = next(&mut whole);
        let signed = next(&mut whole);
        parts.signature = next(&mut Bytes(&signed));
        let mut content = Bytes(&content);
        content.any();
        let before = content.0;
        content.any();
        parts.subject = before[..before.len() - content.0.len()].to_vec();
        let key = next(&mut content);
        let mut key = Bytes(&key);
        let algorithm = next(&mut key);
        let mut algorithm = Bytes(&algorithm);
        parts.key_algorithm = next(&mut algorithm);
        let parameters = algorithm.0;
        algorithm.any();
        parts.key_parameters = parameters[..parameters.len() - algorithm.0.len()].to_vec();
        let bits = next(&mut key);
        parts.key = bits.split_first().map_or(Vec::new(), |(_, bits)| bits.to_vec());
        parts
    }
}

/// A tag with what follows it.
struct Head {
    class: u8,
    tag: u32,
    length: usize,
    compound: bool,
}

fn syntax<T>(why: &str) -> Result<T, String> {
    Err(format!("syntax error: {why}"))
}

fn structure<T>(why: &str) -> Result<T, String> {
    Err(format!("structure error: {why}"))
}

/// Reads a field at `start`, and gives where it ends.
fn read(bytes: &[u8], start: usize, field: Field) -> Result<usize, String> {
    if start == bytes.len() {
        return if field.optional { Ok(start) } else { syntax("sequence truncated") };
    }
    let (head, start) = head(bytes, start)?;
    let (class, tag, compound) = match field.kind {
        Kind::Struct(_) => (0, 16, true),
        Kind::Any => (head.class, head.tag, head.compound),
        Kind::Int => (0, 2, false),
        Kind::ObjectId => (0, 6, false),
        Kind::Bits => (0, 3, false),
        Kind::Attributes => (2, 0, true),
    };
    if (head.class, head.tag, head.compound) != (class, tag, compound) {
        let found = format!(
            "{{class:{} tag:{} length:{} isCompound:{}}}",
            head.class, head.tag, head.length, head.compound
        );
        // Where a field has a tag of its own, Go shows a pointer to it, which nobody can know.
        let own = if matches!(field.kind, Kind::Attributes) { "0xc000000000" } else { "<nil>" };
        return structure(&format!(
            "tags don't match ({tag} vs {found}) {{optional:{} explicit:false application:false private:false defaultValue:<nil> tag:{own} stringType:0 timeType:0 set:false omitEmpty:false}} {} @{start}",
            field.optional, field.name
        ));
    }
    let end = start.saturating_add(head.length);
    let Some(inner) = bytes.get(start..end) else {
        return syntax("data truncated");
    };
    match field.kind {
        Kind::Struct(fields) => {
            fields.iter().try_fold(0, |at, field| read(inner, at, *field))?;
        }
        Kind::Any => {}
        Kind::Int => integer(inner)?,
        Kind::ObjectId => object_id(inner)?,
        Kind::Bits => bits(inner)?,
        Kind::Attributes => attributes(inner)?,
    }
    Ok(end)
}

/// A number in base 128.
fn base_128(bytes: &[u8], start: usize) -> Result<(u32, usize), String> {
    let mut number = 0_u64;
    for (count, byte) in bytes[start..].iter().enumerate() {
        if count == 5 {
            return structure("base 128 integer too large");
        }
        if count == 0 && *byte == 0x80 {
            return syntax("integer is not minimally encoded");
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            return match i32::try_from(number) {
                Ok(number) => Ok((number.unsigned_abs(), start + count + 1)),
                Err(_) => structure("base 128 integer too large"),
            };
        }
    }
    syntax("truncated base 128 integer")
}

fn head(bytes: &[u8], start: usize) -> Result<(Head, usize), String> {
    const TRUNCATED: &str = "truncated tag or length";
    let (first, mut at) = (bytes[start], start + 1);
    let mut tag = u32::from(first & 0x1f);
    if tag == 0x1f {
        (tag, at) = base_128(bytes, at)?;
        if tag < 0x1f {
            return syntax("non-minimal tag");
        }
    }
    let Some(byte) = bytes.get(at).copied() else {
        return syntax(TRUNCATED);
    };
    at += 1;
    let mut length = usize::from(byte & 0x7f);
    if byte & 0x80 != 0 {
        let count = length;
        if count == 0 {
            return syntax("indefinite length found (not DER)");
        }
        length = 0;
        for _ in 0..count {
            let Some(byte) = bytes.get(at).copied() else {
                return syntax(TRUNCATED);
            };
            at += 1;
            if length >= 1 << 23 {
                return structure("length too large");
            }
            length = length << 8 | usize::from(byte);
            if length == 0 {
                return structure("superfluous leading zeros in length");
            }
        }
        if length < 0x80 {
            return structure("non-minimal length");
        }
    }
    Ok((Head { class: first >> 6, tag, length, compound: first & 0x20 != 0 }, at))
}

fn integer(bytes: &[u8]) -> Result<(), String> {
    match bytes {
        [] => structure("empty integer"),
        [0, next, ..] if next & 0x80 == 0 => structure("integer not minimally-encoded"),
        [0xff, next, ..] if next & 0x80 != 0 => structure("integer not minimally-encoded"),
        _ if bytes.len() > 8 => structure("integer too large"),
        _ => Ok(()),
    }
}

fn object_id(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() {
        return syntax("zero length OBJECT IDENTIFIER");
    }
    let mut at = 0;
    while at < bytes.len() {
        (_, at) = base_128(bytes, at)?;
    }
    Ok(())
}

fn bits(bytes: &[u8]) -> Result<(), String> {
    let Some((padding, rest)) = bytes.split_first() else {
        return syntax("zero length BIT STRING");
    };
    let last = rest.last().copied().unwrap_or(*padding);
    if *padding > 7 || last & ((1_u8 << padding) - 1) != 0 || rest.is_empty() && *padding > 0 {
        return syntax("invalid padding bits in BIT STRING");
    }
    Ok(())
}

fn attributes(bytes: &[u8]) -> Result<(), String> {
    let mut at = 0;
    while at < bytes.len() {
        let (head, start) = head(bytes, at)?;
        at = start.saturating_add(head.length);
        if at > bytes.len() {
            return syntax("truncated sequence");
        }
    }
    Ok(())
}
