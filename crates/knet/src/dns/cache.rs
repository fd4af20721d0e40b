//! What other servers have said, for as long as they said that it holds.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{DNSClass, RData, Record, RecordType},
};
use tokio::time::Instant;

/// How many answers are kept; the one that holds for the shortest time makes room.
pub const CACHE_ENTRIES_MAX: usize = 8192;
/// The longest answer that is kept, in bytes.
pub const CACHE_ENTRY_BYTES_MAX: usize = 4096;
/// How long an answer is kept at most, whatever it says.
pub const CACHE_MAX: Duration = Duration::from_secs(3600);
/// How long it is kept at most that there is nothing (RFC 2308, section 5, advises one to three hours; operators, less).
pub const CACHE_NOTHING_MAX: Duration = Duration::from_secs(1800);

/// What answers are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    name: String,
    kind: RecordType,
    class: DNSClass,
    /// Whether signatures are wanted, and whether they are not to be checked: the answer depends on both.
    signed: bool,
    unchecked: bool,
}

impl Key {
    pub(super) fn new(query: &Query, signed: bool, unchecked: bool) -> Self {
        Self {
            name: query.name().to_lowercase().to_ascii(),
            kind: query.query_type(),
            class: query.query_class(),
            signed,
            unchecked,
        }
    }
}

#[derive(Debug)]
struct Entry {
    message: Message,
    since: Instant,
    until: Instant,
    number: u64,
}

/// Answers by their questions.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    /// The keys by the end of their answers; numbers tell those apart that end together.
    ends: BTreeMap<(Instant, u64), Key>,
    next: u64,
}

impl Cache {
    /// The answer, with what is left of its times to live.
    pub(super) fn get(&mut self, key: &Key, now: Instant) -> Option<Message> {
        let entry = self.entries.get(key)?;
        if entry.until <= now {
            self.forget(key);
            return None;
        }
        let age = u32::try_from((now - entry.since).as_secs()).unwrap_or(u32::MAX);
        let mut message = entry.message.clone();
        for record in records(&mut message) {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    /// Keeps an answer, if it says for how long.
    pub(super) fn put(&mut self, key: Key, message: &Message, bytes: usize, now: Instant) {
        let Some(lifetime) = lifetime(message).filter(|_| bytes <= CACHE_ENTRY_BYTES_MAX) else { return };
        self.forget(&key);
        while self.entries.len() >= CACHE_ENTRIES_MAX {
            let Some((_, first)) = self.ends.pop_first() else { break };
            self.entries.remove(&first);
        }
        let (number, until) = (self.next, now + lifetime);
        self.next += 1;
        self.ends.insert((until, number), key.clone());
        self.entries.insert(key, Entry { message: message.clone(), since: now, until, number });
    }

    fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.ends.remove(&(entry.until, entry.number));
        }
    }
}

fn records(message: &mut Message) -> impl Iterator<Item = &mut Record> {
    let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
    sections.into_iter().flatten()
}

