//! Cases from the specification of the Gateway API and from its conformance suite.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::{
    backends::SecretError,
    http_proxy::{Action, Asked, BackendProtocol, Certificate, Rule},
};

/// Every Service but `gone` is there, in every namespace, with the port 80; the Secret `good` has a certificate.
struct Fixed;

impl Objects for Fixed {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let protocol = match name {
            "h2c" => json!("kubernetes.io/h2c"),
            "wss" => json!("kubernetes.io/wss"),
            _ => Value::Null,
        };
        let service = json!({"metadata": {"namespace": namespace, "name": name},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80, "appProtocol": protocol}]}});
        (name != "gone").then(|| Arc::new(serde_json::from_value(service).unwrap()))
    }

    fn slices(&self, _: &str, _: &str) -> Vec<Arc<EndpointSlice>> {
        let slice = json!({"metadata": {"name": "s"}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}], "endpoints": [{"addresses": ["10.0.0.1"]}]});
        vec![Arc::new(serde_json::from_value(slice).unwrap())]
    }

    fn certificate(&self, namespace: &str, name: &str) -> Result<Certificate, SecretError> {
        if name != "good" {
            return Err(SecretError::Missing(format!("{namespace}/{name}")));
        }
        let made = rcgen::generate_simple_self_signed(["foo.com".to_owned()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        Ok(Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap())
    }
}

/// The objects of a case.
#[derive(Default)]
struct Case {
    gateways: Vec<Arc<Gateway>>,
    sets: Vec<Arc<ListenerSet>>,
    http: Vec<Arc<HTTPRoute>>,
    grpc: Vec<Arc<GRPCRoute>>,
    tls: Vec<Arc<TLSRoute>>,
    grants: Vec<Arc<ReferenceGrant>>,
    policies: Vec<Arc<BackendTLSPolicy>>,
    maps: BTreeMap<String, Arc<ConfigMap>>,
}

fn object<K: DeserializeOwned>(namespace: &str, name: &str, created: usize, spec: Value) -> Arc<K> {
    let kinds = [
        "Gateway",
        "ListenerSet",
        "HTTPRoute",
        "GRPCRoute",
        "TLSRoute",
        "ReferenceGrant",
        "GatewayClass",
        "BackendTLSPolicy",
    ];
    let kind =
        kinds.into_iter().find(|kind| std::any::type_name::<K>().ends_with(&format!("::{kind}"))).unwrap();
    let version = if kind == "ReferenceGrant" { "v1beta1" } else { "v1" };
    let object = json!({"apiVersion": format!("gateway.networking.k8s.io/{version}"), "kind": kind,
        "metadata": {"namespace": namespace, "name": name, "generation": 3,
            "creationTimestamp": format!("2030-01-01T00:00:{created:02}Z")},
        "spec": spec});
    Arc::new(serde_json::from_value(object).unwrap())
}

impl Case {
    /// A Gateway `infra/gw` with these listeners.
    fn new(listeners: Value) -> Self {
        let mut case = Self::default();
        case.gateway("gw", listeners);
        case
    }

    fn gateway(&mut self, name: &str, listeners: Value) {
        let spec = json!({"gatewayClassName": "own", "listeners": listeners});
        self.gateways.push(object("infra", name, self.gateways.len(), spec));
    }

    /// An HTTPRoute of the namespace `infra` at `gw`.
    fn route(&mut self, name: &str, hostnames: &[&str], rules: Value) {
        let spec = json!({"parentRefs": [{"name": "gw"}], "hostnames": hostnames, "rules": rules});
        self.route_of("infra", name, spec);
    }

    fn route_of(&mut self, namespace: &str, name: &str, spec: Value) {
        self.http.push(object(namespace, name, self.http.len(), spec));
    }

    fn compile(&self) -> Compiled {
        let class = |name: &str, controller: &str| {
            object::<GatewayClass>("", name, 0, json!({"controllerName": controller}))
        };
        let labels = |namespace: &str| BTreeMap::from([("name".to_owned(), namespace.to_owned())]);
        compile(&Input {
            classes: &[class("own", CONTROLLER), class("other", "example.com/other")],
            gateways: &self.gateways,
            listener_sets: &self.sets,
            http_routes: &self.http,
            grpc_routes: &self.grpc,
            tls_routes: &self.tls,
            grants: &self.grants,
            policies: &self.policies,
            config_map: &|namespace, name| self.maps.get(&format!("{namespace}/{name}")).cloned(),
            system_authorities: &|| Err("the machine believes nobody".to_owned()),
            labels: &labels,
            ports: &[80, 443].into(),
            addresses: &["192.0.2.1".parse().unwrap()],
            objects: &Fixed,
        })
    }
}

fn http(name: &str, hostname: &str) -> Value {
    json!({"name": name, "port": 80, "protocol": "HTTP", "hostname": hostname})
}

fn to(service: &str) -> Value {
    json!([{"name": service, "port": 80}])
}

fn rule<'a>(compiled: &'a Compiled, port: u16, asked: &str) -> Option<&'a Arc<Rule>> {
    let mut words = asked.split_whitespace();
    let (method, url) = (words.next().unwrap(), words.next().unwrap());
    let headers: HeaderMap = words
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
        .collect();
    let (host, path) = url.split_at(url.find('/').unwrap());
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let method = method.parse::<Method>().unwrap();
    compiled.table.select(port, &Asked { host, path, query, method: &method, headers: &headers })
}

