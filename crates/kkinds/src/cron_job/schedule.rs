//! The form of schedules, with the words of `robfig/cron` (`ParseStandard` of its version 3).

use super::{duration, zone};
use kschema::quote::Quoted;

/// The values that one field may have.
struct Bounds {
    low: i64,
    high: i64,
    names: &'static [&'static str],
}

const BOUNDS: [Bounds; 5] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds {
        low: 1,
        high: 12,
        names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
    },
    Bounds { low: 0, high: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] },
];

/// Checks a schedule: five fields, or a word for one.
pub(super) fn check(schedule: &str) -> Result<(), String> {
    let mut rest = schedule;
    if schedule.starts_with("TZ=") || schedule.starts_with("CRON_TZ=") {
        // The parser takes it for granted that a space follows, and its panic is what clients are told.
        let Some(at) = schedule.find(' ') else {
            return Err("invalid schedule format: runtime error: slice bounds out of range [:-1]".to_owned());
        };
        let zone = &schedule[schedule.find('=').unwrap_or_default() + 1..at];
        zone::load(zone).map_err(|why| format!("provided bad location {zone}: {why}"))?;
        rest = schedule[at..].trim();
    }
    if rest.starts_with('@') {
        return word(rest);
    }
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if fields.len() != BOUNDS.len() {
        let (count, all) = (fields.len(), fields.join(" "));
        return Err(format!("expected exactly {} fields, found {count}: [{all}]", BOUNDS.len()));
    }
    for (field, bounds) in fields.iter().zip(&BOUNDS) {
        field.split(',').filter(|entry| !entry.is_empty()).try_for_each(|entry| range(entry, bounds))?;
    }
    Ok(())
}

fn word(word: &str) -> Result<(), String> {
    const WORDS: [&str; 7] =
        ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    if WORDS.contains(&word) {
        return Ok(());
    }
    let Some(duration) = word.strip_prefix("@every ") else {
        return Err(format!("unrecognized descriptor: {word}"));
    };
    duration::check(duration).map_err(|why| format!("failed to parse duration {word}: {why}"))
}

fn range(entry: &str, bounds: &Bounds) -> Result<(), String> {
    let steps: Vec<&str> = entry.split('/').collect();
    let ends: Vec<&str> = steps[0].split('-').collect();
    let (start, mut end) = match ends.as_slice() {
        ["*" | "?", ..] => (bounds.low, bounds.high),
        [one] => {
            let one = number_or_name(one, bounds)?;
            (one, one)
        }
        [low, high] => (number_or_name(low, bounds)?, number_or_name(high, bounds)?),
        _ => return Err(format!("too many hyphens: {entry}")),
    };
    let step = match steps.as_slice() {
        [_] => 1,
        [_, step] => {
            if ends.len() == 1 {
                end = bounds.high;
            }
            number(step)?
        }
        _ => return Err(format!("too many slashes: {entry}")),
    };
    let (low, high) = (bounds.low, bounds.high);
    if start < low {
        return Err(format!("beginning of range ({start}) below minimum ({low}): {entry}"));
    }
    if end > high {
        return Err(format!("end of range ({end}) above maximum ({high}): {entry}"));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {entry}"));
    }
    if step == 0 {
        return Err(format!("step of range should be a positive number: {entry}"));
    }
    Ok(())
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<i64, String> {
    match bounds.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        Some(at) => Ok(bounds.low + i64::try_from(at).unwrap_or_default()),
        None => number(text),
    }
}

fn number(text: &str) -> Result<i64, String> {
    let number: i64 = text.parse().map_err(|_| {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let large = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let why = if large { "value out of range" } else { "invalid syntax" };
        format!("failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", Quoted(text))
    })?;
    if number < 0 {
        return Err(format!("negative number ({number}) not allowed: {text}"));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_have_five_fields_or_are_words() {
        for good in [
            "* * * * *",
            "*/5 0-23/2 1,15 JAN-mar ?",
            "@hourly",
            "@every 1h30m",
            "TZ=UTC 0 * * * *",
            "CRON_TZ=Europe/Berlin @daily",
            "TZ= @daily",
            "*-x * * * mon-FRI/2",
            "5/15 * * * *",
            ", * * * *",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("error", "expected exactly 5 fields, found 1: [error]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("5-3 * * * *", "beginning of range (5) beyond end of range (3): 5-3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("a * * * *", "failed to parse int from a: strconv.Atoi: parsing \"a\": invalid syntax"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            ("@never", "unrecognized descriptor: @never"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("TZ=UTC", "invalid schedule format: runtime error: slice bounds out of range [:-1]"),
            ("CRON_TZ=UTC", "invalid schedule format: runtime error: slice bounds out of range [:-1]"),
            ("TZ=Mars/Base * * * * *", "provided bad location Mars/Base: unknown time zone Mars/Base"),
            ("TZ=../UTC * * * * *", "provided bad location ../UTC: time: invalid location name"),
            ("TZ= ", "expected exactly 5 fields, found 0: []"),
            ("*/-1 * * * *", "negative number (-1) not allowed: -1"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            (
                "@every 9223372036854775808h",
                "failed to parse duration @every 9223372036854775808h: time: invalid duration \"9223372036854775808h\"",
            ),
        ] {
            assert_eq!(check(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
