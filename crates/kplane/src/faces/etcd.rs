//! `etcd`: kstore's face of etcd under etcd's own flags.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use kstore::{DiskStore, EtcdServer, HistoryLimits, MemoryStore, Revision, Store, SyncPolicy};
use tokio::{net::TcpListener, sync::watch};

use super::{FaceError, Flags};
use crate::ca::{ClientCertificates, Credentials, from_pem};

/// The flags that `--help` lists, and what they do here.
pub(super) const FLAGS: &[(&str, &str)] = &[
    ("advertise-client-urls", "What clients are told of where the member is found."),
    ("auto-compaction-mode", "periodic or revision. Default periodic."),
    (
        "auto-compaction-retention",
        "How much of the past is kept: a time (1h, 5m), hours, or revisions. Default 0: all.",
    ),
    ("cert-file", "The serving certificate; with it https is served on https URLs."),
    ("client-cert-auth", "Clients must have a certificate of --trusted-ca-file."),
    ("data-dir", "Where keys are kept; without it, in memory."),
    (
        "initial-snapshot",
        "A file of `etcdctl snapshot save` that an empty store is filled with; kplane's own flag.",
    ),
    ("key-file", "The key of --cert-file."),
    ("listen-client-urls", "Where clients are served. Default http://localhost:2379."),
    ("listen-peer-urls", "Accepted; there are no peers."),
    ("max-request-bytes", "How large a request may be. Default 1572864."),
    ("max-txn-ops", "How many operations a transaction may have. Default 128."),
    ("name", "The member's name. Default default."),
    ("quota-backend-bytes", "How many bytes the live keys and values may have. Default 0: no quota."),
    ("trusted-ca-file", "Whose certificates clients may have."),
    ("unsafe-no-fsync", "Writes are not synced to the disk: the end of the machine may lose them."),
    (
        "watch-progress-notify-interval",
        "After how long a quiet watch is told where the store is. Default 10m.",
    ),
];

pub(super) async fn run(flags: &Flags, end: impl Future<Output = ()> + Send) -> Result<(), FaceError> {
    let server = server(flags).await?;
    let urls: Vec<&str> = flags.list("listen-client-urls").collect();
    let urls = if urls.is_empty() { vec!["http://localhost:2379"] } else { urls };
    let (stop, stopped) = watch::channel(());
    let mut serving = tokio::task::JoinSet::new();
    for url in urls {
        let (address, secure) = address(url)?;
        let tls = if secure { Some(Arc::new(tls(flags)?)) } else { None };
        let listener =
            TcpListener::bind(address).await.map_err(|source| FaceError::Listen { address, source })?;
        super::announce(&listener);
        let (server, mut stopped) = (server.clone(), stopped.clone());
        serving.spawn(async move {
            let end = async move { drop(stopped.changed().await) };
            match tls {
                Some(tls) => server.serve_tls(listener, tls, end).await,
                None => server.serve(listener, end).await,
            }
        });
    }
    end.await;
    drop(stop);
    while let Some(served) = serving.join_next().await {
        if let Ok(Err(error)) = served {
            tracing::error!(%error, "an address is no longer served");
        }
    }
    Ok(())
}

async fn server(flags: &Flags) -> Result<EtcdServer, FaceError> {
    let store = store(flags)?;
    if let Some(path) =
        flags.get("initial-snapshot").filter(|_| store.snapshot().revision() == Revision::ZERO)
    {
        let file = |source| FaceError::File { path: path.to_owned(), source };
        let snapshot = EtcdServer::read_snapshot(&std::fs::read(path).map_err(file)?.into())?;
        store.restore(snapshot).await?;
    }
    let urls = flags.list("advertise-client-urls").map(str::to_owned);
    let mut server = EtcdServer::builder(store).client_urls(urls).history(history(flags)?);
    if let Some(name) = flags.get("name") {
        server = server.name(name);
    }
    if let Some(max) = flags.read("max-txn-ops", "a number")? {
        server = server.txn_ops_max(max);
    }
    if let Some(max) = flags.read("max-request-bytes", "a number of bytes")? {
        server = server.request_bytes_max(max);
    }
    for flag in ["watch-progress-notify-interval", "experimental-watch-progress-notify-interval"] {
        if let Some(value) = flags.get(flag) {
            let wanted = "a time such as 10m or 5s";
            let fault = || FaceError::Flag { flag, value: value.to_owned(), wanted };
            server = server.progress_interval(duration(value).ok_or_else(fault)?);
        }
    }
    server.build().await.map_err(FaceError::Store)
}