/// The service that a request to port 80 goes to; `-` when no rule is for it.
fn goes(compiled: &Compiled, asked: &str) -> String {
    let Some(rule) = rule(compiled, 80, asked) else { return "-".to_owned() };
    let Action::Forward(backends) = &rule.action else { return "redirect".to_owned() };
    let names = backends.iter().map(|backend| {
        let name = backend.name.split(['/', ':']).nth(1).unwrap_or_default();
        if backend.endpoints.is_some() { name.to_owned() } else { "500".to_owned() }
    });
    names.collect::<Vec<_>>().join("+")
}

/// `type=status:reason` of each condition that is not as it is for what is well.
fn faults(all: &[Condition]) -> String {
    let good = [("Conflicted", "False")];
    let bad = all.iter().filter(|condition| {
        assert_eq!(condition.observed_generation, Some(3));
        let known = good.iter().find(|(kind, _)| *kind == condition.type_);
        condition.status != known.map_or("True", |(_, status)| status)
    });
    bad.map(|condition| format!("{}:{}", condition.type_, condition.reason)).collect::<Vec<_>>().join(" ")
}

fn route_faults(compiled: &Compiled, namespace: &str, name: &str) -> String {
    let parents = compiled.http_routes.get(&(namespace.to_owned(), name.to_owned()));
    let parents = parents.into_iter().flatten().map(|parent| faults(&parent.conditions));
    parents.collect::<Vec<_>>().join("; ")
}

/// The conformance suite's `httproute-hostname-intersection`.
#[test]
fn hosts_of_routes_and_listeners_intersect() {
    let mut case = Case::new(json!([
        http("listener-1", "very.specific.com"),
        http("listener-2", "*.wildcard.io"),
        http("listener-3", "*.anotherwildcard.io"),
    ]));
    let prefix = |path: &str, service: &str| json!([{"matches": [{"path": {"type": "PathPrefix", "value": path}}], "backendRefs": to(service)}]);
    let specific = ["non.matching.com", "*.nonmatchingwildcard.io", "very.specific.com"];
    case.route("specific", &specific, prefix("/s1", "v1"));
    let wild =
        ["non.matching.com", "wildcard.io", "foo.wildcard.io", "bar.wildcard.io", "foo.bar.wildcard.io"];
    case.route("wild", &wild, prefix("/s2", "v2"));
    case.route("wild-specific", &["non.matching.com", "*.specific.com"], prefix("/s3", "v3"));
    case.route("wild-wild", &["*.anotherwildcard.io"], prefix("/s4", "v1"));
    case.route("none", &["specific.but.wrong.com", "wildcard.io"], prefix("/s5", "v2"));
    let compiled = case.compile();
    for (asked, expected) in [
        ("GET very.specific.com/s1", "v1"),
        ("GET very.specific.com/s3", "v3"),
        ("GET foo.wildcard.io/s2", "v2"),
        ("GET bar.wildcard.io/s2", "v2"),
        ("GET foo.bar.wildcard.io/s2", "v2"),
        ("GET one.anotherwildcard.io/s4", "v1"),
        ("GET one.two.anotherwildcard.io/s4", "v1"),
        ("GET non.matching.com/s1", "-"),
        ("GET foo.nonmatchingwildcard.io/s1", "-"),
        ("GET very.specific.com/s2", "-"),
        ("GET wildcard.io/s2", "-"),
        ("GET other.wildcard.io/s2", "-"),
        ("GET foo.specific.com/s3", "-"),
        ("GET anotherwildcard.io/s4", "-"),
        ("GET specific.but.wrong.com/s5", "-"),
    ] {
        assert_eq!(goes(&compiled, asked), expected, "{asked}");
    }
    assert_eq!(route_faults(&compiled, "infra", "specific"), "");
    assert_eq!(route_faults(&compiled, "infra", "none"), "Accepted:NoMatchingListenerHostname");
    let attached: Vec<_> =
        compiled.gateways.values().next().unwrap().listeners.iter().map(|l| l.attached_routes).collect();
    assert_eq!(attached, [2, 1, 1]);
}

