//! Deciding about many pods, most of which are like others.

mod class;

use std::{
    any::TypeId,
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use ahash::RandomState;
use kreconcile::Change;
use smallvec::SmallVec;

use crate::{
    booking::Booking,
    cycle::decide_measured,
    decision::Decision,
    event::ClusterEvent,
    metrics::{Meter, Metrics},
    node::NodeInfo,
    planner::class::Class,
    plugin::CycleState,
    pod::PodInfo,
    profile::Profile,
    snapshot::{NodeIndex, Snapshot, catalog::Interest},
    track::{PodChange, Topology},
    trial::{Nominated, Nominations},
};

/// How many classes of pods are kept; the one that was not needed for the longest time goes first.
pub const CLASSES_MAX: usize = 16;
/// How many changes are kept for classes that have not seen them; a class that is further behind is made anew.
pub const CHANGES_MAX: usize = 8_192;

/// A [`Snapshot`] together with what profiles say of its nodes, for each class of equal pods.
///
/// Pods that ask for the same and are asked the same by others, such as those of one ReplicaSet, get the same answers. So the
/// answers are kept, and after a change only those are renewed that it concerns: a pod that comes or goes and a node that offers
/// something else concern that node; an object of another kind concerns the pods whose plug-ins have looked at objects of its
/// kind. When a node comes, goes, or has other labels or taints, all is found out again. The choice is the one that
/// [`decide_among`](crate::decide_among) would make; where that can't be told from what is kept, `decide_among` makes it.
///
/// ```
/// use ksched::{Planner, Profile, Plan, build::{node, pod}};
///
/// let mut planner = Planner::new([Profile::default()].into());
/// planner.set_node(node("a").resource("cpu", "1").info());
/// planner.set_node(node("b").resource("cpu", "2").info());
/// for (name, expected) in [("p", Some("b")), ("q", None), ("r", None)] {
///     let pod = std::sync::Arc::new(pod(name).request("cpu", "900m").info());
///     let plan = planner.plan(0, &pod, &[]);
///     let node = plan.node(&planner).expect("room").to_owned();
///     assert!(expected.is_none_or(|expected| expected == node));
///     planner.place(&pod, &node);
/// }
/// ```
pub struct Planner {
    profiles: Arc<[Profile]>,
    snapshot: Snapshot,
    /// The last changes of pods, of what nodes offer, and of the kinds that classes may depend on.
    log: VecDeque<Logged>,
    /// The number of the first one in the log.
    first: u64,
    /// Raised when nodes come, go, or change in what rules for many pods look at: all that is kept is void then.
    epoch: u64,
    topologies: HashMap<Arc<str>, Arc<Topology>, RandomState>,
    topologies_epoch: u64,
    /// The one that was needed last comes first.
    classes: Vec<Class>,
    made: u64,
}

enum Logged {
    Pod {
        pod: Arc<PodInfo>,
        node: NodeIndex,
        came: bool,
    },
    /// What a node offers, and how many nodes have these images.
    Node {
        node: NodeIndex,
        images: Vec<Arc<str>>,
    },
    /// Objects of a kind.
    Kind(TypeId),
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planner")
            .field("snapshot", &self.snapshot)
            .field("classes", &self.classes.len())
            .finish_non_exhaustive()
    }
}

/// Where a pod goes.
#[derive(Debug)]
pub enum Plan {
    /// To this node; no more is known than that it is the best one.
    Node(NodeIndex),
    /// The decision in full: because there is no node, or because a plug-in must be asked anew for each pod.
    Decision(Box<Decision>),
}

impl Plan {
    /// The node's name, if there is one.
    #[must_use]
    pub fn node<'a>(&'a self, planner: &'a Planner) -> Option<&'a str> {
        match self {
            Self::Node(index) => Some(planner.snapshot.node(*index).name()),
            Self::Decision(decision) => decision.node(),
        }
    }
}

impl Planner {
    /// Without nodes, for pods of these profiles.
    #[must_use]
    pub fn new(profiles: Arc<[Profile]>) -> Self {
        Self::with_snapshot(profiles, Snapshot::new())
    }

