//! Objects are written anew, so that they are stored in the version that is now the one to store (KEP-4192).

use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::{
    api::storagemigration::v1::StorageVersionMigration,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kcore::{Clock, Stored, clock::format_time};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cache::Index,
    conditions,
    controller::Controller,
    controllers::Context,
    discovery::{self, Discovered},
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, PatchKind, Query, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::{MapTo, Trigger},
};

/// How many objects one page of a list has.
const PAGE_OBJECTS_MAX: usize = 500;
/// How long a kind may be unknown after the migration was asked for.
const DISCOVERY_WAIT: std::time::Duration = std::time::Duration::from_secs(60);
const NAME: &str = "storage-version-migrator-controller";
const BY_RESOURCE: &str = "migrations-by-resource";
const FAILED: &str = "StorageVersionMigrationFailed";
/// What must be possible with a kind (upstream's `verbsRequiredForMigration`).
const VERBS: [&str; 3] = ["get", "list", "patch"];

/// The controller `storage-version-migrator-controller`: carries out each StorageVersionMigration, of one kind one after another.
///
/// It notes the revision at which it begins, writes every object that has not changed since by an apply patch that changes
/// nothing, and says so in the conditions. The stored versions of a custom kind are then those of its definition's storage
/// version alone. What was begun is gone on with after a restart.
pub fn storage_version_migrator(context: &Context) -> Controller {
    let migrations = context.informers().of::<StorageVersionMigration>(Selection::all());
    migrations.add_index(Index::new(BY_RESOURCE, |migration, emit| {
        if let Ok(typed) = migration.typed::<StorageVersionMigration>() {
            emit(&resource_of(&typed));
        }
    }));
    let reconciler = Migrator {
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
        migrations: migrations.clone(),
    };
    // When one has ended, the next one of the same kind begins.
    let all = migrations.clone();
    let same_kind = MapTo::each(move |migration, keys| {
        let Ok(typed) = migration.typed::<StorageVersionMigration>() else { return };
        let same = all.lister().by_index(BY_RESOURCE, &resource_of(&typed));
        keys.push(ObjectKey::cluster(&*migration.header().name));
        keys.extend(same.iter().map(|one| ObjectKey::cluster(&*one.header().name)));
    });
    Controller::new(NAME, reconciler).on(Trigger::new(&migrations, same_kind))
}

/// The name of the kind's definition, if it has one.
fn resource_of(migration: &StorageVersionMigration) -> String {
    let resource = migration.spec.as_ref().map(|spec| &spec.resource);
    resource.map(|known| format!("{}.{}", known.resource, known.group)).unwrap_or_default()
}

fn conditions_of(migration: &StorageVersionMigration) -> &[Condition] {
    migration.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn holds(migration: &StorageVersionMigration, kind: &str) -> bool {
    conditions::is_true(conditions_of(migration), kind)
}

/// What is to be done next about a migration.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// It has ended, or another one has to end first.
    Nothing,
    /// It is its turn.
    Begin,
    /// The revision at which it begins is not known.
    Note,
    /// Objects up to this revision are to be written.
    Migrate(u64),
    /// It has ended, and does not say so everywhere; whether it succeeded.
    End(bool),
}

/// Decides by the migration and all those of the same kind, itself among them.
fn decide(migration: &StorageVersionMigration, same_kind: &[Arc<StorageVersionMigration>]) -> Step {
    let over = |one: &StorageVersionMigration| holds(one, "Succeeded") || holds(one, "Failed");
    let running = |one: &StorageVersionMigration| holds(one, "Running");
    match (over(migration), running(migration)) {
        (true, true) => return Step::End(holds(migration, "Succeeded")),
        (true, false) => return Step::Nothing,
        (false, true) => {
            let noted = migration.status.as_ref().and_then(|status| status.resource_version.as_deref());
            return match noted.map(str::parse) {
                None | Some(Err(_)) => Step::Note,
                Some(Ok(revision)) => Step::Migrate(revision),
            };
        }
        (false, false) => {}
    }
    let age = |one: &StorageVersionMigration| {
        (one.metadata.creation_timestamp.as_ref().map(|time| time.0), one.metadata.name.clone())
    };
    let waits = |one: &&Arc<StorageVersionMigration>| !over(one) && !running(one);
    let first = same_kind.iter().filter(waits).map(|one| age(one)).min();
    let busy = same_kind.iter().any(|one| running(one) && !over(one));
    if !busy && first.is_none_or(|first| first >= age(migration)) { Step::Begin } else { Step::Nothing }
}

