//! Which plug-ins a scheduler has, in which order and with which weights.

use std::{fmt, sync::Arc};

use crate::{
    plugin::{
        Bind, FilterPlugin, Permit, PostBind, PostFilter, PreBind, PreEnqueue, PreFilter, PreScore,
        QueueSort, QueueingHint, Reserve, ScorePlugin,
    },
    plugins,
    pod::{DEFAULT_SCHEDULER_NAME, PodInfo},
    snapshot::catalog::Catalog,
};

/// The largest weight (upstream's limit is that the sum of all does not overflow).
pub const WEIGHT_MAX: i64 = 1_000_000;

/// However small the share of nodes is, a search does not end before it has found room on so many (upstream's
/// `minFeasibleNodesToFind`).
pub const FEASIBLE_NODES_MIN: usize = 100;

/// A plug-in at one extension point.
pub(crate) struct Entry<P: ?Sized> {
    pub(crate) name: Arc<str>,
    pub(crate) weight: i64,
    pub(crate) plugin: Arc<P>,
}

impl<P: ?Sized> Clone for Entry<P> {
    fn clone(&self) -> Self {
        Self { name: Arc::clone(&self.name), weight: self.weight, plugin: Arc::clone(&self.plugin) }
    }
}

type Entries<P> = Vec<Entry<P>>;

/// A set of plug-ins, and the `spec.schedulerName` of the pods that it is for.
///
/// The default profile has kube-scheduler's plug-ins, in its order and with its weights, as far as they are built:
///
/// | plug-in | weight |
/// |---|---|
/// | `TaintToleration` | 3 |
/// | `NodeAffinity` | 2 |
/// | `NodeResourcesFit` | 1 |
/// | `PodTopologySpread` | 2 |
/// | `InterPodAffinity` | 2 |
/// | `DynamicResources` | 2 |
/// | `NodeResourcesBalancedAllocation` | 1 |
/// | `ImageLocality` | 1 |
#[derive(Clone)]
pub struct Profile {
    pub(crate) scheduler_name: Arc<str>,
    pub(crate) seed: u64,
    /// Of how many nodes in a hundred it is enough to find room on them; `None` for all.
    pub(crate) sample_percent: Option<u8>,
    pub(crate) points: Points,
}

#[derive(Clone, Default)]
pub(crate) struct Points {
    pub(crate) queue_sort: Entries<dyn QueueSort>,
    pub(crate) pre_enqueue: Entries<dyn PreEnqueue>,
    pub(crate) pre_filter: Entries<dyn PreFilter>,
    pub(crate) filter: Entries<dyn FilterPlugin>,
    pub(crate) post_filter: Entries<dyn PostFilter>,
    pub(crate) pre_score: Entries<dyn PreScore>,
    pub(crate) score: Entries<dyn ScorePlugin>,
    pub(crate) reserve: Entries<dyn Reserve>,
    pub(crate) permit: Entries<dyn Permit>,
    pub(crate) pre_bind: Entries<dyn PreBind>,
    pub(crate) bind: Entries<dyn Bind>,
    pub(crate) post_bind: Entries<dyn PostBind>,
    pub(crate) hints: Entries<dyn QueueingHint>,
}

impl Points {
    /// Whether anything is to be booked, permitted or prepared for the pod.
    pub(crate) fn concern(&self, pod: &PodInfo, catalog: &Catalog) -> bool {
        self.reserve.iter().any(|entry| entry.plugin.concerns(pod, catalog))
            || self.permit.iter().any(|entry| entry.plugin.concerns(pod, catalog))
            || self.pre_bind.iter().any(|entry| entry.plugin.concerns(pod, catalog))
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filters: Vec<_> = self.points.filter.iter().map(|entry| &*entry.name).collect();
        let scores: Vec<_> = self.points.score.iter().map(|entry| (&*entry.name, entry.weight)).collect();
        f.debug_struct("Profile")
            .field("scheduler_name", &self.scheduler_name)
            .field("filters", &filters)
            .field("scores", &scores)
            .finish_non_exhaustive()
    }
}

impl Default for Profile {
    fn default() -> Self {
        ProfileBuilder::default_profile().finish()
    }
}

impl Profile {
    /// On how many of so many nodes it is enough to find room (upstream's `numFeasibleNodesToFind`).
    pub(crate) fn feasible_enough(&self, nodes: usize) -> usize {
        let share = |percent: u8| (nodes * usize::from(percent) / 100).max(FEASIBLE_NODES_MIN);
        self.sample_percent.map_or(nodes, share).min(nodes)
    }

    /// Begins with the default profile.
    pub fn builder() -> ProfileBuilder {
        ProfileBuilder::default_profile()
    }

