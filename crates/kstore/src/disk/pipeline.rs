//! The threads of the disk engine: who holds the state, who does the I/O, who is told.
//!
//! Whoever wants something queues it and, if the state is free, takes it and works the queue off; if it is not, whoever holds
//! it does that before leaving. I/O is done by workers, which exist only while there is some: blocking tasks of the runtime the
//! caller is in (a paused clock waits for those), or threads where there is no runtime.

use std::{
    any::Any,
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak, atomic::Ordering},
    task::Waker,
    time::Duration,
};

use tokio::{
    runtime::{Handle, RuntimeFlavor},
    sync::{Notify, oneshot},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    StoreError,
    disk::state::{Act, After, Ended, Job, Moment, Queued, Reply, State},
    root::Published,
};

/// Work in the background rests as long as its last piece took, and not longer than this.
const REST_MAX: Duration = Duration::from_millis(5);
/// How many jobs are done at once: the flights, a checkpoint, the making of a file.
const WORKERS_MAX: usize = 6;
/// The keeper looks at the time at least so often, so that no sleep is longer than a timer can be, and at most so often.
const KEEPER_SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);
const KEEPER_SLEEP_MIN: Duration = Duration::from_millis(5);

/// Tells the time, counted from 1970.
pub(crate) type WallClock = Arc<dyn Fn() -> Duration + Send + Sync>;

pub(crate) struct Engine {
    /// Held for microseconds, and never across I/O. No code of others runs while it is, index functions apart.
    state: Mutex<State>,
    /// Notified whenever a job has ended.
    ended: Condvar,
    pace: Pace,
    queue: Mutex<Vec<Queued>>,
    pub(crate) published: Arc<Published>,
    start: Instant,
    wall: WallClock,
    /// Jobs are left to whoever drives the engine step by step.
    by_hand: bool,
    keeper: Mutex<Option<JoinHandle<()>>>,
    deadline_changed: Arc<Notify>,
    /// The lock of the directory.
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
}

impl Engine {
    pub(crate) fn new(
        state: State,
        published: Arc<Published>,
        wall: WallClock,
        by_hand: bool,
        lock: Box<dyn Any + Send + Sync>,
    ) -> Arc<Engine> {
        Arc::new(Engine {
            state: Mutex::new(state),
            ended: Condvar::new(),
            pace: Pace::default(),
            queue: Mutex::default(),
            published,
            start: Instant::now(),
            wall,
            by_hand,
            keeper: Mutex::default(),
            deadline_changed: Arc::default(),
            lock: Mutex::new(Some(lock)),
        })
    }

    fn moment(&self) -> Moment {
        Moment { now: Instant::now().saturating_duration_since(self.start), wall: (self.wall)() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // An index function that panics does so before anything has changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Queued>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything can be committed.
    pub(crate) fn check(self: &Arc<Self>) -> Result<(), StoreError> {
        match self.published.closed.load(Ordering::Acquire) {
            true => self.look(|state| state.check()),
            false => Ok(()),
        }
    }

    /// When times in the core are counted from.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// What is wrong with the disk.
    pub(crate) fn fault(&self) -> Option<StoreError> {
        self.lock().fault()
    }

    /// Queues something, and does it if nobody else is about to.
    pub(crate) fn submit(self: &Arc<Self>, queued: Queued) {
        drop(self.submit_later(queued));
    }

    /// Queues something, to be done when what is returned is dropped, with what others have queued meanwhile.
    pub(crate) fn submit_later(self: &Arc<Self>, queued: Queued) -> Submitted<'_> {
        self.queue().push(queued);
        Submitted(self)
    }

    /// The jobs that wait, for whoever drives the engine.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn take_jobs(self: &Arc<Self>) -> Vec<Job> {
        self.look(|state| state.jobs.drain(..).collect())
    }

    /// Does something to the state from which nothing follows.
    fn look<T>(self: &Arc<Self>, look: impl FnOnce(&mut State) -> T) -> T {
        let value = look(&mut self.lock());
        self.catch_up(false);
        value
    }

    /// Works the queue off, unless someone is there who will. Called by everyone who has let go of the state: what was queued
    /// while he held it may have been left to him. With `write`, one frame that need not wait for the disk may be written here.
    fn catch_up(self: &Arc<Self>, write: bool) {
        while !self.queue().is_empty() {
            let state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            self.settle(state, self.moment(), After::default(), write);
        }
    }

    /// Does something to the state, and what follows from it.
    pub(crate) fn enter<T>(self: &Arc<Self>, act: impl FnOnce(&mut State, Moment, &mut After) -> T) -> T {
        let mut state = self.lock();
        let (moment, mut after) = (self.moment(), After::default());
        let value = act(&mut state, moment, &mut after);
        self.settle(state, moment, after, false);
        self.catch_up(false);
        value
    }

