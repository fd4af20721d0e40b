//! ListenerSets: cases of the conformance suite's `listenerset-*` and of GEP-1713.

use super::*;

/// A Gateway `infra/gw` with one listener, that allows sets of such namespaces.
fn case(allowed: Value) -> Case {
    let mut case = Case::default();
    let spec = json!({"gatewayClassName": "own", "listeners": [http("own", "own.com")],
        "allowedListeners": {"namespaces": allowed}});
    case.gateways.push(object("infra", "gw", 0, spec));
    case
}

impl Case {
    /// A set of a namespace at `infra/gw`.
    fn set(&mut self, namespace: &str, name: &str, listeners: Value) {
        let parent = json!({"name": "gw", "namespace": "infra"});
        let spec = json!({"parentRef": parent, "listeners": listeners});
        self.sets.push(object(namespace, name, self.sets.len(), spec));
    }

    /// A route of a namespace at an object of its own namespace, or of `infra` if that is a Gateway.
    fn route_at(&mut self, namespace: &str, kind: &str, name: &str, service: &str) {
        let parent = match kind {
            "Gateway" => json!({"name": name, "namespace": "infra"}),
            _ => json!({"name": name, "kind": kind}),
        };
        let spec = json!({"parentRefs": [parent], "rules": [{"backendRefs": to(service)}]});
        self.route_of(namespace, service, spec);
    }
}

fn set_faults(compiled: &Compiled, namespace: &str, name: &str) -> String {
    compiled
        .listener_sets
        .get(&(namespace.to_owned(), name.to_owned()))
        .map_or("-".to_owned(), |status| faults(&status.conditions))
}

/// What is wrong with each listener of a set.
fn listener_faults(compiled: &Compiled, namespace: &str, name: &str) -> Vec<String> {
    let status = &compiled.listener_sets[&(namespace.to_owned(), name.to_owned())];
    status.listeners.iter().map(|listener| faults(&listener.conditions)).collect()
}

fn attached_sets(compiled: &Compiled) -> Option<i32> {
    compiled.gateways[&("infra".to_owned(), "gw".to_owned())].attached_listener_sets
}

/// `listenerset-allowed-namespaces-*`, `listenerset-default-not-allowed`.
#[test]
fn gateways_say_whose_sets_they_have() {
    let not_allowed = "Accepted:NotAllowed Programmed:NotAllowed";
    for (allowed, infra, other) in [
        (Value::Null, not_allowed, not_allowed),
        (json!({}), not_allowed, not_allowed),
        (json!({"from": "None"}), not_allowed, not_allowed),
        (json!({"from": "Same"}), "", not_allowed),
        (json!({"from": "All"}), "", ""),
        (json!({"from": "Selector", "selector": {"matchLabels": {"name": "other"}}}), not_allowed, ""),
        (json!({"from": "Selector"}), not_allowed, not_allowed),
    ] {
        let mut case = case(allowed.clone());
        case.set("infra", "near", json!([http("l", "near.com")]));
        case.set("other", "far", json!([http("l", "far.com")]));
        case.route_at("infra", "ListenerSet", "near", "n");
        case.route_at("other", "ListenerSet", "far", "f");
        let compiled = case.compile();
        assert_eq!(set_faults(&compiled, "infra", "near"), infra, "{allowed}");
        assert_eq!(set_faults(&compiled, "other", "far"), other, "{allowed}");
        let count = [infra, other].iter().filter(|faults| faults.is_empty()).count();
        assert_eq!(attached_sets(&compiled), i32::try_from(count).ok(), "{allowed}");
        for (host, namespace, service, faults) in
            [("near.com", "infra", "n", infra), ("far.com", "other", "f", other)]
        {
            let (goes_to, route) = match faults {
                "" => (service, ""),
                _ => ("-", "Accepted:NoMatchingParent"),
            };
            assert_eq!(goes(&compiled, &format!("GET {host}/")), goes_to, "{allowed}");
            assert_eq!(route_faults(&compiled, namespace, service), route, "{allowed}");
        }
    }
}

