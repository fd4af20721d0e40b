//! Secrets with tokens of service accounts that nobody uses (KEP-2799).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, ServiceAccount};
use kcore::{Clock, Header, Stored};
use serde_json::json;

use crate::{
    controller::Controller,
    controllers::Context,
    informer::Informer,
    key::ObjectKey,
    reconciler::{Action, ReconcileError, Reconciler},
    request::{self, DeleteHow, PatchKind, Requests, Written},
    resource::{ResourceType, Selection},
    trigger::Trigger,
};

/// The default of [`Settings::legacy_token_age`](super::Settings::legacy_token_age): a year.
pub const LEGACY_TOKEN_AGE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// How often tokens are looked at (upstream's `DefaultCleanerSyncInterval`).
pub const LEGACY_TOKENS_PERIOD: Duration = Duration::from_secs(24 * 3600);

const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const TRACKED_SINCE: &str = "kube-apiserver-legacy-service-account-token-tracking";

/// The controller `legacy-serviceaccount-token-cleaner-controller`: marks the Secret of a token that was made for a service account by
/// itself and has not been used for [`Settings::legacy_token_age`](super::Settings::legacy_token_age) as invalid, and deletes it when it has been so for as long.
///
/// Whether tokens are used an API server says, in labels of the Secrets, and since when it does so in the ConfigMap
/// `kube-apiserver-legacy-service-account-token-tracking`. Without that nothing is touched.
pub fn legacy_tokens(context: &Context) -> Controller {
    const NAME: &str = "legacy-serviceaccount-token-cleaner-controller";
    let reconciler = LegacyTokens {
        requests: context.requests(NAME),
        clock: Arc::clone(context.clock()),
        age: SignedDuration::try_from(context.settings.legacy_token_age).unwrap_or(SignedDuration::MAX),
        secrets: context.informers().of(Selection::all()),
        accounts: context.informers().of(Selection::all()),
        pods: context.informers().of(Selection::all()),
    };
    let (secrets, accounts, pods) =
        (reconciler.secrets.clone(), reconciler.accounts.clone(), reconciler.pods.clone());
    let key = || ObjectKey::cluster("tokens");
    let periodic = futures::stream::unfold(false, move |waits| async move {
        if waits {
            tokio::time::sleep(LEGACY_TOKENS_PERIOD).await;
        }
        Some((key(), true))
    });
    Controller::new(NAME, reconciler)
        .workers(1)
        .reads(&secrets)
        .reads(&accounts)
        .reads(&pods)
        .on(Trigger::stream(periodic))
}

fn date(text: &str) -> Option<Date> {
    // Go's layout `2006-01-02` takes nothing else.
    (text.len() == 10).then(|| text.parse().ok()).flatten()
}

fn day_of(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// What is to be done about a Secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Keep,
    /// It is marked with the day.
    Mark,
    Delete,
}

/// What the labels and the age of a Secret say. What depends on other objects is asked after that.
fn by_labels(secret: &Secret, now: Timestamp, age: SignedDuration) -> Step {
    let limit = now.checked_sub(age).unwrap_or(Timestamp::MIN);
    let metadata = &secret.metadata;
    let young = metadata.creation_timestamp.as_ref().is_none_or(|time| time.0 >= limit);
    let is_token = secret.type_.as_deref() == Some("kubernetes.io/service-account-token");
    if !is_token || young || metadata.deletion_timestamp.is_some() {
        return Step::Keep;
    }
    let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key));
    if let Some(last_used) = label(LAST_USED)
        && date(last_used).is_none_or(|day| day >= day_of(limit))
    {
        return Step::Keep;
    }
    match label(INVALID_SINCE).and_then(|text| date(text)) {
        None => Step::Mark,
        Some(day) if day >= day_of(limit) => Step::Keep,
        Some(_) => Step::Delete,
    }
}

/// Whether the service account of a token still names its Secret: then it was made by itself.
fn is_named(secret: &Secret, account: Option<&ServiceAccount>) -> bool {
    let Some(account) = account else { return false };
    let annotations = secret.metadata.annotations.as_ref();
    let uid = annotations.and_then(|all| all.get("kubernetes.io/service-account.uid"));
    let same = uid.is_none_or(|uid| uid.is_empty() || Some(uid) == account.metadata.uid.as_ref());
    same && account.secrets.iter().flatten().any(|known| known.name == secret.metadata.name)
}

