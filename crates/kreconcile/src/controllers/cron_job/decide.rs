//! What a CronJob asks for at a moment: pure functions of the objects and the time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{
        batch::v1::{CronJob, CronJobStatus, Job},
        core::v1::ObjectReference,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kcore::cron::{CronError, Schedule};

/// How long after a scheduled time a CronJob is looked at, for clocks that differ a little (upstream's
/// `nextScheduleDelta`).
pub(super) const SCHEDULE_DELTA: Duration = Duration::from_millis(100);
/// From this many missed times on there is a warning.
pub(super) const MISSED_TIMES_MAX: i64 = 100;

/// The times that matter now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Missed {
    /// From when on times count: the last one that was served, the creation, or the deadline for starting.
    earliest: Timestamp,
    /// The most recent time that was not served.
    pub(super) latest: Option<Timestamp>,
    /// About how many times were not served.
    pub(super) count: i64,
}

/// What to do about the schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// No job is due before this much time has gone by.
    Nothing(Duration),
    /// The time for this run has gone by.
    TooLate(Timestamp, Duration),
    /// A run is due; the next look is after this much time.
    Run { at: Timestamp, too_many_missed: bool, next: Duration },
    /// The schedule names the same time again and again, or none.
    Never,
}

/// The schedule with its zone, as `robfig/cron` reads it. A zone within the schedule wins.
pub(super) fn schedule(job: &CronJob) -> Result<Schedule, CronError> {
    let spec = &job.spec;
    match &spec.time_zone {
        Some(zone) if !spec.schedule.contains("TZ") && kcore::cron::zone(zone).is_ok() => {
            format!("TZ={zone} {}", spec.schedule).parse()
        }
        _ => spec.schedule.parse(),
    }
}

/// Finds the most recent time of the schedule that was not served, without going through all of those before it
/// (upstream's `mostRecentScheduleTime`). `None` when the schedule makes no sense, such as the 31st of February.
pub(super) fn missed(job: &CronJob, now: Timestamp, schedule: &Schedule, deadline: bool) -> Option<Missed> {
    let created = job.metadata.creation_timestamp.as_ref().map_or(now, |time| time.0);
    let last = job.status.as_ref().and_then(|status| status.last_schedule_time.as_ref());
    let mut earliest = last.map_or(created, |time| time.0);
    let window = job.spec.starting_deadline_seconds;
    if let Some(start) = window.filter(|_| deadline).and_then(|window| before(now, window)) {
        earliest = earliest.max(start);
    }
    let first = schedule.next(earliest)?;
    if now < first {
        return Some(Missed { earliest, latest: None, count: 0 });
    }
    let second = schedule.next(first)?;
    if now < second {
        return Some(Missed { earliest, latest: Some(first), count: 0 });
    }
    // The times between are counted as if all were as far apart as the first two, and the search begins two before the
    // last.
    let period = second.duration_since(first).as_secs();
    if period < 1 {
        return None;
    }
    let count = now.duration_since(first).as_secs() / period + 1;
    let mut time = first.checked_add(SignedDuration::from_secs((count - 2) * period)).ok()?;
    let mut latest = None;
    while let Some(next) = schedule.next(time).filter(|next| *next <= now) {
        (latest, time) = (Some(next), next);
    }
    Some(Missed { earliest, latest, count })
}

fn before(time: Timestamp, seconds: i64) -> Option<Timestamp> {
    time.checked_sub(SignedDuration::from_secs(seconds)).ok()
}

/// How long until the CronJob is to be looked at again (upstream's `nextScheduleTimeDuration`).
pub(super) fn wait(job: &CronJob, now: Timestamp, schedule: &Schedule) -> Option<Duration> {
    let from = match missed(job, now, schedule, false) {
        None => now,
        Some(Missed { latest: Some(latest), .. }) => latest,
        Some(Missed { earliest, count: 0, .. }) => earliest,
        Some(_) => now,
    };
    let next = schedule.next(from)?.duration_since(now);
    Some(Duration::try_from(next).unwrap_or_default() + SCHEDULE_DELTA)
}

/// Whether a run is due.
pub(super) fn due(job: &CronJob, now: Timestamp, schedule: &Schedule) -> Due {
    let Some(missed) = missed(job, now, schedule, true) else { return Due::Never };
    // A schedule without a time ahead is looked at again when it changes.
    let Some(next) = wait(job, now, schedule) else { return Due::Never };
    let Some(at) = missed.latest else { return Due::Nothing(next) };
    let window = job.spec.starting_deadline_seconds;
    if window.and_then(|window| before(now, window)).is_some_and(|start| at < start) {
        return Due::TooLate(at, next);
    }
    Due::Run { at, too_many_missed: missed.count > MISSED_TIMES_MAX, next }
}

/// The name of the job of a run: the same for the same time, so that there is one only.
pub(super) fn job_name(cron: &str, at: Timestamp) -> String {
    format!("{cron}-{}", at.as_second().div_euclid(60))
}

/// How a job has ended: `Complete` or `Failed`.
pub(super) fn ended(job: &Job) -> Option<&str> {
    let conditions = job.status.as_ref()?.conditions.iter().flatten();
    let ended = |kind: &str| matches!(kind, "Complete" | "Failed");
    let mut types = conditions.filter(|known| known.status == "True").map(|known| &*known.type_);
    types.find(|kind| ended(kind))
}

/// The jobs that are too many of those that have ended, the oldest first.
pub(super) fn surplus<'a>(cron: &CronJob, jobs: &'a [std::sync::Arc<Job>]) -> Vec<&'a Job> {
    let spec = &cron.spec;
    let mut surplus = Vec::new();
    let limits =
        [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    for (how, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let mut of_kind: Vec<&Job> =
            jobs.iter().map(|job| &**job).filter(|job| ended(job) == Some(how)).collect();
        of_kind.sort_by_key(|job| {
            let start = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            (start.is_none(), start, job.metadata.name.clone())
        });
        of_kind.truncate(of_kind.len().saturating_sub(limit));
        surplus.extend(of_kind);
    }
    surplus
}

/// The jobs that a status names as running.
pub(super) fn active(status: &CronJobStatus) -> &[ObjectReference] {
    status.active.as_deref().unwrap_or_default()
}

/// Takes a job off the list of those that run.
pub(super) fn remove_active(status: &mut CronJobStatus, uid: &str) {
    if let Some(active) = &mut status.active {
        active.retain(|known| known.uid.as_deref() != Some(uid));
    }
    if status.active.as_ref().is_some_and(Vec::is_empty) {
        status.active = None;
    }
}

/// Keeps the time of the latest success.
pub(super) fn note_success(status: &mut CronJobStatus, job: &Job) {
    let completed: Option<Time> = job.status.as_ref().and_then(|status| status.completion_time.clone());
    if let Some(completed) = completed
        && status.last_successful_time.as_ref().is_none_or(|known| known.0 < completed.0)
    {
        status.last_successful_time = Some(completed);
    }
}