/// A condition, with others as they were.
fn with_condition(
    migration: &StorageVersionMigration,
    (kind, holds): (&str, bool),
    (reason, message): (&str, &str),
    now: Timestamp,
) -> Vec<Condition> {
    let mut all = conditions_of(migration).to_vec();
    conditions::set(&mut all, conditions::condition(kind, holds, reason, message), now);
    all
}

/// One page of a list of which only the metadata counts.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    items: Vec<Item>,
    metadata: PageMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PageMeta {
    #[serde(default, rename = "continue")]
    next: String,
    #[serde(default)]
    resource_version: String,
}

#[derive(Deserialize)]
struct Item {
    metadata: ItemMeta,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ItemMeta {
    #[serde(default)]
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
}

/// What a failed write of an object leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failed {
    /// Somebody else has written it, which is as good.
    Ignore,
    /// It is tried again.
    Retry,
    /// The migration has failed.
    Fail,
}

fn on_failure(error: &kube::Error) -> Failed {
    match error {
        kube::Error::Api(status) if status.code == 409 => Failed::Ignore,
        kube::Error::Api(status) if ![429, 500, 503, 504].contains(&status.code) => Failed::Fail,
        _ => Failed::Retry,
    }
}

struct Migrator {
    migrations: Informer<StorageVersionMigration>,
    requests: Requests,
    clock: Arc<dyn Clock>,
}

#[async_trait]
impl Reconciler for Migrator {
    async fn reconcile(&self, key: &ObjectKey) -> Result<Action, ReconcileError> {
        let Some(stored) = self.migrations.lister().get("", &key.name) else { return Ok(Action::Done) };
        let migration = stored.typed::<StorageVersionMigration>()?;
        let same_kind = self.migrations.by_index(BY_RESOURCE, &resource_of(&migration));
        let now = self.clock.now();
        match decide(&migration, &same_kind) {
            Step::Nothing => Ok(Action::Done),
            Step::Begin => {
                let message = format!("Migration {} is running", key.name);
                self.write_definition(&migration, "True", ("MigrationRunning", message), false).await?;
                let why = ("MigrationRunning", "The migration is running");
                let all = with_condition(&migration, ("Running", true), why, now);
                self.write_status(&stored, json!({"conditions": all})).await
            }
            Step::Note => self.note(&stored, &migration).await,
            Step::Migrate(revision) => self.migrate(&stored, &migration, revision).await,
            Step::End(succeeded) => {
                let (reason, message) = if succeeded {
                    ("MigrationSucceeded", "The migration has succeeded")
                } else {
                    ("MigrationFailed", "The migration has failed")
                };
                self.write_definition(&migration, "False", (reason, message.to_owned()), succeeded).await?;
                let why = ("MigrationCompleted", "Migration completed");
                let all = with_condition(&migration, ("Running", false), why, now);
                self.write_status(&stored, json!({"conditions": all})).await
            }
        }
    }
}

impl Migrator {
    async fn write_status(&self, stored: &Stored, status: Value) -> Result<Action, ReconcileError> {
        let patch = json!({"metadata": {"resourceVersion": stored.revision().to_string()}, "status": status});
        let path = format!("{}/status", self.migrations.resource().path("", &stored.header().name));
        match self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await {
            Err(error) if !request::is_not_found(&error) => Err(error.into()),
            _ => Ok(Action::Done),
        }
    }

    async fn fail(
        &self,
        stored: &Stored,
        migration: &StorageVersionMigration,
        why: &str,
    ) -> Result<Action, ReconcileError> {
        let all = with_condition(migration, ("Failed", true), (FAILED, why), self.clock.now());
        self.write_status(stored, json!({"conditions": all})).await
    }

