//! The DNS server over real sockets: as `dig` sees it, as other servers are asked, and as it follows an API server.

use std::{
    net::SocketAddr,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA},
    },
};
use kcore::local::LocalEvent;
use knet::{
    Redirects,
    dns::{DnsServer, InformerZone, Zone},
    loopback::LoopbackBlock,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::agents::{Server, stored};

const PATIENCE: Duration = Duration::from_secs(60);
const DOMAIN: &str = "cluster.local";

fn service(name: &str, spec: &Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn objects() -> Arc<Server> {
    let wide: Vec<Value> = (0..60).map(|host| json!({"addresses": [format!("10.11.0.{host}")]})).collect();
    let slice = json!({"metadata": {"name": "wide-1", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "wide"}}, "addressType": "IPv4",
        "ports": [{"name": "x", "port": 1}], "endpoints": wide});
    let web = json!({"clusterIP": "10.3.0.100", "ports": [{"name": "http", "port": 80}]});
    let out = json!({"type": "ExternalName", "externalName": "outside.example"});
    Server::new([
        ("namespaces", vec![json!({"metadata": {"name": "shop"}})]),
        (
            "services",
            vec![service("web", &web), service("wide", &json!({"clusterIP": "None"})), service("out", &out)],
        ),
        ("endpointslices", vec![slice]),
    ])
}

/// Another server: it knows `outside.example`, is slow to nobody, and counts its questions.
async fn other(asked: Arc<AtomicUsize>) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut bytes).await.unwrap();
            let question = Message::from_vec(&bytes).unwrap();
            let mut reply = question.clone().into_response();
            for host in 0..200 {
                let record = RData::A(A::new(192, 0, 2, host));
                reply.add_answer(Record::from_rdata(question.queries[0].name().clone(), 60, record));
            }
            let bytes = reply.to_vec().unwrap();
            stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            asked.fetch_add(1, Ordering::SeqCst);
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let query = question.queries[0].clone();
            let mut reply = question.into_response();
            reply.metadata.recursion_available = true;
            match query.name().to_lowercase().to_ascii().as_str() {
                "outside.example." if query.query_type() == RecordType::A => {
                    let record = RData::A(A::new(192, 0, 2, 7));
                    reply.add_answer(Record::from_rdata(query.name().clone(), 60, record));
                }
                "big.example." => reply.metadata.truncation = true,
                "broken.example." => reply.metadata.response_code = ResponseCode::ServFail,
                _ => {
                    reply.metadata.response_code = ResponseCode::NXDomain;
                    let name = |text| Name::from_ascii(text).unwrap();
                    let soa = SOA::new(name("ns.example."), name("who.example."), 1, 2, 3, 4, 60);
                    reply.add_authority(Record::from_rdata(name("example."), 60, RData::SOA(soa)));
                }
            }
            socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
        }
    });
    address
}

struct Running {
    server: DnsServer,
    objects: Arc<Server>,
    zone: Arc<InformerZone>,
    _block: LoopbackBlock,
    _informers: kreconcile::Informers,
}

async fn start(others: Vec<SocketAddr>) -> Running {
    let (block, objects) = (LoopbackBlock::claim().unwrap(), objects());
    let informers = objects.informers();
    let zone = Arc::new(InformerZone::new(&informers));
    tokio::time::timeout(PATIENCE, zone.synced()).await.unwrap();
    let address = SocketAddr::new(block.nth(10), 5353);
    let server =
        DnsServer::start(address, DOMAIN, Arc::clone(&zone) as _, others, &Redirects::default()).await;
    Running { server: server.unwrap(), objects, zone, _block: block, _informers: informers }
}

async fn ask(server: &DnsServer, name: &str, wanted: RecordType) -> Message {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).unwrap(), wanted));
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&question.to_vec().unwrap(), server.address()).await.unwrap();
    let mut buffer = [0; 4096];
    let length = tokio::time::timeout(PATIENCE, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(reply.metadata.id, question.metadata.id);
    reply
}

