//! References to other namespaces, and who allows them.

use super::{super::types::GROUP, Input};

/// Whether an object of the Gateway API may refer to another one: within its namespace always, else when a ReferenceGrant of the
/// other's namespace says so.
pub(super) fn permits(input: &Input<'_>, from: (&str, &str), to: (&str, &str, &str, &str)) -> bool {
    let (from_kind, from_namespace) = from;
    let (group, kind, namespace, name) = to;
    from_namespace == namespace
        || input.grants.iter().any(|grant| {
            let from = |one: &super::super::types::ReferenceGrantFrom| {
                one.group == GROUP && one.kind == from_kind && one.namespace == from_namespace
            };
            let to = |one: &super::super::types::ReferenceGrantTo| {
                let named = one.name.as_deref().filter(|name| !name.is_empty());
                one.group == group && one.kind == kind && named.is_none_or(|named| named == name)
            };
            grant.metadata.namespace.as_deref() == Some(namespace)
                && grant.spec.from.iter().any(from)
                && grant.spec.to.iter().any(to)
        })
}
