//! Schedules in cron's notation, as CronJobs have them.
//!
//! The notation, the words of its errors and the way of counting over changes of the clock are those of
//! `robfig/cron` v3, which Kubernetes uses: five fields (minute, hour, day of the month, month, day of the week) or a
//! descriptor such as `@hourly` or `@every 90m`, with `TZ=` before them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp, ToSpan, civil, tz::TimeZone};

mod duration;
mod parse;
mod zone;

/// How many years ahead a time is looked for; there may be none, as for the 30th of February.
pub const YEARS_AHEAD_MAX: i16 = 5;
const SECONDS_PER_HOUR: i64 = 3600;

/// When something is to happen, again and again.
///
/// ```
/// use kcore::cron::Schedule;
/// let schedule: Schedule = "30 2 * * MON-FRI".parse()?;
/// let friday = "2030-03-01T02:30:00Z".parse().unwrap();
/// assert_eq!(schedule.next(friday).unwrap().to_string(), "2030-03-04T02:30:00Z");
/// # Ok::<(), kcore::cron::CronError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    zone: TimeZone,
    times: Times,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Times {
    /// Sets of bits: minute, hour, day of the month, month, day of the week.
    Fields([u64; 5]),
    Every(Duration),
}

/// Why a text is no schedule, or no time zone, in the words of `robfig/cron` and of Go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CronError(String);

impl std::str::FromStr for Schedule {
    type Err = CronError;

    /// Reads a schedule; its times are those of UTC unless it starts with `TZ=` or `CRON_TZ=` and a zone.
    fn from_str(text: &str) -> Result<Self, CronError> {
        parse::schedule(text).map_err(CronError)
    }
}

/// A zone of the IANA database by its exact name; nothing, `UTC` and `Local` are UTC.
///
/// The database is part of the program, so that every machine knows the same zones.
///
/// # Errors
/// When there is no such zone.
pub fn zone(name: &str) -> Result<TimeZone, CronError> {
    zone::load(name).map_err(CronError)
}

impl Schedule {
    /// The first time after this one; `None` when there is none within [`YEARS_AHEAD_MAX`] years.
    #[must_use]
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let whole = Timestamp::from_second(after.as_second()).ok()?;
        match &self.times {
            Times::Every(period) => whole.checked_add(*period).ok(),
            Times::Fields(fields) => {
                let start = Moment { zone: &self.zone, seconds: whole.as_second() + 1 };
                next_of(fields, start)
            }
        }
    }
}

/// Set in the fields of days when they were a star.
const STAR: u64 = 1 << 63;

fn has(bits: u64, number: i8) -> bool {
    u32::try_from(number).is_ok_and(|number| bits & (1 << number) != 0)
}

fn fits_day(day: u64, weekday: u64, date: civil::Date) -> bool {
    let of_month = has(day, date.day());
    let of_week = has(weekday, date.weekday().to_sunday_zero_offset());
    if day & STAR != 0 || weekday & STAR != 0 { of_month && of_week } else { of_month || of_week }
}

