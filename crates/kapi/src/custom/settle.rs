//! What follows a write of a definition: its names and conditions, and the end of its objects when it is deleted.

use std::sync::Arc;

use kcore::{Status, clock::format_time};
use kstore::Range;
use serde_json::Value;

use super::{CLEANUP, names};
use crate::{
    authn::{MASTERS, UserInfo},
    delete::Deleted,
    error::ApiResult,
    objects::stored,
    registry::Resource,
    request::DeleteOptions,
    server::Inner,
    write::Call,
};

/// How often all definitions are gone over: a name that one of them gives up may be what another waits for.
const ROUNDS_MAX: usize = 16;

/// Brings every definition's status to what it should be, and the registry with it. Done in the request that changed a
/// definition, so what it defines is served when the answer is there.
pub(crate) async fn settle(server: &Arc<Inner>) -> ApiResult<()> {
    let Some(definitions) = server.customs.table.clone() else {
        return Ok(());
    };
    let _turn = server.customs.turn.lock().await;
    for _ in 0..ROUNDS_MAX {
        server.customs.sync(&server.objects);
        if !round(server, &definitions).await? {
            return Ok(());
        }
    }
    server.customs.sync(&server.objects);
    Ok(())
}

/// Goes over all definitions once; whether one changed.
async fn round(server: &Arc<Inner>, definitions: &Resource) -> ApiResult<bool> {
    let mut all = Vec::new();
    for entry in server.objects.snapshot().range(definitions.table, Range::all()) {
        all.push(stored(&definitions.def, &entry).value().map_err(Status::internal)?);
    }
    let mut changed = false;
    for crd in &all {
        let group = &crd["spec"]["group"];
        let taken = names::Taken::of(all.iter().filter(|other| other["spec"]["group"] == *group));
        let now = format_time(server.objects.clock().now());
        let next = names::reviewed(crd, &taken, &now);
        if next != *crd {
            return change(server, definitions, crd, &|_| next.clone()).await.map(|()| true);
        }
        if crd["metadata"]["deletionTimestamp"].is_string() && has_cleanup(crd) {
            changed |= clean_up(server, definitions, crd).await?;
        }
    }
    Ok(changed)
}

fn has_cleanup(crd: &Value) -> bool {
    crd["metadata"]["finalizers"].as_array().is_some_and(|list| list.iter().any(|item| item == CLEANUP))
}

/// Deletes the objects of a definition that is deleted; when none are left the definition may go. Whether that happened now:
/// objects with finalizers of others hold it, and it is looked at again when one of them goes.
async fn clean_up(server: &Arc<Inner>, definitions: &Resource, crd: &Value) -> ApiResult<bool> {
    let now = format_time(server.objects.clock().now());
    let (reason, message) = if names::is_true(crd, "Established") {
        let known = {
            let known = server.customs.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let name = crd["metadata"]["name"].as_str().unwrap_or_default();
            known.get(name).map(|known| (Arc::clone(&known.def), known.table))
        };
        if let Some((def, table)) = known {
            let resource = Resource { def, version: 0, table };
            if !delete_objects(server, &resource).await? {
                let next = |crd: &Value| {
                    let mut next = crd.clone();
                    let message = "CustomResource deletion is in progress";
                    names::set_condition(
                        &mut next,
                        "Terminating",
                        "True",
                        "InstanceDeletionInProgress",
                        message,
                        &now,
                    );
                    next
                };
                change(server, definitions, crd, &next).await?;
                return Ok(false);
            }
        }
        ("InstanceDeletionCompleted", "removed all instances")
    } else {
        ("NeverEstablished", "resource was never established")
    };
    let next = |crd: &Value| {
        let mut next = crd.clone();
        names::set_condition(&mut next, "Terminating", "False", reason, message, &now);
        if let Some(list) = next.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) {
            list.retain(|item| item != CLEANUP);
        }
        next
    };
    change(server, definitions, crd, &next).await?;
    Ok(true)
}

/// Whether none are left.
async fn delete_objects(server: &Arc<Inner>, resource: &Resource) -> ApiResult<bool> {
    let user = UserInfo::new("system:apiserver", [MASTERS]);
    for entry in server.objects.snapshot().range(resource.table, Range::all()) {
        let object = stored(&resource.def, &entry);
        let header = object.header();
        let call = Call::internal(server, &user, resource, "", &header.namespace, &header.name);
        match call.delete(&DeleteOptions::default()).await {
            Ok(Deleted::Gone(_) | Deleted::Later(_)) => {}
            Err(error) if error.0.is("NotFound") => {}
            Err(error) => return Err(error),
        }
    }
    Ok(server.objects.snapshot().count(resource.table, Range::all()) == 0)
}

/// Writes a definition's new status; one that is gone meanwhile needs none.
async fn change(
    server: &Arc<Inner>,
    definitions: &Resource,
    crd: &Value,
    next: &(dyn Fn(&Value) -> Value + Sync),
) -> ApiResult<()> {
    let user = UserInfo::new("system:apiserver", [MASTERS]);
    let name = crd["metadata"]["name"].as_str().unwrap_or_default();
    let call = Call::internal(server, &user, definitions, "status", "", name);
    match call.update(&|_| Ok(next(crd))).await {
        // Somebody changed it: the next round looks at what it is now.
        Err(error) if error.0.is("NotFound") || error.0.is("Conflict") => Ok(()),
        result => result.map(|_| ()),
    }
}
