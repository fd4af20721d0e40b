//! What PersistentVolumeClaims use.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, ScopedResourceSelectorRequirement},
    apimachinery::pkg::api::resource,
};
use kcore::Quantity;

use super::{Amounts, scopes::names_match};

/// What stands between a storage class and the resource in a name such as
/// `gold.storageclass.storage.k8s.io/requests.storage`.
const CLASS_SUFFIX: &str = ".storageclass.storage.k8s.io/";
/// The annotation that named the storage class before there was a field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

const CLAIMS: &str = "persistentvolumeclaims";
const STORAGE: &str = "requests.storage";

pub(super) fn is_claim_resource(name: &str) -> bool {
    let by_class = |kind: &str| name.strip_suffix(kind).is_some_and(|class| class.ends_with(CLASS_SUFFIX));
    ["count/persistentvolumeclaims", CLAIMS, STORAGE].contains(&name) || by_class(CLAIMS) || by_class(STORAGE)
}

/// What one claim uses: itself and the storage that it asks for, also under the name of its class. When more has been
/// allocated than is asked for, as while an expansion is taken back, that counts (KEP-1790).
#[must_use]
pub fn claim_usage(claim: &PersistentVolumeClaim) -> Amounts {
    let annotations = claim.metadata.annotations.as_ref();
    let spec = claim.spec.as_ref();
    let class = annotations.and_then(|all| all.get(CLASS_ANNOTATION));
    let class = class.or_else(|| spec?.storage_class_name.as_ref()).filter(|class| !class.is_empty());
    let one = Quantity::from_value(1);
    let mut usage: Amounts =
        [(CLAIMS.to_owned(), one), ("count/persistentvolumeclaims".to_owned(), one)].into();
    if let Some(class) = class {
        usage.insert(format!("{class}{CLASS_SUFFIX}{CLAIMS}"), one);
    }
    let requests = spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref());
    let Some(asked) = storage(requests) else { return usage };
    let allocated = storage(claim.status.as_ref().and_then(|status| status.allocated_resources.as_ref()));
    let charged =
        whole(allocated.map_or(asked, |allocated| if allocated > asked { allocated } else { asked }));
    usage.insert(STORAGE.to_owned(), charged);
    if let Some(class) = class {
        usage.insert(format!("{class}{CLASS_SUFFIX}{STORAGE}"), charged);
    }
    usage
}

fn storage(list: Option<&BTreeMap<String, resource::Quantity>>) -> Option<Quantity> {
    Quantity::parse(&list?.get("storage")?.0).ok()
}

/// In whole bytes, as a quota has to be.
fn whole(amount: Quantity) -> Quantity {
    let bytes = Quantity::with_format(amount.value(), amount.format());
    if bytes == amount { amount } else { bytes }
}

/// Whether a claim is within a scope; `VolumeAttributesClass` is the only one for claims.
#[must_use]
pub fn claim_in_scope(claim: &PersistentVolumeClaim, scope: &ScopedResourceSelectorRequirement) -> bool {
    if scope.scope_name != "VolumeAttributesClass" {
        return false;
    }
    let names = class_names(claim);
    names_match(scope, &names.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The VolumeAttributesClasses that a claim has to do with (KEP-3751).
pub(super) fn class_names(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone());
    let current = status.and_then(|status| status.current_volume_attributes_class_name.clone());
    let target = status
        .and_then(|status| status.modify_volume_status.as_ref()?.target_volume_attributes_class_name.clone());
    [wanted, current, target].into_iter().flatten().filter(|name| !name.is_empty()).collect()
}