/// The code, and the data of the answers.
async fn told(server: &DnsServer, name: &str, wanted: RecordType) -> String {
    let reply = ask(server, name, wanted).await;
    let data: Vec<String> = reply.answers.iter().map(|record| record.data.to_string()).collect();
    format!("{:?} {}", reply.metadata.response_code, data.join(", "))
}

#[tokio::test]
async fn other_servers_are_asked_once() {
    let asked = Arc::new(AtomicUsize::new(0));
    let running = start(vec![other(Arc::clone(&asked)).await]).await;
    let server = &running.server;
    let count = || asked.load(Ordering::SeqCst);
    for (name, wanted, expected, questions) in [
        ("outside.example.", RecordType::A, "NoError 192.0.2.7", 1),
        // From the cache, whatever the case.
        ("Outside.Example.", RecordType::A, "NoError 192.0.2.7", 0),
        // The end of an external name is the same question.
        ("out.shop.svc.cluster.local.", RecordType::A, "NoError outside.example., 192.0.2.7", 0),
        // That there is nothing is kept, too.
        ("none.example.", RecordType::A, "NXDomain ", 1),
        ("none.example.", RecordType::A, "NXDomain ", 0),
        ("out.shop.svc.cluster.local.", RecordType::AAAA, "NXDomain outside.example.", 1),
        // What failed is not.
        ("broken.example.", RecordType::A, "ServFail ", 1),
        ("broken.example.", RecordType::A, "ServFail ", 1),
        ("web.shop.svc.cluster.local.", RecordType::A, "NoError 10.3.0.100", 0),
    ] {
        let before = count();
        assert_eq!(told(server, name, wanted).await, expected, "{name}");
        assert_eq!(count() - before, questions, "{name}");
    }
    // What is too long for UDP is asked for over TCP, by this server and by its clients.
    assert!(ask(server, "big.example.", RecordType::A).await.metadata.truncation);
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii("big.example.").unwrap(), RecordType::A));
    let bytes = question.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut bytes).await.unwrap();
    let reply = Message::from_vec(&bytes).unwrap();
    assert_eq!((reply.answers.len(), reply.metadata.recursion_available), (200, true));
}

