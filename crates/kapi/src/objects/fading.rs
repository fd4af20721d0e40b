//! States of objects that have been replaced: the store keeps them for those who read late, and they need not keep what can be
//! made again.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use jiff::Timestamp;
use kcore::Stored;

/// How long a state that has been replaced keeps what was made of it: readers mostly come within that time, and share it.
const KEPT: Duration = Duration::from_secs(1);
/// How many such states are remembered; then the oldest forget at once. A pod as a Rust type takes some 12 KiB.
const REMEMBERED_MAX: usize = 4_096;
/// How many are looked at when one is added, so that no write pays for many.
const LOOKED_AT_MAX: usize = 8;

/// The states that were replaced lately, the oldest first.
#[derive(Default)]
pub(super) struct Fading(Mutex<VecDeque<(Timestamp, Weak<Stored>)>>);

impl Fading {
    /// Takes note of a state that has been replaced, and lets older ones forget.
    pub(super) fn put(&self, replaced: &Arc<Stored>, now: Timestamp) {
        let mut old = Vec::new();
        {
            let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push_back((now, Arc::downgrade(replaced)));
            let before = now.checked_sub(KEPT).unwrap_or(now);
            while old.len() < LOOKED_AT_MAX
                && let Some((at, _)) = queue.front()
                && (*at <= before || queue.len() > REMEMBERED_MAX)
            {
                old.extend(queue.pop_front().map(|(_, state)| state));
            }
        }
        old.iter().filter_map(Weak::upgrade).for_each(|state| state.forget());
    }
}

impl fmt::Debug for Fading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.lock().unwrap_or_else(PoisonError::into_inner).len();
        f.debug_struct("Fading").field("count", &count).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize)]
    struct Anything {}

    #[test]
    fn states_forget_some_time_after_they_were_replaced() {
        let state = |revision: u64| {
            Arc::new(
                Stored::from_value(json!({"metadata": {"resourceVersion": revision.to_string()}})).unwrap(),
            )
        };
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let (first, second) = (state(1), state(2));
        let made = [first.typed::<Anything>().unwrap(), second.typed::<Anything>().unwrap()];
        let fading = Fading::default();
        let keeps = |state: &Stored, made: &Arc<Anything>| Arc::ptr_eq(&state.typed().unwrap(), made);
        for (now, replaced, expected) in [
            (0, &first, [true, true]),
            (500, &second, [true, true]),
            (1_000, &state(3), [false, true]),
            (1_500, &state(4), [false, false]),
        ] {
            fading.put(replaced, at(now));
            assert_eq!([keeps(&first, &made[0]), keeps(&second, &made[1])], expected, "{now}");
        }
    }
}