    /// Begins with this state of the cluster.
    #[must_use]
    pub fn with_snapshot(profiles: Arc<[Profile]>, snapshot: Snapshot) -> Self {
        Self {
            profiles,
            snapshot,
            log: VecDeque::new(),
            first: 0,
            epoch: 0,
            topologies: HashMap::default(),
            topologies_epoch: 0,
            classes: Vec::new(),
            made: 0,
        }
    }

    /// How often all nodes had to be asked for a class of equal pods, because nothing was kept for it or that had become void.
    #[must_use]
    pub fn classes_made(&self) -> u64 {
        self.made
    }

    /// The state of the cluster.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// As [`Snapshot::set_node`].
    pub fn set_node(&mut self, node: impl Into<Arc<NodeInfo>>) {
        let node = node.into();
        match self.snapshot.find(&node.name).map(|index| (index, self.snapshot.node(index).info())) {
            Some((_, known)) if known.same_for_scheduling(&node) => {}
            Some((index, known)) if known.same_for_rules(&node) => {
                let differs = |image: &&Arc<str>| known.images.get(*image) != node.images.get(*image);
                let images = known.images.keys().chain(node.images.keys()).filter(differs);
                let images = images.cloned().collect();
                self.note(Logged::Node { node: index, images });
            }
            _ => self.forget(),
        }
        self.snapshot.set_node(node);
    }

    /// As [`Snapshot::remove_node`].
    pub fn remove_node(&mut self, name: &str) {
        if self.snapshot.find(name).is_some() {
            self.forget();
        }
        self.snapshot.remove_node(name);
    }

    /// As [`Snapshot::place`].
    pub fn place(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.note_leaving(&pod.uid);
        self.snapshot.place(pod, node);
        if let Some(node) = self.snapshot.find(node) {
            self.note(Logged::Pod { pod: Arc::clone(pod), node, came: true });
        }
    }

    /// Puts a pod in the place of itself, on the same node, when it asks for the same and is the same for others: nothing that is
    /// kept changes.
    pub(crate) fn confirm(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.snapshot.place(pod, node);
    }

    /// As [`Snapshot::remove_pod`].
    pub fn remove_pod(&mut self, uid: &str) -> bool {
        self.note_leaving(uid);
        self.snapshot.remove_pod(uid)
    }

    /// As [`Interest::apply`].
    pub fn object_changed(&mut self, interest: &Interest, change: &Change) -> Option<ClusterEvent> {
        // A status says nothing about where pods may go, where there is a generation that tells it from the rest.
        let is_status = change.old.as_ref().zip(change.new.as_ref()).is_some_and(|(old, new)| {
            let (old, new) = (old.header(), new.header());
            old.generation > 0 && old.generation == new.generation && old.labels == new.labels
        });
        if !is_status {
            self.note(Logged::Kind(interest.kind()));
        }
        interest.apply(self.snapshot.catalog_mut(), change)
    }

