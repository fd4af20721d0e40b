//! `kube-apiserver`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kapi::{
    ApiServer, ServiceAddresses,
    audit::FLUSH_MAX,
    authn::{
        ServiceAccountIssuer, StaticTokens, UserInfo,
        jwt::{SigningKey, VerifyingKey},
    },
    authz::AuthorizationMode,
    node::{KubeletDialer, KubeletOptions, ServingAuthority},
};
use kcore::SystemClock;
use kstore::{EtcdStore, EtcdTls, Store};
use tokio::{net::TcpListener, sync::watch};

use super::{
    FaceError, Flags,
    access::{self, Beside, CERTIFICATE_INTERVAL},
    read,
};
use crate::{
    ca::{Ca, ClientCertificates, Credentials, from_pem},
    certificates::Named,
    serve::{self, Tasks},
};

/// How long etcd is waited for at the start, and after how long it is asked again.
const ETCD_TIME_MAX: Duration = Duration::from_secs(60);
const ETCD_RETRY: Duration = Duration::from_millis(200);

/// The flags that `--help` lists, and what they do here.
pub(super) const FLAGS: &[(&str, &str)] = &[
    ("allow-privileged", "Accepted; privileged containers are always allowed."),
    ("anonymous-auth", "Whether callers without credentials are system:anonymous. Default true."),
    ("api-audiences", "What tokens of service accounts must be for. Default: the issuers."),
    (
        "authorization-mode",
        "How it is decided who may do what: Node, RBAC and AlwaysAllow, in their order; others are passed over. Default Node,RBAC.",
    ),
    ("bind-address", "The address to serve on. Default 0.0.0.0."),
    ("cert-dir", "The folder with apiserver.crt and apiserver.key; both are made if they are missing."),
    (
        "client-ca-file",
        "Who signs client certificates: the common name is the user, organizations are groups.",
    ),
    ("disable-admission-plugins", "Admission steps to leave out."),
    ("enable-admission-plugins", "Accepted; all steps that there are, are on."),
    ("enable-bootstrap-token-auth", "Whether tokens are believed by which nodes join. Default false."),
    ("etcd-cafile", "Whose certificates the etcd servers have."),
    ("etcd-certfile", "The certificate for etcd."),
    ("etcd-keyfile", "The key of --etcd-certfile."),
    ("etcd-prefix", "Under which keys of etcd objects are kept. Default /registry."),
    ("etcd-servers", "Where objects are kept; without it, in memory."),
    (
        "kubelet-certificate-authority",
        "Whose serving certificates of nodes are believed; none: any is. Default: those of --client-ca-file.",
    ),
    ("kubelet-client-certificate", "The certificate that nodes know the server by."),
    ("kubelet-client-key", "The key of --kubelet-client-certificate."),
    (
        "kubelet-preferred-address-types",
        "Which of a node's addresses is taken. Default Hostname,InternalDNS,InternalIP,ExternalDNS,ExternalIP.",
    ),
    ("secure-port", "The port to serve TLS on. Default 6443."),
    ("service-account-issuer", "Who tokens of service accounts say they are of; more than one are believed."),
    (
        "service-account-key-file",
        "Public keys, certificates or private keys that such tokens are checked with.",
    ),
    ("service-account-signing-key-file", "The private key that they are signed with. Default: a new one."),
    ("service-cluster-ip-range", "Where cluster IPs come from. Default 10.0.0.0/24."),
    ("service-node-port-range", "Where node ports come from. Default 30000-32767."),
    ("tls-cert-file", "The serving certificate, instead of that in --cert-dir."),
    ("tls-private-key-file", "Its key."),
    (
        "tls-sni-cert-key",
        "A certificate for callers that ask for certain names: certificate,key or certificate,key:name,name. May be repeated.",
    ),
    ("token-auth-file", "A CSV file of bearer tokens: token,user,uid,\"group,group\"."),
];