    /// Does something once there is room in the log for it; what comes of it, once that is published.
    pub(crate) async fn act<T, E>(
        self: &Arc<Self>,
        bytes: usize,
        alone: bool,
        act: impl FnOnce(&mut State, Moment) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        self.check()?;
        let (to, from) = oneshot::channel();
        let act = move |state: Result<&mut State, StoreError>, moment| {
            let result = match state {
                Ok(state) => act(state, moment),
                Err(error) => Err(error.into()),
            };
            Reply::Then(Box::new(move |landed| drop(to.send(landed.map_err(E::from).and(result)))))
        };
        self.submit(Queued::Act(Box::new(Act { bytes, alone, act: Box::new(act) })));
        match from.await {
            Ok(result) => result,
            Err(_) => Err(StoreError::Closed.into()),
        }
    }

    fn settle(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        moment: Moment,
        mut after: After,
        write: bool,
    ) {
        state.take_in(self.queue().drain(..));
        state.settle(moment, &mut after);
        let write = if write && !self.by_hand { state.take_quick_write(others_can_go_on()) } else { None };
        let workers = if self.by_hand { 0 } else { missing_workers(&mut state) };
        let deadline = state.next_deadline();
        let keep = deadline != state.kept_for;
        state.kept_for = deadline;
        self.pace.hurry(state.is_waited_for());
        drop(state);
        for _ in 0..workers {
            self.start_worker();
        }
        if keep && deadline.is_some() {
            self.keep();
        }
        after.run();
        if let Some(job) = write {
            Worker { engine: self.clone(), begun: true }.once(job);
        }
    }

    fn start_worker(self: &Arc<Self>) {
        let worker = Worker { engine: self.clone(), begun: false };
        match Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || worker.work())),
            Err(_) => worker.on_a_thread(),
        }
    }

    /// Does the jobs that there are, and waits for those that others do, until everything is durable and nothing is under way.
    /// Nothing can be committed any more.
    pub(crate) fn close(self: &Arc<Self>) {
        // Whoever comes second waits for the first.
        let mut lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(keeper) = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take() {
            keeper.abort();
        }
        self.published.closed.store(true, Ordering::Release);
        self.pace.hurry(true);
        if !self.by_hand {
            self.finish();
        }
        let mut wakers = Vec::new();
        for (_, table) in self.published.load().tables.iter() {
            table.hub.wake_all(&mut wakers);
        }
        wakers.into_iter().for_each(Waker::wake);
        drop(lock.take());
    }

    /// Does all jobs, and waits for those that others do.
    fn finish(&self) {
        loop {
            let mut state = self.lock();
            let mut after = After::default();
            state.take_in(self.queue().drain(..));
            state.close(self.moment(), &mut after);
            let job = state.jobs.pop_front();
            let (done, others) = (job.is_none() && state.is_idle(), state.running > 0);
            if job.is_none() && others {
                drop(self.ended.wait(state).unwrap_or_else(PoisonError::into_inner));
            } else {
                drop(state);
            }
            after.run();
            if let Some(job) = job {
                let ended = run(job);
                self.lock().ended(ended, &mut After::default());
            } else if done && !others {
                break;
            }
        }
    }

    /// Sees to it that what has a time is done in time: starts the task for that, unless it runs or there is no runtime.
    fn keep(self: &Arc<Self>) {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        if keeper.as_ref().is_none_or(JoinHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
            && !self.published.closed.load(Ordering::Acquire)
        {
            *keeper = Some(runtime.spawn(keep(Arc::downgrade(self), self.deadline_changed.clone())));
        }
        self.deadline_changed.notify_one();
    }
}

/// How fast work in the background goes.
#[derive(Default)]
struct Pace {
    /// Someone waits for it.
    hurry: Mutex<bool>,
    changed: Condvar,
}

impl Pace {
    fn hurry(&self, hurry: bool) {
        let before =
            std::mem::replace(&mut *self.hurry.lock().unwrap_or_else(PoisonError::into_inner), hurry);
        if hurry && !before {
            self.changed.notify_all();
        }
    }

    /// Does nothing for so long, unless there is a hurry.
    fn rest(&self, time: Duration) {
        let hurry = self.hurry.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_timeout_while(hurry, time, |hurry| !*hurry));
    }
}

/// Something that was queued; done at the latest when this is dropped.
pub(crate) struct Submitted<'a>(&'a Arc<Engine>);

impl Drop for Submitted<'_> {
    fn drop(&mut self) {
        self.0.catch_up(true);
    }
}

/// Whether a thread of the runtime can be held for a moment without everything standing still.
fn others_can_go_on() -> bool {
    Handle::try_current().is_ok_and(|runtime| {
        runtime.runtime_flavor() == RuntimeFlavor::MultiThread && runtime.metrics().num_workers() > 1
    })
}

/// Workers to be started: one for each job that nobody is free for.
fn missing_workers(state: &mut State) -> usize {
    let free = state.workers - state.running;
    let missing = state.jobs.len().saturating_sub(free).min(WORKERS_MAX.saturating_sub(state.workers));
    state.workers += missing;
    missing
}

