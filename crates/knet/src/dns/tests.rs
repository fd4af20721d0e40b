use serde_json::json;

use super::*;

#[derive(Debug)]
pub(super) struct Fixed {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Zone for Fixed {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let is = |service: &&Arc<Service>| {
            service.metadata.namespace.as_deref() == Some(namespace)
                && service.metadata.name.as_deref() == Some(name)
        };
        self.services.iter().find(is).cloned()
    }

    fn slices(&self, _namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        self.slices
            .iter()
            .filter(|slice| crate::rules::slice_service(slice) == Some(service))
            .cloned()
            .collect()
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        namespace == "shop"
    }

    fn service_at(&self, address: IpAddr) -> Option<(String, String)> {
        let has = |service: &&Arc<Service>| {
            service.spec.as_ref().is_some_and(|spec| cluster_ips(spec).contains(&address))
        };
        let found = self.services.iter().find(has)?;
        Some((found.metadata.namespace.clone()?, found.metadata.name.clone()?))
    }

    fn hosts_at(&self, address: IpAddr) -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        for slice in &self.slices {
            let service = crate::rules::slice_service(slice).unwrap();
            for endpoint in slice.endpoints.iter().flatten().filter(|endpoint| is_ready(endpoint)) {
                if let Some(host) = &endpoint.hostname
                    && endpoint.addresses.contains(&address.to_string())
                {
                    found.push(("shop".to_owned(), service.to_owned(), host.clone()));
                }
            }
        }
        found
    }
}

