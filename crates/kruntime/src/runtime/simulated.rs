//! Containers that don't run: they start, end, fail and answer probes as a script says, for as many nodes as memory
//! allows.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Probe;
use kcore::Clock;
use tokio::{sync::Notify, time::Instant};

use super::{
    ChangeStream, ContainerConfig, ContainerDisk, ContainerPhase, ContainerReading, ContainerRuntime,
    ExecRequest, Exit, LogOptions, LogStream, ObservedContainer, ObservedPod, PodUid, ProbeKind, Resources,
    RuntimeError, RuntimeInfo, SandboxConfig, Session, changes::Changes, check_handler,
};
use crate::{logs, managers::CpuSet};
use load::Meter;

mod load;
mod script;

pub use load::{LOAD_STEPS_MAX, Load};
pub use script::{ANNOTATION_PREFIX, AnnotationScript, Plan, Script, parse_duration};

/// The runtime without containers. All its state is one map and one timer, however many nodes it serves; with tokio's
/// time paused it does the same thing at the same time in every run.
///
/// ```no_run
/// use std::sync::Arc;
/// use kruntime::runtime::simulated::SimulatedRuntime;
/// let runtime = SimulatedRuntime::new(Arc::new(kcore::TokioClock::new()));
/// ```
#[derive(Debug)]
pub struct SimulatedRuntime {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Arc<dyn Clock>,
    script: Arc<dyn Script>,
    handlers: Vec<String>,
    state: Mutex<State>,
    changes: Changes,
    timer: Notify,
    stopped: Notify,
    /// Set when the runtime is dropped; the timer ends then.
    dropped: AtomicBool,
}

/// When a container ends by itself, and which start of which container that is.
type End = (Instant, PodUid, Arc<str>, u32);

#[derive(Debug, Default)]
struct State {
    pods: HashMap<PodUid, SimulatedPod, ahash::RandomState>,
    /// When containers end by themselves, the earliest on top.
    ends: BinaryHeap<Reverse<End>>,
    addresses: u32,
    timer_runs: bool,
}

#[derive(Debug)]
struct SimulatedPod {
    config: SandboxConfig,
    address: IpAddr,
    containers: Vec<SimulatedContainer>,
}

#[derive(Debug)]
struct SimulatedContainer {
    observed: ObservedContainer,
    plan: Plan,
    /// What it was started with, or given later.
    resources: Resources,
    cpu: Meter,
    memory: Load,
    log: Arc<str>,
    previous_log: Option<(u32, Arc<str>)>,
}

