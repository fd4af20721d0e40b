//! The service `Watch`: one stream with many watches in it.
//!
//! The stream is written by whoever reads it: nothing is taken from the store's log before the connection has room, so a client
//! that doesn't read costs a place in the log and one answer.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use futures::{Stream, task::AtomicWaker};
use tokio::time::{Instant, Sleep};
use tonic::{Status, Streaming};

use super::{
    Face, faults,
    watching::{Refused, Watching},
};
use crate::{Revision, WatchError, proto as pb};

/// How many watches one stream may have.
pub(super) const WATCHES_MAX: usize = 1_000_000;
/// How many requests are taken in before answers go out.
const REQUESTS_AT_ONCE: usize = 256;
/// What a watch is called that was refused, and an answer that is about all of them.
const NO_WATCH: i64 = -1;

/// Which watches have something to say.
#[derive(Default)]
struct Rung {
    ids: Mutex<Vec<i64>>,
    stream: AtomicWaker,
}

/// The bell of one watch.
struct Bell {
    id: i64,
    rung: Arc<Rung>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.ring(self.id);
    }
}

impl Rung {
    fn ring(&self, id: i64) {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        self.stream.wake();
    }

    fn take(&self) -> Vec<i64> {
        std::mem::take(&mut *self.ids.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The answers of one stream.
pub(super) struct WatchStream {
    face: Arc<Face>,
    asked: Option<Streaming<pb::WatchRequest>>,
    watches: HashMap<i64, Watching>,
    next_id: i64,
    rung: Arc<Rung>,
    /// Rung, and not looked at yet; a watch once.
    ready: VecDeque<i64>,
    out: VecDeque<pb::WatchResponse>,
    /// A client wants to know how far the watches are, once what there was has been said.
    progress_asked: bool,
    /// When which watch wants to be told where the store is.
    due: BTreeMap<(Instant, i64), ()>,
    timer: Pin<Box<Sleep>>,
}

impl WatchStream {
    pub(super) fn new(face: Arc<Face>, asked: Streaming<pb::WatchRequest>) -> Self {
        WatchStream {
            face,
            asked: Some(asked),
            watches: HashMap::new(),
            next_id: 0,
            rung: Arc::default(),
            ready: VecDeque::new(),
            out: VecDeque::new(),
            progress_asked: false,
            due: BTreeMap::new(),
            timer: Box::pin(tokio::time::sleep_until(Instant::now())),
        }
    }

    fn answer(&self, watch_id: i64) -> pb::WatchResponse {
        pb::WatchResponse { header: Some(self.face.header_now()), watch_id, ..Default::default() }
    }

    /// Takes requests in; whether the client has ended the stream.
    fn take_requests(&mut self, context: &mut Context<'_>) -> Result<bool, Status> {
        for _ in 0..REQUESTS_AT_ONCE {
            let Some(asked) = &mut self.asked else { return Ok(true) };
            match Pin::new(asked).poll_next(context) {
                Poll::Pending => return Ok(false),
                Poll::Ready(None) => self.asked = None,
                Poll::Ready(Some(Err(status))) => {
                    self.asked = None;
                    return Err(status);
                }
                Poll::Ready(Some(Ok(request))) => match request.request_union {
                    Some(pb::WatchUnion::Create(create)) => self.create(&create),
                    Some(pb::WatchUnion::Cancel(cancel)) => self.cancel(cancel.watch_id),
                    Some(pb::WatchUnion::Progress(_)) => {
                        self.progress_asked = true;
                        // What was published before the question goes out before its answer.
                        self.ready = self.watches.keys().copied().collect();
                    }
                    None => {}
                },
            }
        }
        context.waker().wake_by_ref();
        Ok(false)
    }

    fn create(&mut self, asked: &pb::WatchCreateRequest) {
        let taken = asked.watch_id != 0 && self.watches.contains_key(&asked.watch_id);
        if taken || self.watches.len() >= WATCHES_MAX {
            let reason = if taken {
                "mvcc: duplicate watch ID provided on the WatchStream"
            } else {
                "etcdserver: too many requests"
            };
            self.refuse(reason.to_owned());
            return;
        }
        let id = if asked.watch_id == 0 { self.free_id() } else { asked.watch_id };
        let waker = Waker::from(Arc::new(Bell { id, rung: self.rung.clone() }));
        match Watching::new(&self.face, asked, waker) {
            Ok(watching) => {
                self.out.push_back(pb::WatchResponse { created: true, ..self.answer(id) });
                if watching.progress_notify {
                    self.due.insert((watching.told + self.face.settings.progress_interval, id), ());
                }
                self.watches.insert(id, watching);
                self.ready.push_back(id);
            }
            Err(Refused::Reason(reason)) => self.refuse(reason),
            Err(Refused::Compacted(floor)) => {
                self.out.push_back(pb::WatchResponse { created: true, ..self.answer(id) });
                self.end(id, floor);
            }
        }
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    fn refuse(&mut self, cancel_reason: String) {
        let answer =
            pb::WatchResponse { created: true, canceled: true, cancel_reason, ..self.answer(NO_WATCH) };
        self.out.push_back(answer);
    }

    fn cancel(&mut self, id: i64) {
        if self.watches.remove(&id).is_some() {
            self.out.push_back(pb::WatchResponse { canceled: true, ..self.answer(id) });
        }
    }

    /// A watch whose events are gone.
    fn end(&mut self, id: i64, floor: Revision) {
        let compact_revision = super::number(floor.0);
        self.out.push_back(pb::WatchResponse { canceled: true, compact_revision, ..self.answer(id) });
    }

    /// Looks at the watches that have rung, until one has said something.
    fn take_events(&mut self) -> Result<(), Status> {
        while self.out.is_empty()
            && let Some(id) = self.ready.pop_front()
        {
            let Some(watching) = self.watches.get_mut(&id) else { continue };
            let mut context = Context::from_waker(&watching.waker);
            match watching.watch.poll_next(&mut context) {
                Poll::Pending => {}
                Poll::Ready(Ok(batch)) => {
                    // There may be more, after the others' turn.
                    self.ready.push_back(id);
                    watching.write(&self.face, id, &batch, &mut self.out);
                }
                Poll::Ready(Err(WatchError::Compacted { floor })) => {
                    self.watches.remove(&id);
                    self.end(id, floor);
                }
                Poll::Ready(Err(WatchError::Closed)) => return Err(faults::stopped()),
            }
        }
        Ok(())
    }

    /// Answers the question for progress: every watch has been told everything up to there.
    fn tell_progress(&mut self) {
        self.progress_asked = false;
        let now = self.face.store.snapshot().revision();
        let seen = self.watches.values_mut().map(|watching| watching.watch.progress()).min();
        let header = Some(self.face.header(seen.map_or(now, |seen| seen.min(now))));
        self.out.push_back(pb::WatchResponse { header, watch_id: NO_WATCH, ..Default::default() });
    }

    /// Tells watches that heard nothing for long where the store is.
    fn tell_quiet(&mut self, context: &mut Context<'_>) {
        let interval = self.face.settings.progress_interval;
        while let Some((&(at, id), ())) = self.due.first_key_value() {
            if at > Instant::now() {
                self.timer.as_mut().reset(at);
                if self.timer.as_mut().poll(context).is_pending() {
                    return;
                }
                continue;
            }
            self.due.pop_first();
            let Some(watching) = self.watches.get_mut(&id) else { continue };
            if watching.told + interval <= Instant::now() {
                let seen = watching.watch.progress();
                watching.told = Instant::now();
                let header = Some(self.face.header(seen));
                self.out.push_back(pb::WatchResponse { header, watch_id: id, ..Default::default() });
            }
            self.due.insert((self.watches[&id].told + interval, id), ());
        }
    }
}

impl Stream for WatchStream {
    type Item = Result<pb::WatchResponse, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some(answer) = this.out.pop_front() {
            return Poll::Ready(Some(Ok(answer)));
        }
        this.rung.stream.register(context.waker());
        match this.take_requests(context) {
            Ok(true) => return Poll::Ready(None),
            Ok(false) => {}
            Err(status) => return Poll::Ready(Some(Err(status))),
        }
        let mut rung = this.rung.take();
        rung.sort_unstable();
        rung.dedup();
        this.ready.extend(rung);
        if let Err(status) = this.take_events() {
            this.asked = None;
            return Poll::Ready(Some(Err(status)));
        }
        if this.out.is_empty() && this.progress_asked {
            this.tell_progress();
        }
        if this.out.is_empty() {
            this.tell_quiet(context);
        }
        match this.out.pop_front() {
            Some(answer) => Poll::Ready(Some(Ok(answer))),
            None => Poll::Pending,
        }
    }
}