/// Routes are attached to the object that they name: a Gateway's listeners are not those of its sets, though their names be the same.
#[test]
fn routes_are_attached_to_what_they_name() {
    let mut case = case(json!({"from": "All"}));
    case.set("infra", "set", json!([http("own", "set.com"), http("second", "second.com")]));
    case.route_at("infra", "Gateway", "gw", "a");
    case.route_at("infra", "ListenerSet", "set", "b");
    let section = json!({"parentRefs": [{"name": "set", "kind": "ListenerSet", "sectionName": "second"}],
        "rules": [{"matches": [{"path": {"value": "/second"}}], "backendRefs": to("c")}]});
    case.route_of("infra", "c", section);
    let missing =
        json!({"parentRefs": [{"name": "gw", "sectionName": "second"}], "rules": [{"backendRefs": to("d")}]});
    case.route_of("infra", "d", missing);
    // A route of another namespace is not allowed by a listener that does not say so.
    case.route_of(
        "far",
        "e",
        json!({"parentRefs": [{"name": "set", "namespace": "infra", "kind": "ListenerSet"}],
        "rules": [{"backendRefs": to("e")}]}),
    );
    let compiled = case.compile();
    for (asked, expected) in [
        ("GET own.com/", "a"),
        ("GET set.com/second", "b"),
        ("GET second.com/", "b"),
        ("GET second.com/second", "c"),
    ] {
        assert_eq!(goes(&compiled, asked), expected, "{asked}");
    }
    for (namespace, name, expected) in [
        ("infra", "a", ""),
        ("infra", "b", ""),
        ("infra", "c", ""),
        ("infra", "d", "Accepted:NoMatchingParent"),
        ("far", "e", "Accepted:NotAllowedByListeners"),
    ] {
        assert_eq!(route_faults(&compiled, namespace, name), expected, "{name}");
    }
    let gateway = &compiled.gateways[&("infra".to_owned(), "gw".to_owned())];
    assert_eq!(gateway.listeners.iter().map(|one| one.attached_routes).collect::<Vec<_>>(), [1]);
    let set = &compiled.listener_sets[&("infra".to_owned(), "set".to_owned())];
    assert_eq!(set.listeners.iter().map(|one| one.attached_routes).collect::<Vec<_>>(), [1, 2]);
}

/// "Listener Precedence": the Gateway, then the oldest set; `listenerset-hostname-conflict`, `listenerset-protocol-conflict`.
#[test]
fn who_was_first_has_the_place() {
    let mut case = case(json!({"from": "All"}));
    let tls = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TLS", "hostname": "tls.com", "tls": {"mode": "Passthrough"}});
    case.set("z", "older", json!([http("same", "OWN.com"), http("mine", "mine.com"), tls("wrong", 80)]));
    case.set("a", "younger", json!([http("mine", "mine.com"), http("free", "free.com")]));
    case.set("a", "youngest", json!([tls("wrong", 80)]));
    case.route_at("z", "ListenerSet", "older", "o");
    case.route_at("a", "ListenerSet", "younger", "y");
    let compiled = case.compile();
    let conflict = |reason: &str| format!("Accepted:{reason} Conflicted:{reason} Programmed:Invalid");
    let (host, protocol) = (conflict("HostnameConflict"), conflict("ProtocolConflict"));
    // Within one object nobody is first.
    assert_eq!(listener_faults(&compiled, "z", "older"), [&*protocol, &protocol, &protocol]);
    assert_eq!(listener_faults(&compiled, "a", "younger"), ["", ""]);
    assert_eq!(listener_faults(&compiled, "a", "youngest"), [&*protocol]);
    assert_eq!(goes(&compiled, "GET mine.com/"), "y");

    case.sets.remove(0);
    case.set(
        "z",
        "latest",
        json!([http("same", "OWN.com"), http("mine", "mine.com"), http("new", "new.com")]),
    );
    case.route_at("z", "ListenerSet", "latest", "l");
    let compiled = case.compile();
    assert_eq!(listener_faults(&compiled, "z", "latest"), [&*host, &host, ""]);
    // Some of it is served, so it is accepted.
    let status = &compiled.listener_sets[&("z".to_owned(), "latest".to_owned())];
    assert_eq!(faults(&status.conditions), "");
    assert_eq!(status.conditions[0].reason, "ListenersNotValid");
    assert_eq!(
        set_faults(&compiled, "a", "youngest"),
        "Accepted:ListenersNotValid Programmed:ListenersNotValid"
    );
    assert_eq!(attached_sets(&compiled), Some(2));
    for (host, service) in [("own.com", "-"), ("mine.com", "y"), ("new.com", "l"), ("free.com", "y")] {
        assert_eq!(goes(&compiled, &format!("GET {host}/")), service, "{host}");
    }
}