/// The precedence of matches in the description of `HTTPRouteRule.matches`.
#[test]
fn matches_have_their_precedence() {
    let mut case = Case::new(json!([http("all", "")]));
    case.route("first", &[], json!([
        {"backendRefs": to("root")},
        {"matches": [{"path": {"value": "/v2"}}, {"headers": [{"name": "Version", "value": "two"}]}], "backendRefs": to("two")},
        {"matches": [{"path": {"type": "Exact", "value": "/v2/x"}}], "backendRefs": to("exact")},
        {"matches": [{"path": {"value": "/v2/longer"}}], "backendRefs": to("longer")},
        {"matches": [{"path": {"value": "/v2"}, "method": "POST"}], "backendRefs": to("post")},
        {"matches": [{"path": {"value": "/v2"}, "headers": [{"name": "a", "value": "1"}]}], "backendRefs": to("a")},
        {"matches": [{"path": {"value": "/v2"}, "headers": [{"name": "a", "value": "1"}, {"name": "b", "value": "2"}]}], "backendRefs": to("ab")},
        {"matches": [{"path": {"value": "/v2"}, "queryParams": [{"name": "q", "value": "1"}]}], "backendRefs": to("query")},
    ]));
    case.route(
        "second",
        &[],
        json!([{"matches": [{"path": {"value": "/v2"}}], "backendRefs": to("younger")}]),
    );
    case.route(
        "host",
        &["*.com"],
        json!([{"matches": [{"path": {"value": "/v2"}}], "backendRefs": to("host")}]),
    );
    let compiled = case.compile();
    for (asked, expected) in [
        ("GET h/other", "root"),
        ("GET h/v2", "two"),
        ("GET h/v2example", "root"),
        ("GET h/other version=two", "two"),
        ("GET h/v2/x", "exact"),
        ("GET h/v2/x/y", "two"),
        ("GET h/v2/longer/y", "longer"),
        ("POST h/v2", "post"),
        ("POST h/v2 a=1", "post"),
        ("GET h/v2 a=1", "a"),
        ("GET h/v2 a=1 b=2", "ab"),
        ("GET h/v2?q=1", "query"),
        ("GET h/v2?x=1&q=1 a=1", "a"),
        ("GET h/v2?q=2&q=1", "two"),
        // The more specific host goes before everything.
        ("POST a.com/v2/x", "host"),
        ("GET a.com/other", "root"),
    ] {
        assert_eq!(goes(&compiled, asked), expected, "{asked}");
    }
}

