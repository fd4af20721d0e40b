//! What a Deployment's ReplicaSets should be, given what they are: no I/O.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::{
    apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetStatus},
    core::v1::PodTemplateSpec,
};

use super::{annotations, status};
use crate::controllers::{percent::scaled, replica_set::to_i32, revisions::safe_encode};

/// The label that tells the pods of one template from those of another.
pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// A ReplicaSet, as it is and as it should be.
#[derive(Clone, Debug)]
pub(super) struct Set {
    /// As it is; `None` for one that is to be made.
    pub(super) object: Option<Arc<ReplicaSet>>,
    pub(super) name: String,
    pub(super) replicas: i32,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) min_ready_seconds: Option<i32>,
    pub(super) deleted: bool,
}

impl Set {
    fn of(object: &Arc<ReplicaSet>) -> Self {
        Self {
            name: object.metadata.name.clone().unwrap_or_default(),
            replicas: object.spec.replicas.unwrap_or(1),
            annotations: object.metadata.annotations.clone().unwrap_or_default(),
            min_ready_seconds: object.spec.min_ready_seconds,
            deleted: false,
            object: Some(Arc::clone(object)),
        }
    }

    /// The status that the set reports; all zero for one that is to be made.
    pub(super) fn status(&self) -> &ReplicaSetStatus {
        static NONE: std::sync::LazyLock<ReplicaSetStatus> =
            std::sync::LazyLock::new(ReplicaSetStatus::default);
        self.object.as_ref().and_then(|object| object.status.as_ref()).unwrap_or(&NONE)
    }

    fn available(&self) -> i32 {
        self.status().available_replicas.unwrap_or_default()
    }

    /// How many of its pods stay available: what its status says may be from before it was told to have fewer. (Upstream goes
    /// by the status alone here, and can fall below the minimum that way.)
    fn stays_available(&self) -> i32 {
        self.available().min(self.replicas)
    }

    /// Whether the status is from before the set was told what it should be now: a set that was made smaller and larger again may
    /// count pods that have gone. (Upstream does not look at that, and can fall below the minimum that way.)
    fn is_behind(&self) -> bool {
        let generation = self.object.as_ref().and_then(|object| object.metadata.generation);
        self.status().observed_generation.unwrap_or_default() < generation.unwrap_or_default()
    }

    /// Sorts sets from the oldest to the newest.
    fn age_key(&self) -> (Timestamp, String) {
        let created = self.object.as_ref().and_then(|object| object.metadata.creation_timestamp.as_ref());
        (created.map_or(Timestamp::MAX, |time| time.0), self.name.clone())
    }
}

/// What is known of a Deployment.
pub(super) struct View<'a> {
    pub(super) deployment: &'a Deployment,
    /// The sets that belong to it.
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    /// The uids of sets that have pods which have not ended.
    pub(super) sets_with_pods: Vec<String>,
    pub(super) now: Timestamp,
}

/// What is to be done about a Deployment.
pub(super) struct Decision {
    /// Every set, as it should be.
    pub(super) sets: Vec<Set>,
    /// The value of the Deployment's revision annotation.
    pub(super) revision: Option<String>,
    pub(super) status: DeploymentStatus,
}

impl Decision {
    /// Whether a set gets more replicas than it has, or is made with some.
    pub(super) fn grows(&self) -> bool {
        let has = |set: &Set| set.object.as_ref().map_or(0, |object| object.spec.replicas.unwrap_or(1));
        self.sets.iter().any(|set| set.replicas > has(set))
    }
}

pub(super) fn replicas_of(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
    strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
}

/// `maxSurge` and `maxUnavailable` as numbers of pods. They are not both zero, for then nothing could move.
pub(super) fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    if !is_rolling(deployment) {
        return (0, 0);
    }
    let wanted = replicas_of(deployment);
    let rolling = deployment.spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let surge = scaled(rolling.and_then(|rolling| rolling.max_surge.as_ref()), wanted, true);
    let unavailable = scaled(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), wanted, false);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    // Together with what is wanted it stays a number of replicas, for all that is reckoned from both.
    let surge = surge.min(i32::MAX - wanted.max(0));
    (surge, if wanted == 0 { 0 } else { unavailable.min(wanted) })
}

