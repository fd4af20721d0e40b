//! How long a pod takes to start and to go, on each runtime that this machine has: sandbox, container, its first line of
//! output, removal. One pod after the other, then many at once.
//!
//! ```text
//! cargo run --release -p kruntime --features oci,testing --example pod_start
//! ```

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use kcore::SystemClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kruntime::{
    ContainerRuntime, PodUid,
    images::ContentStore,
    runtime::{
        LogOptions,
        oci::{OciOptions, OciRuntime},
        process::{ProcessOptions, ProcessRuntime},
        simulated::SimulatedRuntime,
    },
    testing::{container, images::write_busybox, sandbox},
};
use tokio::time::Instant;

const PODS: usize = 40;
const AT_ONCE: usize = 16;

/// What one pod took: until its sandbox was there, its container was started, its first line came, and until all was gone.
type Times = [Duration; 4];

async fn one(runtime: &dyn ContainerRuntime, number: usize) -> Times {
    let uid = PodUid::from(format!("pod-{number}").as_str());
    let begun = Instant::now();
    runtime.run_pod(&uid, &sandbox("pod")).await.expect("a sandbox");
    let sandbox = begun.elapsed();
    runtime.start(&uid, &container("long", 0)).await.expect("a container");
    let started = begun.elapsed();
    let options = LogOptions { follow: true, limit_bytes: Some(6), ..LogOptions::default() };
    let mut log = runtime.logs(&uid, "long", options).await.expect("a log");
    log.next().await;
    let said = begun.elapsed();
    let begun = Instant::now();
    runtime.remove_pod(&uid).await.expect("an end");
    [sandbox, started, said, begun.elapsed()]
}

async fn measure(name: &str, runtime: &dyn ContainerRuntime) {
    one(runtime, 0).await;
    let mut all = Vec::new();
    for number in 0..PODS {
        all.push(one(runtime, number).await);
    }
    let median = |part: usize| {
        let mut times: Vec<_> = all.iter().map(|times| times[part]).collect();
        times.sort();
        format!("{:.2?}", times[times.len() / 2])
    };
    let begun = Instant::now();
    futures::stream::iter((0..PODS * 2).map(|number| one(runtime, number)))
        .buffer_unordered(AT_ONCE)
        .for_each(|_| std::future::ready(()))
        .await;
    let rate = (PODS * 2) as f64 / begun.elapsed().as_secs_f64();
    let [sandbox, started, said, gone] = [median(0), median(1), median(2), median(3)];
    println!("{name:10} {sandbox:>10} {started:>10} {said:>10} {gone:>10} {rate:>10.0}");
}

async fn oci(program: &str, dir: &std::path::Path) -> Result<OciRuntime, Box<dyn std::error::Error>> {
    let clock = Arc::new(SystemClock);
    let images = ContentStore::open(dir.join("images"), clock.clone())?;
    write_busybox(&dir.join("layout"), "docker.io/library/test:latest", &serde_json::json!({}))?;
    images.load(&dir.join("layout"), None).await?;
    let addresses: AddressRange = "127.79.0.0/16".parse()?;
    let mut options = OciOptions::new(dir.join("state"), images, Arc::new(addresses), clock);
    options.program = program.into();
    Ok(OciRuntime::open(options).await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!(
        "{:10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "runtime", "sandbox", "started", "first line", "gone", "pods/s"
    );
    for program in ["runc", "crun"] {
        let dir = tempfile::tempdir()?;
        match oci(program, dir.path()).await {
            Ok(runtime) => {
                let uid = PodUid::from("probe");
                runtime.run_pod(&uid, &sandbox("probe")).await?;
                runtime.start(&uid, &container("long", 0)).await?;
                let works = runtime.observe(&uid).containers.iter().any(|container| {
                    matches!(container.phase, kruntime::runtime::ContainerPhase::Running { .. })
                });
                runtime.remove_pod(&uid).await?;
                if works {
                    measure(program, &runtime).await;
                } else {
                    println!("{program:10} does not work on this machine");
                }
            }
            Err(error) => println!("{program:10} is not there: {error}"),
        }
    }
    let dir = tempfile::tempdir()?;
    let block = LoopbackBlock::claim()?;
    let addresses: AddressRange = block.pods()[0].parse()?;
    let options = ProcessOptions::new(dir.path(), Arc::new(addresses), Arc::new(SystemClock));
    measure("process", &ProcessRuntime::new(options)?).await;
    measure("simulated", &SimulatedRuntime::new(Arc::new(SystemClock))).await;
    Ok(())
}