    /// Has plug-ins book, or give back, what the pod needs besides its place.
    pub fn book<T>(
        &mut self,
        cycle: &mut CycleState,
        pod: &Arc<PodInfo>,
        node: &Arc<str>,
        book: impl FnOnce(&mut Booking<'_>) -> T,
    ) -> T {
        let before = self.snapshot.catalog().edition();
        let done = book(&mut Booking::new(cycle, pod, node, &mut self.snapshot));
        let changed: SmallVec<[TypeId; 4]> = self.snapshot.catalog().changed_since(before).collect();
        for kind in changed {
            self.note(Logged::Kind(kind));
        }
        done
    }

    fn forget(&mut self) {
        self.epoch += 1;
        self.first += self.log.len() as u64;
        self.log.clear();
    }

    fn note_leaving(&mut self, uid: &str) {
        let Some(pod) = self.snapshot.pod(uid) else { return };
        let node = self.snapshot.node_of(uid).and_then(|node| self.snapshot.find(node));
        if let Some(node) = node {
            self.note(Logged::Pod { pod: Arc::clone(pod), node, came: false });
        }
    }

    fn note(&mut self, change: Logged) {
        if self.classes.is_empty() {
            return;
        }
        if self.log.len() == CHANGES_MAX {
            self.log.pop_front();
            self.first += 1;
        }
        self.log.push_back(change);
    }

    fn position(&self) -> u64 {
        self.first + self.log.len() as u64
    }

    /// The changes from a position on; `None` when some of them are not kept any more.
    fn changes_since(&self, position: u64) -> Option<impl Iterator<Item = &Logged>> {
        let skip = usize::try_from(position.checked_sub(self.first)?).ok()?;
        Some(self.log.range(skip.min(self.log.len())..))
    }

    /// Decides about a pod of the profile with this number.
    ///
    /// # Panics
    /// When there is no such profile.
    pub fn plan(&mut self, profile: usize, pod: &Arc<PodInfo>, nominated: &[Nominated]) -> Plan {
        let meter = Meter::none(&self.profiles[profile].scheduler_name);
        self.plan_measured(profile, pod, nominated, &meter)
    }

    /// As [`plan`](Self::plan), for the pod's try with this number; how long the extension points take goes to `metrics`, and for
    /// a [sample](crate::metrics::PLUGIN_SAMPLE_PERCENT) of pods how long each plug-in takes.
    ///
    /// # Panics
    /// When there is no such profile.
    pub fn plan_with_metrics(
        &mut self,
        profile: usize,
        pod: &Arc<PodInfo>,
        nominated: &[Nominated],
        metrics: &Metrics,
        attempt: u32,
    ) -> Plan {
        self.plan_measured(profile, pod, nominated, &Meter::new(metrics, pod, attempt))
    }

    /// As [`plan`](Self::plan); how long what took goes to the meter.
    pub(crate) fn plan_measured(
        &mut self,
        profile: usize,
        pod: &Arc<PodInfo>,
        nominated: &[Nominated],
        meter: &Meter,
    ) -> Plan {
        let nominations = Nominations::new(nominated, pod, &self.snapshot);
        let contested: Vec<NodeIndex> = nominations.others.iter().map(|(node, _)| *node).collect();
        // A pod for which room was made is tried there first. Whoever acts on the decision may want the notes.
        if nominations.own.is_none() && !self.profiles[profile].points.concern(pod, self.snapshot.catalog()) {
            let begin = meter.begin();
            let found = self.quick(profile, pod, &contested, meter);
            meter.hint(found.is_some(), begin);
            if let Some(node) = found {
                return Plan::Node(node);
            }
        }
        let profile = &self.profiles[profile];
        Plan::Decision(Box::new(decide_measured(profile, &self.snapshot, pod, nominated, meter)))
    }

    fn quick(
        &mut self,
        profile: usize,
        pod: &Arc<PodInfo>,
        contested: &[NodeIndex],
        meter: &Meter,
    ) -> Option<NodeIndex> {
        let found = self.classes.iter().position(|class| class.has(profile, pod));
        let known = found.map(|at| self.classes.remove(at)).and_then(|class| {
            let caught_up = self.caught_up(class);
            caught_up.inspect_err(|reason| meter.flushed(reason)).ok()
        });
        let class = match known {
            Some(class) => class,
            None => {
                if self.topologies_epoch != self.epoch {
                    self.topologies.clear();
                    self.topologies_epoch = self.epoch;
                }
                let (epoch, position) = (self.epoch, self.position());
                let (profiles, begin) = (Arc::clone(&self.profiles), meter.begin());
                let mut class =
                    Class::new(&profiles[profile], profile, pod, &self.snapshot, &mut self.topologies);
                (class.epoch, class.position) = (epoch, position);
                self.made += 1;
                meter.stored(begin);
                class
            }
        };
        self.classes.insert(0, class);
        self.classes.truncate(CLASSES_MAX);
        let seed = self.profiles[profile].seed;
        self.classes[0].choose(&self.snapshot, seed, pod, contested)
    }

    /// The class with all changes taken over, if that can be done; else why it can't. (Upstream keeps one list of nodes, so its reasons
    /// are others.)
    fn caught_up(&self, mut class: Class) -> Result<Class, &'static str> {
        if class.epoch != self.epoch {
            return Err("nodes_changed");
        }
        for change in self.changes_since(class.position).ok_or("expired")? {
            let taken_over = match change {
                Logged::Pod { pod, node, came } => {
                    class.pod_changed(PodChange { pod, node: *node, came: *came })
                }
                Logged::Node { node, images } => class.node_changed(*node, images),
                Logged::Kind(kind) => !class.reads.all && !class.reads.kinds.contains(kind),
            };
            if !taken_over {
                return Err("objects_changed");
            }
        }
        class.position = self.position();
        class.renew(&self.snapshot);
        Ok(class)
    }
}