pub(super) fn zone() -> Fixed {
    let service = |name: &str, spec: serde_json::Value| {
        let service = json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec});
        Arc::new(serde_json::from_value(service).unwrap())
    };
    let services = vec![
        service(
            "web",
            json!({"clusterIP": "10.3.0.100", "clusterIPs": ["10.3.0.100", "2001:db8::1"],
            "ports": [{"name": "https", "port": 443}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        service("plain", json!({"clusterIP": "10.3.0.101", "ports": [{"port": 80}]})),
        service("db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("wide", json!({"clusterIP": "None", "ports": [{"name": "x", "port": 1}]})),
        service("down", json!({"clusterIP": "None", "ports": [{"name": "x", "port": 1}]})),
        service("out", json!({"type": "ExternalName", "externalName": "example.com"})),
        service("in", json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"})),
        service("gone", json!({"type": "ExternalName", "externalName": "none.shop.svc.cluster.local"})),
        service("loop", json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"})),
    ];
    let slice = |service: &str, family: &str, port: serde_json::Value, endpoints: Vec<serde_json::Value>| {
        let labels = json!({"kubernetes.io/service-name": service});
        let slice = json!({"metadata": {"name": service, "namespace": "shop", "labels": labels},
            "addressType": family, "ports": [port], "endpoints": endpoints});
        Arc::new(serde_json::from_value(slice).unwrap())
    };
    let sql = || json!({"name": "sql", "port": 5432});
    let not_ready = json!({"ready": false, "serving": true, "terminating": true});
    let slices = vec![
        slice(
            "db",
            "IPv4",
            sql(),
            vec![
                json!({"addresses": ["10.10.0.1"], "hostname": "db-0", "conditions": {"ready": true}}),
                json!({"addresses": ["10.10.0.2"]}),
                json!({"addresses": ["10.10.0.3"], "hostname": "db-3", "conditions": not_ready}),
                // A host with two addresses.
                json!({"addresses": ["10.10.0.4"], "hostname": "db-0", "conditions": {"ready": true}}),
            ],
        ),
        slice("db", "IPv6", sql(), vec![json!({"addresses": ["2001:db8::10"], "hostname": "db-0"})]),
        slice("wide", "IPv4", json!({"name": "x", "port": 1}), {
            (0..40).map(|host| json!({"addresses": [format!("10.11.0.{host}")]})).collect()
        }),
        slice("down", "IPv4", json!({"name": "x", "port": 1}), {
            vec![json!({"addresses": ["10.12.0.1"], "conditions": {"ready": false}})]
        }),
        slice(
            "web",
            "IPv4",
            json!({"name": "https", "port": 8443}),
            vec![json!({"addresses": ["10.13.0.1"], "hostname": "web-0"})],
        ),
    ];
    Fixed { services, slices }
}

/// The answer as text: the code, the answers and, after a bar, the additional records.
fn ask(name: &str, wanted: RecordType) -> String {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), wanted));
    let text = |records: &[Record]| records.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(", ");
    match answer(&question, "cluster.local", &zone()) {
        Answer::Final(reply) => {
            let soa = reply.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
            let is_alias = |record: &Record| record.record_type() == RecordType::CNAME;
            let is_empty = wanted != RecordType::CNAME && reply.answers.iter().all(is_alias);
            assert_eq!(soa, is_empty, "that there is nothing says for how long: {name}");
            let mut out = match reply.metadata.response_code {
                ResponseCode::NoError => text(&reply.answers),
                code => format!("{code:?}"),
            };
            if !reply.additionals.is_empty() {
                out.push_str(&format!(" | {}", text(&reply.additionals)));
            }
            out
        }
        Answer::Outside => "outside".to_owned(),
        Answer::Alias(reply, target) => format!("{} -> {target}", text(&reply.answers)),
    }
}

/// Kubernetes' "DNS-Based Service Discovery", version 1.1.0, in the order of its sections.
#[test]
fn the_specifications_records() {
    let web = "web.shop.svc.cluster.local.";
    let db = "db.shop.svc.cluster.local.";
    let nibbles =
        |last: &str| format!("{last}.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.");
    let table: &[(&str, RecordType, &str)] = &[
        // 2.2: the version.
        ("dns-version.cluster.local.", RecordType::TXT, "1.1.0"),
        // 2.3.1: a Service's addresses, one answer for each family; names don't tell cases apart (RFC 4343).
        (web, RecordType::A, "10.3.0.100"),
        ("WEB.Shop.svc.Cluster.local.", RecordType::A, "10.3.0.100"),
        (web, RecordType::AAAA, "2001:db8::1"),
        ("plain.shop.svc.cluster.local.", RecordType::AAAA, ""),
        (web, RecordType::ANY, "10.3.0.100, 2001:db8::1"),
        // 2.3.2: its ports with a name.
        (
            &format!("_https._tcp.{web}"),
            RecordType::SRV,
            &format!("0 100 443 {web} | 10.3.0.100, 2001:db8::1"),
        ),
        (&format!("_dns._udp.{web}"), RecordType::SRV, &format!("0 100 53 {web} | 10.3.0.100, 2001:db8::1")),
        (&format!("_https._udp.{web}"), RecordType::SRV, "NXDomain"),
        (&format!("_none._tcp.{web}"), RecordType::SRV, "NXDomain"),
        ("__._tcp.plain.shop.svc.cluster.local.", RecordType::SRV, "NXDomain"),
        // 2.3.3: the way back.
        ("100.0.3.10.in-addr.arpa.", RecordType::PTR, web),
        (&nibbles("1.0"), RecordType::PTR, web),
        // 2.4.1: the ready endpoints of a headless Service, and each by its host name.
        (db, RecordType::A, "10.10.0.1, 10.10.0.2, 10.10.0.4"),
        (db, RecordType::AAAA, "2001:db8::10"),
        (&format!("db-0.{db}"), RecordType::A, "10.10.0.1, 10.10.0.4"),
        (&format!("db-0.{db}"), RecordType::AAAA, "2001:db8::10"),
        (&format!("10-10-0-2.{db}"), RecordType::A, "10.10.0.2"),
        (&format!("db-3.{db}"), RecordType::A, "NXDomain"),
        ("down.shop.svc.cluster.local.", RecordType::A, "NXDomain"),
        // 2.4.2: their ports.
        (
            &format!("_sql._tcp.{db}"),
            RecordType::SRV,
            &format!(
                "0 100 5432 db-0.{db}, 0 100 5432 10-10-0-2.{db} | 10.10.0.1, 10.10.0.2, 10.10.0.4, 2001:db8::10"
            ),
        ),
        ("_x._tcp.down.shop.svc.cluster.local.", RecordType::SRV, "NXDomain"),
        // 2.4.3: the way back, to those that have a name.
        ("1.0.10.10.in-addr.arpa.", RecordType::PTR, &format!("db-0.{db}")),
        (&nibbles("0.1"), RecordType::PTR, &format!("db-0.{db}")),
        ("2.0.10.10.in-addr.arpa.", RecordType::PTR, "outside"),
        ("3.0.10.10.in-addr.arpa.", RecordType::PTR, "outside"),
        // 2.5: an external name.
        ("out.shop.svc.cluster.local.", RecordType::CNAME, "example.com."),
        ("out.shop.svc.cluster.local.", RecordType::A, "example.com. -> example.com."),
        ("out.shop.svc.cluster.local.", RecordType::AAAA, "example.com. -> example.com."),
        ("in.shop.svc.cluster.local.", RecordType::A, &format!("{web}, 10.3.0.100")),
        ("gone.shop.svc.cluster.local.", RecordType::A, "NXDomain"),
        ("_x._tcp.out.shop.svc.cluster.local.", RecordType::SRV, "NXDomain"),
        // 2.6: names of pods' addresses.
        ("1-2-3-4.shop.pod.cluster.local.", RecordType::A, "1.2.3.4"),
        ("2001-db8--7.shop.pod.cluster.local.", RecordType::AAAA, "2001:db8::7"),
        ("1-2-3-4.none.pod.cluster.local.", RecordType::A, "NXDomain"),
        ("1-2-3.shop.pod.cluster.local.", RecordType::A, "NXDomain"),
        // Beyond it, as CoreDNS: a named endpoint of a Service with a cluster IP; a Service's own name has all ports.
        (&format!("web-0.{web}"), RecordType::A, "10.13.0.1"),
        (web, RecordType::SRV, &format!("0 100 443 {web}, 0 100 53 {web} | 10.3.0.100, 2001:db8::1")),
    ];
    for (name, wanted, expected) in table {
        assert_eq!(ask(name, *wanted), *expected, "{name} {wanted}");
    }
}

/// A name that leads to itself is followed a few times, and no further.
#[test]
fn aliases_end() {
    let told = ask("loop.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(told.split(", ").count(), ALIASES_MAX, "{told}");
}

#[test]
fn names_without_data_exist_and_others_do_not() {
    for name in ["svc.cluster.local.", "shop.svc.cluster.local.", "_tcp.web.shop.svc.cluster.local."] {
        assert_eq!(ask(name, RecordType::A), "", "{name}");
    }
    assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::MX), "");
    for name in ["none.shop.svc.cluster.local.", "x.web.shop.svc.cluster.local.", "a.cluster.local."] {
        assert_eq!(ask(name, RecordType::A), "NXDomain", "{name}");
    }
    for name in ["example.com.", "notcluster.local.", "1.1.1.1.in-addr.arpa."] {
        assert_eq!(ask(name, RecordType::A), "outside", "{name}");
    }
}
