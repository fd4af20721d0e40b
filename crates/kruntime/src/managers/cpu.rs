//! Who has processors alone (the CPU manager's policy `static`, KEP-3570). Pure: what is given is the caller's to keep.

use std::collections::BTreeMap;

use super::{
    CpuOptions, CpuSet, Machine, Refusal,
    hint::{Hint, Mask, hints},
    machine::Part,
    take,
};

/// What is given of the processors, as upstream's `cpu_manager_state` has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuState {
    /// Those that all share who have none alone.
    pub(super) shared: CpuSet,
    /// Those that containers have alone, by pod and container.
    pub(super) given: BTreeMap<String, BTreeMap<String, CpuSet>>,
}

/// The policy on a machine.
#[derive(Clone, Debug)]
pub(super) struct CpuPolicy {
    pub(super) options: CpuOptions,
    /// Processors that nobody gets alone.
    pub(super) reserved: CpuSet,
    /// The same, with the other threads of their cores.
    reserved_cores: CpuSet,
}

impl CpuPolicy {
    /// `reserved`: these, or so many.
    ///
    /// # Errors
    /// Upstream's words when so many can't be reserved.
    pub(super) fn new(
        machine: &Machine,
        options: CpuOptions,
        reserved: Option<&CpuSet>,
        count: usize,
    ) -> Result<Self, String> {
        let mut policy = Self { options, reserved: CpuSet::default(), reserved_cores: CpuSet::default() };
        policy.reserved = match reserved {
            Some(reserved) => reserved.clone(),
            None => policy.take(machine, &machine.all(), count).unwrap_or_default(),
        };
        let reserved = &policy.reserved;
        if reserved.len() != count || !reserved.is_subset(&machine.all()) {
            return Err(format!(
                "[cpumanager] unable to reserve the required amount of CPUs (size of {reserved} did not equal {count})"
            ));
        }
        let cores = machine.parts(Part::Core, reserved);
        let is_one = |cpu: &u32| cores.contains(&machine.cpus[cpu].core);
        policy.reserved_cores = machine.all().iter().filter(is_one).collect();
        Ok(policy)
    }

    /// Takes over what is known from before, or begins.
    ///
    /// # Errors
    /// Upstream's words when that was of another machine or another configuration.
    pub(super) fn open(&self, machine: &Machine, state: &mut CpuState) -> Result<(), String> {
        let all = machine.all();
        if state.shared.is_empty() {
            if !state.given.is_empty() {
                return Err("default cpuset cannot be empty".to_owned());
            }
            let is_strict = self.options.strict_cpu_reservation;
            state.shared = if is_strict { all.difference(&self.reserved) } else { all };
            return Ok(());
        }
        let (shared, reserved) = (&state.shared, &self.reserved);
        let both = reserved.intersection(shared);
        if self.options.strict_cpu_reservation && !both.is_empty() {
            return Err(format!(
                "some of strictly reserved cpus: \"{both}\" are present in defaultCpuSet: \"{shared}\""
            ));
        }
        if !self.options.strict_cpu_reservation && both != *reserved {
            return Err(format!(
                "not all reserved cpus: \"{reserved}\" are present in defaultCpuSet: \"{shared}\""
            ));
        }
        let mut known = shared.clone();
        for (pod, containers) in &state.given {
            for (container, cpus) in containers {
                if !shared.intersection(cpus).is_empty() {
                    return Err(format!(
                        "pod: {pod}, container: {container} cpuset: \"{cpus}\" overlaps with default cpuset \"{shared}\""
                    ));
                }
                known = known.union(cpus);
            }
        }
        // Those that are reserved strictly are in neither list.
        if self.options.strict_cpu_reservation {
            known = known.union(reserved);
        }
        if known != all {
            return Err(format!(
                "current set of available CPUs \"{all}\" doesn't match with CPUs in state \"{known}\""
            ));
        }
        Ok(())
    }

    fn take(&self, machine: &Machine, free: &CpuSet, count: usize) -> Result<CpuSet, String> {
        if self.options.distribute_cpus_across_numa {
            let whole = self.options.full_pcpus_only;
            let group = if whole { machine.cpus_per(Part::Core).max(1) } else { 1 };
            return take::distributed(machine, free, count, group);
        }
        take::packed(machine, free, count, self.options.prefer_align_cpus_by_uncorecache)
    }

