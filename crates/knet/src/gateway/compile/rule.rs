//! Rules of routes as the proxy has them.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Method, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    super::types::{
        BackendRef, GRPCRouteMatch, GRPCRouteRule, HTTPRouteMatch, HTTPRouteRetry, HTTPRouteRule,
        HeaderModifier, NamedMatch, PathModifier, RequestMirror, RequestRedirect, RouteFilter, RouteTimeouts,
        TLSRouteRule,
    },
    Input, Key, grant,
    listener::Fault,
    policy::Policies,
};
use crate::{
    backends::{BackendError, PortRef, ServiceBackend, find_backend},
    http_proxy::{
        Action, Backend, BackendProtocol, BackendTls, Filter, HeaderChange, HeaderMatch, Match, Mirror,
        PathChange, PathMatch, QueryMatch, RETRIES_DEFAULT, RETRIES_MAX, RETRY_BACKOFF_DEFAULT, Redirect,
        Retry, Rewrite, Rule, Timeouts,
    },
};

/// The rules of a route.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) rules: Vec<Arc<Rule>>,
    /// The first thing that is wrong with a backend.
    pub(super) fault: Option<Fault>,
    /// The Services that they lead to, but those to which TLS is only passed on.
    pub(super) services: BTreeSet<Key>,
}

/// What is not supported, in words.
type Supported<T> = Result<T, String>;

/// How long requests may take, and when they are sent again.
type Limits = (Timeouts, Option<Retry>);

/// Who refers to backends.
struct Referrer<'a> {
    kind: &'static str,
    meta: &'a ObjectMeta,
    input: &'a Input<'a>,
    policies: &'a Policies<'a>,
}

pub(super) fn http_rules(
    meta: &ObjectMeta,
    rules: &[HTTPRouteRule],
    input: &Input<'_>,
    policies: &Policies<'_>,
) -> Supported<Rules> {
    let referrer = Referrer { kind: "HTTPRoute", meta, input, policies };
    let mut all = Rules::default();
    for (number, rule) in rules.iter().enumerate() {
        if rule.session_persistence.is_some() {
            return Err("session persistence is not supported".to_owned());
        }
        let mut matches = rule.matches.iter().map(http_match).collect::<Supported<Vec<_>>>()?;
        if matches.is_empty() {
            matches.push(Match::path(PathMatch::Prefix("/".into())));
        }
        let limits = (timeouts(rule.timeouts.as_ref())?, rule.retry.as_ref().map(retry).transpose()?);
        referrer.add(&mut all, number, matches, (&rule.filters, &rule.backend_refs), limits)?;
    }
    Ok(all)
}

pub(super) fn grpc_rules(
    meta: &ObjectMeta,
    rules: &[GRPCRouteRule],
    input: &Input<'_>,
    policies: &Policies<'_>,
) -> Supported<Rules> {
    let referrer = Referrer { kind: "GRPCRoute", meta, input, policies };
    let mut all = Rules::default();
    for (number, rule) in rules.iter().enumerate() {
        if rule.session_persistence.is_some() {
            return Err("session persistence is not supported".to_owned());
        }
        let mut matches = rule.matches.iter().map(grpc_match).collect::<Supported<Vec<_>>>()?;
        if matches.is_empty() {
            matches.push(Match::path(PathMatch::Prefix("/".into())));
        }
        referrer.add(&mut all, number, matches, (&rule.filters, &rule.backend_refs), Limits::default())?;
    }
    Ok(all)
}

pub(super) fn tls_rules(
    meta: &ObjectMeta,
    rules: &[TLSRouteRule],
    input: &Input<'_>,
    policies: &Policies<'_>,
) -> Supported<Rules> {
    let referrer = Referrer { kind: "TLSRoute", meta, input, policies };
    let mut all = Rules::default();
    for (number, rule) in rules.iter().enumerate() {
        let every = vec![Match::path(PathMatch::Prefix("/".into()))];
        referrer.add(&mut all, number, every, (&[], &rule.backend_refs), Limits::default())?;
    }
    Ok(all)
}

