//! Checks whether what concurrent clients saw of one key can have happened in some order, one after the other, that
//! respects who was finished before whom (linearizability).
//!
//! The search is that of Wing and Gong (1993) with Lowe's memory of states that led nowhere (2017).

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// How many operations a history may have.
pub const OPERATIONS_MAX: usize = 512;

/// What a client asked for. Values are numbers; none means that the key is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read the key.
    Read,
    /// Replace the first, if that is what is there, by the second.
    Swap(Option<u64>, Option<u64>),
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The swap was done.
    Done,
    /// This is what is there: the answer to a read, or the reason why a swap was not done.
    Is(Option<u64>),
    /// Nothing: it may have happened, then or at any time after, or not at all.
    Unknown,
}

/// One operation as its client saw it.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// When it was asked for.
    pub asked: u64,
    /// When it was answered.
    pub answered: u64,
    /// What was asked.
    pub request: Request,
    /// What was answered.
    pub answer: Answer,
}

/// Takes down what clients do, from any number of tasks.
#[derive(Debug, Default)]
pub struct Recorder {
    time: AtomicU64,
    operations: Mutex<Vec<Operation>>,
}

impl Recorder {
    /// The moment before an operation.
    pub fn ask(&self) -> u64 {
        self.time.fetch_add(1, Ordering::SeqCst)
    }

    /// Takes an operation down that has just been answered.
    pub fn answer(&self, asked: u64, request: Request, answer: Answer) {
        let answered = self.time.fetch_add(1, Ordering::SeqCst);
        let operation = Operation { asked, answered, request, answer };
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).push(operation);
    }

    /// Everything taken down.
    pub fn operations(&self) -> Vec<Operation> {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whether the history can have happened one after the other, beginning with a key that is not there.
///
/// # Panics
/// If it has more than [`OPERATIONS_MAX`] operations.
pub fn is_linearizable(history: &[Operation]) -> bool {
    assert!(history.len() <= OPERATIONS_MAX, "a history of {} operations", history.len());
    let mut operations = history.to_vec();
    operations.sort_by_key(|operation| operation.asked);
    let mut done = [0u64; OPERATIONS_MAX / 64];
    let mut failed = HashSet::new();
    search(&operations, &mut done, None, &mut failed)
}

type Done = [u64; OPERATIONS_MAX / 64];

fn search(
    operations: &[Operation],
    done: &mut Done,
    value: Option<u64>,
    failed: &mut HashSet<(Done, Option<u64>)>,
) -> bool {
    let open = |done: &Done, at: usize| done[at / 64] & (1 << (at % 64)) == 0;
    let left: Vec<usize> = (0..operations.len()).filter(|at| open(done, *at)).collect();
    // What has no answer need not have happened.
    if left.iter().all(|at| operations[*at].answer == Answer::Unknown) {
        return true;
    }
    if !failed.insert((*done, value)) {
        return false;
    }
    // Next can only be what was asked for before anything that is left was answered.
    let answered = |at: &&usize| operations[**at].answer != Answer::Unknown;
    let first_answer =
        left.iter().filter(answered).map(|at| operations[*at].answered).min().unwrap_or(u64::MAX);
    for at in left.into_iter().take_while(|at| operations[*at].asked < first_answer) {
        let Some(next) = step(&operations[at], value) else { continue };
        done[at / 64] |= 1 << (at % 64);
        if search(operations, done, next, failed) {
            return true;
        }
        done[at / 64] &= !(1 << (at % 64));
    }
    false
}

/// The value after the operation, if its answer is right for the value before.
fn step(operation: &Operation, value: Option<u64>) -> Option<Option<u64>> {
    match (operation.request, operation.answer) {
        (Request::Read, Answer::Is(read)) => (read == value).then_some(value),
        (Request::Read, _) => Some(value),
        (Request::Swap(expected, new), Answer::Done) => (expected == value).then_some(new),
        (Request::Swap(expected, _), Answer::Is(found)) => {
            (found == value && expected != value).then_some(value)
        }
        (Request::Swap(expected, new), Answer::Unknown) => (expected == value).then_some(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(rows: &[(u64, u64, Request, Answer)]) -> Vec<Operation> {
        let operation = |&(asked, answered, request, answer)| Operation { asked, answered, request, answer };
        rows.iter().map(operation).collect()
    }

    /// The first of mem_etcd's defects: two of sixteen creators of one key were told that they made it.
    #[test]
    fn two_winners_are_flagged() {
        let two = history(&[
            (0, 3, Request::Swap(None, Some(1)), Answer::Done),
            (1, 2, Request::Swap(None, Some(2)), Answer::Done),
        ]);
        assert!(!is_linearizable(&two));
        let one = history(&[
            (0, 3, Request::Swap(None, Some(1)), Answer::Done),
            (1, 2, Request::Swap(None, Some(2)), Answer::Is(Some(1))),
        ]);
        assert!(is_linearizable(&one));
    }

    /// The second: a read that began after a write was answered did not see it.
    #[test]
    fn a_stale_read_is_flagged() {
        let write = (0, 1, Request::Swap(None, Some(1)), Answer::Done);
        assert!(!is_linearizable(&history(&[write, (2, 3, Request::Read, Answer::Is(None))])));
        // Read at the same time, both answers are right.
        let write = (0, 3, Request::Swap(None, Some(1)), Answer::Done);
        assert!(is_linearizable(&history(&[write, (1, 2, Request::Read, Answer::Is(None))])));
        assert!(is_linearizable(&history(&[write, (1, 2, Request::Read, Answer::Is(Some(1)))])));
    }

    #[test]
    fn an_unknown_outcome_may_come_late_or_never() {
        let lost = (0, 1, Request::Swap(None, Some(1)), Answer::Unknown);
        let none = |asked| (asked, asked + 1, Request::Read, Answer::Is(None));
        let one = |asked| (asked, asked + 1, Request::Read, Answer::Is(Some(1)));
        assert!(is_linearizable(&history(&[lost, none(2), one(4), one(6)])));
        assert!(is_linearizable(&history(&[lost, none(2), none(4)])));
        assert!(!is_linearizable(&history(&[lost, one(2), none(4)])));
    }

    #[test]
    fn a_lost_update_is_flagged() {
        let create = (0, 1, Request::Swap(None, Some(1)), Answer::Done);
        let both = [
            create,
            (2, 5, Request::Swap(Some(1), Some(2)), Answer::Done),
            (3, 4, Request::Swap(Some(1), Some(3)), Answer::Done),
        ];
        assert!(!is_linearizable(&history(&both)));
    }
}
