//! What a container writes: from its pipes, or its terminal, to its log and to those who are attached. Shared by the
//! runtimes that hold these ends themselves.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use kcore::Clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf, unix::AsyncFd},
    net::unix::pipe,
    sync::{broadcast, watch},
};

use crate::{
    logs::{self, LINE_BYTES_MAX, LogWriter},
    runtime::{Exit, LogOptions, Reader, Resize, Session, Writer},
};

/// How many pieces of output an attached reader may be behind before it misses some.
pub(crate) const ATTACHED_BEHIND_MAX: usize = 256;

/// How long the output of an ended container is waited for: something may still hold its pipes.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(2);
/// The most bytes of a termination message (upstream's `MaxContainerTerminationMessageLength`).
const MESSAGE_BYTES_MAX: u64 = 4096;
/// The most bytes and lines of a log that stand in for a termination message.
const MESSAGE_LOG_BYTES_MAX: usize = 2048;
const MESSAGE_LOG_LINES_MAX: u64 = 80;

/// A piece of output: whether it is of standard error, and the bytes.
pub(crate) type Piece = (bool, Bytes);

/// The two sides of a program's standard streams.
pub(crate) struct Streams {
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) input: Option<Writer>,
    pub(crate) output: Reader,
    pub(crate) errors: Option<Reader>,
    pub(crate) resize: Option<Resize>,
}

impl Streams {
    /// A terminal, or pipes.
    pub(crate) fn new(tty: bool, stdin: bool) -> io::Result<Self> {
        if tty { Self::terminal() } else { Self::pipes(stdin) }
    }

    fn pipes(stdin: bool) -> io::Result<Self> {
        let reader = |pipe: PipeReader| -> io::Result<Reader> {
            Ok(Box::pin(pipe::Receiver::from_owned_fd(pipe.into())?))
        };
        let (output, stdout): (PipeReader, PipeWriter) = io::pipe()?;
        let (errors, stderr) = io::pipe()?;
        let (theirs, input) = if stdin {
            let (theirs, ours) = io::pipe()?;
            let input: Writer = Box::pin(pipe::Sender::from_owned_fd(ours.into())?);
            (Stdio::from(theirs), Some(input))
        } else {
            (Stdio::null(), None)
        };
        Ok(Self {
            stdin: theirs,
            stdout: stdout.into(),
            stderr: stderr.into(),
            input,
            output: reader(output)?,
            errors: Some(reader(errors)?),
            resize: None,
        })
    }

