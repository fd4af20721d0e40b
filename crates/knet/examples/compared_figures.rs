//! Connections and requests by way of the proxies here, and of nginx and haproxy in the same run, where those are installed. Each
//! proxy is one process with one thread; so is the backend, and so are the clients.
//! `cargo run --release -p knet --features testing --example compared_figures` (`-- SECONDS`; 3 by default).
//!
//! With `-- modes`, what a connection costs by each mode of the service proxy, beside a direct one; it changes the network of the namespace that it
//! runs in (`unshare -n`), where nothing may be set up.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use knet::{
    Redirects, ServiceProxy, Transport,
    http_proxy::{
        Action, Backend, BackendProtocol, HostName, HttpProxy, Match, PathMatch, PortRoutes, ProxyOptions,
        RouteTable, Rule,
    },
    loopback::LoopbackBlock,
    proxy::{iptables::IptablesProxy, ipvs::IpvsProxy, nftables::NftablesProxy, userspace::UserspaceProxy},
    testing::{rule, table},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

const PORT: u16 = 8080;
const CLIENTS: usize = 32;
const BODY_BYTES: usize = 1024;
const REQUEST: &[u8] = b"GET /shop HTTP/1.1\r\nHost: shop.example\r\n\r\n";
const ATTEMPTS_MAX: usize = 200;
/// How many connections are made one after the other.
const CONNECTIONS: usize = 2000;

type Failure = Box<dyn std::error::Error>;

/// How clients use connections.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// One request after the other on each.
    Kept,
    /// A new one for each request.
    New,
}

/// A process that goes with its value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Its processor time, in seconds: the 14th and 15th field of `/proc/PID/stat`, in hundredths.
    fn processor_seconds(&self) -> Result<f64, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()))?;
        let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default().split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["backend", address] => return backend(address.parse()?).await,
        ["userspace", address, backend] => return userspace(address.parse()?, backend.parse()?).await,
        ["http", address, backend] => return http(address.parse()?, backend.parse()?).await,
        ["kernel", mode, address, backend] => {
            return kernel(mode, address.parse()?, backend.parse()?).await;
        }
        ["modes"] => return modes(Duration::from_secs(3)).await,
        _ => {}
    }
    let time = Duration::from_secs(arguments.first().and_then(|text| text.parse().ok()).unwrap_or(3));
    let block = LoopbackBlock::claim()?;
    let at = |offset: u32| SocketAddr::new(block.nth(offset), PORT);
    let dir = tempfile::tempdir()?;
    let _backend = own(&["backend", &at(1).to_string()])?;
    for load in [Load::Kept, Load::New] {
        let what =
            if load == Load::Kept { "requests on kept connections" } else { "connections with a request" };
        println!("{what}, a second and a CPU second of the proxy:");
        let direct = measure("no proxy", at(1), None, load, time).await?;
        let userspace = own(&["userspace", &at(2).to_string(), &at(1).to_string()])?;
        let userspace = measure("the userspace proxy", at(2), Some(&userspace), load, time).await?;
        if let Some(haproxy) = haproxy(dir.path(), at(3), at(1))? {
            let other = measure("haproxy, mode tcp", at(3), Some(&haproxy), load, time).await?;
            compare("userspace / haproxy", userspace, other);
        }
        let own = own(&["http", &at(4).to_string(), &at(1).to_string()])?;
        let own = measure("the HTTP proxy", at(4), Some(&own), load, time).await?;
        if let Some(nginx) = nginx(dir.path(), at(5), at(1))? {
            let other = measure("nginx", at(5), Some(&nginx), load, time).await?;
            compare("HTTP proxy / nginx", own, other);
        }
        println!("  of a direct connection: userspace {:.2}", userspace.0 / direct.0);
    }
    Ok(())
}

