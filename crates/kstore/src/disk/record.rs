//! Records: what happened, in the words of whoever made it happen. Doing the same again leads to the same state, so neither
//! versions nor deleted keys need to be written.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};

use crate::{Durability, LeaseId, Op, Range, Revision, TableId, Txn, txn::KEY_BYTES_MAX};

const TXN: u8 = 1;
const TABLE: u8 = 2;
const LEASE: u8 = 3;
const LEASE_END: u8 = 4;
const FLOOR: u8 = 5;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const RANGE: u8 = 3;

/// Where the revision of a transaction stands in its record; it is not known when the rest is written.
const REVISION_AT: usize = 1;
/// What an operation takes at most, besides its key and value, and a record besides its operations.
const OVERHEAD_BYTES: usize = 48;

/// One thing that happened.
#[derive(Debug)]
pub(crate) enum Record {
    /// A transaction took a revision.
    Txn { revision: Revision, ops: Vec<Op> },
    /// A table was opened for the first time, or is as durable as this from now on.
    Table { id: TableId, durability: Durability, name: String },
    /// A lease was granted or kept alive: it ends at that time, counted from 1970. `last` is the number last given out.
    Lease { id: LeaseId, ttl: Duration, ends: Duration, last: u64 },
    /// A lease ended, which led to the revision.
    LeaseEnd { id: LeaseId, revision: Revision },
    /// History was dropped up to there.
    Floor { floor: Revision },
}

/// What the record of a transaction takes, at most.
pub(crate) fn txn_bytes(txn: &Txn) -> usize {
    let op = |op: &Op| match op {
        Op::Put { key, value, .. } => key.len() + value.len(),
        Op::Delete { key, .. } => key.len(),
        Op::DeleteRange { range, .. } => range.start.len() + range.end.as_ref().map_or(0, Bytes::len),
    };
    OVERHEAD_BYTES + txn.ops().iter().map(|each| OVERHEAD_BYTES + op(each)).sum::<usize>()
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32_le(bytes.len() as u32);
    out.put_slice(bytes);
}

