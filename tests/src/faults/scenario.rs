//! What a seed says about a run: the objects, how containers behave, and what a user does.

use std::{sync::Mutex, time::Duration};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::Pod,
    storage::v1::StorageClass,
};
use kruntime::runtime::{
    ContainerConfig, SandboxConfig,
    simulated::{Plan, Script},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{disks::DISKS, lock};

/// A small generator of numbers (SplitMix64), so that what a user does is the same with and without faults.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }
}

/// Every fifth container of a job fails.
#[derive(Debug)]
pub(super) struct Unreliable(pub(super) Mutex<Dice>);

impl Script for Unreliable {
    fn plan(&self, pod: &SandboxConfig, _: &ContainerConfig) -> Plan {
        let mut dice = lock(&self.0);
        if pod.name.starts_with("work-") {
            let run_time = Some(Duration::from_secs(dice.between(1, 20)));
            return Plan { run_time, exit_code: i32::from(dice.between(1, 5) == 1), ..Plan::forever() };
        }
        Plan { start_delay: Duration::from_millis(dice.between(0, 3000)), ..Plan::forever() }
    }
}

/// What the seed says about a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) replicas: u64,
    pub(super) surge: u64,
    pub(super) unavailable: u64,
    pub(super) members: u64,
    pub(super) completions: u64,
    pub(super) parallelism: u64,
    /// How many replicas each of two sets has whose selectors are the same.
    pub(super) pairs: [u64; 2],
    /// Only new templates, nothing is scaled or deleted: then as many pods are available as there must be.
    pub(super) calm: bool,
}

/// `value` as an object.
fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("the object is well-formed")
}

impl Scenario {
    pub(super) fn new(seed: u64) -> (Self, Dice) {
        let mut dice = Dice(seed);
        let surge = dice.between(0, 2);
        let scenario = Self {
            seed,
            replicas: dice.between(2, 5),
            surge,
            unavailable: dice.between(u64::from(surge == 0), 2),
            members: dice.between(1, 4),
            completions: dice.between(1, 6),
            parallelism: dice.between(1, 4),
            calm: dice.between(0, 1) == 0,
            pairs: [dice.between(0, 2), dice.between(0, 2)],
        };
        (scenario, dice)
    }

    fn template(app: &str) -> Value {
        json!({"metadata": {"labels": {"app": app}}, "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "c", "image": "app:1"}]}})
    }

    /// A Deployment, with the limits that must be kept.
    pub(super) fn web(&self) -> Deployment {
        object(json!({"metadata": {"name": "web"}, "spec": {"replicas": self.replicas,
            "selector": {"matchLabels": {"app": "web"}}, "template": Self::template("web"),
            "strategy": {"rollingUpdate": {"maxSurge": self.surge, "maxUnavailable": self.unavailable}}}}))
    }

    /// A StatefulSet whose members each have a claim.
    pub(super) fn db(&self) -> StatefulSet {
        let claim = json!({"metadata": {"name": "data"}, "spec": {"storageClassName": DISKS,
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        object(json!({"metadata": {"name": "db"}, "spec": {"replicas": self.members, "serviceName": "db",
            "selector": {"matchLabels": {"app": "db"}}, "template": Self::template("db"),
            "volumeClaimTemplates": [claim]}}))
    }

    /// A Job, some of whose pods fail.
    pub(super) fn work(&self) -> Job {
        let mut template = Self::template("work");
        template["spec"]["restartPolicy"] = json!("Never");
        object(json!({"metadata": {"name": "work"}, "spec": {"completions": self.completions,
            "parallelism": self.parallelism, "backoffLimit": 1000, "template": template}}))
    }

    /// Two ReplicaSets that would each take any pod of the app `pair` that belongs to nobody.
    pub(super) fn pair(&self) -> [ReplicaSet; 2] {
        ["pair-a", "pair-b"].map(|name| {
            let replicas = self.pairs[usize::from(name == "pair-b")];
            object(json!({"metadata": {"name": name}, "spec": {"replicas": replicas,
                "selector": {"matchLabels": {"app": "pair"}}, "template": Self::template("pair")}}))
        })
    }

    /// A pod that belongs to nobody yet, and that both sets of the pair may take.
    pub(super) fn stray(number: u64) -> Pod {
        let mut pod = Self::template("pair");
        pod["metadata"]["name"] = json!(format!("stray-{number}"));
        object(pod)
    }

    /// The class of the claims.
    pub(super) fn class() -> StorageClass {
        object(json!({"metadata": {"name": DISKS}, "provisioner": DISKS, "reclaimPolicy": "Delete"}))
    }
}
