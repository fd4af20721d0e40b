//! Dynamic resources (KEP-4381): the claims of pods are prepared by their drivers before the pods run, and given back after.
//!
//! A driver makes itself known as other plug-ins do (type `DRAPlugin`). What is prepared is kept in a file, so that an agent that comes back
//! gives it back in time.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use k8s_openapi::api::{
    core::v1::{Container, Pod},
    resource::v1::{ResourceClaim, ResourceSlice},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams},
};
use prost::Message;
use tokio::{sync::Notify, time::Instant};

use crate::{
    agent::{Inner, Node},
    grpc::{SocketClient, words},
    plugins::{MESSAGE_BYTES_MAX, PluginHandler, proto::PluginInfo},
};

pub(crate) mod proto;
mod state;
mod tell;

use state::{Info, Known, check, named};

/// The services that are spoken, by the names that drivers say, with their packages.
const SERVICES: [(&str, &str); 2] = [
    ("v1.DRAPlugin", "/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"),
    ("v1beta1.DRAPlugin", "/k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin"),
];
/// How long a driver may take to answer (upstream's `defaultClientCallTimeout`).
const CALL_TIME_MAX: Duration = Duration::from_secs(45);
/// How long a driver may be away until its ResourceSlices are deleted (upstream's `defaultWipingDelay`).
const AWAY_TIME_MAX: Duration = Duration::from_secs(30);
/// How soon ResourceSlices are tried to be deleted again, at first and at most, as upstream.
const WIPE_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(300)];
/// How often it is looked for claims of pods that are no longer there, as upstream.
const RECONCILE_EVERY: Duration = Duration::from_secs(60);

/// A driver's socket.
#[derive(Clone, Debug)]
struct Plugin {
    endpoint: String,
    client: SocketClient,
    service: &'static str,
}

/// The dynamic resources of a node.
pub(crate) struct Claims {
    node: Arc<str>,
    dir: PathBuf,
    /// Drivers by name, each with its plug-ins: while one is replaced, there are two.
    plugins: Mutex<BTreeMap<String, Vec<Plugin>>>,
    known: Mutex<Known>,
    /// One pod at a time is prepared, or given back.
    turn: tokio::sync::Mutex<()>,
    /// When the ResourceSlices of drivers are to be deleted, and how often that failed. The empty name is for those of all drivers.
    wipes: Mutex<BTreeMap<String, (Instant, u32)>>,
    changed: Notify,
}

impl std::fmt::Debug for Claims {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Claims").field("node", &self.node).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claims {
    /// For a node with this directory, with what was prepared before.
    pub(crate) fn new(node: Arc<str>, dir: &Path) -> Self {
        Self {
            node,
            known: Mutex::new(Known::read(dir)),
            dir: dir.to_owned(),
            plugins: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            // Drivers publish anew when they register; of those that do not nothing is left.
            wipes: Mutex::new([(String::new(), (Instant::now(), 0))].into()),
            changed: Notify::new(),
        }
    }

    fn plugin(&self, driver: &str) -> Result<Plugin, String> {
        let plugins = locked(&self.plugins);
        let newest = plugins.get(driver).and_then(|all| all.last()).cloned();
        newest.ok_or_else(|| format!("DRA driver {driver} is not registered"))
    }

    fn keep(&self, what: &str) -> Result<(), String> {
        let known = locked(&self.known).clone();
        known.keep(&self.dir).map_err(|error| format!("checkpoint ResourceClaim {what}: {error}"))
    }

    /// Prepares the claims of a pod that are not prepared yet. May be repeated.
    ///
    /// # Errors
    /// Upstream's words.
    pub(crate) async fn prepare(&self, client: &Client, pod: &Pod) -> Result<(), String> {
        let said = |why| format!("prepare dynamic resources: {why}");
        let names = named(pod).map_err(said)?;
        if names.is_empty() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        self.prepare_all(client, pod, &names).await.map_err(said)
    }

