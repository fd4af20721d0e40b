//! Certificates, read as Go's `x509.parseCertificate` does: in its order, and of the extensions those that authorities have.

use std::borrow::Cow;

use super::{Bytes, ECDSA, INTEGER, OBJECT_ID, SEQUENCE, curve::point_fault, key_fault, name_fault};

const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const BOOLEAN: u8 = 0x01;
const OCTETS: u8 = 0x04;
const VERSION: u8 = 0xa0;
const ISSUER_ID: u8 = 0x81;
const SUBJECT_ID: u8 = 0x82;
const EXTENSIONS: u8 = 0xa3;
const MALFORMED_EXTENSIONS: &str = "x509: malformed extensions";
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];

/// What is wrong with the certificate that the bytes begin with; `None` if it can be read.
pub(crate) fn certificate_fault(bytes: &[u8]) -> Option<String> {
    read(bytes).err().map(Cow::into_owned)
}

type Outcome<T> = Result<T, Cow<'static, str>>;

fn read(bytes: &[u8]) -> Outcome<()> {
    let mut input = Bytes(bytes).read(SEQUENCE).ok_or("x509: malformed certificate")?;
    let mut tbs = input.read(SEQUENCE).ok_or("x509: malformed tbs certificate")?;
    let version = version(&mut tbs)?;
    let serial = tbs.integer().ok_or("x509: malformed serial number")?;
    if serial.first().is_some_and(|first| first & 0x80 != 0) {
        return Err("x509: negative serial number".into());
    }
    let inner = tbs.read(SEQUENCE).ok_or("x509: malformed signature algorithm identifier")?;
    let outer = input.read(SEQUENCE).ok_or("x509: malformed algorithm identifier")?;
    if inner.0 != outer.0 {
        return Err("x509: inner and outer signature algorithm identifiers don't match".into());
    }
    algorithm(inner)?;
    // Go calls a malformed subject an issuer, too.
    const ISSUER: &str = "x509: malformed issuer";
    named(tbs.read_whole(SEQUENCE).ok_or(ISSUER)?)?;
    let mut validity = tbs.read(SEQUENCE).ok_or("x509: malformed validity")?;
    time(&mut validity)?;
    time(&mut validity)?;
    named(tbs.read_whole(SEQUENCE).ok_or(ISSUER)?)?;
    let mut key = tbs.read(SEQUENCE).ok_or("x509: malformed spki")?;
    let of = key.read(SEQUENCE).ok_or("x509: malformed public key algorithm identifier")?;
    let (id, parameters) = algorithm(of)?;
    let bits = key.bits().ok_or("x509: malformed subjectPublicKey")?;
    if let Some(why) = key_fault(id, parameters, bits) {
        return Err(why.into());
    }
    let curve = if id == ECDSA { Bytes(parameters).read(OBJECT_ID) } else { None };
    if let Some(why) = curve.and_then(|curve| point_fault(curve.0, bits)) {
        return Err(why.into());
    }
    if version > 1 {
        for tag in [ISSUER_ID, SUBJECT_ID] {
            tbs.read(tag);
        }
    }
    if version > 2 && tbs.0.first() == Some(&EXTENSIONS) {
        extensions(tbs.read(EXTENSIONS).ok_or(MALFORMED_EXTENSIONS)?)?;
    }
    input.bits().map(|_| ()).ok_or_else(|| "x509: malformed signature".into())
}

fn extensions(mut wrapped: Bytes<'_>) -> Outcome<()> {
    let mut list = wrapped.read(SEQUENCE).ok_or(MALFORMED_EXTENSIONS)?;
    let mut seen = Vec::new();
    while !list.is_empty() {
        let mut extension = list.read(SEQUENCE).ok_or("x509: malformed extension")?;
        let id = extension.object_id().ok_or("x509: malformed extension OID field")?;
        if extension.0.first() == Some(&BOOLEAN) {
            flag(&mut extension).ok_or("x509: malformed extension critical field")?;
        }
        let value = extension.read(OCTETS).ok_or("x509: malformed extension value field")?;
        if seen.iter().any(|(other, _)| *other == id) {
            let why = format!("x509: certificate contains duplicate extension with OID \"{}\"", dotted(id));
            return Err(why.into());
        }
        seen.push((id, value.0));
    }
    for (id, value) in seen {
        extension(id, Bytes(value))?;
    }
    Ok(())
}

