//! Seats and queues of the priority levels.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::FutureExt as _;
use serde_json::Value;
use tokio::{sync::oneshot, time::Instant};

use super::ratios::Usage;

/// All levels of a server. One lock for all of them: it is held for some tens of nanoseconds, and seats move between levels.
#[derive(Debug)]
pub(super) struct Levels {
    seats: usize,
    state: Mutex<Vec<Level>>,
}

#[derive(Debug, Default)]
struct Level {
    name: String,
    /// The seats that are its own.
    nominal: usize,
    /// The seats that others never get.
    reserved: usize,
    /// The most seats it may take, borrowed ones included.
    most: usize,
    queue_length: usize,
    hand: usize,
    /// The most seats that one request may take.
    widest: usize,
    queues: Vec<VecDeque<Waiter>>,
    /// How many wait in all queues.
    waiting: usize,
    /// The queue that was served last.
    last: usize,
    executing: usize,
    usage: Usage,
}

/// Somebody in a queue.
#[derive(Debug)]
struct Waiter {
    sender: oneshot::Sender<Seat>,
    width: usize,
}

/// The seats of one request; they are free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    levels: Arc<Levels>,
    level: usize,
    width: usize,
}

impl Seat {
    /// How many seats they are.
    pub(super) fn width(&self) -> usize {
        self.width
    }
}

/// Where a request is put.
pub(super) enum Place {
    /// It can be worked on.
    Seat(Seat),
    /// It waits for so many seats; nothing comes when the level is taken away.
    Queue(futures::future::BoxFuture<'static, Option<Seat>>, usize),
    /// It is sent away.
    Nowhere(Refusal),
}

/// Why a request finds no place, in upstream's words for its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The level has no queues, and all seats are taken.
    ConcurrencyLimit,
    /// The queue is full.
    QueueFull,
    /// It waited too long.
    TimeOut,
    /// The caller went away while it waited.
    Cancelled,
}

/// The seats of a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) name: String,
    pub(super) nominal: usize,
    /// What others never get.
    pub(super) lower: usize,
    /// With what others lend.
    pub(super) upper: usize,
    /// With what others lend now.
    pub(super) current: usize,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut next = {
            let mut state = self.levels.lock();
            state[self.level].executing -= self.width;
            state[self.level].note();
            self.levels.next(&mut state)
        };
        // A wide request makes room for several.
        while let Some((level, waiter)) = next {
            // Who gave up waiting hands the seats on by dropping them.
            let seat = Seat { levels: Arc::clone(&self.levels), level, width: waiter.width };
            let _ = waiter.sender.send(seat);
            next = self.levels.next(&mut self.levels.lock());
        }
    }
}