/// Appends the transaction's operations on the tables that `logged` names; its revision is to be put in by [`set_revision`].
pub(crate) fn put_txn(out: &mut Vec<u8>, txn: &Txn, logged: impl Fn(TableId) -> bool) {
    out.put_u8(TXN);
    out.put_u64_le(0);
    let count_at = out.len();
    out.put_u32_le(0);
    let mut count = 0u32;
    for op in txn.ops().iter().filter(|op| logged(op.table())) {
        count += 1;
        match op {
            Op::Put { table, key, value, lease, .. } => {
                out.put_u8(PUT);
                out.put_u32_le(table.0);
                out.put_u64_le(lease.map_or(0, LeaseId::get));
                put_bytes(out, key);
                put_bytes(out, value);
            }
            Op::Delete { table, key } => {
                out.put_u8(DELETE);
                out.put_u32_le(table.0);
                put_bytes(out, key);
            }
            Op::DeleteRange { table, range } => {
                out.put_u8(RANGE);
                out.put_u32_le(table.0);
                put_bytes(out, &range.start);
                out.put_u8(u8::from(range.end.is_some()));
                put_bytes(out, range.end.as_deref().unwrap_or_default());
            }
        }
    }
    out[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
}

/// Completes the record of a transaction.
pub(crate) fn set_revision(record: &mut [u8], revision: Revision) {
    record[REVISION_AT..REVISION_AT + 8].copy_from_slice(&revision.0.to_le_bytes());
}

pub(crate) fn put_durability(out: &mut Vec<u8>, durability: Durability) {
    let (class, max_loss) = match durability {
        Durability::Sync => (0, Duration::ZERO),
        Durability::Relaxed { max_loss } => (1, max_loss),
        Durability::Memory => (2, Duration::ZERO),
    };
    out.put_u8(class);
    put_time(out, max_loss);
}

pub(crate) fn put_time(out: &mut Vec<u8>, time: Duration) {
    out.put_u64_le(time.as_secs());
    out.put_u32_le(time.subsec_nanos());
}

/// Appends any record but a transaction.
pub(crate) fn put(out: &mut Vec<u8>, record: &Record) {
    match record {
        Record::Txn { revision, ops } => {
            let at = out.len();
            put_txn(out, &Txn { compares: Vec::new(), ops: ops.clone(), ..Txn::new() }, |_| true);
            set_revision(&mut out[at..], *revision);
        }
        Record::Table { id, durability, name } => {
            out.put_u8(TABLE);
            out.put_u32_le(id.0);
            put_durability(out, *durability);
            put_bytes(out, name.as_bytes());
        }
        Record::Lease { id, ttl, ends, last } => {
            out.put_u8(LEASE);
            out.put_u64_le(id.get());
            put_time(out, *ttl);
            put_time(out, *ends);
            out.put_u64_le(*last);
        }
        Record::LeaseEnd { id, revision } => {
            out.put_u8(LEASE_END);
            out.put_u64_le(id.get());
            out.put_u64_le(revision.0);
        }
        Record::Floor { floor } => {
            out.put_u8(FLOOR);
            out.put_u64_le(floor.0);
        }
    }
}

/// Reads numbers and pieces off the front; none where there is less than that.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32_le().ok()
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64_le().ok()
    }

    pub(crate) fn time(&mut self) -> Option<Duration> {
        let (secs, nanos) = (self.u64()?, self.u32()?);
        (nanos < 1_000_000_000).then(|| Duration::new(secs, nanos))
    }

    pub(crate) fn durability(&mut self) -> Option<Durability> {
        let (class, max_loss) = (self.u8()?, self.time()?);
        match class {
            0 => Some(Durability::Sync),
            1 => Some(Durability::Relaxed { max_loss }),
            2 => Some(Durability::Memory),
            _ => None,
        }
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// A copy, so that no entry keeps a whole frame in memory.
    fn own(&mut self) -> Option<Bytes> {
        self.bytes().map(Bytes::copy_from_slice)
    }

    fn op(&mut self) -> Option<Op> {
        let kind = self.u8()?;
        let table = TableId(self.u32()?);
        match kind {
            PUT => {
                let lease = LeaseId::new(self.u64()?);
                Some(Op::Put { table, key: self.own()?, value: self.own()?, lease, hint: None })
            }
            DELETE => Some(Op::Delete { table, key: self.own()? }),
            RANGE => {
                let (start, bounded, end) = (self.own()?, self.u8()?, self.own()?);
                let range = Range { start, end: (bounded == 1).then_some(end) };
                Some(Op::DeleteRange { table, range })
            }
            _ => None,
        }
    }

    /// The next record; none if it can't be one.
    pub(crate) fn record(&mut self) -> Option<Record> {
        match self.u8()? {
            TXN => {
                let (revision, count) = (Revision(self.u64()?), self.u32()?);
                // No more memory is set aside than the bytes that are there can fill.
                let mut ops = Vec::with_capacity((count as usize).min(self.0.len() / 9));
                for _ in 0..count {
                    ops.push(self.op()?);
                }
                Some(Record::Txn { revision, ops })
            }
            TABLE => {
                let (id, durability) = (TableId(self.u32()?), self.durability()?);
                let name = std::str::from_utf8(self.bytes()?).ok()?;
                (name.len() <= KEY_BYTES_MAX).then(|| Record::Table { id, durability, name: name.to_owned() })
            }
            LEASE => {
                let id = LeaseId::new(self.u64()?)?;
                Some(Record::Lease { id, ttl: self.time()?, ends: self.time()?, last: self.u64()? })
            }
            LEASE_END => {
                let id = LeaseId::new(self.u64()?)?;
                Some(Record::LeaseEnd { id, revision: Revision(self.u64()?) })
            }
            FLOOR => Some(Record::Floor { floor: Revision(self.u64()?) }),
            _ => None,
        }
    }
}