/// On a disk where there is a folder for it.
fn store(flags: &Flags) -> Result<Arc<dyn Store>, FaceError> {
    let quota = flags.read("quota-backend-bytes", "a number of bytes")?.filter(|bytes| *bytes > 0);
    let quota = quota.unwrap_or(u64::MAX);
    let Some(folder) = flags.get("data-dir") else {
        return Ok(Arc::new(MemoryStore::builder().bytes_max(quota).build()));
    };
    let sync = match flags.get("unsafe-no-fsync") {
        Some("true") => SyncPolicy::Never,
        _ => SyncPolicy::EveryCommit,
    };
    let store = DiskStore::builder(folder).bytes_max(quota).sync(sync).open()?;
    tracing::info!(report = ?store.recovery(), "the store is open");
    Ok(Arc::new(store))
}

/// How much of the past is kept without being asked: everything, or what etcd's automatic compaction would leave.
fn history(flags: &Flags) -> Result<HistoryLimits, FaceError> {
    let flag = "auto-compaction-retention";
    let mut history = HistoryLimits { age_max: Duration::MAX, ..HistoryLimits::default() };
    let Some(value) = flags.get(flag).filter(|value| *value != "0") else { return Ok(history) };
    let fault = || FaceError::Flag {
        flag,
        value: value.to_owned(),
        wanted: "a time such as 5m, hours, or revisions",
    };
    let whole: Option<u64> = value.parse().ok();
    match flags.get("auto-compaction-mode").unwrap_or("periodic") {
        "revision" => {
            let revisions = whole.and_then(|number| usize::try_from(number).ok()).ok_or_else(fault)?;
            history.events_max = history.events_max.min(revisions);
        }
        "periodic" => {
            let hours = whole.map(|hours| Duration::from_secs(hours.saturating_mul(3600)));
            history.age_max = hours.or_else(|| duration(value)).ok_or_else(fault)?;
        }
        mode => {
            let (flag, wanted) = ("auto-compaction-mode", "periodic or revision");
            return Err(FaceError::Flag { flag, value: mode.to_owned(), wanted });
        }
    }
    Ok(history)
}

/// A time as Go's programs write it, in one unit or several: `10m`, `1h30m`, `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|letter: char| letter.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(total)
}

/// Where to listen, and whether with TLS.
fn address(url: &str) -> Result<(SocketAddr, bool), FaceError> {
    let fault = || FaceError::Flag {
        flag: "listen-client-urls",
        value: url.to_owned(),
        wanted: "a URL such as http://127.0.0.1:2379",
    };
    let (scheme, place) = url.split_once("://").ok_or_else(fault)?;
    let secure = match scheme {
        "http" => false,
        "https" => true,
        _ => return Err(fault()),
    };
    let place = place.trim_end_matches('/').replace("localhost", "127.0.0.1");
    Ok((place.parse().map_err(|_| fault())?, secure))
}

fn tls(flags: &Flags) -> Result<rustls::ServerConfig, FaceError> {
    let file = |flag: &'static str| {
        let missing = || FaceError::Flag { flag, value: String::new(), wanted: "a file, for an https URL" };
        flags.get(flag).ok_or_else(missing)
    };
    let (certificate, key) = (file("cert-file")?, file("key-file")?);
    let read = |path: &str| super::read(Path::new(path));
    let authority = flags.get("trusted-ca-file").map(read).transpose()?;
    let clients = match flags.get("client-cert-auth") {
        Some("true") => ClientCertificates::Required,
        _ => ClientCertificates::Optional,
    };
    let usual = Credentials { certificate_pem: read(certificate)?, key_pem: read(key)? };
    let config = from_pem(&usual, &[], authority.as_deref(), clients)?;
    config.ok_or_else(|| FaceError::Pem { path: certificate.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_go_writes_them() {
        let cases = [
            ("10m", Some(Duration::from_secs(600))),
            ("1h30m", Some(Duration::from_secs(5400))),
            ("1.5s", Some(Duration::from_millis(1500))),
            ("250ms", Some(Duration::from_millis(250))),
            ("5", None),
            ("", None),
            ("m", None),
            ("5 m", None),
        ];
        for (text, wanted) in cases {
            assert_eq!(duration(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn urls_say_where_and_whether_with_tls() {
        assert_eq!(
            address("http://localhost:2379").ok(),
            Some(([127, 0, 0, 1], 2379)).map(|at| (at.into(), false))
        );
        assert_eq!(
            address("https://127.0.0.1:0/").ok(),
            Some(([127, 0, 0, 1], 0)).map(|at| (at.into(), true))
        );
        assert!(address("unix:///x").is_err() && address("2379").is_err());
    }

    #[test]
    fn automatic_compaction_limits_the_past() {
        let of = |flags: &[&str]| history(&Flags::parse(flags.iter().copied()));
        assert!(of(&[]).is_ok_and(|history| history.age_max == Duration::MAX));
        let hour = of(&["--auto-compaction-retention=1"]);
        assert!(hour.is_ok_and(|history| history.age_max == Duration::from_secs(3600)));
        let few = of(&["--auto-compaction-mode=revision", "--auto-compaction-retention=1000"]);
        assert!(few.is_ok_and(|history| history.events_max == 1000));
        assert!(of(&["--auto-compaction-mode=never", "--auto-compaction-retention=1"]).is_err());
    }
}