impl Levels {
    pub(super) fn new(seats: usize) -> Self {
        Self { seats, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Level>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the configuration over; levels that are gone serve who waits in them and get no more.
    pub(super) fn configure(&self, objects: &[Value]) {
        let spec = |object: &Value| {
            let spec = &object["spec"];
            if spec["type"] == "Exempt" { spec["exempt"].clone() } else { spec["limited"].clone() }
        };
        let shares = |object: &Value| {
            let shares = spec(object)["nominalConcurrencyShares"].as_u64();
            usize::try_from(shares.unwrap_or(30)).unwrap_or(usize::MAX)
        };
        let all: usize = objects.iter().map(shares).fold(0, usize::saturating_add).max(1);
        let mut state = self.lock();
        for object in objects {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let spec = spec(object);
            let percent = |key: &str| spec[key].as_u64().and_then(|value| usize::try_from(value).ok());
            let nominal = (self.seats.saturating_mul(shares(object))).div_ceil(all);
            let lendable = nominal * percent("lendablePercent").unwrap_or(0).min(100) / 100;
            let most = percent("borrowingLimitPercent")
                .map_or(self.seats, |percent| nominal + nominal * percent / 100);
            let queuing = &spec["limitResponse"]["queuing"];
            let number = |key: &str, default: u64| {
                usize::try_from(queuing[key].as_u64().unwrap_or(default)).unwrap_or(1)
            };
            let queues =
                if spec["limitResponse"]["type"] == "Queue" { number("queues", 64).max(1) } else { 0 };
            let index = state.iter().position(|level| level.name == name).unwrap_or_else(|| {
                state.push(Level { name: name.to_owned(), ..Level::default() });
                state.len() - 1
            });
            let level = &mut state[index];
            (level.nominal, level.reserved, level.most) = (nominal, nominal - lendable, most);
            (level.hand, level.queue_length) =
                (number("handSize", 8).clamp(1, queues.max(1)), number("queueLengthLimit", 50));
            level.widest = if queues > 0 { widest(nominal, level.hand) } else { usize::MAX };
            // Queues with somebody in them stay until they are empty.
            let kept = level.queues.iter().rposition(|queue| !queue.is_empty()).map_or(0, |last| last + 1);
            level.queues.resize_with(queues.max(kept), VecDeque::new);
            level.note();
        }
    }

    /// What each level has in use.
    pub(super) fn usage(&self) -> Vec<(String, Usage)> {
        self.lock().iter().map(|level| (level.name.clone(), level.usage.clone())).collect()
    }

    /// How many requests may wait in all queues.
    pub(super) fn places(&self) -> usize {
        self.lock().iter().map(Level::places).sum()
    }

    /// The seats of all levels.
    pub(super) fn limits(&self) -> Vec<Limits> {
        let state = self.lock();
        let kept: usize = state.iter().map(|level| level.executing.max(level.reserved)).sum();
        let limits = state.iter().map(|level| {
            let others = kept - level.executing.max(level.reserved);
            let free = self.seats.saturating_sub(others);
            Limits {
                name: level.name.clone(),
                nominal: level.nominal,
                lower: level.reserved,
                upper: level.most.min(self.seats),
                current: free.min(level.most).max(level.nominal),
            }
        });
        limits.collect()
    }

    /// The number of a level.
    pub(super) fn index(&self, name: &str) -> Option<usize> {
        self.lock().iter().position(|level| level.name == name)
    }

    /// Whether another request of the level may be worked on: on seats of its own, or on some that others lend. One that is
    /// wider than the level can ever be has it to itself.
    fn has_seat(&self, state: &[Level], level: usize, width: usize) -> bool {
        let Level { executing, nominal, most, .. } = state[level];
        if executing + width <= nominal || (executing == 0 && width > most) {
            return true;
        }
        if executing + width > most {
            return false;
        }
        let others = state.iter().enumerate().filter(|(index, _)| *index != level);
        let kept: usize = others.map(|(_, other)| other.executing.max(other.reserved)).sum();
        kept + executing + width <= self.seats
    }

    pub(super) fn sit(self: &Arc<Self>, level: usize, flow: u64, width: usize) -> Place {
        let mut state = self.lock();
        let width = width.min(state[level].widest).max(1);
        if state[level].waiting == 0 && self.has_seat(&state, level, width) {
            state[level].executing += width;
            state[level].note();
            return Place::Seat(Seat { levels: Arc::clone(self), level, width });
        }
        let own = &mut state[level];
        let Some(queue) = own.shortest(flow) else {
            return Place::Nowhere(Refusal::ConcurrencyLimit);
        };
        if own.queues[queue].len() >= own.queue_length {
            return Place::Nowhere(Refusal::QueueFull);
        }
        let (sender, receiver) = oneshot::channel();
        own.queues[queue].push_back(Waiter { sender, width });
        own.waiting += 1;
        own.note();
        Place::Queue(receiver.map(Result::ok).boxed(), width)
    }

    /// Who is next, in any level that has room: the seats count as taken. Nobody overtakes a wide request that waits for room.
    fn next(&self, state: &mut [Level]) -> Option<(usize, Waiter)> {
        for level in 0..state.len() {
            while let Some((queue, width)) = state[level].front()
                && self.has_seat(state, level, width)
                && let Some(waiter) = state[level].pop(queue)
            {
                if waiter.sender.is_closed() {
                    continue;
                }
                state[level].executing += width;
                state[level].note();
                return Some((level, waiter));
            }
        }
        None
    }
}

/// The most seats that one request of a level with queues may take (upstream's `MaxSeatsTracker`): 15 % of the level's own,
/// and no more than each queue of a hand could have.
fn widest(nominal: usize, hand: usize) -> usize {
    (nominal * 15).div_ceil(100).min(nominal / hand.max(1)).max(1)
}

impl Level {
    fn places(&self) -> usize {
        self.queues.len() * self.queue_length
    }

    /// Counts from now on what it has in use.
    fn note(&mut self) {
        let places = self.places();
        self.usage.set(Instant::now(), (self.executing, self.nominal), (self.waiting, places));
    }

    /// The shortest of the queues that the flow is dealt (shuffle sharding); those who gave up don't count.
    fn shortest(&mut self, flow: u64) -> Option<usize> {
        let count = self.queues.len();
        let mut best: Option<usize> = None;
        let mut number = flow;
        for _ in 0..self.hand.min(count) {
            let index = usize::try_from(number % count as u64).unwrap_or(0);
            number = number.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
            let before = self.queues[index].len();
            self.queues[index].retain(|waiter| !waiter.sender.is_closed());
            self.waiting -= before - self.queues[index].len();
            if best.is_none_or(|best| self.queues[index].len() < self.queues[best].len()) {
                best = Some(index);
            }
        }
        best
    }

    /// The next queue in turn that has somebody, and how many seats the first of it wants.
    fn front(&self) -> Option<(usize, usize)> {
        // Most of the time nobody waits, and each answer asks.
        if self.waiting == 0 {
            return None;
        }
        let count = self.queues.len();
        let mut indexes = (1..=count).map(|step| (self.last + step) % count);
        indexes.find_map(|index| self.queues[index].front().map(|waiter| (index, waiter.width)))
    }

    fn pop(&mut self, queue: usize) -> Option<Waiter> {
        let waiter = self.queues[queue].pop_front()?;
        self.last = queue;
        self.waiting -= 1;
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use serde_json::json;

    use super::*;

    fn levels(seats: usize, borrows: Value) -> Arc<Levels> {
        with_queues(seats, &borrows, 8, 2)
    }

    fn with_queues(seats: usize, borrows: &Value, queues: u32, hand: u32) -> Arc<Levels> {
        let levels = Arc::new(Levels::new(seats));
        let level = |name: &str| {
            json!({"metadata": {"name": name}, "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": 10, "lendablePercent": 50, "borrowingLimitPercent": borrows,
                "limitResponse": {"type": "Queue", "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 10}}}}})
        };
        levels.configure(&[level("a"), level("b")]);
        levels
    }

    fn seats(levels: &Arc<Levels>, level: usize) -> Vec<Seat> {
        let seat = || match levels.sit(level, 7, 1) {
            Place::Seat(seat) => Some(seat),
            _ => None,
        };
        std::iter::from_fn(seat).collect()
    }

    #[test]
    fn idle_seats_are_lent_but_for_those_that_are_reserved() {
        assert_eq!(seats(&levels(20, Value::Null), 0).len(), 15);
        assert_eq!(seats(&levels(20, json!(20)), 0).len(), 12);
        let both = levels(20, Value::Null);
        let first = seats(&both, 0);
        // The other level has its own seats even while some of them are lent.
        assert_eq!(seats(&both, 1).len(), 10);
        drop(first);
    }

    #[test]
    fn flows_take_turns_and_seats_are_never_lost() {
        let levels = levels(2, json!(0));
        let held = seats(&levels, 0);
        assert_eq!(held.len(), 1);
        let wait = |flow| match levels.sit(0, flow, 1) {
            Place::Queue(waiting, _) => waiting,
            _ => panic!("there is no seat and room in the queues"),
        };
        // Nine of one flow, then one of another, which has another queue.
        let mut busy: Vec<_> = (0..9).map(|_| wait(1)).collect();
        let mut rare = wait(2);
        drop(busy.remove(4));
        let mut seat = held.into_iter().next();
        let mut served = 0;
        while rare.as_mut().now_or_never().is_none() {
            drop(seat.take());
            seat = None;
            busy.retain_mut(|waiting| match waiting.now_or_never() {
                Some(given) => {
                    seat = given;
                    false
                }
                None => true,
            });
            served += usize::from(seat.is_some());
            if seat.is_none() {
                break;
            }
        }
        assert!(served <= 3, "the rare flow waited for {served}");
    }

    #[test]
    fn wide_requests_take_several_seats_and_are_not_overtaken() {
        let levels = with_queues(160, &json!(0), 1, 1);
        // 80 seats of its own: 15 % are 12, more than that nobody gets.
        let Place::Seat(wide) = levels.sit(0, 7, 50) else { panic!("there is room") };
        assert_eq!(wide.width(), 12);
        let narrow = seats(&levels, 0);
        assert_eq!(narrow.len(), 68);
        let Place::Queue(mut waiting, 10) = levels.sit(0, 7, 10) else { panic!("there is no room") };
        let Place::Queue(mut behind, 1) = levels.sit(0, 7, 1) else { panic!("others are first") };
        let mut narrow = narrow.into_iter();
        drop(narrow.by_ref().take(9).collect::<Vec<_>>());
        assert!(waiting.as_mut().now_or_never().is_none() && behind.as_mut().now_or_never().is_none());
        // With these twelve, there is room for both.
        drop(wide);
        assert_eq!(waiting.now_or_never().flatten().map(|seat| seat.width()), Some(10));
        assert_eq!(behind.now_or_never().flatten().map(|seat| seat.width()), Some(1));
    }

    #[test]
    fn the_widest_request_depends_on_the_level() {
        // (seats of the level, size of a hand, most seats of a request), as upstream computes them.
        for (nominal, hand, most) in [(100, 6, 15), (100, 10, 10), (10, 1, 2), (1, 8, 1), (0, 8, 1)] {
            assert_eq!(widest(nominal, hand), most, "{nominal} {hand}");
        }
    }
}