    async fn prepare_all(&self, client: &Client, pod: &Pod, names: &[state::Named]) -> Result<(), String> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let claims = Api::<ResourceClaim>::namespaced(client.clone(), namespace);
        let mut infos = Vec::new();
        for name in names {
            let found = claims.get(&name.claim).await;
            let claim = found.map_err(|error| format!("fetch ResourceClaim {}: {error}", name.claim))?;
            check(pod, name, &claim)?;
            let info = Info::new(&claim)?;
            info.drivers.keys().try_for_each(|driver| self.plugin(driver).map(drop))?;
            infos.push(info);
        }
        let mut batches: BTreeMap<String, Vec<proto::Claim>> = BTreeMap::new();
        let mut preparing = Vec::new();
        {
            let mut known = locked(&self.known);
            for info in infos {
                let key = info.key();
                let (uid_of_claim, claim) = (info.uid.clone(), info.claim());
                let entry = known.0.entry(key.clone()).or_insert(info);
                if entry.uid != uid_of_claim {
                    return Err(format!(
                        "old ResourceClaim with same name {} and different UID {} still exists (previous pod force-deleted?!)",
                        claim.name, entry.uid
                    ));
                }
                entry.pods.insert(uid.clone());
                if entry.is_prepared || preparing.contains(&key) {
                    continue;
                }
                // What was said of devices by an agent before is said anew.
                entry.drivers.values_mut().for_each(Vec::clear);
                preparing.push(key);
                for driver in entry.drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(claim.clone());
                }
            }
        }
        // Whatever comes now, the claims are given back.
        self.keep("cache")?;
        for (driver, claims) in batches {
            let answer: proto::Prepared = self.call(&driver, "NodePrepareResources", &claims).await?;
            let count = answer.claims.len();
            for (claim_uid, result) in answer.claims {
                let name = name_of(&claims, &claim_uid, "NodePrepareResources")?;
                if !result.error.is_empty() {
                    let error = result.error;
                    return Err(format!("NodePrepareResources failed for ResourceClaim {name}: {error}"));
                }
                let mut known = locked(&self.known);
                if let Some(info) = known.0.get_mut(&(namespace.to_owned(), name.to_owned())) {
                    let devices = result.devices.into_iter().map(state::Device::from).collect();
                    info.drivers.insert(driver.clone(), devices);
                }
            }
            all_answered(claims.len(), count, "NodePrepareResources")?;
        }
        {
            let mut known = locked(&self.known);
            for key in &preparing {
                if let Some(info) = known.0.get_mut(key) {
                    info.is_prepared = true;
                }
            }
        }
        self.keep("state")
    }

    async fn call<A: Message + Default + 'static>(
        &self,
        driver: &str,
        method: &str,
        claims: &[proto::Claim],
    ) -> Result<A, String> {
        let plugin = self.plugin(driver)?;
        let request = proto::Claims { claims: claims.to_vec() };
        let path = format!("{}/{method}", plugin.service);
        let answer = plugin.client.call(CALL_TIME_MAX, &path, request).await;
        answer.map_err(|status| format!("{method}: {}", words(&status)))
    }

    /// The claims that a container uses, each with the requests of it; an empty request is for all.
    ///
    /// # Errors
    /// The pod names claims that can't be known yet.
    fn used(&self, pod: &Pod, container: &Container) -> Result<Vec<(String, Vec<String>)>, String> {
        let uses: Vec<(&str, &str)> = container
            .resources
            .iter()
            .flat_map(|resources| resources.claims.iter().flatten())
            .map(|claim| (claim.name.as_str(), claim.request.as_deref().unwrap_or_default()))
            .collect();
        let extended = pod.status.as_ref().and_then(|status| status.extended_resource_claim_status.as_ref());
        if uses.is_empty() && extended.is_none() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for name in named(pod)? {
            let requests: Vec<String> = match extended.filter(|_| name.entry.is_empty()) {
                Some(extended) => {
                    let own =
                        extended.request_mappings.iter().filter(|one| one.container_name == container.name);
                    own.map(|one| one.request_name.clone()).collect()
                }
                None => uses
                    .iter()
                    .filter(|(entry, _)| *entry == name.entry)
                    .map(|(_, request)| (*request).to_owned())
                    .collect(),
            };
            if !requests.is_empty() {
                found.push((name.claim, requests));
            }
        }
        Ok(found)
    }

    /// The names in the Container Device Interface of what a container gets of its pod's claims.
    ///
    /// # Errors
    /// A claim that is not prepared.
    pub(crate) fn cdi(&self, pod: &Pod, container: &Container) -> Result<Vec<String>, String> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let used = self.used(pod, container)?;
        let known = locked(&self.known);
        let mut found: Vec<String> = Vec::new();
        for (claim, requests) in used {
            let info = known.0.get(&(namespace.clone(), claim.clone())).ok_or_else(|| {
                format!("internal error: unable to get claim info for ResourceClaim {claim} in namespace {namespace}")
            })?;
            for cdi in requests.iter().flat_map(|request| info.cdi(request)) {
                if !found.contains(cdi) {
                    found.push(cdi.clone());
                }
            }
        }
        Ok(found)
    }

    /// Gives back what nobody but this pod uses. May be repeated; a pod without claims costs nothing.
    ///
    /// # Errors
    /// Upstream's words. What the pod used is still known, and must be given back later.
    pub(crate) async fn unprepare(&self, pod: &str) -> Result<(), String> {
        if !locked(&self.known).0.values().any(|info| info.pods.contains(pod)) {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        let mut batches: BTreeMap<String, Vec<proto::Claim>> = BTreeMap::new();
        let mut leaving = Vec::new();
        for (key, info) in &mut locked(&self.known).0 {
            if info.pods.len() > 1 {
                info.pods.remove(pod);
            } else if info.pods.contains(pod) {
                leaving.push(key.clone());
                for driver in info.drivers.keys() {
                    batches.entry(driver.clone()).or_default().push(info.claim());
                }
            }
        }
        let given_back = self.unprepare_all(batches).await;
        if given_back.is_ok() {
            let mut known = locked(&self.known);
            leaving.iter().for_each(|key| drop(known.0.remove(key)));
        }
        let kept = self.keep("state");
        given_back.and(kept).map_err(|why| format!("unprepare dynamic resources: {why}"))
    }

    async fn unprepare_all(&self, batches: BTreeMap<String, Vec<proto::Claim>>) -> Result<(), String> {
        for (driver, claims) in batches {
            let answer: proto::Unprepared = self.call(&driver, "NodeUnprepareResources", &claims).await?;
            for (uid, result) in &answer.claims {
                let name = name_of(&claims, uid, "NodeUnprepareResources")?;
                if !result.error.is_empty() {
                    let error = &result.error;
                    return Err(format!("NodeUnprepareResources failed for ResourceClaim {name}: {error}"));
                }
            }
            all_answered(claims.len(), answer.claims.len(), "NodeUnprepareResources")?;
        }
        Ok(())
    }

    /// Cleans up after drivers and pods that are gone, as long as the node lives. `is_active`: whether there is still such a pod.
    pub(crate) async fn run(&self, client: &Client, is_active: impl Fn(&str) -> bool) {
        let mut reconcile_at = Instant::now() + RECONCILE_EVERY;
        loop {
            let next = locked(&self.wipes).values().map(|(at, _)| *at).min();
            let next = next.map_or(reconcile_at, |at| at.min(reconcile_at));
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.changed.notified() => {}
            }
            self.wipe(client).await;
            if Instant::now() >= reconcile_at {
                let pods: Vec<String> =
                    locked(&self.known).0.values().flat_map(|info| info.pods.iter().cloned()).collect();
                for pod in pods.iter().filter(|pod| !is_active(pod)) {
                    if let Err(error) = self.unprepare(pod).await {
                        tracing::info!(pod, error, "the claims of a pod that is gone are not given back yet");
                    }
                }
                reconcile_at = Instant::now() + RECONCILE_EVERY;
            }
        }
    }

    /// Deletes the ResourceSlices of drivers that are gone for long enough.
    async fn wipe(&self, client: &Client) {
        let now = Instant::now();
        let due: Vec<String> = {
            let wipes = locked(&self.wipes);
            wipes.iter().filter(|(_, (at, _))| *at <= now).map(|(driver, _)| driver.clone()).collect()
        };
        for driver in due {
            let mut fields = format!("spec.nodeName={}", self.node);
            if !driver.is_empty() {
                fields.push_str(&format!(",spec.driver={driver}"));
            }
            let slices = Api::<ResourceSlice>::all(client.clone());
            let deleted = slices
                .delete_collection(&DeleteParams::default(), &ListParams::default().fields(&fields))
                .await;
            let mut wipes = locked(&self.wipes);
            match deleted {
                Err(kube::Error::Api(status)) if status.code == 404 => drop(wipes.remove(&driver)),
                Ok(_) => drop(wipes.remove(&driver)),
                Err(error) => {
                    tracing::debug!(node = %self.node, driver, %error, "the ResourceSlices of a driver are not deleted yet");
                    if let Some((at, failures)) = wipes.get_mut(&driver) {
                        let [first, most] = WIPE_AGAIN;
                        *at = now + first.saturating_mul(2_u32.saturating_pow(*failures)).min(most);
                        *failures = failures.saturating_add(1);
                    }
                }
            }
        }
    }
}

