//! From a transaction of etcd to one of the store, and from what it did to the answer.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use tonic::Status;

use super::{Face, compare, faults, number, range};
use crate::{
    Committed, Compare, Entry, LeaseId, Op, Outcome, Range, Revision, Snapshot, TableId, Txn, proto as pb,
};

/// What a transaction comes to on one state.
pub(super) struct Plan<'a> {
    branch: Branch<'a>,
    ops: Vec<Op>,
    /// What must still hold when the operations are done.
    proof: Vec<Compare>,
    /// Whether `proof` is all that the plan rests on.
    pub(super) proven: bool,
    reads: bool,
}

/// One list of operations that is done.
struct Branch<'a> {
    succeeded: bool,
    steps: Vec<Step<'a>>,
}

/// An operation; changes name the operations of the store that do it.
enum Step<'a> {
    Range(&'a pb::RangeRequest),
    Put { op: usize, prev_kv: bool },
    Delete { ops: std::ops::Range<usize>, prev_kv: bool },
    Txn(Branch<'a>),
}

impl<'a> Plan<'a> {
    /// Decides every comparison on `state`, as etcd does before it changes anything.
    pub(super) fn new(face: &Face, state: &Snapshot, txn: &'a pb::TxnRequest) -> Result<Self, Status> {
        let branch = Branch { succeeded: false, steps: Vec::new() };
        let mut plan = Plan { branch, ops: Vec::new(), proof: Vec::new(), proven: true, reads: false };
        plan.branch = plan.branch(face, state, txn, &mut Vec::new())?;
        Ok(plan)
    }

    /// The recursion ends with the limit on operations, which each level takes from.
    fn branch(
        &mut self,
        face: &Face,
        state: &Snapshot,
        txn: &'a pb::TxnRequest,
        deleted: &mut Vec<Range>,
    ) -> Result<Branch<'a>, Status> {
        let decision = compare::decide(state, face.table, &txn.compare);
        match decision.proof {
            Some(proof) => self.proof.extend(proof),
            None => self.proven = false,
        }
        let ops = if decision.holds { &txn.success } else { &txn.failure };
        let mut steps = Vec::with_capacity(ops.len());
        for op in ops {
            steps.push(match op.request.as_ref().ok_or_else(faults::key_not_found)? {
                pb::Request::Range(range) => {
                    // Below 0 a read by itself means the newest state; here it is before everything, as in etcd, where the
                    // revision of the first compaction is -1 until there is one.
                    if range.revision < 0 && (range.revision < -1 || face.compacted(state) > Revision::ZERO) {
                        return Err(faults::compacted());
                    }
                    face.asked(state, range.revision)?;
                    self.reads = true;
                    Step::Range(range)
                }
                pb::Request::Put(put) => self.put(face.table, state, put)?,
                pb::Request::DeleteRange(delete) => self.delete(face.table, delete, deleted),
                pb::Request::Txn(txn) => Step::Txn(self.branch(face, state, txn, deleted)?),
            });
        }
        Ok(Branch { succeeded: decision.holds, steps })
    }

    fn put(&mut self, table: TableId, state: &Snapshot, put: &pb::PutRequest) -> Result<Step<'a>, Status> {
        let (mut value, mut lease) = (range::own(&put.value), LeaseId::new(put.lease.cast_unsigned()));
        if put.ignore_value || put.ignore_lease {
            let current = state.get(table, &put.key).ok_or_else(faults::key_not_found)?;
            self.proof.push(Compare::modified_at(table, put.key.clone(), current.modified()));
            if put.ignore_value {
                value = current.value().clone();
            }
            if put.ignore_lease {
                lease = current.lease();
            }
        }
        self.ops.push(Op::Put { table, key: range::own(&put.key), value, lease, hint: None });
        Ok(Step::Put { op: self.ops.len() - 1, prev_kv: put.prev_kv })
    }

    /// The store wants deletions that don't overlap: each takes what the ones before have left.
    fn delete(
        &mut self,
        table: TableId,
        delete: &pb::DeleteRangeRequest,
        deleted: &mut Vec<Range>,
    ) -> Step<'a> {
        let first = self.ops.len();
        let asked = range::range_of(&delete.key, &delete.range_end);
        let rest = deleted.iter().fold(vec![asked.clone()], |rest, gone| {
            rest.into_iter().flat_map(|range| without(range, gone)).collect()
        });
        for range in rest {
            self.ops.push(match delete.range_end.is_empty() {
                true => Op::delete(table, delete.key.clone()),
                false => Op::DeleteRange { table, range },
            });
        }
        deleted.push(asked);
        Step::Delete { ops: first..self.ops.len(), prev_kv: delete.prev_kv }
    }

    /// Whether nothing is to be changed.
    pub(super) fn only_reads(&self) -> bool {
        self.ops.is_empty()
    }

    /// The transaction that does it.
    pub(super) fn txn(&self) -> Txn {
        let txn = self.proof.iter().cloned().fold(Txn::new().in_company(), Txn::compare);
        self.ops.iter().cloned().fold(txn, Txn::op)
    }

    /// The answer when nothing was to be changed.
    pub(super) fn read(&self, face: &Face, state: &Snapshot) -> Result<pb::TxnResponse, Status> {
        let committed = Committed { revision: state.revision(), outcomes: Vec::new() };
        self.answer(face, state, &committed)
    }

    /// The answer, after it was done; `state` is the one that was decided on.
    pub(super) fn answer(
        &self,
        face: &Face,
        state: &Snapshot,
        committed: &Committed,
    ) -> Result<pb::TxnResponse, Status> {
        let changed =
            committed.outcomes.iter().any(|outcome| outcome.entry.is_some() || !outcome.deleted.is_empty());
        let before = if changed { committed.revision.previous() } else { committed.revision };
        let base = match self.reads && !self.ops.is_empty() && before != state.revision() {
            true => &face
                .store
                .snapshot()
                .at_table(face.table, before)
                .map_err(|error| faults::of_read(&error))?,
            false => state,
        };
        let mut doing = Doing { face, base, committed, done: BTreeMap::new() };
        doing.branch(&self.branch)
    }
}

