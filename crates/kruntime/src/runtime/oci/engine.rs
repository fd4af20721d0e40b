//! The OCI runtime's program: runc, crun, youki, or another with their command line.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

/// So much of what it says is kept.
const SAID_BYTES_MAX: usize = 4096;

#[derive(Clone, Debug)]
pub(super) struct Engine {
    program: PathBuf,
    /// Where it keeps what it knows of containers.
    root: PathBuf,
    /// `name://version`.
    pub(super) version: String,
}

impl Engine {
    /// Finds a program by its path, or by its name in `PATH`, and asks for its version.
    pub(super) fn find(name: &Path, root: PathBuf) -> io::Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Where root's programs are, which is not in everybody's path.
        let usual = ["/usr/sbin", "/usr/local/sbin", "/usr/bin"].map(PathBuf::from);
        let found = if name.components().count() > 1 {
            Some(name.to_owned()).filter(|path| path.is_file())
        } else {
            std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|path| path.is_file())
        };
        let missing =
            || io::Error::new(io::ErrorKind::NotFound, format!("no OCI runtime {}", name.display()));
        let program = found.ok_or_else(missing)?;
        let output = std::process::Command::new(&program).arg("--version").stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version =
            text.lines().next().and_then(|line| line.split_whitespace().last()).unwrap_or("unknown");
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        std::fs::create_dir_all(&root)?;
        Ok(Self { version: format!("{name}://{version}"), program, root })
    }

    /// The command line; `log` is where it says what went wrong.
    pub(super) fn line(&self, log: Option<&Path>, arguments: &[&str]) -> Vec<OsString> {
        let mut line: Vec<OsString> =
            vec![self.program.clone().into(), "--root".into(), self.root.clone().into()];
        if let Some(log) = log {
            line.extend(["--log".into(), log.into(), "--log-format".into(), "json".into()]);
        }
        line.extend(arguments.iter().map(Into::into));
        line
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// What it said.
    pub(super) async fn run(&self, log: Option<&Path>, arguments: &[&str]) -> Result<(), String> {
        let line = self.line(log, arguments);
        let mut command = tokio::process::Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        Err(log.and_then(said).unwrap_or_else(|| cut(&String::from_utf8_lossy(&output.stderr))))
    }

    /// Deletes a container, whatever state it is in, without waiting for others: at the end of the process.
    pub(super) fn delete_now(&self, id: &str) {
        let line = self.line(None, &["delete", "--force", id]);
        let mut command = std::process::Command::new(&line[0]);
        command.args(&line[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }
}

fn cut(text: &str) -> String {
    text.trim().chars().take(SAID_BYTES_MAX).collect()
}

/// The last error in its log.
pub(super) fn said(log: &Path) -> Option<String> {
    let text = std::fs::read_to_string(log).ok()?;
    let message = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let bad = line["level"].as_str().is_some_and(|level| level == "error" || level == "fatal");
        line["msg"].as_str().filter(|_| bad).map(cut)
    };
    text.lines().rev().find_map(message)
}
