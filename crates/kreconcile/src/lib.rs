//! Watch, cache, queue, retry and leader election for everything that acts on a Kubernetes API; with the built-in
//! controllers of kube-controller-manager behind the feature `controllers`.
//!
//! It talks to the API through [`kube::Client`] only, so the same controller runs against an API server in its own
//! process, where nothing is encoded, and against any other cluster.
//!
//! A newcomer starts at [`Reconciler`], the one thing to write, and goes on to [`Controller`], which calls it. The other
//! parts in the order of their use: [`Informers`] keep local copies of what the API server holds; a [`Trigger`] says
//! which change concerns which object; the [`WorkQueue`] makes one piece of work of many changes; an [`EventRecorder`]
//! tells people what was done; a [`Manager`] starts and stops it all, with a [`LeaderElector`] if there are several.
//!
//! ```no_run
//! use k8s_openapi::api::core::v1::ConfigMap;
//! use kreconcile::{Action, Controller, Informers, Manager, MapTo, Selection, Start, Trigger, reconcile_fn};
//!
//! # async fn example(client: kube::Client) {
//! let informers = Informers::new(client);
//! let maps = informers.of::<ConfigMap>(Selection::all().labels("greet=yes"));
//! let reader = maps.clone();
//! let greeter = Controller::new("greeter", reconcile_fn(move |key| {
//!     let map = reader.get(&key.namespace, &key.name);
//!     async move {
//!         println!("{key} has {:?}", map.and_then(|map| map.data.clone()));
//!         Ok(Action::Done)
//!     }
//! }))
//! .on(Trigger::new(&maps, MapTo::Itself));
//!
//! let running = Manager::new().informers(&informers).add(Start::Always, greeter).start();
//! // ... until it is time to go:
//! running.stop().await;
//! # }
//! ```

#[cfg(feature = "controllers")]
mod address_range;
mod apply;
pub mod backoff;
mod cache;
pub mod change;
#[cfg(feature = "controllers")]
pub mod cloud;
pub mod conditions;
pub mod controller;
#[cfg(feature = "controllers")]
pub mod controllers;
#[cfg(feature = "controllers")]
mod discovery;
pub mod events;
pub mod expectations;
mod finalizer;
pub mod informer;
mod key;
pub mod leader;
pub mod manager;
mod metrics;
pub mod node_selector;
pub mod queue;
pub use kkinds::quota;
pub mod reconciler;
pub mod reflector;
mod request;
pub mod resource;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod trigger;
mod watch_lines;

pub use apply::Applier;
pub use backoff::{Backoff, RateLimiter, TokenBucket};
pub use cache::{Index, IndexFn};
pub use change::{Change, Subscription};
pub use controller::{Controller, ControllerStats};
pub use events::{EventRecorder, EventType, Regarding};
pub use expectations::Expectations;
pub use finalizer::{Finalizer, FinalizerStep};
pub use informer::{Informer, Informers, Lister};
pub use key::ObjectKey;
pub use leader::{LeaderElector, Leadership};
pub use manager::{Health, Manager, RunError, Runnable, Running, Start};
pub use queue::WorkQueue;
pub use reconciler::{Action, ReconcileError, ReconcileFn, Reconciler, reconcile_fn};
pub use resource::{ResourceType, Selection};
pub use trigger::{INITIAL_PRIORITY, MapTo, Predicate, Trigger};