/// Reasons as in the descriptions of the conditions; the conformance suite's `gateway-invalid-*`, `gateway-secret-*`.
#[test]
fn listeners_are_told_what_is_wrong() {
    let tls = |reference: Value| json!({"name": "l", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [reference]}});
    let elsewhere = |name: &str| tls(json!({"name": name, "namespace": "certs"}));
    let kinds = |kinds: Value| json!({"name": "l", "port": 80, "protocol": "HTTP", "allowedRoutes": {"kinds": kinds}});
    for (listener, expected, gateway) in [
        (http("l", ""), "", ""),
        (tls(json!({"name": "good"})), "", ""),
        (
            tls(json!({"name": "gone"})),
            "ResolvedRefs:InvalidCertificateRef Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (
            tls(json!({"name": "good", "kind": "Other", "group": "x"})),
            "ResolvedRefs:InvalidCertificateRef Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (
            json!({"name": "l", "port": 443, "protocol": "HTTPS"}),
            "ResolvedRefs:InvalidCertificateRef Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (elsewhere("good"), "", ""),
        (
            elsewhere("secret"),
            "ResolvedRefs:RefNotPermitted Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (
            json!({"name": "l", "port": 443, "protocol": "HTTPS", "tls": {"mode": "Passthrough"}}),
            "Accepted:UnsupportedValue Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (
            json!({"name": "l", "port": 80, "protocol": "TCP"}),
            "Accepted:UnsupportedProtocol Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (
            json!({"name": "l", "port": 81, "protocol": "HTTP"}),
            "Accepted:PortUnavailable Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (kinds(json!([{"kind": "GRPCRoute"}])), "", ""),
        (
            kinds(json!([{"kind": "Invalid"}])),
            "ResolvedRefs:InvalidRouteKinds Programmed:Invalid",
            "Accepted:ListenersNotValid Programmed:Invalid",
        ),
        (kinds(json!([{"kind": "Invalid"}, {"kind": "HTTPRoute"}])), "ResolvedRefs:InvalidRouteKinds", ""),
    ] {
        let mut case = Case::new(json!([listener]));
        let to = json!([{"group": "", "kind": "Secret", "name": "good"}]);
        let from = json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "namespace": "infra"}]);
        case.grants.push(object("certs", "grant", 0, json!({"from": from, "to": to})));
        let compiled = case.compile();
        let status = compiled.gateways.values().next().unwrap();
        assert_eq!(faults(&status.listeners[0].conditions), expected, "{listener}");
        assert_eq!(faults(&status.conditions), gateway, "{listener}");
        assert_eq!(status.addresses.len(), usize::from(gateway.is_empty()));
    }
}

#[test]
fn listeners_that_want_the_same_conflict() {
    let https = |name: &str, hostname: &str, port: u16| json!({"name": name, "port": port, "protocol": "HTTPS", "hostname": hostname, "tls": {"certificateRefs": [{"name": "good"}]}});
    let host = "Accepted:HostnameConflict Conflicted:HostnameConflict Programmed:Invalid";
    let protocol = "Accepted:ProtocolConflict Conflicted:ProtocolConflict Programmed:Invalid";
    let unavailable = "Accepted:PortUnavailable Programmed:Invalid";
    for (first, second, expected) in [
        (json!([http("a", "a.com"), http("b", "b.com")]), json!([http("a", "c.com")]), vec!["", "", ""]),
        (
            json!([http("a", "a.com"), http("b", "A.com"), http("c", "c.com")]),
            json!([]),
            vec![host, host, ""],
        ),
        (json!([http("a", "a.com"), https("b", "b.com", 80)]), json!([]), vec![protocol, protocol]),
        (json!([http("a", "a.com"), https("b", "a.com", 443)]), json!([]), vec!["", ""]),
        (json!([http("a", "a.com")]), json!([http("a", "a.com")]), vec!["", unavailable]),
        (json!([http("a", "a.com")]), json!([https("a", "b.com", 80)]), vec!["", unavailable]),
    ] {
        let mut case = Case::new(first);
        case.gateway("younger", second);
        let compiled = case.compile();
        let listeners = compiled.gateways.values().flat_map(|status| &status.listeners);
        let found: Vec<_> = listeners.map(|listener| faults(&listener.conditions)).collect();
        assert_eq!(found, expected);
    }
}

