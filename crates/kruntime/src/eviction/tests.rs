use super::*;

const MIB: u64 = 1024 * 1024;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn pod(key: &'static str, priority: i32, memory: Option<(u64, u64)>) -> Candidate<&'static str> {
    let memory = memory.map(|(used, requested)| Use { used, requested });
    Candidate { key, priority, memory, disk: memory, ..Candidate::default() }
}

/// "Pod selection for kubelet eviction" of Kubernetes' documentation, and `rankMemoryPressure` of upstream's kubelet.
#[test]
fn those_above_their_requests_go_first_then_the_least_important() {
    let pods = [
        pod("within-low", 0, Some((10, 20))),
        pod("above-high", 100, Some((30, 20))),
        pod("above-low", 0, Some((21, 20))),
        pod("above-low-more", 0, Some((90, 20))),
        pod("unknown", 1000, None),
        pod("within-high", 100, Some((19, 20))),
        pod("best-effort", 0, Some((5, 0))),
    ];
    let by = |signal| {
        let mut ranked: Vec<_> = pods.iter().collect();
        rank(&mut ranked, signal);
        ranked.into_iter().map(|pod| pod.key).collect::<Vec<_>>()
    };
    let expected =
        ["unknown", "above-low-more", "best-effort", "above-low", "above-high", "within-low", "within-high"];
    assert_eq!(by(Signal::Memory), expected);
    assert_eq!(by(Signal::NodeFs), expected);
}

/// `rankPIDPressure`, and `exceedDiskRequests` for inodes, which have no requests.
#[test]
fn processes_and_inodes_are_ranked_by_number() {
    let with = |key, priority, number| Candidate {
        inodes: Some(number),
        processes: Some(number),
        ..pod(key, priority, None)
    };
    let pods = [with("few", 0, 1), with("many", 0, 9), with("important", 5, 99)];
    for signal in [Signal::Pids, Signal::NodeFsInodes, Signal::ImageFsInodes] {
        let mut ranked: Vec<_> = pods.iter().collect();
        rank(&mut ranked, signal);
        assert_eq!(ranked.iter().map(|pod| pod.key).collect::<Vec<_>>(), ["many", "few", "important"]);
    }
}

/// After upstream's `TestThresholdsMet` and the defaults of its configuration: figures, what the node says, what is short.
#[test]
fn thresholds_are_amounts_or_parts() {
    let gib = 1024 * MIB;
    for (signal, available, capacity, expected) in [
        (Signal::Memory, 100 * MIB, 8 * gib, None),
        (Signal::Memory, 100 * MIB - 1, 8 * gib, Some(Pressure::Memory)),
        (Signal::NodeFs, 10 * gib, 100 * gib, None),
        (Signal::NodeFs, 10 * gib - 1, 100 * gib, Some(Pressure::Disk)),
        (Signal::ImageFs, 15 * gib - 1, 100 * gib, Some(Pressure::Disk)),
        (Signal::NodeFsInodes, 49, 1000, Some(Pressure::Disk)),
        (Signal::ImageFsInodes, 50, 1000, None),
        // Nothing is said of processes by default.
        (Signal::Pids, 0, 1000, None),
    ] {
        let mut machine = EvictionMachine::new(THRESHOLDS.to_vec());
        let figures = [(signal, Figure { available, capacity })].into();
        let verdict = machine.step::<&str>(&figures, &[], at(0));
        assert_eq!(verdict.pressures.first().copied(), expected, "{signal:?} {available}");
        assert_eq!(verdict.short_of.map(|threshold| threshold.signal), expected.map(|_| signal));
        assert_eq!(verdict.evict, None, "there is nobody to go");
    }
}

/// Soft thresholds wait, what was met wants more than the threshold, and conditions stay a while ("Node conditions" and "Minimum
/// eviction reclaim" of Kubernetes' documentation): the steps of one machine.
#[test]
fn graces_reclaims_and_conditions_take_their_time() {
    let soft = Threshold {
        signal: Signal::Memory,
        below: Amount::Absolute(300),
        grace: SignedDuration::from_secs(30),
        reclaim: Amount::Absolute(100),
    };
    let mut machine = EvictionMachine::new(vec![soft, Threshold::hard(Signal::Memory, Amount::Absolute(50))]);
    let pods = [pod("web", 0, None)];
    for (second, available, pressed, evicted) in [
        (0, 400, false, None),
        (10, 299, true, None),
        (30, 299, true, None),
        (40, 299, true, Some(None)),
        // Above the threshold, and not by as much as is wanted.
        (50, 350, true, Some(None)),
        (60, 400, true, None),
        // It begins anew, and the hard one doesn't wait.
        (70, 299, true, None),
        (80, 49, true, Some(Some(HARD_GRACE_SECONDS))),
        (90, 1000, true, None),
        (379, 1000, true, None),
        (380, 1000, false, None),
    ] {
        let figures = [(Signal::Memory, Figure { available, capacity: 1000 })].into();
        let verdict = machine.step(&figures, &pods, at(second));
        assert_eq!(!verdict.pressures.is_empty(), pressed, "condition at {second}");
        assert_eq!(verdict.evict.map(|eviction| eviction.grace_seconds), evicted, "eviction at {second}");
    }
}

/// `IsCriticalPod`, and `byEvictionPriority`.
#[test]
fn the_nodes_own_pods_stay_and_memory_comes_first() {
    let thresholds =
        [Signal::NodeFs, Signal::Memory].map(|signal| Threshold::hard(signal, Amount::Absolute(10)));
    let low = Figure { available: 1, capacity: 100 };
    let figures = [(Signal::NodeFs, low), (Signal::Memory, low)].into();
    let own = Candidate { is_static: true, ..pod("static", 0, None) };
    let critical = pod("critical", CRITICAL_PRIORITY, None);
    let web = pod("web", 7, Some((1, 1)));
    for (pods, expected) in
        [(vec![own.clone(), critical.clone(), web], Some("web")), (vec![own, critical], None)]
    {
        let mut machine = EvictionMachine::new(thresholds.to_vec());
        let verdict = machine.step(&figures, &pods, at(0));
        assert_eq!(verdict.short_of.map(|threshold| threshold.signal), Some(Signal::Memory));
        assert_eq!(verdict.pressures, [Pressure::Memory, Pressure::Disk]);
        if let Some(eviction) = &verdict.evict {
            let said = "The node was low on resource: memory. Threshold quantity: 10, available: 1. ";
            assert_eq!(eviction.message, said);
        }
        assert_eq!(verdict.evict.map(|eviction| eviction.key), expected);
    }
}

/// What conditions and messages say: how long the one lasts, and that containers are named which use more than they asked for.
#[test]
fn a_condition_lasts_as_long_as_it_is_told_to() {
    let mut machine = EvictionMachine::new(THRESHOLDS.to_vec()).pressure_stays(SignedDuration::from_secs(20));
    let figures = |mib: u64| [(Signal::Memory, Figure { available: mib * MIB, capacity: 1024 * MIB })].into();
    assert_eq!(machine.step::<&str>(&figures(99), &[], at(0)).pressures, [Pressure::Memory]);
    assert_eq!(machine.step::<&str>(&figures(500), &[], at(10)).pressures, [Pressure::Memory]);
    assert!(machine.step::<&str>(&figures(500), &[], at(20)).pressures.is_empty());
    let mut machine = EvictionMachine::new(THRESHOLDS.to_vec()).pressure_stays(SignedDuration::ZERO);
    assert_eq!(machine.step::<&str>(&figures(99), &[], at(0)).pressures, [Pressure::Memory]);
    let web = Candidate {
        containers: vec![
            ("within".to_owned(), Use { used: MIB, requested: MIB }),
            ("above".to_owned(), Use { used: 1536, requested: 0 }),
        ],
        ..pod("web", 0, Some((MIB, 0)))
    };
    let evicted = machine.step(&figures(99), &[web], at(10)).evict.unwrap();
    let said = "The node was low on resource: memory. Threshold quantity: 100Mi, available: 99Mi. Container above was using \
                1536, request is 0, has larger consumption of memory. ";
    assert_eq!(evicted.message, said);
}
