use std::sync::Arc;

use kcore::TokioClock;
use kruntime::{
    runtime::simulated::{AnnotationScript, SimulatedRuntime},
    testing,
};

#[tokio::test(start_paused = true)]
async fn keeps_the_suites_promises() {
    testing::check_runtime(Arc::new(SimulatedRuntime::new(Arc::new(TokioClock::new())))).await;
}

#[tokio::test(start_paused = true)]
async fn takes_pods_of_its_handlers() {
    let clock = Arc::new(TokioClock::new());
    let handlers = vec!["special".to_owned()];
    let runtime = SimulatedRuntime::with_handlers(clock, Arc::new(AnnotationScript), handlers);
    testing::check_handlers(Arc::new(runtime), "special").await;
}

#[tokio::test(start_paused = true)]
async fn gives_containers_more_or_less() {
    let runtime = Arc::new(SimulatedRuntime::new(Arc::new(TokioClock::new())));
    let shown = runtime.clone();
    testing::check_resize(runtime, move |pod, name, wanted| {
        shown.resources(pod, name).as_ref() == Some(wanted)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn binds_containers_to_processors() {
    let runtime = Arc::new(SimulatedRuntime::new(Arc::new(TokioClock::new())));
    let shown = runtime.clone();
    let sets = ["0-1", "3"].map(|text| text.parse().unwrap());
    testing::check_cpus(runtime, sets, move |pod, name, cpus| {
        let known = shown.resources(pod, name).unwrap();
        known.cpuset_cpus == Some(cpus.to_string()) && known.cpu_shares == Some(256)
    })
    .await;
}