    fn terminal() -> io::Result<Self> {
        let (mut master, mut slave) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: two ints to fill; the descriptors that come back are ours alone.
        let (master, slave) = unsafe {
            if libc::openpty(
                &raw mut master,
                &raw mut slave,
                null,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            ) != 0
            {
                return Err(io::Error::last_os_error());
            }
            libc::fcntl(master, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(slave, libc::F_SETFD, libc::FD_CLOEXEC);
            libc::fcntl(master, libc::F_SETFL, libc::O_NONBLOCK);
            (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
        };
        let (input, output, resize) = terminal_ends(master)?;
        Ok(Self {
            stdin: slave.try_clone()?.into(),
            stdout: slave.try_clone()?.into(),
            stderr: slave.into(),
            input: Some(input),
            output,
            errors: None,
            resize: Some(resize),
        })
    }
}

/// Our ends of a pseudo-terminal, given its master, which does not block.
pub(crate) fn terminal_ends(master: OwnedFd) -> io::Result<(Writer, Reader, Resize)> {
    // SAFETY: a `File` stays open, and the same, as long as it lives.
    let terminal = Arc::new(unsafe { AsyncFd::register(File::from(master)) }?);
    let sized = Arc::clone(&terminal);
    let resize: Resize = Arc::new(move |columns, rows| {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size lives until the call returns.
        unsafe { libc::ioctl(sized.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    });
    Ok((Box::pin(Terminal(Arc::clone(&terminal))), Box::pin(Terminal(terminal)), resize))
}

/// Our side of a pseudo-terminal.
struct Terminal(Arc<AsyncFd<File>>);

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let unfilled = buffer.initialize_unfilled();
            match guard.try_io(|fd| fd.get_ref().read(unfilled)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // The other side is closed: the program has ended.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| fd.get_ref().write(bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The end of input on a terminal is a character.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = self.0.get_ref().write(&[4]);
        Poll::Ready(Ok(()))
    }
}

/// Copies one stream to the log, line by line, and to those who are attached, as it comes.
pub(crate) async fn pump(
    mut reader: Reader,
    is_error: bool,
    log: Arc<Mutex<LogWriter>>,
    attached: broadcast::Sender<Piece>,
    clock: Arc<dyn Clock>,
) {
    let stream = if is_error { "stderr" } else { "stdout" };
    let mut chunk = vec![0; LINE_BYTES_MAX];
    let mut line = Vec::new();
    let write = |partial: bool, text: &[u8]| {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = log.write(clock.now(), stream, partial, text) {
            tracing::warn!(%error, "a line of a container's log is lost");
        }
    };
    loop {
        let length = match reader.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        // Nobody attached is no error.
        let _ = attached.send((is_error, Bytes::copy_from_slice(&chunk[..length])));
        for piece in chunk[..length].split_inclusive(|byte| *byte == b'\n') {
            match piece.split_last() {
                Some((b'\n', text)) => {
                    line.extend_from_slice(text);
                    write(false, &line);
                    line.clear();
                }
                _ => line.extend_from_slice(piece),
            }
            while line.len() >= LINE_BYTES_MAX {
                write(true, &line[..LINE_BYTES_MAX]);
                line.drain(..LINE_BYTES_MAX);
            }
        }
    }
    if !line.is_empty() {
        write(true, &line);
    }
}

/// What somebody can join of a container that runs.
#[derive(Clone)]
pub(crate) struct Joinable {
    pub(crate) attached: broadcast::Sender<Piece>,
    pub(crate) exit: watch::Sender<Option<Exit>>,
    pub(crate) input: Arc<tokio::sync::Mutex<Option<Writer>>>,
    pub(crate) resize: Option<Resize>,
    pub(crate) tty: bool,
}

/// Joins a container's streams.
pub(crate) fn attach(container: &Joinable) -> Session {
    let reader = |wanted: bool| -> Reader {
        let (mut writer, reader) = tokio::io::duplex(64 * 1024);
        let mut pieces = container.attached.subscribe();
        // Not the container itself: an attached reader must not keep it.
        let mut exit = container.exit.subscribe();
        tokio::spawn(async move {
            let copy = async {
                loop {
                    match pieces.recv().await {
                        Ok((is_error, bytes)) if is_error == wanted => {
                            if writer.write_all(&bytes).await.is_err() {
                                return;
                            }
                        }
                        Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                    }
                }
            };
            tokio::select! {
                () = copy => {}
                _ = exit.wait_for(Option::is_some) => {}
            }
        });
        Box::pin(reader)
    };
    let mut exit = container.exit.subscribe();
    let exit = async move {
        let code =
            exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.as_ref().map(|exit| exit.code));
        Ok(code.unwrap_or(255))
    };
    let stdin: Writer = {
        let (writer, mut reader) = tokio::io::duplex(64 * 1024);
        let input = Arc::clone(&container.input);
        tokio::spawn(async move {
            let mut buffer = vec![0; 8192];
            while let Ok(length) = reader.read(&mut buffer).await {
                let mut input = input.lock().await;
                let Some(input) = input.as_mut().filter(|_| length > 0) else { return };
                if input.write_all(&buffer[..length]).await.is_err() {
                    return;
                }
            }
        });
        Box::pin(writer)
    };
    Session {
        stdin: Some(stdin),
        stdout: Some(reader(false)),
        stderr: (!container.tty).then(|| reader(true)),
        resize: container.resize.clone(),
        exit: Box::pin(exit),
    }
}

/// What a container left as its last words: in its file, or, when it failed and `log` is given, at the end of its log.
pub(crate) fn termination_message(file: &Path, log: Option<PathBuf>, code: i32) -> Option<String> {
    let mut bytes = Vec::new();
    // The file is the container's: it may be of any size by now.
    if let Ok(file) = File::open(file) {
        let _ = file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes);
    }
    if let Some(log) = log.filter(|_| bytes.is_empty() && code != 0) {
        let log = std::fs::read(log).unwrap_or_default();
        let options = LogOptions { tail_lines: Some(MESSAGE_LOG_LINES_MAX), ..Default::default() };
        let text = logs::select(&log, &options);
        bytes = text[text.len().saturating_sub(MESSAGE_LOG_BYTES_MAX)..].to_vec();
    }
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

/// Logs of starts before the last one are not asked for any more.
pub(crate) fn remove_logs_before(dir: &Path, attempt: u32) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.split_once(".log")?.0.parse::<u32>().ok());
        if number.is_some_and(|number| number < attempt) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
