//! Moments and lengths of time, read and written as Go does.

use std::{cmp::Ordering, fmt};

use jiff::{
    Timestamp,
    civil::{Date, DateTime},
    tz::{Offset, TimeZone},
};

use crate::error::EvalError;

/// The first and the last second that a moment can have: the years 1 and 9999.
const SECONDS_MIN: i64 = -62_135_596_800;
const SECONDS_MAX: i64 = 253_402_300_799;
const NANOS: i64 = 1_000_000_000;
/// The longest text that is read as a length of time, in bytes.
const DURATION_BYTES_MAX: usize = 256;

/// A moment between the years 1 and 9999, with the offset from UTC in which it was written. The offset matters for its
/// text alone.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    seconds: i64,
    nanos: i32,
    offset: i32,
}

impl Moment {
    /// A moment, if it is in range; `nanos` is less than a second.
    fn checked(seconds: i128, nanos: i64, offset: i32) -> Result<Self, EvalError> {
        match i64::try_from(seconds) {
            Ok(seconds) if (SECONDS_MIN..=SECONDS_MAX).contains(&seconds) => {
                Ok(Self { seconds, nanos: nanos as i32, offset })
            }
            _ => Err(EvalError::new("timestamp overflow")),
        }
    }

    /// Seconds since 1970.
    #[must_use]
    pub const fn unix_seconds(&self) -> i64 {
        self.seconds
    }

    pub(crate) fn from_unix(seconds: i64) -> Result<Self, EvalError> {
        Self::checked(i128::from(seconds), 0, 0)
    }

    pub(super) const fn is_zero(&self) -> bool {
        self.seconds == SECONDS_MIN && self.nanos == 0
    }

    /// Later by `nanos`.
    pub(crate) fn plus(&self, nanos: i128) -> Result<Self, EvalError> {
        let sum = i128::from(self.nanos) + nanos;
        let rest = sum.rem_euclid(i128::from(NANOS));
        let seconds = i128::from(self.seconds) + sum.div_euclid(i128::from(NANOS));
        Self::checked(seconds, rest as i64, self.offset)
    }

    /// The time from `other` to this one, in nanoseconds.
    pub(crate) fn since(&self, other: &Self) -> Result<i64, EvalError> {
        let seconds = i128::from(self.seconds) - i128::from(other.seconds);
        let nanos = seconds * i128::from(NANOS) + i128::from(self.nanos) - i128::from(other.nanos);
        i64::try_from(nanos).map_err(|_| EvalError::new("duration overflow"))
    }

    /// RFC 3339, with or without a fraction.
    pub(crate) fn parse(text: &str) -> Option<Result<Self, EvalError>> {
        let (date_time, rest) = parse_local(text)?;
        let offset = parse_offset(rest, true)?;
        Some(Self::at(date_time, offset))
    }

    fn at(date_time: DateTime, offset: i32) -> Result<Self, EvalError> {
        let overflow = || EvalError::new("timestamp overflow");
        let zone = Offset::from_seconds(offset).map_err(|_| overflow())?;
        let moment = zone.to_timestamp(date_time).map_err(|_| overflow())?;
        let nanos = date_time.subsec_nanosecond();
        let seconds = (moment.as_nanosecond() - i128::from(nanos)).div_euclid(i128::from(NANOS));
        Self::checked(seconds, i64::from(nanos), offset)
    }

    fn timestamp(&self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(i128::from(self.seconds) * i128::from(NANOS) + i128::from(self.nanos)).ok()
    }

    /// Date and time of day in UTC, or in a zone given by name or as an offset (`+02:00`).
    pub(crate) fn civil(&self, zone: Option<&str>) -> Result<DateTime, EvalError> {
        let zone = match zone {
            None | Some("" | "UTC") => TimeZone::UTC,
            Some(name) => match name.split_once(':') {
                Some((hours, minutes)) => fixed_zone(name, hours, minutes)?,
                None => {
                    TimeZone::get(name).map_err(|_| EvalError::new(format!("unknown time zone {name}")))?
                }
            },
        };
        let moment = self.timestamp().ok_or_else(|| EvalError::new("timestamp overflow"))?;
        Ok(zone.to_datetime(moment))
    }
}

