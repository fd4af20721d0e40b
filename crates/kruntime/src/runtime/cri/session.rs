//! Programs in containers, joining containers, and connections to pods' ports, by a server's streams.

use std::{io, net::Ipv4Addr, sync::Arc};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::stream::{self, Stream, Streams};
use crate::{
    runtime::{Resize, RuntimeError, Session},
    spdy::frame::Headers,
};

/// The protocol of exec and attach whose error stream has a Status.
const EXEC_PROTOCOL: &str = "v4.channel.k8s.io";
const FORWARD_PROTOCOL: &str = "portforward.k8s.io";
/// The longest Status that is read.
const STATUS_BYTES_MAX: u64 = 64 * 1024;
/// The changes of a terminal's size that wait to be sent.
const SIZES_MAX: usize = 16;

/// Which streams there are beside the one for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) tty: bool,
}

/// Opens the streams of an exec or an attachment. The exit code is what the server says at the end.
pub(super) async fn open(url: &str, wanted: Wanted) -> Result<Session, RuntimeError> {
    let kinds: Vec<&str> = ["error", "stdin", "stdout", "stderr", "resize"]
        .into_iter()
        .filter(|kind| match *kind {
            "stdin" => wanted.stdin,
            "stderr" => !wanted.tty,
            "resize" => wanted.tty,
            _ => true,
        })
        .collect();
    let headers: Vec<Headers> = kinds.iter().map(|kind| Headers::from([("streamtype", *kind)])).collect();
    let Streams { streams, guard } = stream::open(url, EXEC_PROTOCOL, &headers)
        .await
        .map_err(RuntimeError::io("opening the container's streams"))?;
    let (mut stdin, mut stdout, mut stderr, mut resize, mut errors) = (None, None, None, None, None);
    // Directions that nobody uses stay open until the connection ends: a server may take their end for an end of the whole.
    let mut unused = Vec::new();
    for (kind, Stream { reader, writer }) in kinds.into_iter().zip(streams) {
        match kind {
            "stdin" => stdin = Some(writer),
            "resize" => resize = Some(sizes(writer)),
            "stdout" => {
                stdout = Some(reader);
                unused.push(writer);
            }
            "stderr" => {
                stderr = Some(reader);
                unused.push(writer);
            }
            _ => {
                errors = Some(reader);
                unused.push(writer);
            }
        }
    }
    let exit = async move {
        let mut text = Vec::new();
        if let Some(errors) = errors {
            let read = errors.take(STATUS_BYTES_MAX).read_to_end(&mut text).await;
            read.map_err(RuntimeError::io("reading how the program ended"))?;
        }
        let code = exit_code(&text);
        drop((unused, guard));
        code
    };
    Ok(Session {
        stdin: stdin.map(|writer| Box::pin(writer) as _),
        stdout: stdout.map(|reader| Box::pin(reader) as _),
        stderr: stderr.map(|reader| Box::pin(reader) as _),
        resize,
        exit: Box::pin(exit),
    })
}

/// Sends sizes of a terminal, the latest ones when they come too fast.
fn sizes(mut writer: tokio::io::WriteHalf<tokio::io::DuplexStream>) -> Resize {
    let (sender, mut receiver) = mpsc::channel::<(u16, u16)>(SIZES_MAX);
    tokio::spawn(async move {
        while let Some((columns, rows)) = receiver.recv().await {
            let size = json!({"Width": columns, "Height": rows}).to_string() + "\n";
            if writer.write_all(size.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    Arc::new(move |columns, rows| {
        let _ = sender.try_send((columns, rows));
    })
}

/// What the Status at the end of a session says.
fn exit_code(text: &[u8]) -> Result<i32, RuntimeError> {
    let lost = || RuntimeError::Io {
        context: "waiting for the program",
        source: io::Error::new(io::ErrorKind::UnexpectedEof, "the connection ended before the program"),
    };
    let status: Value = serde_json::from_slice(text).map_err(|_| lost())?;
    if status["status"] == "Success" {
        return Ok(0);
    }
    let causes = status["details"]["causes"].as_array();
    let cause = causes.into_iter().flatten().find(|cause| cause["reason"] == "ExitCode");
    let code = cause.and_then(|cause| cause["message"].as_str()?.parse().ok());
    code.ok_or_else(|| RuntimeError::Create(status["message"].as_str().unwrap_or_default().to_owned()))
}

/// A connection to a port inside of a pod: a socket of this machine, whose other end the server's stream is copied to.
pub(super) async fn forward(url: &str, port: u16) -> io::Result<TcpStream> {
    let text = port.to_string();
    let headers = |kind| Headers::from([("streamtype", kind), ("port", text.as_str()), ("requestid", "0")]);
    let Streams { streams, guard } =
        stream::open(url, FORWARD_PROTOCOL, &[headers("error"), headers("data")]).await?;
    let mut streams = streams.into_iter();
    let (Some(mut errors), Some(mut data)) = (streams.next(), streams.next()) else {
        return Err(io::Error::other("no streams were opened"));
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let near = TcpStream::connect(listener.local_addr()?).await?;
    let own = near.local_addr()?;
    // Somebody else may have been faster.
    let far = loop {
        let (far, peer) = listener.accept().await?;
        if peer == own {
            break far;
        }
    };
    tokio::spawn(async move {
        let _guard = guard;
        let (mut far_reader, mut far_writer) = far.into_split();
        let up = async {
            let _ = tokio::io::copy(&mut far_reader, &mut data.writer).await;
            let _ = data.writer.shutdown().await;
        };
        let down = async {
            let _ = tokio::io::copy(&mut data.reader, &mut far_writer).await;
            let _ = far_writer.shutdown().await;
        };
        // The server tells here that nobody listens; its end of the data may never come then.
        let failed = async {
            let mut text = Vec::new();
            let _ = (&mut errors.reader).take(STATUS_BYTES_MAX).read_to_end(&mut text).await;
            if text.is_empty() {
                std::future::pending::<()>().await;
            }
            tracing::debug!(why = %String::from_utf8_lossy(&text), "a port can't be forwarded");
        };
        tokio::select! {
            _ = async { tokio::join!(up, down) } => {}
            () = failed => {}
        }
    });
    Ok(near)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Status of `k8s.io/kubelet/pkg/cri/streaming/remotecommand`.
    #[test]
    fn exit_codes_are_read() {
        let failed = json!({"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [
            {"reason": "ExitCode", "message": "3"}]}, "message": "command terminated with non-zero exit code"});
        let broken = json!({"status": "Failure", "reason": "InternalError", "message": "no such program"});
        for (text, expected) in [
            (json!({"status": "Success"}).to_string(), Ok(0)),
            (failed.to_string(), Ok(3)),
            (broken.to_string(), Err("no such program")),
            (String::new(), Err("waiting for the program: the connection ended before the program")),
        ] {
            let found = exit_code(text.as_bytes()).map_err(|error| error.to_string());
            assert_eq!(found, expected.map_err(str::to_owned), "{text}");
        }
    }
}