impl SimulatedRuntime {
    /// A runtime whose containers do what their pods' annotations say; see [`AnnotationScript`].
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::with_script(clock, Arc::new(AnnotationScript))
    }

    /// A runtime whose containers do what `script` says.
    #[must_use]
    pub fn with_script(clock: Arc<dyn Clock>, script: Arc<dyn Script>) -> Self {
        Self::with_handlers(clock, script, Vec::new())
    }

    /// As [`with_script`](Self::with_script), for pods of RuntimeClasses with these handlers, too. All run the same way.
    #[must_use]
    pub fn with_handlers(clock: Arc<dyn Clock>, script: Arc<dyn Script>, handlers: Vec<String>) -> Self {
        let shared = Shared {
            clock,
            script,
            handlers,
            state: Mutex::default(),
            changes: Changes::default(),
            timer: Notify::new(),
            stopped: Notify::new(),
            dropped: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Makes a container use so much from now on, whatever its plan says: processor time in thousandths of a core, memory in
    /// bytes. Says whether it runs.
    pub fn set_load(&self, pod: &PodUid, container: &str, cpu_milli: u64, memory_bytes: u64) -> bool {
        let now = self.shared.clock.now();
        let mut state = self.shared.state();
        let Some(pod) = state.pods.get_mut(pod).filter(|pod| pod.running(container).is_some()) else {
            return false;
        };
        let found = pod.containers.iter_mut().find(|known| *known.observed.name == *container);
        let Some(found) = found else { return false };
        found.cpu.change(Load::constant(cpu_milli), now);
        found.memory = Load::constant(memory_bytes);
        true
    }

    /// What a container that runs may use: what it was started with, or given later.
    #[must_use]
    pub fn resources(&self, pod: &PodUid, container: &str) -> Option<Resources> {
        let state = self.shared.state();
        Some(state.pods.get(pod)?.running(container)?.0.resources.clone())
    }

    /// Ends a container from outside, as a crash does. Says whether it ran.
    pub fn kill(&self, pod: &PodUid, container: &str, code: i32) -> bool {
        let killed = {
            let mut state = self.shared.state();
            state.pods.get_mut(pod).is_some_and(|pod| pod.end(container, code, self.shared.clock.now()))
        };
        if killed {
            self.shared.changed(pod);
        }
        killed
    }
}

impl Drop for SimulatedRuntime {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Release);
        self.shared.state().pods.clear();
        self.shared.stopped.notify_waiters();
        self.shared.timer.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self, pod: &PodUid) {
        self.stopped.notify_waiters();
        self.changes.tell(pod);
    }

    /// Ends what is due and gives the time of the next end.
    fn end_due(&self) -> Option<Instant> {
        let mut told = Vec::new();
        let next = {
            let mut state = self.state();
            let now = Instant::now();
            loop {
                match state.ends.peek() {
                    Some(Reverse((at, ..))) if *at <= now => {}
                    Some(Reverse((at, ..))) => break Some(*at),
                    None => break None,
                }
                let Some(Reverse((_, uid, name, attempt))) = state.ends.pop() else { break None };
                let Some(pod) = state.pods.get_mut(&uid) else { continue };
                let Some(container) = pod.find(&name).filter(|c| c.observed.attempt == attempt) else {
                    continue;
                };
                let code = container.plan.exit_code;
                if pod.end(&name, code, self.clock.now()) {
                    told.push(uid);
                }
            }
        };
        told.iter().for_each(|pod| self.changed(pod));
        next
    }
}

/// Waits for the ends of all containers of a runtime; ends with it.
async fn run_timer(shared: Arc<Shared>) {
    while !shared.dropped.load(Ordering::Acquire) {
        let next = shared.end_due();
        let timer = shared.timer.notified();
        match next {
            Some(at) => {
                let _ = tokio::time::timeout_at(at, timer).await;
            }
            None => timer.await,
        }
    }
}

impl SimulatedPod {
    fn find(&self, name: &str) -> Option<&SimulatedContainer> {
        self.containers.iter().find(|container| *container.observed.name == *name)
    }

    fn running(&self, name: &str) -> Option<(&SimulatedContainer, Timestamp)> {
        let container = self.find(name)?;
        match container.observed.phase {
            ContainerPhase::Running { started_at } => Some((container, started_at)),
            ContainerPhase::Exited(_) => None,
        }
    }

    fn end(&mut self, name: &str, code: i32, now: Timestamp) -> bool {
        let Some(container) = self.containers.iter_mut().find(|container| *container.observed.name == *name)
        else {
            return false;
        };
        let ContainerPhase::Running { started_at } = container.observed.phase else { return false };
        container.observed.phase = ContainerPhase::Exited(Exit {
            started_at,
            finished_at: now,
            code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" },
            message: None,
        });
        true
    }
}

#[async_trait]
impl ContainerRuntime for SimulatedRuntime {
    fn info(&self) -> RuntimeInfo {
        RuntimeInfo {
            version: concat!("simulated://", env!("CARGO_PKG_VERSION")).to_owned(),
            materialises: false,
            limitations: Vec::new(),
            handlers: self.shared.handlers.clone(),
        }
    }

