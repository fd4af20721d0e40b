//! The promises of a reconciler over an API: what a crash after any write leads to, and where it goes from any state.

use std::{
    fmt::Debug,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use http::{Method, Request};
use kube::{Client, client::Body};
use tokio::sync::watch;

use super::{ROUNDS_MAX, settle};
use crate::{
    key::ObjectKey,
    reconciler::{Action, Reconciler},
};

/// How many writes a reconciler may need from an untouched world until it is at rest.
pub const WRITES_MAX: usize = 1000;

/// A process that ends after some writes: of a client's requests, no one after the last of them is answered, nor is that one.
struct Mortal {
    left: AtomicUsize,
    dead: watch::Sender<bool>,
}

impl Mortal {
    fn new(writes: usize) -> Arc<Self> {
        Arc::new(Self { left: AtomicUsize::new(writes), dead: watch::Sender::new(writes == 0) })
    }

    fn client(self: &Arc<Self>, client: Client) -> Client {
        let mortal = Arc::clone(self);
        let namespace = client.default_namespace().to_owned();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (mortal, client) = (Arc::clone(&mortal), client.clone());
            async move {
                let is_write = request.method() != Method::GET;
                if is_write && *mortal.dead.borrow() {
                    std::future::pending::<()>().await;
                }
                let response = client.send(request).await?;
                if is_write && mortal.left.fetch_sub(1, Ordering::Relaxed) == 1 {
                    mortal.dead.send_replace(true);
                    std::future::pending::<()>().await;
                }
                Ok::<_, kube::Error>(response)
            }
        });
        Client::new(service, namespace)
    }

    /// Reconciles until it is at rest, has failed too often, or the process ends; whether it has ended.
    async fn live<S: PartialEq>(
        &self,
        reconciler: &dyn Reconciler,
        key: &ObjectKey,
        state: impl AsyncFn() -> S,
    ) -> bool {
        let mut dead = self.dead.subscribe();
        for _ in 0..ROUNDS_MAX {
            let before = state().await;
            let action = tokio::select! {
                biased;
                _ = dead.wait_for(|dead| *dead) => return true,
                action = reconciler.reconcile(key) => action,
            };
            if action.is_ok_and(|action| action != Action::Retry) && before == state().await {
                return false;
            }
        }
        false
    }
}

/// The promise of crash safety: a process that ends just after any of its writes, before it knows of the answer, and one that
/// starts in its place, lead to the state of a process that was never disturbed.
///
/// `world` makes a world with the objects that are there at the start, and a client for it; `make` a reconciler over a client, which
/// must read from the API itself, or wait until its caches have what was written; `state` tells what counts of a world.
///
/// # Panics
/// When the promise is broken, and as [`settle`].
pub async fn survives_crashes<W, R: Reconciler, S: PartialEq + Debug>(
    key: &ObjectKey,
    world: impl AsyncFn() -> (W, Client),
    make: impl AsyncFn(Client) -> R,
    state: impl AsyncFn(&W) -> S,
) {
    let (calm, client) = world().await;
    let expected = settle(&make(client).await, key, || state(&calm)).await;
    for writes in 1..=WRITES_MAX {
        let (world, client) = world().await;
        let mortal = Mortal::new(writes);
        let first = make(mortal.client(client.clone())).await;
        let died = mortal.live(&first, key, async || state(&world).await).await;
        drop(first);
        let seen = settle(&make(client).await, key, || state(&world)).await;
        assert_eq!(expected, seen, "a process that ends after write {writes} leaves another state behind");
        if !died {
            return;
        }
    }
    panic!("{key} is not at rest after {WRITES_MAX} writes");
}