    /// Those that somebody may have alone and nobody has.
    pub(super) fn free(&self, state: &CpuState) -> CpuSet {
        state.shared.difference(&self.reserved)
    }

    /// Where so many could be. `has`: what the container has already; `reusable`: what came free within its pod.
    pub(super) fn hints(
        &self,
        machine: &Machine,
        state: &CpuState,
        wanted: usize,
        has: Option<&CpuSet>,
        reusable: &CpuSet,
    ) -> Vec<Hint> {
        let none = CpuSet::default();
        let (free, reusable) = match has {
            Some(has) if has.len() != wanted => return Vec::new(),
            Some(has) => (has.clone(), &none),
            None => (self.free(state), reusable),
        };
        let nodes: Vec<u32> = machine.parts(Part::Node, &machine.all()).into_iter().collect();
        let mut fewest = u32::try_from(nodes.len()).unwrap_or(u32::MAX);
        let of = |mask: Mask, cpus: &CpuSet| {
            let is_in = |cpu: &u32| machine.cpus.get(cpu).is_some_and(|cpu| mask.has(cpu.node));
            cpus.iter().filter(is_in).count()
        };
        let all = machine.all();
        let mut can = Vec::new();
        for mask in Mask::all(&nodes) {
            if of(mask, &all) >= wanted {
                fewest = fewest.min(mask.count());
            }
            // What can be used again must be.
            if of(mask, reusable) == reusable.len() && of(mask, &free) + reusable.len() >= wanted {
                can.push(mask);
            }
        }
        hints(can, fewest)
    }

    /// Gives a container so many, if it has none yet, near to `mask` where that says something.
    ///
    /// # Errors
    /// `SMTAlignmentError`, or there are too few.
    pub(super) fn give(
        &self,
        machine: &Machine,
        state: &mut CpuState,
        (pod, container): (&str, &str),
        wanted: usize,
        mask: Option<Mask>,
        reusable: &CpuSet,
    ) -> Result<CpuSet, Refusal> {
        // A pod is asked about again when its sandbox could not be made; what it has counts as taken by then.
        if let Some(has) = state.of(pod, container) {
            return Ok(has.clone());
        }
        self.check_threads(machine, state, wanted)?;
        let free = self.free(state).union(reusable);
        let mut taken = CpuSet::default();
        if let Some(mask) = mask {
            let is_near = |cpu: &u32| machine.cpus.get(cpu).is_some_and(|cpu| mask.has(cpu.node));
            let near: CpuSet = free.iter().filter(is_near).collect();
            taken =
                self.take(machine, &near, near.len().min(wanted)).map_err(|why| Refusal::unexpected(&why))?;
        }
        let rest = self.take(machine, &free.difference(&taken), wanted - taken.len());
        taken = taken.union(&rest.map_err(|why| Refusal::unexpected(&why))?);
        state.shared = state.shared.difference(&taken);
        state.given.entry(pod.to_owned()).or_default().insert(container.to_owned(), taken.clone());
        Ok(taken)
    }

    /// Whether only whole cores are given, where that is asked for (`full-pcpus-only`).
    fn check_threads(&self, machine: &Machine, state: &CpuState, wanted: usize) -> Result<(), Refusal> {
        if !self.options.full_pcpus_only {
            return Ok(());
        }
        let threads = machine.cpus_per(Part::Core).max(1);
        let refused = |message| Err(Refusal { reason: "SMTAlignmentError", message });
        if !wanted.is_multiple_of(threads) {
            return refused(format!(
                "SMT Alignment Error: requested {wanted} cpus not multiple cpus per core = {threads}"
            ));
        }
        let available = state.shared.difference(&self.reserved_cores).len();
        if wanted > available {
            return refused(format!(
                "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = {available}, requested CPUs = {wanted}, CPUs per core = {threads}"
            ));
        }
        Ok(())
    }
}

impl CpuState {
    pub(super) fn of(&self, pod: &str, container: &str) -> Option<&CpuSet> {
        self.given.get(pod)?.get(container)
    }

