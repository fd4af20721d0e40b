//! Comparisons, as etcd means them.

use std::{cmp::Ordering, sync::Arc};

use super::{number, range::lease_number, range::range_of};
use crate::{Compare, Entry, Snapshot, TableId, proto as pb};

/// What a list of comparisons came to on one state.
pub(super) struct Decision {
    pub(super) holds: bool,
    /// What makes sure that it still comes to the same; none when only the whole store standing still would.
    pub(super) proof: Option<Vec<Compare>>,
}

/// Looks whether all of `compares` hold.
pub(super) fn decide(state: &Snapshot, table: TableId, compares: &[pb::Compare]) -> Decision {
    let mut proof = Some(Vec::with_capacity(compares.len()));
    for compare in compares {
        if compare.range_end.is_empty() {
            let entry = state.get(table, &compare.key);
            let holds = holds(compare, entry.as_deref());
            let pin = pin(table, compare, entry);
            if !holds {
                return Decision { holds, proof: Some(vec![pin]) };
            }
            if let Some(proof) = &mut proof {
                proof.push(pin);
            }
            continue;
        }
        let mut entries = state.range(table, range_of(&compare.key, &compare.range_end)).peekable();
        // A range without keys counts as one key that is not there.
        let holds = match entries.peek() {
            None => holds(compare, None),
            Some(_) => entries.all(|entry| holds(compare, Some(&entry))),
        };
        proof = None;
        if !holds {
            return Decision { holds, proof };
        }
    }
    Decision { holds: true, proof }
}

/// The key is as it was: sharper than the comparison, which the store may not be able to say, and never wrong.
fn pin(table: TableId, compare: &pb::Compare, entry: Option<Arc<Entry>>) -> Compare {
    match entry {
        Some(entry) => Compare::modified_at(table, compare.key.clone(), entry.modified()),
        None => Compare::absent(table, compare.key.clone()),
    }
}

/// A key that is not there has no value to compare, and 0 for everything else.
fn holds(compare: &pb::Compare, entry: Option<&Entry>) -> bool {
    let of = |read: fn(&Entry) -> i64| entry.map_or(0, read);
    let target = pb::CompareTarget::try_from(compare.target).unwrap_or(pb::CompareTarget::Version);
    // What is compared is said by the target; an operand of another kind counts as none.
    let operand = |read: fn(&pb::TargetUnion) -> Option<i64>| {
        compare.target_union.as_ref().and_then(read).unwrap_or_default()
    };
    use pb::TargetUnion as Is;
    let order: Ordering = match target {
        pb::CompareTarget::Version => of(|entry| number(entry.version()))
            .cmp(&operand(|union| if let Is::Version(number) = union { Some(*number) } else { None })),
        pb::CompareTarget::Create => of(|entry| number(entry.create().0))
            .cmp(&operand(|union| if let Is::CreateRevision(number) = union { Some(*number) } else { None })),
        pb::CompareTarget::Mod => of(|entry| number(entry.modified().0))
            .cmp(&operand(|union| if let Is::ModRevision(number) = union { Some(*number) } else { None })),
        pb::CompareTarget::Lease => of(|entry| entry.lease().map_or(0, lease_number))
            .cmp(&operand(|union| if let Is::Lease(number) = union { Some(*number) } else { None })),
        pb::CompareTarget::Value => {
            let Some(entry) = entry else { return false };
            let value = match &compare.target_union {
                Some(Is::Value(value)) => &value[..],
                _ => &[],
            };
            entry.value()[..].cmp(value)
        }
    };
    match pb::CompareResult::try_from(compare.result) {
        Ok(pb::CompareResult::Equal) => order.is_eq(),
        Ok(pb::CompareResult::NotEqual) => order.is_ne(),
        Ok(pb::CompareResult::Greater) => order.is_gt(),
        Ok(pb::CompareResult::Less) => order.is_lt(),
        // As etcd, which leaves its switch without a match.
        Err(_) => true,
    }
}
