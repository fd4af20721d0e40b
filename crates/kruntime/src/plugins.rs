//! Programs that add to a node: they put a socket into a directory, are asked who they are, and are told what came of it
//! (`pluginregistration/v1`, the protocol between upstream's plugin manager and `node-driver-registrar`).
//!
//! A node takes plug-ins when [`NodeConfig::plugins`](crate::NodeConfig::plugins) says so: sockets in [`REGISTRY_DIR`] below its
//! `state_dir`. Those of CSI drivers (`CSIPlugin`), devices (`DevicePlugin`) and dynamic resources (`DRAPlugin`) are known; a plug-in of another kind is told that nobody takes it.
//! Device plug-ins may as well register at `device-plugins/kubelet.sock`, as most do.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::{sync::Notify, time::Instant};

use crate::{
    agent::{Inner, Node},
    devices, dra,
    grpc::{SocketClient, words},
    volumes::csi,
};

pub(crate) mod proto;

use proto::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// The directory below a node's `state_dir` that plug-ins put their sockets into, in folders of their own if they like.
pub const REGISTRY_DIR: &str = "plugins_registry";

/// How often the directory is looked at, as upstream's reconciler does.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a plug-in may take to say who it is. Upstream's is a second, and ten for the connection before it.
const INFO_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a plug-in may take to hear what came of its registration (upstream's `notifyTimeoutDuration`).
const NOTIFY_TIME_MAX: Duration = Duration::from_secs(5);
/// How soon a registration that failed is tried again, at first and at most, as upstream.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(122)];
/// How many sockets are looked at.
const SOCKETS_MAX: usize = 1024;
/// How deep folders are gone into.
const DEPTH_MAX: usize = 8;
/// The largest message of a plug-in, in bytes (the default of Go's gRPC).
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Takes plug-ins of one kind.
#[async_trait]
pub(crate) trait PluginHandler: std::fmt::Debug + Send + Sync {
    /// The kind, as plug-ins say it.
    fn kind(&self) -> &'static str;

    /// Whether such a plug-in can be taken; else why not.
    fn validate(&self, plugin: &PluginInfo) -> Result<(), String>;

    /// Takes it. It may be known already under this name.
    async fn register(&self, inner: &Inner, node: &Node, plugin: &PluginInfo) -> Result<(), String>;

    /// Its socket is gone.
    async fn deregister(&self, inner: &Inner, node: &Node, plugin: &PluginInfo);
}

/// The nodes that take plug-ins.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    new: Mutex<Vec<Arc<Node>>>,
    added: Notify,
}

impl Nodes {
    pub(crate) fn add(&self, node: &Arc<Node>) {
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(node));
        self.added.notify_one();
    }
}

/// Watches the directories of all nodes that take plug-ins.
pub(crate) async fn run(inner: &Inner) {
    let mut watches = FuturesUnordered::new();
    loop {
        let new: Vec<Arc<Node>> =
            std::mem::take(&mut *inner.plugins.new.lock().unwrap_or_else(PoisonError::into_inner));
        watches.extend(new.into_iter().map(|node| async move {
            let stop = node.stop.clone();
            let claims = async {
                match &node.claims {
                    Some(claims) => claims.run(&inner.client, |uid| inner.has_pod(uid)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = watch(inner, &node) => {}
                () = claims => {}
                () = crate::pod_resources::run(inner, &node) => {}
            }
        }));
        tokio::select! {
            () = inner.plugins.added.notified() => {}
            Some(()) = watches.next() => {}
        }
    }
}

/// What tells a socket from another one that is later put in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    inode: u64,
    changed: (i64, i64),
}

/// A socket of the directory.
#[derive(Debug)]
struct Known {
    identity: Identity,
    state: State,
    failures: u32,
}

#[derive(Debug)]
enum State {
    Registering,
    Registered(PluginInfo),
    Failed { retry_at: Instant },
}

async fn watch(inner: &Inner, node: &Arc<Node>) {
    let Some(dir) = node.config.state_dir.as_ref().map(|dir| dir.join(REGISTRY_DIR)) else { return };
    while let Err(error) = fs::create_dir_all(&dir) {
        tracing::warn!(dir = %dir.display(), %error, "the directory for plug-ins can't be made");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    while let Some(Err(error)) = node.devices.as_ref().map(devices::Devices::open) {
        tracing::warn!(node = %node.config.name, %error, "the socket for device plug-ins can't be made");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    // Drivers are listed in an object that is the node's.
    while let Err(error) = csi::ensure_csi_node(inner, node).await {
        tracing::debug!(node = %node.config.name, error, "the node has no CSINode yet");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut known: HashMap<PathBuf, Known> = HashMap::new();
    let mut registering: FuturesUnordered<BoxFuture<'_, Tried>> = FuturesUnordered::new();
    loop {
        let seen = sockets(&dir);
        let gone: Vec<PathBuf> = known
            .iter()
            .filter(|(path, known)| seen.get(*path) != Some(&known.identity))
            // One that is being registered is waited for: then it is known what to undo.
            .filter(|(_, known)| !matches!(known.state, State::Registering))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            if let Some(Known { state: State::Registered(plugin), .. }) = known.remove(&path) {
                tracing::info!(node = %node.config.name, plugin = plugin.name, "a plug-in is gone");
                if let Some(handler) = handler_of(node, &plugin.kind) {
                    handler.deregister(inner, node, &plugin).await;
                }
            }
        }
        for (path, identity) in seen {
            let entry = known.entry(path.clone());
            let is_new = matches!(entry, std::collections::hash_map::Entry::Vacant(_));
            let known = entry.or_insert(Known { identity, state: State::Registering, failures: 0 });
            let is_due = matches!(known.state, State::Failed { retry_at } if retry_at <= Instant::now());
            if is_new || is_due {
                known.state = State::Registering;
                registering.push(register(inner, node, path).boxed());
            }
        }
        let next = Instant::now() + LOOK_EVERY;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(next) => break,
                Some((path, outcome)) = registering.next() => {
                    let Some(known) = known.get_mut(&path) else { continue };
                    known.state = match outcome {
                        Ok(plugin) => {
                            tracing::info!(node = %node.config.name, kind = plugin.kind, plugin = plugin.name, "a plug-in is registered");
                            known.failures = 0;
                            State::Registered(plugin)
                        }
                        Err(error) => {
                            tracing::warn!(node = %node.config.name, socket = %path.display(), error, "a plug-in is not registered");
                            known.failures = known.failures.saturating_add(1);
                            State::Failed { retry_at: Instant::now() + retry_after(known.failures) }
                        }
                    };
                }
            }
        }
    }
}

/// How long after so many failures the next try comes: twice as long each time.
fn retry_after(failures: u32) -> Duration {
    let [first, most] = RETRY_AFTER;
    first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(most)
}

fn handler_of(node: &Node, kind: &str) -> Option<Arc<dyn PluginHandler>> {
    handlers(node).into_iter().find(|handler| handler.kind() == kind)
}

fn handlers(node: &Node) -> Vec<Arc<dyn PluginHandler>> {
    let drivers = node.csi.iter().map(|csi| Arc::clone(csi) as Arc<dyn PluginHandler>);
    let devices = node
        .devices
        .iter()
        .map(|devices| Arc::new(devices::Handler(Arc::clone(devices))) as Arc<dyn PluginHandler>);
    let claims = node.claims.iter();
    let claims = claims.map(|claims| Arc::new(dra::Handler(Arc::clone(claims))) as Arc<dyn PluginHandler>);
    drivers.chain(devices).chain(claims).collect()
}

/// The sockets in a directory and its folders. Names that begin with a dot are left out, as upstream; so is what can't be read.
fn sockets(dir: &Path) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    let mut rest = vec![(dir.to_owned(), 0)];
    while let Some((dir, depth)) = rest.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() && depth < DEPTH_MAX {
                rest.push((entry.path(), depth + 1));
            } else if meta.file_type().is_socket() && found.len() < SOCKETS_MAX {
                let changed = (meta.ctime(), meta.ctime_nsec());
                found.insert(entry.path(), Identity { inode: meta.ino(), changed });
            }
        }
    }
    found
}

