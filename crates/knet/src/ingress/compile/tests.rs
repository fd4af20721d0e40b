//! Cases from the documentation of Ingress.

use std::collections::BTreeMap;

use http::{HeaderMap, Method};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value, json};

use super::*;
use crate::{
    backends::SecretError,
    http_proxy::{Asked, Certificate},
};

/// Services by name; each has one endpoint that is ready.
struct Fixed(BTreeMap<&'static str, Value>);

impl Objects for Fixed {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let spec = self.0.get(name)?;
        let service = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
        Some(Arc::new(serde_json::from_value(service).unwrap()))
    }

    fn slices(&self, _: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        let slice = json!({"metadata": {"name": name}, "addressType": "IPv4",
            "ports": [{"name": "web", "port": 8080}, {"name": "", "port": 8081}],
            "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"], "conditions": {"ready": false}}]});
        vec![Arc::new(serde_json::from_value(slice).unwrap())]
    }

    fn certificate(&self, namespace: &str, name: &str) -> Result<Certificate, SecretError> {
        match name {
            "good" => {
                let key = rcgen::generate_simple_self_signed(["foo.com".to_owned()]).unwrap();
                let chain = key.cert.pem();
                Ok(Certificate::from_pem(chain.as_bytes(), key.signing_key.serialize_pem().as_bytes())
                    .unwrap())
            }
            _ => Err(SecretError::Missing(format!("{namespace}/{name}"))),
        }
    }
}

fn objects() -> Fixed {
    let plain = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    let mut all: BTreeMap<_, _> =
        ["a", "b", "c", "d", "e"].into_iter().map(|name| (name, plain.clone())).collect();
    all.insert("named", json!({"clusterIP": "None", "ports": [{"port": 90, "name": "web", "appProtocol": "kubernetes.io/h2c"}]}));
    all.insert("tls", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80, "appProtocol": "https"}]}));
    all.insert("udp", json!({"clusterIP": "10.96.0.2", "ports": [{"port": 80, "protocol": "UDP"}]}));
    all.insert(
        "outside",
        json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}),
    );
    Fixed(all)
}

fn classes() -> Vec<Arc<IngressClass>> {
    let class = |name: &str, controller: &str| {
        let class = json!({"metadata": {"name": name}, "spec": {"controller": controller}});
        Arc::new(serde_json::from_value(class).unwrap())
    };
    vec![class("own", CONTROLLER), class("other", "example.com/other")]
}

fn ingress(name: &str, created: u32, spec: Value) -> Arc<Ingress> {
    let mut object = json!({"metadata": {"name": name, "namespace": "shop",
        "creationTimestamp": format!("2030-01-01T00:00:{created:02}Z")}, "spec": spec});
    if object["spec"]["ingressClassName"].is_null() {
        object["spec"]["ingressClassName"] = "own".into();
    }
    Arc::new(serde_json::from_value(object).unwrap())
}

/// `host path type service`, one a line.
fn rules(lines: &str) -> Value {
    let rules = lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let host = if words[0] == "-" { Value::Null } else { words[0].into() };
        let path = json!({"path": words[1], "pathType": words[2],
            "backend": {"service": {"name": words[3], "port": {"number": 80}}}});
        json!({"host": host, "http": {"paths": [path]}})
    });
    Value::Array(rules.collect())
}

/// The service that a GET goes to; `-` when nobody is meant.
fn to<'a>(compiled: &'a Compiled, host: &str, path: &str) -> &'a str {
    let (headers, method) = (HeaderMap::new(), Method::GET);
    let asked = Asked { host, path, query: "", method: &method, headers: &headers };
    let plain = compiled.table.select(HTTP_PORT, &asked).map(Arc::as_ptr);
    let tls = compiled.table.select(HTTPS_PORT, &asked);
    assert_eq!(plain, tls.map(Arc::as_ptr), "both ports do the same");
    let Some(rule) = tls else { return "-" };
    let Action::Forward(backends) = &rule.action else { panic!("{rule:?}") };
    backends[0].name.strip_prefix("shop/").and_then(|name| name.split_once(':')).map_or("", |(name, _)| name)
}

