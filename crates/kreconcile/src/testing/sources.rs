//! The conformance suites of what the built-in controllers call: [`Provisioner`] and [`MetricsSource`].

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{
            PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
        },
        storage::v1::StorageClass,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};

use crate::controllers::{MetricQuery, MetricValues, MetricsSource, ProvisionRequest, Provisioner};

/// Checks the promises of a [`Provisioner`]: its name stays, making what is there gives the same volume, growing can be repeated,
/// deleting what is not there succeeds, and what was deleted can be made again. `parameters` are those of its class.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use kreconcile::{controllers::LocalProvisioner, testing};
///
/// let dir = std::env::temp_dir().join(format!("volumes-{}", std::process::id()));
/// testing::check_provisioner(&LocalProvisioner::new(&dir), Default::default()).await;
/// # });
/// ```
///
/// # Panics
/// When a promise is broken, or nothing can be made.
pub async fn check_provisioner(provisioner: &dyn Provisioner, parameters: BTreeMap<String, String>) {
    const BYTES: i64 = 1 << 20;
    let name = provisioner.name().to_owned();
    assert!(!name.is_empty(), "a provisioner has a name");
    let class = StorageClass {
        metadata: ObjectMeta { name: Some("conformance".to_owned()), ..ObjectMeta::default() },
        provisioner: name.clone(),
        parameters: (!parameters.is_empty()).then_some(parameters),
        ..StorageClass::default()
    };
    let requests = BTreeMap::from([("storage".to_owned(), Quantity(BYTES.to_string()))]);
    let claim = PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some("claim".to_owned()),
            namespace: Some("default".to_owned()),
            uid: Some("conformance".to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            resources: Some(VolumeResourceRequirements {
                requests: Some(requests),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    };
    let request = ProvisionRequest {
        claim: &claim,
        class: &class,
        volume_name: "pvc-conformance",
        node: Some("node-1"),
    };
    let mut made = Vec::new();
    for again in ["", " again", " after it was deleted"] {
        let spec = provisioner.provision(&request).await;
        let spec = spec.unwrap_or_else(|error| panic!("no volume is made{again}: {error}"));
        made.push(spec.clone());
        if again.is_empty() {
            continue;
        }
        let metadata = ObjectMeta { name: Some(request.volume_name.to_owned()), ..ObjectMeta::default() };
        let volume = PersistentVolume { metadata, spec: Some(spec), ..PersistentVolume::default() };
        let mut grown = Vec::new();
        for _ in 0..2 {
            // Whether it can grow is its own matter, but it must not change its mind.
            grown.push(provisioner.expand(&volume, 2 * BYTES).await.map_err(|error| error.to_string()));
        }
        assert_eq!(grown[0], grown[1], "growing twice is growing once");
        for time in ["once", "twice"] {
            let deleted = provisioner.delete(&volume).await;
            assert!(deleted.is_ok(), "a volume can't be deleted {time}: {deleted:?}");
        }
    }
    assert_eq!(made[0], made[1], "making what is there gives the same volume");
    assert_eq!(provisioner.name(), name, "the name stays");
}

/// Checks the promises of a [`MetricsSource`]: a query that it knows the answer to is answered by figures of the right kind, also
/// when it is asked twice at the same time, and one that it does not know by an error.
///
/// # Panics
/// When a promise is broken.
pub async fn check_metrics_source(
    source: &dyn MetricsSource,
    known: &MetricQuery<'_>,
    unknown: &MetricQuery<'_>,
) {
    let (one, other) = futures::join!(source.read(known), source.read(known));
    for answer in [one, other] {
        match (known, answer) {
            (MetricQuery::Resource { .. } | MetricQuery::Pods { .. }, Ok(MetricValues::Pods(pods))) => {
                assert!(!pods.is_empty(), "figures of no pod are no answer");
            }
            (MetricQuery::Object { .. }, Ok(MetricValues::Values(values))) => {
                assert_eq!(values.len(), 1, "an object has one figure");
            }
            (MetricQuery::External { .. }, Ok(MetricValues::Values(values))) => {
                assert!(!values.is_empty(), "no series is no answer");
            }
            (query, answer) => panic!("{query:?} is answered by {answer:?}"),
        }
    }
    let answer = source.read(unknown).await;
    assert!(answer.is_err(), "{unknown:?} is answered by {answer:?}");
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use futures::FutureExt as _;

    use super::*;
    use crate::controllers::MetricsError;

    /// Knows one figure; the wrong one knows everything.
    struct Queue {
        wrong: bool,
    }

    #[async_trait]
    impl MetricsSource for Queue {
        async fn read(&self, query: &MetricQuery<'_>) -> Result<MetricValues, MetricsError> {
            match query {
                MetricQuery::External { metric: "waiting", .. } => Ok(MetricValues::Values(vec![7000])),
                _ if self.wrong => Ok(MetricValues::Values(Vec::new())),
                _ => Err(MetricsError::new("unknown")),
            }
        }
    }

    #[tokio::test]
    async fn sources_that_make_figures_up_are_found() {
        let query = |metric| MetricQuery::External { namespace: "shop", metric, series: "" };
        for (wrong, expected) in [(false, true), (true, false)] {
            let source = Queue { wrong };
            let (known, unknown) = (query("waiting"), query("sleeping"));
            let checked = check_metrics_source(&source, &known, &unknown);
            let held = std::panic::AssertUnwindSafe(checked).catch_unwind().await.is_ok();
            assert_eq!(held, expected, "wrong: {wrong}");
        }
    }
}
