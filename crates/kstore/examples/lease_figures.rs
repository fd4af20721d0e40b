//! What a million leases cost: `cargo run --release -p kstore --example lease_figures`.
//!
//! Prints one line per figure: `figure <name> <value> <unit>`.

use std::time::Duration;

use kstore::{LeaseId, Leases, MemoryStore};

const LEASES: usize = 1_000_000;
const TTL: Duration = Duration::from_secs(3_600);

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = MemoryStore::new();
    let since = cpu();
    let mut ids: Vec<LeaseId> = Vec::with_capacity(LEASES);
    for _ in 0..LEASES {
        ids.push(store.grant(TTL, None).await?);
    }
    per_lease("grant", since, LEASES);
    for round in 1..=3_usize {
        tokio::time::advance(TTL / 4).await;
        let since = cpu();
        for number in 0..LEASES {
            store.keep_alive(ids[number.wrapping_mul(7_919 * round) % LEASES]).await?;
        }
        per_lease(&format!("keep_alive_round_{round}"), since, LEASES);
    }
    let since = cpu();
    tokio::time::advance(TTL / 2).await;
    tokio::task::yield_now().await;
    assert_eq!(store.leases(Some(ids[0])).await?.len(), 1, "it was kept alive");
    per_lease("pass_the_first_end_of_all", since, LEASES);
    let since = cpu();
    tokio::time::sleep(TTL).await;
    while !store.leases(None).await?.is_empty() {
        tokio::task::yield_now().await;
    }
    per_lease("end_of_all", since, LEASES);
    Ok(())
}

fn per_lease(name: &str, since: f64, leases: usize) {
    println!("figure {name} {:.3} us", (cpu() - since) * 1e6 / leases as f64);
}

/// The processor time of the process, in seconds; time itself stands still here.
fn cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = text.rsplit(')').next().unwrap_or_default();
    let ticks = |at| after_name.split_whitespace().nth(at).and_then(|ticks| ticks.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}