/// The conformance suite's `httproute-invalid-*`, `httproute-cross-namespace`, `gateway-with-attached-routes`.
#[test]
fn routes_are_attached_where_they_may_be() {
    let listener = |name: &str, namespaces: Value| json!({"name": name, "port": 80, "protocol": "HTTP", "hostname": format!("{name}.com"), "allowedRoutes": {"namespaces": namespaces}});
    let selector = json!({"from": "Selector", "selector": {"matchLabels": {"name": "web"}}});
    let listeners = json!([
        listener("same", json!({"from": "Same"})),
        listener("all", json!({"from": "All"})),
        listener("selected", selector),
        listener("none", json!({"from": "None"})),
    ]);
    let at = |section: &str| json!({"name": "gw", "namespace": "infra", "sectionName": section});
    for (namespace, parent, expected, hosts) in [
        ("infra", json!({"name": "gw"}), "", "same all"),
        ("web", json!({"name": "gw"}), "-", ""),
        ("web", json!({"name": "gw", "namespace": "infra"}), "", "all selected"),
        ("other", json!({"name": "gw", "namespace": "infra"}), "", "all"),
        ("other", at("all"), "", "all"),
        ("other", at("same"), "Accepted:NotAllowedByListeners", ""),
        ("other", at("selected"), "Accepted:NotAllowedByListeners", ""),
        ("infra", at("none"), "Accepted:NotAllowedByListeners", ""),
        ("infra", at("unknown"), "Accepted:NoMatchingParent", ""),
        ("infra", json!({"name": "gw", "port": 81}), "Accepted:NoMatchingParent", ""),
        ("infra", json!({"name": "gw", "port": 80, "sectionName": "same"}), "", "same"),
        ("infra", json!({"name": "gw", "kind": "Service", "group": ""}), "-", ""),
    ] {
        let mut case = Case::new(listeners.clone());
        case.route_of(namespace, "r", json!({"parentRefs": [parent], "rules": [{"backendRefs": to("web")}]}));
        let compiled = case.compile();
        let found = if compiled.http_routes.is_empty() {
            "-".to_owned()
        } else {
            route_faults(&compiled, namespace, "r")
        };
        assert_eq!(found, expected, "{namespace} {parent}");
        let all = ["same", "all", "selected", "none"].into_iter();
        let served: Vec<_> =
            all.filter(|host| goes(&compiled, &format!("GET {host}.com/")) == "web").collect();
        assert_eq!(served.join(" "), hosts, "{namespace} {parent}");
    }
}

/// The conformance suite's `httproute-invalid-backendref-*`, `httproute-reference-grant`, `httproute-partially-invalid-*`.
#[test]
fn backends_are_resolved_or_answered_with_500() {
    let grant = |from: &str, to: Value| {
        let from = json!([{"group": "gateway.networking.k8s.io", "kind": from, "namespace": "infra"}]);
        object::<ReferenceGrant>("far", "grant", 0, json!({"from": from, "to": to}))
    };
    let far = json!([{"name": "web", "namespace": "far", "port": 80}]);
    let services = json!([{"group": "", "kind": "Service"}]);
    for (backends, grants, expected, served) in [
        (to("web"), vec![], "", "web"),
        (json!([]), vec![], "", ""),
        (to("gone"), vec![], "ResolvedRefs:BackendNotFound", "500"),
        (json!([{"name": "web", "port": 81}]), vec![], "ResolvedRefs:BackendNotFound", "500"),
        (
            json!([{"name": "web", "kind": "Other", "group": "x", "port": 80}]),
            vec![],
            "ResolvedRefs:InvalidKind",
            "500",
        ),
        (
            json!([{"name": "web", "port": 80}, {"name": "gone", "port": 80}]),
            vec![],
            "ResolvedRefs:BackendNotFound",
            "web+500",
        ),
        (far.clone(), vec![], "ResolvedRefs:RefNotPermitted", "500"),
        (far.clone(), vec![grant("HTTPRoute", services.clone())], "", "web"),
        (far.clone(), vec![grant("GRPCRoute", services.clone())], "ResolvedRefs:RefNotPermitted", "500"),
        (
            far.clone(),
            vec![grant("HTTPRoute", json!([{"group": "", "kind": "Service", "name": "web"}]))],
            "",
            "web",
        ),
        (
            far,
            vec![grant("HTTPRoute", json!([{"group": "", "kind": "Service", "name": "other"}]))],
            "ResolvedRefs:RefNotPermitted",
            "500",
        ),
    ] {
        let mut case = Case::new(json!([http("l", "")]));
        case.grants = grants;
        case.route("r", &[], json!([{"backendRefs": backends}]));
        let compiled = case.compile();
        assert_eq!(route_faults(&compiled, "infra", "r"), expected, "{backends}");
        assert_eq!(goes(&compiled, "GET h/"), served, "{backends}");
    }
}

