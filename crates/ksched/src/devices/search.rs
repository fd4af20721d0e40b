//! The search for devices (upstream's `allocateOne`): one claim after the other, one request after the other, one device
//! after the other, going back to the last choice whenever there is no way on. The choices made are kept in a list, not on
//! the stack, as claims decide how many there are.

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;
use k8s_openapi::api::resource::v1::AllocationResult;
use kcore::Quantity;
use smallvec::SmallVec;

use crate::{
    devices::{
        AllocateError,
        allocated::Allocated,
        capacity::{consumed, fits},
        constraint::Chosen,
        counters::CounterState,
        demand::{Demand, Mode, Wanted},
        inventory::{DeviceInfo, Inventory, SliceInfo},
        pool::{Pool, PoolState, pools},
        result, selector,
    },
    node::NodeInfo,
};

/// How many devices a claim can have (`AllocationResultsMaxSize`).
pub const RESULTS_MAX: usize = 32;
/// How many steps a search may take, unless something else is [asked for](allocate_within); upstream limits the time instead
/// (`filterTimeout`, ten seconds), which would have the answer depend on the machine. Tasks that few steps solve are the rule, but
/// some take more than there are atoms.
pub const STEPS_MAX: u64 = 1_000_000;
/// How many steps can be asked for at most.
pub const STEPS_LIMIT_MAX: u64 = 100 * STEPS_MAX;

/// Gives each claim its devices, in the order of the demand; `None` when not all of them can have what they need on this
/// node. Taken together the results are consistent, and go well with what is allocated already.
///
/// Costs time in the order of the devices that the node can reach, and their selectors, as long as the first choices are
/// good ones.
///
/// # Errors
/// When the claims ask for something that can't be had, or can't be told; see [`AllocateError`].
pub fn allocate(
    demand: &Demand,
    inventory: &Inventory,
    allocated: &Allocated,
    node: &NodeInfo,
) -> Result<Option<Vec<AllocationResult>>, AllocateError> {
    allocate_within(STEPS_MAX, demand, inventory, allocated, node)
}

/// As [`allocate`], in so many steps; [`STEPS_LIMIT_MAX`] when it is more.
///
/// # Errors
/// As [`allocate`].
pub fn allocate_within(
    steps_max: u64,
    demand: &Demand,
    inventory: &Inventory,
    allocated: &Allocated,
    node: &NodeInfo,
) -> Result<Option<Vec<AllocationResult>>, AllocateError> {
    let pools = pools(inventory, node);
    let mut search = Search::new(demand, &pools, allocated, node);
    search.prepare().map_err(AllocateError::Claim)?;
    match search.run(steps_max.min(STEPS_LIMIT_MAX)) {
        Outcome::Found => {
            let claims = demand.claims.iter().enumerate();
            let results = claims.map(|(claim, of)| {
                let picks = &search.results[claim];
                result::of(of, picks, &search.candidates, &search.chosen_alternatives[claim], node)
            });
            results.collect::<Result<Vec<_>, _>>().map(Some).map_err(AllocateError::Claim)
        }
        Outcome::Error(error) => Err(error),
        Outcome::None | Outcome::TooMany => {
            let invalid = pools.iter().any(|pool| matches!(pool.state, PoolState::Invalid));
            if invalid { Err(AllocateError::InvalidPools) } else { Ok(None) }
        }
    }
}

/// A device that may be taken.
pub(super) struct Candidate<'a> {
    pub(super) pool: usize,
    pub(super) slice: &'a SliceInfo,
    pub(super) device: &'a DeviceInfo,
    /// Whether a claim has all of it.
    taken: bool,
    /// The claims of this search that get all of it; more than one only with admin access.
    takers: SmallVec<[usize; 2]>,
    /// What is taken of it in parts, before this search.
    shared: Option<&'a BTreeMap<String, Quantity>>,
    /// What this search takes in parts.
    sharing: Vec<BTreeMap<String, Quantity>>,
}

/// A device that was chosen.
#[derive(Clone, Debug)]
pub(super) struct Pick<'a> {
    pub(super) wanted: &'a Wanted,
    pub(super) candidate: usize,
    /// What is taken of a device that others share.
    pub(super) consumed: Option<BTreeMap<String, Quantity>>,
    /// Whether counters were taken for it.
    counted: bool,
}

/// Where the search is.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    claim: usize,
    request: usize,
    alternative: usize,
    device: usize,
}

/// A choice that can be made in another way.
enum Choice {
    /// The end of a claim: that the next one needs too many devices says nothing about the ones before.
    Claim,
    /// This alternative of a request; and whether all the ones before needed too many devices.
    Alternative(Place, bool),
    /// The next of all devices.
    All(Place),
    /// This candidate.
    Device(Place, usize),
}

