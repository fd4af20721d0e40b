//! Where a node keeps the certificates that it was issued: each with its key in one file, as upstream's kubelet has them in its
//! `--cert-dir` (`kubelet-client-current.pem`, a link to the pair of a certain time).

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use crate::ca::Credentials;

/// How many pairs of one kind are kept: the current one, and the one before.
const PAIRS_MAX: usize = 2;

/// The pairs of one kind, such as `kubelet-client`.
#[derive(Clone, Debug)]
pub(super) struct Pairs {
    dir: PathBuf,
    kind: &'static str,
}

impl Pairs {
    pub(super) fn new(dir: &Path, kind: &'static str) -> Self {
        Self { dir: dir.to_owned(), kind }
    }

    fn link(&self) -> PathBuf {
        self.dir.join(format!("{}-current.pem", self.kind))
    }

    /// The current pair; `None` if there is none, or none that could be read.
    pub(super) fn current(&self) -> Option<Credentials> {
        let path = self.link();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the certificate can't be read");
                return None;
            }
        };
        let mut blocks = text.match_indices("-----BEGIN ").map(|(at, _)| at);
        let key =
            blocks.find(|at| text[*at..].lines().next().is_some_and(|line| line.contains("PRIVATE KEY")));
        let Some(key) = key.filter(|key| *key > 0) else {
            tracing::warn!(path = %path.display(), "there is no certificate with its key");
            return None;
        };
        Some(Credentials { certificate_pem: text[..key].to_owned(), key_pem: text[key..].to_owned() })
    }

    /// Makes a pair the current one. Whoever reads meanwhile, or after a crash, finds the old pair or the new one.
    pub(super) fn update(&self, now: Timestamp, pair: &Credentials) -> io::Result<()> {
        let name = format!("{}-{}.pem", self.kind, now.strftime("%Y-%m-%d-%H-%M-%S"));
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        writeln!(file, "{}\n{}", pair.certificate_pem.trim_end(), pair.key_pem.trim_end())?;
        file.as_file().sync_all()?;
        file.persist(self.dir.join(&name))?;
        // A link can't be replaced, but renamed over.
        let updated = self.dir.join(format!("{}-updated.pem", self.kind));
        match fs::remove_file(&updated) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(&name, &updated)?;
        fs::rename(&updated, self.link())?;
        fs::File::open(&self.dir)?.sync_all()?;
        self.clean_up(&name);
        Ok(())
    }

    /// Removes all but the last pairs; what can't be removed stays.
    fn clean_up(&self, current: &str) {
        let prefix = format!("{}-2", self.kind);
        let Ok(entries) = fs::read_dir(&self.dir) else { return };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let is_old = |name: &String| name.starts_with(&prefix) && name.ends_with(".pem") && name != current;
        let mut old: Vec<String> = names.filter(is_old).collect();
        // Their names say when they were made.
        old.sort_unstable();
        let kept = PAIRS_MAX - 1;
        for name in &old[..old.len().saturating_sub(kept)] {
            if let Err(error) = fs::remove_file(self.dir.join(name)) {
                tracing::warn!(%error, name, "an old certificate can't be removed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pair(number: usize) -> Credentials {
        let block = |label: &str| format!("-----BEGIN {label}-----\n{number}\n-----END {label}-----\n");
        let certificate_pem = block("CERTIFICATE") + &block("CERTIFICATE");
        Credentials { certificate_pem, key_pem: block("EC PRIVATE KEY") }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn the_last_pair_is_the_current_one_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = Pairs::new(dir.path(), "kubelet-client");
        fs::write(dir.path().join("kubelet-server-2000-01-01-00-00-00.pem"), "other").unwrap();
        // As a crash leaves it.
        std::os::unix::fs::symlink("nowhere", dir.path().join("kubelet-client-updated.pem")).unwrap();
        assert!(pairs.current().is_none());
        for number in 0..4 {
            let now =
                Timestamp::from_second(1_900_000_000 + i64::try_from(number / 2).unwrap() * 60).unwrap();
            pairs.update(now, &pair(number)).unwrap();
            let found = pairs.current().unwrap();
            assert_eq!(found.certificate_pem, pair(number).certificate_pem);
            assert_eq!(found.key_pem, pair(number).key_pem);
        }
        pairs.update(Timestamp::from_second(2_000_000_000).unwrap(), &pair(9)).unwrap();
        let expected = [
            "kubelet-client-2030-03-17-17-47-40.pem",
            "kubelet-client-2033-05-18-03-33-20.pem",
            "kubelet-client-current.pem",
            "kubelet-server-2000-01-01-00-00-00.pem",
        ];
        assert_eq!(names(dir.path()), expected);
        let mode = fs::metadata(pairs.link()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_link(pairs.link()).unwrap(), Path::new(expected[1]), "the directory may move");
    }

    #[test]
    fn files_without_both_parts_are_no_pairs() {
        let dir = tempfile::tempdir().unwrap();
        let pairs = Pairs::new(dir.path(), "kubelet-client");
        let Credentials { certificate_pem, key_pem } = pair(1);
        for (text, expected) in [
            ("", false),
            ("x", false),
            (&*certificate_pem, false),
            (&*key_pem, false),
            (&*format!("{certificate_pem}{key_pem}"), true),
        ] {
            fs::write(pairs.link(), text).unwrap();
            assert_eq!(pairs.current().is_some(), expected, "{text}");
        }
    }
}
