//! What becomes of an object, given its owners and what it owns: no I/O.

use kcore::Header;

/// The finalizer that holds an owner until what blocks its deletion is gone.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that holds an owner until what it owns has been let go.
pub(super) const ORPHAN: &str = "orphan";

/// How an owner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It is there.
    Solid,
    /// It is on its way out and waits for what it owns.
    Waiting,
    /// It is not there.
    Absent,
}

/// What to do with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Keep,
    /// Take these owners out of it.
    DropOwners(Vec<String>),
    /// Delete it.
    Delete {
        propagation: &'static str,
        /// First say that it no longer blocks its owners: there is a cycle.
        unblock_owners: bool,
    },
    /// It waits for what it owns: look at that.
    DeleteDependents,
    /// What it waited for is gone: take this finalizer off.
    Unblock(&'static str),
    /// Take it out of what it owns, then take its finalizer off.
    Orphan,
}

fn has(header: &Header, finalizer: &str) -> bool {
    header.finalizers.iter().any(|known| **known == *finalizer)
}

/// Whether an object is on its way out and waits for what it owns.
pub(super) fn waits(header: &Header) -> bool {
    header.deletion.is_some() && has(header, FOREGROUND)
}

/// Upstream's `attemptToDeleteItem` and `attemptToOrphan`. `owners` are the states of the object's owners in their
/// order; `dependents` are the objects that it owns.
pub(super) fn verdict(object: &Header, owners: &[OwnerState], dependents: &[&Header]) -> Verdict {
    if object.deletion.is_some() {
        if has(object, ORPHAN) {
            return Verdict::Orphan;
        }
        if !has(object, FOREGROUND) {
            return Verdict::Keep;
        }
        let blocks = |dependent: &&Header| {
            let owner = dependent.owners.iter().find(|owner| owner.uid == object.uid);
            owner.is_some_and(|owner| owner.block_owner_deletion == Some(true))
        };
        let blocked = dependents.iter().any(blocks);
        return if blocked { Verdict::DeleteDependents } else { Verdict::Unblock(FOREGROUND) };
    }
    let with = |state: OwnerState| owners.iter().filter(move |known| **known == state).count();
    if owners.is_empty() || with(OwnerState::Solid) == owners.len() {
        return Verdict::Keep;
    }
    if with(OwnerState::Solid) > 0 {
        let gone = object.owners.iter().zip(owners).filter(|(_, state)| **state != OwnerState::Solid);
        return Verdict::DropOwners(gone.map(|(owner, _)| owner.uid.to_string()).collect());
    }
    if with(OwnerState::Waiting) > 0 && !dependents.is_empty() {
        // A dependent that waits itself may wait for this object: then neither would ever go.
        let unblock_owners = dependents.iter().any(|dependent| waits(dependent));
        return Verdict::Delete { propagation: "Foreground", unblock_owners };
    }
    let propagation = if has(object, ORPHAN) {
        "Orphan"
    } else if has(object, FOREGROUND) {
        "Foreground"
    } else {
        "Background"
    };
    Verdict::Delete { propagation, unblock_owners: false }
}

#[cfg(test)]
mod tests {
    use kcore::OwnerRef;

    use super::{OwnerState::*, *};

    fn object(finalizers: &[&str], deleted: bool, owners: usize) -> Header {
        let owner = |index: usize| OwnerRef {
            api_version: "v1".into(),
            kind: "ConfigMap".into(),
            name: "o".into(),
            uid: format!("owner-{index}").into(),
            controller: None,
            block_owner_deletion: Some(true),
        };
        Header {
            uid: "owner-0".into(),
            finalizers: finalizers.iter().map(|finalizer| (*finalizer).into()).collect(),
            deletion: deleted.then(|| "t".into()),
            owners: (0..owners).map(owner).collect(),
            ..Header::default()
        }
    }

    #[test]
    fn objects_follow_their_owners() {
        let dependent = object(&[], false, 1);
        let cycle = object(&[FOREGROUND], true, 1);
        let free = Header { owners: Box::default(), ..object(&[], false, 0) };
        let delete = |propagation, unblock_owners| Verdict::Delete { propagation, unblock_owners };
        let owners = |uids: &[&str]| Verdict::DropOwners(uids.iter().map(|uid| (*uid).to_owned()).collect());
        let cases: Vec<(Header, Vec<OwnerState>, Vec<&Header>, Verdict)> = vec![
            (object(&[], false, 0), vec![], vec![], Verdict::Keep),
            (object(&[], false, 2), vec![Solid, Solid], vec![], Verdict::Keep),
            (object(&[], false, 1), vec![Absent], vec![], delete("Background", false)),
            (object(&[ORPHAN], false, 1), vec![Absent], vec![], delete("Orphan", false)),
            (object(&[FOREGROUND], false, 1), vec![Absent], vec![], delete("Foreground", false)),
            (object(&[], false, 2), vec![Solid, Absent], vec![], owners(&["owner-1"])),
            (object(&[], false, 3), vec![Waiting, Solid, Absent], vec![], owners(&["owner-0", "owner-2"])),
            (object(&[], false, 1), vec![Waiting], vec![], delete("Background", false)),
            (object(&[], false, 1), vec![Waiting], vec![&dependent], delete("Foreground", false)),
            (object(&[], false, 1), vec![Waiting], vec![&cycle], delete("Foreground", true)),
            (object(&[], true, 1), vec![Absent], vec![], Verdict::Keep),
            (object(&[FOREGROUND], true, 0), vec![], vec![], Verdict::Unblock(FOREGROUND)),
            (object(&[FOREGROUND], true, 0), vec![], vec![&free], Verdict::Unblock(FOREGROUND)),
            (object(&[FOREGROUND], true, 0), vec![], vec![&dependent], Verdict::DeleteDependents),
            (object(&[ORPHAN], true, 0), vec![], vec![&dependent], Verdict::Orphan),
        ];
        for (object, owners, dependents, expected) in cases {
            assert_eq!(verdict(&object, &owners, &dependents), expected, "{object:?} {owners:?}");
        }
    }
}
