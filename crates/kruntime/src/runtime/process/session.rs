//! Programs that are run in a container, and readers that are attached to one.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, PoisonError},
};

use super::{
    Mounting, Pod, Shared, c_string,
    container::{Container, start_error},
    launch::{Isolation, Launch, Launched},
    tree::{Program, exit_code},
};
use crate::runtime::{ExecRequest, RuntimeError, Session, output::Streams};

impl Container {
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
