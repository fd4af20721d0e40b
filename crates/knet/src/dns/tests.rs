use serde_json::json;

use super::*;

#[derive(Debug)]
struct Fixed {
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
        (address == IpAddr::from([10, 3, 0, 100])).then(|| ("shop".to_owned(), "web".to_owned()))
    }

    fn hosts_at(&self, address: IpAddr) -> Vec<(String, String, String)> {
        let known = address == IpAddr::from([10, 10, 0, 1]);
        if known { vec![("shop".into(), "db".into(), "db-0".into())] } else { Vec::new() }
    }
}

fn zone() -> Fixed {
    let service = |value| Arc::new(serde_json::from_value(value).unwrap());
    let services = vec![
        service(json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"clusterIP": "10.3.0.100", "clusterIPs": ["10.3.0.100", "2001:db8::1"],
                "ports": [{"name": "https", "port": 443}, {"name": "dns", "port": 53, "protocol": "UDP"}]},
        })),
        service(json!({
            "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]},
        })),
        service(json!({
            "metadata": {"name": "out", "namespace": "shop"},
            "spec": {"type": "ExternalName", "externalName": "example.com"},
        })),
        service(json!({
            "metadata": {"name": "in", "namespace": "shop"},
            "spec": {"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"},
        })),
    ];
    let slice = json!({
        "metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}],
        "endpoints": [
            {"addresses": ["10.10.0.1"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.10.0.2"], "conditions": {"ready": true}},
            {"addresses": ["10.10.0.3"], "conditions": {"ready": false}},
        ],
    });
    Fixed { services, slices: vec![Arc::new(serde_json::from_value(slice).unwrap())] }
}

/// The answer as text: the code, the answers and, after a bar, the additional records.
fn ask(name: &str, wanted: RecordType) -> String {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), wanted));
    let text = |records: &[Record]| records.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(", ");
    match answer(&question, "cluster.local", &zone()) {
        Answer::Final(reply) => {
            let soa = reply.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
            assert_eq!(soa, reply.answers.is_empty(), "an empty answer says for how long: {name}");
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

#[test]
fn the_specifications_records() {
    let check =
        |name: &str, wanted: RecordType, expected: &str| assert_eq!(ask(name, wanted), expected, "{name}");
    check("dns-version.cluster.local.", RecordType::TXT, "1.1.0");
    check("web.shop.svc.cluster.local.", RecordType::A, "10.3.0.100");
    check("WEB.Shop.svc.cluster.local.", RecordType::A, "10.3.0.100");
    check("web.shop.svc.cluster.local.", RecordType::AAAA, "2001:db8::1");
    let target = "web.shop.svc.cluster.local.";
    let srv = format!("0 100 443 {target} | 10.3.0.100, 2001:db8::1");
    check("_https._tcp.web.shop.svc.cluster.local.", RecordType::SRV, &srv);
    check("_https._udp.web.shop.svc.cluster.local.", RecordType::SRV, "NXDomain");
    check("100.0.3.10.in-addr.arpa.", RecordType::PTR, target);
    check("db.shop.svc.cluster.local.", RecordType::A, "10.10.0.1, 10.10.0.2");
    check("db-0.db.shop.svc.cluster.local.", RecordType::A, "10.10.0.1");
    check("10-10-0-2.db.shop.svc.cluster.local.", RecordType::A, "10.10.0.2");
    check("10-10-0-3.db.shop.svc.cluster.local.", RecordType::A, "NXDomain");
    let db = "db.shop.svc.cluster.local.";
    let srv = format!("0 100 5432 db-0.{db}, 0 100 5432 10-10-0-2.{db} | 10.10.0.1, 10.10.0.2");
    check("_sql._tcp.db.shop.svc.cluster.local.", RecordType::SRV, &srv);
    check("1.0.10.10.in-addr.arpa.", RecordType::PTR, &format!("db-0.{db}"));
    check("1-2-3-4.shop.pod.cluster.local.", RecordType::A, "1.2.3.4");
    check("1-2-3-4.none.pod.cluster.local.", RecordType::A, "NXDomain");
}

#[test]
fn aliases_are_followed_as_far_as_the_zone_goes() {
    assert_eq!(ask("out.shop.svc.cluster.local.", RecordType::A), "example.com. -> example.com.");
    assert_eq!(ask("out.shop.svc.cluster.local.", RecordType::CNAME), "example.com.");
    assert_eq!(ask("in.shop.svc.cluster.local.", RecordType::A), "web.shop.svc.cluster.local., 10.3.0.100");
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

#[tokio::test]
async fn the_server_speaks_udp_and_tcp_and_asks_others() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use crate::{loopback::LoopbackBlock, redirect::Redirects};
    let block = LoopbackBlock::claim().unwrap();
    let start = |offset: u32, domain: &'static str, others| {
        let address = std::net::SocketAddr::new(block.nth(offset), 5353);
        async move {
            DnsServer::start(address, domain, Arc::new(zone()), others, &Redirects::default()).await.unwrap()
        }
    };
    let other = start(1, "other.local", Vec::new()).await;
    let server = start(2, "cluster.local", vec![other.address()]).await;
    let ask = |name: &str| {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        question.to_vec().unwrap()
    };
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for (name, expected) in [
        ("web.shop.svc.cluster.local.", ResponseCode::NoError),
        ("web.shop.svc.other.local.", ResponseCode::NoError),
        ("example.com.", ResponseCode::Refused),
    ] {
        socket.send_to(&ask(name), server.address()).await.unwrap();
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).await.unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(reply.metadata.response_code, expected, "{name}");
        assert_eq!(reply.answers.len(), usize::from(expected == ResponseCode::NoError), "{name}");
    }
    let mut stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let question = ask("web.shop.svc.cluster.local.");
    stream.write_u16(u16::try_from(question.len()).unwrap()).await.unwrap();
    stream.write_all(&question).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut bytes = vec![0; usize::from(length)];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(Message::from_vec(&bytes).unwrap().answers.len(), 1);
}