    /// The `spec.schedulerName` of the pods that it is for.
    #[must_use]
    pub fn scheduler_name(&self) -> &str {
        &self.scheduler_name
    }

    /// The names of the filters, in the order in which they are asked.
    pub fn filters(&self) -> impl Iterator<Item = &str> {
        self.points.filter.iter().map(|entry| &*entry.name)
    }

    /// The names of the scores with their weights.
    pub fn scores(&self) -> impl Iterator<Item = (&str, i64)> {
        self.points.score.iter().map(|entry| (&*entry.name, entry.weight))
    }
}

/// Why there is no profile or scheduler.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A weight is not within 1 and [`WEIGHT_MAX`].
    #[error("the weight of {plugin} is {weight}, which is not within 1 and {WEIGHT_MAX}")]
    Weight {
        /// The plug-in.
        plugin: Arc<str>,
        /// Its weight.
        weight: i64,
    },
    /// A profile has no name.
    #[error("a profile needs the name of a scheduler")]
    NoSchedulerName,
    /// A plug-in was named that there is none of.
    #[error("there is no plug-in {0}")]
    UnknownPlugin(Arc<str>),
    /// Nothing orders the queue, or nothing binds.
    #[error("a profile needs a plug-in for {0}")]
    Missing(&'static str),
    /// Two profiles have the same name.
    #[error("two profiles are for the scheduler {0}")]
    SameName(Arc<str>),
}

/// Makes a [`Profile`]. A plug-in that is added takes the place of the one with the same name at the same point, or
/// comes last.
#[derive(Clone)]
#[must_use]
pub struct ProfileBuilder {
    scheduler_name: Arc<str>,
    seed: u64,
    sample_percent: Option<u8>,
    points: Points,
    unknown: Option<Arc<str>>,
}

impl fmt::Debug for ProfileBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProfileBuilder").field("scheduler_name", &self.scheduler_name).finish_non_exhaustive()
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $method:ident: $trait:ident;)*) => {
        $(
            $(#[$doc])*
            pub fn $method(mut self, plugin: Arc<dyn $trait>) -> Self {
                let name = plugin.name().into();
                put(&mut self.points.$method, Entry { name, weight: 1, plugin });
                self
            }
        )*
    };
}

fn put<P: ?Sized>(entries: &mut Entries<P>, entry: Entry<P>) {
    match entries.iter_mut().find(|known| known.name == entry.name) {
        Some(known) => *known = entry,
        None => entries.push(entry),
    }
}

impl ProfileBuilder {
    /// A profile without any plug-in but those that order the queue and bind.
    pub fn empty() -> Self {
        Self::bare().queue_sort(Arc::new(plugins::PrioritySort)).bind(Arc::new(plugins::DefaultBinder))
    }

    /// A profile without any plug-in.
    pub(crate) fn bare() -> Self {
        Self {
            scheduler_name: DEFAULT_SCHEDULER_NAME.into(),
            seed: 0,
            sample_percent: None,
            points: Points::default(),
            unknown: None,
        }
    }

    fn default_profile() -> Self {
        plugins::add_defaults(Self::empty())
    }