pub(super) async fn run(flags: &Flags, end: impl Future<Output = ()> + Send) -> Result<(), FaceError> {
    let address = address(flags)?;
    let (server, beside) = server(flags).await?;
    server.bootstrap().await.map_err(FaceError::Bootstrap)?;
    let (config, configs) = watch::channel(Arc::new(tls(flags, address.ip())?));
    let listener =
        TcpListener::bind(address).await.map_err(|source| FaceError::Listen { address, source })?;
    super::announce(&listener);
    let tasks = Tasks::default();
    tasks.spawn(serve::listen(server.clone(), listener, configs, tasks.clone()));
    let (files, ip) = (flags.clone(), address.ip());
    tasks.spawn(async move { serve::renew(&config, CERTIFICATE_INTERVAL, || tls(&files, ip)).await });
    if let Some((encryption, path)) = beside.follow {
        tasks.spawn(async move { encryption.follow(path).await });
    }
    end.await;
    tasks.stop.cancel();
    tasks.tracker.close();
    tasks.tracker.wait().await;
    if tokio::time::timeout(FLUSH_MAX, server.flush_audit()).await.is_err() {
        tracing::error!("the audit's sink did not take all events in time");
    }
    Ok(())
}

fn address(flags: &Flags) -> Result<SocketAddr, FaceError> {
    let ip = flags.read("bind-address", "an IP address")?.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let port = flags.read("secure-port", "a port")?.unwrap_or(6443);
    Ok(SocketAddr::new(ip, port))
}

async fn server(flags: &Flags) -> Result<(ApiServer, Beside), FaceError> {
    let anonymous = flags.read("anonymous-auth", "true or false")?.unwrap_or(true);
    let mut builder = ApiServer::builder().anonymous(anonymous).service_addresses(service_addresses(flags)?);
    let known: Vec<String> = kapi::admission::defaults().iter().map(|step| step.name().to_owned()).collect();
    for name in flags.list("disable-admission-plugins").filter(|name| known.iter().any(|known| known == name))
    {
        builder = builder.without_admission(name);
    }
    let modes = flags.list("authorization-mode").filter_map(|mode| match mode {
        "Node" => Some(AuthorizationMode::Node),
        "RBAC" => Some(AuthorizationMode::Rbac),
        "AlwaysAllow" => Some(AuthorizationMode::AlwaysAllow),
        _ => None,
    });
    let modes: Vec<AuthorizationMode> = modes.collect();
    if !modes.is_empty() {
        builder = builder.authorization(modes);
    }
    builder = builder.service_accounts(issuer(flags)?);
    let bootstrap = flags.read("enable-bootstrap-token-auth", "true or false")?.unwrap_or(false);
    builder = builder.bootstrap_tokens(bootstrap);
    if let Some(store) = etcd(flags).await? {
        builder = builder.store(store);
    }
    if let Some(path) = flags.get("token-auth-file") {
        builder = builder.authenticator(Arc::new(tokens(&read(path)?)));
    }
    builder = builder.nodes(Arc::new(kubelets(flags)?));
    let (builder, beside) = access::apply(flags, builder)?;
    Ok((builder.build()?, beside))
}

