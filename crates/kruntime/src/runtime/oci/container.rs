//! One start of a container: from its bundle to its exit code.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{
    net::unix::pipe,
    sync::{broadcast, watch},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Pod, Shared,
    bundle::Bundle,
    console::Console,
    holder::{self, Held, Process, Standard, both_ends, make_pipe},
    rootfs,
};
use crate::{
    disk,
    images::Digest,
    logs::{FILE_BYTES_MAX, LogWriter, Progress},
    runtime::{
        ContainerConfig, ContainerDisk, ContainerPhase, Exit, ObservedContainer, PodUid, Reader, Resize,
        RuntimeError, Writer,
        output::{
            ATTACHED_BEHIND_MAX, DRAIN_MAX, Joinable, pump, remove_logs_before, terminal_ends,
            termination_message,
        },
    },
};

/// What is kept of a start, for a runtime that comes after this one.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Saved {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) attempt: u32,
    /// The order of the pod's containers.
    pub(super) order: usize,
    pub(super) started_at: Timestamp,
    pub(super) container: Option<Process>,
    pub(super) holder: Option<Process>,
    pub(super) stop_signal: i32,
    pub(super) tty: bool,
    pub(super) cgroup: String,
    pub(super) image: Digest,
    pub(super) image_id: String,
    /// The manifests of its image volumes.
    #[serde(default)]
    pub(super) volumes: Vec<Digest>,
    pub(super) message_from_log: bool,
    /// The handler of its pod.
    #[serde(default)]
    pub(super) handler: String,
    pub(super) exit: Option<SavedExit>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct SavedExit {
    finished_at: Timestamp,
    code: i32,
    signal: Option<i32>,
    reason: String,
    message: Option<String>,
}

/// The reasons that a container ends for, as they are said.
const REASONS: [&str; 4] = ["Completed", "Error", "StartError", "OOMKilled"];

/// A container that was started, or could not be.
pub(super) struct Container {
    pub(super) saved: Saved,
    pub(super) name: Arc<str>,
    /// The directory of its logs, with those of its bundles.
    dir: PathBuf,
    pub(super) streams: Joinable,
    log: watch::Receiver<Progress>,
    /// Whether nothing of it is left but its log.
    cleaned: watch::Sender<bool>,
    waiter: Mutex<Option<AbortOnDropHandle<()>>>,
}

impl std::fmt::Debug for Container {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Container")
            .field("name", &self.name)
            .field("id", &self.saved.id)
            .finish_non_exhaustive()
    }
}

fn exit_of(saved: &Saved) -> Option<Exit> {
    let exit = saved.exit.as_ref()?;
    Some(Exit {
        started_at: saved.started_at,
        finished_at: exit.finished_at,
        code: exit.code,
        signal: exit.signal,
        reason: REASONS.iter().find(|reason| **reason == exit.reason).copied().unwrap_or("Error"),
        message: exit.message.clone(),
    })
}

/// Our ends of a container's streams.
#[derive(Default)]
struct Ends {
    input: Option<Writer>,
    output: Option<Reader>,
    errors: Option<Reader>,
    resize: Option<Resize>,
}

impl Ends {
    fn open(bundle: &Path) -> io::Result<Self> {
        let reader = |name: &str| -> io::Result<Option<Reader>> {
            Ok(Some(Box::pin(pipe::OpenOptions::new().open_receiver(bundle.join(name))?)))
        };
        let input: Option<Writer> = if bundle.join("in").exists() {
            Some(Box::pin(pipe::OpenOptions::new().open_sender(bundle.join("in"))?))
        } else {
            None
        };
        Ok(Self { input, output: reader("out")?, errors: reader("err")?, resize: None })
    }
}

impl Container {
    fn new(saved: Saved, dir: PathBuf, ends: &mut Ends, log: watch::Receiver<Progress>) -> Self {
        let exit = watch::Sender::new(exit_of(&saved));
        let streams = Joinable {
            attached: broadcast::channel(ATTACHED_BEHIND_MAX).0,
            exit,
            input: Arc::new(tokio::sync::Mutex::new(ends.input.take())),
            resize: ends.resize.take(),
            tty: saved.tty,
        };
        let cleaned = watch::Sender::new(saved.exit.is_some());
        Self { name: saved.name.as_str().into(), saved, dir, streams, log, cleaned, waiter: Mutex::default() }
    }

    pub(super) fn bundle(&self) -> PathBuf {
        bundle_path(&self.dir, self.saved.attempt)
    }

