//! BackendTLSPolicies: cases of the conformance suite's `backendtlspolicy-*` and of the descriptions of fields.

use super::*;

fn pem() -> String {
    rcgen::generate_simple_self_signed(["authority.example".to_owned()]).unwrap().cert.pem()
}

/// A Gateway `infra/gw` with a route to this service, and the ConfigMaps `good`, `keyless` and `bad`.
fn case(service: &str) -> Case {
    let mut case = Case::new(json!([http("l", "")]));
    case.route("r", &[], json!([{"backendRefs": to(service)}]));
    for (name, data) in [
        ("good", json!({"ca.crt": pem()})),
        ("keyless", json!({"other": pem()})),
        ("bad", json!({"ca.crt": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"})),
        ("empty", json!({"ca.crt": "nothing"})),
    ] {
        let map = json!({"metadata": {"namespace": "infra", "name": name}, "data": data});
        case.maps.insert(format!("infra/{name}"), Arc::new(serde_json::from_value(map).unwrap()));
    }
    case
}

fn by(map: &str) -> Value {
    json!({"hostname": "web.example", "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": map}]})
}

impl Case {
    fn policy(&mut self, name: &str, target: &Value, validation: &Value) {
        let spec = json!({"targetRefs": [target], "validation": validation});
        self.policies.push(object("infra", name, self.policies.len(), spec));
    }
}

fn service(name: &str) -> Value {
    json!({"group": "", "kind": "Service", "name": name})
}

/// What became of a policy at `infra/gw`; `-` when nobody is told anything.
fn told(compiled: &Compiled, name: &str) -> String {
    let Some(ancestors) = compiled.policies.get(&("infra".to_owned(), name.to_owned())) else {
        return "-".to_owned();
    };
    let [one] = &ancestors[..] else { panic!("{ancestors:?}") };
    assert_eq!(one.controller_name, CONTROLLER);
    assert_eq!(one.ancestor_ref.kind.as_deref(), Some("Gateway"));
    let gateway = (one.ancestor_ref.namespace.as_deref(), one.ancestor_ref.name.as_str());
    assert_eq!(gateway, (Some("infra"), "gw"));
    faults(&one.conditions)
}

/// `plain`, `sealed` or, when nobody is asked, `500`.
fn way(compiled: &Compiled) -> &'static str {
    let Action::Forward(backends) = &rule(compiled, 80, "GET h/").unwrap().action else {
        panic!("forwarded")
    };
    match (&backends[0].endpoints, &backends[0].tls) {
        (None, _) => "500",
        (Some(_), None) => "plain",
        (Some(_), Some(_)) => "sealed",
    }
}

#[test]
fn authorities_and_names_are_judged() {
    let with = |key: &str, value: Value| {
        let mut validation = by("good");
        validation[key] = value;
        validation
    };
    let refs = |all: &[(&str, &str)]| {
        let all = all.iter().map(|(kind, name)| json!({"group": "", "kind": kind, "name": name}));
        with("caCertificateRefs", all.collect())
    };
    let lost = "Accepted:NoValidCACertificate ResolvedRefs:";
    let invalid = "Accepted:Invalid".to_owned();
    for (validation, expected, served) in [
        (by("good"), String::new(), "sealed"),
        (by("gone"), format!("{lost}InvalidCACertificateRef"), "500"),
        (by("keyless"), format!("{lost}InvalidCACertificateRef"), "500"),
        (by("bad"), format!("{lost}InvalidCACertificateRef"), "500"),
        (by("empty"), format!("{lost}InvalidCACertificateRef"), "500"),
        (refs(&[("Secret", "good")]), format!("{lost}InvalidKind"), "500"),
        (
            refs(&[("ConfigMap", "good"), ("ConfigMap", "gone")]),
            "ResolvedRefs:InvalidCACertificateRef".to_owned(),
            "sealed",
        ),
        (with("hostname", json!("no host")), invalid.clone(), "500"),
        (with("wellKnownCACertificates", json!("System")), invalid.clone(), "500"),
        (json!({"hostname": "h", "wellKnownCACertificates": "Other"}), invalid.clone(), "500"),
        (json!({"hostname": "h", "wellKnownCACertificates": "System"}), invalid.clone(), "500"),
        (json!({"hostname": "h"}), invalid.clone(), "500"),
        (
            with("subjectAltNames", json!([{"type": "Hostname", "hostname": "*.example"}])),
            String::new(),
            "sealed",
        ),
        (with("subjectAltNames", json!([{"type": "URI", "uri": "spiffe://a/b"}])), String::new(), "sealed"),
        (with("subjectAltNames", json!([{"type": "URI", "hostname": "a"}])), invalid.clone(), "500"),
        (with("subjectAltNames", json!([{"type": "Email"}])), invalid.clone(), "500"),
    ] {
        let mut case = case("web");
        case.policy("p", &service("web"), &validation);
        let compiled = case.compile();
        assert_eq!(told(&compiled, "p"), expected, "{validation}");
        assert_eq!(way(&compiled), served, "{validation}");
        assert_eq!(route_faults(&compiled, "infra", "r"), "", "{validation}");
    }
}

#[test]
fn policies_are_for_services_and_ports() {
    let section = |name: &str| json!({"group": "", "kind": "Service", "name": "web", "sectionName": name});
    for (target, expected, served) in [
        (service("web"), "", "sealed"),
        (section("http"), "", "sealed"),
        (section("other"), "", "plain"),
        (service("other"), "-", "plain"),
        (json!({"group": "example.com", "kind": "Thing", "name": "web"}), "-", "plain"),
    ] {
        let mut case = case("web");
        case.policy("p", &target, &by("good"));
        let compiled = case.compile();
        assert_eq!((told(&compiled, "p").as_str(), way(&compiled)), (expected, served), "{target}");
    }
    // A port's own policy goes before that of the whole Service, which is no conflict.
    let mut both = case("web");
    both.policy("all", &service("web"), &by("gone"));
    both.policy("port", &section("http"), &by("good"));
    let compiled = both.compile();
    assert_eq!(way(&compiled), "sealed");
    assert_eq!(told(&compiled, "port"), "");
    // In the clear nobody speaks to a port that wants TLS.
    let mut wss = case("wss");
    assert_eq!(route_faults(&wss.compile(), "infra", "r"), "ResolvedRefs:UnsupportedProtocol");
    wss.policy("p", &service("wss"), &by("good"));
    let compiled = wss.compile();
    assert_eq!((route_faults(&compiled, "infra", "r").as_str(), way(&compiled)), ("", "sealed"));
}

/// `backendtlspolicy-conflict-resolution`: the older one counts.
#[test]
fn the_oldest_policy_counts() {
    let mut case = case("web");
    case.policy("z-older", &service("web"), &by("good"));
    case.policy("a-younger", &service("web"), &by("gone"));
    case.policy("elsewhere", &service("gone"), &by("good"));
    let compiled = case.compile();
    assert_eq!(told(&compiled, "z-older"), "");
    assert!(told(&compiled, "a-younger").contains("ResolvedRefs:InvalidCACertificateRef"));
    assert_eq!(way(&compiled), "sealed");
    let mut good = super::policies::case("web");
    good.policy("older", &service("web"), &by("good"));
    good.policy("younger", &service("web"), &by("good"));
    assert_eq!(told(&good.compile(), "younger"), "Accepted:Conflicted");
}