/// Goes from the month to the second, and starts over whenever a larger unit has changed.
fn next_of([minute, hour, day, month, weekday]: &[u64; 5], mut time: Moment<'_>) -> Option<Timestamp> {
    let last_year = time.civil()?.year().checked_add(YEARS_AHEAD_MAX)?;
    // Whether the units below the one that has changed are at their lowest.
    let mut floored = false;
    'again: loop {
        if time.civil()?.year() > last_year {
            return None;
        }
        while !has(*month, time.civil()?.month()) {
            if !std::mem::replace(&mut floored, true) {
                time = time.at(time.civil()?.date().first_of_month().at(0, 0, 0, 0))?;
            }
            time = time.at(time.civil()?.checked_add(1.month()).ok()?)?;
            if time.civil()?.month() == 1 {
                continue 'again;
            }
        }
        while !fits_day(*day, *weekday, time.civil()?.date()) {
            if !std::mem::replace(&mut floored, true) {
                time = time.at(time.civil()?.date().at(0, 0, 0, 0))?;
            }
            time = time.at(time.civil()?.checked_add(1.day()).ok()?)?;
            // There are days without a midnight.
            match i64::from(time.civil()?.hour()) {
                hour @ 13.. => time.seconds += (24 - hour) * SECONDS_PER_HOUR,
                hour => time.seconds -= hour * SECONDS_PER_HOUR,
            }
            if time.civil()?.day() == 1 {
                continue 'again;
            }
        }
        while !has(*hour, time.civil()?.hour()) {
            if !std::mem::replace(&mut floored, true) {
                let start = time.civil()?;
                time = time.at(start.date().at(start.hour(), 0, 0, 0))?;
            }
            time.seconds += SECONDS_PER_HOUR;
            if time.civil()?.hour() == 0 {
                continue 'again;
            }
        }
        while !has(*minute, time.civil()?.minute()) || time.civil()?.second() != 0 {
            if !std::mem::replace(&mut floored, true) {
                time.seconds -= time.seconds.rem_euclid(60);
            }
            time.seconds += 60;
            if time.civil()?.minute() == 0 {
                continue 'again;
            }
        }
        return Timestamp::from_second(time.seconds).ok();
    }
}

/// A time as people in a zone see it.
#[derive(Clone, Copy)]
struct Moment<'a> {
    zone: &'a TimeZone,
    seconds: i64,
}

