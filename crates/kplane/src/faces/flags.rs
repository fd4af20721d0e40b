//! Flags as Go programs take them: `--name=value`, `--name value`, `--name`; unknown ones must not stop anybody.

use std::str::FromStr;

use super::FaceError;

/// The flags of a program, in their order; one may be given several times.
#[derive(Clone, Debug, Default)]
pub struct Flags(Vec<(String, String)>);

impl Flags {
    /// Reads arguments, without the program's name. A flag without a value is `true`; what is no flag is skipped.
    ///
    /// ```
    /// use kplane::faces::Flags;
    ///
    /// let flags = Flags::parse(["--secure-port=443", "--bind-address", "127.0.0.1", "--allow-privileged", "--v=2"]);
    /// assert_eq!(flags.get("bind-address"), Some("127.0.0.1"));
    /// assert_eq!(flags.get("allow-privileged"), Some("true"));
    /// assert_eq!(flags.get("none"), None);
    /// ```
    pub fn parse<S: Into<String>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut arguments = arguments.into_iter().map(Into::into).peekable();
        let mut flags = Vec::new();
        while let Some(argument) = arguments.next() {
            let Some(flag) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => (
                    flag,
                    arguments.next_if(|next| !next.starts_with('-')).unwrap_or_else(|| "true".to_owned()),
                ),
            };
            flags.push((name.to_owned(), value));
        }
        Self(flags)
    }

    /// The last value of a flag.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().rev().find(|(flag, _)| flag == name).map(|(_, value)| value.as_str())
    }

    /// All values of a flag, whole.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(flag, _)| flag == name).map(|(_, value)| value.as_str())
    }

    /// All values of a flag that takes a list, split at commas.
    pub fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let values = self.0.iter().filter(move |(flag, _)| flag == name);
        values.flat_map(|(_, value)| value.split(',')).filter(|value| !value.is_empty())
    }

    /// Whether help is asked for.
    #[must_use]
    pub fn wants_help(&self) -> bool {
        self.get("help").or_else(|| self.get("h")).is_some()
    }

    /// A flag's value as something else than text.
    pub(super) fn read<T: FromStr>(
        &self,
        flag: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, FaceError> {
        let fault = |value: &str| FaceError::Flag { flag, value: value.to_owned(), wanted };
        self.get(flag).map(|value| value.parse().map_err(|_| fault(value))).transpose()
    }
}
