//! Starting a program: everything between fork and exec.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::{net::UnixDatagram, process::CommandExt},
    },
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use super::{confine, mounts::MountPlan};

/// How a program is kept apart from the machine.
#[derive(Debug)]
pub(in crate::runtime) enum Isolation {
    /// It isn't.
    None,
    /// In new mount and host-name namespaces.
    New { mounts: Box<MountPlan>, user: Option<UserMap>, hostname: CString },
    /// In those of a process that runs: its user (if it has its own), mount and host-name namespaces, in this order.
    Join(Vec<OwnedFd>),
}

/// The contents of the user and group maps of a user namespace that maps one user.
#[derive(Debug)]
pub(in crate::runtime) struct UserMap {
    pub(super) users: Vec<u8>,
    pub(super) groups: Vec<u8>,
}

/// A program to start.
#[derive(Debug)]
pub(in crate::runtime) struct Launch {
    pub(in crate::runtime) program: Vec<String>,
    pub(in crate::runtime) env: Vec<(String, String)>,
    pub(in crate::runtime) dir: CString,
    pub(in crate::runtime) stdin: Stdio,
    pub(in crate::runtime) stdout: Stdio,
    pub(in crate::runtime) stderr: Stdio,
    /// Whether standard input is a terminal that the program is to control.
    pub(in crate::runtime) tty: bool,
    pub(in crate::runtime) isolation: Isolation,
    /// Whether `bind` and `connect` go to the supervisor.
    pub(in crate::runtime) confine: bool,
    /// The user and group to become.
    pub(in crate::runtime) user: Option<(u32, u32)>,
    /// Do everything but start the program: a test of what the machine allows.
    pub(in crate::runtime) rehearse: bool,
}

/// A program that was started.
#[derive(Debug)]
pub(in crate::runtime) struct Launched {
    pub(in crate::runtime) child: Child,
    pub(in crate::runtime) listener: Option<OwnedFd>,
}

/// Why it was not.
#[derive(Debug)]
pub(in crate::runtime) struct LaunchError {
    /// The step before the program's own start that failed, if one did.
    pub(in crate::runtime) stage: Option<&'static str>,
    pub(in crate::runtime) source: io::Error,
}

/// The steps, as the child names them by number.
const STAGES: [&str; 8] = [
    "making a session",
    "making namespaces",
    "mounting volumes",
    "setting the host name",
    "entering the working directory",
    "changing the user",
    "installing the network filter",
    "joining namespaces",
];
/// What a rehearsal ends with.
const REHEARSED: i32 = libc::ECANCELED;

struct ChildPlan {
    socket: UnixDatagram,
    dir: CString,
    tty: bool,
    isolation: Isolation,
    confine: bool,
    user: Option<(u32, u32)>,
    rehearse: bool,
    parent: u32,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn write_file(path: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: a string that ends with a zero byte, a buffer with its length, and a descriptor that was just opened.
    unsafe {
        let fd: RawFd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        check(fd)?;
        let written = libc::write(fd, text.as_ptr().cast(), text.len());
        let error = io::Error::last_os_error();
        libc::close(fd);
        if written < 0 { Err(error) } else { Ok(()) }
    }
}

impl ChildPlan {
    /// Runs in the child between fork and exec, where only calls that are safe in a signal handler are allowed: no
    /// allocation, no lock.
    fn run(&self) -> io::Result<()> {
        let mut stage = 0;
        let result = self.steps(&mut stage);
        if result.is_err() {
            // Which step failed is more than the error's number says. A message that can't be sent is not missed much.
            let byte = [stage];
            // SAFETY: the buffer lives until the call returns.
            unsafe { libc::send(self.socket.as_raw_fd(), byte.as_ptr().cast(), 1, libc::MSG_NOSIGNAL) };
            return result;
        }
        if self.rehearse { Err(io::Error::from_raw_os_error(REHEARSED)) } else { Ok(()) }
    }

    fn steps(&self, stage: &mut u8) -> io::Result<()> {
        // SAFETY: plain system calls; strings end with a zero byte.
        unsafe {
            check(libc::setsid())?;
            if self.tty {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
        }
        match &self.isolation {
            Isolation::None => {}
            Isolation::New { mounts, user, hostname } => {
                self.isolate(mounts, user.as_ref(), hostname, stage)?
            }
            Isolation::Join(namespaces) => {
                *stage = 7;
                for namespace in namespaces {
                    // SAFETY: a descriptor that is open.
                    check(unsafe { libc::setns(namespace.as_raw_fd(), 0) })?;
                }
            }
        }
        *stage = 4;
        // SAFETY: a string that ends with a zero byte.
        check(unsafe { libc::chdir(self.dir.as_ptr()) })?;
        *stage = 5;
        if let Some((user, group)) = self.user {
            // SAFETY: plain system calls. Made directly, for this process has one thread.
            unsafe {
                check(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) as libc::c_int)?;
                check(libc::syscall(libc::SYS_setgid, group) as libc::c_int)?;
                check(libc::syscall(libc::SYS_setuid, user) as libc::c_int)?;
            }
        }
        *stage = 0;
        // After the last change of identity, which would clear it: nothing outlives the thread that forked. If that has
        // ended already, nobody will send the signal.
        // SAFETY: plain system calls.
        unsafe {
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            let parent = libc::getppid();
            if parent != 0 && parent as u32 != self.parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            // Descriptors that somebody in this process left without close-on-exec are no business of the program's.
            // Kernels before 5.11 don't know the flag, and the program gets them.
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 4);
        }
        *stage = 6;
        if self.confine { confine::install(self.socket.as_raw_fd()) } else { Ok(()) }
    }