    /// The kind of a migration; `None` when it is not there.
    async fn kind(&self, migration: &StorageVersionMigration) -> Result<Option<Discovered>, ReconcileError> {
        let found = discovery::discover(&self.requests).await?;
        let wanted = resource_of(migration);
        let same =
            |known: &&Discovered| format!("{}.{}", known.resource.plural, known.resource.group) == wanted;
        Ok(found.resources.iter().find(same).cloned())
    }

    /// Whether a kind may still come.
    fn is_new(&self, migration: &StorageVersionMigration) -> bool {
        let created = migration.metadata.creation_timestamp.as_ref().map(|Time(time)| *time);
        let age = created.map(|created| self.clock.now().duration_since(created));
        age.is_some_and(|age| std::time::Duration::try_from(age).is_ok_and(|age| age < DISCOVERY_WAIT))
    }

    async fn note(
        &self,
        stored: &Stored,
        migration: &StorageVersionMigration,
    ) -> Result<Action, ReconcileError> {
        let Some(kind) = self.kind(migration).await? else {
            if self.is_new(migration) {
                return Ok(Action::Retry);
            }
            return self.fail(stored, migration, "resource does not exist in discovery").await;
        };
        if !VERBS.iter().all(|verb| kind.can(verb)) {
            let ResourceType { group, version, plural, .. } = &kind.resource;
            let why = format!(
                "resource \"{group}/{version}, Resource={plural}\" does not support discovery operations: [{}]",
                VERBS.join(" ")
            );
            return self.fail(stored, migration, &why).await;
        }
        let mut query = Query::new(kind.resource.path("", ""));
        query.add("limit", "1");
        let page: Page = self.requests.get(&query.finish()).await?;
        if page.metadata.resource_version.parse::<u64>().is_err() {
            let why = format!("latest resourceVersion for {} is not valid", resource_of(migration));
            return self.fail(stored, migration, &why).await;
        }
        self.write_status(stored, json!({"resourceVersion": page.metadata.resource_version})).await
    }

    async fn migrate(
        &self,
        stored: &Stored,
        migration: &StorageVersionMigration,
        revision: u64,
    ) -> Result<Action, ReconcileError> {
        let Some(kind) = self.kind(migration).await? else {
            if self.is_new(migration) {
                return Ok(Action::Retry);
            }
            let why = "migration encountered unhandled error: unable to obtain GVR from discovery";
            return self.fail(stored, migration, why).await;
        };
        let mut next = String::new();
        loop {
            let mut query = Query::new(kind.resource.path("", ""));
            query.add("limit", &PAGE_OBJECTS_MAX.to_string());
            query.add_unless_empty("continue", &next);
            let page: Page = self.requests.get(&query.finish()).await?;
            for item in page.items {
                // What was written later is stored in the right version.
                if item.metadata.resource_version.parse::<u64>().is_ok_and(|at| at > revision) {
                    continue;
                }
                let Err(error) = self.rewrite(&kind.resource, &item.metadata).await else { continue };
                match on_failure(&error) {
                    Failed::Ignore => {}
                    Failed::Retry => return Err(error.into()),
                    Failed::Fail => {
                        let why = format!("migration encountered unhandled error: {error}");
                        return self.fail(stored, migration, &why).await;
                    }
                }
            }
            if page.metadata.next.is_empty() {
                break;
            }
            next = page.metadata.next;
        }
        let why = ("StorageVersionMigrationSucceeded", "");
        let all = with_condition(migration, ("Succeeded", true), why, self.clock.now());
        self.write_status(stored, json!({"conditions": all})).await
    }

