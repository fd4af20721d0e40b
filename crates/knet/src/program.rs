//! Programs that change the network, run with what they are to read.

use std::{
    ffi::OsStr,
    io,
    path::Path,
    process::{Output, Stdio},
};

use tokio::{io::AsyncWriteExt, process::Command};

/// How much of what a program says about an error is told on, in bytes.
const MESSAGE_BYTES_MAX: usize = 2048;

/// Runs a program that reads `input`; gives what it wrote.
///
/// # Errors
/// When it can't be run, or fails: what it said then is the message.
pub(crate) async fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    input: &str,
) -> io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| not_run(program, &error))?;
    let stdin = child.stdin.take();
    let write = async move {
        if let Some(mut stdin) = stdin {
            // A program that stops reading says why on its other end.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
    };
    let ((), output) = tokio::join!(write, child.wait_with_output());
    checked(output?)
}

/// The error of a program that can't be run.
pub(crate) fn not_run(program: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", program.display()))
}

/// What a program wrote.
///
/// # Errors
/// When it has failed: what it said then is the message.
pub(crate) fn checked(output: Output) -> io::Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut message = output.stderr;
    message.truncate(MESSAGE_BYTES_MAX);
    Err(io::Error::other(String::from_utf8_lossy(&message).into_owned()))
}
