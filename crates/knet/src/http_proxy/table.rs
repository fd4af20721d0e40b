//! What each port does: the table that requests are looked up in.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderMap, Method, request::Parts};

use super::{
    filter::Filter,
    hosts::{HostName, Hosts},
    pool,
    rule::{Action, Rule},
    tls::Certificate,
};

/// What counts of a request when its rule is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The host, in lower case, without a port.
    pub host: &'a str,
    /// The path.
    pub path: &'a str,
    /// The query without its question mark; may be empty.
    pub query: &'a str,
    /// The method.
    pub method: &'a Method,
    /// The headers.
    pub headers: &'a HeaderMap,
}

impl<'a> Asked<'a> {
    /// What counts of a request to `host`.
    pub(super) fn of(parts: &'a Parts, host: &'a str) -> Self {
        Self {
            host,
            path: parts.uri.path(),
            query: parts.uri.query().unwrap_or_default(),
            method: &parts.method,
            headers: &parts.headers,
        }
    }
}

/// What one port does.
#[derive(Clone, Debug, Default)]
pub struct PortRoutes {
    /// The certificates by host, when it speaks TLS. Who asks for a name without one gets the certificate of
    /// [`ProxyOptions`](super::ProxyOptions), or none.
    pub tls: Option<Hosts<Certificate>>,
    /// The rules, by the host that listens, and by the host that they name. A request is for the most specific listener, and for the
    /// first rule in it that matches, that of the more specific host first.
    pub listeners: Hosts<Hosts<Vec<Arc<Rule>>>>,
    /// Where connections of TLS go that are not ended here, by the host that listens, and by the host that is asked for. A port that has
    /// any does nothing else.
    pub passthrough: Hosts<Hosts<Arc<Rule>>>,
    /// The rules for requests that no other rule is for, by the host that they name.
    pub fallback: Hosts<Arc<Rule>>,
}

impl PortRoutes {
    /// The rule for a connection of TLS to this host.
    pub(crate) fn select_passthrough(&self, host: &str) -> Option<&Arc<Rule>> {
        self.passthrough.matching(host).next()?.matching(host).next()
    }

    /// Adds a rule. Of rules that match the same requests the first that was added counts.
    pub fn add(&mut self, listener: HostName, host: HostName, rule: Arc<Rule>) {
        let rules = self.listeners.entry(listener).entry(host);
        let precedence = rule.matches.precedence();
        let at = rules.partition_point(|other| other.matches.precedence() <= precedence);
        rules.insert(at, rule);
    }
}

/// What each port does. The number is the one that clients know, whatever the socket is bound to.
#[derive(Clone, Debug, Default)]
pub struct RouteTable {
    /// The ports.
    pub ports: BTreeMap<u16, PortRoutes>,
}

impl RouteTable {
    /// The rule for a request that came to `port`: a pure function.
    #[must_use]
    pub fn select(&self, port: u16, asked: &Asked<'_>) -> Option<&Arc<Rule>> {
        let port = self.ports.get(&port)?;
        let listener = port.listeners.matching(asked.host).next();
        let rules = listener.into_iter().flat_map(|listener| listener.matching(asked.host)).flatten();
        rules.chain(port.fallback.matching(asked.host)).find(|rule| rule.matches.matches(asked))
    }

    /// Whether a request for `host` may come on a connection that was made for `name`: when the same listener is for both, as else it would
    /// pass by what the other one asks of its connections.
    pub(super) fn same_listener(&self, port: u16, name: &str, host: &str) -> bool {
        let Some(port) = self.ports.get(&port) else { return true };
        let of = |host| port.listeners.matching(host).next().map(std::ptr::from_ref);
        of(name) == of(host)
    }

    /// Every rule.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.ports.values().flat_map(|port| {
            let rules = port.listeners.values().flat_map(Hosts::values).flatten();
            rules.chain(port.fallback.values()).chain(port.passthrough.values().flat_map(Hosts::values))
        })
    }

    /// Every endpoint.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = pool::Key> {
        let backends = self.rules().flat_map(|rule| {
            let backends = match &rule.action {
                Action::Forward(backends) => backends.as_slice(),
                Action::Redirect(_) => &[],
            };
            let filters = backends.iter().flat_map(|backend| &backend.filters).chain(&rule.filters);
            let mirrors = filters.filter_map(|filter| match filter {
                Filter::Mirror(mirror) => Some(&mirror.backend),
                _ => None,
            });
            backends.iter().chain(mirrors)
        });
        backends.flat_map(|backend| {
            let endpoints = backend.endpoints.iter().flat_map(|endpoints| endpoints.iter());
            endpoints.map(|endpoint| pool::key(*endpoint, backend))
        })
    }
}