/// The table "Examples" of the documentation's section "Path types".
#[test]
fn paths_are_as_documented() {
    for (kind, paths, asked, expected) in [
        ("Prefix", "/", "/anything", "a"),
        ("Exact", "/foo", "/foo", "a"),
        ("Exact", "/foo", "/bar", "-"),
        ("Exact", "/foo", "/foo/", "-"),
        ("Exact", "/foo/", "/foo", "-"),
        ("Prefix", "/foo", "/foo", "a"),
        ("Prefix", "/foo", "/foo/", "a"),
        ("Prefix", "/foo/", "/foo", "a"),
        ("Prefix", "/foo/", "/foo/", "a"),
        ("Prefix", "/aaa/bb", "/aaa/bbb", "-"),
        ("Prefix", "/aaa/bbb", "/aaa/bbb", "a"),
        ("Prefix", "/aaa/bbb/", "/aaa/bbb", "a"),
        ("Prefix", "/aaa/bbb", "/aaa/bbb/", "a"),
        ("Prefix", "/aaa/bbb", "/aaa/bbb/ccc", "a"),
        ("Prefix", "/aaa/bbb", "/aaa/bbbxyz", "-"),
        ("Prefix", "/ /aaa", "/aaa/ccc", "b"),
        ("Prefix", "/ /aaa /aaa/bbb", "/aaa/bbb", "c"),
        ("Prefix", "/ /aaa /aaa/bbb", "/ccc", "a"),
        ("Prefix", "/aaa", "/ccc", "-"),
        ("Prefix", "/Foo", "/foo", "-"),
        ("ImplementationSpecific", "/foo", "/foo/bar", "a"),
    ] {
        let lines = paths.split(' ').zip(["a", "b", "c"]).map(|(path, to)| format!("- {path} {kind} {to}\n"));
        let spec = json!({"rules": rules(&lines.collect::<String>())});
        let compiled = compile(&[ingress("i", 0, spec)], &classes(), &objects());
        assert_eq!(to(&compiled, "foo.com", asked), expected, "{kind} {paths} {asked}");
        assert_eq!(compiled.problems, BTreeSet::new());
    }
}

