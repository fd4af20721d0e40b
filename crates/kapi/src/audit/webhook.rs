//! Audit events posted to a service in batches (`--audit-webhook-config-file`), as upstream's `audit/buffered` and
//! `audit/webhook`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::{JoinHandle, JoinSet},
    time::Instant,
};

use super::{AuditEvent, AuditSink};
use crate::outbound::{CALL_MAX, Remote};

/// How many batches are on their way at a time.
pub const CALLS_MAX: usize = 16;
/// How often a batch is tried before it is given up (upstream's back-off has five steps).
pub const RETRIES_MAX: u32 = 5;

/// How an [`AuditWebhook`] sends. Defaults are upstream's.
#[derive(Clone, Debug)]
pub struct BatchConfig {
    /// How many events wait; more are dropped and counted (`--audit-webhook-batch-buffer-size`). Default: 10,000.
    pub buffer_max: usize,
    /// How many events are sent at once (`--audit-webhook-batch-max-size`). Default: 400.
    pub batch_max: usize,
    /// How long events wait for others to be sent with (`--audit-webhook-batch-max-wait`). Default: 30 s.
    pub wait_max: Duration,
    /// How many batches are sent in a second, in the long run (`--audit-webhook-batch-throttle-qps`). Default: 10.
    pub batches_per_second: u32,
    /// How many may be sent at once before that holds (`--audit-webhook-batch-throttle-burst`). Default: 15.
    pub burst_max: u32,
    /// How long to wait before a batch is tried again, at first; then half as long again each time
    /// (`--audit-webhook-initial-backoff`). Default: 10 s.
    pub backoff: Duration,
    /// How large an event may be, in bytes, before its bodies are left out. Default: no limit.
    pub event_bytes_max: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            buffer_max: 10_000,
            batch_max: 400,
            wait_max: Duration::from_secs(30),
            batches_per_second: 10,
            burst_max: 15,
            backoff: Duration::from_secs(10),
            event_bytes_max: usize::MAX,
        }
    }
}

/// What waits for the sender.
#[derive(Debug)]
enum Queued {
    Event(Vec<u8>),
    /// Somebody waits until all before it has been sent, or given up.
    Flush(oneshot::Sender<()>),
}

/// Posts events to a service as an `EventList`. A request never waits for it: when the service is slower than the requests,
/// events are dropped and counted.
#[derive(Debug)]
pub struct AuditWebhook {
    queue: mpsc::Sender<Queued>,
    lost: Arc<AtomicU64>,
    event_bytes_max: usize,
    sender: JoinHandle<()>,
}

impl AuditWebhook {
    /// Begins to send, until it is dropped or [closed](Self::close).
    ///
    /// # Panics
    /// When it is called outside of a tokio runtime.
    #[must_use]
    pub fn start(remote: Remote, config: BatchConfig) -> Self {
        let (queue, events) = mpsc::channel(config.buffer_max.max(1));
        let lost = Arc::new(AtomicU64::new(0));
        let event_bytes_max = config.event_bytes_max;
        let sender = Batches { remote: Arc::new(remote), config, lost: Arc::clone(&lost) };
        let sender = tokio::spawn(sender.run(events));
        Self { queue, lost, event_bytes_max, sender }
    }

    /// How many events were dropped, because too many waited or their batch could not be sent.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Sends what waits and ends.
    pub async fn close(self) {
        let Self { queue, sender, .. } = self;
        drop(queue);
        if let Err(error) = sender.await {
            tracing::error!(%error, "the sender of audit events failed");
        }
    }
}

impl AuditSink for AuditWebhook {
    fn record(&self, event: &AuditEvent<'_>) {
        if self.queue.try_send(Queued::Event(event.to_json_within(self.event_bytes_max))).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let (done, flushed) = oneshot::channel();
            if self.queue.send(Queued::Flush(done)).await.is_ok() {
                // An error means that the sender is gone, and with it all that waited.
                let _ = flushed.await;
            }
        })
    }
}

