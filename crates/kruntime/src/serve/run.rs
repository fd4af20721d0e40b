//! `/run`: a command without input, whose output is the answer.

use http::{Response, StatusCode};
use tokio::io::AsyncReadExt as _;

use super::{Failure, KubeletBody, Query, text};
use crate::{
    agent::PodEntry,
    runtime::{ExecRequest, Reader},
};

/// How much of what a command prints is answered with, of its output and of its errors each (that of containerd's `ExecSync`). The
/// rest is read and dropped.
const OUTPUT_BYTES_MAX: u64 = 16 * 1024 * 1024;

async fn read(reader: Option<Reader>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(reader) = reader {
        let mut limited = reader.take(OUTPUT_BYTES_MAX);
        let _ = limited.read_to_end(&mut bytes).await;
        // The program would wait for a reader.
        let _ = tokio::io::copy(&mut limited.into_inner(), &mut tokio::io::sink()).await;
    }
    bytes
}

/// Runs the words of `cmd`, which blanks separate: there is no quoting, as upstream.
pub(super) async fn run(
    entry: &PodEntry,
    container: &str,
    query: &Query,
) -> Result<Response<KubeletBody>, Failure> {
    let command: Vec<String> =
        query.get("cmd").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    if command.is_empty() {
        return Err(Failure::bad("cmd is missing"));
    }
    let request = ExecRequest { command: command.clone(), ..ExecRequest::default() };
    let session = entry.node.config.runtime.exec(&entry.uid, container, request).await?;
    let (mut output, errors, code) = tokio::join!(read(session.stdout), read(session.stderr), session.exit);
    output.extend(errors);
    match code? {
        0 => Ok(text(output)),
        code => {
            let output = String::from_utf8_lossy(&output);
            let why = format!("command {command:?} exited with {code}: {output}");
            Err(Failure::new(StatusCode::INTERNAL_SERVER_ERROR, why))
        }
    }
}
