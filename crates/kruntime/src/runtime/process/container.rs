//! One start of a container.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    net::Ipv4Addr,
    os::{fd::OwnedFd, unix::fs::symlink},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    io::AsyncWriteExt,
    sync::{broadcast, watch},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    LOG_BYTES_MAX, Mounting, Pod, Shared,
    allowed::{own_ids, user_map},
    c_string, file_name,
    launch::{Isolation, Launch, LaunchError, Launched},
    log_path,
    mounts::MountPlan,
    output::{ATTACHED_BEHIND_MAX, Piece, Streams, pump},
    supervise,
    tree::{MARK, Program, exit_code},
};
use crate::{
    images::ImageConfig,
    logs::{self, LogWriter, Progress},
    runtime::{
        ContainerConfig, ContainerPhase, ExecRequest, Exit, Mount, PodUid, Reader, Resize, RuntimeError,
        Session, Writer,
    },
};

/// How long the output of an ended container is waited for: something may still hold its pipes.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The most bytes of a termination message (upstream's `MaxContainerTerminationMessageLength`).
const MESSAGE_BYTES_MAX: usize = 4096;
/// The most bytes and lines of a log that stand in for a termination message.
const MESSAGE_LOG_BYTES_MAX: usize = 2048;
const MESSAGE_LOG_LINES_MAX: u64 = 80;
/// What containers inherit of our environment, as they would get it from an image.
const INHERITED: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR"];
/// Where programs are looked for when nobody says.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container that was started, or that could not be.
pub(super) struct Container {
    pub(super) name: Arc<str>,
    pub(super) id: String,
    pub(super) attempt: u32,
    dir: PathBuf,
    started_at: Timestamp,
    exit: watch::Sender<Option<Exit>>,
    program: Option<Arc<Program>>,
    log: watch::Receiver<Progress>,
    attached: broadcast::Sender<Piece>,
    input: Arc<tokio::sync::Mutex<Option<Writer>>>,
    resize: Option<Resize>,
    tty: bool,
    stop_signal: libc::c_int,
    env: Vec<(String, String)>,
    working_dir: PathBuf,
    isolated: bool,
    user: Option<(u32, u32)>,
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

/// A signal by its name; SIGTERM when it isn't known.
fn signal_number(name: Option<&str>) -> libc::c_int {
    match name.unwrap_or_default() {
        "SIGHUP" => libc::SIGHUP,
        "SIGINT" => libc::SIGINT,
        "SIGQUIT" => libc::SIGQUIT,
        "SIGKILL" => libc::SIGKILL,
        "SIGUSR1" => libc::SIGUSR1,
        "SIGUSR2" => libc::SIGUSR2,
        "SIGWINCH" => libc::SIGWINCH,
        _ => libc::SIGTERM,
    }
}

/// Puts command and arguments of container and image together, as the container's override the image's.
fn command_line(config: &ContainerConfig, image: Option<&ImageConfig>) -> Result<Vec<String>, RuntimeError> {
    if !config.command.is_empty() {
        return Ok([&config.command[..], &config.args].concat());
    }
    let Some(image) = image else {
        return Err(RuntimeError::Image(format!(
            "image {:?} is only a name to the process runtime: set the container's command, or make the image known",
            config.image
        )));
    };
    let arguments = if config.args.is_empty() { &image.command } else { &config.args };
    let line = [&image.entrypoint[..], arguments].concat();
    if line.is_empty() {
        return Err(RuntimeError::Create("no command specified".to_owned()));
    }
    Ok(line)
}

/// The whole environment. Later entries win.
fn environment(config: &ContainerConfig, image: Option<&ImageConfig>, id: &str) -> Vec<(String, String)> {
    let mut env = BTreeMap::from([("PATH".to_owned(), PATH_DEFAULT.to_owned())]);
    env.extend(INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
    env.extend(image.into_iter().flat_map(|image| image.env.iter().cloned()));
    env.extend(config.env.iter().cloned());
    env.insert(MARK.to_owned(), id.to_owned());
    env.into_iter().filter(|(name, value)| !name.contains(['=', '\0']) && !value.contains('\0')).collect()
}

/// The user and group to become, checked against what the machine allows.
fn identity(shared: &Shared, config: &ContainerConfig) -> Result<Option<(u32, u32)>, RuntimeError> {
    let own = own_ids();
    let wanted = (config.run_as_user.unwrap_or(own.0), config.run_as_group.unwrap_or(own.1));
    if config.run_as_non_root && wanted.0 == 0 {
        return Err(RuntimeError::Config("container has runAsNonRoot and image will run as root".to_owned()));
    }
    if wanted == own {
        return Ok(None);
    }
    // In a user namespace we can be called by any number; as root we can be anybody.
    if own.0 == 0 || shared.allowed.mounting == Mounting::Unprivileged {
        return Ok(Some(wanted));
    }
    Err(RuntimeError::Config(format!(
        "this node can't run processes as user {} and group {}",
        wanted.0, wanted.1
    )))
}

/// The mounts of a container: its volumes, the pod's files and the place for its termination message.
fn all_mounts(pod: &Pod, config: &ContainerConfig, message: &Path) -> Vec<Mount> {
    let mut mounts = config.mounts.clone();
    let mut file = |source: PathBuf, target: &str| {
        let target = PathBuf::from(target);
        if !mounts.iter().any(|mount| mount.target == target) {
            mounts.push(Mount { source, target, read_only: false });
        }
    };
    if !pod.config.host_network {
        file(pod.dir.join("hosts"), "/etc/hosts");
        file(pod.dir.join("hostname"), "/etc/hostname");
    }
    if pod.config.resolv_conf.is_some() {
        file(pod.dir.join("resolv.conf"), "/etc/resolv.conf");
    }
    if let Some(path) = config.termination_message_path.as_ref().and_then(|path| path.to_str()) {
        file(message.to_owned(), path);
    }
    mounts
}

/// Without mount namespaces the volumes are found below a directory, by links.
fn link_volumes(dir: &Path, mounts: &[Mount]) -> io::Result<PathBuf> {
    let root = dir.join("root");
    match std::fs::remove_dir_all(&root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => std::fs::create_dir_all(&root)?,
    }
    for mount in mounts {
        let target = root.join(mount.target.strip_prefix("/").unwrap_or(&mount.target));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // Of two volumes one inside the other, the outer one is linked.
        let _ = symlink(&mount.source, &target);
    }
    Ok(root)
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
    let image = shared.options.images.config(&config.image);
    let program = command_line(config, image.as_ref())?;
    let user = identity(shared, config)?;
    let id = new_id();
    let mut env = environment(config, image.as_ref(), &id);
    let dir = pod.dir.join(file_name(&config.name));
    std::fs::create_dir_all(&dir).map_err(wrong)?;
    let message = dir.join("termination-log");
    std::fs::write(&message, b"").map_err(wrong)?;
    if let Some(previous) = previous {
        remove_logs_before(&dir, previous.attempt);
    }
    let mounts = all_mounts(pod, config, &message);
    let isolated = shared.allowed.mounting != Mounting::None;
    let isolation = if isolated {
        let plan = MountPlan::new(&shared.base(), &mounts)?;
        let own = own_ids();
        let (inside_user, inside_group) = user.unwrap_or(own);
        let map =
            (shared.allowed.mounting == Mounting::Unprivileged).then(|| user_map(inside_user, inside_group));
        let hostname = CString::new(pod.config.hostname.as_str()).unwrap_or_default();
        Isolation::New { mounts: Box::new(plan), user: map, hostname }
    } else {
        let root = link_volumes(&dir, &mounts).map_err(wrong)?;
        env.push(("KPLANE_ROOT".to_owned(), root.to_string_lossy().into_owned()));
        Isolation::None
    };
    let working_dir = config
        .working_dir
        .clone()
        .or_else(|| image.as_ref().and_then(|image| image.working_dir.clone()))
        .unwrap_or_else(|| PathBuf::from("/"));
    let streams = Streams::new(config.tty, config.stdin).map_err(wrong)?;
    let real_user = user.filter(|_| shared.allowed.mounting != Mounting::Unprivileged);
    let launch = Launch {
        program: program.clone(),
        env: env.clone(),
        dir: c_string(&working_dir)?,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        tty: config.tty,
        isolation,
        confine: shared.allowed.rewrite && !pod.config.host_network,
        user: real_user,
        rehearse: false,
    };
    let writer = LogWriter::create(log_path(&dir, config.attempt), LOG_BYTES_MAX).map_err(wrong)?;
    let launched = shared.launcher.launch(launch).await;
    let now = shared.options.clock.now();
    let (attached, _) = broadcast::channel(ATTACHED_BEHIND_MAX);
    let log = writer.progress();
    let mut container = Container {
        name: Arc::clone(&config.name),
        id: id.clone(),
        attempt: config.attempt,
        dir,
        started_at: now,
        exit: watch::Sender::new(None),
        program: None,
        log,
        attached: attached.clone(),
        input: Arc::new(tokio::sync::Mutex::new(streams.input)),
        resize: streams.resize,
        tty: config.tty,
        stop_signal: signal_number(config.stop_signal.as_deref()),
        env,
        working_dir,
        isolated,
        user: real_user,
        supervisor: Mutex::default(),
        waiter: Mutex::default(),
    };
    let launched = match launched {
        Ok(launched) => launched,
        Err(error) => {
            container.exit.send_replace(Some(start_error(&program[0], &error, now)));
            return Ok(Arc::new(container));
        }
    };
    let program = Arc::new(Program::new(launched.child, id));
    container.program = Some(Arc::clone(&program));
    let container = Arc::new(container);
    container.supervise(shared, pod.address, launched.listener);
    let writer = Arc::new(Mutex::new(writer));
    let clock = &shared.options.clock;
    let mut pumps = vec![AbortOnDropHandle::new(tokio::spawn(pump(
        streams.output,
        false,
        Arc::clone(&writer),
        attached.clone(),
        Arc::clone(clock),
    )))];
    if let Some(errors) = streams.errors {
        let pumped = pump(errors, true, Arc::clone(&writer), attached, Arc::clone(clock));
        pumps.push(AbortOnDropHandle::new(tokio::spawn(pumped)));
    }
    let waiter = wait(
        Arc::downgrade(&container),
        program,
        pumps,
        writer,
        WaitFor {
            uid: uid.clone(),
            clock: Arc::clone(clock),
            changes: Arc::clone(&shared.changes),
            message,
            message_from_log: config.termination_message_from_log,
        },
    );
    let waiter = AbortOnDropHandle::new(tokio::spawn(waiter));
    *container.waiter.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiter);
    Ok(container)
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
    let _ = tokio::time::timeout(DRAIN_MAX, futures::future::join_all(pumps)).await;
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
    let message = termination_message(&about, &container, code);
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

fn termination_message(about: &WaitFor, container: &Container, code: i32) -> Option<String> {
    let mut bytes = std::fs::read(&about.message).unwrap_or_default();
    bytes.truncate(MESSAGE_BYTES_MAX);
    if bytes.is_empty() && about.message_from_log && code != 0 {
        let log = std::fs::read(container.log_path(container.attempt)).unwrap_or_default();
        let options =
            crate::runtime::LogOptions { tail_lines: Some(MESSAGE_LOG_LINES_MAX), ..Default::default() };
        let text = logs::select(&log, &options);
        bytes = text[text.len().saturating_sub(MESSAGE_LOG_BYTES_MAX)..].to_vec();
    }
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn start_error(program: &str, error: &LaunchError, now: Timestamp) -> Exit {
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

/// Logs of starts before the last one are not asked for any more.
fn remove_logs_before(dir: &Path, attempt: u32) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split_once(".log")?.0.parse::<u32>().ok());
        if number.is_some_and(|number| number < attempt) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The id of a start: 64 hexadecimal digits, as other runtimes have it.
fn new_id() -> String {
    let random: [u64; 4] = rand::random();
    random.iter().map(|part| format!("{part:016x}")).collect()
}

impl Container {
    fn supervise(&self, shared: &Shared, address: Ipv4Addr, listener: Option<OwnedFd>) {
        let Some(listener) = listener else { return };
        let rewrite = supervise::Rewrite { pod: address, redirects: shared.options.redirects.clone() };
        let task = AbortOnDropHandle::new(tokio::spawn(supervise::run(listener, rewrite)));
        let mut supervisors = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        supervisors.retain(|task| !task.is_finished());
        supervisors.push(task);
    }

    /// The namespaces of the container's program, in the order in which they are joined.
    fn namespaces(&self, with_user: bool) -> io::Result<Vec<OwnedFd>> {
        let pid = self.program.as_ref().map_or(0, |program| program.pid());
        let names: &[&str] = if with_user { &["user", "mnt", "uts"] } else { &["mnt", "uts"] };
        let open = |name: &&str| Ok(std::fs::File::open(format!("/proc/{pid}/ns/{name}"))?.into());
        names.iter().map(open).collect()
    }
}

/// Runs a program in a container.
pub(super) async fn exec(
    shared: &Arc<Shared>,
    pod: &Arc<Pod>,
    container: &Arc<Container>,
    request: ExecRequest,
) -> Result<Session, RuntimeError> {
    let wrong = |source| RuntimeError::Io { context: "preparing the program", source };
    let streams = Streams::new(request.tty, request.stdin).map_err(wrong)?;
    let isolation = if container.isolated {
        let unprivileged = shared.allowed.mounting == Mounting::Unprivileged;
        Isolation::Join(container.namespaces(unprivileged).map_err(wrong)?)
    } else {
        Isolation::None
    };
    let mut env = container.env.clone();
    if request.tty && !env.iter().any(|(name, _)| name == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let name = request.command.first().cloned().unwrap_or_default();
    let launch = Launch {
        program: request.command,
        env,
        dir: c_string(&container.working_dir)?,
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        tty: request.tty,
        isolation,
        confine: shared.allowed.rewrite && !pod.config.host_network,
        user: container.user,
        rehearse: false,
    };
    let Launched { child, listener } = shared.launcher.launch(launch).await.map_err(|error| {
        let exit = start_error(&name, &error, shared.options.clock.now());
        RuntimeError::Create(exit.message.unwrap_or_default())
    })?;
    container.supervise(shared, pod.address, listener);
    // Its own mark: the end of this program is not the end of the container's others.
    let program = Arc::new(Program::new(child, String::new()));
    {
        let mut programs = pod.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.retain(|program| program.strong_count() > 0);
        programs.push(Arc::downgrade(&program));
    }
    let exit = async move {
        let status = program.wait().await.map_err(RuntimeError::io("waiting for the program"))?;
        Ok(exit_code(status).0)
    };
    Ok(Session {
        stdin: streams.input.filter(|_| request.stdin),
        stdout: Some(streams.output),
        stderr: streams.errors,
        resize: streams.resize,
        exit: Box::pin(exit),
    })
}

/// Joins a container's streams.
pub(super) fn attach(container: &Arc<Container>) -> Session {
    let reader = |wanted: bool| -> Reader {
        let (mut writer, reader) = tokio::io::duplex(64 * 1024);
        let mut pieces = container.attached.subscribe();
        // Not the container itself: an attached reader must not keep it.
        let mut exit = container.exit.subscribe();
        tokio::spawn(async move {
            let copy = async {
                loop {
                    match pieces.recv().await {
                        Ok((is_error, bytes)) if is_error == wanted => {
                            if writer.write_all(&bytes).await.is_err() {
                                return;
                            }
                        }
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                    }
                }
            };
            tokio::select! {
                () = copy => {}
                _ = exit.wait_for(Option::is_some) => {}
            }
        });
        Box::pin(reader)
    };
    let mut exit = container.exit.subscribe();
    let exit = async move {
        let code =
            exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.as_ref().map(|exit| exit.code));
        Ok(code.unwrap_or(255))
    };
    let stdin: Writer = {
        let (writer, mut reader) = tokio::io::duplex(64 * 1024);
        let input = Arc::clone(&container.input);
        tokio::spawn(async move {
            let mut buffer = vec![0; 8192];
            while let Ok(length) = tokio::io::AsyncReadExt::read(&mut reader, &mut buffer).await {
                let mut input = input.lock().await;
                let Some(input) = input.as_mut().filter(|_| length > 0) else { return };
                if input.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(writer)
    };
    Session {
        stdin: Some(stdin),
        stdout: Some(reader(false)),
        stderr: (!container.tty).then(|| reader(true)),
        resize: container.resize.clone(),
        exit: Box::pin(exit),
    }
}