/// The way to the nodes, by upstream's flags, and its defaults but for one: upstream looks at no certificate of a node unless it
/// is told whose to believe.
fn kubelets(flags: &Flags) -> Result<KubeletDialer, FaceError> {
    let identity = match (flags.get("kubelet-client-certificate"), flags.get("kubelet-client-key")) {
        (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
        (None, None) => None,
        (found, _) => {
            let flag = if found.is_some() { "kubelet-client-key" } else { "kubelet-client-certificate" };
            let wanted = "there beside the other of the pair";
            return Err(FaceError::Flag { flag, value: String::new(), wanted });
        }
    };
    let mut types: Vec<String> = flags.list("kubelet-preferred-address-types").map(str::to_owned).collect();
    if types.is_empty() {
        types =
            ["Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP"].map(str::to_owned).into();
    }
    let authority = flags.get("kubelet-certificate-authority").or_else(|| flags.get("client-ca-file"));
    let authority = match authority {
        None => ServingAuthority::Nobody,
        Some("none") => ServingAuthority::Unchecked,
        Some(path) => ServingAuthority::Pem(read(path)?),
    };
    Ok(KubeletDialer::new(KubeletOptions {
        identity,
        authority,
        address_types: types,
        // A server for this machine alone has its nodes here, too.
        loopback: address(flags)?.ip().is_loopback(),
    })?)
}

/// The store over the etcd that was given.
async fn etcd(flags: &Flags) -> Result<Option<Arc<dyn Store>>, FaceError> {
    let servers: Vec<String> = flags.list("etcd-servers").map(str::to_owned).collect();
    if servers.is_empty() {
        return Ok(None);
    }
    let mut builder = EtcdStore::builder(servers).prefix(flags.get("etcd-prefix").unwrap_or("/registry"));
    if let Some(authority) = flags.get("etcd-cafile") {
        let identity = match (flags.get("etcd-certfile"), flags.get("etcd-keyfile")) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            (None, None) => None,
            (found, _) => {
                let flag = if found.is_some() { "etcd-keyfile" } else { "etcd-certfile" };
                return Err(FaceError::Flag {
                    flag,
                    value: String::new(),
                    wanted: "there beside the other of the pair",
                });
            }
        };
        builder =
            builder.tls(EtcdTls { ca_pem: read(authority)?, identity_pem: identity, server_name: None });
    }
    let without = flags.get("etcd-cafile").is_none();
    if without
        && let Some(flag) =
            ["etcd-certfile", "etcd-keyfile"].into_iter().find(|flag| flags.get(flag).is_some())
    {
        let value = flags.get(flag).unwrap_or_default().to_owned();
        return Err(FaceError::Flag { flag, value, wanted: "of use without --etcd-cafile" });
    }
    let until = tokio::time::Instant::now() + ETCD_TIME_MAX;
    loop {
        match builder.clone().connect().await {
            Ok(store) => return Ok(Some(Arc::new(store))),
            Err(error) if tokio::time::Instant::now() >= until => return Err(FaceError::Etcd(error)),
            Err(error) => tracing::info!(%error, "etcd is not there yet"),
        }
        tokio::time::sleep(ETCD_RETRY).await;
    }
}

/// Who makes the tokens of service accounts.
fn issuer(flags: &Flags) -> Result<ServiceAccountIssuer, FaceError> {
    let mut issuer = match flags.get("service-account-signing-key-file") {
        Some(path) => {
            let key = SigningKey::of_pem(read(path)?.as_bytes());
            ServiceAccountIssuer::new(key.map_err(|_| FaceError::Pem { path: path.to_owned() })?)
        }
        None => ServiceAccountIssuer::generate().map_err(kapi::BuildError::from)?,
    };
    for path in flags.list("service-account-key-file") {
        let keys = VerifyingKey::all_of_pem(read(path)?.as_bytes());
        issuer = issuer.also_verify(keys.map_err(|_| FaceError::Pem { path: path.to_owned() })?);
    }
    for name in flags.list("service-account-issuer") {
        issuer = issuer.issuer(name);
    }
    for audience in flags.list("api-audiences") {
        issuer = issuer.audience(audience);
    }
    Ok(issuer)
}