fn name_of<'a>(claims: &'a [proto::Claim], uid: &str, method: &str) -> Result<&'a str, String> {
    let found = claims.iter().find(|claim| claim.uid == uid).map(|claim| claim.name.as_str());
    found.ok_or_else(|| format!("{method} returned result for unknown claim UID {uid}"))
}

fn all_answered(asked: usize, answered: usize, method: &str) -> Result<(), String> {
    match asked.saturating_sub(answered) {
        0 => Ok(()),
        missing => Err(format!("{method} skipped {missing} ResourceClaims")),
    }
}

/// The service of the first name that is known.
fn service(plugin: &PluginInfo) -> Result<&'static str, String> {
    let invalid = |why: String| {
        let PluginInfo { name, endpoint, .. } = plugin;
        format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {endpoint}: {why}")
    };
    let versions = &plugin.supported_versions;
    if versions.is_empty() {
        return Err(invalid("empty list of supported gRPC services (aka supported versions)".to_owned()));
    }
    let known = |version: &String| SERVICES.iter().find(|(name, _)| name == version).map(|(_, path)| *path);
    versions.iter().find_map(known).ok_or_else(|| {
        let own: Vec<&str> = SERVICES.iter().map(|(name, _)| *name).collect();
        invalid(format!(
            "none of services supported by the plugin ({versions:?}) are supported by the kubelet ({own:?})"
        ))
    })
}

