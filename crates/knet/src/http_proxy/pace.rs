//! Whether a client sends its body fast enough to be waited for.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep};

use super::{BODY_GRACE, BODY_PAUSE_MAX, BODY_RATE_MIN};

/// Measures how long a client was waited for, and what came meanwhile. The time in which nobody wanted more of the body, as a backend is
/// slow, does not count.
pub(super) struct Pace {
    timer: Pin<Box<Sleep>>,
    /// Since when the next part is waited for.
    waiting: Option<Instant>,
    waited: Duration,
    bytes: u64,
    /// Told that the client was too slow.
    late: Arc<AtomicBool>,
}

impl Pace {
    pub(super) fn new(late: Arc<AtomicBool>) -> Self {
        let timer = Box::pin(sleep(BODY_PAUSE_MAX));
        Self { timer, waiting: None, waited: Duration::ZERO, bytes: 0, late }
    }

    /// Nothing has come. Ready when that was so for too long.
    pub(super) fn poll_pause(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.waiting.is_none() {
            let now = Instant::now();
            self.waiting = Some(now);
            self.timer.as_mut().reset(now + BODY_PAUSE_MAX);
        }
        let polled = self.timer.as_mut().poll(context);
        if polled.is_ready() {
            self.late.store(true, Ordering::Relaxed);
        }
        polled
    }

    /// A part has come. Whether the client is fast enough.
    pub(super) fn note(&mut self, bytes: usize) -> bool {
        if let Some(since) = self.waiting.take() {
            self.waited += since.elapsed();
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let is_late = !is_fast_enough(self.bytes, self.waited);
        if is_late {
            self.late.store(true, Ordering::Relaxed);
        }
        !is_late
    }
}

fn is_fast_enough(bytes: u64, waited: Duration) -> bool {
    waited <= BODY_GRACE || bytes >= waited.as_secs().saturating_mul(BODY_RATE_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slowness_is_forgiven_for_a_while() {
        let second = Duration::from_secs(1);
        for (bytes, waited, expected) in [
            (0, BODY_GRACE, true),
            (0, BODY_GRACE + second, false),
            (1, BODY_GRACE * 4, false),
            (BODY_RATE_MIN * BODY_GRACE.as_secs() * 4, BODY_GRACE * 4, true),
            (u64::MAX, Duration::MAX, true),
        ] {
            assert_eq!(is_fast_enough(bytes, waited), expected, "{bytes} in {waited:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_waiting_counts() {
        let late = Arc::new(AtomicBool::new(false));
        let mut pace = Pace::new(Arc::clone(&late));
        // The backend takes its time: nobody waits for the client.
        tokio::time::advance(BODY_GRACE * 10).await;
        assert!(pace.note(1));
        // One byte each time, just before the pause is too long.
        let pause = BODY_PAUSE_MAX.checked_sub(Duration::from_secs(1)).unwrap();
        let mut bytes = 1;
        loop {
            std::future::poll_fn(|context| {
                assert!(pace.poll_pause(context).is_pending());
                Poll::Ready(())
            })
            .await;
            tokio::time::advance(pause).await;
            bytes += 1;
            if !pace.note(1) {
                break;
            }
        }
        assert!(late.load(Ordering::Relaxed) && bytes < 5, "{bytes}");
    }
}