    /// What a pod had is shared again. Says whether it had any.
    pub(super) fn release(&mut self, pod: &str) -> bool {
        let Some(containers) = self.given.remove(pod) else { return false };
        self.shared = containers.values().fold(self.shared.clone(), |shared, cpus| shared.union(cpus));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::machine::tests::{listed, machine},
        *,
    };

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    fn dual() -> Machine {
        listed(2, &[(0, 0, 0, "0,2,4,6,8,10"), (1, 1, 0, "1,3,5,7,9,11")])
    }

    fn whole() -> CpuOptions {
        CpuOptions { full_pcpus_only: true, ..CpuOptions::default() }
    }

    #[test]
    fn some_processors_are_reserved() {
        // Upstream's `TestNewStaticPolicy…`, `TestStaticPolicyStartWithResvList` and their like: those of low cores come first.
        let of = |machine: &Machine, list: Option<&str>, count| {
            let list = list.map(set);
            CpuPolicy::new(machine, CpuOptions::default(), list.as_ref(), count).map(|policy| policy.reserved)
        };
        let single = machine(1, 1, 4, 2);
        assert_eq!(of(&single, None, 2), Ok(set("0,4")));
        assert_eq!(of(&dual(), None, 1), Ok(set("0")));
        assert_eq!(of(&dual(), Some("0-1"), 2), Ok(set("0-1")));
        assert_eq!(
            of(&dual(), Some("0-1"), 1).unwrap_err(),
            "[cpumanager] unable to reserve the required amount of CPUs (size of 0-1 did not equal 1)"
        );
        assert!(of(&dual(), Some("40"), 1).is_err());
    }

    #[test]
    fn what_was_before_must_fit_the_machine() {
        // Upstream's `TestStaticPolicyStart` and `TestStaticPolicyStartWithResvList`.
        let strict = CpuOptions { strict_cpu_reservation: true, ..CpuOptions::default() };
        let cases = [
            (CpuOptions::default(), "", "", Ok("0-11")),
            (strict, "", "", Ok("2-11")),
            (CpuOptions::default(), "0-11", "", Ok("0-11")),
            (CpuOptions::default(), "0-3,6-11", "4-5", Ok("0-3,6-11")),
            (strict, "2-11", "", Ok("2-11")),
            (CpuOptions::default(), "", "4", Err("default cpuset cannot be empty")),
            (
                CpuOptions::default(),
                "2-11",
                "",
                Err("not all reserved cpus: \"0-1\" are present in defaultCpuSet: \"2-11\""),
            ),
            (
                strict,
                "0-11",
                "",
                Err("some of strictly reserved cpus: \"0-1\" are present in defaultCpuSet: \"0-11\""),
            ),
            (
                CpuOptions::default(),
                "0-11",
                "0-2",
                Err("pod: p, container: c cpuset: \"0-2\" overlaps with default cpuset \"0-11\""),
            ),
            (
                CpuOptions::default(),
                "0-12",
                "",
                Err("current set of available CPUs \"0-11\" doesn't match with CPUs in state \"0-12\""),
            ),
            (
                CpuOptions::default(),
                "0-9",
                "",
                Err("current set of available CPUs \"0-11\" doesn't match with CPUs in state \"0-9\""),
            ),
        ];
        for (options, shared, given, expected) in cases {
            let policy = CpuPolicy::new(&dual(), options, Some(&set("0-1")), 2).unwrap();
            let mut state = CpuState { shared: set(shared), ..CpuState::default() };
            if !given.is_empty() {
                state.given = [("p".to_owned(), [("c".to_owned(), set(given))].into())].into();
            }
            let opened = policy.open(&dual(), &mut state).map(|()| state.shared.to_string());
            assert_eq!(opened, expected.map(str::to_owned).map_err(str::to_owned));
        }
    }

