//! Claims and volumes: the default class, protection while they are used, and growth (upstream's
//! `plugin/pkg/admission/storage`).

use async_trait::async_trait;
use kcore::Quantity;
use kstore::{Range, Revision};
use serde_json::{Value, json};

use super::{Admission, AdmissionRequest, Operation, Phase, matching::Asked};
use crate::{error::ApiResult, objects::stored};

/// The annotation that named a claim's class before there was a field.
const CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// The name of the class that is marked as the default; of several the newest, then the first by name.
pub(super) fn default_class(
    request: &AdmissionRequest<'_>,
    kind: (&str, &str),
    marks: &[&str],
) -> Option<String> {
    let resource = request.objects.registry().find(kind.0, "v1", kind.1)?;
    let snapshot = request.objects.snapshot();
    if snapshot.table_revision(resource.table) == Revision::ZERO {
        return None;
    }
    let classes = snapshot.range(resource.table, Range::all()).filter_map(|entry| {
        let class = stored(&resource.def, &entry).value().ok()?;
        let meta = &class["metadata"];
        let is_default = marks.iter().any(|mark| meta["annotations"][mark] == "true");
        let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
        is_default.then(|| (std::cmp::Reverse(text("creationTimestamp")), text("name")))
    });
    classes.min().map(|(_, name)| name)
}

fn is(request: &AdmissionRequest<'_>, group: &str, plural: &str, operation: Operation) -> bool {
    let def = &request.resource.def;
    request.operation == operation
        && request.subresource.is_empty()
        && def.group == group
        && def.plural == plural
}

/// Upstream's `DefaultStorageClass`: a claim that names no class gets the default one.
#[derive(Clone, Copy, Debug)]
pub struct DefaultStorageClass;

#[async_trait]
impl Admission for DefaultStorageClass {
    fn name(&self) -> &str {
        "DefaultStorageClass"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Admit && super::is_kind(&request.resource.def, "", "persistentvolumeclaims")
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        const MARKS: [&str; 2] = [
            "storageclass.kubernetes.io/is-default-class",
            "storageclass.beta.kubernetes.io/is-default-class",
        ];
        if !is(request, "", "persistentvolumeclaims", Operation::Create)
            || !object["spec"].is_object()
            || object["spec"].get("storageClassName").is_some_and(|class| !class.is_null())
            || object["metadata"]["annotations"].get(CLASS).is_some()
        {
            return Ok(());
        }
        if let Some(class) = default_class(request, ("storage.k8s.io", "storageclasses"), &MARKS) {
            object["spec"]["storageClassName"] = json!(class);
        }
        Ok(())
    }
}

/// Upstream's `StorageObjectInUseProtection`: claims, volumes and the classes of their attributes stay until nobody uses them.
#[derive(Clone, Copy, Debug)]
pub struct StorageProtection;

#[async_trait]
impl Admission for StorageProtection {
    fn name(&self) -> &str {
        "StorageObjectInUseProtection"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        let kind = &request.resource.def;
        phase == Phase::Admit
            && (kind.group == "storage.k8s.io"
                || matches!(&*kind.plural, "persistentvolumes" | "persistentvolumeclaims"))
    }

    async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
        let kinds = [
            ("", "persistentvolumes", "kubernetes.io/pv-protection"),
            ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
            ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
        ];
        let kind = kinds.iter().find(|(group, plural, _)| is(request, group, plural, Operation::Create));
        if let Some((.., finalizer)) = kind {
            add_finalizer(object, finalizer);
        }
        Ok(())
    }
}

/// Gives an object a finalizer, unless it has it.
pub(super) fn add_finalizer(object: &mut Value, finalizer: &str) {
    let meta = kschema::fields::child(object, "metadata");
    match meta.get_mut("finalizers").and_then(Value::as_array_mut) {
        Some(list) if list.iter().any(|one| one == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => meta["finalizers"] = json!([finalizer]),
    }
}

/// Upstream's `PersistentVolumeClaimResize`: a claim grows only when it is bound and its class allows it.
#[derive(Clone, Copy, Debug)]
pub struct ClaimResize;

#[async_trait]
impl Admission for ClaimResize {
    fn name(&self) -> &str {
        "PersistentVolumeClaimResize"
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, phase: Phase) -> bool {
        phase == Phase::Validate
            && request.operation == Operation::Update
            && super::is_kind(&request.resource.def, "", "persistentvolumeclaims")
    }

    async fn validate(&self, request: &AdmissionRequest<'_>, object: &Value) -> ApiResult<()> {
        let Some(old) = request.old.filter(|_| is(request, "", "persistentvolumeclaims", Operation::Update))
        else {
            return Ok(());
        };
        let size = |claim: &Value| {
            let text = claim.pointer("/spec/resources/requests/storage").and_then(Value::as_str);
            text.and_then(|text| Quantity::parse(text).ok()).unwrap_or_default()
        };
        if size(object) <= size(old) {
            return Ok(());
        }
        let refuse = |why: &str| Err(Asked::new(request, object).forbidden(why).into());
        if old["status"]["phase"] != "Bound" {
            return refuse("Only bound persistent volume claims can be expanded");
        }
        let class = |claim: &Value| {
            let named = claim["metadata"]["annotations"][CLASS].as_str();
            named.or_else(|| claim["spec"]["storageClassName"].as_str()).unwrap_or_default().to_owned()
        };
        let name = class(object);
        let found = request.objects.find("storage.k8s.io", "v1", "storageclasses", "", &name);
        let found = found.filter(|_| !name.is_empty() && name == class(old));
        let allows = found.and_then(|class| class.value().ok()?["allowVolumeExpansion"].as_bool());
        if allows == Some(true) {
            return Ok(());
        }
        refuse(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        )
    }
}
