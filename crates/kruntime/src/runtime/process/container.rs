//! One start of a container.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::{broadcast, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    LOG_BYTES_MAX, Pod, Shared, c_string,
    launch::{Launch, LaunchError},
    log_path,
    setup::{Setup, signal_number},
    supervise,
    tree::{Program, exit_code},
};
use crate::{
    logs::{LogWriter, Progress},
    runtime::{
        ContainerConfig, ContainerPhase, Exit, PodUid, RuntimeError,
        output::{self, ATTACHED_BEHIND_MAX, Joinable, Streams, pump, remove_logs_before},
    },
};

/// A container that was started, or that could not be.
pub(super) struct Container {
    pub(super) name: Arc<str>,
    pub(super) id: String,
    pub(super) attempt: u32,
    dir: PathBuf,
    started_at: Timestamp,
    exit: watch::Sender<Option<Exit>>,
    pub(super) program: Option<Arc<Program>>,
    log: watch::Receiver<Progress>,
    streams: Joinable,
    stop_signal: libc::c_int,
    pub(super) env: Vec<(String, String)>,
    pub(super) working_dir: PathBuf,
    pub(super) isolated: bool,
    pub(super) user: Option<(u32, u32)>,
    supervisor: Mutex<Vec<AbortOnDropHandle<()>>>,
    /// Ends with the container: waits for the program's end.
    waiter: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container").field("name", &self.name).field("id", &self.id).finish_non_exhaustive()
    }
}

impl Container {
    pub(super) fn phase(&self) -> ContainerPhase {
        match &*self.exit.borrow() {
            Some(exit) => ContainerPhase::Exited(exit.clone()),
            None => ContainerPhase::Running { started_at: self.started_at },
        }
    }

    pub(super) fn streams(&self) -> &Joinable {
        &self.streams
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.log.clone()
    }

    pub(super) fn log_path(&self, attempt: u32) -> PathBuf {
        log_path(&self.dir, attempt)
    }

    pub(super) fn kill(&self) {
        if let Some(program) = &self.program
            && self.exit.borrow().is_none()
        {
            program.kill();
        }
    }

    /// Ends the container at once, without anybody hearing of it.
    pub(super) fn end(&self) {
        if let Some(program) = &self.program {
            program.end();
        }
    }

    /// The number of its first process, if one was started.
    pub(super) fn pid(&self) -> Option<libc::pid_t> {
        self.program.as_ref().map(|program| program.pid())
    }

    /// Waits until the container has ended.
    pub(super) async fn ended(&self) {
        let mut exit = self.exit.subscribe();
        let _ = exit.wait_for(Option::is_some).await;
    }

    pub(super) async fn stop(&self, grace: Duration) {
        if let Some(program) = self.program.as_ref().filter(|_| !grace.is_zero()) {
            program.signal(self.stop_signal);
        }
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            self.kill();
            self.ended().await;
        }
    }
}

/// Starts a container.
pub(super) async fn start(
    shared: &Arc<Shared>,
    uid: &PodUid,
    pod: &Arc<Pod>,
    config: &ContainerConfig,
    previous: Option<&Container>,
) -> Result<Arc<Container>, RuntimeError> {
    let wrong = |source| RuntimeError::Io { context: "preparing the container", source };
    let setup = Setup::new(shared, pod, config)?;
    if let Some(previous) = previous {
        remove_logs_before(&setup.dir, previous.attempt);
    }
    let mut streams = Streams::new(config.tty, config.stdin).map_err(wrong)?;
    let writer = LogWriter::create(log_path(&setup.dir, config.attempt), LOG_BYTES_MAX).map_err(wrong)?;
    let launch = Launch {
        program: setup.program.clone(),
        env: setup.env.clone(),
        dir: c_string(&setup.working_dir)?,
        stdin: std::mem::replace(&mut streams.stdin, Stdio::null()),
        stdout: std::mem::replace(&mut streams.stdout, Stdio::null()),
        stderr: std::mem::replace(&mut streams.stderr, Stdio::null()),
        tty: config.tty,
        isolation: setup.isolation,
        confine: shared.allowed.rewrite && !pod.config.host_network,
        user: setup.user,
        rehearse: false,
    };
    let launched = shared.launcher.launch(launch).await;
    let now = shared.options.clock.now();
    let exit = watch::Sender::new(None);
    let mut container = Container {
        name: Arc::clone(&config.name),
        id: setup.id.clone(),
        attempt: config.attempt,
        dir: setup.dir,
        started_at: now,
        exit: exit.clone(),
        program: None,
        log: writer.progress(),
        streams: Joinable {
            attached: broadcast::channel(ATTACHED_BEHIND_MAX).0,
            exit,
            input: Arc::new(tokio::sync::Mutex::new(streams.input.take())),
            resize: streams.resize.take(),
            tty: config.tty,
        },
        stop_signal: signal_number(config.stop_signal.as_deref()),
        env: setup.env,
        working_dir: setup.working_dir,
        isolated: setup.isolated,
        user: setup.user,
        supervisor: Mutex::default(),
        waiter: Mutex::default(),
    };
    match launched {
        Ok(launched) => {
            let program = Arc::new(Program::new(launched.child, setup.id));
            container.program = Some(Arc::clone(&program));
            let container = Arc::new(container);
            container.supervise(shared, pod.address, launched.listener);
            container.watch(
                program,
                streams,
                writer,
                WaitFor {
                    uid: uid.clone(),
                    clock: Arc::clone(&shared.options.clock),
                    changes: Arc::clone(&shared.changes),
                    message: setup.message,
                    message_from_log: config.termination_message_from_log,
                },
            );
            Ok(container)
        }
        Err(error) => {
            container.exit.send_replace(Some(start_error(&setup.program[0], &error, now)));
            Ok(Arc::new(container))
        }
    }
}