/// Ends leases and makes durable what may wait for it, in time, until the store is gone.
async fn keep(engine: Weak<Engine>, changed: Arc<Notify>) {
    loop {
        let sleep = {
            let Some(engine) = engine.upgrade() else { return };
            engine.enter(|_, _, _| ());
            let deadline = engine.look(|state| state.next_deadline());
            deadline.map(|deadline| deadline.saturating_sub(engine.moment().now))
        };
        match sleep {
            Some(sleep) => {
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(sleep.clamp(KEEPER_SLEEP_MIN, KEEPER_SLEEP_MAX)) => {}
                    () = changed.notified() => {}
                }
            }
            None => changed.notified().await,
        }
    }
}

/// Who does jobs until there are none; counted in the state from before it begins.
struct Worker {
    engine: Arc<Engine>,
    begun: bool,
}

impl Worker {
    fn on_a_thread(mut self) {
        self.begun = true;
        let engine = self.engine.clone();
        let thread = std::thread::Builder::new().name("kstore".to_owned());
        if thread.spawn(move || self.work()).is_err() {
            // Without a thread, the jobs are left to whoever finds that there is no worker, or closes the store.
            engine.look(|state| state.workers -= 1);
        }
    }

    fn work(mut self) {
        self.begun = true;
        while let Some(job) = self.next() {
            let (ended, took) = match job {
                Job::Write(_) | Job::Remove(..) => run_timed(job),
                Job::Prepare(_) | Job::Checkpoint(_) => (run_paced(job, &self.engine.pace), None),
            };
            self.engine.enter(|state, _, after| {
                state.running -= 1;
                state.write_took(took);
                state.ended(ended, after);
            });
            self.engine.ended.notify_all();
        }
    }

    /// Does one job where it is called. What follows from it is left to others, so that no caller is held for long.
    fn once(self, job: Job) {
        let (ended, took) = run_timed(job);
        self.engine.enter(|state, _, after| {
            state.running -= 1;
            state.workers -= 1;
            state.write_took(took);
            state.ended(ended, after);
        });
        self.engine.ended.notify_all();
    }

    fn next(&self) -> Option<Job> {
        self.engine.look(|state| {
            let job = state.jobs.pop_front();
            match job {
                Some(_) => state.running += 1,
                None => state.workers -= 1,
            }
            job
        })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Nobody knows how far the job came.
            self.engine.enter(|state, _, after| {
                state.running = state.running.saturating_sub(1);
                state.workers = state.workers.saturating_sub(1);
                state.fence(io::Error::other("a worker panicked"), after);
            });
            self.engine.ended.notify_all();
        } else if !self.begun {
            // The runtime ended before it came to it.
            self.begun = true;
            Worker { engine: self.engine.clone(), begun: false }.on_a_thread();
        }
    }
}

/// Does a job to its end; how long it took, if it was one write that is durable with it.
fn run_timed(job: Job) -> (Ended, Option<Duration>) {
    let timed = matches!(&job, Job::Write(write) if write.is_through());
    let begun = timed.then(Instant::now);
    let ended = run(job);
    (ended, begun.map(|begun| begun.elapsed()))
}

/// Does a job to its end that nobody waits for: half of the time the disk is left to others.
fn run_paced(mut job: Job, pace: &Pace) -> Ended {
    loop {
        let begun = Instant::now();
        job = match step(job) {
            Step::More(job) => job,
            Step::Ended(ended) => return ended,
        };
        pace.rest(begun.elapsed().min(REST_MAX));
    }
}

/// Does a job to its end.
fn run(mut job: Job) -> Ended {
    loop {
        job = match step(job) {
            Step::More(job) => job,
            Step::Ended(ended) => return ended,
        };
    }
}

/// What one step of a job led to.
pub(crate) enum Step {
    More(Job),
    Ended(Ended),
}

/// Does the next piece of a job: one operation on a file, or none.
pub(crate) fn step(job: Job) -> Step {
    match job {
        Job::Write(mut write) => match write.step() {
            Ok(false) => Step::More(Job::Write(write)),
            Ok(true) => Step::Ended(Ended::Write(write.seq, write.buffer, Ok(()))),
            Err(error) => Step::Ended(Ended::Write(write.seq, write.buffer, Err(error))),
        },
        Job::Prepare(mut prepare) => match prepare.step() {
            Ok(None) => Step::More(Job::Prepare(prepare)),
            Ok(Some(segment)) => Step::Ended(Ended::Prepare(Ok(segment))),
            Err(error) => {
                prepare.give_up();
                Step::Ended(Ended::Prepare(Err(error)))
            }
        },
        Job::Checkpoint(mut checkpoint) => {
            let result = match checkpoint.step() {
                Ok(false) => return Step::More(Job::Checkpoint(checkpoint)),
                Ok(true) => Ok(()),
                Err(error) => {
                    checkpoint.give_up();
                    Err(error)
                }
            };
            let (seq, revision, bytes) = (checkpoint.seq, checkpoint.revision, checkpoint.bytes());
            Step::Ended(Ended::Checkpoint { seq, revision, bytes, result })
        }
        Job::Remove(files, mut names) => match names.pop() {
            // What can't be removed stays, and is used again after the next opening.
            Some(name) => {
                let _ = files.remove(&name);
                Step::More(Job::Remove(files, names))
            }
            None => Step::Ended(Ended::Remove),
        },
    }
}