/// Each mode that the kernel has, one after the other.
async fn modes(time: Duration) -> Result<(), Failure> {
    // Ports of connections that are over can be used again at once: there are fewer than the connections made here.
    let setup = "ip link set lo up && ip addr add 192.0.2.1/24 dev lo && ip route add local 10.96.0.0/16 dev lo \
        && echo 0 >/proc/sys/net/ipv4/tcp_max_tw_buckets && echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range";
    if !Command::new("sh").args(["-c", setup]).status()?.success() {
        return Err("the network can't be set up: run it by `unshare -n`".into());
    }
    let endpoint = SocketAddr::from(([192, 0, 2, 1], PORT));
    let service = SocketAddr::from(([10, 96, 0, 9], PORT));
    let _backend = own(&["backend", &endpoint.to_string()])?;
    one_mode("no proxy", endpoint, None, time).await?;
    let (endpoint, address) = (endpoint.to_string(), service.to_string());
    let userspace = own(&["userspace", &address, &endpoint])?;
    one_mode("userspace", service, Some(&userspace), time).await?;
    drop(userspace);
    let has_ipvs = Path::new("/proc/net/ip_vs").exists();
    for mode in ["nftables", "iptables", "ipvs"].into_iter().filter(|mode| *mode != "ipvs" || has_ipvs) {
        let mut proxy = own(&["kernel", mode, &address, &endpoint])?;
        one_mode(mode, service, Some(&proxy), time).await?;
        // It takes its rules away when nobody tells it anything any more.
        drop(proxy.0.stdin.take());
        proxy.0.wait()?;
    }
    Ok(())
}

/// The time until a connection is there, and until it has brought an answer, in the middle and for all but one of a hundred; then
/// requests a second.
async fn one_mode(
    what: &str,
    address: SocketAddr,
    proxy: Option<&Process>,
    time: Duration,
) -> Result<(), Failure> {
    println!("{what}:");
    measure("requests on kept connections", address, proxy, Load::Kept, time).await?;
    measure("connections with a request", address, proxy, Load::New, time).await?;
    let length = first(address).await?;
    let (mut connected, mut answered) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; length];
    for _ in 0..CONNECTIONS {
        let began = Instant::now();
        let mut stream = TcpStream::connect(address).await?;
        connected.push(began.elapsed());
        stream.write_all(REQUEST).await?;
        stream.read_exact(&mut buffer).await?;
        answered.push(began.elapsed());
    }
    for (what, mut times) in [("connected", connected), ("answered", answered)] {
        times.sort();
        let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
        println!("  {what} after {:.0} us, p99 {:.0} us", at(50), at(99));
    }
    Ok(())
}

/// Has the kernel serve one Service until there is nothing more to read.
async fn kernel(mode: &str, address: SocketAddr, backend: SocketAddr) -> Result<(), Failure> {
    let rules = table(vec![rule(address, Transport::Tcp, &[backend])]);
    let (nftables, iptables, ipvs) =
        (NftablesProxy::default(), IptablesProxy::default(), IpvsProxy::default());
    let proxy: &dyn ServiceProxy = match mode {
        "nftables" => &nftables,
        "iptables" => &iptables,
        _ => &ipvs,
    };
    proxy.sync(&rules).await?;
    tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink())).await??;
    match mode {
        "nftables" => nftables.remove().await?,
        "iptables" => iptables.remove().await?,
        _ => ipvs.remove().await?,
    }
    Ok(())
}

fn compare(what: &str, own: (f64, f64), other: (f64, f64)) {
    println!("  {what}: {:.2} a second, {:.2} a CPU second", own.0 / other.0, own.1 / other.1);
}

/// This program in another role.
fn own(arguments: &[&str]) -> Result<Process, Failure> {
    Ok(Process(Command::new(std::env::current_exe()?).args(arguments).stdin(Stdio::piped()).spawn()?))
}