/// The Secrets that a pod names (upstream's `VisitPodSecretNames`).
fn secrets_of(pod: &Pod) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let Some(spec) = &pod.spec else { return names };
    names.extend(spec.image_pull_secrets.iter().flatten().map(|known| known.name.clone()));
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        secrets_of_container(container, &mut names);
    }
    for container in spec.ephemeral_containers.iter().flatten() {
        let env_from = container.env_from.iter().flatten();
        names.extend(env_from.filter_map(|from| Some(from.secret_ref.as_ref()?.name.clone())));
        let sources = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref());
        names.extend(sources.filter_map(|source| Some(source.secret_key_ref.as_ref()?.name.clone())));
    }
    for volume in spec.volumes.iter().flatten() {
        let sources = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        names.extend(sources.filter_map(|source| Some(source.secret.as_ref()?.name.clone())));
        let one = [
            volume.azure_file.as_ref().map(|source| source.secret_name.clone()),
            volume.secret.as_ref().and_then(|source| source.secret_name.clone()),
            volume.scale_io.as_ref().map(|source| source.secret_ref.name.clone()),
        ];
        names.extend(one.into_iter().flatten());
        let local = [
            volume.cephfs.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.cinder.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.flex_volume.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.rbd.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.iscsi.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.storageos.as_ref().and_then(|source| source.secret_ref.as_ref()),
            volume.csi.as_ref().and_then(|source| source.node_publish_secret_ref.as_ref()),
        ];
        names.extend(local.into_iter().flatten().map(|known| known.name.clone()));
    }
    names
}

fn secrets_of_container(container: &Container, names: &mut BTreeSet<String>) {
    let env_from = container.env_from.iter().flatten();
    names.extend(env_from.filter_map(|from| Some(from.secret_ref.as_ref()?.name.clone())));
    let sources = container.env.iter().flatten().filter_map(|env| env.value_from.as_ref());
    names.extend(sources.filter_map(|source| Some(source.secret_key_ref.as_ref()?.name.clone())));
}

struct LegacyTokens {
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
    pods: Informer<Pod>,
    requests: Requests,
    clock: Arc<dyn Clock>,
    /// How long a token must not have been used, and then be marked.
    age: SignedDuration,
}

#[async_trait]
impl Reconciler for LegacyTokens {
    async fn reconcile(&self, _key: &ObjectKey) -> Result<Action, ReconcileError> {
        let (now, age) = (self.clock.now(), self.age);
        let tracked = self.tracked_since().await?.map(|since| now.duration_since(since));
        if tracked.is_none_or(|tracked| tracked < age) {
            return Ok(Action::Done);
        }
        for stored in self.secrets.lister().list() {
            // Other secrets are not decoded.
            let is_token = stored
                .header()
                .field("type")
                .is_none_or(|kind| *kind == *"kubernetes.io/service-account-token");
            if !is_token {
                continue;
            }
            let secret = stored.typed::<Secret>()?;
            match by_labels(&secret, now, age) {
                Step::Keep => {}
                step if !self.is_wanted(stored.header(), &secret) => {
                    // Other tokens don't wait for one that can't be written.
                    if let Err(error) = self.carry_out(step, &stored, now).await {
                        let name = ObjectKey::from(&*stored);
                        tracing::warn!(secret = %name, %error, "an unused token is left");
                    }
                }
                _ => {}
            }
        }
        Ok(Action::Done)
    }
}

impl LegacyTokens {
    /// The moment from which on the use of every token is known: the day after the one that the API servers name. `None` when
    /// they name none.
    async fn tracked_since(&self) -> Result<Option<Timestamp>, ReconcileError> {
        let path = ResourceType::of::<ConfigMap>().path("kube-system", TRACKED_SINCE);
        let map = match self.requests.get::<ConfigMap>(&path).await {
            Err(error) if request::is_not_found(&error) => return Ok(None),
            result => result?,
        };
        let since = map.data.as_ref().and_then(|data| date(data.get("since")?));
        let next = since.and_then(|day| day.tomorrow().ok());
        Ok(next.and_then(|day| day.to_zoned(TimeZone::UTC).ok()).map(|zoned| zoned.timestamp()))
    }

    /// Whether a Secret is not one that was made for a service account by itself, or a pod uses it.
    fn is_wanted(&self, header: &Header, secret: &Secret) -> bool {
        let annotations = secret.metadata.annotations.as_ref();
        let account = annotations.and_then(|all| all.get("kubernetes.io/service-account.name"));
        let account = account.and_then(|name| self.accounts.get(&header.namespace, name));
        let pods = self.pods.in_namespace(&header.namespace);
        !is_named(secret, account.as_deref())
            || pods.iter().any(|pod| secrets_of(pod).contains(&*header.name))
    }