fn service_addresses(flags: &Flags) -> Result<ServiceAddresses, FaceError> {
    let mut addresses =
        ServiceAddresses { network: Ipv4Addr::new(10, 0, 0, 0), prefix: 24, ..ServiceAddresses::default() };
    if let Some(range) = flags.get("service-cluster-ip-range") {
        // The first of a dual-stack pair counts.
        let first = range.split(',').next().unwrap_or_default();
        let parsed = first.split_once('/').and_then(|(network, prefix)| {
            Some((network.parse().ok()?, prefix.parse().ok().filter(|prefix| *prefix <= 30)?))
        });
        (addresses.network, addresses.prefix) = parsed.ok_or_else(|| FaceError::Flag {
            flag: "service-cluster-ip-range",
            value: range.to_owned(),
            wanted: "an IPv4 network of at least four addresses",
        })?;
    }
    if let Some(range) = flags.get("service-node-port-range") {
        let parsed = range.split_once('-').and_then(|(low, high)| {
            let (low, high) = (low.parse().ok()?, high.parse().ok()?);
            (low <= high && low > 0).then_some(low..=high)
        });
        addresses.node_ports = parsed.ok_or_else(|| FaceError::Flag {
            flag: "service-node-port-range",
            value: range.to_owned(),
            wanted: "a range of ports such as 30000-32767",
        })?;
    }
    Ok(addresses)
}

/// Tokens as upstream's file has them: token, user, uid and optionally groups in quotes.
fn tokens(text: &str) -> StaticTokens {
    text.lines().fold(StaticTokens::new(), |tokens, line| {
        let (head, groups) = line.split_once('"').unwrap_or((line, ""));
        let mut parts = head.split(',').map(str::trim);
        let (Some(token), Some(name)) = (parts.next().filter(|token| !token.is_empty()), parts.next()) else {
            return tokens;
        };
        let uid = parts.next().unwrap_or_default().to_owned();
        let plain = parts.next().unwrap_or_default();
        let groups = if groups.is_empty() { plain } else { groups.trim_end_matches(['"', ' ']) };
        let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty());
        tokens.with(token, UserInfo { uid, ..UserInfo::new(name, groups) })
    })
}

fn write(path: &Path, text: &str) -> Result<(), FaceError> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, text));
    made.map_err(|source| FaceError::File { path: path.display().to_string(), source })
}

fn tls(flags: &Flags, address: IpAddr) -> Result<rustls::ServerConfig, FaceError> {
    let folder = PathBuf::from(flags.get("cert-dir").unwrap_or("/var/run/kubernetes"));
    let certificate = flags.get("tls-cert-file").map_or_else(|| folder.join("apiserver.crt"), PathBuf::from);
    let key = flags.get("tls-private-key-file").map_or_else(|| folder.join("apiserver.key"), PathBuf::from);
    if flags.get("tls-cert-file").is_none() && !certificate.exists() {
        let ca = Ca::new(Arc::new(SystemClock))?;
        let made = ca.server(
            &["localhost", "kubernetes", "kubernetes.default"],
            &[address, Ipv4Addr::LOCALHOST.into()],
        )?;
        write(&certificate, &(made.certificate_pem + ca.certificate_pem()))?;
        write(&key, &made.key_pem)?;
    }
    let authority = flags.get("client-ca-file").map(read).transpose()?;
    let pem = |path: &Path| FaceError::Pem { path: path.display().to_string() };
    let usual = Credentials { certificate_pem: read(&certificate)?, key_pem: read(&key)? };
    let config = from_pem(&usual, &named(flags)?, authority.as_deref(), ClientCertificates::Optional)?;
    config.ok_or_else(|| pem(&certificate))
}

/// The certificates for certain names: `certificate,key`, then `:name,name` unless the names are those of the certificate.
fn named(flags: &Flags) -> Result<Vec<Named>, FaceError> {
    const FLAG: &str = "tls-sni-cert-key";
    let read_one = |value: &str| {
        let (files, names) = value.split_once(':').unwrap_or((value, ""));
        let wanted = "certificate,key or certificate,key:name,name";
        let fault = || FaceError::Flag { flag: FLAG, value: value.to_owned(), wanted };
        let (certificate, key) =
            files.split_once(',').filter(|(_, key)| !key.contains(',')).ok_or_else(fault)?;
        let credentials = Credentials { certificate_pem: read(certificate)?, key_pem: read(key)? };
        let names = names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Ok(Named { names, credentials })
    };
    flags.all(FLAG).map(read_one).collect()
}
