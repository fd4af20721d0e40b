//! Ending a program with all that it started.

use std::{
    io,
    os::{
        fd::{FromRawFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::{Child, ExitStatus},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::io::{Interest, unix::AsyncFd};

/// The variable that marks every process of a container, so that those are found that left its session.
pub(super) const MARK: &str = "KPLANE_CONTAINER";
/// How often a container's processes are looked for: each round may find what the last one's victims started, and those
/// of the last one that are still about to end.
const ROUNDS_MAX: u32 = 40;
/// The longest pause between two rounds. The first is [`PAUSE_MIN`], each doubles: together they stay under half a second.
const PAUSE_MAX: Duration = Duration::from_millis(16);
const PAUSE_MIN: Duration = Duration::from_micros(16);

/// A program that was started, as the leader of a session of its own. Dropping it kills it, and all that it started.
#[derive(Debug)]
pub(in crate::runtime) struct Program {
    pid: libc::pid_t,
    mark: String,
    /// `None` once it was reaped: after that its number may be somebody else's.
    child: Mutex<Option<Child>>,
}

impl Program {
    pub(in crate::runtime) fn new(child: Child, mark: String) -> Self {
        let pid = libc::pid_t::try_from(child.id()).unwrap_or(0);
        Self { pid, mark, child: Mutex::new(Some(child)) }
    }

    pub(in crate::runtime) fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Sends a signal to the program itself, as long as it has not been reaped.
    pub(super) fn signal(&self, signal: libc::c_int) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if child.is_some() && self.pid > 0 {
            // SAFETY: a plain system call; the child is not reaped, so its number is its own.
            unsafe { libc::kill(self.pid, signal) };
        }
    }

    /// Waits for the program's end, then ends what it left behind. Only one caller waits.
    pub(in crate::runtime) async fn wait(&self) -> io::Result<ExitStatus> {
        // SAFETY: a plain system call; a descriptor that comes back is ours alone.
        let pidfd = unsafe {
            let fd = libc::syscall(libc::SYS_pidfd_open, self.pid, 0) as libc::c_int;
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: an `OwnedFd` stays open, and the same, as long as it lives.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        loop {
            let mut ready = pidfd.readable().await?;
            if let Some(status) = self.reap()? {
                return Ok(status);
            }
            ready.clear_ready();
        }
    }

    fn reap(&self) -> io::Result<Option<ExitStatus>> {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(running) = child.as_mut() else { return Ok(Some(ExitStatus::from_raw(0))) };
        let has_ended = {
            // The session is ended before its leader is reaped: until then nobody else can have its number.
            // SAFETY: the buffer is plain data; `WNOWAIT` leaves the child to be reaped.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            // SAFETY: as above.
            unsafe {
                libc::waitid(libc::P_PID, self.pid as libc::id_t, &raw mut info, flags) == 0
                    && info.si_pid() != 0
            }
        };
        if !has_ended {
            return Ok(None);
        }
        self.kill_rest();
        let status = running.try_wait()?;
        if status.is_some() {
            *child = None;
        }
        Ok(status)
    }

    /// Kills the program and all that it started.
    pub(in crate::runtime) fn kill(&self) {
        self.signal(libc::SIGKILL);
        self.kill_group();
    }

    fn kill_group(&self) {
        if self.pid > 1 {
            // SAFETY: a plain system call; the caller knows that the leader is not reaped.
            unsafe { libc::kill(-self.pid, libc::SIGKILL) };
        }
    }

    /// Kills what is left of the session, and what left the session but carries the container's mark.
    #[allow(
        clippy::disallowed_methods,
        reason = "the kernel tells nobody of the end of processes that are not one's children, and a `drop` can't await"
    )]
    fn kill_rest(&self) {
        self.kill_group();
        if self.mark.is_empty() {
            return;
        }
        let mark = format!("{MARK}={}", self.mark);
        let mut pause = PAUSE_MIN;
        for _ in 0..ROUNDS_MAX {
            let mut found = false;
            for pid in processes().filter(|pid| *pid != self.pid) {
                match belongs(pid, mark.as_bytes()) {
                    Belongs::No => continue,
                    Belongs::NotYetTold => {}
                    Belongs::Yes => {
                        // SAFETY: a plain system call. The number could be another process's by now only if the marked
                        // one died within microseconds and all numbers were used up in between.
                        unsafe { libc::kill(pid, libc::SIGKILL) };
                    }
                }
                found = true;
            }
            if !found {
                return;
            }
            #[allow(
                clippy::disallowed_methods,
                reason = "milliseconds of real time, for processes that really end"
            )]
            std::thread::sleep(pause);
            pause = PAUSE_MAX.min(pause * 2);
        }
    }
}

impl Program {
    /// Kills the program and all that it started, and reaps it, at once. It was killed: that does not take long.
    pub(super) fn end(&self) {
        let child = self.child.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ = child.kill();
            self.kill_group();
            self.kill_rest();
            let _ = child.wait();
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

pub(super) fn processes() -> impl Iterator<Item = libc::pid_t> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a process carries a container's mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Belongs {
    Yes,
    No,
    /// It is becoming another program at this moment, and has the environment of neither.
    NotYetTold,
}

fn belongs(pid: libc::pid_t, mark: &[u8]) -> Belongs {
    // A process that has ended but is not reaped has no environment any more, so the rounds come to an end.
    match std::fs::read(format!("/proc/{pid}/environ")) {
        Ok(environ) if environ.split(|byte| *byte == 0).any(|variable| variable == mark) => Belongs::Yes,
        Ok(environ) if environ.is_empty() && is_between_programs(pid) => Belongs::NotYetTold,
        _ => Belongs::No,
    }
}

/// Whether the kernel has given a living process the memory of a new program but not its arguments yet (proc(5),
/// `/proc/pid/stat`: no `env_end`). Its own threads never have any, those that have ended neither.
fn is_between_programs(pid: libc::pid_t) -> bool {
    /// A thread of the kernel (`PF_KTHREAD`).
    const OF_KERNEL: u64 = 0x0020_0000;
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The name is in brackets and may hold anything; what follows is counted from the state, the third field.
    let Some((_, rest)) = stat.rsplit_once(") ") else { return false };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
    !matches!(fields.first(), Some(&("Z" | "X" | "x")))
        && number(9).is_some_and(|flags| flags & OF_KERNEL == 0)
        && number(51) == Some(0)
}

/// The exit code as Kubernetes counts it, and the signal.
pub(in crate::runtime) fn exit_code(status: ExitStatus) -> (i32, Option<i32>) {
    match status.signal() {
        Some(signal) => (128 + signal, Some(signal)),
        None => (status.code().unwrap_or(255), None),
    }
}