impl Referrer<'_> {
    fn add(
        &self,
        all: &mut Rules,
        number: usize,
        matches: Vec<Match>,
        (filters, backends): (&[RouteFilter], &[BackendRef]),
        (timeouts, retry): Limits,
    ) -> Supported<()> {
        let (filters, redirect) = self.read_filters(filters, all)?;
        let action = match redirect {
            Some(redirect) => Action::Redirect(redirect),
            None => {
                let backends = backends.iter().map(|backend| self.backend(backend, all));
                Action::Forward(backends.collect::<Supported<_>>()?)
            }
        };
        let (namespace, name) = super::key(self.meta);
        for (at, matches) in matches.into_iter().enumerate() {
            let name = format!("{}/{namespace}/{name}/{number}/{at}", self.kind);
            let rule = Rule {
                name: name.into(),
                matches,
                filters: filters.clone(),
                action: action.clone(),
                timeouts,
                retry: retry.clone(),
            };
            all.rules.push(Arc::new(rule));
        }
        Ok(())
    }

    fn backend(&self, backend: &BackendRef, all: &mut Rules) -> Supported<Backend> {
        let (filters, redirect) = self.read_filters(&backend.filters, all)?;
        if redirect.is_some() {
            return Err("redirects of single backends are not supported".to_owned());
        }
        let own = self.meta.namespace.as_deref().unwrap_or_default();
        let namespace = backend.namespace.as_deref().unwrap_or(own);
        let name = format!("{namespace}/{}:{}", backend.name, backend.port.unwrap_or_default());
        let Resolved { protocol, endpoints, tls } = match self.resolve(backend, own, namespace, all) {
            Ok(resolved) => resolved,
            Err(why) => {
                all.fault.get_or_insert(why);
                Resolved::default()
            }
        };
        // Calls of gRPC are HTTP/2, whatever the port says.
        let protocol = if self.kind == "GRPCRoute" { BackendProtocol::Http2 } else { protocol };
        let weight = backend.weight.unwrap_or(1);
        Ok(Backend { name: name.into(), weight, protocol, tls, endpoints, filters })
    }

    fn read_filters(
        &self,
        wanted: &[RouteFilter],
        all: &mut Rules,
    ) -> Supported<(Vec<Filter>, Option<Redirect>)> {
        let (mut filters, mut redirect) = (Vec::new(), None);
        for filter in wanted {
            match filter.kind.as_str() {
                "RequestHeaderModifier" => {
                    filters.push(Filter::RequestHeaders(header_change(
                        filter.request_header_modifier.as_ref(),
                    )?));
                }
                "ResponseHeaderModifier" => {
                    filters.push(Filter::ResponseHeaders(header_change(
                        filter.response_header_modifier.as_ref(),
                    )?));
                }
                "RequestRedirect" => {
                    redirect = Some(read_redirect(&filter.request_redirect.clone().unwrap_or_default())?);
                }
                "URLRewrite" => {
                    let rewrite = filter.url_rewrite.clone().unwrap_or_default();
                    let host = rewrite.hostname.as_deref().map(HeaderValue::from_str);
                    filters.push(Filter::Rewrite(Rewrite {
                        host: host.transpose().map_err(|error| error.to_string())?,
                        path: rewrite.path.as_ref().map(path_change).transpose()?,
                    }));
                }
                "RequestMirror" => {
                    let wanted = filter.request_mirror.clone().unwrap_or_default();
                    filters.push(Filter::Mirror(self.mirror(&wanted, all)?));
                }
                other => return Err(format!("the filter {other:?} is not supported")),
            }
        }
        if redirect.is_some() && filters.iter().any(|filter| matches!(filter, Filter::Rewrite(_))) {
            return Err("a redirect and a rewrite can't be together".to_owned());
        }
        Ok((filters, redirect))
    }

    fn mirror(&self, wanted: &RequestMirror, all: &mut Rules) -> Supported<Mirror> {
        let to = &wanted.backend_ref;
        let backend = self.backend(
            &BackendRef {
                group: to.group.clone(),
                kind: to.kind.clone(),
                name: to.name.clone(),
                namespace: to.namespace.clone(),
                port: to.port,
                ..BackendRef::default()
            },
            all,
        )?;
        let (share, of) = match (wanted.percent, &wanted.fraction) {
            (Some(_), Some(_)) => return Err("a mirror has a percentage or a fraction".to_owned()),
            (Some(percent), None) => (percent, 100),
            (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
            (None, None) => (1, 1),
        };
        Ok(Mirror { backend, share, of })
    }

    fn resolve(
        &self,
        backend: &BackendRef,
        own: &str,
        namespace: &str,
        all: &mut Rules,
    ) -> Result<Resolved, Fault> {
        let kind = backend.kind.as_deref().unwrap_or("Service");
        if (backend.group.as_deref().unwrap_or_default(), kind) != ("", "Service") {
            return Err(("InvalidKind", format!("backends of the kind {kind:?} are not supported")));
        }
        if !grant::permits(self.input, (self.kind, own), ("", "Service", namespace, &backend.name)) {
            let message = format!("no ReferenceGrant allows the service {namespace}/{}", backend.name);
            return Err(("RefNotPermitted", message));
        }
        let port = PortRef::Number(backend.port.unwrap_or_default());
        let found = match find_backend(self.input.objects, namespace, &backend.name, port) {
            Ok(found) => found,
            Err(error @ BackendError::Protocol { .. }) => {
                return Err(("UnsupportedProtocol", error.to_string()));
            }
            Err(error) => return Err(("BackendNotFound", error.to_string())),
        };
        let ServiceBackend { protocol, endpoints } = found.backend;
        let mut resolved = Resolved { protocol, endpoints: Some(endpoints), tls: None };
        // What is passed on is sealed by the client.
        if self.kind == "TLSRoute" {
            return Ok(resolved);
        }
        all.services.insert((namespace.to_owned(), backend.name.clone()));
        match (self.policies.tls(namespace, &backend.name, &found.port), found.sealed) {
            (Some(Ok(tls)), _) => resolved.tls = Some(tls),
            // The policy's status tells why; never in the clear where somebody wants TLS.
            (Some(Err(())), _) => resolved.endpoints = None,
            (None, Some(refused)) => return Err(("UnsupportedProtocol", refused.to_string())),
            (None, None) => {}
        }
        Ok(resolved)
    }
}