    /// The `spec.schedulerName` of the pods that it is for; `default-scheduler` by default.
    pub fn scheduler_name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.scheduler_name = name.into();
        self
    }

    /// Decides, together with the pod, between nodes of equal scores: the same seed gives the same choice. 0 by
    /// default.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Ends the search for nodes once it has found room on this share of them, in percent, as upstream's
    /// `percentageOfNodesToScore` does; but not before it was found on [`FEASIBLE_NODES_MIN`]. 0, the default, and 100 have all nodes
    /// looked at (upstream chooses a share by the number of nodes when it is 0).
    ///
    /// Each pod begins at another node, which the seed and the pod decide. A [`Planner`](crate::Planner) keeps what is known of
    /// nodes, and with it looking at all of them costs less than a search; it does not for a profile with such a share, so
    /// that it gives the same answer as [`decide`](crate::decide).
    pub fn percentage_of_nodes_to_score(mut self, percent: u8) -> Self {
        self.sample_percent = (1..100).contains(&percent).then_some(percent);
        self
    }

    /// Takes a plug-in out at all its points.
    pub fn without(mut self, name: &str) -> Self {
        let points = &mut self.points;
        let mut found = false;
        macro_rules! remove {
            ($($point:ident)*) => {$({
                let before = points.$point.len();
                points.$point.retain(|entry| *entry.name != *name);
                found |= points.$point.len() < before;
            })*};
        }
        remove!(queue_sort pre_enqueue pre_filter filter post_filter pre_score score reserve permit pre_bind bind
            post_bind hints);
        if !found {
            self.unknown = Some(name.into());
        }
        self
    }

    /// Adds a score with its weight.
    pub fn score(mut self, plugin: Arc<dyn ScorePlugin>, weight: i64) -> Self {
        put(&mut self.points.score, Entry { name: plugin.name().into(), weight, plugin });
        self
    }

    /// Changes the weight of a score.
    pub fn weight(mut self, name: &str, weight: i64) -> Self {
        match self.points.score.iter_mut().find(|entry| *entry.name == *name) {
            Some(entry) => entry.weight = weight,
            None => self.unknown = Some(name.into()),
        }
        self
    }

    /// Has the queue ordered by this plug-in, in the place of any other.
    pub fn queue_sort(mut self, plugin: Arc<dyn QueueSort>) -> Self {
        self.points.queue_sort = vec![Entry { name: plugin.name().into(), weight: 1, plugin }];
        self
    }

    setters! {
        /// Adds what holds pods back from the queue.
        pre_enqueue: PreEnqueue;
        /// Adds what is asked once per pod before the filters.
        pre_filter: PreFilter;
        /// Adds a filter.
        filter: FilterPlugin;
        /// Adds what is asked when no node is left.
        post_filter: PostFilter;
        /// Adds what is asked once per pod before the scores.
        pre_score: PreScore;
        /// Adds what books things.
        reserve: Reserve;
        /// Adds what permits.
        permit: Permit;
        /// Adds what is done before binding.
        pre_bind: PreBind;
        /// Adds what binds; asked before the default binder only when that is taken out and added again.
        bind: Bind;
        /// Adds what is told after binding.
        post_bind: PostBind;
    }

    /// Adds what says which events may help pods that the plug-in of the same name rejected.
    pub fn hint(mut self, plugin: Arc<dyn QueueingHint>) -> Self {
        put(&mut self.points.hints, Entry { name: plugin.name().into(), weight: 1, plugin });
        self
    }

    /// Makes the profile.
    ///
    /// # Errors
    /// When a plug-in was named that is not there, a weight is out of range, or something is missing.
    pub fn build(self) -> Result<Profile, BuildError> {
        if self.scheduler_name.is_empty() {
            return Err(BuildError::NoSchedulerName);
        }
        if let Some(name) = &self.unknown {
            return Err(BuildError::UnknownPlugin(Arc::clone(name)));
        }
        if self.points.queue_sort.is_empty() {
            return Err(BuildError::Missing("QueueSort"));
        }
        if self.points.bind.is_empty() {
            return Err(BuildError::Missing("Bind"));
        }
        for entry in &self.points.score {
            if !(1..=WEIGHT_MAX).contains(&entry.weight) {
                return Err(BuildError::Weight { plugin: Arc::clone(&entry.name), weight: entry.weight });
            }
        }
        Ok(self.finish())
    }

    fn finish(self) -> Profile {
        let Self { scheduler_name, seed, sample_percent, points, .. } = self;
        Profile { scheduler_name, seed, sample_percent, points }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_upstreams() {
        let profile = Profile::default();
        let filters: Vec<_> = profile.filters().collect();
        assert_eq!(
            filters,
            [
                "NodeUnschedulable",
                "NodeName",
                "TaintToleration",
                "NodeAffinity",
                "NodePorts",
                "NodeResourcesFit",
                "VolumeRestrictions",
                "NodeVolumeLimits",
                "VolumeBinding",
                "VolumeZone",
                "PodTopologySpread",
                "InterPodAffinity",
                "DynamicResources",
                "NodeDeclaredFeatures"
            ]
        );
        let scores: Vec<_> = profile.scores().collect();
        let expected = [
            ("TaintToleration", 3),
            ("NodeAffinity", 2),
            ("NodeResourcesFit", 1),
            ("PodTopologySpread", 2),
            ("InterPodAffinity", 2),
            ("DynamicResources", 2),
            ("NodeResourcesBalancedAllocation", 1),
            ("ImageLocality", 1),
        ];
        assert_eq!(scores, expected);
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let check = |builder: ProfileBuilder, expected: &str| {
            assert_eq!(builder.build().map(|_| ()).unwrap_err().to_string(), expected);
        };
        check(Profile::builder().without("Nonsense"), "there is no plug-in Nonsense");
        check(
            Profile::builder().weight("ImageLocality", 0),
            "the weight of ImageLocality is 0, which is not within 1 and 1000000",
        );
        check(Profile::builder().scheduler_name(""), "a profile needs the name of a scheduler");
        check(Profile::builder().without("DefaultBinder"), "a profile needs a plug-in for Bind");
    }

    #[test]
    fn a_plugin_is_taken_out_everywhere() {
        let profile = Profile::builder().without("NodeAffinity").build().unwrap();
        assert!(
            profile
                .filters()
                .chain(profile.scores().map(|(name, _)| name))
                .all(|name| name != "NodeAffinity")
        );
    }
}
