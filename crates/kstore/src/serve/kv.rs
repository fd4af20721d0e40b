//! The service `KV`: writing.

use prost::Message;
use tonic::Status;

use super::{Face, faults, intervals, plan, plan::Plan, range};
use crate::{CommitError, LeaseId, Op, Revision, Txn, proto as pb};

/// After so many conflicts a transaction is done alone.
const TOGETHER_MAX: usize = 8;
/// After so many it is given up: something else than this face writes the table.
const ATTEMPTS_MAX: usize = 64;

fn check_put(put: &pb::PutRequest) -> Result<(), Status> {
    if put.key.is_empty() {
        return Err(faults::empty_key());
    }
    if put.ignore_value && !put.value.is_empty() {
        return Err(faults::value_provided());
    }
    if put.ignore_lease && put.lease != 0 {
        return Err(faults::lease_provided());
    }
    Ok(())
}

fn check_txn(txn: &pb::TxnRequest, ops_max: usize) -> Result<(), Status> {
    let ops = txn.compare.len().max(txn.success.len()).max(txn.failure.len());
    if ops > ops_max {
        return Err(faults::too_many_ops());
    }
    if txn.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(faults::empty_key());
    }
    for op in txn.success.iter().chain(&txn.failure) {
        match op.request.as_ref().ok_or_else(faults::key_not_found)? {
            pb::Request::Range(range) => range::check(range)?,
            pb::Request::Put(put) => check_put(put)?,
            pb::Request::DeleteRange(delete) if delete.key.is_empty() => return Err(faults::empty_key()),
            pb::Request::DeleteRange(_) => {}
            // What is left for it: an empty one takes nothing, so that depth has to be counted too.
            pb::Request::Txn(txn) => check_txn(txn, (ops_max - ops).min(ops_max.saturating_sub(1)))?,
        }
    }
    Ok(())
}

impl Face {
    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        if request.encoded_len() > self.settings.request_bytes_max {
            return Err(faults::too_large());
        }
        Ok(())
    }

    pub(super) async fn put(&self, request: pb::PutRequest) -> Result<pb::PutResponse, Status> {
        check_put(&request)?;
        self.check_size(&request)?;
        if request.ignore_value || request.ignore_lease {
            return match self.alone_of(pb::Request::Put(request)).await? {
                Some(pb::Response::Put(response)) => Ok(response),
                _ => Err(faults::timed_out()),
            };
        }
        let _together = self.alone.read().await;
        let txn = Txn::new().in_company().op(Op::Put {
            table: self.table,
            key: range::own(&request.key),
            value: range::own(&request.value),
            lease: LeaseId::new(request.lease.cast_unsigned()),
            hint: None,
        });
        let committed = self.store.commit(txn).await.map_err(|error| faults::of_commit(&error))?;
        let outcome = committed.outcomes.first();
        let previous = outcome.and_then(|outcome| outcome.previous.as_deref()).filter(|_| request.prev_kv);
        Ok(pb::PutResponse {
            header: Some(self.header(committed.revision)),
            prev_kv: previous.map(range::key_value),
        })
    }

    pub(super) async fn delete_range(
        &self,
        request: pb::DeleteRangeRequest,
    ) -> Result<pb::DeleteRangeResponse, Status> {
        if request.key.is_empty() {
            return Err(faults::empty_key());
        }
        self.check_size(&request)?;
        let _together = self.alone.read().await;
        let op = match request.range_end.is_empty() {
            true => Op::delete(self.table, request.key),
            false => Op::DeleteRange {
                table: self.table,
                range: range::range_of(&request.key, &request.range_end),
            },
        };
        let committed =
            self.store.commit(Txn::new().op(op)).await.map_err(|error| faults::of_commit(&error))?;
        let found: Vec<_> = committed.outcomes.iter().flat_map(plan::gone).collect();
        Ok(plan::deleted(Some(self.header(committed.revision)), &found, request.prev_kv))
    }

    /// One operation, as a transaction.
    async fn alone_of(&self, request: pb::Request) -> Result<Option<pb::Response>, Status> {
        let op = pb::RequestOp { request: Some(request) };
        let txn = pb::TxnRequest { compare: Vec::new(), success: vec![op], failure: Vec::new() };
        let mut response = self.execute(&txn).await?;
        Ok(response.responses.pop().and_then(|op| op.response))
    }

    pub(super) async fn txn(&self, request: pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        check_txn(&request, self.settings.txn_ops_max)?;
        self.check_size(&request)?;
        intervals::check(&request.success)?;
        intervals::check(&request.failure)?;
        self.execute(&request).await
    }

    /// Decides on the newest state, and lets the store make sure that it is still so; decides again where it is not.
    async fn execute(&self, request: &pb::TxnRequest) -> Result<pb::TxnResponse, Status> {
        let mut alone = false;
        for attempt in 0..ATTEMPTS_MAX {
            let (_together, _alone);
            if alone {
                _alone = self.alone.write().await;
            } else {
                _together = self.alone.read().await;
            }
            let state = self.newest(false).await.map_err(|error| faults::of_store(&error))?;
            let plan = Plan::new(self, &state, request)?;
            if plan.only_reads() {
                return plan.read(self, &state);
            }
            if !plan.proven && !alone {
                alone = true;
                continue;
            }
            match self.store.commit(plan.txn()).await {
                Ok(committed) => return plan.answer(self, &state, &committed),
                Err(CommitError::Conflict { .. }) => alone |= attempt >= TOGETHER_MAX,
                Err(error) => return Err(faults::of_commit(&error)),
            }
        }
        Err(faults::timed_out())
    }

    pub(super) async fn compact(&self, request: pb::CompactionRequest) -> Result<pb::HeaderOnly, Status> {
        let now = self.newest(false).await.map_err(|error| faults::of_store(&error))?;
        let revision = u64::try_from(request.revision).map(Revision).unwrap_or_default();
        if revision > now.revision() {
            return Err(faults::future());
        }
        if revision <= self.compacted(&now) {
            return Err(faults::compacted());
        }
        // etcd's compaction keeps what happened at the revision itself; the store's floor is what happened up to it.
        self.store.compact(revision.previous()).await.map_err(|error| faults::of_store(&error))?;
        self.compact_to(revision);
        Ok(pb::HeaderOnly { header: Some(self.header_now()) })
    }
}
