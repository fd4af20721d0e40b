//! What the DNS server costs at 10,000 Services: an answer by itself, and answers over UDP, beside those of dnsmasq in the same run,
//! where that is installed. A quarter of the Services are headless with four endpoints.
//! `cargo run --release -p knet --features testing --example dns_figures` (`-- SECONDS`; 3 by default).

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::{SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{StreamExt as _, stream};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use http::{Request, Response};
use kcore::{
    Stored,
    local::{LocalEvent, LocalEvents},
};
use knet::{
    Redirects,
    dns::{DnsServer, InformerZone, Reaction, respond},
    loopback::LoopbackBlock,
};
use kreconcile::Informers;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::time::Instant;

const SERVICES: u32 = 10_000;
const HEADLESS_EACH: u32 = 4;
const DOMAIN: &str = "cluster.local";
const PORT: u16 = 5353;
/// How many questions are on their way at a time, on each of so many sockets.
const WINDOW: usize = 32;
const SOCKETS: usize = 2;
const ROUNDS: u32 = 20_000;

type Failure = Box<dyn std::error::Error>;

fn is_headless(index: u32) -> bool {
    index.is_multiple_of(HEADLESS_EACH)
}

fn objects() -> BTreeMap<&'static str, Vec<Value>> {
    let (mut services, mut slices) = (Vec::new(), Vec::new());
    for index in 0..SERVICES {
        let [_, a, b, c] = index.to_be_bytes();
        let name = format!("web-{index}");
        let ip = if is_headless(index) { "None".to_owned() } else { format!("10.{}.{b}.{c}", 96 + a) };
        services.push(json!({"metadata": {"name": name, "namespace": "shop"},
            "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": 80}]}}));
        let endpoints = (0..4).map(|host| json!({"addresses": [format!("10.{}.{b}.{c}", 128 + host)]}));
        slices.push(json!({"metadata": {"name": format!("{name}-1"), "namespace": "shop",
            "labels": {"kubernetes.io/service-name": name}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints.collect::<Vec<_>>()}));
    }
    let namespaces = vec![json!({"metadata": {"name": "shop"}})];
    [("services", services), ("endpointslices", slices), ("namespaces", namespaces)].into()
}

/// An API server that has these objects, and nothing new.
fn informers() -> Informers {
    let objects = Arc::new(objects());
    let service = tower::service_fn(move |request: Request<Body>| {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let mut batch = Vec::new();
        for object in objects.get(plural.as_str()).into_iter().flatten() {
            let mut object = object.clone();
            object["metadata"]["uid"] = object["metadata"]["name"].clone();
            object["metadata"]["resourceVersion"] = "1".into();
            batch.extend(Stored::from_value(object).map(|stored| LocalEvent::Added(Arc::new(stored))));
        }
        batch.push(LocalEvent::Bookmark { revision: 1, initial_events_end: true });
        let mut response = Response::new(Body::empty());
        let events = stream::iter([batch]).chain(stream::pending());
        response.extensions_mut().insert(LocalEvents::new(events));
        async move { Ok::<_, Infallible>(response) }
    });
    Informers::new(Client::new(service, "default"))
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [what, address] = &arguments[..]
        && what == "serve"
    {
        return serve(address.parse()?).await;
    }
    let seconds = arguments.first().and_then(|seconds| seconds.parse().ok()).unwrap_or(3);
    alone().await?;
    let block = LoopbackBlock::claim()?;
    let own = SocketAddr::new(block.nth(1), PORT);
    let mut child = Command::new(std::env::current_exe()?).args(["serve", &own.to_string()]).spawn()?;
    let own = loaded("this server", own, &child, seconds).await;
    child.kill()?;
    child.wait()?;
    let own = own?;
    let other = SocketAddr::new(block.nth(2), PORT);
    let Some(mut child) = dnsmasq(other)? else {
        println!("dnsmasq: not installed");
        return Ok(());
    };
    let other = loaded("dnsmasq", other, &child, seconds).await;
    child.kill()?;
    child.wait()?;
    let other = other?;
    println!("of dnsmasq's: {:.2} answers a second, {:.2} a CPU second", own.0 / other.0, own.1 / other.1);
    Ok(())
}

async fn serve(address: SocketAddr) -> Result<(), Failure> {
    let informers = informers();
    let zone = Arc::new(InformerZone::new(&informers));
    zone.synced().await;
    let _server = DnsServer::start(address, DOMAIN, zone, Vec::new(), &Redirects::default()).await?;
    std::future::pending::<()>().await;
    Ok(())
}

fn question(id: u16, name: &str, wanted: RecordType) -> Result<Vec<u8>, Failure> {
    let mut question = Message::query();
    question.metadata.id = id;
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name)?, wanted));
    Ok(question.to_vec()?)
}

