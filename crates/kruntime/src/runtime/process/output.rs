//! What a container writes: from its pipes, or its terminal, to its log and to those who are attached.

use std::{
    fs::File,
    io::{self, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use kcore::Clock;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, unix::AsyncFd},
    net::unix::pipe,
    sync::broadcast,
};

use crate::{
    logs::{LINE_BYTES_MAX, LogWriter},
    runtime::{Reader, Resize, Writer},
};

/// How many pieces of output an attached reader may be behind before it misses some.
pub(super) const ATTACHED_BEHIND_MAX: usize = 256;

/// A piece of output: whether it is of standard error, and the bytes.
pub(super) type Piece = (bool, Bytes);

/// The two sides of a program's standard streams.
pub(super) struct Streams {
    pub(super) stdin: Stdio,
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
    pub(super) input: Option<Writer>,
    pub(super) output: Reader,
    pub(super) errors: Option<Reader>,
    pub(super) resize: Option<Resize>,
}

impl Streams {
    /// A terminal, or pipes.
    pub(super) fn new(tty: bool, stdin: bool) -> io::Result<Self> {
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
        // SAFETY: a `File` stays open, and the same, as long as it lives.
        let terminal = Arc::new(unsafe { AsyncFd::register(File::from(master)) }?);
        let sized = Arc::clone(&terminal);
        let resize: Resize = Arc::new(move |columns, rows| {
            let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
            // SAFETY: the size lives until the call returns.
            unsafe { libc::ioctl(sized.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        });
        Ok(Self {
            stdin: slave.try_clone()?.into(),
            stdout: slave.try_clone()?.into(),
            stderr: slave.into(),
            input: Some(Box::pin(Terminal(Arc::clone(&terminal)))),
            output: Box::pin(Terminal(terminal)),
            errors: None,
            resize: Some(resize),
        })
    }
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
pub(super) async fn pump(
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
