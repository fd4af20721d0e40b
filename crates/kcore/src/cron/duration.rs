//! Durations as Go writes them (`time.ParseDuration`).

use std::{fmt::Write as _, time::Duration};

/// The first amount of nanoseconds that is too large; negative durations may have this many.
const LIMIT: u64 = 1 << 63;

/// A text in quotes, as Go's package `time` quotes it: byte by byte.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' '..=0x7f => out.push(char::from(byte)),
            // Writing into a string cannot fail.
            _ => drop(write!(out, "\\x{byte:02x}")),
        }
    }
    out.push('"');
    out
}

fn nanoseconds(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Splits the digits off that a text starts with.
fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// What a fraction of a unit adds, in nanoseconds.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a fraction is less than one hour, and Go rounds it down, too"
)]
fn fraction(digits: &str, unit: u64) -> u64 {
    let part: f64 = format!("0.{digits}").parse().unwrap_or_default();
    (part * unit as f64) as u64
}

/// Reads a duration; what is below zero gives zero. The error has Go's words.
pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("time: invalid duration {}", quoted(text));
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut sum = 0_u64;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (part, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && part.is_empty() {
            return Err(invalid());
        }
        let (unit, after) =
            after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        let amount: Option<u64> = if whole.is_empty() { Some(0) } else { whole.parse().ok() };
        let amount = amount.filter(|amount| *amount <= LIMIT).ok_or_else(invalid)?;
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quoted(text)));
        }
        let Some(size) = nanoseconds(unit) else {
            return Err(format!("time: unknown unit {} in duration {}", quoted(unit), quoted(text)));
        };
        let amount = amount.checked_mul(size).and_then(|amount| amount.checked_add(fraction(part, size)));
        sum = amount
            .and_then(|amount| sum.checked_add(amount))
            .filter(|sum| *sum <= LIMIT)
            .ok_or_else(invalid)?;
        rest = after;
    }
    match text.starts_with('-') {
        true => Ok(Duration::ZERO),
        false if sum == LIMIT => Err(invalid()),
        false => Ok(Duration::from_nanos(sum)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// <https://pkg.go.dev/time#ParseDuration>, with the cases of Go's `time_test.go`.
    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (good, nanoseconds) in [
            ("0", 0),
            ("+0", 0),
            ("5s", 5_000_000_000),
            ("-.5s", 0),
            ("5.s", 5_000_000_000),
            ("1h30m", 5_400_000_000_000),
            ("3h30m20.5s", 12_620_500_000_000),
            ("10µs", 10_000),
            ("1ns1us1ms", 1_001_001),
            ("9223372036854775807ns", 9_223_372_036_854_775_807),
            ("-9223372036854775808ns", 0),
            ("2562047h47m16.854775807s", 9_223_372_036_854_775_807),
        ] {
            assert_eq!(parse(good), Ok(Duration::from_nanos(nanoseconds)), "{good}");
        }
        for (bad, why) in [
            ("", r#"time: invalid duration """#),
            ("3", r#"time: missing unit in duration "3""#),
            ("-", r#"time: invalid duration "-""#),
            ("s", r#"time: invalid duration "s""#),
            (".s", r#"time: invalid duration ".s""#),
            ("1.2.3s", r#"time: missing unit in duration "1.2.3s""#),
            ("1d", r#"time: unknown unit "d" in duration "1d""#),
            ("\u{85}\u{85}", r#"time: invalid duration "\xc2\x85\xc2\x85""#),
            ("9223372036854775808ns", r#"time: invalid duration "9223372036854775808ns""#),
            ("3000000h", r#"time: invalid duration "3000000h""#),
        ] {
            assert_eq!(parse(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
