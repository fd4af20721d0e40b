//! Where everything comes to rest, and that nothing is left once it has been deleted.

use std::{collections::BTreeSet, fmt::Write as _, time::Duration};

use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{ControllerRevision, Deployment, ReplicaSet, StatefulSet},
        batch::v1::Job,
        core::v1::{PersistentVolume, PersistentVolumeClaim, Pod},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, PropagationPolicy},
};
use serde::de::DeserializeOwned;

use super::{
    Watcher,
    invariants::{controller_of, has_app, is_ready},
    lock,
    scenario::Dice,
    text,
};

/// How long everything may take to come to rest, in the cluster's time.
const REST_MAX: Duration = Duration::from_secs(4 * 3600);
/// How often it is looked whether everything is at rest.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Waits until everything is as its specification says, and gives it in words.
pub(super) async fn rest(watcher: &Watcher, client: &Client) -> Result<String, String> {
    let began = tokio::time::Instant::now();
    loop {
        let state = look(watcher, client).await?;
        let last = match state {
            Ok(summary) => return Ok(summary),
            Err(last) => last,
        };
        if began.elapsed() > REST_MAX {
            return Err(format!("{:?} does not come to rest: {last}", watcher.scenario));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// All objects of a kind in the run's namespace.
async fn all<K>(client: &Client) -> Result<Vec<K>, String>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + DeserializeOwned + std::fmt::Debug,
    K::DynamicType: Default,
{
    Ok(Api::<K>::default_namespaced(client.clone()).list(&Default::default()).await.map_err(text)?.items)
}

/// The state in words, or why it is not at rest.
async fn look(watcher: &Watcher, client: &Client) -> Result<Result<String, String>, String> {
    let web = Api::<Deployment>::default_namespaced(client.clone()).get("web").await.map_err(text)?;
    let db = Api::<StatefulSet>::default_namespaced(client.clone()).get("db").await.map_err(text)?;
    let pods = all::<Pod>(client).await?;
    let (wanted, members) = (web.spec.replicas.unwrap_or_default(), db.spec.replicas.unwrap_or_default());
    let status = web.status.clone().unwrap_or_default();
    let up = status.observed_generation == web.metadata.generation
        && [status.replicas, status.updated_replicas, status.available_replicas]
            .iter()
            .all(|count| count.unwrap_or_default() == wanted);
    let members_status = db.status.clone().unwrap_or_default();
    let kept = members_status.observed_generation == db.metadata.generation
        && members_status.replicas == members
        && members_status.ready_replicas.unwrap_or_default() == members
        && members_status.updated_replicas.unwrap_or_default() == members
        && members_status.current_revision == members_status.update_revision;
    if !(up && kept) {
        return Ok(Err(format!("{status:?} {members_status:?}")));
    }
    let mut summary = String::new();
    for (app, count) in [("web", wanted), ("db", members)] {
        let own: Vec<&Pod> = pods.iter().filter(|pod| has_app(*pod, app)).collect();
        let image = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone());
        let images: BTreeSet<_> = own.iter().filter_map(image).collect();
        if i32::try_from(own.len()) != Ok(count) || !own.iter().all(|pod| is_ready(pod)) {
            return Ok(Err(format!("{} pods of {app}, {count} are wanted", own.len())));
        }
        let _ = writeln!(summary, "{app}: {count} of {images:?}");
    }
    for part in [pair(client, &pods).await?, claims(client, members).await?, job(watcher, client).await?] {
        match part {
            Ok(words) => summary.push_str(&words),
            Err(why) => return Ok(Err(why)),
        }
    }
    Ok(Ok(summary))
}

/// The two sets with one selector: each has its number, and no pod is left without a set.
async fn pair(client: &Client, pods: &[Pod]) -> Result<Result<String, String>, String> {
    let mut summary = String::new();
    let mut owned = 0;
    for set in all::<ReplicaSet>(client).await?.into_iter().filter(|set| set.name_any().starts_with("pair-"))
    {
        let wanted = set.spec.replicas.unwrap_or_default();
        let uid = set.uid();
        let own = pods.iter().filter(|pod| controller_of(pod) == uid.as_deref()).count();
        let told = set.status.map(|status| status.replicas);
        if i32::try_from(own) != Ok(wanted) || told != Some(wanted) {
            return Ok(Err(format!(
                "{own} pods of {:?}, which tells {told:?} of {wanted}",
                set.metadata.name
            )));
        }
        owned += own;
        let _ = writeln!(summary, "{:?}: {wanted}", set.metadata.name);
    }
    let there = pods.iter().filter(|pod| has_app(*pod, "pair")).count();
    if there != owned {
        return Ok(Err(format!("{there} pods of the pair, {owned} have a controller")));
    }
    Ok(Ok(summary))
}

/// Each member has its claim, which has its volume.
async fn claims(client: &Client, members: i32) -> Result<Result<String, String>, String> {
    let claims = all::<PersistentVolumeClaim>(client).await?;
    let mut summary = String::new();
    for member in 0..members {
        let name = format!("data-db-{member}");
        let phase = claims.iter().find(|claim| claim.name_any() == name);
        let phase = phase.and_then(|claim| claim.status.as_ref()?.phase.as_deref());
        if phase != Some("Bound") {
            return Ok(Err(format!("the claim {name} is {phase:?}")));
        }
        let _ = writeln!(summary, "{name}: Bound");
    }
    Ok(Ok(summary))
}

/// The job is complete, and counts each of its pods once.
async fn job(watcher: &Watcher, client: &Client) -> Result<Result<String, String>, String> {
    let work = Api::<Job>::default_namespaced(client.clone()).get("work").await.map_err(text)?;
    let done = work.status.unwrap_or_default();
    let held = done.conditions.iter().flatten().filter(|one| one.status == "True");
    let conditions: BTreeSet<_> = held.map(|one| one.type_.as_str()).collect();
    if !conditions.contains("Complete") || done.active.unwrap_or_default() > 0 {
        return Ok(Err(format!("{done:?}")));
    }
    let [succeeded, failed] =
        [done.succeeded, done.failed].map(|count| usize::try_from(count.unwrap_or_default()).unwrap_or(0));
    let seen = lock(&watcher.seen);
    if !seen.counts_fit(succeeded, failed) {
        return Err(format!(
            "{:?}: the job counts {succeeded} succeeded and {failed} failed, its pods were {:?}",
            watcher.scenario, seen.ended
        ));
    }
    if u64::try_from(succeeded).unwrap_or_default() < watcher.scenario.completions {
        return Err(format!("{:?}: the job is complete with {succeeded}", watcher.scenario));
    }
    Ok(Ok(format!("work: {conditions:?}")))
}

/// Waits until `left` finds nothing any more.
async fn until_none<F: Future<Output = Result<Vec<String>, String>>>(
    left: impl Fn() -> F,
) -> Result<(), String> {
    let began = tokio::time::Instant::now();
    loop {
        let names = left().await?;
        if names.is_empty() {
            return Ok(());
        }
        if began.elapsed() > REST_MAX {
            return Err(format!("orphans: {names:?}"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn names<K: Resource>(objects: Vec<K>) -> Vec<String> {
    objects.iter().map(|object| object.name_any()).collect()
}

/// Deletes everything but the claims, in one way or another.
pub(super) async fn delete_all(client: &Client, dice: &mut Dice) -> Result<(), String> {
    let mut how = || {
        let policies = [PropagationPolicy::Background, PropagationPolicy::Foreground];
        let policy = policies[usize::from(dice.between(0, 1) == 1)].clone();
        DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }
    };
    Api::<Deployment>::default_namespaced(client.clone()).delete("web", &how()).await.map_err(text)?;
    Api::<StatefulSet>::default_namespaced(client.clone()).delete("db", &how()).await.map_err(text)?;
    Api::<Job>::default_namespaced(client.clone()).delete("work", &how()).await.map_err(text)?;
    for name in ["pair-a", "pair-b"] {
        Api::<ReplicaSet>::default_namespaced(client.clone()).delete(name, &how()).await.map_err(text)?;
    }
    Ok(())
}

/// Of what was deleted nothing may be left, but the claims until they are deleted too, and then neither their volumes nor what was
/// stored.
pub(super) async fn nothing_is_left(watcher: &Watcher, client: &Client) -> Result<(), String> {
    until_none(|| async {
        let (pods, sets) = (names(all::<Pod>(client).await?), names(all::<ReplicaSet>(client).await?));
        // Deletions in the foreground wait for what belongs to them.
        let owners = [
            names(all::<Deployment>(client).await?),
            names(all::<StatefulSet>(client).await?),
            names(all::<Job>(client).await?),
        ];
        Ok([pods, sets, names(all::<ControllerRevision>(client).await?), owners.concat()].concat())
    })
    .await?;
    watcher.check();
    lock(&watcher.seen).claims_may_go = true;
    let claims = Api::<PersistentVolumeClaim>::default_namespaced(client.clone());
    for name in names(all::<PersistentVolumeClaim>(client).await?) {
        claims.delete(&name, &DeleteParams::default()).await.map_err(text)?;
    }
    until_none(|| async {
        let volumes =
            Api::<PersistentVolume>::all(client.clone()).list(&Default::default()).await.map_err(text)?;
        let disks = watcher.disks.there().into_iter().collect();
        Ok([names(all::<PersistentVolumeClaim>(client).await?), names(volumes.items), disks].concat())
    })
    .await
}
