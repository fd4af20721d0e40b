//! Reading schedules, with the words of `robfig/cron` (`ParseStandard` of its version 3).

use std::time::Duration;

use jiff::tz::TimeZone;

use super::{STAR, Schedule, Times, duration, zone};
use crate::quote::Quoted;

/// The values that one field may have.
struct Bounds {
    low: u64,
    high: u64,
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

/// The shortest period of `@every`; a shorter one counts as this.
const PERIOD_MIN: Duration = Duration::from_secs(1);

/// Reads a schedule: five fields, or a word for one.
pub(super) fn schedule(text: &str) -> Result<Schedule, String> {
    let (mut zone, mut rest) = (TimeZone::UTC, text);
    if text.starts_with("TZ=") || text.starts_with("CRON_TZ=") {
        // The parser takes it for granted that a space follows, and its panic is what clients are told.
        let Some(at) = text.find(' ') else {
            return Err("invalid schedule format: runtime error: slice bounds out of range [:-1]".to_owned());
        };
        let name = &text[text.find('=').unwrap_or_default() + 1..at];
        zone = zone::load(name).map_err(|why| format!("provided bad location {name}: {why}"))?;
        rest = text[at..].trim();
    }
    let times = if rest.starts_with('@') { word(rest)? } else { Times::Fields(fields(rest)?) };
    Ok(Schedule { zone, times })
}

fn fields(text: &str) -> Result<[u64; 5], String> {
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != BOUNDS.len() {
        let (count, all) = (fields.len(), fields.join(" "));
        return Err(format!("expected exactly {} fields, found {count}: [{all}]", BOUNDS.len()));
    }
    let mut sets = [0; 5];
    for ((field, bounds), set) in fields.iter().zip(&BOUNDS).zip(&mut sets) {
        // Empty entries between commas don't count.
        for entry in field.split(',').filter(|entry| !entry.is_empty()) {
            *set |= range(entry, bounds)?;
        }
    }
    Ok(sets)
}

fn word(word: &str) -> Result<Times, String> {
    let in_full = match word {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        word => {
            let Some(period) = word.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {word}"));
            };
            let period =
                duration::parse(period).map_err(|why| format!("failed to parse duration {word}: {why}"))?;
            return Ok(Times::Every(Duration::from_secs(period.max(PERIOD_MIN).as_secs())));
        }
    };
    fields(in_full).map(Times::Fields)
}

/// The set of what `number`, `number-number` or `*`, each with `/step` or without, stands for.
fn range(entry: &str, bounds: &Bounds) -> Result<u64, String> {
    let steps: Vec<&str> = entry.split('/').collect();
    let ends: Vec<&str> = steps[0].split('-').collect();
    let (start, mut end, mut star) = match ends.as_slice() {
        ["*" | "?", ..] => (bounds.low, bounds.high, STAR),
        [one] => {
            let one = number_or_name(one, bounds)?;
            (one, one, 0)
        }
        [low, high] => (number_or_name(low, bounds)?, number_or_name(high, bounds)?, 0),
        _ => return Err(format!("too many hyphens: {entry}")),
    };
    let step = match steps.as_slice() {
        [_] => 1,
        [_, step] => {
            if ends.len() == 1 {
                end = bounds.high;
            }
            let step = number(step)?;
            if step > 1 {
                star = 0;
            }
            step
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
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok((start..=end).step_by(step).fold(star, |set, number| set | 1 << number))
}

fn number_or_name(text: &str, bounds: &Bounds) -> Result<u64, String> {
    match bounds.names.iter().position(|name| name.eq_ignore_ascii_case(text)) {
        Some(at) => Ok(bounds.low + u64::try_from(at).unwrap_or_default()),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u64, String> {
    let number: i64 = text.parse().map_err(|_| {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        let large = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        let why = if large { "value out of range" } else { "invalid syntax" };
        format!("failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", Quoted(text))
    })?;
    u64::try_from(number).map_err(|_| format!("negative number ({number}) not allowed: {text}"))
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
            assert_eq!(schedule(good).map(drop), Ok(()), "{good}");
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
            assert_eq!(schedule(bad), Err(why.to_owned()), "{bad}");
        }
    }
}