/// The extensions that every certificate of an authority has.
fn extension(id: &[u8], mut value: Bytes<'_>) -> Outcome<()> {
    match id {
        BASIC_CONSTRAINTS => {
            const WHY: &str = "x509: invalid basic constraints";
            let mut inner = value.read(SEQUENCE).ok_or(WHY)?;
            if inner.0.first() == Some(&BOOLEAN) {
                flag(&mut inner).ok_or(WHY)?;
            }
            if inner.0.first() == Some(&INTEGER) {
                inner.integer().ok_or(WHY)?;
            }
        }
        SUBJECT_KEY_ID => {
            value.read(OCTETS).ok_or("x509: invalid subject key identifier")?;
        }
        AUTHORITY_KEY_ID => {
            const WHY: &str = "x509: invalid authority key identifier";
            let mut inner = value.read(SEQUENCE).ok_or(WHY)?;
            if inner.0.first() == Some(&0x80) {
                inner.read(0x80).ok_or(WHY)?;
            }
        }
        _ => {}
    }
    Ok(())
}

fn flag(bytes: &mut Bytes<'_>) -> Option<()> {
    matches!(bytes.read(BOOLEAN)?.0, [0 | 0xff]).then_some(())
}

/// An object identifier as it is written.
fn dotted(id: &[u8]) -> String {
    let mut numbers = Vec::new();
    let mut number = 0_u64;
    for byte in id {
        number = number << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            if numbers.is_empty() {
                let first = (number / 40).min(2);
                numbers.extend([first, number - first * 40]);
            } else {
                numbers.push(number);
            }
            number = 0;
        }
    }
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(".")
}

/// The version, counted from 1.
fn version(tbs: &mut Bytes<'_>) -> Outcome<u8> {
    const MALFORMED: &str = "x509: malformed version";
    if tbs.0.first() != Some(&VERSION) {
        return Ok(1);
    }
    let mut wrapped = tbs.read(VERSION).ok_or(MALFORMED)?;
    let number = wrapped.integer().filter(|_| wrapped.is_empty()).ok_or(MALFORMED)?;
    match number {
        [number @ 0..=2] => Ok(number + 1),
        [first, ..] if first & 0x80 != 0 || number.len() > 8 => Err(MALFORMED.into()),
        _ => Err("x509: invalid version".into()),
    }
}

fn named(name: Bytes<'_>) -> Outcome<()> {
    name_fault(name).map_or(Ok(()), |why| Err(why.into()))
}

/// The identifier of an algorithm, and its parameters as a whole.
fn algorithm(mut of: Bytes<'_>) -> Outcome<(&[u8], &[u8])> {
    let id = of.object_id().ok_or("x509: malformed OID")?;
    let parameters = of.0;
    if !parameters.is_empty() && of.any().is_none() {
        return Err("x509: malformed parameters".into());
    }
    Ok((id, &parameters[..parameters.len() - of.0.len()]))
}

/// Month, day, hour, minute and perhaps second.
fn is_date(digits: &[u8]) -> bool {
    let most = [12, 31, 23, 59, 59];
    let numbers =
        digits.chunks(2).map(|pair| pair.iter().fold(0, |number, digit| number * 10 + (digit - b'0')));
    numbers.zip(most).enumerate().all(|(index, (number, most))| number <= most && (index > 1 || number > 0))
}

fn time(validity: &mut Bytes<'_>) -> Outcome<()> {
    let digits = |text: &[u8], count: usize| {
        text.split_last().is_some_and(|(last, digits)| {
            let good = *last == b'Z' && digits.len() == count && digits.iter().all(u8::is_ascii_digit);
            good && is_date(&digits[digits.len() - if count == 10 { 8 } else { 10 }..])
        })
    };
    match validity.0.first() {
        Some(&UTC_TIME) => {
            let good = validity.read(UTC_TIME).is_some_and(|text| digits(text.0, 12) || digits(text.0, 10));
            good.then_some(()).ok_or_else(|| "x509: malformed UTCTime".into())
        }
        Some(&GENERALIZED_TIME) => {
            let good = validity.read(GENERALIZED_TIME).is_some_and(|text| digits(text.0, 14));
            good.then_some(()).ok_or_else(|| "x509: malformed GeneralizedTime".into())
        }
        _ => Err("x509: unsupported time format".into()),
    }
}
