//! What keeps a container while nobody else does: a process that is the parent of the container's first one.
//!
//! A container has to outlive the program that started it, with its exit code and what it wrote last. So each has a holder: a
//! shell that becomes `sleep` once the OCI runtime has made the container. It is a subreaper, so the container's process,
//! which the OCI runtime leaves behind, becomes its child; it never waits for children, so an exit code stays in `/proc`
//! until somebody has read it and ends the holder; and it has the container's pipes open, so what was written stays too. Next
//! to a monitor of our own that costs half a megabyte, no program to install, and no `fork` in a process of many threads.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::OwnedFd,
        unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, Interest, unix::AsyncFd},
    net::unix::pipe,
};

use super::engine::Engine;

/// How long the OCI runtime may take to make a container.
const CREATE_MAX: Duration = Duration::from_secs(120);
/// Runs what it is given, tells how that ended, and stays.
const SCRIPT: &str = "told=$1; shift; \"$@\"; code=$?; echo $code >\"$told\"; [ $code = 0 ] || exit 1; \
    exec sleep 2147483647";

/// A process that can't be mistaken for another that got its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// When it started, in the kernel's ticks since the machine did.
    started: u64,
}

/// The fields of `/proc/PID/stat` after the program's name, which may have anything in it: the state is the first.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

impl Process {
    pub(super) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: stat(pid)?.get(19)?.parse().ok()? })
    }

    /// A descriptor of it, if it is there: alive, or ended and not waited for.
    pub(super) fn open(self) -> Option<OwnedFd> {
        let fd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // The number can't change hands once there is a descriptor, if it had not before.
        (Self::of(self.pid) == Some(self)).then_some(fd)
    }

    pub(super) fn signal(self, signal: i32) {
        if let (Some(fd), Some(signal)) = (self.open(), Signal::from_named_raw(signal)) {
            let _ = pidfd_send_signal(fd, signal);
        }
    }

    pub(super) fn kill(self) {
        self.signal(libc::SIGKILL);
    }

    /// Waits for its end.
    pub(super) async fn ended(self) -> io::Result<()> {
        let Some(fd) = self.open() else { return Ok(()) };
        // SAFETY: an `OwnedFd` stays open, and the same, as long as it lives.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        fd.readable().await.map(drop)
    }

    /// How it ended, while nobody has waited for it: its exit code, or 128 and its signal.
    pub(super) fn exit(self) -> Option<(i32, Option<i32>)> {
        let fields = stat(self.pid)?;
        if fields.first()? != "Z" || fields.get(19)?.parse() != Ok(self.started) {
            return None;
        }
        let status: i32 = fields.get(49)?.parse().ok()?;
        Some(match status & 0x7f {
            0 => ((status >> 8) & 0xff, None),
            signal => (128 + signal, Some(signal)),
        })
    }
}

/// A pipe that has a name, made anew.
pub(super) fn make_pipe(path: &Path) -> io::Result<()> {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)?;
    Ok(())
}

/// Both ends of a named pipe in one: whoever has it never finds the other end closed.
pub(super) fn both_ends(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path)
}

/// The container's standard streams, as it will have them.
pub(super) struct Standard {
    pub(super) input: Stdio,
    pub(super) output: Stdio,
    pub(super) errors: Stdio,
}

/// What became of an order to make a container.
pub(super) struct Held {
    pub(super) child: tokio::process::Child,
    pub(super) holder: Process,
    pub(super) container: Process,
}

/// Makes a container under a new holder.
///
/// # Errors
/// What the OCI runtime said.
pub(super) async fn create(
    engine: &Engine,
    bundle: &Path,
    id: &str,
    console: Option<&Path>,
    standard: Standard,
) -> Result<Held, String> {
    let failed = |what: &'static str| move |error: io::Error| format!("{what}: {error}");
    let (log, pid_file, told) = (bundle.join("log.json"), bundle.join("pid"), bundle.join("told"));
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (bundle_text, pid_text) = (text(bundle), text(&pid_file));
    let mut arguments = vec!["create", "--bundle", &bundle_text, "--pid-file", &pid_text];
    let console = console.map(text);
    if let Some(console) = &console {
        arguments.extend(["--console-socket", console]);
    }
    arguments.push(id);
    make_pipe(&told).map_err(failed("making a pipe"))?;
    let mut answer =
        pipe::OpenOptions::new().read_write(true).open_receiver(&told).map_err(failed("opening a pipe"))?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", SCRIPT, "kplane-holder"]).arg(&told).args(engine.line(Some(&log), &arguments));
    command.stdin(standard.input).stdout(standard.output).stderr(standard.errors);
    // SAFETY: plain system calls, which are safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = tokio::process::Command::from(command).spawn().map_err(failed("starting the holder"))?;
    let holder =
        child.id().and_then(|pid| Process::of(i32::try_from(pid).ok()?)).ok_or("the holder is gone")?;
    let mut said = [0; 16];
    let answered = tokio::select! {
        read = answer.read(&mut said) => read.map_err(failed("reading the answer")),
        _ = child.wait() => Ok(0),
        () = tokio::time::sleep(CREATE_MAX) => Err("the OCI runtime takes too long".to_owned()),
    };
    let worked = answered.as_ref().is_ok_and(|length| said[..*length].starts_with(b"0\n"));
    let pid = std::fs::read_to_string(&pid_file).ok().and_then(|pid| pid.trim().parse().ok());
    let container = pid.filter(|_| worked).and_then(Process::of);
    match container {
        Some(container) => Ok(Held { child, holder, container }),
        None => {
            holder.kill();
            let _ = child.wait().await;
            answered?;
            Err(super::engine::said(&log)
                .unwrap_or_else(|| "the OCI runtime failed without a word".to_owned()))
        }
    }
}