/// The answers without sockets: from bytes to bytes.
async fn alone() -> Result<(), Failure> {
    let informers = informers();
    let began = Instant::now();
    let zone = InformerZone::new(&informers);
    zone.synced().await;
    println!("{SERVICES} services are known after {:.0} ms", began.elapsed().as_secs_f64() * 1e3);
    for (what, name, wanted) in [
        ("A of a cluster IP", "web-4711.shop.svc.cluster.local.", RecordType::A),
        ("A of a headless service of 4", "web-4712.shop.svc.cluster.local.", RecordType::A),
        ("SRV of the same", "_http._tcp.web-4712.shop.svc.cluster.local.", RecordType::SRV),
        ("PTR", "103.18.96.10.in-addr.arpa.", RecordType::PTR),
        ("a name of the search path that is not there", "example.com.shop.svc.cluster.local.", RecordType::A),
    ] {
        let bytes = question(1, name, wanted)?;
        let (began, mut length) = (Instant::now(), 0);
        for _ in 0..ROUNDS {
            let Reaction::Reply(reply, _) = respond(&bytes, DOMAIN, &zone) else {
                return Err(format!("{name} is not answered here").into());
            };
            length = reply.to_vec()?.len();
        }
        let micros = began.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS);
        println!("{what}: {micros:.2} us ({length} bytes)");
    }
    Ok(())
}

/// dnsmasq with the same names; `None` when it is not there.
fn dnsmasq(address: SocketAddr) -> Result<Option<Child>, Failure> {
    let dir = tempfile::tempdir()?.keep();
    let mut hosts = String::new();
    for index in 0..SERVICES {
        let [_, a, b, c] = index.to_be_bytes();
        let name = format!("web-{index}.shop.svc.{DOMAIN}");
        if is_headless(index) {
            (0..4).for_each(|host| hosts.push_str(&format!("10.{}.{b}.{c} {name}\n", 128 + host)));
        } else {
            hosts.push_str(&format!("10.{}.{b}.{c} {name}\n", 96 + a));
        }
    }
    let path = dir.join("hosts");
    std::fs::write(&path, hosts)?;
    let mut command = Command::new("dnsmasq");
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
    ]);
    command.arg(format!("--listen-address={}", address.ip())).arg(format!("--port={}", address.port()));
    command.arg(format!("--addn-hosts={}", path.display())).arg(format!("--local=/{DOMAIN}/"));
    command.args(["--user=root", "--pid-file", "--local-ttl=5"]).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        Ok(child) => Ok(Some(child)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Answers a second, and a second of the server's processor time.
async fn loaded(
    what: &str,
    address: SocketAddr,
    server: &Child,
    seconds: u64,
) -> Result<(f64, f64), Failure> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = [0; 2048];
    // It is there when it answers.
    let first = question(1, "web-4711.shop.svc.cluster.local.", RecordType::A)?;
    for attempt in 0.. {
        let _ = socket.send(&first);
        if let Ok(length) = socket.recv(&mut buffer)
            && Message::from_vec(&buffer[..length])?.answers.len() == 1
        {
            break;
        }
        if attempt > 300 {
            return Err(format!("{what} does not answer").into());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (going, answers) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
    let before = processor_seconds(server)?;
    let began = Instant::now();
    let clients: Vec<_> = (0..SOCKETS)
        .map(|number| {
            let (going, answers) = (Arc::clone(&going), Arc::clone(&answers));
            std::thread::spawn(move || ask(address, number, &going, &answers))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    going.store(false, Ordering::Relaxed);
    for client in clients {
        client.join().map_err(|_| "a client panicked")??;
    }
    let (took, used) = (began.elapsed().as_secs_f64(), processor_seconds(server)? - before);
    let answers = u32::try_from(answers.load(Ordering::Relaxed))?;
    let (rate, efficiency) = (f64::from(answers) / took, f64::from(answers) / used.max(0.01));
    println!("{what}: {rate:.0} answers a second, {efficiency:.0} a CPU second ({used:.2} s)");
    Ok((rate, efficiency))
}

/// Keeps a window of questions on their way, each about another Service.
fn ask(address: SocketAddr, number: usize, going: &AtomicBool, answers: &AtomicU64) -> Result<(), String> {
    let told = |error: &dyn std::fmt::Display| error.to_string();
    let socket = UdpSocket::bind("127.0.0.1:0").map_err(|error| told(&error))?;
    socket.connect(address).map_err(|error| told(&error))?;
    socket.set_read_timeout(Some(Duration::from_millis(100))).map_err(|error| told(&error))?;
    let step = u32::try_from(number).unwrap_or(0) * 1237;
    let mut questions = Vec::new();
    for index in 0..SERVICES {
        let name = format!("web-{}.shop.svc.{DOMAIN}.", (index * 7 + step) % SERVICES);
        questions.push(question(1, &name, RecordType::A).map_err(|error| told(&error))?);
    }
    let mut questions = questions.iter().cycle();
    let mut buffer = [0; 2048];
    let mut send = |count: usize| {
        for question in questions.by_ref().take(count) {
            // What does not fit is lost, as on any network.
            let _ = socket.send(question);
        }
    };
    send(WINDOW);
    while going.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(_) => {
                answers.fetch_add(1, Ordering::Relaxed);
                send(1);
            }
            // Some were lost: begin anew.
            Err(_) => send(WINDOW),
        }
    }
    Ok(())
}

/// The processor time of a process, in seconds: the 14th and 15th field of `/proc/PID/stat`, in hundredths.
fn processor_seconds(child: &Child) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / 100.0)
}
