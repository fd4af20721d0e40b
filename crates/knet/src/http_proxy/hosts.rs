//! Names of hosts, and what is known by them.

use std::collections::HashMap;

/// Which hosts something is for. Names are in lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostName {
    /// This host.
    Exact(Box<str>),
    /// The hosts with exactly one label before `.example.com`, as wildcards of an Ingress are.
    Label(Box<str>),
    /// The hosts with any labels, at least one, before `.example.com`, as wildcards of the Gateway API are.
    Suffix(Box<str>),
    /// Every host.
    Any,
}

impl HostName {
    /// A host of an Ingress: `*.` stands for one label; an empty name is every host.
    #[must_use]
    pub fn ingress(name: &str) -> Self {
        Self::parse(name, Self::Label)
    }

    /// A host name of the Gateway API: `*.` stands for one or more labels; an empty name is every host.
    #[must_use]
    pub fn gateway(name: &str) -> Self {
        Self::parse(name, Self::Suffix)
    }

    fn parse(name: &str, wildcard: fn(Box<str>) -> Self) -> Self {
        let name = name.to_ascii_lowercase();
        match name.strip_prefix('*') {
            _ if name.is_empty() || name == "*" => Self::Any,
            Some(suffix) => wildcard(suffix.into()),
            None => Self::Exact(name.into()),
        }
    }
}

/// Values by host name; the most specific name counts first.
#[derive(Clone, Debug)]
pub struct Hosts<T> {
    exact: HashMap<Box<str>, T>,
    label: HashMap<Box<str>, T>,
    suffix: HashMap<Box<str>, T>,
    any: Option<T>,
}

impl<T> Default for Hosts<T> {
    fn default() -> Self {
        Self { exact: HashMap::new(), label: HashMap::new(), suffix: HashMap::new(), any: None }
    }
}

impl<T> Hosts<T> {
    /// The value of exactly this name.
    #[must_use]
    pub fn get(&self, name: &HostName) -> Option<&T> {
        match name {
            HostName::Exact(name) => self.exact.get(name),
            HostName::Label(suffix) => self.label.get(suffix),
            HostName::Suffix(suffix) => self.suffix.get(suffix),
            HostName::Any => self.any.as_ref(),
        }
    }

    /// Puts a value there, and gives the one that was there.
    pub fn insert(&mut self, name: HostName, value: T) -> Option<T> {
        match name {
            HostName::Exact(name) => self.exact.insert(name, value),
            HostName::Label(suffix) => self.label.insert(suffix, value),
            HostName::Suffix(suffix) => self.suffix.insert(suffix, value),
            HostName::Any => self.any.replace(value),
        }
    }

    /// The value of a name, which is made if there is none.
    pub fn entry(&mut self, name: HostName) -> &mut T
    where
        T: Default,
    {
        match name {
            HostName::Exact(name) => self.exact.entry(name).or_default(),
            HostName::Label(suffix) => self.label.entry(suffix).or_default(),
            HostName::Suffix(suffix) => self.suffix.entry(suffix).or_default(),
            HostName::Any => self.any.get_or_insert_default(),
        }
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.label.values()).chain(self.suffix.values()).chain(&self.any)
    }

    /// All values, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        let named = self.exact.values_mut().chain(self.label.values_mut()).chain(self.suffix.values_mut());
        named.chain(&mut self.any)
    }

    /// What is for `host`, in lower case: first by its own name, then by the longest wildcard, at last what is for all.
    pub fn matching<'a, 'h>(&'a self, host: &'h str) -> impl Iterator<Item = &'a T> + use<'a, 'h, T> {
        let dots = host.char_indices().filter(|(at, char)| *at > 0 && *char == '.');
        let wildcards = dots.flat_map(move |(at, _)| {
            let (before, suffix) = host.split_at(at);
            let label = if before.contains('.') { None } else { self.label.get(suffix) };
            [label, self.suffix.get(suffix)].into_iter().flatten()
        });
        self.exact.get(host).into_iter().chain(wildcards).chain(&self.any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: the table of "Hostname wildcards" in the documentation of Ingress, and the Gateway API's `Hostname`.
    #[test]
    fn the_most_specific_name_comes_first() {
        let names = ["", "foo.com", "*.foo.com", "bar.foo.com", "*.com"];
        let table = |make: fn(&str) -> HostName| {
            let mut hosts = Hosts::default();
            for name in names {
                assert!(hosts.insert(make(name), name).is_none());
            }
            hosts
        };
        let (ingress, gateway) = (table(HostName::ingress), table(HostName::gateway));
        for (host, one, many) in [
            ("foo.com", &["foo.com", "*.com", ""][..], &["foo.com", "*.com", ""][..]),
            ("bar.foo.com", &["bar.foo.com", "*.foo.com", ""], &["bar.foo.com", "*.foo.com", "*.com", ""]),
            ("baz.foo.com", &["*.foo.com", ""], &["*.foo.com", "*.com", ""]),
            ("baz.bar.foo.com", &[""], &["*.foo.com", "*.com", ""]),
            (".foo.com", &[""], &["*.com", ""]),
            ("other", &[""], &[""]),
            ("", &[""], &[""]),
        ] {
            assert_eq!(ingress.matching(host).copied().collect::<Vec<_>>(), one, "{host}");
            assert_eq!(gateway.matching(host).copied().collect::<Vec<_>>(), many, "{host}");
        }
    }
}
