//! kplane's face of etcd beside a real etcd: the same client, the same work, one after the other in rounds; each row as both
//! figures and their ratio. Needs `etcd` (or `KPLANE_ETCD`); without it the face is measured alone.
//!
//! `cargo bench -p kplane-benches --bench etcd`, with `-- quick` for a tenth of the work.

mod client;
mod servers;

use std::{collections::BTreeMap, time::Duration};

use servers::{Kind, Server};

/// What was measured, by row and server.
#[derive(Default)]
struct Rows(BTreeMap<(usize, String), [Vec<f64>; 2]>);

impl Rows {
    fn add(&mut self, order: usize, row: String, kind: Kind, figure: f64) {
        self.0.entry((order, row)).or_default()[kind as usize].push(figure);
    }

    /// The middle one of what was measured in the rounds.
    fn print(mut self) {
        let middle = |figures: &mut Vec<f64>| {
            figures.sort_by(f64::total_cmp);
            figures.get(figures.len() / 2).copied()
        };
        println!("| row | etcd | kplane | ratio |\n|---|---|---|---|");
        for ((_, row), [etcd, face]) in &mut self.0 {
            let (etcd, face) = (middle(etcd), middle(face));
            let text = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.1}"));
            let ratio = match (etcd, face) {
                // Rates are better when they are greater, everything else when it is less.
                (Some(etcd), Some(face)) if row.ends_with("/s") => format!("{:.1}", face / etcd.max(1e-9)),
                (Some(etcd), Some(face)) => format!("{:.1}", etcd / face.max(1e-9)),
                _ => "-".to_owned(),
            };
            println!("| {row} | {} | {} | {ratio} |", text(etcd), text(face));
        }
    }
}

fn main() {
    if let Some(folder) = std::env::args().skip_while(|word| word != "--serve").nth(1) {
        return servers::serve(&folder);
    }
    let quick = std::env::args().any(|word| word == "quick");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let Ok(runtime) = runtime else { return eprintln!("no threads can be started") };
    let mut rows = Rows::default();
    let rounds = if quick { 1 } else { 3 };
    for round in 0..rounds {
        for kind in [Kind::Etcd, Kind::Face] {
            for synced in [false, true] {
                let Some(server) = Server::start(kind, synced) else { continue };
                runtime.block_on(async {
                    puts(&mut rows, &server, kind, synced, quick).await;
                    if !synced {
                        reads_and_watches(&mut rows, &server, kind, quick).await;
                    }
                });
            }
            if round + 1 == rounds {
                runtime.block_on(size(&mut rows, kind, quick));
            }
        }
    }
    rows.print();
}

/// Transactions that create a key of 1 KiB, as a Kubernetes API server makes them.
async fn puts(rows: &mut Rows, server: &Server, kind: Kind, synced: bool, quick: bool) {
    let how = if synced { "fsync" } else { "no fsync" };
    for (order, clients) in [1, 16, 256].into_iter().enumerate() {
        let time = Duration::from_millis(if quick { 500 } else { 3_000 });
        let cpu = server.cpu();
        let done = client::creates(&server.endpoint(), &format!("/puts/{clients}/"), clients, time).await;
        let cpu = (server.cpu() - cpu).as_secs_f64();
        let order = order + if synced { 3 } else { 0 };
        let row = |what: &str| format!("txn put 1 KiB, {clients} clients, {how}: {what}");
        rows.add(10 * order, row("ops/s"), kind, done.per_second());
        rows.add(10 * order + 1, row("p50 us"), kind, done.percentile(50));
        rows.add(10 * order + 2, row("p99 us"), kind, done.percentile(99));
        rows.add(10 * order + 3, row("server CPU us/op"), kind, cpu * 1e6 / done.count().max(1) as f64);
    }
}

async fn reads_and_watches(rows: &mut Rows, server: &Server, kind: Kind, quick: bool) {
    client::fill(&server.endpoint(), "/list/", 10_000).await;
    let times = if quick { 5 } else { 30 };
    let cpu = server.cpu();
    let took = client::ranges(&server.endpoint(), "/list/", 10_000, times).await;
    let cpu = (server.cpu() - cpu).as_secs_f64();
    rows.add(100, "range of 10,000 of 1 KiB: ms".to_owned(), kind, took.as_secs_f64() * 1e3);
    rows.add(101, "range of 10,000 of 1 KiB: server CPU ms".to_owned(), kind, cpu * 1e3 / f64::from(times));
    for (order, watchers) in [1_usize, 100, 1_000].into_iter().enumerate() {
        let puts = if quick { 30 } else { 200 };
        let cpu = server.cpu();
        let seen = client::watch(&server.endpoint(), &format!("/watch/{watchers}/"), watchers, puts).await;
        let cpu = (server.cpu() - cpu).as_secs_f64();
        let row = |what: &str| format!("watch by {watchers}, put to event: {what}");
        rows.add(110 + 10 * order, row("p50 us"), kind, seen.percentile(50));
        rows.add(111 + 10 * order, row("p99 us"), kind, seen.percentile(99));
        let events = (puts * watchers).max(1) as f64;
        rows.add(112 + 10 * order, row("server CPU us/event"), kind, cpu * 1e6 / events);
    }
}

/// How much memory keys take, and how long it takes to serve them again.
async fn size(rows: &mut Rows, kind: Kind, quick: bool) {
    let steps: [u64; 2] = if quick { [10_000, 50_000] } else { [100_000, 500_000] };
    let Some(mut server) = Server::start(kind, false) else { return };
    let mut there = 0;
    for (order, keys) in steps.into_iter().enumerate() {
        client::fill(&server.endpoint(), &format!("/size/{there}/"), keys - there).await;
        there = keys;
        rows.add(200 + order, format!("{keys} keys of 1 KiB: resident MiB"), kind, server.resident_mib());
    }
    let took = server.restart();
    let first = client::first_answer(&server.endpoint(), took).await;
    rows.add(210, format!("restart with {there} keys: ms"), kind, first.as_secs_f64() * 1e3);
}
