//! What processes use, from `/proc` (proc_pid_stat(5)).

use std::{collections::HashMap, time::Duration};

/// How many generations of processes are looked at below a container's first one.
const GENERATIONS_MAX: usize = 64;

/// All processes of the machine at one moment.
#[derive(Debug)]
pub(super) struct Processes {
    all: HashMap<libc::pid_t, Process>,
    ticks_per_second: u64,
    page_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    parent: libc::pid_t,
    session: libc::pid_t,
    /// The time of the process and of those below it that have ended, in ticks.
    ticks: u64,
    pages: u64,
}

impl Process {
    /// Reads the one line of a `stat` file. The program's name may have any characters in it, so fields are counted from
    /// the last closing bracket.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        // Field 3 of the manual page is the first here.
        let number = |field: usize| fields.get(field - 3)?.parse::<i64>().ok();
        let time = |field: usize| number(field).and_then(|ticks| u64::try_from(ticks).ok());
        Some(Self {
            parent: libc::pid_t::try_from(number(4)?).ok()?,
            session: libc::pid_t::try_from(number(6)?).ok()?,
            ticks: time(14)? + time(15)? + time(16)? + time(17)?,
            pages: time(24)?,
        })
    }
}

/// A figure of the system that is never negative.
fn system(name: libc::c_int, default: u64) -> u64 {
    // SAFETY: a plain call that reads a constant.
    u64::try_from(unsafe { libc::sysconf(name) }).unwrap_or(default)
}

impl Processes {
    /// Reads them. Those that end meanwhile are left out.
    pub(super) fn read() -> Self {
        let read = |pid: libc::pid_t| {
            let line = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, Process::parse(&String::from_utf8_lossy(&line))?))
        };
        Self {
            all: super::tree::processes().filter_map(read).collect(),
            ticks_per_second: system(libc::_SC_CLK_TCK, 100).max(1),
            page_bytes: system(libc::_SC_PAGESIZE, 4096),
        }
    }

    /// Whether a process belongs to the container whose first one is `leader`: it is of its session, or descends from it.
    fn is_below(&self, mut pid: libc::pid_t, leader: libc::pid_t) -> bool {
        for _ in 0..GENERATIONS_MAX {
            let Some(process) = self.all.get(&pid) else { return false };
            if pid == leader || process.session == leader {
                return true;
            }
            pid = process.parent;
        }
        false
    }

    /// The processor time and the memory in bytes of a container's processes, given its first one. Memory that they share
    /// is counted for each.
    pub(super) fn below(&self, leader: libc::pid_t) -> (Duration, u64) {
        let (mut ticks, mut pages) = (0_u64, 0_u64);
        for (_, process) in self.all.iter().filter(|(pid, _)| self.is_below(**pid, leader)) {
            ticks += process.ticks;
            pages += process.pages;
        }
        let nanoseconds = u128::from(ticks) * 1_000_000_000 / u128::from(self.ticks_per_second);
        let cpu = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        (cpu, pages.saturating_mul(self.page_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields as proc_pid_stat(5) numbers them.
    #[test]
    fn a_line_is_read() {
        let tail = "0 -1 4194304 1 2 3 4 50 7 20 3 20 0 1 0 1000 99999 321 18446744073709551615";
        let expected = Process { parent: 17, session: 42, ticks: 80, pages: 321 };
        for (line, expected) in [
            (format!("43 (sh) S 17 43 42 {tail}"), Some(expected)),
            (format!("43 (a) b) (c) R 17 43 42 {tail}"), Some(expected)),
            ("43 (sh) S 17".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(Process::parse(&line), expected, "{line}");
        }
    }

    #[test]
    fn a_containers_processes_are_those_of_its_session_and_below() {
        let process = |parent, session, ticks| Process { parent, session, ticks, pages: 1 };
        let all = HashMap::from([
            (1, process(0, 1, 1000)),
            (10, process(1, 10, 100)),
            (11, process(10, 10, 10)),
            // It has begun a session of its own, its child too.
            (12, process(11, 12, 1)),
            (13, process(12, 13, 1)),
            // Its parent has ended: only the session tells.
            (14, process(1, 10, 5)),
            (20, process(1, 20, 7)),
            // A circle, which can be read when numbers are used again in between.
            (30, process(31, 30, 1)),
            (31, process(30, 31, 1)),
        ]);
        let processes = Processes { all, ticks_per_second: 100, page_bytes: 4096 };
        assert_eq!(processes.below(10), (Duration::from_millis(1170), 5 * 4096));
        assert_eq!(processes.below(20), (Duration::from_millis(70), 4096));
        assert_eq!(processes.below(99), (Duration::ZERO, 0));
    }

    #[test]
    fn this_process_holds_memory() {
        let own = libc::pid_t::try_from(std::process::id()).unwrap();
        assert!(Processes::read().below(own).1 > 0);
    }
}
