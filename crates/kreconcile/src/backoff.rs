//! How long to wait before the next try.

use std::{collections::HashMap, fmt, hash::Hash, time::Duration};

use ahash::RandomState;
use rand::Rng;
use tokio::time::Instant;

/// The wait after an item's first failure (client-go's `DefaultControllerRateLimiter`).
pub const ITEM_BACKOFF_MIN: Duration = Duration::from_millis(5);
/// The longest wait of one item (client-go's `DefaultControllerRateLimiter`).
pub const ITEM_BACKOFF_MAX: Duration = Duration::from_secs(1000);
/// How many retries a queue lets through per second in the long run, over all items.
pub const OVERALL_PER_SECOND_MAX: f64 = 10.0;
/// How many retries may come at once before [`OVERALL_PER_SECOND_MAX`] holds.
pub const OVERALL_BURST_MAX: u32 = 100;

/// Exponential back-off of one activity: the wait doubles from a minimum to a maximum.
///
/// ```
/// use std::time::Duration;
/// let mut backoff = kreconcile::Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
/// let waits: Vec<u64> = (0..3).map(|_| backoff.next().as_secs()).collect();
/// assert_eq!(waits, [1, 2, 3]);
/// ```
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Waits of `min`, twice `min`, and so on up to `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min }
    }

    /// The wait before the next try.
    #[allow(
        clippy::should_implement_trait,
        reason = "a back-off never ends, so it is not meant to be iterated over"
    )]
    pub fn next(&mut self) -> Duration {
        let wait = self.next.min(self.max);
        self.next = wait.saturating_mul(2).min(self.max);
        wait
    }

    /// The wait before the next try, made longer by up to its own length at random, so that clients that failed
    /// together do not come back together.
    pub fn next_jittered(&mut self, random: &mut impl Rng) -> Duration {
        let wait = self.next();
        wait + wait.mul_f64(random.random_range(0.0..1.0))
    }

    /// Starts again from the minimum.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

/// A bucket of tokens that fills at a steady rate.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket of `burst` tokens that gains `per_second` tokens a second.
    #[must_use]
    pub fn new(per_second: f64, burst: u32, now: Instant) -> Self {
        Self { per_second, burst: f64::from(burst), tokens: f64::from(burst), at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * self.per_second).min(self.burst);
        self.at = self.at.max(now);
    }

    /// Takes a token if there is one.
    pub fn try_take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }

    /// Takes a token, on credit if need be, and says how long to wait until it is there.
    pub fn take(&mut self, now: Instant) -> Duration {
        self.fill(now);
        self.tokens -= 1.0;
        if self.tokens >= 0.0 || self.per_second <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(-self.tokens / self.per_second).unwrap_or(ITEM_BACKOFF_MAX)
    }

    /// Changes the rate; what is in the bucket stays.
    pub fn set_rate(&mut self, per_second: f64, now: Instant) {
        self.fill(now);
        self.per_second = per_second;
    }

    /// The rate, in tokens per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.per_second
    }
}

/// When a failed item may be tried again: the longer of the item's own exponential back-off and an overall bucket
/// (client-go's `DefaultTypedControllerRateLimiter`).
pub struct RateLimiter<T> {
    failures: HashMap<T, u32, RandomState>,
    item_min: Duration,
    item_max: Duration,
    overall: TokenBucket,
}

impl<T> fmt::Debug for RateLimiter<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter").field("failing", &self.failures.len()).finish_non_exhaustive()
    }
}

impl<T: Eq + Hash> RateLimiter<T> {
    /// The default limits.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self::with(
            ITEM_BACKOFF_MIN,
            ITEM_BACKOFF_MAX,
            TokenBucket::new(OVERALL_PER_SECOND_MAX, OVERALL_BURST_MAX, now),
        )
    }

    /// These limits.
    #[must_use]
    pub fn with(item_min: Duration, item_max: Duration, overall: TokenBucket) -> Self {
        Self { failures: HashMap::default(), item_min, item_max, overall }
    }

    /// Counts a failure of the item and says how long to wait.
    pub fn when(&mut self, item: T, now: Instant) -> Duration {
        let failures = self.failures.entry(item).or_insert(0);
        let doubled =
            2_u32.checked_pow(*failures).map_or(self.item_max, |factor| self.item_min.saturating_mul(factor));
        *failures = failures.saturating_add(1);
        doubled.min(self.item_max).max(self.overall.take(now))
    }

    /// Forgets the item's failures.
    pub fn forget(&mut self, item: &T) {
        self.failures.remove(item);
    }

    /// How often the item has failed since it was forgotten.
    #[must_use]
    pub fn failures(&self, item: &T) -> u32 {
        self.failures.get(item).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_item_doubles_up_to_the_limit_and_starts_anew_when_forgotten() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(now);
        let waits: Vec<u128> = (0..20).map(|_| limiter.when("x", now).as_millis()).collect();
        assert_eq!(waits[..4], [5, 10, 20, 40]);
        assert_eq!(waits[17], 655_360);
        assert_eq!(waits[19], 1_000_000);
        assert_eq!(limiter.failures(&"x"), 20);
        limiter.forget(&"x");
        assert_eq!(limiter.when("x", now).as_millis(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bucket_holds_back_many_items() {
        let now = Instant::now();
        let mut limiter = RateLimiter::new(now);
        let last = (0..120).map(|item| limiter.when(item, now)).last();
        assert_eq!(last, Some(Duration::from_secs(2)));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(limiter.when(500, Instant::now()), ITEM_BACKOFF_MIN);
    }
}
