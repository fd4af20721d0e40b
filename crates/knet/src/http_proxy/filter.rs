//! What is changed of requests and answers on their way: pure functions.
//!
//! The rules are those of the Gateway API's `HTTPRouteFilter`.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, request::Parts, uri::PathAndQuery};

use super::rule::{Backend, PathMatch, after_prefix};

/// Changes of headers: first `set`, then `add`, then `remove`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    /// Headers that take the place of those of the same name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers that come besides.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Names of headers that go.
    pub remove: Vec<HeaderName>,
}

impl HeaderChange {
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Another path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// This one.
    Full(Box<str>),
    /// This in the place of the prefix that the rule matched; the rest stays.
    Prefix(Box<str>),
}

impl PathChange {
    fn apply(&self, path: &str, matched: &PathMatch) -> String {
        let changed = match (self, matched) {
            (Self::Full(full), _) => full.to_string(),
            (Self::Prefix(new), PathMatch::Prefix(old) | PathMatch::Exact(old)) => {
                let rest = after_prefix(path, old).unwrap_or_default();
                if rest.is_empty() { new.to_string() } else { new.trim_end_matches('/').to_owned() + rest }
            }
        };
        if changed.starts_with('/') { changed } else { format!("/{changed}") }
    }
}

/// Another host or path that the backend is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The host.
    pub host: Option<HeaderValue>,
    /// The path.
    pub path: Option<PathChange>,
}

/// Another place that the client is told to ask at. What is not given stays as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Box<str>>,
    /// The host.
    pub host: Option<Box<str>>,
    /// The port. Without it, it is the scheme's own if a scheme is given, else that of the listener.
    pub port: Option<u16>,
    /// The path.
    pub path: Option<PathChange>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

impl Redirect {
    /// The `Location` for a request that came to `port` of `host` by `scheme`.
    #[must_use]
    pub fn location(&self, uri: &Uri, matched: &PathMatch, scheme: &str, host: &str, port: u16) -> String {
        let to = self.scheme.as_deref().unwrap_or(scheme);
        let own = if to == "https" { 443 } else { 80 };
        let port = self.port.unwrap_or(if self.scheme.is_some() { own } else { port });
        let host = self.host.as_deref().unwrap_or(host);
        let path = self.path.as_ref().map(|change| change.apply(uri.path(), matched));
        let mut location = format!("{to}://{host}");
        if port != own {
            location.push_str(&format!(":{port}"));
        }
        location.push_str(path.as_deref().unwrap_or_else(|| uri.path()));
        if let Some(query) = uri.query() {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

/// A copy of some requests that goes to another backend, too. Nobody waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where it goes. Its weight and filters do not count.
    pub backend: Backend,
    /// Of so many requests in [`of`](Self::of) there is a copy.
    pub share: u32,
    /// See [`share`](Self::share).
    pub of: u32,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Of the request's headers.
    RequestHeaders(HeaderChange),
    /// Of the answer's headers.
    ResponseHeaders(HeaderChange),
    /// Of the host or path.
    Rewrite(Rewrite),
    /// None, but a copy of the request.
    Mirror(Mirror),
}

/// Applies what concerns the request. A path that can't be one stays as it was.
pub(super) fn change_request(filters: &[Filter], parts: &mut Parts, matched: &PathMatch) {
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => change.apply(&mut parts.headers),
            Filter::ResponseHeaders(_) | Filter::Mirror(_) => {}
            Filter::Rewrite(rewrite) => {
                if let Some(host) = &rewrite.host {
                    parts.headers.insert(header::HOST, host.clone());
                }
                if let Some(change) = &rewrite.path {
                    let mut path = change.apply(parts.uri.path(), matched);
                    if let Some(query) = parts.uri.query() {
                        path.push('?');
                        path.push_str(query);
                    }
                    if let Ok(path) = path.parse::<PathAndQuery>() {
                        parts.uri = Uri::from(path);
                    }
                }
            }
        }
    }
}

/// Applies what concerns the answer.
pub(super) fn change_response(filters: &[Filter], headers: &mut HeaderMap) {
    for filter in filters {
        if let Filter::ResponseHeaders(change) = filter {
            change.apply(headers);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the Gateway API's `HTTPPathModifier.replacePrefixMatch`.
    #[test]
    fn prefixes_are_replaced() {
        for (path, prefix, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/a/b", "/", "/x", "/x/a/b"),
        ] {
            let change = PathChange::Prefix(new.into());
            let found = change.apply(path, &PathMatch::Prefix(prefix.into()));
            assert_eq!(found, expected, "{path} {prefix} {new}");
        }
        assert_eq!(PathChange::Full("/x".into()).apply("/a/b", &PathMatch::Prefix("/a".into())), "/x");
    }

    /// The rules of the Gateway API's `HTTPRequestRedirectFilter` about ports.
    #[test]
    fn locations_have_the_port_that_they_need() {
        let uri: Uri = "/a?b=c".parse().unwrap();
        let root = PathMatch::Prefix("/".into());
        for (scheme, port, from, at, expected) in [
            (None, None, "http", 80, "http://h/a?b=c"),
            (None, None, "http", 8080, "http://h:8080/a?b=c"),
            (Some("https"), None, "http", 8080, "https://h/a?b=c"),
            (Some("https"), Some(8443), "http", 80, "https://h:8443/a?b=c"),
            (Some("http"), Some(443), "https", 443, "http://h:443/a?b=c"),
            (None, Some(443), "https", 8443, "https://h/a?b=c"),
        ] {
            let redirect = Redirect {
                scheme: scheme.map(Into::into),
                host: None,
                port,
                path: None,
                status: StatusCode::FOUND,
            };
            assert_eq!(redirect.location(&uri, &root, from, "h", at), expected);
        }
    }

    #[test]
    fn headers_are_set_added_and_removed() {
        let pair = |name: &str, value: &str| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        let mut headers: HeaderMap = [pair("a", "1"), pair("b", "1"), pair("c", "1")].into_iter().collect();
        let change = HeaderChange {
            set: vec![pair("a", "2")],
            add: vec![pair("b", "2")],
            remove: vec!["c".parse().unwrap()],
        };
        change.apply(&mut headers);
        let all: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        assert_eq!(all, [("a", "2"), ("b", "1"), ("b", "2")]);
    }
}
