//! Moments and lengths of time, read and written as Go does.

use std::{cmp::Ordering, fmt};

use jiff::{
    Timestamp,
    civil::{Date, DateTime},
    tz::TimeZone,
};

use crate::error::EvalError;

/// The first and the last second that a moment can have: the years 1 and 9999.
const SECONDS_MIN: i64 = -62_135_596_800;
const SECONDS_MAX: i64 = 253_402_300_799;
const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;
/// The days of 400 years, after which the calendar repeats itself, and those from March of the year 0 to 1970.
const DAYS_PER_ERA: i64 = 146_097;
const EPOCH_DAY: i64 = 719_468;
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
        let seconds = unix_seconds(date_time) - i64::from(offset);
        Self::checked(i128::from(seconds), i64::from(date_time.subsec_nanosecond()), offset)
    }

    /// Date and time of day at an offset from UTC, in seconds.
    fn local(&self, offset: i32) -> DateTime {
        let seconds = self.seconds + i64::from(offset);
        let since_midnight = seconds.rem_euclid(DAY);
        let (hour, minute) = (since_midnight / 3600, since_midnight % 3600 / 60);
        let time = jiff::civil::Time::new(hour as i8, minute as i8, (since_midnight % 60) as i8, self.nanos);
        date_of(seconds.div_euclid(DAY)).to_datetime(time.unwrap_or_default())
    }

    fn timestamp(&self) -> Option<Timestamp> {
        Timestamp::from_nanosecond(i128::from(self.seconds) * i128::from(NANOS) + i128::from(self.nanos)).ok()
    }

    /// Date and time of day in UTC, or in a zone given by name or as an offset (`+02:00`).
    pub(crate) fn civil(&self, zone: Option<&str>) -> Result<DateTime, EvalError> {
        let name = match zone {
            None | Some("" | "UTC") => return Ok(self.local(0)),
            Some(name) => name,
        };
        if let Some((hours, minutes)) = name.split_once(':') {
            return Ok(self.local(fixed_offset(name, hours, minutes)?));
        }
        let zone = TimeZone::get(name).map_err(|_| EvalError::new(format!("unknown time zone {name}")))?;
        let moment = self.timestamp().ok_or_else(|| EvalError::new("timestamp overflow"))?;
        Ok(zone.to_datetime(moment))
    }
}

/// The offset that is written as hours and minutes, in seconds; less than a day in either direction.
fn fixed_offset(name: &str, hours: &str, minutes: &str) -> Result<i32, EvalError> {
    let number = |text: &str| {
        text.parse::<i32>()
            .map_err(|_| EvalError::new(format!("strconv.Atoi: parsing \"{text}\": invalid syntax")))
    };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let minutes = if name.starts_with('-') { -minutes } else { minutes };
    let seconds = hours.saturating_mul(60).saturating_add(minutes).saturating_mul(60);
    if i64::from(seconds).abs() < DAY {
        Ok(seconds)
    } else {
        Err(EvalError::new(format!("unknown time zone {name}")))
    }
}

/// Seconds since 1970 of a date and time of day in UTC.
fn unix_seconds(local: DateTime) -> i64 {
    let (year, month, day) = (i64::from(local.year()), i64::from(local.month()), i64::from(local.day()));
    // Years that begin in March, so that a leap day is the last one.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_era = year * 365 + year / 4 - year / 100 + (153 * month + 2) / 5 + day - 1;
    let days = era * DAYS_PER_ERA + day_of_era - EPOCH_DAY;
    days * DAY + i64::from(local.hour()) * 3600 + i64::from(local.minute()) * 60 + i64::from(local.second())
}

/// The date that is so many days after 1970-01-01.
fn date_of(days: i64) -> Date {
    let days = days + EPOCH_DAY;
    let (era, day) = (days.div_euclid(DAYS_PER_ERA), days.rem_euclid(DAYS_PER_ERA));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    Date::new((era * 400 + year + carry) as i16, month as i8, day as i8).unwrap_or_default()
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
        let local = self.local(self.offset);
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