async fn backend(address: SocketAddr) -> Result<(), Failure> {
    let listener = TcpListener::bind(address).await?;
    let body = Bytes::from(vec![b'x'; BODY_BYTES]);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let body = body.clone();
        let answer = service_fn(move |_: Request<Incoming>| {
            let response = Response::new(Full::new(body.clone()));
            async move { Ok::<_, Infallible>(response) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

async fn userspace(address: SocketAddr, backend: SocketAddr) -> Result<(), Failure> {
    let proxy = UserspaceProxy::new(Redirects::default());
    proxy.sync(&table(vec![rule(address, Transport::Tcp, &[backend])])).await?;
    std::future::pending::<()>().await;
    Ok(())
}

async fn http(address: SocketAddr, backend: SocketAddr) -> Result<(), Failure> {
    let proxy = HttpProxy::new(ProxyOptions::default());
    let backend = Backend {
        name: "shop/web:80".into(),
        weight: 1,
        protocol: BackendProtocol::Http1,
        tls: None,
        endpoints: Some(Arc::from([backend])),
        filters: Vec::new(),
    };
    let mut routes = PortRoutes::default();
    let matches = Match::path(PathMatch::Prefix("/".into()));
    let rule = Rule::new("all", matches, Action::Forward(vec![backend]));
    routes.add(HostName::Any, HostName::ingress("shop.example"), Arc::new(rule));
    proxy.set_table(RouteTable { ports: [(80, routes)].into() });
    proxy.serve(80, TcpListener::bind(address).await?)?;
    std::future::pending::<()>().await;
    Ok(())
}

/// Starts another program; `None`, after saying so, when it is not there.
fn start(command: &mut Command) -> Result<Option<Process>, Failure> {
    match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
        Ok(child) => Ok(Some(Process(child))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("  {} is not installed", command.get_program().display());
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn haproxy(dir: &Path, address: SocketAddr, backend: SocketAddr) -> Result<Option<Process>, Failure> {
    let config = dir.join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\n  maxconn 4096\ndefaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  \
         timeout server 60s\nfrontend web\n  bind {address}\n  default_backend web\nbackend web\n  server a {backend}\n"
    );
    std::fs::write(&config, text)?;
    start(Command::new("haproxy").args(["-db", "-f"]).arg(config))
}

fn nginx(dir: &Path, address: SocketAddr, backend: SocketAddr) -> Result<Option<Process>, Failure> {
    let config = dir.join("nginx.conf");
    let place = dir.display();
    let text = format!(
        "daemon off; master_process off; pid {place}/nginx.pid; error_log /dev/null; events {{ worker_connections 4096; }}\n\
         http {{ access_log off; client_body_temp_path {place}/a; proxy_temp_path {place}/b; fastcgi_temp_path {place}/c;\n\
         uwsgi_temp_path {place}/d; scgi_temp_path {place}/e; keepalive_requests 1000000000;\n\
         upstream web {{ server {backend}; keepalive 64; keepalive_requests 1000000000; }}\n\
         server {{ listen {address}; server_name shop.example; location / {{ proxy_pass http://web; proxy_http_version 1.1;\n\
         proxy_set_header Connection \"\"; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr;\n\
         proxy_buffering off; }} }} }}\n"
    );
    std::fs::write(&config, text)?;
    start(Command::new("nginx").arg("-c").arg(config).arg("-p").arg(dir))
}

/// What clients get a second, and a second of the proxy's processor time.
async fn measure(
    what: &str,
    address: SocketAddr,
    proxy: Option<&Process>,
    load: Load,
    time: Duration,
) -> Result<(f64, f64), Failure> {
    let mut attempts = 0;
    let length = loop {
        // It is there when it answers, and the first answer says how long all are.
        match first(address).await {
            Ok(length) => break length,
            Err(error) if attempts > ATTEMPTS_MAX => return Err(format!("{what}: {error}").into()),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
        attempts += 1;
    };
    let used = || proxy.map_or(Ok(0.0), Process::processor_seconds);
    let (before, began) = (used()?, Instant::now());
    let clients: Vec<_> =
        (0..CLIENTS).map(|_| tokio::spawn(client(address, length, load, began + time))).collect();
    let mut answers = 0;
    for client in clients {
        answers += client.await?.map_err(|error| format!("{what}: {error}"))?;
    }
    let (took, used) = (began.elapsed().as_secs_f64(), used()? - before);
    let (rate, efficiency) = (f64::from(answers) / took, f64::from(answers) / used.max(0.01));
    match proxy {
        Some(_) => println!("  {what}: {rate:.0}; {efficiency:.0}"),
        None => println!("  {what}: {rate:.0}"),
    }
    Ok((rate, efficiency))
}

/// The length of an answer.
async fn first(address: SocketAddr) -> std::io::Result<usize> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(REQUEST).await?;
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some(head) = text.find("\r\n\r\n") {
            if !text.starts_with("HTTP/1.1 200") {
                return Err(std::io::Error::other(text.into_owned()));
            }
            return Ok(head + 4 + BODY_BYTES);
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

async fn client(address: SocketAddr, length: usize, load: Load, until: Instant) -> std::io::Result<u32> {
    let mut answers = 0;
    let mut buffer = vec![0; length];
    while Instant::now() < until {
        let mut stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        loop {
            stream.write_all(REQUEST).await?;
            stream.read_exact(&mut buffer).await?;
            answers += 1;
            if load == Load::New || Instant::now() >= until {
                break;
            }
        }
    }
    Ok(answers)
}