    /// Writes an object as it is. Nothing is applied, so that nothing of it becomes this controller's.
    async fn rewrite(&self, kind: &ResourceType, object: &ItemMeta) -> Result<(), kube::Error> {
        let apply = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"uid": object.uid, "resourceVersion": object.resource_version},
        });
        let path = format!("{}?fieldManager={NAME}", kind.path(&object.namespace, &object.name));
        self.requests.patch::<Written>(&path, PatchKind::Apply, &apply).await.map(drop)
    }

    /// Says in the definition of a custom kind how the migration goes; with `done` its storage version is the only one stored.
    async fn write_definition(
        &self,
        migration: &StorageVersionMigration,
        status: &str,
        (reason, mut message): (&str, String),
        done: bool,
    ) -> Result<(), ReconcileError> {
        let path =
            format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{}", resource_of(migration));
        let definition: Value = match self.requests.get(&path).await {
            Err(error) if request::is_not_found(&error) => return Ok(()),
            result => result?,
        };
        let generation = &definition["metadata"]["generation"];
        let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
        let began = conditions.into_iter().find(|known| known["type"] == "StorageMigrating");
        let same = began.is_some_and(|began| began["observedGeneration"] == *generation);
        if done {
            message += if same {
                " and the stored versions have been updated"
            } else {
                " but the stored versions have not been updated due to a generation mismatch"
            };
        }
        let mut new = json!({"conditions": [{
            "type": "StorageMigrating", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": format_time(self.clock.now()), "observedGeneration": generation,
        }]});
        let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
        if let Some(version) = versions.into_iter().find(|version| version["storage"] == true)
            && status == "False"
            && same
        {
            new["storedVersions"] = json!([version["name"]]);
        }
        let apply = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": definition["metadata"]["name"], "resourceVersion": definition["metadata"]["resourceVersion"]},
            "status": new,
        });
        let path = format!("{path}/status?fieldManager={NAME}&force=true");
        self.requests.patch::<Written>(&path, PatchKind::Apply, &apply).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules of `getSVMsForResource` in `migrationrunner.go`, and of the two `sync` functions beside it.
    #[test]
    fn migrations_of_one_kind_go_one_after_another() {
        let migration = |name: &str, created: &str, true_conditions: &[&str], revision: &str| {
            let each = true_conditions.iter().map(|kind| {
                json!({"type": kind, "status": "True", "reason": "R", "message": "",
                    "lastTransitionTime": "2030-01-01T00:00:00Z"})
            });
            let revision = (!revision.is_empty()).then_some(revision);
            Arc::new(
                serde_json::from_value::<StorageVersionMigration>(json!({
                    "metadata": {"name": name, "creationTimestamp": created},
                    "spec": {"resource": {"group": "example.com", "resource": "widgets"}},
                    "status": {"conditions": each.collect::<Vec<_>>(), "resourceVersion": revision},
                }))
                .unwrap(),
            )
        };
        let (early, late) = ("2030-01-01T00:00:00Z", "2030-01-02T00:00:00Z");
        let cases = [
            (migration("a", early, &[], ""), vec![], Step::Begin),
            (migration("b", late, &[], ""), vec![migration("a", early, &[], "")], Step::Nothing),
            (migration("a", early, &[], ""), vec![migration("b", early, &[], "")], Step::Begin),
            (migration("b", early, &[], ""), vec![migration("a", early, &[], "")], Step::Nothing),
            (migration("a", early, &[], ""), vec![migration("b", late, &["Running"], "")], Step::Nothing),
            (
                migration("b", late, &[], ""),
                vec![migration("a", early, &["Running", "Succeeded"], "7")],
                Step::Begin,
            ),
            (migration("b", late, &[], ""), vec![migration("a", early, &["Failed"], "")], Step::Begin),
            (migration("a", early, &["Running"], ""), vec![], Step::Note),
            (migration("a", early, &["Running"], "7"), vec![], Step::Migrate(7)),
            (migration("a", early, &["Running", "Succeeded"], "7"), vec![], Step::End(true)),
            (migration("a", early, &["Running", "Failed"], ""), vec![], Step::End(false)),
            (migration("a", early, &["Succeeded"], "7"), vec![], Step::Nothing),
        ];
        for (one, mut others, expected) in cases {
            others.push(Arc::clone(&one));
            assert_eq!(decide(&one, &others), expected, "{one:?}");
        }
    }

    /// The rules of `isRetriableError` and of what is ignored before it.
    #[test]
    fn failures_are_told_apart() {
        for (code, expected) in [
            (409, Failed::Ignore),
            (429, Failed::Retry),
            (500, Failed::Retry),
            (503, Failed::Retry),
            (504, Failed::Retry),
            (403, Failed::Fail),
            (404, Failed::Fail),
            (422, Failed::Fail),
        ] {
            let status = kube::core::Status { code, ..kube::core::Status::failure("no", "R") };
            assert_eq!(on_failure(&kube::Error::Api(status.boxed())), expected, "{code}");
        }
    }
}
