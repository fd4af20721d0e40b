use std::sync::Arc;

use kcore::TokioClock;
use kruntime::{runtime::simulated::SimulatedRuntime, testing};

#[tokio::test(start_paused = true)]
async fn keeps_the_suites_promises() {
    testing::check_runtime(Arc::new(SimulatedRuntime::new(Arc::new(TokioClock::new())))).await;
}
