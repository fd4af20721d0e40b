//! Container logs in the format of the Container Runtime Interface: `<RFC 3339 time> <stream> <F|P> <text>` a line,
//! where `P` marks a piece of a line that goes on.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::watch,
};

use crate::runtime::{LogOptions, LogStream};

/// A log file is rotated when it reaches this size (upstream's `containerLogMaxSize`).
pub const FILE_BYTES_MAX: u64 = 10 * 1024 * 1024;
/// So many files are kept of one container, the one that is written among them (upstream's `containerLogMaxFiles`).
pub const FILES_MAX: usize = 5;
/// A longer line is written in pieces.
pub const LINE_BYTES_MAX: usize = 16 * 1024;
const READ_BYTES: usize = 64 * 1024;

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// When it was written, as text.
    pub time: &'a str,
    /// `stdout` or `stderr`.
    pub stream: &'a str,
    /// Whether the line goes on with the next one of the same stream.
    pub partial: bool,
    /// The text, without its end of line.
    pub text: &'a [u8],
}

/// Reads one line, without its end of line. `None` when it isn't in the format.
///
/// ```
/// let line = kruntime::logs::parse_line(b"2026-01-02T03:04:05.6Z stderr F no such file").unwrap();
/// assert_eq!((line.stream, line.text), ("stderr", &b"no such file"[..]));
/// ```
#[must_use]
pub fn parse_line(line: &[u8]) -> Option<LogLine<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok().filter(|s| ["stdout", "stderr"].contains(s))?;
    // Tags are separated by colons; the first says whether the line is whole.
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(LogLine { time, stream, partial, text: parts.next().unwrap_or_default() })
}

/// Appends one line.
pub fn write_line(out: &mut Vec<u8>, time: Timestamp, stream: &str, partial: bool, text: &[u8]) {
    // Writing into a `Vec` cannot fail.
    let _ = write!(
        out,
        "{} {stream} {} ",
        time.strftime("%Y-%m-%dT%H:%M:%S%.9fZ"),
        if partial { 'P' } else { 'F' }
    );
    out.extend_from_slice(text);
    out.push(b'\n');
}

/// Turns lines of the format into what the reader asked for.
#[derive(Debug)]
struct Filter {
    options: LogOptions,
    left: Option<u64>,
    /// Whether the next piece begins a line of the output.
    at_line_start: bool,
}

impl Filter {
    fn new(options: &LogOptions) -> Self {
        Self { left: options.limit_bytes, options: options.clone(), at_line_start: true }
    }

    fn done(&self) -> bool {
        self.left == Some(0)
    }

    fn push(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(line) = parse_line(line) else { return };
        if self.options.stream.as_ref().is_some_and(|wanted| !wanted.eq_ignore_ascii_case(line.stream)) {
            return;
        }
        if let Some(since) = self.options.since
            && line.time.parse::<Timestamp>().is_ok_and(|time| time < since)
        {
            return;
        }
        let from = out.len();
        if self.options.timestamps && self.at_line_start {
            out.extend_from_slice(line.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(line.text);
        if !line.partial {
            out.push(b'\n');
        }
        self.at_line_start = !line.partial;
        if let Some(left) = &mut self.left {
            let written = (out.len() - from) as u64;
            if written > *left {
                out.truncate(from + usize::try_from(*left).unwrap_or(usize::MAX));
            }
            *left = left.saturating_sub(written);
        }
    }
}

/// Where the last `lines` lines of `text` begin.
fn tail_start(text: &[u8], lines: u64) -> usize {
    let mut left = lines;
    let end = text.len() - usize::from(text.last() == Some(&b'\n'));
    if lines == 0 {
        return text.len();
    }
    for (at, byte) in text[..end].iter().enumerate().rev() {
        if *byte == b'\n' {
            left -= 1;
            if left == 0 {
                return at + 1;
            }
        }
    }
    0
}

/// What `options` wants of a log that is wholly in memory.
#[must_use]
pub fn select(text: &[u8], options: &LogOptions) -> Bytes {
    let start = options.tail_lines.map_or(0, |lines| tail_start(text, lines));
    let mut filter = Filter::new(options);
    let mut out = Vec::new();
    for line in text[start..].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        if filter.done() {
            break;
        }
        filter.push(line, &mut out);
    }
    out.into()
}

/// How far a log has come, for those who follow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How often the file was rotated.
    pub rotations: u64,
    /// How many bytes were written in all.
    pub bytes: u64,
    /// Whether nothing more will come.
    pub finished: bool,
}

/// Writes a container's log file and rotates it.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    size_max: u64,
    buffer: Vec<u8>,
    progress: watch::Sender<Progress>,
}