/// Whether two templates differ at most in the label that the controller adds.
pub(super) fn same_template(one: &PodTemplateSpec, two: &PodTemplateSpec) -> bool {
    let without_hash = |template: &PodTemplateSpec| {
        let mut metadata = template.metadata.clone().unwrap_or_default();
        let labels = metadata.labels.take().unwrap_or_default();
        (metadata, labels.into_iter().filter(|(key, _)| key != HASH_LABEL).collect::<BTreeMap<_, _>>())
    };
    one.spec == two.spec && without_hash(one) == without_hash(two)
}

/// The hash of a template that becomes part of a set's name. The digest is FNV-1a as upstream's; what it is taken over is
/// the template's JSON.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let json = serde_json::to_vec(template).unwrap_or_default();
    let salt = collisions.map(|count| [count.to_le_bytes(), [0; 4]].concat()).unwrap_or_default();
    let hash = json
        .iter()
        .chain(&salt)
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    safe_encode(hash)
}

/// The name of the set for a template.
fn set_name(deployment: &str, hash: &str) -> String {
    const NAME_BYTES_MAX: usize = 253;
    let room = NAME_BYTES_MAX.saturating_sub(hash.len() + 1);
    format!("{}-{hash}", deployment.get(..room).unwrap_or(deployment))
}

/// Decides what to do about a Deployment that is not being deleted: upstream's `syncDeployment` in one piece. Only the
/// first step that changes a set is decided; the next is when its outcome is seen.
pub(super) fn decide(view: View<'_>) -> Decision {
    let deployment = view.deployment;
    let mut sets: Vec<Set> = view.sets.iter().map(Set::of).collect();
    sets.sort_by_cached_key(Set::age_key);
    let is_new = |set: &Set| {
        let template = set.object.as_ref().and_then(|object| object.spec.template.as_ref());
        template.is_some_and(|template| same_template(template, &deployment.spec.template))
    };
    let new = sets.iter().position(is_new);
    let base = deployment.status.clone().unwrap_or_default();
    let mut rollout = Rollout { deployment, sets, new, base, revision: None, now: view.now };
    rollout.note_pause();
    let paused = deployment.spec.paused.unwrap_or_default();
    rollout.sync_new();
    if paused || rollout.is_scaling() {
        rollout.scale();
        if paused {
            rollout.clean_up();
        }
        return rollout.finish(false);
    }
    if is_rolling(deployment) {
        rollout.roll()
    } else {
        rollout.recreate(&view.sets_with_pods)
    }
    rollout.finish(true)
}

/// The status of a Deployment that is being deleted; nothing else happens to it.
pub(super) fn status_only(view: View<'_>) -> DeploymentStatus {
    let sets: Vec<Set> = view.sets.iter().map(Set::of).collect();
    let base = view.deployment.status.clone().unwrap_or_default();
    let new = None;
    Rollout { deployment: view.deployment, sets, new, base, revision: None, now: view.now }
        .finish(false)
        .status
}

struct Rollout<'a> {
    deployment: &'a Deployment,
    /// From the oldest to the newest.
    sets: Vec<Set>,
    /// Which of them has the newest template.
    new: Option<usize>,
    /// The status as it is, with the conditions that this look has added.
    base: DeploymentStatus,
    revision: Option<String>,
    now: Timestamp,
}