#[test]
fn filters_weights_and_timeouts_reach_the_proxy() {
    use crate::http_proxy::{Filter, PathChange};
    let mut case = Case::new(json!([http("l", "")]));
    case.route("r", &[], json!([
        {"matches": [{"path": {"value": "/a"}}], "timeouts": {"request": "1s500ms", "backendRequest": "0s"},
            "filters": [
                {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-A", "value": "1"}]}},
                {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["X-B"]}},
                {"type": "URLRewrite", "urlRewrite": {"hostname": "in.com", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}}],
            "backendRefs": [{"name": "web", "port": 80, "weight": 9}, {"name": "h2c", "port": 80}]},
        {"matches": [{"path": {"value": "/m"}}], "backendRefs": to("web"), "filters": [
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "a", "port": 80}}},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "b", "port": 80}, "percent": 5}},
            {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "c", "port": 80}, "fraction": {"numerator": 1, "denominator": 3}}}]},
        {"matches": [{"path": {"value": "/r"}}], "filters": [{"type": "RequestRedirect",
            "requestRedirect": {"scheme": "https", "hostname": "other.com", "statusCode": 301}}]},
    ]));
    let compiled = case.compile();
    assert_eq!(route_faults(&compiled, "infra", "r"), "");
    let found = rule(&compiled, 80, "GET h/a").unwrap();
    assert_eq!(found.timeouts.request, Some(std::time::Duration::from_millis(1500)));
    assert_eq!(found.timeouts.backend_request, None);
    let Action::Forward(backends) = &found.action else { panic!() };
    let shown: Vec<_> = backends.iter().map(|backend| (backend.weight, backend.protocol)).collect();
    assert_eq!(shown, [(9, BackendProtocol::Http1), (1, BackendProtocol::Http2)]);
    assert!(matches!(&found.filters[0], Filter::RequestHeaders(change) if change.set.len() == 1));
    assert!(matches!(&found.filters[1], Filter::ResponseHeaders(change) if change.remove.len() == 1));
    let Filter::Rewrite(rewrite) = &found.filters[2] else { panic!() };
    assert_eq!(rewrite.path, Some(PathChange::Prefix("/b".into())));
    let mirrors = rule(&compiled, 80, "GET h/m").unwrap().filters.iter().map(|filter| {
        let Filter::Mirror(mirror) = filter else { panic!() };
        (&*mirror.backend.name, mirror.share, mirror.of)
    });
    let mirrors: Vec<_> = mirrors.collect();
    assert_eq!(mirrors, [("infra/a:80", 1, 1), ("infra/b:80", 5, 100), ("infra/c:80", 1, 3)]);
    let found = rule(&compiled, 80, "GET h/r").unwrap();
    let Action::Redirect(redirect) = &found.action else { panic!() };
    assert_eq!((redirect.status.as_u16(), redirect.host.as_deref()), (301, Some("other.com")));
}

/// The conformance suite's `grpcroute-exact-method-matching`.
#[test]
fn methods_of_grpc_are_paths() {
    let mut case = Case::new(json!([http("l", "")]));
    let method =
        |method: Value, service: &str| json!({"matches": [{"method": method}], "backendRefs": to(service)});
    let spec = json!({"parentRefs": [{"name": "gw"}], "rules": [
        method(json!({"service": "gateway.Echo", "method": "Echo"}), "one"),
        method(json!({"service": "gateway.Echo"}), "two")]});
    case.grpc.push(object("infra", "g", 0, spec));
    let compiled = case.compile();
    assert_eq!(goes(&compiled, "POST h/gateway.Echo/Echo"), "one");
    assert_eq!(goes(&compiled, "POST h/gateway.Echo/Other"), "two");
    assert_eq!(goes(&compiled, "POST h/gateway.EchoOther/Echo"), "-");
    let found = rule(&compiled, 80, "POST h/gateway.Echo/Echo").unwrap();
    let Action::Forward(backends) = &found.action else { panic!() };
    assert_eq!(backends[0].protocol, BackendProtocol::Http2);
    assert_eq!(compiled.grpc_routes.len(), 1);
}