#[test]
fn hosts_and_defaults_come_in_their_order() {
    let first = json!({"rules": rules("
        foo.com /x Prefix a
        *.foo.com / Prefix b
        - /y Prefix c
        foo.com /both Prefix a
        foo.com /both Exact b
    "), "defaultBackend": {"service": {"name": "d", "port": {"number": 80}}}});
    let second = json!({"rules": rules("
        foo.com /x Prefix e
        foo.com /z Exact e
        other.com /x Exact e
    "), "defaultBackend": {"service": {"name": "e", "port": {"number": 80}}}});
    // Only what they ask for says who is older; they are not listed in their order.
    let all = [ingress("a", 9, second), ingress("b", 1, first)];
    let compiled = compile(&all, &classes(), &objects());
    for (host, path, expected) in [
        ("foo.com", "/x/1", "a"),
        ("foo.com", "/z", "e"),
        ("foo.com", "/z/1", "d"),
        ("foo.com", "/both", "b"),
        ("foo.com", "/both/1", "a"),
        // Rules without a host are for all of them; a default backend is for what is left.
        ("foo.com", "/y", "c"),
        ("other.com", "/y", "c"),
        ("bar.foo.com", "/y", "b"),
        ("baz.bar.foo.com", "/y", "c"),
        ("baz.bar.foo.com", "/", "d"),
        ("other.com", "/x", "e"),
        ("other.com", "/1", "e"),
        ("third.com", "/1", "d"),
    ] {
        assert_eq!(to(&compiled, host, path), expected, "{host}{path}");
    }
    assert_eq!(compiled.served.len(), 2);
}

#[test]
fn classes_decide_who_serves() {
    let spec = |class: &str| json!({"ingressClassName": class, "rules": rules("foo.com / Prefix a")});
    let mut annotated = Ingress::clone(&ingress("annotated", 0, spec("own")));
    annotated.spec.as_mut().unwrap().ingress_class_name = None;
    let nobodys = annotated.clone();
    annotated.metadata.annotations = Some([(CLASS_ANNOTATION.to_owned(), "own".to_owned())].into());
    for (ingress, served) in [
        (ingress("i", 0, spec("own")), true),
        (ingress("i", 0, spec("other")), false),
        (ingress("i", 0, spec("unknown")), false),
        (Arc::new(annotated), true),
        (Arc::new(nobodys), false),
    ] {
        let compiled = compile(std::slice::from_ref(&ingress), &classes(), &objects());
        assert_eq!(to(&compiled, "foo.com", "/") == "a", served, "{ingress:?}");
        assert_eq!(compiled.served.len(), usize::from(served));
    }
}

#[test]
fn backends_are_found_or_refused() {
    let at = |name: &str, port: Value| json!({"service": {"name": name, "port": port}});
    let at_80 = |name: &str| at(name, json!({"number": 80}));
    let ready = |port| Some(vec![std::net::SocketAddr::from(([10, 0, 0, 1], port))]);
    for (backend, protocol, endpoints, problem) in [
        (at_80("a"), BackendProtocol::Http1, ready(8081), ""),
        (at("named", json!({"name": "web"})), BackendProtocol::Http2, ready(8080), ""),
        (at("named", json!({"number": 90})), BackendProtocol::Http2, ready(8080), ""),
        (
            at("named", json!({"number": 91})),
            BackendProtocol::Http1,
            Some(vec![]),
            "the service \"shop/named\" has no such port",
        ),
        (at_80("gone"), BackendProtocol::Http1, Some(vec![]), "there is no service \"shop/gone\""),
        (
            at_80("outside"),
            BackendProtocol::Http1,
            Some(vec![]),
            "the service \"shop/outside\" is an ExternalName, which has no endpoints",
        ),
        (
            at_80("tls"),
            BackendProtocol::Http1,
            None,
            "the port of the service \"shop/tls\" speaks \"https\", which is not supported",
        ),
        (
            at_80("udp"),
            BackendProtocol::Http1,
            None,
            "the port of the service \"shop/udp\" speaks \"UDP\", which is not supported",
        ),
        (
            json!({"resource": {"kind": "Bucket", "name": "b"}}),
            BackendProtocol::Http1,
            None,
            "a backend of the kind \"Bucket\" is not supported",
        ),
    ] {
        let compiled =
            compile(&[ingress("i", 0, json!({"defaultBackend": backend}))], &classes(), &objects());
        let rule = compiled.table.rules().next().unwrap();
        let Action::Forward(backends) = &rule.action else { panic!("{rule:?}") };
        assert_eq!(backends[0].endpoints.as_deref().map(<[_]>::to_vec), endpoints, "{backend}");
        assert_eq!(backends[0].protocol, protocol, "{backend}");
        assert_eq!(
            compiled.problems.iter().map(|problem| problem.message.as_str()).collect::<String>(),
            problem
        );
    }
}

#[test]
fn certificates_are_by_host() {
    let spec = json!({"rules": rules("foo.com / Prefix a"), "tls": [
        {"hosts": ["foo.com", "*.bar.com"], "secretName": "good"},
        {"hosts": ["gone.com"], "secretName": "gone"},
        {"hosts": ["own.com"]}]});
    let compiled = compile(&[ingress("i", 0, spec)], &classes(), &objects());
    assert!(compiled.table.ports[&HTTP_PORT].tls.is_none());
    let certificates = compiled.table.ports[&HTTPS_PORT].tls.as_ref().unwrap();
    for (host, has) in [
        ("foo.com", true),
        ("a.bar.com", true),
        ("a.b.bar.com", false),
        ("gone.com", false),
        ("own.com", false),
    ] {
        assert_eq!(certificates.matching(host).next().is_some(), has, "{host}");
    }
    let problems: Vec<_> =
        compiled.problems.iter().map(|problem| (problem.reason, problem.message.as_str())).collect();
    assert_eq!(
        problems,
        [("InvalidCertificate", "there is no secret \"shop/gone\" of the type kubernetes.io/tls")]
    );
    let any = json!({"defaultBackend": {"service": {"name": "a", "port": {"number": 80}}}, "tls": [{"secretName": "good"}]});
    let compiled = compile(&[ingress("i", 0, any)], &classes(), &objects());
    assert!(compiled.table.ports[&HTTPS_PORT].tls.as_ref().unwrap().matching("any.com").next().is_some());
}
