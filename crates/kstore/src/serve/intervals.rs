//! Whether the changes of a transaction get in each other's way.
//!
//! The rules are etcd's: a key may be put once, and not be put and deleted, in what is done together. The two lists of a nested
//! transaction are never done together; deletions may overlap.

use std::collections::HashSet;

use bytes::Bytes;
use tonic::Status;

use super::{faults, range::range_of};
use crate::{Range, proto as pb};

#[derive(Default)]
struct Touched {
    puts: HashSet<Bytes>,
    deletes: Vec<Range>,
}

impl Touched {
    fn deletes(&self, key: &Bytes) -> bool {
        self.deletes.iter().any(|range| range.contains(key))
    }
}

/// Checks one list of operations, and all below it.
pub(super) fn check(ops: &[pb::RequestOp]) -> Result<(), Status> {
    touched(ops).map(drop)
}

fn touched(ops: &[pb::RequestOp]) -> Result<Touched, Status> {
    let mut all = Touched::default();
    for op in ops {
        if let Some(pb::Request::DeleteRange(delete)) = &op.request {
            all.deletes.push(range_of(&delete.key, &delete.range_end));
        }
    }
    for op in ops {
        let Some(pb::Request::Txn(txn)) = &op.request else { continue };
        let (then, otherwise) = (touched(&txn.success)?, touched(&txn.failure)?);
        let clash = |key: &Bytes| all.puts.contains(key) || all.deletes(key);
        if then.puts.iter().chain(&otherwise.puts).any(clash) {
            return Err(faults::duplicate_key());
        }
        all.puts.extend(then.puts);
        all.puts.extend(otherwise.puts);
        all.deletes.extend(then.deletes);
        all.deletes.extend(otherwise.deletes);
    }
    for op in ops {
        let Some(pb::Request::Put(put)) = &op.request else { continue };
        if all.deletes(&put.key) || !all.puts.insert(put.key.clone()) {
            return Err(faults::duplicate_key());
        }
    }
    Ok(all)
}