    async fn run_pod(&self, pod: &PodUid, config: &SandboxConfig) -> Result<Vec<IpAddr>, RuntimeError> {
        check_handler(&config.runtime_handler, &self.shared.handlers)?;
        let mut state = self.shared.state();
        if let Some(known) = state.pods.get(pod) {
            return Ok(vec![known.address]);
        }
        // 10.128.0.0/9 holds eight million pods before an address comes again.
        state.addresses = (state.addresses + 1) & 0x007f_ffff;
        let address = IpAddr::V4(Ipv4Addr::from_bits(0x0a80_0000 | state.addresses));
        let made = SimulatedPod { config: config.clone(), address, containers: Vec::with_capacity(1) };
        state.pods.insert(pod.clone(), made);
        Ok(vec![address])
    }

    async fn start(&self, pod: &PodUid, config: &ContainerConfig) -> Result<(), RuntimeError> {
        let missing = || RuntimeError::PodNotFound(pod.clone());
        let plan = {
            let state = self.shared.state();
            let sandbox = &state.pods.get(pod).ok_or_else(missing)?.config;
            self.shared.script.plan(sandbox, config)
        };
        if !plan.start_delay.is_zero() {
            tokio::time::sleep(plan.start_delay).await;
        }
        let now = self.shared.clock.now();
        let mut state = self.shared.state();
        let state = &mut *state;
        let known = state.pods.get_mut(pod).ok_or_else(missing)?;
        let run_time = plan.run_time.filter(|_| plan.start_error.is_none());
        let phase = match &plan.start_error {
            Some(message) => ContainerPhase::Exited(Exit {
                started_at: now,
                finished_at: now,
                code: 128,
                signal: None,
                reason: "StartError",
                message: Some(message.clone()),
            }),
            None => ContainerPhase::Running { started_at: now },
        };
        let observed = ObservedContainer {
            image_id: None,
            name: Arc::clone(&config.name),
            id: format!("{pod}-{}-{}", config.name, config.attempt),
            attempt: config.attempt,
            phase,
        };
        let log = log_text(&plan, now);
        let (cpu, memory) = (Meter::new(plan.cpu.clone(), now), plan.memory.clone());
        let resources = config.resources.clone();
        let mut container =
            SimulatedContainer { observed, plan, resources, cpu, memory, log, previous_log: None };
        match known.containers.iter_mut().find(|known| known.observed.name == config.name) {
            Some(known) => {
                container.previous_log = Some((known.observed.attempt, Arc::clone(&known.log)));
                *known = container;
            }
            None => known.containers.push(container),
        }
        if let Some(run_time) = run_time {
            let end = (Instant::now() + run_time, pod.clone(), Arc::clone(&config.name), config.attempt);
            state.ends.push(Reverse(end));
            if !std::mem::replace(&mut state.timer_runs, true) {
                tokio::spawn(run_timer(Arc::clone(&self.shared)));
            }
            self.shared.timer.notify_one();
        }
        Ok(())
    }

    async fn stop(&self, pod: &PodUid, container: &str, grace: Duration) -> Result<(), RuntimeError> {
        let delay = {
            let state = self.shared.state();
            state.pods.get(pod).and_then(|pod| pod.running(container)).map(|(c, _)| c.plan.stop_delay)
        };
        let Some(delay) = delay else { return Ok(()) };
        let code = if delay > grace { 137 } else { 0 };
        let wait = delay.min(grace);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        self.kill(pod, container, code);
        Ok(())
    }

    async fn remove_pod(&self, pod: &PodUid) -> Result<(), RuntimeError> {
        self.shared.state().pods.remove(pod);
        self.shared.stopped.notify_waiters();
        Ok(())
    }

    fn observe(&self, pod: &PodUid) -> ObservedPod {
        let state = self.shared.state();
        let Some(pod) = state.pods.get(pod) else { return ObservedPod::default() };
        ObservedPod {
            addresses: Some(vec![pod.address]),
            containers: pod.containers.iter().map(|container| container.observed.clone()).collect(),
        }
    }

