//! Objects that are stored anew.

use kcore::TokioClock;
use serde_json::{Value, json};

use crate::{controllers::start_some, fake::FakeApi};

fn condition(object: &Value, kind: &str) -> Value {
    let all = object["status"]["conditions"].as_array().into_iter().flatten();
    all.into_iter().find(|known| known["type"] == kind).cloned().unwrap_or_default()
}

fn migration(api: &FakeApi, name: &str) -> Value {
    api.get("storageversionmigrations", "", name).unwrap_or_default()
}

/// The course of upstream's integration test `TestStorageVersionMigrationWithCRD`.
#[tokio::test(start_paused = true)]
async fn objects_of_a_custom_kind_are_written_anew() {
    let (api, running) = start_some(TokioClock::new(), |name| name == "storage-version-migrator-controller");
    let versions = json!([{"name": "v1beta1"}, {"name": "v1", "storage": true}]);
    api.add(
        "customresourcedefinitions",
        json!({"metadata": {"name": "widgets.example.com"}, "spec": {"versions": versions},
            "status": {"storedVersions": ["v1beta1", "v1"]}}),
    );
    for name in ["x", "y", "z"] {
        api.add("widgets", json!({"metadata": {"name": name, "namespace": "shop"}}));
    }
    let asked = |name: &str, resource: &str| {
        let resource = json!({"group": "example.com", "resource": resource});
        json!({"metadata": {"name": name}, "spec": {"resource": resource}})
    };
    api.add("storageversionmigrations", asked("first", "widgets"));
    api.add("storageversionmigrations", asked("second", "widgets"));
    for name in ["first", "second"] {
        api.until("the end", |api| {
            let migration = migration(api, name);
            condition(&migration, "Succeeded")["status"] == "True"
                && condition(&migration, "Running")["status"] == "False"
        })
        .await;
    }
    let [first, second] = ["first", "second"].map(|name| migration(&api, name));
    assert_eq!(condition(&first, "Succeeded")["reason"], "StorageVersionMigrationSucceeded");
    assert_eq!(condition(&first, "Running")["reason"], "MigrationCompleted");
    let revision =
        |migration: &Value| migration["status"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(revision(&first) < revision(&second), "one after another");
    for widget in api.list("widgets") {
        let at: u64 = widget["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        assert!(at > revision(&first), "{widget} was written");
    }
    let definition = api.get("customresourcedefinitions", "", "widgets.example.com").unwrap();
    let migrating = condition(&definition, "StorageMigrating");
    assert_eq!(definition["status"]["storedVersions"], json!(["v1"]));
    let told = "The migration has succeeded and the stored versions have been updated";
    assert_eq!((&migrating["status"], &migrating["message"]), (&json!("False"), &json!(told)));

    // A kind that does not come within a minute.
    let began = tokio::time::Instant::now();
    api.add("storageversionmigrations", asked("unknown", "gadgets"));
    api.until("the failure", |api| condition(&migration(api, "unknown"), "Failed")["status"] == "True").await;
    assert!(began.elapsed().as_secs() >= 60);
    let why = "resource does not exist in discovery";
    assert_eq!(condition(&migration(&api, "unknown"), "Failed")["message"], why);
    running.stop().await;
}