fn fixed_zone(name: &str, hours: &str, minutes: &str) -> Result<TimeZone, EvalError> {
    let number = |text: &str| {
        text.parse::<i32>()
            .map_err(|_| EvalError::new(format!("strconv.Atoi: parsing \"{text}\": invalid syntax")))
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minutes = if name.starts_with('-') { -minutes } else { minutes };
    let seconds = hours.saturating_mul(60).saturating_add(minutes).saturating_mul(60);
    let offset =
        Offset::from_seconds(seconds).map_err(|_| EvalError::new(format!("unknown time zone {name}")))?;
    Ok(TimeZone::fixed(offset))
}

impl PartialEq for Moment {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Moment {}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Moment {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.seconds, self.nanos).cmp(&(other.seconds, other.nanos))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = Offset::from_seconds(self.offset)
            .ok()
            .and_then(|offset| Some(offset.to_datetime(self.timestamp()?)))
            .unwrap_or_default();
        let (year, month, day) = (local.year(), local.month(), local.day());
        let (hour, minute, second) = (local.hour(), local.minute(), local.second());
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        if self.nanos != 0 {
            write!(f, ".{}", format!("{:09}", self.nanos).trim_end_matches('0'))?;
        }
        if self.offset == 0 {
            return f.write_str("Z");
        }
        let minutes = self.offset.abs() / 60;
        let sign = if self.offset < 0 { '-' } else { '+' };
        write!(f, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
    }
}

/// The next `length` digits as a number.
fn digits(text: &mut &str, length: usize) -> Option<i32> {
    let found = text.get(..length).filter(|found| found.bytes().all(|byte| byte.is_ascii_digit()))?;
    *text = &text[length..];
    found.parse().ok()
}

fn mark(text: &mut &str, marks: &[char]) -> Option<()> {
    *text = text.strip_prefix(marks)?;
    Some(())
}

/// `2006-01-02`.
fn date(text: &mut &str) -> Option<Date> {
    let year = digits(text, 4)?;
    mark(text, &['-'])?;
    let month = digits(text, 2)?;
    mark(text, &['-'])?;
    let day = digits(text, 2)?;
    Date::new(year as i16, month as i8, day as i8).ok()
}

/// `2006-01-02T15:04:05.999`, and what follows it.
fn parse_local(text: &str) -> Option<(DateTime, &str)> {
    let mut rest = text;
    let day = date(&mut rest)?;
    mark(&mut rest, &['T'])?;
    let hour = digits(&mut rest, 2)?;
    mark(&mut rest, &[':'])?;
    let minute = digits(&mut rest, 2)?;
    mark(&mut rest, &[':'])?;
    let second = digits(&mut rest, 2)?;
    let mut nanos = 0;
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let length = fraction.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(fraction.len());
        if length == 0 {
            return None;
        }
        let padded: String = fraction[..length].chars().chain("000000000".chars()).take(9).collect();
        nanos = padded.parse().ok()?;
        rest = &fraction[length..];
    }
    let time = jiff::civil::Time::new(hour as i8, minute as i8, second as i8, nanos).ok()?;
    Some((day.to_datetime(time), rest))
}

/// `Z`, `+02:00`, or without the colon where that is allowed.
fn parse_offset(text: &str, colon: bool) -> Option<i32> {
    if text == "Z" {
        return Some(0);
    }
    let mut rest = text;
    let sign = if rest.starts_with('-') { -1 } else { 1 };
    mark(&mut rest, &['+', '-'])?;
    let hours = digits(&mut rest, 2)?;
    if colon {
        mark(&mut rest, &[':'])?;
    }
    let minutes = digits(&mut rest, 2)?;
    (rest.is_empty() && hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes) * 60)
}