    fn pods(&self) -> Vec<PodUid> {
        self.shared.state().pods.keys().cloned().collect()
    }

    fn changes(&self) -> ChangeStream {
        self.shared.changes.subscribe()
    }

    async fn exec(&self, pod: &PodUid, name: &str, request: ExecRequest) -> Result<Session, RuntimeError> {
        {
            let state = self.shared.state();
            let running = state.pods.get(pod).and_then(|pod| pod.running(name));
            running.ok_or_else(|| RuntimeError::NotRunning(name.to_owned()))?;
        }
        // Nothing runs: the program is said to have printed its own command line and ended well.
        let output = format!("{}\n", request.command.join(" ")).into_bytes();
        Ok(Session {
            stdin: request.stdin.then(|| Box::pin(tokio::io::sink()) as super::Writer),
            stdout: Some(Box::pin(std::io::Cursor::new(output))),
            stderr: (!request.tty).then(|| Box::pin(tokio::io::empty()) as super::Reader),
            resize: request.tty.then(|| Arc::new(|_, _| ()) as super::Resize),
            exit: Box::pin(async { Ok(0) }),
        })
    }

    async fn attach(&self, pod: &PodUid, name: &str) -> Result<Session, RuntimeError> {
        let attempt = {
            let state = self.shared.state();
            let running = state.pods.get(pod).and_then(|pod| pod.running(name));
            running.ok_or_else(|| RuntimeError::NotRunning(name.to_owned()))?.0.observed.attempt
        };
        let (shared, pod, name) = (Arc::clone(&self.shared), pod.clone(), name.to_owned());
        let exit = async move {
            match ended(&shared, &pod, &name, attempt).await {
                Some(exit) => Ok(exit.code),
                None => Err(RuntimeError::NotRunning(name)),
            }
        };
        Ok(Session {
            stdin: Some(Box::pin(tokio::io::sink())),
            stdout: Some(Box::pin(tokio::io::empty())),
            stderr: Some(Box::pin(tokio::io::empty())),
            resize: None,
            exit: Box::pin(exit),
        })
    }

    async fn logs(&self, pod: &PodUid, name: &str, options: LogOptions) -> Result<LogStream, RuntimeError> {
        let (attempt, text) = {
            let state = self.shared.state();
            let known = state.pods.get(pod).ok_or_else(|| RuntimeError::PodNotFound(pod.clone()))?;
            let container = known.find(name).ok_or_else(|| RuntimeError::NotRunning(name.to_owned()))?;
            let last = container.observed.attempt;
            match (options.attempt, &container.previous_log) {
                (Some(wanted), Some((attempt, log))) if wanted == *attempt => (wanted, Arc::clone(log)),
                (Some(wanted), _) if wanted != last => {
                    return Err(RuntimeError::NotRunning(name.to_owned()));
                }
                _ => (last, Arc::clone(&container.log)),
            }
        };
        let bytes = logs::select(text.as_bytes(), &options);
        let full = options.limit_bytes.is_some_and(|limit| bytes.len() as u64 >= limit);
        let first = futures::stream::once(async move { Ok(bytes) });
        if !options.follow || full {
            return Ok(first.boxed());
        }
        let (shared, pod, name) = (Arc::clone(&self.shared), pod.clone(), name.to_owned());
        let rest = futures::stream::once(async move {
            ended(&shared, &pod, &name, attempt).await;
            Ok(bytes::Bytes::new())
        });
        Ok(first.chain(rest).boxed())
    }

    async fn probe(&self, pod: &PodUid, container: &str, kind: ProbeKind, _probe: &Probe) -> Option<bool> {
        let state = self.shared.state();
        let running = state.pods.get(pod).and_then(|pod| pod.running(container));
        let Some((container, started_at)) = running else { return Some(false) };
        let after =
            container.plan.probe(kind).map(|after| SignedDuration::try_from(after).unwrap_or_default());
        Some(after.is_some_and(|after| self.shared.clock.now().duration_since(started_at) >= after))
    }