    fn isolate(
        &self,
        mounts: &MountPlan,
        user: Option<&UserMap>,
        hostname: &CString,
        stage: &mut u8,
    ) -> io::Result<()> {
        *stage = 1;
        let own = if user.is_some() { libc::CLONE_NEWUSER } else { 0 };
        // SAFETY: plain system calls.
        check(unsafe { libc::unshare(own | libc::CLONE_NEWNS | libc::CLONE_NEWUTS) })?;
        if let Some(user) = user {
            write_file(c"/proc/self/setgroups", b"deny")?;
            write_file(c"/proc/self/uid_map", &user.users)?;
            write_file(c"/proc/self/gid_map", &user.groups)?;
        }
        *stage = 3;
        // SAFETY: a string with its length.
        check(unsafe { libc::sethostname(hostname.as_ptr(), hostname.as_bytes().len()) })?;
        *stage = 2;
        mounts.carry_out()
    }
}

impl Launch {
    /// Starts the program. Blocks until it runs or could not be started.
    fn launch(self) -> Result<Launched, LaunchError> {
        let plain = |source| LaunchError { stage: None, source };
        let (ours, theirs) = UnixDatagram::pair().map_err(plain)?;
        let Some((program, arguments)) = self.program.split_first() else {
            return Err(plain(io::Error::from_raw_os_error(libc::ENOENT)));
        };
        let plan = ChildPlan {
            socket: theirs,
            dir: self.dir,
            tty: self.tty,
            isolation: self.isolation,
            confine: self.confine,
            user: self.user,
            rehearse: self.rehearse,
            parent: std::process::id(),
        };
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(self.env);
        command.stdin(self.stdin).stdout(self.stdout).stderr(self.stderr);
        // SAFETY: `run` keeps to what is safe between fork and exec.
        unsafe { command.pre_exec(move || plan.run()) };
        let spawned = command.spawn();
        drop(command);
        let said = confine::receive(ours.as_fd());
        match spawned {
            Ok(child) => Ok(Launched { child, listener: said.listener }),
            Err(source) => {
                let stage = said.failed_stage.and_then(|stage| STAGES.get(usize::from(stage)).copied());
                Err(LaunchError { stage, source })
            }
        }
    }
}

type Order = (Box<Launch>, oneshot::Sender<Result<Launched, LaunchError>>);

/// The thread that starts all programs of a runtime.
///
/// The kernel's promise that a program ends with its parent (`PR_SET_PDEATHSIG`) is about the thread that forked it. So
/// all are forked by one thread that lives as long as the runtime.
#[derive(Debug)]
pub(in crate::runtime) struct Launcher {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Launcher {
    pub(in crate::runtime) fn new() -> io::Result<Self> {
        let (orders, received) = mpsc::channel::<Order>();
        let thread = std::thread::Builder::new().name("kruntime-launcher".to_owned()).spawn(move || {
            while let Ok((launch, answer)) = received.recv() {
                // If nobody waits for the answer any more, the child must not stay.
                if let Err(Ok(mut launched)) = answer.send(launch.launch()) {
                    let _ = launched.child.kill();
                    let _ = launched.child.wait();
                }
            }
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    pub(in crate::runtime) async fn launch(&self, launch: Launch) -> Result<Launched, LaunchError> {
        let gone = || LaunchError { stage: None, source: io::Error::other("the runtime is shutting down") };
        let (answer, answered) = oneshot::channel();
        let orders = self.orders.as_ref().ok_or_else(gone)?;
        orders.send((Box::new(launch), answer)).map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    /// Whether all steps of `launch` are allowed here.
    pub(super) fn rehearse(launch: Launch) -> Result<(), LaunchError> {
        match (Launch { rehearse: true, ..launch }).launch() {
            Err(error) if error.stage.is_none() && error.source.raw_os_error() == Some(REHEARSED) => Ok(()),
            Err(error) => Err(error),
            Ok(mut launched) => {
                let _ = launched.child.wait();
                Ok(())
            }
        }
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Writes `text` to a file of the runtime's own.
pub(super) fn write_text(path: &std::path::Path, text: &str) -> io::Result<()> {
    File::create(path)?.write_all(text.as_bytes())
}
