//! Where the time comes from.

use std::fmt::Debug;

use jiff::{SignedDuration, Timestamp};

/// The time, as an instant on the calendar.
///
/// Everything in kplane that writes or compares a timestamp asks a `Clock`; everything that waits uses
/// [`tokio::time`]. With [`TokioClock`] the two agree, so a paused tokio runtime gives virtual time throughout.
///
/// Implementations are called from any thread and must not block.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time now. Later calls never return an earlier time unless the machine's clock was set back.
    fn now(&self) -> Timestamp;
}

/// The machine's clock. It does not follow a paused tokio runtime; use it outside of one.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is the one place where the machine's clock is read")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The machine's time when the clock was made, moved on by [`tokio::time::Instant`]: it stands still while tokio's
/// time is paused and jumps with `tokio::time::advance`. The default clock of a cluster.
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    base: Timestamp,
    started: tokio::time::Instant,
}

impl TokioClock {
    /// A clock that starts at the machine's time.
    #[must_use]
    pub fn new() -> Self {
        Self::starting_at(SystemClock.now())
    }

    /// A clock that starts at `base`, for tests that need the same timestamps every time.
    #[must_use]
    pub fn starting_at(base: Timestamp) -> Self {
        Self { base, started: tokio::time::Instant::now() }
    }
}

impl Default for TokioClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.started.elapsed()).unwrap_or(SignedDuration::MAX);
        self.base.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }
}

/// `timestamp` as Kubernetes writes a `metav1.Time`: RFC 3339 in UTC with whole seconds.
#[must_use]
pub fn format_time(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// `timestamp` as Kubernetes writes a `metav1.MicroTime`: RFC 3339 in UTC with six decimals.
#[must_use]
pub fn format_micro_time(timestamp: Timestamp) -> String {
    timestamp.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tokio_clock_follows_paused_time() {
        let clock = TokioClock::starting_at(Timestamp::UNIX_EPOCH);
        tokio::time::advance(std::time::Duration::from_secs(86_400)).await;
        assert_eq!(format_time(clock.now()), "1970-01-02T00:00:00Z");
        assert_eq!(format_micro_time(clock.now()), "1970-01-02T00:00:00.000000Z");
    }
}
