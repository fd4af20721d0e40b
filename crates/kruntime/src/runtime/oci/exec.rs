//! Programs that are run in a container.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Value, json};

use super::{Container, Shared, holder::Process};
use crate::runtime::{
    ExecRequest, RuntimeError, Session,
    output::Streams,
    process::{
        launch::{Isolation, Launch},
        tree::{Program, exit_code},
    },
};

/// The program inside of the container, as long as it may run: the OCI runtime's own end is not its end.
struct Inside {
    files: [PathBuf; 2],
    ended: AtomicBool,
}

impl Drop for Inside {
    fn drop(&mut self) {
        let [_, pid_file] = &self.files;
        if !self.ended.load(Ordering::Acquire)
            && let Some(pid) = std::fs::read_to_string(pid_file).ok().and_then(|pid| pid.trim().parse().ok())
            && let Some(process) = Process::of(pid)
        {
            process.kill();
        }
        for file in &self.files {
            let _ = std::fs::remove_file(file);
        }
    }
}

pub(super) async fn exec(
    shared: &Arc<Shared>,
    container: &Arc<Container>,
    request: ExecRequest,
) -> Result<Session, RuntimeError> {
    let wrong = || RuntimeError::io("preparing the program");
    let bundle = container.bundle();
    let text = tokio::fs::read(bundle.join("config.json")).await.map_err(wrong())?;
    let spec: Value =
        serde_json::from_slice(&text).map_err(|error| RuntimeError::Create(error.to_string()))?;
    let mut process = spec["process"].clone();
    process["args"] = json!(request.command);
    process["terminal"] = json!(request.tty);
    if request.tty
        && let Some(env) = process["env"].as_array_mut()
        && !env.iter().any(|pair| pair.as_str().is_some_and(|pair| pair.starts_with("TERM=")))
    {
        env.push(json!("TERM=xterm"));
    }
    let number: u64 = rand::random();
    let files = [bundle.join(format!("exec-{number:x}.json")), bundle.join(format!("exec-{number:x}.pid"))];
    tokio::fs::write(&files[0], process.to_string()).await.map_err(wrong())?;
    let inside = Inside { files, ended: AtomicBool::new(false) };
    let [process, pid_file] = inside.files.each_ref().map(|path| path.to_string_lossy().into_owned());
    let line = shared
        .engine
        .line(None, &["exec", "--process", &process, "--pid-file", &pid_file, &container.saved.id]);
    let streams = Streams::new(request.tty, request.stdin).map_err(wrong())?;
    let launch = Launch {
        program: line.into_iter().map(|part| part.to_string_lossy().into_owned()).collect(),
        env: std::env::vars().filter(|(name, _)| name == "PATH").collect(),
        dir: c"/".to_owned(),
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
        tty: request.tty,
        isolation: Isolation::None,
        confine: false,
        user: None,
        rehearse: false,
    };
    let launched = shared.launcher.launch(launch).await;
    let launched = launched.map_err(|error| RuntimeError::Create(error.source.to_string()))?;
    let program = Program::new(launched.child, String::new());
    let exit = async move {
        let status = program.wait().await.map_err(RuntimeError::io("waiting for the program"))?;
        inside.ended.store(true, Ordering::Release);
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
