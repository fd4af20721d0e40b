//! Plug-ins by name, as configuration files call them.

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::Value;

use crate::{
    config::{ConfigError, args},
    plugin::{
        Bind, FilterPlugin, Permit, PostBind, PostFilter, PreBind, PreEnqueue, PreFilter, PreScore,
        QueueSort, QueueingHint, Reserve, ScorePlugin,
    },
    plugins,
};

/// One plug-in at all the extension points that it has.
#[derive(Clone, Default)]
pub struct PluginParts {
    pub(crate) pre_enqueue: Option<Arc<dyn PreEnqueue>>,
    pub(crate) queue_sort: Option<Arc<dyn QueueSort>>,
    pub(crate) pre_filter: Option<Arc<dyn PreFilter>>,
    pub(crate) filter: Option<Arc<dyn FilterPlugin>>,
    pub(crate) post_filter: Option<Arc<dyn PostFilter>>,
    pub(crate) pre_score: Option<Arc<dyn PreScore>>,
    pub(crate) score: Option<Arc<dyn ScorePlugin>>,
    pub(crate) reserve: Option<Arc<dyn Reserve>>,
    pub(crate) permit: Option<Arc<dyn Permit>>,
    pub(crate) pre_bind: Option<Arc<dyn PreBind>>,
    pub(crate) bind: Option<Arc<dyn Bind>>,
    pub(crate) post_bind: Option<Arc<dyn PostBind>>,
    pub(crate) hint: Option<Arc<dyn QueueingHint>>,
}

impl fmt::Debug for PluginParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PluginParts")
    }
}

macro_rules! parts {
    ($($(#[$doc:meta])* $method:ident: $trait:ident;)*) => {
        impl PluginParts {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $method(mut self, plugin: Arc<dyn $trait>) -> Self {
                    self.$method = Some(plugin);
                    self
                }
            )*
        }
    };
}

parts! {
    /// It holds pods back from the queue.
    pre_enqueue: PreEnqueue;
    /// It orders the queue.
    queue_sort: QueueSort;
    /// It is asked once per pod before the filters.
    pre_filter: PreFilter;
    /// It is a filter.
    filter: FilterPlugin;
    /// It is asked when no node is left.
    post_filter: PostFilter;
    /// It is asked once per pod before the scores.
    pre_score: PreScore;
    /// It is a score.
    score: ScorePlugin;
    /// It books things.
    reserve: Reserve;
    /// It permits.
    permit: Permit;
    /// It does something before binding.
    pre_bind: PreBind;
    /// It binds.
    bind: Bind;
    /// It is told after binding.
    post_bind: PostBind;
    /// It says which events may help pods that it rejected.
    hint: QueueingHint;
}

/// Makes a plug-in from the `args` of its `pluginConfig`; without any there are none (`null`).
pub type Factory = Arc<dyn Fn(&Value) -> Result<PluginParts, Vec<ConfigError>> + Send + Sync>;

/// The plug-ins that a [`SchedulerConfiguration`](crate::config::SchedulerConfiguration) may name.
///
/// ```
/// use std::sync::Arc;
/// use ksched::{registry::{PluginParts, Registry}, plugins::ImageLocality};
///
/// let mut registry = Registry::default();
/// registry.add("Mine", Arc::new(|_args| Ok(PluginParts::default().score(Arc::new(ImageLocality)))));
/// assert!(registry.names().any(|name| name == "Mine"));
/// ```
#[derive(Clone)]
pub struct Registry(BTreeMap<String, Factory>);

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Registry {
    /// Without any.
    #[must_use]
    pub fn empty() -> Self {
        Self(BTreeMap::new())
    }

    /// Adds a plug-in, or puts it in the place of the one with the same name.
    pub fn add(&mut self, name: impl Into<String>, factory: Factory) {
        self.0.insert(name.into(), factory);
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Factory> {
        self.0.get(name)
    }
}

/// All parts that a type has, from one value of it.
macro_rules! all {
    ($plugin:expr; $($part:ident)*) => {{
        let plugin = Arc::new($plugin);
        PluginParts::default()$(.$part(Arc::clone(&plugin) as Arc<_>))*
    }};
}

impl Default for Registry {
    /// Those of this crate.
    fn default() -> Self {
        let mut registry = Self::empty();
        let mut plain = |name: &str, parts: PluginParts| {
            registry.add(name, Arc::new(move |args| args::none(args).map(|()| parts.clone())));
        };
        plain("SchedulingGates", all!(plugins::SchedulingGates; pre_enqueue hint));
        plain("GangScheduling", all!(plugins::GangScheduling; pre_enqueue permit hint));
        plain("PrioritySort", all!(plugins::PrioritySort; queue_sort));
        plain("NodeUnschedulable", all!(plugins::NodeUnschedulable; filter hint));
        plain("NodeDeclaredFeatures", all!(plugins::NodeDeclaredFeatures; pre_filter filter hint));
        plain("NodeName", all!(plugins::NodeName; filter hint));
        plain("TaintToleration", all!(plugins::TaintToleration; filter score hint));
        plain("NodePorts", all!(plugins::NodePorts; pre_filter filter hint));
        plain("VolumeRestrictions", all!(plugins::VolumeRestrictions; pre_filter filter hint));
        plain("NodeVolumeLimits", all!(plugins::NodeVolumeLimits; pre_filter filter hint));
        plain("VolumeZone", all!(plugins::VolumeZone; pre_filter filter hint));
        plain("ImageLocality", all!(plugins::ImageLocality; score));
        plain("DefaultBinder", all!(plugins::DefaultBinder; bind));
        let mut with_args = |name: &str, factory: Factory| registry.add(name, factory);
        with_args(
            "NodeAffinity",
            Arc::new(|args| Ok(all!(args::node_affinity(args)?; pre_filter filter pre_score score hint))),
        );
        with_args(
            "NodeResourcesFit",
            Arc::new(|args| Ok(all!(args::node_resources_fit(args)?; filter score hint))),
        );
        with_args(
            "VolumeBinding",
            Arc::new(|args| Ok(all!(args::volume_binding(args)?; pre_filter filter reserve pre_bind hint))),
        );
        with_args(
            "PodTopologySpread",
            Arc::new(|args| {
                Ok(all!(args::pod_topology_spread(args)?; pre_filter filter pre_score score hint))
            }),
        );
        with_args(
            "InterPodAffinity",
            Arc::new(|args| {
                Ok(all!(args::inter_pod_affinity(args)?; pre_filter filter pre_score score hint))
            }),
        );
        with_args(
            "DynamicResources",
            Arc::new(|args| {
                Ok(all!(
                    args::dynamic_resources(args)?;
                    pre_enqueue pre_filter filter post_filter pre_score score reserve pre_bind hint
                ))
            }),
        );
        with_args(
            "DefaultPreemption",
            Arc::new(|args| Ok(all!(args::default_preemption(args)?; post_filter hint))),
        );
        with_args(
            "NodeResourcesBalancedAllocation",
            Arc::new(|args| Ok(all!(args::balanced_allocation(args)?; pre_score score))),
        );
        registry
    }
}
