//! Commits.

use tonic::{Code, Status};

use super::{Etcd, EtcdError, header, signed};
use crate::{
    CommitError, Compare, LeaseId, Op, Operand, Relation, RemoteOutcome, RemoteTxn, StoreError,
    proto::{self as pb, CompareResult as Result_, CompareTarget as Target, TargetUnion as Union},
};

impl Etcd {
    pub(super) async fn commit_txn(&self, txn: RemoteTxn<'_>) -> Result<RemoteOutcome, CommitError> {
        let mut request = pb::TxnRequest::default();
        for compare in txn.txn.compares() {
            self.compare(txn, compare, &mut request.compare)?;
        }
        for op in txn.txn.ops() {
            request.success.push(pb::RequestOp { request: Some(self.op(txn, op)?) });
        }
        let named = txn.txn.ops().iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            _ => None,
        });
        let response: pb::TxnResponse =
            self.channels.call_once("KV/Txn", request).await.map_err(|status| refused(status, named))?;
        let revision = header(response.header);
        if !response.succeeded {
            return Ok(RemoteOutcome::Conflict(revision));
        }
        let changed = response.responses.iter().any(|op| match &op.response {
            Some(pb::Response::Put(_)) => true,
            Some(pb::Response::DeleteRange(deleted)) => deleted.deleted > 0,
            _ => false,
        });
        Ok(if changed { RemoteOutcome::Changed(revision) } else { RemoteOutcome::Unchanged(revision) })
    }

    /// One comparison, which may take two of etcd's: there, a key that is missing has revisions, version and lease 0.
    fn compare(
        &self,
        txn: RemoteTxn<'_>,
        compare: &Compare,
        to: &mut Vec<pb::Compare>,
    ) -> Result<(), CommitError> {
        let (table, key) = compare.target();
        let key = self.keys.key(txn.name(table)?, key);
        let mut push = |target: Target, result: Result_, union: Union| {
            to.push(pb::Compare {
                result: result as i32,
                target: target as i32,
                key: key.clone(),
                target_union: Some(union),
                range_end: Default::default(),
            });
        };
        let there = |push: &mut dyn FnMut(Target, Result_, Union)| {
            push(Target::Version, Result_::Greater, Union::Version(0));
        };
        match compare {
            Compare::Absent { .. } => push(Target::Version, Result_::Equal, Union::Version(0)),
            Compare::Exists { .. } => there(&mut push),
            Compare::ModifiedAt { revision, .. } => {
                there(&mut push);
                push(Target::Mod, Result_::Equal, Union::ModRevision(signed(revision.0)));
            }
            Compare::CreatedAt { revision, .. } => {
                there(&mut push);
                push(Target::Create, Result_::Equal, Union::CreateRevision(signed(revision.0)));
            }
            Compare::VersionIs { version, .. } => {
                there(&mut push);
                push(Target::Version, Result_::Equal, Union::Version(signed(*version)));
            }
            Compare::ValueIs { value, .. } => {
                push(Target::Value, Result_::Equal, Union::Value(value.clone()))
            }
            Compare::LeaseIs { lease, .. } => {
                there(&mut push);
                push(Target::Lease, Result_::Equal, Union::Lease(lease_number(*lease)));
            }
            Compare::Is { relation, operand, .. } => {
                let result = match relation {
                    Relation::Equal => Result_::Equal,
                    Relation::NotEqual => Result_::NotEqual,
                    Relation::Less => Result_::Less,
                    Relation::Greater => Result_::Greater,
                };
                match operand {
                    Operand::Modified(at) => push(Target::Mod, result, Union::ModRevision(signed(at.0))),
                    Operand::Created(at) => push(Target::Create, result, Union::CreateRevision(signed(at.0))),
                    Operand::Version(version) => {
                        push(Target::Version, result, Union::Version(signed(*version)))
                    }
                    Operand::Value(value) => push(Target::Value, result, Union::Value(value.clone())),
                    Operand::Lease(lease) => push(Target::Lease, result, Union::Lease(lease_number(*lease))),
                }
            }
        }
        Ok(())
    }

    fn op(&self, txn: RemoteTxn<'_>, op: &Op) -> Result<pb::Request, CommitError> {
        let name = txn.name(op.table())?;
        Ok(match op {
            Op::Put { key, value, lease, .. } => pb::Request::Put(pb::PutRequest {
                key: self.keys.key(name, key),
                value: value.clone(),
                lease: lease_number(*lease),
                ..Default::default()
            }),
            Op::Delete { key, .. } => pb::Request::DeleteRange(pb::DeleteRangeRequest {
                key: self.keys.key(name, key),
                ..Default::default()
            }),
            Op::DeleteRange { range, .. } => {
                let (key, range_end) = self.keys.range(name, range);
                pb::Request::DeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: false })
            }
        })
    }
}

fn lease_number(lease: Option<LeaseId>) -> i64 {
    lease.map_or(0, |lease| lease.get().cast_signed())
}

/// What etcd's refusal means for a commit.
fn refused(status: Status, named: Option<LeaseId>) -> CommitError {
    let says = |words: &str| status.message().contains(words);
    match status.code() {
        Code::NotFound if says("lease not found") => {
            named.map_or(CommitError::UnknownOutcome, CommitError::UnknownLease)
        }
        // It was not done; etcd's words say which of its limits it would have passed.
        Code::ResourceExhausted
        | Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::FailedPrecondition => {
            StoreError::Backend(std::sync::Arc::new(EtcdError::Refused(status))).into()
        }
        // Sent, and not answered, or answered by one who doesn't know.
        _ => CommitError::UnknownOutcome,
    }
}