impl LogWriter {
    /// Begins a log at `path`; a file that is there is gone on with.
    ///
    /// # Errors
    /// When the file can't be made.
    pub fn create(path: PathBuf, size_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, size_max, buffer: Vec::new(), progress: watch::Sender::default() })
    }

    /// What followers wait on.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Writes one piece of a line.
    ///
    /// # Errors
    /// When the file can't be written; the piece is lost then.
    pub fn write(&mut self, time: Timestamp, stream: &str, partial: bool, text: &[u8]) -> io::Result<()> {
        if self.size >= self.size_max && !partial {
            self.rotate()?;
        }
        self.buffer.clear();
        write_line(&mut self.buffer, time, stream, partial, text);
        self.file.write_all(&self.buffer)?;
        let length = self.buffer.len() as u64;
        self.size += length;
        self.progress.send_modify(|progress| progress.bytes += length);
        Ok(())
    }

    /// Says that nothing more will come.
    pub fn finish(&self) {
        self.progress.send_modify(|progress| progress.finished = true);
    }

    fn rotate(&mut self) -> io::Result<()> {
        shift(&self.path)?;
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.size = 0;
        self.progress.send_modify(|progress| progress.rotations += 1);
        Ok(())
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Makes room for a new file: `x.log` becomes `x.log.1`, that becomes `x.log.2`, and so on; the oldest is removed.
pub(crate) fn shift(path: &Path) -> io::Result<()> {
    for number in (1..FILES_MAX - 1).rev() {
        let from = rotated(path, number);
        if from.exists() {
            std::fs::rename(from, rotated(path, number + 1))?;
        }
    }
    std::fs::rename(path, rotated(path, 1))
}

fn rotated(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

struct Following {
    path: PathBuf,
    file: tokio::fs::File,
    progress: watch::Receiver<Progress>,
    seen: Progress,
    filter: Filter,
    pending: Vec<u8>,
}

/// Reads the log file at `path`. Followers wait on `progress`, never on a timer.
///
/// # Errors
/// When the file can't be opened.
pub async fn read(
    path: PathBuf,
    options: &LogOptions,
    progress: watch::Receiver<Progress>,
) -> io::Result<LogStream> {
    let mut file = tokio::fs::File::open(&path).await?;
    if let Some(lines) = options.tail_lines {
        // Files are small: rotation keeps them below `FILE_BYTES_MAX` and a line.
        let mut text = Vec::new();
        file.read_to_end(&mut text).await?;
        file.seek(io::SeekFrom::Start(tail_start(&text, lines) as u64)).await?;
    }
    let seen = *progress.borrow();
    let following =
        Following { path, file, progress, seen, filter: Filter::new(options), pending: Vec::new() };
    let stream = futures::stream::unfold(Some(following), |state| async move {
        let mut state = state?;
        match state.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(state))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(stream.boxed())
}

impl Following {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut chunk = vec![0; READ_BYTES];
        loop {
            if self.filter.done() {
                return Ok(None);
            }
            // The mark is taken before reading, so that what is written meanwhile is noticed.
            let now = *self.progress.borrow_and_update();
            let length = self.file.read(&mut chunk).await?;
            if length > 0 {
                let out = self.take(&chunk[..length]);
                if out.is_empty() {
                    continue;
                }
                return Ok(Some(out));
            }
            if now.rotations != self.seen.rotations {
                self.file = tokio::fs::File::open(&self.path).await?;
                self.seen = now;
            } else if !self.filter.options.follow || now.finished || self.progress.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    fn take(&mut self, chunk: &[u8]) -> Bytes {
        self.pending.extend_from_slice(chunk);
        let mut out = Vec::with_capacity(chunk.len());
        let whole = self.pending.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for line in self.pending[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            if self.filter.done() {
                break;
            }
            self.filter.push(line, &mut out);
        }
        self.pending.drain(..whole);
        out.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> LogOptions {
        LogOptions::default()
    }

    #[test]
    fn options_select_lines() {
        let text = b"2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:01Z stderr P tw\n\
            2026-01-01T00:00:01Z stderr F o\n2026-01-01T00:00:02Z stdout F three\n";
        let check = |options: LogOptions, expected: &str| {
            assert_eq!(String::from_utf8_lossy(&select(text, &options)), expected);
        };
        check(options(), "one\ntwo\nthree\n");
        check(LogOptions { tail_lines: Some(1), ..options() }, "three\n");
        check(LogOptions { tail_lines: Some(0), ..options() }, "");
        check(LogOptions { tail_lines: Some(9), limit_bytes: Some(5), ..options() }, "one\nt");
        check(LogOptions { stream: Some("Stderr".into()), ..options() }, "two\n");
        let since = "2026-01-01T00:00:02Z".parse().ok();
        check(LogOptions { since, timestamps: true, ..options() }, "2026-01-01T00:00:02Z three\n");
    }

    #[tokio::test]
    async fn a_follower_goes_on_over_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut writer = LogWriter::create(path.clone(), 60).unwrap();
        writer.write(Timestamp::UNIX_EPOCH, "stdout", false, b"first").unwrap();
        let options = LogOptions { follow: true, ..options() };
        let mut stream = read(path.clone(), &options, writer.progress()).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "first\n");
        writer.write(Timestamp::UNIX_EPOCH, "stdout", false, b"second").unwrap();
        writer.write(Timestamp::UNIX_EPOCH, "stdout", false, b"third").unwrap();
        drop(writer);
        let rest: Vec<_> = stream.map(|bytes| bytes.unwrap()).collect().await;
        assert_eq!(rest.concat(), b"second\nthird\n");
        assert!(rotated(&path, 1).exists());
    }
}