/// A server that is down costs its time once: who answers is asked first from then on.
#[tokio::test]
async fn who_answers_is_asked_first() {
    // Nobody reads there, and nobody refuses.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let running = start(vec![silent.local_addr().unwrap(), other(Arc::clone(&asked)).await]).await;
    assert_eq!(told(&running.server, "outside.example.", RecordType::A).await, "NoError 192.0.2.7");
    for number in 0..3 {
        let name = format!("n{number}.example.");
        assert_eq!(told(&running.server, &name, RecordType::A).await, "NXDomain ");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    let mut buffer = [0; 512];
    assert!(silent.try_recv(&mut buffer).is_ok(), "the first question came");
    assert!(silent.try_recv(&mut buffer).is_err(), "no other did");
}

#[tokio::test]
async fn nobody_to_ask_is_told() {
    let running = start(Vec::new()).await;
    assert_eq!(told(&running.server, "outside.example.", RecordType::A).await, "Refused ");
    let external = told(&running.server, "out.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(external, "NoError outside.example.");
    // A server that is given its own address does not ask itself.
    let block = LoopbackBlock::claim().unwrap();
    let address = SocketAddr::new(block.nth(11), 5353);
    let zone = Arc::clone(&running.zone) as Arc<dyn Zone>;
    let own = DnsServer::start(address, DOMAIN, zone, vec![address], &Redirects::default()).await.unwrap();
    assert_eq!(told(&own, "outside.example.", RecordType::A).await, "Refused ");
}

/// The zone is what the API server says, as soon as it says it.
#[tokio::test]
async fn the_zone_follows_the_api_server() {
    let running = start(Vec::new()).await;
    let until = async |name: &str, expected: &str| {
        let asked = async {
            while told(&running.server, name, RecordType::A).await != expected {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{name}: {expected}"));
    };
    let cart = |address: &str| service("cart", &json!({"clusterIP": address, "ports": [{"port": 80}]}));
    until("cart.shop.svc.cluster.local.", "NXDomain ").await;
    running.objects.send("services", LocalEvent::Added(stored(cart("10.3.0.7"), 2)));
    until("cart.shop.svc.cluster.local.", "NoError 10.3.0.7").await;
    running.objects.send("services", LocalEvent::Modified(stored(cart("10.3.0.8"), 3)));
    until("cart.shop.svc.cluster.local.", "NoError 10.3.0.8").await;
    running.objects.send("services", LocalEvent::Deleted(stored(cart("10.3.0.8"), 4)));
    until("cart.shop.svc.cluster.local.", "NXDomain ").await;
    let slice = |ready: bool| {
        json!({"metadata": {"name": "db-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}],
            "endpoints": [{"addresses": ["10.9.0.1"], "hostname": "db-0", "conditions": {"ready": ready}}]})
    };
    running
        .objects
        .send("services", LocalEvent::Added(stored(service("db", &json!({"clusterIP": "None"})), 5)));
    running.objects.send("endpointslices", LocalEvent::Added(stored(slice(true), 6)));
    until("db-0.db.shop.svc.cluster.local.", "NoError 10.9.0.1").await;
    running.objects.send("endpointslices", LocalEvent::Modified(stored(slice(false), 7)));
    until("db-0.db.shop.svc.cluster.local.", "NXDomain ").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dig_finds_what_is_there() {
    if Command::new("dig").arg("-v").output().is_err() {
        assert!(std::env::var_os("KPLANE_REQUIRE_ALL").is_none(), "this run requires dig");
        println!("skipped: needs dig");
        return;
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let running = start(vec![other(asked).await]).await;
    let address = running.server.address();
    let dig = async |arguments: &str| {
        let mut command = Command::new("dig");
        command.arg(format!("@{}", address.ip())).args([
            "-p",
            &address.port().to_string(),
            "+time=30",
            "+tries=1",
        ]);
        command.args(arguments.split(' '));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let web = "web.shop.svc.cluster.local";
    for (arguments, expected) in [
        (format!("+short {web}"), "10.3.0.100"),
        (format!("+short +tcp {web}"), "10.3.0.100"),
        ("+short -x 10.3.0.100".to_owned(), "web.shop.svc.cluster.local."),
        (format!("+short SRV _http._tcp.{web}"), "0 100 80 web.shop.svc.cluster.local."),
        ("+short TXT dns-version.cluster.local".to_owned(), "\"1.1.0\""),
        ("+short out.shop.svc.cluster.local".to_owned(), "outside.example.\n192.0.2.7"),
        // As a pod's resolver looks: the search path, as long as a name has fewer dots than it says.
        ("+short +ndots=5 +domain=shop.svc.cluster.local web".to_owned(), "10.3.0.100"),
    ] {
        assert_eq!(dig(&arguments).await, expected, "{arguments}");
    }
    for (arguments, expected) in [
        (format!("+edns=1 +noednsnegotiation {web}"), &["status: BADVERS", "EDNS: version: 0"][..]),
        (format!("+noedns {web}"), &["status: NOERROR", "flags: qr aa rd ra"]),
        (format!("+dnssec {web}"), &["status: NOERROR", "flags: do; udp: 1232"]),
        (format!("+opcode=NOTIFY {web}"), &["status: NOTIMP"]),
        ("AXFR +ignore +notcp cluster.local".to_owned(), &["Transfer failed"]),
        // Too long for what the client takes: cut, and whole over TCP.
        (
            "+ignore +bufsize=512 wide.shop.svc.cluster.local".to_owned(),
            &["flags: qr aa tc rd ra", "ANSWER: 0"],
        ),
        ("+bufsize=512 wide.shop.svc.cluster.local".to_owned(), &["retrying in TCP mode", "ANSWER: 60"]),
        ("+noedns wide.shop.svc.cluster.local".to_owned(), &["retrying in TCP mode", "ANSWER: 60"]),
        ("none.shop.svc.cluster.local".to_owned(), &["status: NXDOMAIN", "SOA\tns.dns.cluster.local."]),
    ] {
        let told = dig(&arguments).await;
        assert!(expected.iter().all(|part| told.contains(part)), "{arguments}: {told}");
    }
}