/// Goes through what was done once more, so that a read in the middle sees the changes before it.
struct Doing<'a> {
    face: &'a Face,
    /// The state before the transaction.
    base: &'a Snapshot,
    committed: &'a Committed,
    done: BTreeMap<Bytes, Option<Arc<Entry>>>,
}

impl Doing<'_> {
    fn branch(&mut self, branch: &Branch<'_>) -> Result<pb::TxnResponse, Status> {
        let header = Some(self.face.header(self.committed.revision));
        let mut responses = Vec::with_capacity(branch.steps.len());
        for step in &branch.steps {
            let response = match step {
                Step::Range(request) => {
                    let answer = self.range(request)?;
                    pb::Response::Range(pb::RangeResponse { header, ..answer })
                }
                Step::Put { op, prev_kv } => {
                    let outcome = self.outcome(*op);
                    let prev_kv = outcome.previous.as_deref().filter(|_| *prev_kv).map(range::key_value);
                    pb::Response::Put(pb::PutResponse { header, prev_kv })
                }
                Step::Delete { ops, prev_kv } => {
                    let found: Vec<Arc<Entry>> = ops.clone().flat_map(|op| gone(self.outcome(op))).collect();
                    pb::Response::DeleteRange(deleted(header, &found, *prev_kv))
                }
                Step::Txn(branch) => pb::Response::Txn(self.branch(branch)?),
            };
            responses.push(pb::ResponseOp { response: Some(response) });
        }
        Ok(pb::TxnResponse { header, succeeded: branch.succeeded, responses })
    }

    /// What an operation did; reads after it see that.
    fn outcome(&mut self, op: usize) -> &Outcome {
        const NOTHING: &Outcome = &Outcome { entry: None, previous: None, deleted: Vec::new() };
        let outcome = self.committed.outcomes.get(op).unwrap_or(NOTHING);
        if let Some(entry) = &outcome.entry {
            let now = (!entry.is_tombstone()).then(|| entry.clone());
            self.done.insert(entry.key().clone(), now);
        }
        self.done.extend(outcome.deleted.iter().map(|entry| (entry.key().clone(), None)));
        outcome
    }

    fn range(&self, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Status> {
        let range = range::range_of(&request.key, &request.range_end);
        if request.revision > 0 || !self.done.keys().any(|key| range.contains(key)) {
            return self.face.read(self.base, request);
        }
        let mut found: BTreeMap<Bytes, Arc<Entry>> =
            self.base.range(self.face.table, &range).map(|entry| (entry.key().clone(), entry)).collect();
        for (key, now) in self.done.iter().filter(|(key, _)| range.contains(key)) {
            match now {
                Some(entry) => drop(found.insert(key.clone(), entry.clone())),
                None => drop(found.remove(key)),
            }
        }
        Ok(range::answer(found.len(), found.into_values(), request))
    }
}