/// For how long an answer holds; `None` for one that must not be kept.
///
/// Records hold for the shortest of their times. That there is nothing holds as long as the zone's SOA record says, and without one
/// nobody knows (RFC 2308, section 5).
fn lifetime(message: &Message) -> Option<Duration> {
    if message.metadata.truncation {
        return None;
    }
    let shortest = |records: &[Record]| records.iter().map(|record| record.ttl).min();
    let is_positive = match message.metadata.response_code {
        ResponseCode::NoError => {
            let wanted = message.queries.first().map(Query::query_type);
            // Aliases alone lead to nothing, unless they were asked for.
            message
                .answers
                .iter()
                .any(|record| matches!(wanted, Some(RecordType::ANY)) || Some(record.record_type()) == wanted)
        }
        ResponseCode::NXDomain => false,
        _ => return None,
    };
    let (seconds, longest) = if is_positive {
        (shortest(&message.answers)?, CACHE_MAX)
    } else {
        let soa = message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        })?;
        (shortest(&message.answers).map_or(soa, |ttl| ttl.min(soa)), CACHE_NOTHING_MAX)
    };
    (seconds > 0).then(|| Duration::from_secs(seconds.into()).min(longest))
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{
        Name,
        rdata::{A, CNAME, SOA},
    };

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    /// Records are `a TTL`, `cname TTL` and `soa TTL MINIMUM`.
    fn message(code: ResponseCode, records: &str) -> Message {
        let mut message = Message::response(1, hickory_proto::op::OpCode::Query);
        message.add_query(Query::query(name("example.com."), RecordType::A));
        message.metadata.response_code = code;
        for record in records.split(", ").filter(|record| !record.is_empty()) {
            let mut words = record.split(' ');
            let kind = words.next().unwrap();
            let mut number = || words.next().unwrap().parse::<u32>().unwrap();
            let ttl = number();
            let data = match kind {
                "a" => RData::A(A::new(192, 0, 2, 1)),
                "cname" => RData::CNAME(CNAME(name("other.example."))),
                _ => RData::SOA(SOA::new(name("ns.example."), name("who.example."), 1, 2, 3, 4, number())),
            };
            let record = Record::from_rdata(name("example.com."), ttl, data);
            if kind == "soa" {
                message.add_authority(record);
            } else {
                message.add_answer(record);
            }
        }
        message
    }

    #[test]
    fn answers_hold_as_long_as_they_say() {
        use ResponseCode::{NXDomain, NoError, Refused, ServFail};
        for (code, records, expected) in [
            (NoError, "a 60", Some(60)),
            (NoError, "cname 300, a 60", Some(60)),
            (NoError, "cname 30, a 60", Some(30)),
            (NoError, "a 86400", Some(3600)),
            (NoError, "a 0", None),
            // Nothing of the wanted type: RFC 2308, section 2.2.
            (NoError, "soa 300 60", Some(60)),
            (NoError, "soa 60 300", Some(60)),
            (NoError, "cname 10, soa 60 300", Some(10)),
            (NoError, "", None),
            (NoError, "cname 60", None),
            (NXDomain, "soa 7200 7200", Some(1800)),
            (NXDomain, "", None),
            (ServFail, "soa 60 60", None),
            (Refused, "a 60", None),
        ] {
            let found = lifetime(&message(code, records)).map(|time| time.as_secs());
            assert_eq!(found, expected, "{code:?} {records}");
        }
        let mut cut = message(NoError, "a 60");
        cut.metadata.truncation = true;
        assert_eq!(lifetime(&cut), None);
    }

    #[test]
    fn what_is_kept_grows_old_and_is_bounded() {
        let begin = Instant::now();
        let after = |seconds| begin + Duration::from_secs(seconds);
        let key = |text: &str, signed| Key::new(&Query::query(name(text), RecordType::A), signed, false);
        let mut cache = Cache::default();
        let answer = message(ResponseCode::NoError, "a 60");
        cache.put(key("Example.com.", false), &answer, 100, begin);
        let found = cache.get(&key("example.COM.", false), after(25)).unwrap();
        assert_eq!(found.answers[0].ttl, 35);
        assert!(cache.get(&key("example.com.", true), begin).is_none(), "another question");
        assert!(cache.get(&key("example.com.", false), after(60)).is_none());
        assert_eq!((cache.entries.len(), cache.ends.len()), (0, 0));
        cache.put(key("long.example.", false), &answer, CACHE_ENTRY_BYTES_MAX + 1, begin);
        assert!(cache.entries.is_empty());

        // Who ends first makes room; one that comes again takes no second place.
        cache.put(key("short.example.", false), &message(ResponseCode::NoError, "a 5"), 100, begin);
        for index in 0..CACHE_ENTRIES_MAX {
            cache.put(key(&format!("n{index}.example."), false), &answer, 100, begin);
            cache.put(key("n0.example.", false), &answer, 100, begin);
        }
        assert_eq!((cache.entries.len(), cache.ends.len()), (CACHE_ENTRIES_MAX, CACHE_ENTRIES_MAX));
        assert!(cache.get(&key("short.example.", false), begin).is_none());
        assert!(cache.get(&key("n0.example.", false), begin).is_some());
    }
}