    pub(super) fn observe(&self) -> ObservedContainer {
        let phase = match &*self.streams.exit.borrow() {
            Some(exit) => ContainerPhase::Exited(exit.clone()),
            None => ContainerPhase::Running { started_at: self.saved.started_at },
        };
        ObservedContainer {
            image_id: Some(self.saved.image_id.clone()),
            name: Arc::clone(&self.name),
            id: self.saved.id.clone(),
            attempt: self.saved.attempt,
            phase,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.streams.exit.borrow().is_none()
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.log.clone()
    }

    pub(super) fn log_path(&self, attempt: u32) -> PathBuf {
        self.dir.join(format!("{attempt}.log"))
    }

    /// What it has on disks: the layer over its image, where there is one, and its logs. Blocks.
    pub(super) fn disk(&self) -> ContainerDisk {
        let files = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let logs = files.filter(|file| file.file_name().to_string_lossy().contains(".log"));
        ContainerDisk {
            name: Arc::clone(&self.name),
            root_bytes: disk::taken(&self.bundle().join("upper")),
            log_bytes: logs.map(|file| disk::taken(&file.path())).sum(),
        }
    }

    pub(super) fn kill(&self) {
        if let Some(process) = self.saved.container.filter(|_| self.is_running()) {
            process.kill();
        }
    }

    async fn ended(&self) {
        let _ = self.streams.exit.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until nothing of it is left.
    pub(super) async fn cleaned(&self) {
        let _ = self.cleaned.subscribe().wait_for(|cleaned| *cleaned).await;
    }

    pub(super) async fn stop(&self, grace: Duration) {
        if let Some(process) = self.saved.container.filter(|_| self.is_running() && !grace.is_zero()) {
            process.signal(self.saved.stop_signal);
        }
        if tokio::time::timeout(grace, self.ended()).await.is_err() {
            self.kill();
            self.ended().await;
        }
    }

    /// Ends it at once, without anybody hearing of it, when the runtime goes.
    pub(super) fn end_now(&self, shared: &Shared) {
        drop(self.waiter.lock().unwrap_or_else(PoisonError::into_inner).take());
        if *self.cleaned.borrow() {
            return;
        }
        self.kill();
        shared.engine(&self.saved.handler).delete_now(&self.saved.id);
        if let Some(holder) = self.saved.holder {
            holder.kill();
        }
        rootfs::remove(&self.bundle());
    }

    /// Gives it other shares of the node, by the OCI runtime's `update`.
    pub(super) async fn resize(
        &self,
        engine: &super::Engine,
        resources: &crate::runtime::Resources,
    ) -> Result<(), RuntimeError> {
        self.update(engine, &super::spec::update(resources)).await
    }

    /// Changes what `changes`, an OCI specification's `resources`, names.
    pub(super) async fn update(
        &self,
        engine: &super::Engine,
        changes: &serde_json::Value,
    ) -> Result<(), RuntimeError> {
        let wrong = || RuntimeError::io("writing what the container gets");
        let mut file = tempfile::NamedTempFile::new_in(self.bundle()).map_err(wrong())?;
        serde_json::to_writer(&mut file, changes).map_err(io::Error::from).map_err(wrong())?;
        let path = file.path().to_string_lossy().into_owned();
        let log = self.bundle().join("update.json");
        let updated = engine.run(Some(&log), &["update", "--resources", &path, &self.saved.id]).await;
        let _ = std::fs::remove_file(log);
        updated.map_err(RuntimeError::Create)
    }

    /// Leaves it to a runtime that comes after this one.
    pub(super) fn leave(&self) {
        drop(self.waiter.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    fn save(&self, saved: &Saved) -> io::Result<()> {
        save(&self.bundle(), saved)
    }
}

pub(super) fn bundle_path(dir: &Path, attempt: u32) -> PathBuf {
    dir.join(format!("{attempt}"))
}

fn save(bundle: &Path, saved: &Saved) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(bundle)?;
    serde_json::to_writer(&mut file, saved)?;
    file.persist(bundle.join("state.json")).map_err(|error| error.error)?;
    Ok(())
}

/// Bundles and logs of starts before the last one are not asked for any more; bundles go at once.
fn forget_earlier(dir: &Path, attempt: u32, previous: Option<u32>) {
    if let Some(previous) = previous {
        remove_logs_before(dir, previous);
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        if number.is_some_and(|number| number <= attempt) && entry.path().is_dir() {
            rootfs::remove(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Starts a container.
pub(super) async fn start(
    shared: &Arc<Shared>,
    uid: &PodUid,
    pod: &Arc<Pod>,
    config: &ContainerConfig,
    previous: Option<Arc<Container>>,
) -> Result<Arc<Container>, RuntimeError> {
    if let Some(previous) = &previous {
        previous.cleaned().await;
    }
    let dir = pod.dir.join(super::file_name(&config.name));
    let bundle = bundle_path(&dir, config.attempt);
    let prepared = {
        let (shared, pod, config, dir, uid) =
            (Arc::clone(shared), Arc::clone(pod), config.clone(), dir.clone(), uid.clone());
        let earlier = previous.as_ref().map(|previous| previous.saved.attempt);
        let work = move || {
            forget_earlier(&dir, config.attempt, earlier);
            Bundle::prepare(&shared, &pod, &uid, &config, &bundle_path(&dir, config.attempt))
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| RuntimeError::Create(error.to_string()))??
    };
    let order = previous.map_or_else(|| pod.containers().len(), |previous| previous.saved.order);
    let mut saved = Saved {
        name: config.name.to_string(),
        id: prepared.id.clone(),
        attempt: config.attempt,
        order,
        started_at: shared.options.clock.now(),
        container: None,
        holder: None,
        stop_signal: prepared.stop_signal,
        tty: config.tty,
        cgroup: prepared.cgroup,
        image: prepared.image,
        image_id: prepared.image_id,
        volumes: prepared.volumes,
        message_from_log: config.termination_message_from_log,
        handler: pod.config.runtime_handler.clone(),
        exit: None,
    };
    let wrong = RuntimeError::io("preparing the container");
    let log =
        LogWriter::create(dir.join(format!("{}.log", config.attempt)), FILE_BYTES_MAX).map_err(wrong)?;
    let mut ends = Ends::default();
    let engine = shared.engine(&saved.handler);
    let made = make(engine, &bundle, config, &prepared.id, &mut ends).await;
    saved.started_at = shared.options.clock.now();
    match made {
        Ok(held) => {
            saved.container = Some(held.container);
            saved.holder = Some(held.holder);
            let container = Arc::new(Container::new(saved, dir, &mut ends, log.progress()));
            if let Err(error) = container.save(&container.saved) {
                tracing::warn!(pod = %uid, %error, "a container's state is not kept: it won't outlive this process");
            }
            container.watch(shared, uid, Some(held.child), ends, log);
            Ok(container)
        }
        Err(message) => {
            let _ = engine.run(None, &["delete", "--force", &prepared.id]).await;
            rootfs::remove(&bundle);
            saved.exit = Some(SavedExit {
                finished_at: saved.started_at,
                code: 128,
                signal: None,
                reason: "StartError".to_owned(),
                message: Some(format!(
                    "failed to create containerd task: failed to start container: {message}"
                )),
            });
            if let Err(error) = save(&bundle, &saved) {
                tracing::warn!(pod = %uid, %error, "a container's end is not kept");
            }
            Ok(Arc::new(Container::new(saved, dir, &mut ends, log.progress())))
        }
    }
}

/// Makes the container and starts its program.
async fn make(
    engine: &super::Engine,
    bundle: &Path,
    config: &ContainerConfig,
    id: &str,
    ends: &mut Ends,
) -> Result<Held, String> {
    let said = |error: io::Error| error.to_string();
    let held = if config.tty {
        // The path of a socket is short: one below a state directory may be too long.
        let short = tempfile::Builder::new().prefix("kplane").tempdir().map_err(said)?;
        let path = short.path().join("tty");
        let console = Console::listen(&path).map_err(said)?;
        let standard = Standard { input: Stdio::null(), output: Stdio::null(), errors: Stdio::null() };
        let create = holder::create(engine, bundle, id, Some(&path), standard);
        let (held, terminal) = tokio::join!(create, async {
            tokio::time::timeout(super::TERMINAL_MAX, console.receive()).await
        });
        let held = held?;
        let terminal = terminal.map_err(|_| "no terminal came".to_owned())?.map_err(said)?;
        let (input, output, resize) = terminal_ends(terminal).map_err(said)?;
        *ends = Ends { input: Some(input), output: Some(output), errors: None, resize: Some(resize) };
        held
    } else {
        let pipe = |name: &str| -> io::Result<Stdio> {
            make_pipe(&bundle.join(name))?;
            Ok(both_ends(&bundle.join(name))?.into())
        };
        let input = if config.stdin { pipe("in").map_err(said)? } else { Stdio::null() };
        let standard =
            Standard { input, output: pipe("out").map_err(said)?, errors: pipe("err").map_err(said)? };
        *ends = Ends::open(bundle).map_err(said)?;
        holder::create(engine, bundle, id, None, standard).await?
    };
    let log = bundle.join("log.json");
    if let Err(error) = engine.run(Some(&log), &["start", id]).await {
        held.container.kill();
        held.holder.kill();
        return Err(error);
    }
    Ok(held)
}

/// What of an earlier runtime's container is still there.
pub(super) fn restore(
    shared: &Arc<Shared>,
    uid: &PodUid,
    dir: &Path,
    saved: Saved,
) -> io::Result<Arc<Container>> {
    let log = LogWriter::create(dir.join(format!("{}.log", saved.attempt)), FILE_BYTES_MAX)?;
    if saved.exit.is_some() {
        return Ok(Arc::new(Container::new(saved, dir.to_owned(), &mut Ends::default(), log.progress())));
    }
    let bundle = bundle_path(dir, saved.attempt);
    // A terminal goes with the process that had it.
    let mut ends = if saved.tty { Ends::default() } else { Ends::open(&bundle).unwrap_or_default() };
    let container = Arc::new(Container::new(saved, dir.to_owned(), &mut ends, log.progress()));
    container.watch(shared, uid, None, ends, log);
    Ok(container)
}

impl Container {
    /// Carries the program's output away, and waits for its end.
    fn watch(
        self: &Arc<Self>,
        shared: &Arc<Shared>,
        uid: &PodUid,
        child: Option<tokio::process::Child>,
        ends: Ends,
        log: LogWriter,
    ) {
        let log = Arc::new(Mutex::new(log));
        let pumps =
            [(ends.output, false), (ends.errors, true)].into_iter().filter_map(|(reader, is_error)| {
                let (log, attached) = (Arc::clone(&log), self.streams.attached.clone());
                let clock = Arc::clone(&shared.options.clock);
                Some(AbortOnDropHandle::new(tokio::spawn(pump(reader?, is_error, log, attached, clock))))
            });
        let waiter =
            wait(Arc::downgrade(self), Arc::downgrade(shared), uid.clone(), child, pumps.collect(), log);
        let waiter = AbortOnDropHandle::new(tokio::spawn(waiter));
        *self.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiter);
    }
}

async fn wait(
    container: Weak<Container>,
    shared: Weak<Shared>,
    uid: PodUid,
    child: Option<tokio::process::Child>,
    pumps: Vec<AbortOnDropHandle<()>>,
    log: Arc<Mutex<LogWriter>>,
) {
    let Some((process, holder)) = container.upgrade().map(|c| (c.saved.container, c.saved.holder)) else {
        return;
    };
    if let Some(process) = process
        && let Err(error) = process.ended().await
    {
        tracing::warn!(pod = %uid, %error, "a container can't be waited for; it is killed");
        process.kill();
    }
    let exit = process.and_then(Process::exit);
    let (Some(container), Some(shared)) = (container.upgrade(), shared.upgrade()) else { return };
    let finished_at = shared.options.clock.now();
    let was_out_of_memory = shared.cgroups.was_out_of_memory(&container.saved.cgroup);
    // It has the last of the pipes' ends: with it goes what kept them open.
    if let Some(holder) = holder {
        holder.kill();
    }
    if let Some(mut child) = child {
        let _ = child.wait().await;
    }
    let _ = tokio::time::timeout(DRAIN_MAX, futures::future::join_all(pumps)).await;
    log.lock().unwrap_or_else(PoisonError::into_inner).finish();
    // Nobody knows any more how it ended when its holder was killed with it, or the machine was started anew.
    let (code, signal) = exit.unwrap_or((255, None));
    let from_log = container.saved.message_from_log.then(|| container.log_path(container.saved.attempt));
    let message = termination_message(&container.bundle().join("termination-log"), from_log, code);
    let reason = match code {
        _ if was_out_of_memory => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    let mut saved = container.saved.clone();
    saved.exit = Some(SavedExit { finished_at, code, signal, reason: reason.to_owned(), message });
    if let Err(error) = container.save(&saved) {
        tracing::warn!(pod = %uid, %error, "a container's end is not kept");
    }
    container.streams.exit.send_replace(exit_of(&saved));
    shared.changes.tell(&uid);
    let engine = shared.engine(&saved.handler);
    if let Err(error) = engine.run(None, &["delete", "--force", &saved.id]).await {
        tracing::debug!(pod = %uid, %error, "what the OCI runtime knows of a container is left");
    }
    let bundle = container.bundle();
    let clean = move || {
        rootfs::remove(&bundle);
        for part in ["rootfs", "upper", "work"] {
            let _ = std::fs::remove_dir_all(bundle.join(part));
        }
    };
    let _ = tokio::task::spawn_blocking(clean).await;
    container.cleaned.send_replace(true);
}