impl Container {
    /// Carries the program's output away, and waits for its end.
    fn watch(self: &Arc<Self>, program: Arc<Program>, streams: Streams, writer: LogWriter, about: WaitFor) {
        let writer = Arc::new(Mutex::new(writer));
        let readers = [(Some(streams.output), false), (streams.errors, true)];
        let pumps = readers.into_iter().filter_map(|(reader, is_error)| {
            let (log, attached, clock) =
                (Arc::clone(&writer), self.streams.attached.clone(), Arc::clone(&about.clock));
            Some(AbortOnDropHandle::new(tokio::spawn(pump(reader?, is_error, log, attached, clock))))
        });
        let waiter = wait(Arc::downgrade(self), program, pumps.collect(), Arc::clone(&writer), about);
        let waiter = AbortOnDropHandle::new(tokio::spawn(waiter));
        *self.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiter);
    }
}

struct WaitFor {
    uid: PodUid,
    clock: Arc<dyn kcore::Clock>,
    changes: Arc<crate::runtime::changes::Changes>,
    message: PathBuf,
    message_from_log: bool,
}

/// Waits for the program's end and its last output, and tells.
async fn wait(
    container: std::sync::Weak<Container>,
    program: Arc<Program>,
    pumps: Vec<AbortOnDropHandle<()>>,
    log: Arc<Mutex<LogWriter>>,
    about: WaitFor,
) {
    let status = program.wait().await;
    let finished_at = about.clock.now();
    let _ = tokio::time::timeout(output::DRAIN_MAX, futures::future::join_all(pumps)).await;
    log.lock().unwrap_or_else(PoisonError::into_inner).finish();
    let (code, signal) = match status {
        Ok(status) => exit_code(status),
        Err(error) => {
            tracing::warn!(pod = %about.uid, %error, "a container can't be waited for; it is killed");
            program.kill();
            (255, None)
        }
    };
    let Some(container) = container.upgrade() else { return };
    let message = output::termination_message(
        &about.message,
        about.message_from_log.then(|| container.log_path(container.attempt)),
        code,
    );
    container.exit.send_replace(Some(Exit {
        started_at: container.started_at,
        finished_at,
        code,
        signal,
        reason: if code == 0 { "Completed" } else { "Error" },
        message,
    }));
    about.changes.tell(&about.uid);
}

pub(super) fn start_error(program: &str, error: &LaunchError, now: Timestamp) -> Exit {
    let message = match (error.stage, error.source.kind()) {
        (Some(stage), _) => format!("failed to start container: {stage}: {}", error.source),
        (None, io::ErrorKind::NotFound) if !program.contains('/') => {
            format!("exec: {program:?}: executable file not found in $PATH")
        }
        (None, _) => format!("exec: {program:?}: {}", error.source),
    };
    Exit {
        started_at: now,
        finished_at: now,
        code: 128,
        signal: None,
        reason: "StartError",
        message: Some(message),
    }
}

impl Container {
    pub(super) fn supervise(&self, shared: &Shared, address: Ipv4Addr, listener: Option<OwnedFd>) {
        let Some(listener) = listener else { return };
        let rewrite = supervise::Rewrite { pod: address, redirects: shared.options.redirects.clone() };
        let task = AbortOnDropHandle::new(tokio::spawn(supervise::run(listener, rewrite)));
        let mut supervisors = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        supervisors.retain(|task| !task.is_finished());
        supervisors.push(task);
    }
}
