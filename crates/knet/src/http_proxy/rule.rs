//! Rules: which requests they are for, and where those go.

use std::{cmp::Reverse, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, StatusCode};

use super::{
    backend_tls::BackendTls,
    filter::{Filter, Redirect},
    table::Asked,
};

/// Which paths a rule is for. Paths are compared in one form, in their case: see [`http_proxy`](super). Those of rules have to have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// This path alone.
    Exact(Box<str>),
    /// Paths that begin with the same elements, between slashes. A slash at the end does not count.
    Prefix(Box<str>),
}

impl PathMatch {
    fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => **exact == *path,
            Self::Prefix(prefix) => after_prefix(path, prefix).is_some(),
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Exact(text) => text,
            Self::Prefix(text) => text.trim_end_matches('/'),
        }
    }
}

/// What follows a prefix of whole elements: nothing, or something that begins with a slash.
pub(super) fn after_prefix<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = path.strip_prefix(prefix.trim_end_matches('/'))?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// A header that a request has to have. Of several headers of a name the values count joined by commas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderMatch {
    /// The name.
    pub name: HeaderName,
    /// The whole value.
    pub value: HeaderValue,
}

impl HeaderMatch {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        let mut values = asked.headers.get_all(&self.name).iter();
        match (values.next(), values.next()) {
            (None, _) => false,
            (Some(one), None) => one == self.value,
            (Some(_), Some(_)) => {
                let values: Vec<_> =
                    asked.headers.get_all(&self.name).iter().map(HeaderValue::as_bytes).collect();
                values.join(&b","[..]) == self.value.as_bytes()
            }
        }
    }
}

/// A parameter that the query has to have. Of several of a name the first counts; names and values are compared as sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryMatch {
    /// The name.
    pub name: Box<str>,
    /// The whole value.
    pub value: Box<str>,
}

impl QueryMatch {
    fn matches(&self, asked: &Asked<'_>) -> bool {
        let mut pairs = asked.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(name, _)| **name == *self.name).is_some_and(|(_, value)| *value == *self.value)
    }
}

/// Which requests a rule is for: those that have all of this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The path.
    pub path: PathMatch,
    /// The method; any when there is none.
    pub method: Option<Method>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Parameters of the query.
    pub query: Vec<QueryMatch>,
}

impl Match {
    /// Every request with such a path.
    #[must_use]
    pub fn path(path: PathMatch) -> Self {
        Self { path, method: None, headers: Vec::new(), query: Vec::new() }
    }

    /// Whether a request is meant.
    #[must_use]
    pub fn matches(&self, asked: &Asked<'_>) -> bool {
        self.path.matches(asked.path)
            && self.method.as_ref().is_none_or(|method| method == asked.method)
            && self.headers.iter().all(|header| header.matches(asked))
            && self.query.iter().all(|parameter| parameter.matches(asked))
    }

    /// The order in which rules are tried: exact paths, then longer ones; a method; more headers; more parameters (the Gateway
    /// API's `HTTPRouteRule.matches`). For an Ingress it is the longest path first, exact before prefix.
    pub(super) fn precedence(&self) -> impl Ord + use<> {
        let prefix = matches!(self.path, PathMatch::Prefix(_));
        let length = Reverse(self.path.text().len());
        (prefix, length, self.method.is_none(), Reverse(self.headers.len()), Reverse(self.query.len()))
    }
}

/// What is spoken with a backend, in the clear or within TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendProtocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2, in the clear by prior knowledge: for gRPC.
    Http2,
}

/// One of the places that a rule's requests go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// `namespace/service:port`, for people.
    pub name: Arc<str>,
    /// Its share of the requests, in proportion to those of the others.
    pub weight: u32,
    /// What is spoken there.
    pub protocol: BackendProtocol,
    /// How it is sealed; in the clear when it is not.
    pub tls: Option<BackendTls>,
    /// Where it is; `None` when the backend is not valid, so that its share of the requests is answered with 500.
    pub endpoints: Option<Arc<[SocketAddr]>>,
    /// What is changed of the requests that go there, after the rule's own filters.
    pub filters: Vec<Filter>,
}

/// Where a rule's requests go. When there are none, or all have the weight 0, requests are answered with 500.
pub type Backends = Vec<Backend>;

/// How long things may take; `None` is forever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the head of the request until the head of the answer.
    pub request: Option<Duration>,
    /// The same for each try.
    pub backend_request: Option<Duration>,
}

/// When a request is sent again that may have arrived (the Gateway API's `HTTPRouteRule.retry`, GEP-1731): after a connection that has failed,
/// a time-out of the try, or certain answers; whatever its method. Its body has to be shorter than
/// [`RETRY_BODY_BYTES_MAX`](super::RETRY_BODY_BYTES_MAX).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often at most.
    pub attempts: u32,
    /// How long it waits before the first time; each time twice as long, up to [`RETRY_BACKOFF_MAX`](super::RETRY_BACKOFF_MAX).
    pub backoff: Duration,
    /// The answers after which it is. When there are no attempts left, the client gets the last one.
    pub codes: Vec<StatusCode>,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes to one of these.
    Forward(Backends),
    /// It is answered with another place to ask at.
    Redirect(Redirect),
}

/// What happens to the requests that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where it comes from, for people.
    pub name: Arc<str>,
    /// Which requests it is for.
    pub matches: Match,
    /// What is changed of them, in this order.
    pub filters: Vec<Filter>,
    /// What is done.
    pub action: Action,
    /// How long that may take.
    pub timeouts: Timeouts,
    /// When it is sent again that may have arrived. Default: only if it is idempotent and has no body.
    pub retry: Option<Retry>,
}

impl Rule {
    /// A rule without filters, time-outs and retries.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, matches: Match, action: Action) -> Self {
        Self {
            name: name.into(),
            matches,
            filters: Vec::new(),
            action,
            timeouts: Timeouts::default(),
            retry: None,
        }
    }
}