/// "ReferenceGrant Semantics": what a Gateway may refer to its sets may not.
#[test]
fn sets_refer_by_their_own_rights() {
    let secret = |namespace: &str| {
        json!([{"name": "l", "port": 443, "protocol": "HTTPS", "hostname": "foo.com",
            "tls": {"certificateRefs": [{"name": "good", "namespace": namespace}]}}])
    };
    for (from, namespace, expected) in [
        (None, "shop", ""),
        (None, "infra", "ResolvedRefs:RefNotPermitted Programmed:Invalid"),
        (Some("Gateway"), "infra", "ResolvedRefs:RefNotPermitted Programmed:Invalid"),
        (Some("ListenerSet"), "infra", ""),
    ] {
        let mut case = case(json!({"from": "All"}));
        case.set("shop", "set", secret(namespace));
        if let Some(kind) = from {
            let grant = json!({"from": [{"group": "gateway.networking.k8s.io", "kind": kind, "namespace": "shop"}],
                "to": [{"group": "", "kind": "Secret"}]});
            case.grants.push(object("infra", "grant", 0, grant));
        }
        let compiled = case.compile();
        assert_eq!(listener_faults(&compiled, "shop", "set"), [expected], "{from:?} {namespace}");
        assert_eq!(compiled.table.ports.contains_key(&443), expected.is_empty());
    }
}

/// A Gateway may have no listeners of its own; one that is not accepted has no sets; who names another object is not told anything.
#[test]
fn sets_are_as_good_as_their_gateway() {
    let mut case = case(json!({"from": "All"}));
    case.set("infra", "set", json!([http("l", "l.com")]));
    let with = |case: &mut Case, spec: Value| case.gateways[0] = object("infra", "gw", 0, spec);
    let own = json!({"gatewayClassName": "own", "listeners": [], "allowedListeners": {"namespaces": {"from": "All"}}});
    with(&mut case, own.clone());
    case.route_at("infra", "ListenerSet", "set", "s");
    let compiled = case.compile();
    assert_eq!(faults(&compiled.gateways.values().next().unwrap().conditions), "");
    assert_eq!(
        (set_faults(&compiled, "infra", "set").as_str(), goes(&compiled, "GET l.com/").as_str()),
        ("", "s")
    );

    let mut chosen = own.clone();
    chosen["addresses"] = json!([{"value": "192.0.2.9"}]);
    with(&mut case, chosen);
    let compiled = case.compile();
    let expected = "Accepted:ParentNotAccepted Programmed:ParentNotAccepted";
    assert_eq!(set_faults(&compiled, "infra", "set"), expected);
    assert_eq!((attached_sets(&compiled), goes(&compiled, "GET l.com/").as_str()), (Some(0), "-"));

    let mut foreign = own;
    foreign["gatewayClassName"] = "other".into();
    with(&mut case, foreign);
    let compiled = case.compile();
    assert_eq!(
        (set_faults(&compiled, "infra", "set").as_str(), route_faults(&compiled, "infra", "s").as_str()),
        ("-", "")
    );
}