struct Batches {
    remote: Arc<Remote>,
    config: BatchConfig,
    lost: Arc<AtomicU64>,
}

impl Batches {
    async fn run(self, mut events: mpsc::Receiver<Queued>) {
        let permits = Arc::new(Semaphore::new(CALLS_MAX));
        let mut calls = JoinSet::new();
        let mut throttle = Throttle::new(self.config.batches_per_second, self.config.burst_max);
        let mut open = true;
        while open {
            let mut batch = Vec::new();
            let mut waits = None;
            let until = Instant::now() + self.config.wait_max;
            while batch.len() < self.config.batch_max.max(1) {
                match tokio::time::timeout_at(until, events.recv()).await {
                    Ok(Some(Queued::Event(event))) => batch.push(event),
                    Ok(Some(Queued::Flush(done))) => {
                        waits = Some(done);
                        break;
                    }
                    Ok(None) => {
                        open = false;
                        break;
                    }
                    Err(_) => break,
                }
            }
            if !batch.is_empty() {
                throttle.wait().await;
                // The semaphore is never closed.
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                    return;
                };
                let (remote, lost, backoff) =
                    (Arc::clone(&self.remote), Arc::clone(&self.lost), self.config.backoff);
                calls.spawn(async move {
                    let _permit = permit;
                    send(&remote, &lost, backoff, batch).await;
                });
            }
            while calls.try_join_next().is_some() {}
            if let Some(done) = waits {
                while calls.join_next().await.is_some() {}
                // Whoever asked may have gone.
                let _ = done.send(());
            }
        }
        while calls.join_next().await.is_some() {}
    }
}

/// Sends a batch. Whatever goes wrong, it is tried again: hardly any error says that the service will not take it later.
async fn send(remote: &Remote, lost: &AtomicU64, backoff: Duration, batch: Vec<Vec<u8>>) {
    let mut body = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    body.extend_from_slice(&batch.join(&b','));
    body.extend_from_slice(b"]}");
    let body = bytes::Bytes::from(body);
    let mut wait = backoff;
    for attempt in 1..=RETRIES_MAX {
        let why = match remote.post(body.clone(), CALL_MAX).await {
            Ok(answer) if answer.status.is_success() => return,
            Ok(answer) => format!("the server answered {}", answer.status),
            Err(why) => why,
        };
        tracing::warn!(attempt, why, "a batch of audit events could not be sent");
        if attempt < RETRIES_MAX {
            tokio::time::sleep(wait).await;
            wait = wait.mul_f64(1.5);
        }
    }
    lost.fetch_add(batch.len() as u64, Ordering::Relaxed);
}

/// A bucket of tokens that fills steadily.
struct Throttle {
    every: Duration,
    burst: u32,
    tokens: u32,
    filled: Instant,
}

impl Throttle {
    fn new(per_second: u32, burst: u32) -> Self {
        let burst = burst.max(1);
        let every = Duration::from_secs(1) / per_second.max(1);
        Self { every, burst, tokens: burst, filled: Instant::now() }
    }

    async fn wait(&mut self) {
        loop {
            while self.tokens < self.burst && self.filled + self.every <= Instant::now() {
                self.tokens += 1;
                self.filled += self.every;
            }
            if self.tokens == self.burst {
                self.filled = Instant::now();
            }
            if self.tokens > 0 {
                self.tokens -= 1;
                return;
            }
            tokio::time::sleep_until(self.filled + self.every).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_after_the_burst() {
        let start = Instant::now();
        let mut throttle = Throttle::new(10, 3);
        let mut times = Vec::new();
        for _ in 0..6 {
            throttle.wait().await;
            times.push(start.elapsed().as_millis());
        }
        assert_eq!(times[..3], [0, 0, 0]);
        for (index, time) in times[3..].iter().enumerate() {
            let expected = 100 * (index as u128 + 1);
            assert!((expected..expected + 5).contains(time), "{times:?}");
        }
    }
}