/// The conformance suite's `tlsroute-simple-same-namespace` and `tlsroute-invalid-*`.
#[test]
fn tls_is_passed_on_by_name() {
    let listener = |name: &str, hostname: &str| json!({"name": name, "port": 443, "protocol": "TLS", "hostname": hostname, "tls": {"mode": "Passthrough"}});
    let mut case = Case::new(json!([listener("wild", "*.example.com"), listener("one", "one.com")]));
    let tls = |name: &str, created: usize, hostnames: Value, service: &str| {
        let spec = json!({"parentRefs": [{"name": "gw"}], "hostnames": hostnames, "rules": [{"backendRefs": to(service)}]});
        object::<TLSRoute>("infra", name, created, spec)
    };
    case.tls.push(tls("a", 0, json!(["a.example.com"]), "a"));
    case.tls.push(tls("wild", 1, json!(["*.example.com", "a.example.com", "one.com"]), "wild"));
    case.tls.push(tls("none", 2, json!(["other.com"]), "none"));
    // A listener of TLS takes no routes of HTTP.
    case.route("http", &[], json!([{"backendRefs": to("web")}]));
    let compiled = case.compile();
    for (host, expected) in [
        ("a.example.com", Some("infra/a:80")),
        ("b.example.com", Some("infra/wild:80")),
        ("one.com", Some("infra/wild:80")),
        ("other.com", None),
        ("", None),
    ] {
        let found = compiled.table.ports[&443].select_passthrough(host);
        let found = found.map(|rule| match &rule.action {
            Action::Forward(backends) => &*backends[0].name,
            Action::Redirect(_) => "redirect",
        });
        assert_eq!(found, expected, "{host}");
    }
    assert_eq!(route_faults(&compiled, "infra", "http"), "Accepted:NotAllowedByListeners");
    let none = &compiled.tls_routes[&("infra".to_owned(), "none".to_owned())];
    assert_eq!(faults(&none[0].conditions), "Accepted:NoMatchingListenerHostname");
    assert!(compiled.table.ports[&443].tls.is_none());
}

#[test]
fn classes_of_others_are_left_alone() {
    let mut case = Case::new(json!([http("l", "")]));
    let spec = json!({"gatewayClassName": "other", "listeners": [http("l", "")]});
    case.gateways = vec![object("infra", "gw", 0, spec)];
    case.route("r", &[], json!([{"backendRefs": to("web")}]));
    let compiled = case.compile();
    assert!(
        compiled.gateways.is_empty() && compiled.http_routes.is_empty() && compiled.table.ports.is_empty()
    );
    assert_eq!(compiled.classes.keys().collect::<Vec<_>>(), ["own"]);
    assert_eq!(faults(&compiled.classes["own"]), "");
}

mod asked;
mod listener_sets;
mod policies;

/// The definitions are such as a server takes.
#[test]
fn the_kinds_can_be_defined() {
    let definitions = super::super::types::definitions();
    let plurals = [
        "gatewayclasses",
        "gateways",
        "listenersets",
        "httproutes",
        "grpcroutes",
        "tlsroutes",
        "referencegrants",
        "backendtlspolicies",
    ];
    assert_eq!(definitions.len(), plurals.len());
    for (definition, plural) in definitions.iter().zip(plurals) {
        assert_eq!(definition.metadata.name, Some(format!("{plural}.gateway.networking.k8s.io")));
        let version = &definition.spec.versions[0];
        let schema = version.schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
        assert!(schema.properties.as_ref().unwrap().contains_key("spec"));
        let subresources = version.subresources.as_ref();
        assert_eq!(subresources.is_some_and(|all| all.status.is_some()), plural != "referencegrants");
    }
}
