//! Audit events as lines of JSON in a file that is replaced when it is large (`--audit-log-path`).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use jiff::{Timestamp, ToSpan as _, tz::TimeZone};

use super::{AuditEvent, AuditSink};

/// How an [`AuditLog`] is kept. Defaults are upstream's.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The file. Older ones stand beside it, with the time when they were put away in their names.
    pub path: PathBuf,
    /// How large the file grows before it is put away, in bytes (`--audit-log-maxsize`, there in MiB). Default: 100 MiB.
    pub bytes_max: u64,
    /// How many days files that were put away are kept (`--audit-log-maxage`); 0: for ever. Default: 366.
    pub age_days_max: u32,
    /// How many files that were put away are kept (`--audit-log-maxbackup`); 0: all. Default: 100.
    pub backups_max: usize,
    /// How large an event may be, in bytes, before its bodies are left out (`--audit-log-truncate-max-event-size`). Default:
    /// no limit.
    pub event_bytes_max: usize,
    /// Whether a request whose begin can't be written is refused (`--audit-log-mode=blocking-strict`). Default: no.
    pub strict: bool,
}

impl LogConfig {
    /// Keeps a log in this file, with upstream's defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            bytes_max: 100 * 1024 * 1024,
            age_days_max: 366,
            backups_max: 100,
            event_bytes_max: usize::MAX,
            strict: false,
        }
    }
}

/// Writes each event to a file before the request goes on, as upstream's `blocking` mode: what the file has is what happened.
/// Costs one `write` for each event. An event that can't be written is counted and told to the log of the process.
///
/// ```
/// use kapi::audit::{AuditLog, LogConfig};
///
/// let place = std::env::temp_dir().join(format!("kapi-audit-{}", std::process::id()));
/// std::fs::create_dir_all(&place)?;
/// let log = AuditLog::open(LogConfig::new(place.join("audit.log")))?;
/// assert_eq!(log.lost(), 0);
/// # std::fs::remove_dir_all(place)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct AuditLog {
    config: LogConfig,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    bytes: u64,
    lost: u64,
}

impl AuditLog {
    /// Opens the file, or makes it, readable for its owner alone.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn open(config: LogConfig) -> io::Result<Self> {
        let file = open(&config.path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { config, state: Mutex::new(State { file, bytes, lost: 0 }) })
    }

    /// How many events could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).lost
    }

    fn write(&self, state: &mut State, line: &[u8], now: Timestamp) -> io::Result<()> {
        let length = line.len() as u64;
        if state.bytes > 0 && state.bytes + length > self.config.bytes_max {
            self.put_away(state, now)?;
        }
        state.file.write_all(line)?;
        state.bytes += length;
        Ok(())
    }

    fn put_away(&self, state: &mut State, now: Timestamp) -> io::Result<()> {
        let path = &self.config.path;
        let (stem, end) = names(path);
        let time = now.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H-%M-%S%.3f").to_string();
        // Two within a millisecond are told apart by a number.
        let name = |number: u32| match number {
            0 => path.with_file_name(format!("{stem}{time}{end}")),
            number => path.with_file_name(format!("{stem}{time}_{number}{end}")),
        };
        let away = (0..u32::MAX).map(name).find(|away| !away.exists());
        fs::rename(path, away.ok_or(io::ErrorKind::AlreadyExists)?)?;
        state.file = open(path)?;
        state.bytes = 0;
        self.forget(now)
    }

    /// Deletes what is too old or too many.
    fn forget(&self, now: Timestamp) -> io::Result<()> {
        let path = &self.config.path;
        let (stem, end) = names(path);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut away = Vec::new();
        for entry in fs::read_dir(folder.unwrap_or(Path::new(".")))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let time = name.strip_prefix(&stem).and_then(|rest| rest.strip_suffix(&end)).map(str::to_owned);
            away.extend(time.filter(|time| is_time(time)).map(|time| (time, entry.path())));
        }
        away.sort_by(|left, right| right.cmp(left));
        let oldest = now.to_zoned(TimeZone::UTC).checked_sub(i64::from(self.config.age_days_max).days());
        let oldest = oldest.map(|time| time.strftime("%Y-%m-%dT%H-%M-%S").to_string()).unwrap_or_default();
        for (index, (time, file)) in away.into_iter().enumerate() {
            let surplus = self.config.backups_max > 0 && index >= self.config.backups_max;
            if surplus || (self.config.age_days_max > 0 && time < oldest) {
                fs::remove_file(file)?;
            }
        }
        Ok(())
    }
}