/// The handler for plug-ins of drivers.
#[derive(Debug)]
pub(crate) struct Handler(pub(crate) Arc<Claims>);

#[async_trait]
impl PluginHandler for Handler {
    fn kind(&self) -> &'static str {
        "DRAPlugin"
    }

    fn validate(&self, plugin: &PluginInfo) -> Result<(), String> {
        service(plugin).map(drop)
    }

    async fn register(&self, _: &Inner, _: &Node, plugin: &PluginInfo) -> Result<(), String> {
        let new = Plugin {
            endpoint: plugin.endpoint.clone(),
            client: SocketClient::new(Path::new(&plugin.endpoint), MESSAGE_BYTES_MAX),
            service: service(plugin)?,
        };
        let mut plugins = locked(&self.0.plugins);
        let all = plugins.entry(plugin.name.clone()).or_default();
        if all.iter().any(|known| known.endpoint == new.endpoint) {
            let PluginInfo { name, endpoint, .. } = plugin;
            return Err(format!("endpoint {endpoint} already registered for DRA driver plugin {name}"));
        }
        all.push(new);
        locked(&self.0.wipes).remove(&plugin.name);
        Ok(())
    }

    async fn deregister(&self, _: &Inner, _: &Node, plugin: &PluginInfo) {
        let mut plugins = locked(&self.0.plugins);
        let Some(all) = plugins.get_mut(&plugin.name) else { return };
        all.retain(|known| known.endpoint != plugin.endpoint);
        if all.is_empty() {
            plugins.remove(&plugin.name);
            locked(&self.0.wipes).insert(plugin.name.clone(), (Instant::now() + AWAY_TIME_MAX, 0));
            self.0.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's `TestRegistrationHandler` on versions.
    #[test]
    fn the_first_service_that_is_known_is_spoken() {
        let of = |versions: &[&str]| {
            service(&PluginInfo {
                kind: "DRAPlugin".to_owned(),
                name: "d".to_owned(),
                endpoint: "/e".to_owned(),
                supported_versions: versions.iter().map(|text| (*text).to_owned()).collect(),
            })
        };
        assert_eq!(of(&["v9.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAPlugin"]), Ok(SERVICES[1].1));
        assert_eq!(of(&["v1.DRAPlugin"]), Ok(SERVICES[0].1));
        let invalid = "invalid supported gRPC versions of DRA driver plugin d at endpoint /e: ";
        assert_eq!(
            of(&[]).unwrap_err(),
            format!("{invalid}empty list of supported gRPC services (aka supported versions)")
        );
        assert!(
            of(&["1.0.0"])
                .unwrap_err()
                .starts_with(&format!("{invalid}none of services supported by the plugin"))
        );
    }
}