enum Outcome {
    Found,
    None,
    /// The claim would have more than [`RESULTS_MAX`] devices.
    TooMany,
    Error(AllocateError),
}

enum Step {
    /// Go on with this device; inside of an alternative if so; from this candidate on.
    Enter(Place, bool, usize),
    Return(Outcome),
}

struct Search<'a> {
    demand: &'a Demand,
    pools: &'a [Pool<'a>],
    allocated: &'a Allocated,
    node: &'a NodeInfo,
    candidates: Vec<Candidate<'a>>,
    /// By the number of what is wanted: which candidates match its selectors, as far as known.
    matching: Vec<Vec<Option<bool>>>,
    /// By the number of what is wanted: the devices that are all.
    all: HashMap<usize, Vec<usize>, RandomState>,
    /// Per claim and constraint.
    chosen: Vec<Vec<Chosen>>,
    counters: HashMap<usize, CounterState, RandomState>,
    results: Vec<Vec<Pick<'a>>>,
    steps: u64,
    /// Per claim and request.
    chosen_alternatives: Vec<Vec<usize>>,
}

impl<'a> Search<'a> {
    fn new(demand: &'a Demand, pools: &'a [Pool<'a>], allocated: &'a Allocated, node: &'a NodeInfo) -> Self {
        let mut candidates = Vec::new();
        for (index, pool) in pools.iter().enumerate() {
            let PoolState::Complete { slices, .. } = &pool.state else { continue };
            for slice in slices {
                candidates.extend(slice.devices.iter().map(|device| Candidate {
                    pool: index,
                    slice,
                    device,
                    taken: allocated.is_taken(&device.id),
                    takers: SmallVec::new(),
                    shared: allocated.shared_capacity(&device.id),
                    sharing: Vec::new(),
                }));
            }
        }
        let claims = &demand.claims;
        Self {
            demand,
            pools,
            allocated,
            node,
            matching: vec![vec![None; candidates.len()]; demand.wanted],
            candidates,
            all: HashMap::default(),
            chosen: claims.iter().map(|claim| vec![Chosen::default(); claim.constraints.len()]).collect(),
            counters: HashMap::default(),
            results: vec![Vec::new(); claims.len()],
            steps: 0,
            chosen_alternatives: claims.iter().map(|claim| vec![0; claim.requests.len()]).collect(),
        }
    }

    /// Finds out what "all" is, and whether any claim needs too many devices in any case.
    fn prepare(&mut self) -> Result<(), String> {
        let demand = self.demand;
        for claim in &demand.claims {
            let mut least = 0_usize;
            for request in &claim.requests {
                let mut least_here = usize::MAX;
                for wanted in &request.alternatives {
                    if wanted.mode == Mode::All {
                        let all = self.find_all(&claim.label, wanted)?;
                        self.all.insert(wanted.number, all);
                    }
                    least_here = least_here.min(self.count(wanted));
                }
                least = least.saturating_add(least_here);
            }
            if least > RESULTS_MAX {
                return Err(format!(
                    "claim {}: number of requested devices {least} exceeds the claim limit of {RESULTS_MAX}",
                    claim.label
                ));
            }
        }
        Ok(())
    }

    fn find_all(&mut self, claim: &str, wanted: &Wanted) -> Result<Vec<usize>, String> {
        for pool in self.pools {
            let state = match pool.state {
                PoolState::Incomplete => "being updated",
                PoolState::Invalid => "invalid",
                PoolState::Complete { .. } => continue,
            };
            let (request, pool) = (&wanted.name, pool.name());
            return Err(format!(
                "claim {claim}, request {request}: asks for all devices, but resource pool {pool} is currently {state}"
            ));
        }
        let mut all = Vec::new();
        for candidate in 0..self.candidates.len() {
            if self.matches(wanted, candidate)? && self.has_capacity(wanted, candidate) {
                all.push(candidate);
            }
        }
        Ok(all)
    }

    fn count(&self, wanted: &Wanted) -> usize {
        match wanted.mode {
            Mode::Count(count) => count,
            Mode::All => self.all.get(&wanted.number).map_or(0, Vec::len),
        }
    }

    fn run(&mut self, steps_max: u64) -> Outcome {
        let mut choices = Vec::new();
        let mut step = Step::Enter(Place::default(), false, 0);
        while self.steps < steps_max {
            self.steps += 1;
            step = match step {
                Step::Enter(place, inside, from) => self.enter(place, inside, from, &mut choices),
                Step::Return(outcome) => match choices.pop() {
                    Some(choice) => self.go_back(choice, outcome, &mut choices),
                    None => return outcome,
                },
            };
        }
        Outcome::Error(AllocateError::TooLong(self.node.name.to_string()))
    }

    fn enter(&mut self, place: Place, inside: bool, from: usize, choices: &mut Vec<Choice>) -> Step {
        let demand = self.demand;
        let Some(claim) = demand.claims.get(place.claim) else { return Step::Return(Outcome::Found) };
        let Some(request) = claim.requests.get(place.request) else {
            choices.push(Choice::Claim);
            return Step::Enter(Place { claim: place.claim + 1, ..Place::default() }, false, 0);
        };
        if request.is_prioritized && !inside {
            choices.push(Choice::Alternative(place, true));
            return Step::Enter(place, true, 0);
        }
        let wanted = &request.alternatives[place.alternative];
        let count = self.count(wanted);
        if wanted.mode == Mode::All && count == 0 {
            return Step::Return(Outcome::None);
        }
        if place.device >= count {
            let next = Place { claim: place.claim, request: place.request + 1, ..Place::default() };
            return Step::Enter(next, false, 0);
        }
        if self.results[place.claim].len().saturating_add(count - place.device) > RESULTS_MAX {
            return Step::Return(Outcome::TooMany);
        }
        if wanted.mode == Mode::Count(count) {
            return self.pick_from(place, wanted, from, choices);
        }
        let next = self.all.get(&wanted.number).and_then(|all| all.get(place.device)).copied();
        match next.map(|candidate| self.take(place.claim, wanted, candidate, true)) {
            Some(Ok(true)) => {
                choices.push(Choice::All(place));
                Step::Enter(Place { device: place.device + 1, ..place }, inside, 0)
            }
            Some(Err(error)) => Step::Return(Outcome::Error(AllocateError::Claim(error))),
            Some(Ok(false)) | None => Step::Return(Outcome::None),
        }
    }

    /// Takes the first device from here on that will do. Those of one request are taken in their order only, as they are
    /// equals there.
    fn pick_from(
        &mut self,
        place: Place,
        wanted: &'a Wanted,
        from: usize,
        choices: &mut Vec<Choice>,
    ) -> Step {
        for candidate in from..self.candidates.len() {
            match self.try_pick(place, wanted, candidate) {
                Ok(true) => {
                    choices.push(Choice::Device(place, candidate));
                    let next = Place { device: place.device + 1, ..place };
                    return Step::Enter(next, true, candidate + 1);
                }
                Ok(false) => {}
                Err(error) => return Step::Return(Outcome::Error(AllocateError::Claim(error))),
            }
        }
        Step::Return(Outcome::None)
    }

    fn try_pick(&mut self, place: Place, wanted: &'a Wanted, candidate: usize) -> Result<bool, String> {
        self.steps += 1;
        // What is cheap comes first.
        if !self.is_free(place.claim, wanted, candidate) || !self.matches(wanted, candidate)? {
            return Ok(false);
        }
        self.take(place.claim, wanted, candidate, false)
    }

    /// Makes a choice in another way, if there is one, when it has not led to the end.
    fn go_back(&mut self, choice: Choice, outcome: Outcome, choices: &mut Vec<Choice>) -> Step {
        match (choice, outcome) {
            (Choice::Claim, Outcome::TooMany) => Step::Return(Outcome::None),
            (Choice::Alternative(place, _), Outcome::Found) => {
                self.chosen_alternatives[place.claim][place.request] = place.alternative;
                Step::Return(Outcome::Found)
            }
            (Choice::Alternative(place, all_too_many), outcome @ (Outcome::None | Outcome::TooMany)) => {
                let all_too_many = all_too_many && matches!(outcome, Outcome::TooMany);
                let next = Place { alternative: place.alternative + 1, ..place };
                let request = &self.demand.claims[place.claim].requests[place.request];
                if next.alternative < request.alternatives.len() {
                    choices.push(Choice::Alternative(next, all_too_many));
                    return Step::Enter(next, true, 0);
                }
                Step::Return(if all_too_many { Outcome::TooMany } else { Outcome::None })
            }
            (
                Choice::All(place) | Choice::Device(place, _),
                outcome @ (Outcome::TooMany | Outcome::Error(_)),
            ) => {
                self.give_back(place.claim);
                Step::Return(outcome)
            }
            (Choice::All(place), Outcome::None) => {
                self.give_back(place.claim);
                Step::Return(Outcome::None)
            }
            (Choice::Device(place, candidate), Outcome::None) => {
                self.give_back(place.claim);
                let request = &self.demand.claims[place.claim].requests[place.request];
                self.pick_from(place, &request.alternatives[place.alternative], candidate + 1, choices)
            }
            (_, outcome) => Step::Return(outcome),
        }
    }

    fn is_free(&self, claim: usize, wanted: &Wanted, candidate: usize) -> bool {
        let Candidate { taken, takers, .. } = &self.candidates[candidate];
        if wanted.admin { !takers.contains(&claim) } else { !taken && takers.is_empty() }
    }

    fn matches(&mut self, wanted: &Wanted, candidate: usize) -> Result<bool, String> {
        if let Some(known) = self.matching[wanted.number][candidate] {
            return Ok(known);
        }
        let Candidate { slice, device, .. } = &self.candidates[candidate];
        let found = selector::matches(&wanted.selectors, device)?
            && (!slice.is_per_device() || device.reach.includes(self.node));
        self.matching[wanted.number][candidate] = Some(found);
        Ok(found)
    }

    fn has_capacity(&self, wanted: &Wanted, candidate: usize) -> bool {
        let Candidate { device, shared, sharing, .. } = &self.candidates[candidate];
        let taken: SmallVec<[_; 4]> = std::iter::once(*shared).chain(sharing.iter().map(Some)).collect();
        fits(&device.capacity, &wanted.capacity, &taken)
    }

    /// Takes a device that matches, if it is free and goes well with the others. If it `must` be this one, a constraint
    /// against it is an error: nobody can want that.
    fn take(
        &mut self,
        claim: usize,
        wanted: &'a Wanted,
        candidate: usize,
        must: bool,
    ) -> Result<bool, String> {
        let Candidate { pool, device, shared, sharing, .. } = &self.candidates[candidate];
        let (pool, device) = (*pool, *device);
        if !self.is_free(claim, wanted, candidate)
            || !self.has_capacity(wanted, candidate)
            || !wanted.tolerates(device.object.taints.as_ref())
        {
            return Ok(false);
        }
        // Whoever took the first part of a shared device has paid for it.
        let is_paid = device.is_shared && (shared.is_some() || !sharing.is_empty());
        let counted = !is_paid && !device.consumes.is_empty();
        if counted && !self.counters(pool).is_some_and(|counters| counters.take(device)) {
            return Ok(false);
        }
        if !self.meets_constraints(claim, wanted, device) {
            if counted && let Some(counters) = self.counters(pool) {
                counters.give_back(device);
            }
            if must {
                let (label, request) = (&self.demand.claims[claim].label, &wanted.name);
                return Err(format!(
                    "claim {label}, request {request}: cannot add device {} because a claim constraint would not be \
                     satisfied",
                    device.id.as_str()
                ));
            }
            return Ok(false);
        }
        let consumed = device.is_shared.then(|| consumed(&device.capacity, &wanted.capacity));
        match &consumed {
            Some(consumed) => self.candidates[candidate].sharing.push(consumed.clone()),
            None => self.candidates[candidate].takers.push(claim),
        }
        self.results[claim].push(Pick { wanted, candidate, consumed, counted });
        Ok(true)
    }

    fn meets_constraints(&mut self, claim: usize, wanted: &Wanted, device: &DeviceInfo) -> bool {
        let constraints = &self.demand.claims[claim].constraints;
        let chosen = &mut self.chosen[claim];
        for (index, constraint) in constraints.iter().enumerate() {
            if !chosen[index].add(constraint, wanted, device) {
                for (constraint, chosen) in constraints.iter().zip(&mut chosen[..index]) {
                    chosen.remove(constraint, wanted);
                }
                return false;
            }
        }
        true
    }

    /// Gives the last device back that was taken for a claim.
    fn give_back(&mut self, claim: usize) {
        let Some(Pick { wanted, candidate, consumed, counted }) = self.results[claim].pop() else { return };
        for (constraint, chosen) in self.demand.claims[claim].constraints.iter().zip(&mut self.chosen[claim])
        {
            chosen.remove(constraint, wanted);
        }
        let Candidate { pool, device, takers, sharing, .. } = &mut self.candidates[candidate];
        let (pool, device) = (*pool, *device);
        if consumed.is_some() {
            sharing.pop();
        } else {
            takers.retain(|taker| *taker != claim);
        }
        if counted && let Some(counters) = self.counters(pool) {
            counters.give_back(device);
        }
    }

    fn counters(&mut self, pool: usize) -> Option<&mut CounterState> {
        let PoolState::Complete { slices, others, counter_sets } = &self.pools[pool].state else {
            return None;
        };
        let new = || CounterState::new(counter_sets, slices, others, self.allocated);
        Some(self.counters.entry(pool).or_insert_with(new))
    }
}