/// A socket, and what came of asking behind it.
type Tried = (PathBuf, Result<PluginInfo, String>);

async fn register(inner: &Inner, node: &Arc<Node>, socket: PathBuf) -> Tried {
    let outcome = register_at(inner, node, &socket).await;
    (socket, outcome)
}

/// Asks the plug-in at a socket who it is, takes it, and tells it so. Messages are upstream's.
async fn register_at(inner: &Inner, node: &Arc<Node>, socket: &Path) -> Result<PluginInfo, String> {
    let at = socket.display();
    let client = SocketClient::new(socket, MESSAGE_BYTES_MAX);
    let asked = client.call(INFO_TIME_MAX, "/pluginregistration.Registration/GetInfo", InfoRequest {}).await;
    let mut plugin: PluginInfo = asked.map_err(|status| {
        let why = words(&status);
        format!(
            "RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {at}, err: {why}"
        )
    })?;
    if plugin.endpoint.is_empty() {
        plugin.endpoint = socket.to_string_lossy().into_owned();
    }
    let taken = match handler_of(node, &plugin.kind) {
        None => {
            let kind = &plugin.kind;
            Err(format!(
                "RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {at}"
            ))
        }
        Some(handler) => match handler.validate(&plugin) {
            Err(why) => Err(format!("RegisterPlugin error -- plugin validation failed with err: {why}")),
            Ok(()) => handler
                .register(inner, node, &plugin)
                .await
                .map_err(|why| format!("RegisterPlugin error -- plugin registration failed with err: {why}")),
        },
    };
    let status = RegistrationStatus {
        plugin_registered: taken.is_ok(),
        error: taken.as_ref().err().cloned().unwrap_or_default(),
    };
    let told: Result<RegistrationStatusResponse, _> = client
        .call(NOTIFY_TIME_MAX, "/pluginregistration.Registration/NotifyRegistrationStatus", status)
        .await;
    taken?;
    if let Err(status) = told {
        // It does not know that it is one of us, so it is not.
        if let Some(handler) = handler_of(node, &plugin.kind) {
            handler.deregister(inner, node, &plugin).await;
        }
        let why = words(&status);
        return Err(format!(
            "RegisterPlugin error -- failed to send registration status at socket {at}, err: {why}"
        ));
    }
    Ok(plugin)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_less_and_less_often() {
        let cases = [(1, 500), (2, 1000), (3, 2000), (8, 64_000), (9, 122_000), (500, 122_000)];
        for (failures, milliseconds) in cases {
            assert_eq!(retry_after(failures).as_millis(), milliseconds, "{failures}");
        }
    }

    #[test]
    fn sockets_are_found_in_folders_too() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        fs::write(at("file"), "").unwrap();
        let bind = |name: &str| std::os::unix::net::UnixListener::bind(at(name)).unwrap();
        let _kept = [bind("a.sock"), bind("folder/b.sock"), bind(".hidden.sock")];
        let found = sockets(dir.path());
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), [at("a.sock"), at("folder/b.sock")]);
        // One that is made anew at the same place is another one.
        fs::remove_file(at("a.sock")).unwrap();
        let _other = bind("a.sock");
        assert_ne!(sockets(dir.path())[&at("a.sock")], found[&at("a.sock")]);
        assert!(sockets(&at("nowhere")).is_empty());
    }
}
