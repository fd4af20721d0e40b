//! A driver of dynamic resources for tests: it registers with a node, notes every call, and prepares whatever it is asked to.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

use crate::{
    dra::proto::{Claims, Device, Prepared, PreparedClaim, Unprepared, UnpreparedClaim},
    grpc::serve::{Answers, answer, decode, serve},
    plugins::{
        REGISTRY_DIR,
        proto::{PluginInfo, RegistrationStatus, RegistrationStatusResponse},
    },
};

/// What a [`DraDriver`] is like.
#[derive(Clone, Debug)]
pub struct DraDriverOptions {
    /// Its name.
    pub name: String,
    /// The services that it says it speaks.
    pub services: Vec<String>,
    /// Names of the Container Device Interface that a container gets with each claim.
    pub cdi: Vec<String>,
}

impl DraDriverOptions {
    /// One of both versions, whose devices a container does not notice.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        let services = ["v1.DRAPlugin", "v1beta1.DRAPlugin"].map(str::to_owned).into();
        Self { name: name.into(), services, cdi: Vec::new() }
    }
}

/// A driver that runs until it is dropped.
#[derive(Debug)]
pub struct DraDriver {
    shared: Arc<Shared>,
    sockets: [PathBuf; 2],
    _servers: [AbortOnDropHandle<()>; 2],
}

#[derive(Debug)]
struct Shared {
    options: DraDriverOptions,
    endpoint: String,
    failures: Mutex<HashMap<String, String>>,
    calls: watch::Sender<Vec<(String, Value)>>,
}

impl Drop for DraDriver {
    fn drop(&mut self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl DraDriver {
    /// Starts a driver for the node with this `state_dir`, and lets it register.
    ///
    /// # Errors
    /// When its sockets can't be made.
    pub fn start(state_dir: &Path, options: DraDriverOptions) -> io::Result<Self> {
        let socket = state_dir.join("plugins").join(&options.name).join("dra.sock");
        let registration = state_dir.join(REGISTRY_DIR).join(format!("{}-reg.sock", options.name));
        let shared = Arc::new(Shared {
            endpoint: socket.to_string_lossy().into_owned(),
            options,
            failures: Mutex::default(),
            calls: watch::Sender::default(),
        });
        let serve_at = |path: &Path| {
            let shared = Arc::clone(&shared);
            serve(
                path,
                Arc::new(move |method, bytes| {
                    let shared = Arc::clone(&shared);
                    async move { shared.answer(&method, bytes) }.boxed()
                }),
            )
        };
        let servers = [serve_at(&socket)?, serve_at(&registration)?];
        Ok(Self { shared, sockets: [socket, registration], _servers: servers })
    }

    /// The claims of the calls of this method so far: `service/NodePrepareResources` or `service/NodeUnprepareResources` with the service's
    /// package, and the claims as `namespace/name/uid`; the status of the registration as it is.
    #[must_use]
    pub fn requests(&self, method: &str) -> Vec<Value> {
        let calls = self.shared.calls.borrow();
        calls.iter().filter(|(name, _)| name.ends_with(method)).map(|(_, request)| request.clone()).collect()
    }

    /// The names of all calls so far.
    #[must_use]
    pub fn methods(&self) -> Vec<String> {
        self.shared.calls.borrow().iter().map(|(name, _)| name.clone()).collect()
    }

    /// Waits until there were so many calls of this method.
    pub async fn called(&self, method: &str, times: usize) {
        let mut calls = self.shared.calls.subscribe();
        let is = |calls: &Vec<(String, Value)>| {
            calls.iter().filter(|(name, _)| name.ends_with(method)).count() >= times
        };
        // The sender is ours, so the wait does not fail.
        let _ = calls.wait_for(is).await;
    }

    /// Lets a method fail for every claim with this message from now on; an empty one means no more.
    pub fn fail(&self, method: &str, message: &str) {
        self.shared.failures().insert(method.to_owned(), message.to_owned());
    }
}

impl Shared {
    fn failures(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, path: &str, bytes: Bytes) -> Answers {
        let method = path.rsplit('/').next().unwrap_or_default();
        let note = |request: Value| {
            self.calls.send_modify(|calls| calls.push((path.trim_start_matches('/').to_owned(), request)));
        };
        let error = self.failures().get(method).cloned().unwrap_or_default();
        let named = |asked: &Claims| {
            let text = |claim: &crate::dra::proto::Claim| {
                format!("{}/{}/{}", claim.namespace, claim.name, claim.uid)
            };
            json!(asked.claims.iter().map(text).collect::<Vec<_>>())
        };
        match method {
            "GetInfo" => answer(Ok(PluginInfo {
                kind: "DRAPlugin".to_owned(),
                name: self.options.name.clone(),
                endpoint: self.endpoint.clone(),
                supported_versions: self.options.services.clone(),
            })),
            "NotifyRegistrationStatus" => answer(decode(bytes).map(|status: RegistrationStatus| {
                note(json!({"pluginRegistered": status.plugin_registered, "error": status.error}));
                RegistrationStatusResponse {}
            })),
            "NodePrepareResources" => answer(decode(bytes).map(|asked: Claims| {
                note(named(&asked));
                let prepared = asked.claims.into_iter().map(|claim| {
                    let device = Device {
                        pool_name: "pool".to_owned(),
                        device_name: claim.name,
                        cdi_device_ids: self.options.cdi.clone(),
                        ..Device::default()
                    };
                    (claim.uid, PreparedClaim { devices: vec![device], error: error.clone() })
                });
                Prepared { claims: prepared.collect() }
            })),
            "NodeUnprepareResources" => answer(decode(bytes).map(|asked: Claims| {
                note(named(&asked));
                let given = asked
                    .claims
                    .into_iter()
                    .map(|claim| (claim.uid, UnpreparedClaim { error: error.clone() }));
                Unprepared { claims: given.collect() }
            })),
            _ => answer(Err::<Claims, _>(Status::unimplemented("no such method"))),
        }
    }
}