/// `format: date`.
pub(crate) fn parse_date(text: &str) -> Option<Moment> {
    let mut rest = text;
    let day = date(&mut rest)?;
    if !rest.is_empty() {
        return None;
    }
    Moment::at(day.to_datetime(jiff::civil::Time::midnight()), 0).ok()
}

/// `format: date-time`, in all the forms that upstream's `strfmt` reads.
pub(crate) fn parse_date_time(text: &str) -> Option<Moment> {
    if text.is_empty() {
        return Moment::from_unix(0).ok();
    }
    if let Some((local, rest)) = parse_local(text) {
        let offset = if rest.is_empty() {
            0
        } else {
            parse_offset(rest, true).or_else(|| parse_offset(rest, false))?
        };
        return Moment::at(local, offset).ok();
    }
    // Reduced precision: no seconds.
    let body = text.strip_suffix('Z').unwrap_or(text);
    let (local, rest) = parse_local(&format!("{body}:00")).map(|(local, rest)| (local, rest.len()))?;
    (rest == 0).then(|| Moment::at(local, 0).ok())?
}

/// The units of Go's `time.ParseDuration`, in nanoseconds.
const UNITS: &[(&str, i128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A length of time as Go reads it: `1h30m`, `-1.5s`; in nanoseconds.
pub(crate) fn go_duration(text: &str) -> Option<i64> {
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() || text.len() > DURATION_BYTES_MAX {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (whole, fraction) = rest[..end].split_once('.').unwrap_or((&rest[..end], ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        rest = &rest[end..];
        let unit_end =
            rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..unit_end])?;
        rest = &rest[unit_end..];
        let whole: i128 = if whole.is_empty() { 0 } else { i128::from(whole.parse::<u64>().ok()?) };
        let kept = &fraction[..fraction.len().min(18)];
        let part: i128 = if kept.is_empty() { 0 } else { kept.parse::<i128>().ok()? };
        total += whole * unit + part * unit / 10_i128.pow(kept.len() as u32);
    }
    i64::try_from(if negative { -total } else { total }).ok()
}

/// `format: duration`: Go's form, or numbers with words such as `2 days`.
pub(crate) fn parse_schema_duration(text: &str) -> Option<i64> {
    const WORDS: &[(&str, i64)] = &[
        ("ns", 1),
        ("nano", 1),
        ("us", 1_000),
        ("\u{b5}s", 1_000),
        ("micro", 1_000),
        ("ms", 1_000_000),
        ("milli", 1_000_000),
        ("s", NANOS),
        ("sec", NANOS),
        ("m", 60 * NANOS),
        ("min", 60 * NANOS),
        ("h", 3_600 * NANOS),
        ("hr", 3_600 * NANOS),
        ("hour", 3_600 * NANOS),
        ("d", 86_400 * NANOS),
        ("day", 86_400 * NANOS),
        ("w", 604_800 * NANOS),
        ("week", 604_800 * NANOS),
        ("wk", 604_800 * NANOS),
    ];
    if let Some(nanos) = go_duration(text) {
        return Some(nanos);
    }
    if text.len() > DURATION_BYTES_MAX {
        return None;
    }
    let mut total: Option<i64> = None;
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit())?;
        let number: i64 = rest[..end].parse().ok()?;
        rest = rest[end..].trim_start();
        let word_end = rest.find(|letter: char| !letter.is_alphabetic()).unwrap_or(rest.len());
        let word = rest[..word_end].to_lowercase();
        let singular = word.strip_suffix('s').filter(|singular| singular.len() > 1).unwrap_or(&word);
        let (_, unit) = WORDS.iter().find(|(name, _)| *name == word || *name == singular)?;
        total = Some(total.unwrap_or(0).checked_add(number.checked_mul(*unit)?)?);
        rest = rest[word_end..].trim_start();
    }
    total
}

/// A length of time as CEL writes it: seconds, with a fraction where there is one.
pub(crate) fn duration_text(nanos: i64) -> String {
    format!("{}s", (nanos / NANOS) as f64 + (nanos % NANOS) as f64 / NANOS as f64)
}