    async fn usage(&self, pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerReading>)> {
        let now = self.shared.clock.now();
        let state = self.shared.state();
        let read = |pod: &SimulatedPod| {
            let running = pod.containers.iter().filter_map(|container| match container.observed.phase {
                ContainerPhase::Running { started_at } => Some((container, started_at)),
                ContainerPhase::Exited(_) => None,
            });
            let readings = running.map(|(container, started_at)| ContainerReading {
                name: Arc::clone(&container.observed.name),
                cpu: container.cpu.total(now),
                memory_bytes: container.memory.at(load::since(started_at, now)),
            });
            readings.collect()
        };
        pods.iter().filter_map(|uid| Some((uid.clone(), read(state.pods.get(uid)?)))).collect()
    }

    async fn disk(&self, pods: &[PodUid]) -> Vec<(PodUid, Vec<ContainerDisk>)> {
        let now = self.shared.clock.now();
        let state = self.shared.state();
        let read = |pod: &SimulatedPod| {
            let all = pod.containers.iter().map(|container| {
                // What one that has ended wrote stays.
                let after = match &container.observed.phase {
                    ContainerPhase::Running { started_at } => load::since(*started_at, now),
                    ContainerPhase::Exited(exit) => load::since(exit.started_at, exit.finished_at),
                };
                let name = Arc::clone(&container.observed.name);
                let log_bytes = u64::try_from(container.log.len()).unwrap_or(u64::MAX);
                ContainerDisk { name, root_bytes: container.plan.disk.at(after), log_bytes }
            });
            all.collect()
        };
        pods.iter().filter_map(|uid| Some((uid.clone(), read(state.pods.get(uid)?)))).collect()
    }

    async fn resize(&self, pod: &PodUid, name: &str, resources: &Resources) -> Result<(), RuntimeError> {
        let mut state = self.shared.state();
        let pod = state.pods.get_mut(pod).filter(|pod| pod.running(name).is_some());
        let mut containers = pod.into_iter().flat_map(|pod| &mut pod.containers);
        let container = containers.find(|container| *container.observed.name == *name);
        let container = container.ok_or_else(|| RuntimeError::NotRunning(name.to_owned()))?;
        container.resources = resources.clone();
        Ok(())
    }

    async fn set_cpus(&self, pod: &PodUid, name: &str, cpus: &CpuSet) -> Result<(), RuntimeError> {
        let known = {
            let state = self.shared.state();
            let running = state.pods.get(pod).and_then(|pod| pod.running(name));
            running.map(|(container, _)| container.resources.clone())
        };
        let known = known.ok_or_else(|| RuntimeError::NotRunning(name.to_owned()))?;
        self.resize(pod, name, &Resources { cpuset_cpus: Some(cpus.to_string()), ..known }).await
    }

    fn dial_address(&self, address: SocketAddr) -> SocketAddr {
        address
    }
}

/// Waits until this start of the container has ended; `None` when the pod went away.
async fn ended(shared: &Shared, pod: &PodUid, name: &str, attempt: u32) -> Option<Exit> {
    loop {
        let changed = shared.stopped.notified();
        tokio::pin!(changed);
        changed.as_mut().enable();
        {
            let state = shared.state();
            let container = state.pods.get(pod)?.find(name)?;
            if container.observed.attempt != attempt {
                return None;
            }
            if let ContainerPhase::Exited(exit) = &container.observed.phase {
                return Some(exit.clone());
            }
        }
        changed.await;
    }
}

fn log_text(plan: &Plan, now: Timestamp) -> Arc<str> {
    if plan.log.is_empty() {
        return Arc::from("");
    }
    let mut out = Vec::new();
    for line in plan.log.lines() {
        logs::write_line(&mut out, now, "stdout", false, line.as_bytes());
    }
    String::from_utf8_lossy(&out).into()
}
