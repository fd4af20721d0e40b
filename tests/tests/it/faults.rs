//! Controllers under faults, from as many seeds as fit in a test; `fault_runs` beside the tests runs more.

use kplane_tests::faults;

/// How many seeds are run.
const SEEDS: u64 = 12;

#[test]
fn controllers_come_to_rest_as_if_nothing_had_happened() {
    let failed: Vec<String> = (0..SEEDS)
        .filter_map(|seed| {
            let why = faults::check(seed).err()?;
            Some(format!("cargo run -p kplane-tests --example fault_runs -- {seed}\n{why}"))
        })
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}