/// What a reference to a backend leads to. Default: nothing that could be asked.
#[derive(Default)]
struct Resolved {
    protocol: BackendProtocol,
    endpoints: Option<Arc<[SocketAddr]>>,
    tls: Option<BackendTls>,
}

/// A word that has to be one of those that are supported.
fn supported<'a>(what: &str, kind: Option<&'a str>, default: &'a str, known: &[&str]) -> Supported<&'a str> {
    let kind = kind.unwrap_or(default);
    if known.contains(&kind) {
        Ok(kind)
    } else {
        Err(format!("the type {kind:?} of {what} is not supported"))
    }
}

fn http_match(wanted: &HTTPRouteMatch) -> Supported<Match> {
    let path = wanted.path.clone().unwrap_or_default();
    let value: Box<str> = path.value.as_deref().unwrap_or("/").into();
    let path = match supported("a path", path.kind.as_deref(), "PathPrefix", &["PathPrefix", "Exact"])? {
        "Exact" => PathMatch::Exact(value),
        _ => PathMatch::Prefix(value),
    };
    let method = wanted.method.as_deref().map(|method| Method::from_bytes(method.as_bytes()));
    let method = method.transpose().map_err(|error| error.to_string())?;
    let mut query: Vec<QueryMatch> = Vec::new();
    for parameter in &wanted.query_params {
        supported("a parameter", parameter.kind.as_deref(), "Exact", &["Exact"])?;
        // Of several of one name only the first counts.
        if query.iter().all(|known| *known.name != *parameter.name) {
            query.push(QueryMatch {
                name: parameter.name.as_str().into(),
                value: parameter.value.as_str().into(),
            });
        }
    }
    Ok(Match { path, method, headers: headers(&wanted.headers)?, query })
}

fn grpc_match(wanted: &GRPCRouteMatch) -> Supported<Match> {
    let method = wanted.method.clone().unwrap_or_default();
    supported("a method", method.kind.as_deref(), "Exact", &["Exact"])?;
    let path = match (method.service, method.method) {
        (Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}").into()),
        (Some(service), None) => PathMatch::Prefix(format!("/{service}").into()),
        (None, None) => PathMatch::Prefix("/".into()),
        (None, Some(_)) => return Err("a method without a service is not supported".to_owned()),
    };
    Ok(Match { headers: headers(&wanted.headers)?, ..Match::path(path) })
}

fn headers(wanted: &[NamedMatch]) -> Supported<Vec<HeaderMatch>> {
    let mut all: Vec<HeaderMatch> = Vec::new();
    for header in wanted {
        supported("a header", header.kind.as_deref(), "Exact", &["Exact"])?;
        let (name, value) = header_of(&header.name, &header.value)?;
        if all.iter().all(|known| known.name != name) {
            all.push(HeaderMatch { name, value });
        }
    }
    Ok(all)
}

fn header_of(name: &str, value: &str) -> Supported<(HeaderName, HeaderValue)> {
    let header = HeaderName::from_bytes(name.as_bytes()).ok().zip(HeaderValue::from_str(value).ok());
    header.ok_or_else(|| format!("{name:?}: {value:?} is no header"))
}

fn timeouts(wanted: Option<&RouteTimeouts>) -> Supported<Timeouts> {
    let read = |text: Option<&String>| match text {
        Some(text) => duration(text).ok_or_else(|| format!("{text:?} is no duration")),
        None => Ok(None),
    };
    let request = read(wanted.and_then(|wanted| wanted.request.as_ref()))?;
    let backend_request = read(wanted.and_then(|wanted| wanted.backend_request.as_ref()))?;
    Ok(Timeouts { request, backend_request })
}

