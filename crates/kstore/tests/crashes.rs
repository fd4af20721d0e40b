//! The disk engine on a simulated disk that crashes, forgets and fails. Every run follows from its seed. Clients commit, take
//! leases, compact and make checkpoints meanwhile, so that what etcd's robustness tests found in crashes (#13766, #14370, #14685,
//! #17780) is looked for at every operation on the disk.
//!
//! `KSTORE_SEEDS=100 cargo test --release -p kstore --test crashes` tries a hundred times as many.
//! `KSTORE_SEED=7 KSTORE_CRASH_AT=31 cargo test -p kstore --test crashes -- one_seed --nocapture` repeats one.
#![cfg(all(feature = "disk", unix))]

use std::panic::catch_unwind;

use kstore::testing::{
    disk::{Plan, Tally, history, lives},
    linear::is_linearizable,
};

/// Runs one, and says how to repeat it if it fails.
fn run(seed: u64, plan: Plan) -> Tally {
    catch_unwind(|| lives(seed, plan)).unwrap_or_else(|panic| {
        let crash_at = plan.crash_at.map(|at| format!("KSTORE_CRASH_AT={at} ")).unwrap_or_default();
        let flag = |name, set| if set { format!("{name}=1 ") } else { String::new() };
        eprintln!(
            "to repeat: KSTORE_SEED={seed} {crash_at}{}{}{}cargo test -p kstore --test crashes -- one_seed --nocapture",
            flag("KSTORE_FAILURES", plan.failures),
            flag("KSTORE_LOOSE", plan.loose),
            flag("KSTORE_BIT_FLIPS", plan.bit_flips),
        );
        std::panic::resume_unwind(panic)
    })
}

fn sum(tallies: impl Iterator<Item = Tally>) -> Tally {
    tallies.fold(Tally::default(), |sum, one| Tally {
        steps: sum.steps + one.steps,
        acknowledged: sum.acknowledged + one.acknowledged,
        opened: sum.opened + one.opened,
        refused: sum.refused + one.refused,
        frames: sum.frames + one.frames,
        frames_cut: sum.frames_cut + one.frames_cut,
        checkpoints: sum.checkpoints + one.checkpoints,
        full: sum.full + one.full,
        fenced: sum.fenced + one.fenced,
    })
}

/// So many seeds, or as many times more as `KSTORE_SEEDS` says.
fn seeds(first: u64, count: u64) -> std::ops::Range<u64> {
    let times = std::env::var("KSTORE_SEEDS").ok().and_then(|times| times.parse::<u64>().ok());
    first..first + count * times.unwrap_or(1)
}

/// The one that the environment names; the first if it names none.
#[test]
fn one_seed() {
    let number = |name| std::env::var(name).ok().and_then(|number| number.parse().ok());
    let set = |name| std::env::var(name).is_ok();
    let plan = Plan {
        crash_at: number("KSTORE_CRASH_AT"),
        failures: set("KSTORE_FAILURES"),
        loose: set("KSTORE_LOOSE"),
        bit_flips: set("KSTORE_BIT_FLIPS"),
    };
    let tally = run(number("KSTORE_SEED").unwrap_or(0), plan);
    assert!(tally.opened > 0, "{tally:?}");
}

#[test]
fn a_crash_at_every_step() {
    for seed in [1, 2] {
        let whole = run(seed, Plan { crash_at: Some(u64::MAX), ..Plan::default() });
        assert!(whole.steps > 150, "the workload is long enough to be worth it: {whole:?}");
        for at in 1..=whole.steps {
            run(seed, Plan { crash_at: Some(at), ..Plan::default() });
        }
    }
}

#[test]
fn crashes_anywhere() {
    let total = sum(seeds(100, 450).map(|seed| run(seed, Plan::default())));
    assert!(total.frames_cut > 50 && total.checkpoints > 150, "{total:?}");
}

#[test]
fn crashes_of_disks_that_fail() {
    let plan = Plan { failures: true, ..Plan::default() };
    let total = sum(seeds(1_000_000, 350).map(|seed| run(seed, plan)));
    assert!(total.full > 50 && total.fenced > 50, "{total:?}");
}

#[test]
fn crashes_of_what_may_be_lost() {
    let plan = Plan { loose: true, ..Plan::default() };
    let total = sum(seeds(2_000_000, 400).map(|seed| run(seed, plan)));
    assert!(total.opened > 800, "{total:?}");
}

#[test]
fn changed_bits() {
    let plan = Plan { bit_flips: true, ..Plan::default() };
    let total = sum(seeds(3_000_000, 300).map(|seed| run(seed, plan)));
    assert!(total.refused > 50, "{total:?}");
}

/// Over power cuts, what clients are told can have happened one after the other.
#[test]
fn histories_over_crashes_are_linearizable() {
    let (mut operations, mut seeds) = (0, 10_000..10_300);
    for seed in &mut seeds {
        let history = history(seed, false);
        let history = history.unwrap_or_else(|| panic!("seed {seed}: what was acknowledged is gone"));
        operations += history.len();
        assert!(is_linearizable(&history), "seed {seed}: {history:#?}");
    }
    assert!(operations > 300 * 40, "{operations} operations");
}

/// The same on a disk that says it has synced and has not: acknowledged writes are lost, and the histories, or the store
/// itself, show it.
#[test]
fn a_disk_that_lies_is_noticed() {
    let outcomes: Vec<_> = (10_000..10_300).map(|seed| history(seed, true)).collect();
    let refused = outcomes.iter().filter(|outcome| outcome.is_none()).count();
    let flagged = outcomes.iter().flatten().filter(|history| !is_linearizable(history)).count();
    assert!(refused > 100 && flagged > 8, "{refused} refused, {flagged} flagged of {}", outcomes.len());
}
