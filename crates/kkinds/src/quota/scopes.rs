//! Scopes that have values.

use k8s_openapi::api::core::v1::ScopedResourceSelectorRequirement;

/// Whether something that has one of these names, or none, is within the scope: the names are taken as the value of a label
/// (`ScopedResourceSelectorRequirementsAsSelector`). Several names are asked for one by one, and one is enough.
pub(super) fn names_match(scope: &ScopedResourceSelectorRequirement, names: &[&str]) -> bool {
    let listed = |name: &&&str| scope.values.iter().flatten().any(|value| value == **name);
    match &*scope.operator {
        "Exists" => !names.is_empty(),
        "DoesNotExist" => names.is_empty(),
        "In" => names.iter().any(|name| listed(&name)),
        "NotIn" => names.is_empty() || names.iter().any(|name| !listed(&name)),
        _ => false,
    }
}