/// What an operation deleted.
pub(super) fn gone(outcome: &Outcome) -> Vec<Arc<Entry>> {
    match (&outcome.entry, &outcome.previous) {
        (Some(entry), Some(previous)) if entry.is_tombstone() => vec![previous.clone()],
        _ => outcome.deleted.clone(),
    }
}

pub(super) fn deleted(
    header: Option<pb::ResponseHeader>,
    found: &[Arc<Entry>],
    prev_kv: bool,
) -> pb::DeleteRangeResponse {
    let prev_kvs =
        if prev_kv { found.iter().map(|entry| range::key_value(entry)).collect() } else { Vec::new() };
    pb::DeleteRangeResponse { header, deleted: number(found.len() as u64), prev_kvs }
}

/// What is left of a range when another is taken out.
fn without(range: Range, gone: &Range) -> Vec<Range> {
    let earlier = |a: &Option<Bytes>, b: &Bytes| a.as_ref().is_some_and(|a| a <= b);
    if earlier(&gone.end, &range.start) || earlier(&range.end, &gone.start) {
        return vec![range];
    }
    let mut rest = Vec::new();
    if range.start < gone.start {
        rest.push(Range::new(range.start.clone(), gone.start.clone()));
    }
    if let Some(end) = &gone.end
        && range.end.as_ref().is_none_or(|of| end < of)
    {
        rest.push(Range { start: end.clone(), end: range.end });
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_range() {
        type Bounds = (&'static str, Option<&'static str>);
        let cases: [(Bounds, Bounds, &[Bounds]); 7] = [
            (("b", Some("d")), ("d", Some("e")), &[("b", Some("d"))]),
            (("b", Some("d")), ("a", Some("b")), &[("b", Some("d"))]),
            (("b", Some("f")), ("c", Some("d")), &[("b", Some("c")), ("d", Some("f"))]),
            (("b", None), ("c", Some("d")), &[("b", Some("c")), ("d", None)]),
            (("b", Some("d")), ("a", None), &[]),
            (("b", None), ("a", Some("c")), &[("c", None)]),
            (("b", Some("d")), ("b", Some("d")), &[]),
        ];
        let range = |start: &str, end: Option<&str>| Range {
            start: start.to_owned().into(),
            end: end.map(|end| end.to_owned().into()),
        };
        for ((start, end), (from, to), left) in cases {
            let left: Vec<Range> = left.iter().map(|(start, end)| range(start, *end)).collect();
            assert_eq!(
                without(range(start, end), &range(from, to)),
                left,
                "{start}..{end:?} without {from}..{to:?}"
            );
        }
    }
}
