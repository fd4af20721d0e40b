//! Deciding about many pods, most of which are like others.

mod class;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
};

use ahash::RandomState;
use kreconcile::Change;

use crate::{
    booking::Booking,
    cycle::decide_among,
    decision::Decision,
    event::ClusterEvent,
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
/// answers are kept, and after a change only those are renewed that it concerns. The choice is the one that
/// [`decide_among`] would make; where that can't be told from what is kept, `decide_among` makes it.
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
    /// The last changes of pods.
    log: VecDeque<Logged>,
    /// The number of the first one in the log.
    first: u64,
    /// Raised when nodes or other objects change: all that is kept is void then.
    epoch: u64,
    topologies: HashMap<Arc<str>, Arc<Topology>, RandomState>,
    topologies_epoch: u64,
    /// The one that was needed last comes first.
    classes: Vec<Class>,
}

struct Logged {
    pod: Arc<PodInfo>,
    node: NodeIndex,
    came: bool,
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
        }
    }

    /// The state of the cluster.
    #[must_use]
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// As [`Snapshot::set_node`].
    pub fn set_node(&mut self, node: impl Into<Arc<NodeInfo>>) {
        let node = node.into();
        let known = self.snapshot.find(&node.name).map(|index| self.snapshot.node(index));
        if known.is_none_or(|known| !known.info().same_for_scheduling(&node)) {
            self.forget();
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
            self.note(Logged { pod: Arc::clone(pod), node, came: true });
        }
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
            self.forget();
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
        if self.snapshot.catalog().edition() != before {
            self.forget();
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
            self.note(Logged { pod: Arc::clone(pod), node, came: false });
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
    fn changes_since(&self, position: u64) -> Option<impl Iterator<Item = PodChange<'_>>> {
        let skip = usize::try_from(position.checked_sub(self.first)?).ok()?;
        let changes = self.log.iter().skip(skip);
        Some(changes.map(|logged| PodChange { pod: &logged.pod, node: logged.node, came: logged.came }))
    }

    /// Decides about a pod of the profile with this number.
    ///
    /// # Panics
    /// When there is no such profile.
    pub fn plan(&mut self, profile: usize, pod: &Arc<PodInfo>, nominated: &[Nominated]) -> Plan {
        let nominations = Nominations::new(nominated, pod, &self.snapshot);
        let contested: Vec<NodeIndex> = nominations.others.iter().map(|(node, _)| *node).collect();
        // A pod for which room was made is tried there first. Whoever acts on the decision may want the notes.
        if nominations.own.is_none()
            && !self.profiles[profile].points.concern(pod, self.snapshot.catalog())
            && let Some(node) = self.quick(profile, pod, &contested)
        {
            return Plan::Node(node);
        }
        Plan::Decision(Box::new(decide_among(&self.profiles[profile], &self.snapshot, pod, nominated)))
    }

    fn quick(&mut self, profile: usize, pod: &Arc<PodInfo>, contested: &[NodeIndex]) -> Option<NodeIndex> {
        let found = self.classes.iter().position(|class| class.has(profile, pod));
        let known = found.map(|at| self.classes.remove(at)).and_then(|class| self.caught_up(class));
        let class = match known {
            Some(class) => class,
            None => {
                if self.topologies_epoch != self.epoch {
                    self.topologies.clear();
                    self.topologies_epoch = self.epoch;
                }
                let (epoch, position) = (self.epoch, self.position());
                let profiles = Arc::clone(&self.profiles);
                let mut class =
                    Class::new(&profiles[profile], profile, pod, &self.snapshot, &mut self.topologies);
                (class.epoch, class.position) = (epoch, position);
                class
            }
        };
        self.classes.insert(0, class);
        self.classes.truncate(CLASSES_MAX);
        let seed = self.profiles[profile].seed;
        self.classes[0].choose(&self.snapshot, seed, pod, contested)
    }

    /// The class with all changes taken over, if that can be done.
    fn caught_up(&self, mut class: Class) -> Option<Class> {
        if class.epoch != self.epoch {
            return None;
        }
        for change in self.changes_since(class.position)? {
            if !class.pod_changed(change) {
                return None;
            }
        }
        class.position = self.position();
        class.renew(&self.snapshot);
        Some(class)
    }
}