impl Moment<'_> {
    fn civil(&self) -> Option<civil::DateTime> {
        Some(self.zone.to_datetime(Timestamp::from_second(self.seconds).ok()?))
    }

    /// The moment at which clocks show this. What they show twice, or never, is taken for what Go's `time.Date` takes
    /// it for: the offset that holds at the time that the offset found for these numbers as UTC leads to.
    fn at(&self, shown: civil::DateTime) -> Option<Self> {
        let as_utc = TimeZone::UTC.to_timestamp(shown).ok()?;
        let offset = |at: Timestamp| SignedDuration::from(self.zone.to_offset(at));
        let guess = as_utc.checked_sub(offset(as_utc)).ok()?;
        let time = as_utc.checked_sub(offset(guess)).ok()?;
        Some(Self { zone: self.zone, seconds: time.as_second() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(schedule: &str, after: &str) -> Option<Timestamp> {
        schedule.parse::<Schedule>().unwrap().next(after.parse().unwrap())
    }

    /// The cases are of `robfig/cron` v3 (`spec_test.go`, `parser_test.go`).
    #[test]
    fn the_next_time_is_found() {
        let cases = [
            ("2012-07-09T14:45:00Z", "0/15 * * * *", "2012-07-09T15:00:00Z"),
            ("2012-07-09T14:59:59Z", "0/15 * * * *", "2012-07-09T15:00:00Z"),
            ("2012-07-09T15:45:00Z", "20-35/15 * * * *", "2012-07-09T16:20:00Z"),
            ("2012-07-09T23:46:00Z", "*/15 * * * *", "2012-07-10T00:00:00Z"),
            ("2012-07-09T23:35:51Z", "20-35/15 1/2 * * *", "2012-07-10T01:20:00Z"),
            ("2012-07-09T23:35:00Z", "0 0 1/3 Jul-Oct Thu", "2012-07-10T00:00:00Z"),
            ("2012-12-31T23:59:45Z", "* * * * *", "2013-01-01T00:00:00Z"),
            ("2012-07-09T23:35:00Z", "0 0 29 Feb ?", "2016-02-29T00:00:00Z"),
            ("2012-07-09T00:00:00Z", "0 0 1,15 * Sun", "2012-07-15T00:00:00Z"),
            ("2012-07-15T00:00:00Z", "0 0 * * Mon", "2012-07-16T00:00:00Z"),
            ("2012-07-15T00:00:00Z", "0 0 */10 * Sun", "2012-07-21T00:00:00Z"),
            ("2012-07-09T14:59:30Z", "@hourly", "2012-07-09T15:00:00Z"),
            ("2012-07-09T14:59:30Z", "@weekly", "2012-07-15T00:00:00Z"),
            ("2012-07-09T14:59:30Z", "@yearly", "2013-01-01T00:00:00Z"),
            ("2012-07-09T14:59:30Z", "@every 1h30m", "2012-07-09T16:29:30Z"),
            ("2012-07-09T14:59:30.5Z", "@every 100ms", "2012-07-09T14:59:31Z"),
            ("2012-07-09T14:59:30Z", "@every -5m", "2012-07-09T14:59:31Z"),
        ];
        for (after, text, expected) in cases {
            let next = next(text, after).map(|next| next.to_string());
            assert_eq!(next.as_deref(), Some(expected), "{text} after {after}");
        }
        for text in ["0 0 30 Feb ?", "0 0 31 Apr ?"] {
            assert_eq!(next(text, "2012-07-09T23:35:00Z"), None, "{text}");
        }
    }

    /// Hours that a change of the clock skips or repeats. The first ones are of `robfig/cron` (`spec_test.go`); those of
    /// days without a midnight follow from what Go's `time.Date` documents and does.
    #[test]
    fn clocks_that_change_are_followed() {
        let new_york = "America/New_York";
        let cases = [
            (new_york, "2012-03-11T00:00:00-05:00", "30 2 11 Mar ?", "2013-03-11T02:30:00-04:00"),
            (new_york, "2012-03-11T00:00:00-05:00", "0 * * * ?", "2012-03-11T01:00:00-05:00"),
            (new_york, "2012-03-11T01:00:00-05:00", "0 * * * ?", "2012-03-11T03:00:00-04:00"),
            (new_york, "2012-03-11T03:00:00-04:00", "0 * * * ?", "2012-03-11T04:00:00-04:00"),
            (new_york, "2012-03-11T00:00:00-05:00", "0 2 * * ?", "2012-03-12T02:00:00-04:00"),
            (new_york, "2012-11-04T00:00:00-04:00", "30 2 04 Nov ?", "2012-11-04T02:30:00-05:00"),
            (new_york, "2012-11-04T01:45:00-04:00", "30 1 04 Nov ?", "2012-11-04T01:30:00-05:00"),
            (new_york, "2012-11-04T00:00:00-04:00", "0 1 * * ?", "2012-11-04T01:00:00-04:00"),
            (new_york, "2012-11-04T01:00:00-04:00", "0 1 * * ?", "2012-11-04T01:00:00-05:00"),
            // Half an hour, and an offset of its own.
            ("Asia/Kolkata", "2016-01-03T13:09:03+05:30", "14 14 * * *", "2016-01-03T14:14:00+05:30"),
            // No midnight: clocks go from 23:59:59 to 01:00.
            ("America/Sao_Paulo", "2018-11-03T05:00:00-03:00", "0 9 4 Nov ?", "2018-11-04T09:00:00-02:00"),
            ("America/Sao_Paulo", "2018-11-03T05:00:00-03:00", "0 0 4 Nov ?", "2019-11-04T00:00:00-03:00"),
        ];
        for (zone, after, text, expected) in cases {
            let next = next(&format!("TZ={zone} {text}"), after);
            assert_eq!(next, Some(expected.parse().unwrap()), "{zone} {text} after {after}");
        }
    }

    #[test]
    fn zones_can_be_had_by_name() {
        let berlin = zone("Europe/Berlin").unwrap();
        let summer = "2030-07-01T10:00:00Z".parse::<Timestamp>().unwrap();
        assert_eq!(summer.to_zoned(berlin).hour(), 12);
        assert_eq!(zone("Mars/Base").unwrap_err().to_string(), "unknown time zone Mars/Base");
    }
}