/// The promise of being level-triggered: whatever state the world is in, the reconciler leads to the same one.
///
/// `world` makes one from a seed: what the object asks for is the same for all seeds, what is there of it differs. The other
/// arguments are those of [`survives_crashes`].
///
/// # Panics
/// When the promise is broken, and as [`settle`].
pub async fn converges<W, R: Reconciler, S: PartialEq + Debug>(
    seeds: Range<u64>,
    key: &ObjectKey,
    world: impl AsyncFn(u64) -> (W, Client),
    make: impl AsyncFn(Client) -> R,
    state: impl AsyncFn(&W) -> S,
) {
    let mut expected: Option<S> = None;
    for seed in seeds {
        let (world, client) = world(seed).await;
        let seen = settle(&make(client).await, key, || state(&world)).await;
        match &expected {
            None => expected = Some(seen),
            Some(expected) => assert_eq!(*expected, seen, "from seed {seed} it goes elsewhere"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        convert::Infallible,
        sync::{Mutex, PoisonError},
    };

    use futures::FutureExt as _;
    use http::{Response, StatusCode};
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::*;
    use crate::{reconcile_fn, request::Requests};

    type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

    /// A server of objects by their paths.
    fn world(objects: BTreeMap<String, Value>) -> (Objects, Client) {
        let objects = Arc::new(Mutex::new(objects));
        let served = Arc::clone(&objects);
        let service = tower::service_fn(move |request: Request<Body>| {
            let served = Arc::clone(&served);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let mut objects = served.lock().unwrap_or_else(PoisonError::into_inner);
                let path = parts.uri.path().to_owned();
                if parts.method == Method::PUT {
                    objects.insert(path.clone(), serde_json::from_slice(&body).unwrap());
                }
                let found = objects.get(&path).cloned();
                let mut response =
                    Response::new(Body::from(found.clone().unwrap_or(json!({})).to_string().into_bytes()));
                if found.is_none() {
                    *response.status_mut() = StatusCode::NOT_FOUND;
                }
                Ok::<_, Infallible>(response)
            }
        });
        (objects, Client::new(service, "default"))
    }

    /// Makes three objects; a careless one counts them in a fourth, one by one as it makes them.
    fn maker(client: Client, careless: bool) -> impl Reconciler {
        let requests = Requests::new(client);
        reconcile_fn(move |_| {
            let requests = requests.clone();
            async move {
                for path in ["/a", "/b", "/c"] {
                    if requests.get::<Value>(path).await.is_ok() {
                        continue;
                    }
                    if careless {
                        let known = requests.get::<Value>("/count").await.unwrap_or(json!({"count": 0}));
                        let count = known["count"].as_i64().unwrap_or_default() + 1;
                        requests.replace::<Value>("/count", &json!({"count": count})).await?;
                    }
                    requests.replace::<Value>(path, &json!({})).await?;
                }
                Ok(Action::Done)
            }
        })
    }

    async fn check(careless: bool) -> bool {
        let key = ObjectKey::cluster("x");
        let state = async |world: &Objects| world.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let checked = survives_crashes(
            &key,
            async || world(BTreeMap::new()),
            async |client| maker(client, careless),
            state,
        );
        std::panic::AssertUnwindSafe(checked).catch_unwind().await.is_ok()
    }

    /// The suite finds a reconciler that does something twice after a crash, and passes one that does not.
    #[tokio::test]
    async fn crashes_are_survived_or_found() {
        assert!(check(false).await);
        assert!(!check(true).await);
    }

    #[tokio::test]
    async fn states_lead_to_one_or_it_is_found() {
        let key = ObjectKey::cluster("x");
        for (careless, expected) in [(false, true), (true, false)] {
            let some = async |seed: u64| {
                let paths = ["/a", "/b", "/c"].into_iter().enumerate();
                let there = paths.filter(|(bit, _)| seed & (1 << bit) != 0);
                world(there.map(|(_, path)| (path.to_owned(), json!({}))).collect())
            };
            let state = async |world: &Objects| world.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let checked = converges(0..8, &key, some, async |client| maker(client, careless), state);
            let held = std::panic::AssertUnwindSafe(checked).catch_unwind().await.is_ok();
            assert_eq!(held, expected, "careless: {careless}");
        }
    }
}