    #[test]
    fn containers_get_processors_alone() {
        // Upstream's `TestStaticPolicyAdd` with its options. In order: machine, options, reserved, shared, wanted, where, what is given or why not.
        let single = || machine(1, 1, 4, 2);
        let few = "Allocate failed due to not enough cpus available to satisfy request: requested=8, available=7, which is unexpected";
        let odd = "SMT Alignment Error: requested 1 cpus not multiple cpus per core = 2";
        let cores = "SMT Alignment Error: not enough free physical CPUs: available physical CPUs = 2, requested CPUs = 4, CPUs per core = 2";
        let packed = CpuOptions::default();
        let cases = [
            (single(), packed, "0", "0-7", 1, None, Ok("4")),
            (single(), packed, "0", "0-7", 4, None, Ok("1-2,5-6")),
            (single(), packed, "0", "0-7", 8, None, Err(few)),
            (dual(), packed, "0", "0-11", 6, None, Ok("1,3,5,7,9,11")),
            (dual(), packed, "0,6", "0-11", 4, Some(0), Ok("2,4,8,10")),
            (dual(), packed, "0,6", "0-11", 6, Some(0), Ok("1-2,4,7-8,10")),
            (single(), whole(), "0,4", "0-7", 2, None, Ok("1,5")),
            (single(), whole(), "0,4", "0-7", 1, None, Err(odd)),
            // The other threads of reserved cores are nobody's either.
            (single(), whole(), "0,1", "0-7", 2, None, Ok("2,6")),
            (single(), whole(), "0,1,2", "0-7", 4, None, Err(cores)),
        ];
        for (machine, options, reserved, shared, wanted, node, expected) in cases {
            let reserved = set(reserved);
            let policy = CpuPolicy::new(&machine, options, Some(&reserved), reserved.len()).unwrap();
            let mut state = CpuState { shared: set(shared), ..CpuState::default() };
            let mask = node.map(|node| Mask::of([node]));
            let none = CpuSet::default();
            let found = policy.give(&machine, &mut state, ("p", "c"), wanted, mask, &none);
            match expected {
                Err(message) => {
                    assert_eq!(found.unwrap_err().message, message);
                    assert_eq!(state.shared, set(shared));
                }
                Ok(expected) => {
                    assert_eq!(found.unwrap(), set(expected));
                    assert_eq!(state.shared, set(shared).difference(&set(expected)));
                    // Asked again, it has what it has.
                    let again = policy.give(&machine, &mut state, ("p", "c"), wanted, mask, &none);
                    assert_eq!(again.unwrap(), set(expected));
                    assert!(state.release("p") && !state.release("p"));
                    assert_eq!(state.shared, set(shared));
                }
            }
        }
    }

    #[test]
    fn hints_say_where_there_are_enough() {
        // Upstream's `returnTestCases` of `TestStaticPolicyGetTopologyHints`: two sockets, processor 0 reserved.
        let machine = dual();
        let policy = CpuPolicy::new(&machine, CpuOptions::default(), None, 1).unwrap();
        type Case =
            (&'static str, usize, Option<&'static str>, &'static str, &'static [(&'static [u32], bool)]);
        let cases: [Case; 7] = [
            ("0-11", 2, None, "", &[(&[0], true), (&[1], true), (&[0, 1], false)]),
            ("0-11", 5, None, "", &[(&[0], true), (&[1], true), (&[0, 1], false)]),
            ("0-11", 7, None, "", &[(&[0, 1], true)]),
            // On a machine where nothing is taken one node would do.
            ("0-5,9,11", 4, None, "", &[(&[1], true), (&[0, 1], false)]),
            ("0-11", 12, None, "", &[]),
            ("0-11", 2, Some("3,9"), "", &[(&[1], true), (&[0, 1], false)]),
            ("0,2-11", 2, None, "1", &[(&[1], true), (&[0, 1], false)]),
        ];
        for (shared, wanted, has, reusable, expected) in cases {
            let state = CpuState { shared: set(shared), ..CpuState::default() };
            let has = has.map(set);
            let found = policy.hints(&machine, &state, wanted, has.as_ref(), &set(reusable));
            let expected = expected.iter().map(|(nodes, is_preferred)| Hint {
                mask: Some(Mask::of(nodes.iter().copied())),
                is_preferred: *is_preferred,
            });
            assert_eq!(found, expected.collect::<Vec<_>>(), "{shared} {wanted}");
        }
        let state = CpuState { shared: set("0-11"), ..CpuState::default() };
        assert!(policy.hints(&machine, &state, 2, Some(&set("3")), &set("")).is_empty());
    }
}
