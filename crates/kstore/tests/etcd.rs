//! What is spoken with etcd: the engine over the face, and over a real etcd.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use kstore::{
    CommitError, EtcdServer, EtcdStore, EtcdTls, Event, MemoryStore, Op, Store, TableSpec, Txn, Watch,
    WatchError, WatchRequest, testing,
};
use tokio::net::TcpListener;
use tokio_rustls::rustls;

/// A face over a store in memory, for as long as the runtime lives.
async fn serve(store: Arc<dyn Store>) -> SocketAddr {
    // The suite writes more in one transaction than etcd lets its clients by default.
    let server = EtcdServer::builder(store)
        .txn_ops_max(kstore::TXN_OPS_MAX)
        .request_bytes_max(64 << 20)
        .build()
        .await
        .unwrap_or_else(|error| panic!("the face is made: {error}"));
    let listener =
        TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|error| panic!("a port is there: {error}"));
    let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    address
}

async fn connect(endpoints: Vec<String>, prefix: &str) -> Arc<dyn Store> {
    let store = EtcdStore::builder(endpoints).prefix(prefix).connect().await;
    Arc::new(store.unwrap_or_else(|error| panic!("the store connects: {error:?}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_over_the_face_keeps_what_stores_promise() {
    testing::replica_conformance(|| async {
        let address = serve(Arc::new(MemoryStore::new())).await;
        connect(vec![format!("http://{address}")], "/registry").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_over_a_real_etcd_keeps_what_stores_promise() {
    let Some(etcd) = testing::RealEtcd::start(1) else { return };
    let (endpoints, number) = (etcd.endpoints(), AtomicU32::new(0));
    testing::replica_conformance(|| {
        let prefix = format!("/{}", number.fetch_add(1, Ordering::Relaxed));
        let endpoints = endpoints.clone();
        async move { connect(endpoints, &prefix).await }
    })
    .await;
}

/// Leases take real time there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_over_the_face_keeps_what_leases_promise() {
    testing::replica_lease_conformance(|| async {
        let address = serve(Arc::new(MemoryStore::new())).await;
        connect(vec![format!("http://{address}")], "/registry").await
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engine_over_a_real_etcd_keeps_what_leases_promise() {
    let Some(etcd) = testing::RealEtcd::start(1) else { return };
    let (endpoints, number) = (etcd.endpoints(), AtomicU32::new(0));
    testing::replica_lease_conformance(|| {
        let prefix = format!("/{}", number.fetch_add(1, Ordering::Relaxed));
        let endpoints = endpoints.clone();
        async move { connect(endpoints, &prefix).await }
    })
    .await;
}

/// Two stores over one etcd: each sees what the other commits, in order and once, and a barrier covers it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_over_one_etcd_see_each_other() {
    let Some(etcd) = testing::RealEtcd::start(1) else { return };
    see_each_other(etcd.endpoints()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_over_one_face_see_each_other() {
    let address = serve(Arc::new(MemoryStore::new())).await;
    see_each_other(vec![format!("http://{address}")]).await;
}

async fn see_each_other(endpoints: Vec<String>) {
    let (one, other) = (connect(endpoints.clone(), "/k").await, connect(endpoints, "/k").await);
    let open = |store: &Arc<dyn Store>| {
        store.open_table(TableSpec::new("t")).unwrap_or_else(|error| panic!("{error}"))
    };
    let (here, there) = (open(&one), open(&other));
    let mut watch = testing::checked_watch(&other, WatchRequest::new(there, other.snapshot().revision()))
        .unwrap_or_else(|error| panic!("{error}"));
    let mut expected = Vec::new();
    for number in 0..200 {
        let txn = Txn::create(here, format!("k{number:03}"), "");
        expected.push(one.commit(txn).await.unwrap_or_else(|error| panic!("{error}")).revision);
        if number % 50 == 0 {
            other.barrier().await.unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(
                other.snapshot().len(there),
                number + 1,
                "a barrier covers what was answered elsewhere"
            );
            let again = other.commit(Txn::create(there, format!("k{number:03}"), "")).await;
            assert!(matches!(again, Err(CommitError::Conflict { .. })), "{again:?}");
        }
    }
    let mut seen = Vec::new();
    while seen.len() < expected.len() {
        let batch = watch.next().await.unwrap_or_else(|error| panic!("{error}"));
        seen.extend(batch.events.iter().map(|event| event.revision));
    }
    assert_eq!(seen, expected);
}

/// What the database has forgotten is loaded anew, and watches are told that they missed something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_off_replica_begins_anew_after_compaction() {
    let memory = Arc::new(MemoryStore::new());
    let server = EtcdServer::new(memory.clone()).await.unwrap_or_else(|error| panic!("{error}"));
    let listen = |address: SocketAddr| async move {
        TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{error}"))
    };
    let first = listen(([127, 0, 0, 1], 0).into()).await;
    let address = first.local_addr().unwrap_or_else(|error| panic!("{error}"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = {
        let server = server.clone();
        tokio::spawn(async move { server.serve(first, async { drop(stopped.await) }).await })
    };
    let store = connect(vec![format!("http://{address}")], "/k").await;
    let table = store.open_table(TableSpec::new("t")).unwrap_or_else(|error| panic!("{error}"));
    let known = store.commit(Txn::create(table, "a", "1")).await.unwrap_or_else(|error| panic!("{error}"));
    let mut watch = testing::checked_watch(&store, WatchRequest::new(table, known.revision))
        .unwrap_or_else(|error| panic!("{error}"));
    drop(stop);
    serving.await.unwrap_or_else(|error| panic!("{error}")).unwrap_or_else(|error| panic!("{error}"));
    assert!(store.barrier().await.is_err(), "nobody answers");
    assert_eq!(store.snapshot().len(table), 1, "what is known can be read");

    // Behind its back the key changes, and what happened is forgotten.
    let keys = memory.open_table(TableSpec::new("keys")).unwrap_or_else(|error| panic!("{error}"));
    let put = |key: &'static str, value: &'static str| Txn::new().op(Op::put(keys, key, value));
    for txn in [put("/k/t/a", "2"), put("/k/t/b", "3"), put("/k/u/c", "4")] {
        memory.commit(txn).await.unwrap_or_else(|error| panic!("{error}"));
    }
    let now = memory.snapshot().revision();
    memory.compact(now).await.unwrap_or_else(|error| panic!("{error}"));
    let again = listen(address).await;
    tokio::spawn(async move { server.serve(again, std::future::pending()).await });

    let lost = watch.next().await;
    assert!(matches!(lost, Err(WatchError::Compacted { floor }) if floor == now), "{lost:?}");
    let snapshot = store.snapshot();
    assert_eq!((snapshot.revision(), snapshot.len(table)), (now, 2));
    let entry = snapshot.get(table, b"a").unwrap_or_else(|| panic!("the key is there"));
    assert_eq!((&entry.value()[..], entry.version(), entry.create()), (&b"2"[..], 2, known.revision));
    let other = store.open_table(TableSpec::new("u")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(store.snapshot().len(other), 1, "a table that came meanwhile");
    snapshot.verify().unwrap_or_else(|error| panic!("{error}"));
    store.commit(Txn::create(table, "c", "5")).await.unwrap_or_else(|error| panic!("{error}"));
}

/// Of three members one is killed: every commit that was acknowledged is seen by the stores at the others, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_loses_nothing() {
    const COMMITS: usize = 300;
    let Some(mut etcd) = testing::RealEtcd::start(3) else { return };
    let endpoints = etcd.endpoints();
    // Each store asks a member of its own first.
    let turned = |by: usize| endpoints.iter().cycle().skip(by).take(3).cloned().collect::<Vec<_>>();
    let (one, two, three) =
        (connect(turned(0), "/k").await, connect(turned(1), "/k").await, connect(turned(2), "/k").await);
    let open = |store: &Arc<dyn Store>| {
        store.open_table(TableSpec::new("t")).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut watches: Vec<Watch> = [&one, &two, &three]
        .map(|store| {
            let request = WatchRequest::new(open(store), store.snapshot().revision());
            testing::checked_watch(store, request).unwrap_or_else(|error| panic!("{error}"))
        })
        .into();
    let table = open(&one);
    let mut acknowledged = Vec::new();
    for number in 0..COMMITS {
        if number == COMMITS / 3 {
            etcd.kill(0);
        }
        let key = format!("k{number:04}");
        loop {
            match one.commit(Txn::create(table, key.clone(), "")).await {
                Ok(done) => acknowledged.push((key.clone(), done.revision)),
                // It was done, and the answer was lost.
                Err(CommitError::Conflict { current: Some(entry), .. }) => {
                    acknowledged.push((key.clone(), entry.create()));
                }
                Err(CommitError::UnknownOutcome | CommitError::Store(_)) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(error) => panic!("{error}"),
            }
            break;
        }
    }
    for watch in &mut watches {
        let mut seen = Vec::new();
        while seen.len() < COMMITS {
            let batch = watch.next().await.unwrap_or_else(|error| panic!("{error}"));
            let key = |event: &Event| String::from_utf8_lossy(event.entry.key()).into_owned();
            seen.extend(batch.events.iter().map(|event| (key(event), event.revision)));
        }
        assert_eq!(seen, acknowledged);
    }
}

/// TLS with a certificate on both ends; who has none, or believes somebody else, is turned away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_certificates_on_both_ends() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    let identity = || {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        (params.signed_by(&key, &issuer).unwrap(), key)
    };
    let (certificate, key) = identity();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der().clone()).unwrap();
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients.build().unwrap())
        .with_single_cert(vec![certificate.der().clone()], key.serialize_der().try_into().unwrap())
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let server = EtcdServer::new(Arc::new(MemoryStore::new())).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { server.serve_tls(listener, Arc::new(tls), std::future::pending()).await });

    let (certificate, key) = identity();
    let known = EtcdTls {
        ca_pem: authority.pem(),
        identity_pem: Some((certificate.pem(), key.serialize_pem())),
        server_name: None,
    };
    let store = EtcdStore::builder([&endpoint]).tls(known.clone()).connect().await.unwrap();
    let table = store.open_table(TableSpec::new("t")).unwrap();
    store.commit(Txn::create(table, "a", "1")).await.unwrap();
    let unknown = EtcdTls { identity_pem: None, ..known.clone() };
    assert!(EtcdStore::builder([&endpoint]).tls(unknown).connect().await.is_err());
    let elsewhere = EtcdTls { ca_pem: certificate.pem(), ..known };
    assert!(EtcdStore::builder([&endpoint]).tls(elsewhere).connect().await.is_err());
}

/// A cluster that wants a name and a password: they are asked for once, and again when the token has run out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_is_given_where_one_is_wanted() {
    let Some(etcd) = testing::RealEtcd::start(1) else { return };
    let endpoint = etcd.endpoints().remove(0);
    let program = std::env::var("KPLANE_ETCDCTL").unwrap_or_else(|_| "etcdctl".to_owned());
    let etcdctl = |arguments: &[&str]| {
        let run = std::process::Command::new(&program)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", endpoint.trim_start_matches("http://")])
            .args(arguments)
            .output();
        run.is_ok_and(|output| output.status.success())
    };
    if std::process::Command::new(&program).arg("version").output().is_err() {
        assert!(std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"), "etcdctl is needed");
        println!("skipped: needs etcdctl");
        return;
    }
    assert!(etcdctl(&["user", "add", "root:secret"]));
    // Older programs make the role when authentication is turned on, newer ones want it before.
    etcdctl(&["role", "add", "root"]);
    assert!(etcdctl(&["user", "grant-role", "root", "root"]));
    assert!(etcdctl(&["auth", "enable"]));
    let store = EtcdStore::builder([&endpoint]).user("root", "secret").connect().await.unwrap();
    let table = store.open_table(TableSpec::new("t")).unwrap();
    let created = store.commit(Txn::create(table, "a", "1")).await.unwrap();
    // The token is void once users have changed.
    assert!(etcdctl(&["--user", "root:secret", "user", "add", "other:secret"]));
    store.commit(Txn::update(table, "a", created.revision, "2")).await.unwrap();
    assert!(EtcdStore::builder([&endpoint]).user("root", "wrong").connect().await.is_err());
    assert!(EtcdStore::builder([&endpoint]).connect().await.is_err());
}

/// Passes connections on, and cuts each after some bytes: what was asked may have been done, and the answer is lost.
async fn cutting_proxy(upstream: SocketAddr, cuts: Arc<AtomicU32>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap_or_else(|error| panic!("{error}"));
    let address = listener.local_addr().unwrap_or_else(|error| panic!("{error}"));
    tokio::spawn(async move {
        let mut random = testing::Random::new(11);
        while let Ok((client, _)) = listener.accept().await {
            let budget = 2_000 + random.below(30_000);
            let cuts = cuts.clone();
            tokio::spawn(async move {
                let Ok(server) = tokio::net::TcpStream::connect(upstream).await else { return };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::select! {
                    _ = pass(from_client, to_server, u64::MAX) => {}
                    passed = pass(from_server, to_client, budget) => {
                        cuts.fetch_add(u32::from(passed), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    address
}

/// Passes so many bytes on; whether that was the reason to end.
async fn pass(
    from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    budget: u64,
) -> bool {
    use tokio::io::AsyncReadExt as _;
    tokio::io::copy(&mut from.take(budget), &mut to).await.is_ok_and(|passed| passed == budget)
}

/// What two stores show of one key while their connections break, with answers lost and late, has an order.
async fn histories_hold_while_connections_break(upstream: SocketAddr, prefix: &str) {
    use testing::linear::{Recorder, is_linearizable};
    let cuts = Arc::new(AtomicU32::new(0));
    let proxy = format!("http://{}", cutting_proxy(upstream, cuts.clone()).await);
    let stores = [connect(vec![proxy.clone()], prefix).await, connect(vec![proxy], prefix).await];
    for round in 0..6_u64 {
        let recorder = Arc::new(Recorder::default());
        let clients: Vec<_> = (0..4_usize)
            .map(|client| {
                let (store, recorder) = (stores[client % 2].clone(), recorder.clone());
                tokio::spawn(swaps_and_reads(store, recorder, round, client as u64))
            })
            .collect();
        for client in clients {
            client.await.unwrap_or_else(|error| panic!("{error}"));
        }
        let history = recorder.operations();
        assert!(is_linearizable(&history), "not linearizable: {history:#?}");
    }
    assert!(cuts.load(Ordering::Relaxed) > 0, "no connection was cut");
}

async fn swaps_and_reads(
    store: Arc<dyn Store>,
    recorder: Arc<testing::linear::Recorder>,
    round: u64,
    client: u64,
) {
    use testing::linear::{Answer, Request};
    let table = store.open_table(TableSpec::new("t")).unwrap_or_else(|error| panic!("{error}"));
    let key = format!("k{round}");
    let value = |entry: Option<Arc<kstore::Entry>>| {
        let text = entry.map(|entry| String::from_utf8_lossy(entry.value()).into_owned())?;
        text.parse::<u64>().ok()
    };
    let mut random = testing::Random::new(round * 100 + client);
    for step in 0..25 {
        let asked = recorder.ask();
        // A read that has to be the newest; without an answer it says nothing.
        if store.barrier().await.is_err() {
            continue;
        }
        let entry = store.snapshot().get(table, key.as_bytes());
        let found = value(entry.clone());
        if random.happens(300) {
            recorder.answer(asked, Request::Read, Answer::Is(found));
            continue;
        }
        let (asked, new) = (recorder.ask(), client * 1_000 + step);
        let txn = match &entry {
            None => Txn::create(table, key.clone(), new.to_string()),
            Some(entry) => Txn::update(table, key.clone(), entry.modified(), new.to_string()),
        };
        let answer = match store.commit(txn).await {
            Ok(_) => Answer::Done,
            Err(CommitError::Conflict { current, .. }) => Answer::Is(value(current)),
            Err(CommitError::UnknownOutcome | CommitError::Store(_)) => Answer::Unknown,
            Err(error) => panic!("{error}"),
        };
        recorder.answer(asked, Request::Swap(found, Some(new)), answer);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_over_the_face_hold_while_connections_break() {
    let plan = testing::FaultPlan {
        seed: 5,
        delay_max: std::time::Duration::from_millis(1),
        conflicts_per_mille: 20,
        ..testing::FaultPlan::default()
    };
    let upstream = serve(Arc::new(testing::FaultyStore::new(MemoryStore::new(), plan))).await;
    histories_hold_while_connections_break(upstream, "/faulty").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_over_a_real_etcd_hold_while_connections_break() {
    let Some(etcd) = testing::RealEtcd::start(1) else { return };
    let upstream = etcd.endpoints()[0].trim_start_matches("http://").parse();
    let upstream = upstream.unwrap_or_else(|error| panic!("{error}"));
    histories_hold_while_connections_break(upstream, "/cut").await;
}
