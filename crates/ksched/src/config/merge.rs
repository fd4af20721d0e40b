//! Which plug-ins a profile has, where and in which order.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    config::{ConfigError, PluginName, PluginSet, Plugins, ProfileConfiguration},
    profile::{Profile, ProfileBuilder},
    registry::{PluginParts, Registry},
};

/// Upstream's default plug-ins with their weights, in their order (`getDefaultPlugins`).
const DEFAULTS: [(&str, Option<i32>); 21] = [
    ("SchedulingGates", None),
    ("GangScheduling", None),
    ("PrioritySort", None),
    ("NodeUnschedulable", None),
    ("NodeName", None),
    ("TaintToleration", Some(3)),
    ("NodeAffinity", Some(2)),
    ("NodePorts", None),
    ("NodeResourcesFit", Some(1)),
    ("VolumeRestrictions", None),
    ("NodeVolumeLimits", None),
    ("VolumeBinding", None),
    ("VolumeZone", None),
    ("PodTopologySpread", Some(2)),
    ("InterPodAffinity", Some(2)),
    ("DynamicResources", Some(2)),
    ("DefaultPreemption", None),
    ("NodeResourcesBalancedAllocation", Some(1)),
    ("ImageLocality", Some(1)),
    ("DefaultBinder", None),
    ("NodeDeclaredFeatures", None),
];

/// What a profile enables, with the defaults.
pub(super) struct Merged {
    everywhere: Vec<PluginName>,
    plugins: Plugins,
}

/// What is enabled at one point: the set for all points, as far as a plug-in has this one, in its order; but what this
/// point names itself comes before if it is also in that set, and after if not (upstream's `expandMultiPointPlugins`).
struct Enabled<'a> {
    everywhere: &'a [PluginName],
    set: &'a PluginSet,
    parts: &'a BTreeMap<&'a str, PluginParts>,
}

impl Merged {
    pub(super) fn new(profile: &ProfileConfiguration) -> Self {
        let plugins = profile.plugins.clone().unwrap_or_default();
        Self { everywhere: everywhere(&plugins.multi_point), plugins }
    }

    pub(super) fn build(
        &self,
        profile: &ProfileConfiguration,
        registry: &Registry,
    ) -> Result<Profile, Vec<ConfigError>> {
        let parts = self.parts(profile, registry)?;
        let mut errors = Vec::new();
        let name = profile.scheduler_name.clone().unwrap_or_default();
        let mut builder = ProfileBuilder::bare().scheduler_name(name);
        macro_rules! add {
            ($($point:ident $trait:literal)*) => {$(
                let enabled =
                    Enabled { everywhere: &self.everywhere, set: &self.plugins.$point, parts: &parts };
                for name in enabled.names(|parts| parts.$point.is_some()) {
                    match parts.get(name).and_then(|parts| parts.$point.clone()) {
                        Some(plugin) => builder = builder.$point(plugin),
                        None => errors.push(ConfigError::new(
                            "plugins",
                            format!("plugin {name:?} does not extend {} plugin", $trait),
                        )),
                    }
                }
            )*};
        }
        add!(pre_enqueue "PreEnqueue" queue_sort "QueueSort" pre_filter "PreFilter" filter "Filter"
            post_filter "PostFilter" pre_score "PreScore" reserve "Reserve" permit "Permit" pre_bind "PreBind"
            bind "Bind" post_bind "PostBind");
        let scores = Enabled { everywhere: &self.everywhere, set: &self.plugins.score, parts: &parts };
        for name in scores.names(|parts| parts.score.is_some()) {
            match parts.get(name).and_then(|parts| parts.score.clone()) {
                Some(plugin) => builder = builder.score(plugin, self.weight(name)),
                None => errors.push(ConfigError::new(
                    "plugins",
                    format!("plugin {name:?} does not extend Score plugin"),
                )),
            }
        }
        for plugin in parts.values().filter_map(|parts| parts.hint.clone()) {
            builder = builder.hint(plugin);
        }
        if errors.is_empty() { builder.build().map_err(|error| vec![error.into()]) } else { Err(errors) }
    }

    /// Makes every plug-in that is enabled somewhere.
    fn parts(
        &self,
        profile: &ProfileConfiguration,
        registry: &Registry,
    ) -> Result<BTreeMap<&str, PluginParts>, Vec<ConfigError>> {
        let at_points = self.plugins.points().into_iter().flat_map(|(_, set)| &set.enabled);
        let (mut parts, mut errors) = (BTreeMap::new(), Vec::new());
        for PluginName { name, .. } in self.everywhere.iter().chain(at_points) {
            if parts.contains_key(name.as_str()) {
                continue;
            }
            let config = profile.plugin_config.iter().position(|config| config.name == *name);
            let args = config.map_or(&Value::Null, |at| &profile.plugin_config[at].args);
            match registry.get(name).map(|factory| factory(args)) {
                None => errors.push(ConfigError::new("plugins", format!("{name:?} does not exist"))),
                Some(Ok(made)) => {
                    parts.insert(name.as_str(), made);
                }
                Some(Err(wrong)) => {
                    let path = config.map(|at| format!("pluginConfig[{at}].args")).unwrap_or_default();
                    errors.extend(wrong.into_iter().map(|error| error.below(&path)));
                }
            }
        }
        if errors.is_empty() { Ok(parts) } else { Err(errors) }
    }

    fn weight(&self, name: &str) -> i64 {
        let own = self.plugins.score.enabled.iter().find(|plugin| plugin.name == name);
        let plugin = own.or_else(|| self.everywhere.iter().find(|plugin| plugin.name == name));
        i64::from(plugin.and_then(|plugin| plugin.weight).filter(|weight| *weight != 0).unwrap_or(1))
    }
}

/// The defaults with what a profile changes for all points (upstream's `mergePluginSet`).
fn everywhere(custom: &PluginSet) -> Vec<PluginName> {
    let mut plugins: Vec<PluginName> = DEFAULTS
        .iter()
        .filter(|(name, _)| !custom.disables(name))
        .map(|(name, weight)| PluginName { name: (*name).to_owned(), weight: *weight })
        .collect();
    for plugin in &custom.enabled {
        match plugins.iter_mut().find(|known| known.name == plugin.name) {
            Some(known) => *known = plugin.clone(),
            None => plugins.push(plugin.clone()),
        }
    }
    plugins
}

impl<'a> Enabled<'a> {
    fn names(&self, has_point: impl Fn(&PluginParts) -> bool) -> Vec<&'a str> {
        let own = || self.set.enabled.iter().map(|plugin| plugin.name.as_str());
        if self.set.disabled.iter().any(|disabled| disabled.name == "*") {
            return own().collect();
        }
        let here = |name: &str| self.parts.get(name).is_some_and(&has_point) && !self.set.disables(name);
        let shared: Vec<&str> =
            self.everywhere.iter().map(|plugin| plugin.name.as_str()).filter(|name| here(name)).collect();
        let mut names: Vec<&str> = own().filter(|name| shared.contains(name)).collect();
        names.extend(shared.iter().filter(|name| own().all(|own| own != **name)));
        names.extend(own().filter(|name| !shared.contains(name)));
        names
    }
}

/// So that the order of a [`Profile`] can be compared with upstream's.
#[cfg(test)]
pub(super) fn default_names() -> Vec<&'static str> {
    DEFAULTS.iter().map(|(name, _)| *name).collect()
}
