//! One task's turn: whoever runs many small things in one task asks after each round whether one of them has been woken
//! meanwhile, and goes on instead of asking its runtime for another turn.
//!
//! A runtime that is asked for another turn from within one wakes a second thread for it, as a rule, which costs more than all
//! that there is to do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::task::AtomicWaker;

/// How many rounds a turn has at most; then others have theirs.
const ROUNDS_MAX: usize = 16;

/// Nobody is at it; a wake-up has to be passed on.
const IDLE: u8 = 0;
/// A round is under way, and nothing was woken since it began.
const RUNNING: u8 = 1;
/// Something was woken, and a round that looks at it is still to come.
const WOKEN: u8 = 2;

/// The waker of everything in the task.
#[derive(Default)]
pub(super) struct Turn {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == IDLE {
            self.task.wake();
        }
    }
}

impl Turn {
    /// Runs rounds until there is a result, or nothing more to do for now.
    pub(super) fn take<T>(
        self: &Arc<Self>,
        task: &Context<'_>,
        waker: &Waker,
        mut round: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        self.task.register(task.waker());
        let mut context = Context::from_waker(waker);
        for _ in 0..ROUNDS_MAX {
            self.state.store(RUNNING, Ordering::Release);
            if let Poll::Ready(result) = round(&mut context) {
                return Poll::Ready(result);
            }
            let rest = self.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire);
            if rest.is_ok() {
                return Poll::Pending;
            }
        }
        // What was woken stays so: the next turn begins with a round that looks at everything.
        task.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, sync::atomic::AtomicUsize};

    use super::*;

    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wake_ups_in_a_round_make_another_and_those_after_it_go_to_the_task() {
        // How many rounds wake something; how many rounds there are, how often the task is woken.
        for (waking, rounds, woken) in [(0, 1, 0), (1, 2, 0), (5, 6, 0), (100, ROUNDS_MAX, 1)] {
            let count = Arc::new(Count(AtomicUsize::new(0)));
            let task = Waker::from(count.clone());
            let turn = Arc::new(Turn::default());
            let waker = Waker::from(turn.clone());
            let done = Cell::new(0);
            let pending: Poll<()> = turn.take(&Context::from_waker(&task), &waker, |context| {
                done.set(done.get() + 1);
                if done.get() <= waking {
                    context.waker().wake_by_ref();
                }
                Poll::Pending
            });
            assert!(pending.is_pending());
            assert_eq!((done.get(), count.0.load(Ordering::Relaxed)), (rounds, woken), "{waking} wake");
            if woken == 0 {
                // Many between two turns are one.
                waker.wake_by_ref();
                waker.wake_by_ref();
                assert_eq!(count.0.load(Ordering::Relaxed), 1, "{waking} wake");
            }
        }
    }
}
