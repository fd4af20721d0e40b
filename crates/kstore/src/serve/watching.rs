//! One watch of a stream: what it wants, and how its events are written.

use std::{collections::VecDeque, task::Waker};

use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;

use super::{Face, number, range};
use crate::{
    Batch, Entry, Event, EventKind, Interest, Range, ReadError, Revision, Watch, WatchRequest, proto as pb,
};

/// Answers are made about so large: what one revision changed is never torn apart, unless the client allows fragments.
const RESPONSE_BYTES: usize = 1024 * 1024;

/// A watch that was asked for.
pub(super) struct Watching {
    pub(super) watch: Watch,
    /// Wakes the stream, and says for which of its watches.
    pub(super) waker: Waker,
    range: Range,
    /// The store's interest names the range exactly.
    exact: bool,
    no_put: bool,
    no_delete: bool,
    prev_kv: bool,
    fragment: bool,
    pub(super) progress_notify: bool,
    /// When it was last told something.
    pub(super) told: Instant,
}

/// Why a watch was not begun.
pub(super) enum Refused {
    /// In words.
    Reason(String),
    /// Nothing is known before this revision any more.
    Compacted(Revision),
}

impl Watching {
    pub(super) fn new(face: &Face, asked: &pb::WatchCreateRequest, waker: Waker) -> Result<Self, Refused> {
        // No key is the smallest one.
        let key = if asked.key.is_empty() { Bytes::from_static(&[0]) } else { asked.key.clone() };
        let range = range::range_of(&key, &asked.range_end);
        if range.end.as_ref().is_some_and(|end| *end <= range.start) {
            return Err(Refused::Reason("mvcc: watcher range is empty".to_owned()));
        }
        let now = face.store.snapshot();
        let after = match u64::try_from(asked.start_revision) {
            Ok(0) => now.revision(),
            Ok(start) => Revision(start).previous(),
            Err(_) => {
                let reason = "etcdserver: mvcc: required revision has been compacted";
                return Err(Refused::Reason(reason.to_owned()));
            }
        };
        let compacted = face.compacted(&now);
        if after.next() < compacted {
            return Err(Refused::Compacted(compacted));
        }
        let (interest, exact) = interest(&range, asked.range_end.is_empty());
        let request = WatchRequest::new(face.table, after).interest(interest);
        let watch = face.store.watch(request).map_err(|error| match error {
            ReadError::Compacted { floor, .. } => Refused::Compacted(floor),
            error => Refused::Reason(format!("etcdserver: {error}")),
        })?;
        let filters = |filter: pb::FilterType| asked.filters.contains(&(filter as i32));
        Ok(Watching {
            watch,
            waker,
            range,
            exact,
            no_put: filters(pb::FilterType::NoPut),
            no_delete: filters(pb::FilterType::NoDelete),
            prev_kv: asked.prev_kv,
            fragment: asked.fragment,
            progress_notify: asked.progress_notify,
            told: Instant::now(),
        })
    }

    fn wants(&self, event: &Event) -> bool {
        let filtered = match event.kind {
            EventKind::Put => self.no_put,
            EventKind::Delete => self.no_delete,
        };
        !filtered && (self.exact || self.range.contains(event.entry.key()))
    }

    /// Writes a batch as answers.
    pub(super) fn write(
        &mut self,
        face: &Face,
        id: i64,
        batch: &Batch,
        out: &mut VecDeque<pb::WatchResponse>,
    ) {
        let header = face.header(batch.revision);
        let max = if self.fragment { face.settings.request_bytes_max } else { usize::MAX };
        let (mut events, mut bytes, mut last) = (Vec::with_capacity(batch.events.len()), 0, Revision::ZERO);
        let mut send = |events: &mut Vec<pb::Event>, fragment: bool| {
            let events = std::mem::take(events);
            let header = Some(header);
            out.push_back(pb::WatchResponse { header, watch_id: id, fragment, events, ..Default::default() });
        };
        for event in batch.events.iter().filter(|event| self.wants(event)) {
            let written = self.event(event);
            let size = written.encoded_len();
            let (full, torn) = (bytes >= RESPONSE_BYTES && event.revision != last, bytes + size > max);
            if !events.is_empty() && (full || torn) {
                send(&mut events, torn && event.revision == last);
                bytes = 0;
            }
            events.push(written);
            (bytes, last) = (bytes + size, event.revision);
        }
        if !events.is_empty() {
            send(&mut events, false);
            self.told = Instant::now();
        }
    }

    fn event(&self, event: &Event) -> pb::Event {
        let previous = event.previous.as_deref().filter(|_| self.prev_kv).map(range::key_value);
        match event.kind {
            EventKind::Put => pb::Event {
                r#type: pb::EventType::Put as i32,
                kv: Some(range::key_value(&event.entry)),
                prev_kv: previous,
            },
            EventKind::Delete => pb::Event {
                r#type: pb::EventType::Delete as i32,
                kv: Some(tombstone(&event.entry)),
                prev_kv: previous,
            },
        }
    }
}

/// Of a deletion, etcd tells the key and the revision.
fn tombstone(entry: &Entry) -> pb::KeyValue {
    pb::KeyValue {
        key: entry.key().clone(),
        mod_revision: number(entry.modified().0),
        ..pb::KeyValue::default()
    }
}

/// What the store is asked for, and whether that is all and nothing but the range.
fn interest(range: &Range, one: bool) -> (Interest, bool) {
    if one {
        return (Interest::Key(range.start.clone()), true);
    }
    if Range::prefix(range.start.clone()) == *range {
        return (Interest::Prefix(range.start.clone()), true);
    }
    let same = |end: &Bytes| range.start.iter().zip(end).take_while(|(a, b)| a == b).count();
    match range.end.as_ref().map_or(0, same) {
        // The smallest key there can be is one zero byte.
        0 => (Interest::All, range.end.is_none() && range.start[..] == [0]),
        common => (Interest::Prefix(range.start.slice(..common)), false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_asked_for_no_more_than_it_can_say() {
        let key = |key: &str| Bytes::from(key.to_owned());
        let cases = [
            ("a", "", Interest::Key(key("a")), true),
            ("/pods/", "/pods0", Interest::Prefix(key("/pods/")), true),
            ("/pods/a", "/pods/f", Interest::Prefix(key("/pods/")), false),
            ("a", "c", Interest::All, false),
            ("a", "\0", Interest::All, false),
            ("\0", "\0", Interest::All, true),
        ];
        for (start, end, wanted, exact) in cases {
            let range = range::range_of(&key(start), &key(end));
            assert_eq!(interest(&range, end.is_empty()), (wanted, exact), "{start} to {end}");
        }
    }
}
