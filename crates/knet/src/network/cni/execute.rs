//! Running a plug-in.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

/// How much a plug-in may write, in bytes.
const OUTPUT_BYTES_MAX: u64 = 1 << 20;
/// How much of what it writes beside that is told on, in bytes.
const MESSAGE_BYTES_MAX: usize = 2048;
/// What the environment tells plug-ins; what the caller's own says of these is not passed on.
const VARIABLES: [&str; 6] =
    ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];

/// Why a plug-in did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// It said so. Codes below 100 are the specification's: 1 version, 2 field, 3 unknown container, 4 environment, 5 input or output,
    /// 6 content, 7 network configuration, 11 try again, 50 not available, 51 not available and containers have no network.
    #[error("plugin {plugin} failed with code {code}: {message}{}{details}", if .details.is_empty() { "" } else { "; " })]
    Reported {
        /// The plug-in.
        plugin: String,
        /// The code.
        code: u64,
        /// What went wrong, in short.
        message: String,
        /// And at length; may be empty.
        details: String,
    },
    /// It failed without a word that the specification knows.
    #[error("plugin {plugin} failed: {message}")]
    Failed {
        /// The plug-in.
        plugin: String,
        /// What it wrote instead.
        message: String,
    },
    /// It took too long and was ended.
    #[error("plugin {plugin} took longer than {} s", .limit.as_secs())]
    TimedOut {
        /// The plug-in.
        plugin: String,
        /// How long it may take.
        limit: Duration,
    },
    /// There is no such plug-in.
    #[error("failed to find plugin {0:?} in path {1:?}")]
    Missing(String, Vec<PathBuf>),
    /// It can't be run.
    #[error("plugin {plugin} can't be run: {source}")]
    Io {
        /// The plug-in.
        plugin: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its answer can't be read.
    #[error("plugin's answer can't be read: {0}")]
    Unreadable(String),
}

/// What a plug-in is told by its environment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Call<'a> {
    pub(super) command: &'a str,
    pub(super) container: Option<&'a str>,
    pub(super) netns: Option<&'a Path>,
    pub(super) device: Option<&'a str>,
    pub(super) arguments: Option<&'a str>,
}

impl<'a> Call<'a> {
    /// A command that is about no attachment.
    pub(super) fn of_network(command: &'a str) -> Self {
        Self { command, ..Self::default() }
    }
}

/// Runs plug-ins from some directories.
#[derive(Debug)]
pub(super) struct Executor {
    dirs: Vec<PathBuf>,
    timeout: Duration,
}

impl Executor {
    pub(super) fn new(dirs: Vec<PathBuf>, timeout: Duration) -> Self {
        Self { dirs, timeout }
    }

    /// Where a plug-in is.
    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, PluginError> {
        let missing = || PluginError::Missing(plugin.to_owned(), self.dirs.clone());
        if plugin.is_empty() || plugin.contains('/') {
            return Err(missing());
        }
        let mut paths = self.dirs.iter().map(|dir| dir.join(plugin));
        paths.find(|path| path.is_file()).ok_or_else(missing)
    }

    /// Runs it; an empty answer is `null`.
    pub(super) async fn run(
        &self,
        plugin: &str,
        call: &Call<'_>,
        input: &Value,
    ) -> Result<Value, PluginError> {
        let path = self.find(plugin)?;
        let mut command = Command::new(path);
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command.env("CNI_COMMAND", call.command);
        if let Ok(dirs) = std::env::join_paths(&self.dirs) {
            command.env("CNI_PATH", dirs);
        }
        if let Some(container) = call.container {
            command.env("CNI_CONTAINERID", container);
            command.env("CNI_NETNS", call.netns.unwrap_or(Path::new("")));
        }
        if let Some(device) = call.device {
            command.env("CNI_IFNAME", device);
        }
        if let Some(arguments) = call.arguments {
            command.env("CNI_ARGS", arguments);
        }
        let ran = tokio::time::timeout(self.timeout, communicate(command, &input.to_string())).await;
        let Ok(ran) = ran else {
            return Err(PluginError::TimedOut { plugin: plugin.to_owned(), limit: self.timeout });
        };
        let (success, output, message) =
            ran.map_err(|source| PluginError::Io { plugin: plugin.to_owned(), source })?;
        if !success {
            return Err(error_of(plugin, &output, &message));
        }
        if output.iter().all(u8::is_ascii_whitespace) {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&output).map_err(|error| PluginError::Unreadable(format!("{plugin}: {error}")))
    }
}

/// Whether it succeeded, and what it wrote. A process that is dropped is killed.
async fn communicate(mut command: Command, input: &str) -> io::Result<(bool, Vec<u8>, Vec<u8>)> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async move {
        if let Some(mut stdin) = stdin {
            // One that doesn't read says why on its other end, or needn't.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let (mut output, mut message) = (Vec::new(), Vec::new());
    let read_output = async {
        match stdout {
            Some(stdout) => stdout.take(OUTPUT_BYTES_MAX).read_to_end(&mut output).await,
            None => Ok(0),
        }
    };
    let read_message = async {
        match stderr {
            Some(stderr) => stderr.take(OUTPUT_BYTES_MAX).read_to_end(&mut message).await,
            None => Ok(0),
        }
    };
    let ((), read, told) = tokio::join!(write, read_output, read_message);
    read?;
    told?;
    let status = child.wait().await?;
    Ok((status.success(), output, message))
}

fn error_of(plugin: &str, output: &[u8], message: &[u8]) -> PluginError {
    let reported: Option<Value> = serde_json::from_slice(output).ok();
    if let Some(reported) = reported
        && let Some(code) = reported["code"].as_u64()
    {
        let text = |key: &str| reported[key].as_str().unwrap_or_default().to_owned();
        return PluginError::Reported {
            plugin: plugin.to_owned(),
            code,
            message: text("msg"),
            details: text("details"),
        };
    }
    let mut said = if message.is_empty() { output.to_vec() } else { message.to_vec() };
    said.truncate(MESSAGE_BYTES_MAX);
    PluginError::Failed {
        plugin: plugin.to_owned(),
        message: String::from_utf8_lossy(&said).trim().to_owned(),
    }
}
