//! The calls of one connection, all in the connection's own task.
//!
//! A task for each call would be run by any thread that is free, which then has to wake the connection's to have the answer
//! written. Here the calls that are ready are done one after the other where the connection is, and their answers go out
//! together. A connection is served by one thread at a time in return, different ones by different threads; a call with much
//! to do leaves that to a task of its own (see [`grpc`](super::grpc)).

use std::{
    future::poll_fn,
    mem,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Poll, Waker},
};

use futures::{FutureExt, Stream, stream::FuturesUnordered};
use hyper::rt::Executor;
use tokio::io::AsyncWrite;

use super::{gather::Flush, turn::Turn};

type Call = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Calls that were taken from the connection and not begun. Bounded by the connection's limit of streams.
#[derive(Clone, Default)]
pub(super) struct Calls(Arc<Mutex<Vec<Call>>>);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Calls {
    fn execute(&self, call: F) {
        // A call that panics takes its stream with it, and not its neighbours.
        let call = AssertUnwindSafe(call).catch_unwind().map(drop);
        self.new_ones().push(Box::pin(call));
    }
}

impl Calls {
    fn new_ones(&self) -> MutexGuard<'_, Vec<Call>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a connection and its calls, and writes out what they have to say. When the connection ends, its calls do.
    pub(super) async fn run_beside<T>(
        &self,
        connection: impl Future<Output = T>,
        flush: &Flush<impl AsyncWrite + Unpin>,
    ) -> T {
        let mut connection = pin!(connection);
        let mut running = FuturesUnordered::new();
        let turn = Arc::new(Turn::default());
        let waker = Waker::from(turn.clone());
        poll_fn(move |task| {
            let end = turn.take(task, &waker, |context| {
                if let Poll::Ready(end) = connection.as_mut().poll(context) {
                    return Poll::Ready(end);
                }
                // Only the connection makes new ones.
                running.extend(mem::take(&mut *self.new_ones()));
                while let Poll::Ready(Some(())) = Pin::new(&mut running).poll_next(context) {}
                Poll::Pending
            });
            if end.is_pending() {
                flush.flush(&mut std::task::Context::from_waker(&waker));
            }
            end
        })
        .await
    }
}