impl Rollout<'_> {
    fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let new = self.new;
        (0..self.sets.len()).filter(move |index| Some(*index) != new)
    }

    fn asked(&self) -> i32 {
        self.sets.iter().fold(0, |sum: i32, set| sum.saturating_add(set.replicas))
    }

    fn condition(&mut self, status: &str, reason: &str, message: impl Into<String>) {
        let condition = status::new_condition(status::PROGRESSING, status, reason, message, self.now);
        status::set_condition(&mut self.base, condition);
    }

    fn note_pause(&mut self) {
        let known = status::condition(&self.base, status::PROGRESSING);
        let reason = known.and_then(|known| known.reason.as_deref());
        if status::deadline(self.deployment).is_none() || reason == Some(status::TIMED_OUT) {
            return;
        }
        let noted = reason == Some(status::PAUSED);
        match self.deployment.spec.paused.unwrap_or_default() {
            true if !noted => self.condition("Unknown", status::PAUSED, "Deployment is paused"),
            false if noted => self.condition("Unknown", status::RESUMED, "Deployment is resumed"),
            _ => {}
        }
    }

    /// The revision that the newest template should have: one more than that of any other.
    fn next_revision(&self) -> i64 {
        let revisions = self.old().filter_map(|index| annotations::revision(&self.sets[index].annotations));
        revisions.max().unwrap_or_default().max(0) + 1
    }

    /// Brings annotations, revision and `minReadySeconds` of the newest set in line.
    fn sync_new(&mut self) {
        let Some(new) = self.new else { return };
        let revision = self.next_revision();
        let set = &mut self.sets[new];
        annotations::sync(self.deployment, &mut set.annotations, revision);
        if set.min_ready_seconds.unwrap_or_default()
            != self.deployment.spec.min_ready_seconds.unwrap_or_default()
        {
            set.min_ready_seconds = Some(self.deployment.spec.min_ready_seconds.unwrap_or_default());
        }
        self.revision = set.annotations.get(annotations::REVISION).cloned();
        let name = set.name.clone();
        let unknown = status::condition(&self.base, status::PROGRESSING).is_none();
        if unknown && status::deadline(self.deployment).is_some() {
            self.condition("True", "FoundNewReplicaSet", format!("Found new replica set \"{name}\""));
        }
    }

    /// Makes the set of the newest template, if there is none.
    fn create_new(&mut self) {
        if self.new.is_some() {
            return;
        }
        let hash = template_hash(&self.deployment.spec.template, self.base.collision_count);
        let mut set = Set {
            object: None,
            name: set_name(self.deployment.metadata.name.as_deref().unwrap_or_default(), &hash),
            replicas: 0,
            annotations: BTreeMap::new(),
            min_ready_seconds: self.deployment.spec.min_ready_seconds,
            deleted: false,
        };
        let revision = self.next_revision();
        annotations::sync(self.deployment, &mut set.annotations, revision);
        self.revision = Some(revision.to_string());
        let name = set.name.clone();
        self.new = Some(self.sets.len());
        self.sets.push(set);
        let index = self.sets.len() - 1;
        self.sets[index].replicas = self.new_replicas(index);
        self.annotate(index);
        if status::deadline(self.deployment).is_some() {
            self.condition("True", "NewReplicaSetCreated", format!("Created new replica set \"{name}\""));
        }
    }

    /// How many replicas the newest set may have now.
    fn new_replicas(&self, new: usize) -> i32 {
        let wanted = replicas_of(self.deployment);
        if !is_rolling(self.deployment) {
            return wanted;
        }
        let has = self.sets[new].replicas;
        let room = wanted + fenceposts(self.deployment).0 - self.asked();
        if room <= 0 { has } else { has + room.min(wanted - has) }
    }

    fn annotate(&mut self, index: usize) {
        let wanted = replicas_of(self.deployment);
        let most = wanted + fenceposts(self.deployment).0;
        annotations::set_replicas(&mut self.sets[index].annotations, wanted, most);
    }

    fn resize(&mut self, index: usize, replicas: i32) -> bool {
        if self.sets[index].replicas == replicas {
            return false;
        }
        self.sets[index].replicas = replicas;
        self.annotate(index);
        true
    }

    /// Whether the number of replicas asked for has changed since the sets were last sized.
    fn is_scaling(&self) -> bool {
        let wanted = replicas_of(self.deployment);
        self.sets.iter().filter(|set| set.replicas > 0).any(|set| {
            annotations::number(&set.annotations, annotations::DESIRED)
                .is_some_and(|desired| desired != wanted)
        })
    }

    /// Brings the sets to a new size without moving replicas between them.
    fn scale(&mut self) {
        let wanted = replicas_of(self.deployment);
        let active: Vec<usize> =
            (0..self.sets.len()).filter(|index| self.sets[*index].replicas > 0).collect();
        if active.len() <= 1 {
            let newest_old = self.old().last();
            if let Some(only) = active.first().copied().or(self.new).or(newest_old) {
                self.resize(only, wanted);
                // Also where it has that size already: what it says was wanted before would stop every rollout from now on, as it
                // does upstream.
                self.annotate(only);
            }
            return;
        }
        if let Some(new) = self.new
            && self.is_saturated(new)
        {
            let old: Vec<usize> = self.old().collect();
            for index in old {
                self.resize(index, 0);
            }
            return;
        }
        if is_rolling(self.deployment) {
            self.scale_in_proportion(active);
        }
    }

    fn is_saturated(&self, new: usize) -> bool {
        let (set, wanted) = (&self.sets[new], replicas_of(self.deployment));
        let desired = annotations::number(&set.annotations, annotations::DESIRED);
        set.replicas == wanted && desired == Some(wanted) && set.available() == wanted && !set.is_behind()
    }

    /// Shares out what is to be added or taken away by the sets' sizes, so that a rollout under way stays balanced.
    fn scale_in_proportion(&mut self, mut active: Vec<usize>) {
        let wanted = replicas_of(self.deployment);
        let most = if wanted > 0 { wanted + fenceposts(self.deployment).0 } else { 0 };
        let to_add =
            most - active.iter().fold(0_i32, |sum, index| sum.saturating_add(self.sets[*index].replicas));
        // Sets of equal size: the newest grows first, the oldest shrinks first. Indexes are in the order of age.
        let size = |sets: &[Set], index: usize| std::cmp::Reverse(sets[index].replicas);
        if to_add > 0 {
            active.reverse();
        }
        if to_add != 0 {
            active.sort_by_key(|index| size(&self.sets, *index));
        }
        let mut added = 0;
        let mut sizes = Vec::with_capacity(active.len());
        for index in &active {
            let share = if to_add == 0 { 0 } else { self.share(*index, most, to_add, added) };
            added += share;
            sizes.push(self.sets[*index].replicas + share);
        }
        if let Some(first) = sizes.first_mut()
            && to_add != 0
        {
            *first = (*first + to_add - added).max(0);
        }
        for (index, size) in active.into_iter().zip(sizes) {
            self.sets[index].replicas = size;
            self.annotate(index);
        }
    }

    fn share(&self, index: usize, most: i32, to_add: i32, added: i32) -> i32 {
        let set = &self.sets[index];
        if to_add == added {
            return 0;
        }
        let fraction = if replicas_of(self.deployment) == 0 {
            -set.replicas
        } else {
            let before = annotations::number(&set.annotations, annotations::MAX).filter(|most| *most != 0);
            let reported = self.base.replicas.filter(|replicas| *replicas != 0);
            match before.or(reported) {
                None => 0,
                Some(before) => {
                    let size = f64::from(set.replicas) * f64::from(most) / f64::from(before);
                    #[allow(
                        clippy::cast_possible_truncation,
                        reason = "sizes are far below the limits of an i32"
                    )]
                    let size = size.round() as i32;
                    size - set.replicas
                }
            }
        };
        let allowed = to_add - added;
        if to_add > 0 { fraction.min(allowed) } else { fraction.max(allowed) }
    }

    /// One step of a rolling update.
    fn roll(&mut self) {
        self.create_new();
        let Some(new) = self.new else { return };
        let wanted = replicas_of(self.deployment);
        let target = if self.sets[new].replicas > wanted { wanted } else { self.new_replicas(new) };
        if self.resize(new, target) || self.shrink_old(new) {
            return;
        }
        if status::is_complete(self.deployment, &self.base) {
            self.clean_up();
        }
    }

    fn shrink_old(&mut self, new: usize) -> bool {
        let mut old: Vec<usize> = self.old().filter(|index| self.sets[*index].replicas > 0).collect();
        old.sort_by_cached_key(|index| self.sets[*index].age_key());
        // What is not known can't be counted on; the next status is the next look.
        if old.is_empty() || self.sets.iter().any(Set::is_behind) {
            return false;
        }
        let least = replicas_of(self.deployment) - fenceposts(self.deployment).1;
        let new_unavailable = self.sets[new].replicas - self.sets[new].stays_available();
        let room = self.asked() - least - new_unavailable;
        if room <= 0 {
            return false;
        }
        // Replicas that do not work anyway go first.
        let mut unhealthy = 0;
        for index in &old {
            let set = &self.sets[*index];
            let count = (set.replicas - set.available()).min(room - unhealthy);
            if count > 0 {
                unhealthy += count;
                self.resize(*index, self.sets[*index].replicas - count);
            }
        }
        let available: i32 = old.iter().chain([&new]).map(|index| self.sets[*index].stays_available()).sum();
        let (mut healthy, surplus) = (0, available - least);
        for index in old {
            let count = self.sets[index].replicas.min(surplus - healthy);
            if count > 0 {
                healthy += count;
                self.resize(index, self.sets[index].replicas - count);
            }
        }
        unhealthy + healthy > 0
    }

    /// One step of a rollout that stops everything old before anything new starts.
    fn recreate(&mut self, sets_with_pods: &[String]) {
        let old: Vec<usize> = self.old().collect();
        let mut shrunk = false;
        for index in &old {
            shrunk |= self.resize(*index, 0);
        }
        let new_uid = self.new.and_then(|new| self.sets[new].object.as_ref()?.metadata.uid.clone());
        let running = old.iter().any(|index| self.sets[*index].status().replicas > 0)
            || sets_with_pods.iter().any(|uid| Some(uid) != new_uid.as_ref());
        if shrunk || running {
            return;
        }
        self.create_new();
        if let Some(new) = self.new {
            self.resize(new, replicas_of(self.deployment));
        }
        if status::is_complete(self.deployment, &self.base) {
            self.clean_up();
        }
    }

    /// Deletes the oldest sets that are empty, beyond the limit of the history.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.revision_history_limit.filter(|limit| *limit != i32::MAX)
        else {
            return;
        };
        let alive =
            |set: &Set| set.object.as_ref().is_some_and(|set| set.metadata.deletion_timestamp.is_none());
        let mut old: Vec<usize> = self.old().filter(|index| alive(&self.sets[*index])).collect();
        let surplus = to_i32(old.len()) - limit;
        old.sort_by_cached_key(|index| {
            annotations::revision(&self.sets[*index].annotations).unwrap_or_default()
        });
        for index in old.into_iter().take(usize::try_from(surplus).unwrap_or_default()) {
            let set = &mut self.sets[index];
            let generation =
                set.object.as_ref().and_then(|object| object.metadata.generation).unwrap_or_default();
            let seen = set.status().observed_generation.unwrap_or_default();
            set.deleted = set.status().replicas == 0 && set.replicas == 0 && generation <= seen;
        }
    }

    fn finish(self, rolling_out: bool) -> Decision {
        let unavailable = fenceposts(self.deployment).1;
        let mut status =
            status::counts(self.deployment, &self.base, &self.sets, self.new, unavailable, self.now);
        if rolling_out {
            status::add_progress(self.deployment, &self.base, &mut status, &self.sets, self.new, self.now);
        }
        Decision { sets: self.sets, revision: self.revision, status }
    }
}
