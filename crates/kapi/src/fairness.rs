//! How much the server does at the same time.
//!
//! Requests that come to more than [`REQUESTS_MAX`] wait for their turn in the order in which they came; when more than
//! [`WAITING_MAX`] wait, the next one is told to come back (429). Watches and upgraded connections last long and are not counted,
//! as in upstream. Priority levels and flow schemas are not there yet: all callers are equal.

use std::sync::atomic::{AtomicUsize, Ordering};

use kcore::{Status, status::StatusDetails};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::{error::ApiResult, request::RequestInfo};

/// How many requests are worked on at the same time (`--max-requests-inflight` and `--max-mutating-requests-inflight`).
pub const REQUESTS_MAX: usize = 600;
/// How many requests wait.
pub const WAITING_MAX: usize = 20_000;
/// When a caller that was sent away may come back, in seconds.
const RETRY_AFTER_SECONDS: u32 = 1;

/// Counts the requests of one server.
#[derive(Debug)]
pub(crate) struct Fairness {
    permits: Semaphore,
    waiting: AtomicUsize,
}

impl Default for Fairness {
    fn default() -> Self {
        Self { permits: Semaphore::new(REQUESTS_MAX), waiting: AtomicUsize::new(0) }
    }
}

/// Somebody who waits, counted as long as it lives: the request may be dropped at any time.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fairness {
    /// Waits for the request's turn; the permit is held while it is worked on.
    pub(crate) async fn admit(&self, request: &RequestInfo) -> ApiResult<Option<SemaphorePermit<'_>>> {
        let lasts = request.verb == "watch"
            || ["log", "exec", "attach", "portforward", "proxy"].contains(&request.subresource.as_str());
        if lasts {
            return Ok(None);
        }
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(Some(permit));
        }
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            let mut status = Status::failure(
                429,
                "TooManyRequests",
                "The server has received too many requests and has asked us to try again later",
            );
            status.details =
                Some(StatusDetails { retry_after_seconds: RETRY_AFTER_SECONDS, ..StatusDetails::default() });
            return Err(status.into());
        }
        let permit = self.permits.acquire().await;
        drop(waiting);
        Ok(permit.ok())
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_too_much_waits_and_what_is_far_too_much_is_sent_away() {
        let fairness = Fairness::default();
        let get = RequestInfo { verb: "get".to_owned(), ..RequestInfo::default() };
        let watch = RequestInfo { verb: "watch".to_owned(), ..RequestInfo::default() };
        let mut held = Vec::new();
        for _ in 0..REQUESTS_MAX {
            held.push(fairness.admit(&get).await.unwrap().unwrap());
        }
        assert!(fairness.admit(&watch).await.unwrap().is_none(), "watches are not counted");
        let mut next = Box::pin(fairness.admit(&get));
        assert!(next.as_mut().now_or_never().is_none(), "the next one waits");
        drop(held.pop());
        assert!(next.await.unwrap().is_some());
        fairness.waiting.store(WAITING_MAX, Ordering::Relaxed);
        held.push(fairness.permits.try_acquire().unwrap());
        let error = fairness.admit(&get).await.unwrap_err();
        assert_eq!((error.0.code, error.0.details.unwrap().retry_after_seconds), (429, 1));
        assert_eq!(fairness.waiting.load(Ordering::Relaxed), WAITING_MAX, "who is sent away is not counted");
    }
}