    async fn carry_out(&self, step: Step, secret: &Stored, now: Timestamp) -> Result<(), kube::Error> {
        let header = secret.header();
        let path = self.secrets.resource().path(&header.namespace, &header.name);
        let result = if step == Step::Delete {
            let how = DeleteHow { revision: Some(secret.revision()), ..DeleteHow::default() };
            self.requests.delete(&path, &how).await.map(drop)
        } else {
            let labels = json!({INVALID_SINCE: day_of(now).to_string()});
            let patch = json!({"metadata": {"uid": &*header.uid, "labels": labels}});
            self.requests.patch::<Written>(&path, PatchKind::Merge, &patch).await.map(drop)
        };
        match result {
            Err(error) if !request::is_not_found(&error) && !request::is_conflict(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Cases of `TestLegacyServiceAccountTokenCleanUp` of `legacy_serviceaccount_token_cleaner_test.go`.
    #[test]
    fn unused_tokens_are_marked_and_deleted() {
        let now: Timestamp = "2030-06-15T12:00:00Z".parse().unwrap();
        let old = "2028-01-01T00:00:00Z";
        let age = SignedDuration::try_from(LEGACY_TOKEN_AGE_MAX).unwrap();
        let cases = [
            (old, json!({}), Step::Mark),
            ("2030-01-01T00:00:00Z", json!({}), Step::Keep),
            (old, json!({LAST_USED: "2030-01-01"}), Step::Keep),
            (old, json!({LAST_USED: "2029-06-15"}), Step::Keep),
            (old, json!({LAST_USED: "2029-06-14"}), Step::Mark),
            (old, json!({LAST_USED: "yesterday"}), Step::Keep),
            (old, json!({LAST_USED: "2028-02-01", INVALID_SINCE: "2029-06-14"}), Step::Delete),
            (old, json!({INVALID_SINCE: "2029-06-14"}), Step::Delete),
            (old, json!({INVALID_SINCE: "2029-06-15"}), Step::Keep),
            (old, json!({INVALID_SINCE: "2029/06/14"}), Step::Mark),
        ];
        for (created, labels, expected) in cases {
            let read = |kind: &str, deleted: Value| -> Secret {
                serde_json::from_value(json!({"type": kind, "metadata": {"name": "t", "labels": labels,
                    "creationTimestamp": created, "deletionTimestamp": deleted}}))
                .unwrap()
            };
            let token = "kubernetes.io/service-account-token";
            assert_eq!(by_labels(&read(token, Value::Null), now, age), expected, "{created} {labels}");
            assert_eq!(by_labels(&read("Opaque", Value::Null), now, age), Step::Keep);
            assert_eq!(by_labels(&read(token, old.into()), now, age), Step::Keep);
        }
    }

    #[test]
    fn only_tokens_that_were_made_by_themselves_go() {
        let account = |uid: &str, names: &[&str]| -> ServiceAccount {
            let secrets: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
            serde_json::from_value(json!({"metadata": {"name": "a", "uid": uid}, "secrets": secrets}))
                .unwrap()
        };
        for (account, uid, expected) in [
            (None, "1", false),
            (Some(account("1", &["t"])), "1", true),
            (Some(account("1", &["t"])), "", true),
            (Some(account("2", &["t"])), "1", false),
            (Some(account("1", &["other"])), "1", false),
        ] {
            let annotations =
                json!({"kubernetes.io/service-account.name": "a", "kubernetes.io/service-account.uid": uid});
            let secret: Secret =
                serde_json::from_value(json!({"metadata": {"name": "t", "annotations": annotations}}))
                    .unwrap();
            assert_eq!(is_named(&secret, account.as_ref()), expected, "{account:?} {uid}");
        }
    }

    /// Fields that upstream's `TestPodSecrets` walks.
    #[test]
    fn pods_name_secrets_in_many_places() {
        let reference = |name: &str| json!({"name": name});
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "imagePullSecrets": [reference("a")],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": reference("b")}]}],
            "containers": [{"name": "c", "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "c", "key": "k"}}}]}],
            "ephemeralContainers": [{"name": "e", "envFrom": [{"secretRef": reference("d")}]}],
            "volumes": [
                {"name": "1", "secret": {"secretName": "e"}},
                {"name": "2", "projected": {"sources": [{"secret": reference("f")}, {"configMap": reference("no")}]}},
                {"name": "3", "azureFile": {"secretName": "g", "shareName": "s"}},
                {"name": "4", "csi": {"driver": "d", "nodePublishSecretRef": reference("h")}},
                {"name": "5", "rbd": {"image": "i", "monitors": [], "secretRef": reference("i")}},
                {"name": "6", "iscsi": {"iqn": "q", "lun": 1, "targetPortal": "p", "secretRef": reference("j")}},
            ],
        }}))
        .unwrap();
        assert_eq!(secrets_of(&pod).into_iter().collect::<String>(), "abcdefghij");
    }
}