/// What stands before and after the time in the names of files that were put away.
fn names(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|part| part.to_string_lossy().into_owned());
    let end = text(path.extension()).map_or_else(String::new, |end| format!(".{end}"));
    (format!("{}-", text(path.file_stem()).unwrap_or_default()), end)
}

fn is_time(text: &str) -> bool {
    text.len() >= 19 && text.bytes().all(|byte| byte.is_ascii_digit() || b"-T._".contains(&byte))
}

fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl AuditLog {
    fn keep(&self, event: &AuditEvent<'_>) -> io::Result<()> {
        let mut line = event.to_json_within(self.config.event_bytes_max);
        line.push(b'\n');
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write(&mut state, &line, event.at);
        if let Err(error) = &written {
            state.lost += 1;
            tracing::error!(%error, "an audit event could not be written");
        }
        written
    }
}

impl AuditSink for AuditLog {
    fn record(&self, event: &AuditEvent<'_>) {
        // It was told where it failed; the request goes on.
        let _ = self.keep(event);
    }

    fn begin(&self, event: &AuditEvent<'_>) -> Result<(), String> {
        match self.keep(event) {
            Err(error) if self.config.strict => Err(error.to_string()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Upstream's log is natefinch/lumberjack: a file that would grow over its size is put away, and the newest are kept.
    #[test]
    fn files_are_put_away_by_size_count_and_age() {
        let place = std::env::temp_dir().join(format!("kapi-audit-{}", uuid::Uuid::new_v4()));
        fs::create_dir_all(&place).unwrap();
        let mut config = LogConfig::new(place.join("audit.log"));
        (config.bytes_max, config.backups_max, config.age_days_max) = (10, 2, 30);
        fs::write(place.join("audit-notes.log"), "mine").unwrap();
        let log = AuditLog::open(config).unwrap();
        let files = || {
            let mut names: Vec<String> = fs::read_dir(&place)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .filter(|name| name != "audit-notes.log")
                .collect();
            names.sort();
            names
        };
        let mut state = log.state.lock().unwrap();
        for (time, line, expected) in [
            ("2026-01-01T00:00:00Z", "12345\n", vec!["audit.log"]),
            ("2026-01-01T00:00:01Z", "1234\n", vec!["audit-2026-01-01T00-00-01.000.log", "audit.log"]),
            (
                "2026-01-01T00:00:01Z",
                "a line that is longer\n",
                vec!["audit-2026-01-01T00-00-01.000.log", "audit-2026-01-01T00-00-01.000_1.log", "audit.log"],
            ),
            (
                "2026-01-02T00:00:00Z",
                "1\n",
                vec!["audit-2026-01-01T00-00-01.000_1.log", "audit-2026-01-02T00-00-00.000.log", "audit.log"],
            ),
            ("2026-02-02T00:00:00Z", "123456789\n", vec!["audit-2026-02-02T00-00-00.000.log", "audit.log"]),
        ] {
            log.write(&mut state, line.as_bytes(), time.parse().unwrap()).unwrap();
            assert_eq!(files(), expected, "{time}");
        }
        assert_eq!(fs::read_to_string(place.join("audit.log")).unwrap(), "123456789\n");
        assert_eq!(fs::read_to_string(place.join("audit-notes.log")).unwrap(), "mine");
        fs::remove_dir_all(place).unwrap();
    }
}