fn retry(wanted: &HTTPRouteRetry) -> Supported<Retry> {
    let attempts = wanted.attempts.map_or(Some(RETRIES_DEFAULT), |attempts| u32::try_from(attempts).ok());
    let attempts = attempts.filter(|attempts| *attempts <= RETRIES_MAX);
    let code = |code: &i32| {
        let status = u16::try_from(*code).ok().filter(|code| (400..600).contains(code));
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        status.ok_or_else(|| format!("requests can't be sent again after an answer of {code}"))
    };
    let backoff = match &wanted.backoff {
        None => RETRY_BACKOFF_DEFAULT,
        Some(text) => duration(text).ok_or_else(|| format!("{text:?} is no duration"))?.unwrap_or_default(),
    };
    Ok(Retry {
        attempts: attempts.ok_or_else(|| format!("requests are sent again {RETRIES_MAX} times at most"))?,
        backoff,
        codes: wanted.codes.iter().map(code).collect::<Supported<_>>()?,
    })
}

/// A duration in the form of GEP-2257: one to four numbers of at most five digits, each with `h`, `m`, `s` or `ms`. Nothing at all is
/// no limit.
fn duration(text: &str) -> Option<Option<Duration>> {
    let (mut rest, mut all) = (text, Duration::ZERO);
    for _ in 0..4 {
        let digits = rest.find(|char: char| !char.is_ascii_digit())?;
        let number: u64 =
            rest.get(..digits).filter(|digits| (1..=5).contains(&digits.len()))?.parse().ok()?;
        let after = &rest[digits..];
        let unit = after.find(|char: char| char.is_ascii_digit()).unwrap_or(after.len());
        all += match &after[..unit] {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = &after[unit..];
        if rest.is_empty() {
            return Some((!all.is_zero()).then_some(all));
        }
    }
    None
}

fn header_change(wanted: Option<&HeaderModifier>) -> Supported<HeaderChange> {
    let Some(wanted) = wanted else { return Ok(HeaderChange::default()) };
    let pairs = |list: &[super::super::types::Header]| {
        list.iter().map(|header| header_of(&header.name, &header.value)).collect::<Supported<Vec<_>>>()
    };
    let remove = wanted.remove.iter().map(|name| HeaderName::from_bytes(name.as_bytes()));
    let remove = remove.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    Ok(HeaderChange { set: pairs(&wanted.set)?, add: pairs(&wanted.add)?, remove })
}

fn path_change(wanted: &PathModifier) -> Supported<PathChange> {
    let text = |text: &Option<String>| text.as_deref().unwrap_or_default().into();
    match wanted.kind.as_str() {
        "ReplaceFullPath" => Ok(PathChange::Full(text(&wanted.replace_full_path))),
        "ReplacePrefixMatch" => Ok(PathChange::Prefix(text(&wanted.replace_prefix_match))),
        other => Err(format!("the type {other:?} of a path modifier is not supported")),
    }
}

fn read_redirect(wanted: &RequestRedirect) -> Supported<Redirect> {
    let scheme = wanted.scheme.as_deref();
    let scheme =
        scheme.map(|scheme| supported("a redirect", Some(scheme), "", &["http", "https"])).transpose()?;
    let status = wanted.status_code.unwrap_or(302);
    let status = StatusCode::from_u16(status).ok().filter(|_| [301, 302, 303, 307, 308].contains(&status));
    Ok(Redirect {
        scheme: scheme.map(Into::into),
        host: wanted.hostname.as_deref().map(Into::into),
        port: wanted.port,
        path: wanted.path.as_ref().map(path_change).transpose()?,
        status: status.ok_or("such a status of a redirect is not supported")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cases of GEP-2257 ("Testing").
    #[test]
    fn durations_are_those_of_the_specification() {
        for (text, millis) in [
            ("0h", Some(0)),
            ("0s", Some(0)),
            ("1h", Some(3_600_000)),
            ("10s500ms", Some(10_500)),
            ("2h1m10s5ms", Some(7_270_005)),
            ("30m60s", Some(1_860_000)),
            ("1", None),
            ("", None),
            ("1d", None),
            ("1.5h", None),
            ("-15m", None),
            ("s", None),
            ("100000s", None),
            ("1h1m1s1ms1h", None),
        ] {
            let found = duration(text).map(|limit| limit.map_or(0, |limit| limit.as_millis()));
            assert_eq!(found, millis, "{text}");
        }
    }
}
