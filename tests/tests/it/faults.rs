//! Controllers under faults, from as many seeds as fit in a test; `fault_runs` runs more.

use std::process::Command;

/// How many seeds are run.
const SEEDS: u64 = 12;
/// How many of them are run once more.
const REPEATED: u64 = 4;

/// What the program prints, and whether nothing failed.
fn fault_runs(seeds: &str) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_fault_runs")).arg(seeds).output().expect("it can be run");
    (String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned(), output.status.success())
}

#[test]
fn controllers_come_to_rest_as_if_nothing_had_happened() {
    let (told, is_fine) = fault_runs(&format!("0..{SEEDS}"));
    assert!(is_fine, "{told}");
}

/// A run that can't be repeated can't be understood: every write of a seed comes at the same time, in the same order, with the same
/// content, as often as it is run.
#[test]
#[cfg(target_os = "linux")]
fn a_seed_decides_every_write() {
    let mut all = Vec::new();
    for seed in 0..REPEATED {
        let (first, is_fine) = fault_runs(&seed.to_string());
        assert!(is_fine, "{first}");
        assert_eq!(fault_runs(&seed.to_string()).0, first, "the run of the seed {seed} does not repeat");
        all.push(first);
    }
    all.dedup();
    assert_eq!(all.len() as u64, REPEATED, "seeds differ: {all:?}");
}
