//! `etcdctl` on the face of etcd, command group by command group.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use futures::FutureExt as _;
use kplane::faces::{Face, Flags};
use kstore::{EtcdServer, MemoryStore};
use tokio::net::TcpListener;

use crate::support::{text, tool};

/// A face over an empty store, and where it is.
async fn face() -> SocketAddr {
    let server = EtcdServer::new(Arc::new(MemoryStore::new())).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    address
}

/// The program; none, after saying so, if it is not there.
fn etcdctl() -> Option<PathBuf> {
    tool("etcdctl", "KPLANE_ETCDCTL")
}

fn command(program: &Path, address: SocketAddr, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    // Without a scheme: etcdctl 3.4 makes it part of the authority of its calls otherwise, which HTTP/2 forbids.
    command.env("ETCDCTL_API", "3").arg("--endpoints").arg(address.to_string()).args(arguments);
    command
}

async fn run(program: &Path, address: SocketAddr, arguments: &[&str], input: &str) -> Output {
    let mut command = command(program, address, arguments);
    let input = input.to_owned();
    let running = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    running.await.unwrap()
}

/// What a command prints; it must end well.
async fn prints(program: &Path, address: SocketAddr, arguments: &[&str], input: &str) -> String {
    let output = run(program, address, arguments, input).await;
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_put_read_and_deleted() {
    let Some(program) = etcdctl() else { return };
    let address = face().await;
    let cases: &[(&[&str], &str, &str)] = &[
        (&["put", "a", "1"], "", "OK\n"),
        (&["put", "a", "2", "--prev-kv"], "", "OK\na\n1\n"),
        (&["put", "b", "3"], "", "OK\n"),
        (&["put", "c", "4"], "", "OK\n"),
        (&["get", "a"], "", "a\n2\n"),
        (&["get", "a", "--rev", "2"], "", "a\n1\n"),
        (&["get", "a", "c"], "", "a\n2\nb\n3\n"),
        (&["get", "--prefix", "", "--limit", "2", "--keys-only"], "", "a\n\nb\n\n"),
        (&["get", "--from-key", "b", "--print-value-only"], "", "3\n4\n"),
        (&["get", "--prefix", "", "--sort-by", "VALUE", "--order", "DESCEND"], "", "c\n4\nb\n3\na\n2\n"),
        (&["put", "a", "--ignore-value"], "", "OK\n"),
        (&["get", "a", "-w", "fields"], "", "\"Version\" : 3\n"),
        (
            &["txn", "-i"],
            "value(\"a\") = \"2\"\nver(\"none\") = \"0\"\n\nput a 5\nget a\ndel b\n\nget c\n\n",
            "SUCCESS\n\nOK\n\na\n5\n\n1\n",
        ),
        (&["txn", "-i"], "mod(\"a\") < \"2\"\n\nput a 6\n\nget c\n\n", "FAILURE\n\nc\n4\n"),
        (&["del", "a", "--prev-kv"], "", "1\na\n5\n"),
        (&["del", "--prefix", ""], "", "1\n"),
        (&["del", "--prefix", ""], "", "0\n"),
    ];
    for (arguments, input, wanted) in cases {
        let printed = prints(&program, address, arguments, input).await;
        assert!(printed.ends_with(wanted) || printed.contains(wanted), "{arguments:?}: {printed}");
    }
    let missing = run(&program, address, &["put", "none", "--ignore-value"], "").await;
    assert!(text(&missing.stderr).contains("etcdserver: key not found"), "{}", text(&missing.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_past_is_watched_and_compacted() {
    let Some(program) = etcdctl() else { return };
    let address = face().await;
    for value in ["1", "2", "3"] {
        prints(&program, address, &["put", "/w/a", value], "").await;
    }
    prints(&program, address, &["del", "/w/a"], "").await;
    let mut watch = command(&program, address, &["watch", "--prefix", "/w/", "--rev", "3", "--prev-kv"]);
    let mut watch = watch.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let out = watch.stdout.take().unwrap();
    let lines = tokio::task::spawn_blocking(move || {
        use std::io::BufRead as _;
        std::io::BufReader::new(out).lines().map_while(Result::ok).take(13).collect::<Vec<_>>()
    });
    let lines = lines.await.unwrap();
    watch.kill().unwrap();
    watch.wait().unwrap();
    let wanted = ["PUT", "/w/a", "1", "/w/a", "2", "PUT", "/w/a", "2", "/w/a", "3", "DELETE", "/w/a", "3"];
    assert_eq!(lines, wanted);

    assert_eq!(prints(&program, address, &["compaction", "4"], "").await, "compacted revision 4\n");
    for (arguments, words) in [
        (&["compaction", "4"][..], "required revision has been compacted"),
        (&["compaction", "400"], "required revision is a future revision"),
        (&["get", "/w/a", "--rev", "3"], "required revision has been compacted"),
        (&["get", "/w/a", "--rev", "400"], "required revision is a future revision"),
        (&["watch", "/w/a", "--rev", "2"], "required revision has been compacted"),
    ] {
        let refused = run(&program, address, arguments, "").await;
        let said = text(&refused.stderr) + &text(&refused.stdout);
        assert!(!refused.status.success() && said.contains(words), "{arguments:?}: {said}");
    }
    assert_eq!(prints(&program, address, &["get", "/w/a", "--rev", "4"], "").await, "/w/a\n3\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_take_their_keys_along() {
    let Some(program) = etcdctl() else { return };
    let address = face().await;
    let granted = prints(&program, address, &["lease", "grant", "600"], "").await;
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(600s)\n"));
    prints(&program, address, &["put", "leased", "1", "--lease", &id], "").await;
    assert!(prints(&program, address, &["lease", "list"], "").await.contains(&id));
    let alive = prints(&program, address, &["lease", "keep-alive", "--once", &id], "").await;
    assert_eq!(alive, format!("lease {id} keepalived with TTL(600)\n"));
    let left = prints(&program, address, &["lease", "timetolive", "--keys", &id], "").await;
    assert!(left.contains("granted with TTL(600s), remaining(") && left.contains("[leased]"), "{left}");
    prints(&program, address, &["lease", "revoke", &id], "").await;
    assert_eq!(prints(&program, address, &["get", "leased"], "").await, "");
    let gone = run(&program, address, &["put", "leased", "1", "--lease", &id], "").await;
    assert!(text(&gone.stderr).contains("requested lease not found"), "{}", text(&gone.stderr));
    // A lock is a lease, a transaction and a watch.
    assert_eq!(prints(&program, address, &["lock", "mutex", "echo", "held"], "").await, "held\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_member_is_maintained() {
    let Some(program) = etcdctl() else { return };
    let address = face().await;
    prints(&program, address, &["put", "a", "1"], "").await;
    let status = prints(&program, address, &["endpoint", "status"], "").await;
    assert!(status.contains(kstore::ETCD_VERSION) && status.contains("true"), "{status}");
    assert!(prints(&program, address, &["endpoint", "hashkv"], "").await.contains(&address.to_string()));
    assert!(run(&program, address, &["endpoint", "health"], "").await.status.success());
    assert!(prints(&program, address, &["member", "list"], "").await.contains("started, default"));
    assert_eq!(prints(&program, address, &["alarm", "list"], "").await, "");
    prints(&program, address, &["defrag"], "").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("snapshot.db");
    prints(&program, address, &["snapshot", "save", file.to_str().unwrap()], "").await;
    assert_eq!(
        std::fs::metadata(&file).unwrap().len() % 512,
        32,
        "its checksum is where etcd's tools look for it"
    );
    // What was saved is what a new member begins with, and what its folder holds when it is started again.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = Flags::parse([
        format!("--listen-client-urls=http://{port}"),
        format!("--data-dir={}", folder.path().join("data").display()),
        format!("--initial-snapshot={}", file.display()),
    ]);
    for written in ["1", "2"] {
        let flags = flags.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let serving = tokio::spawn(async move { Face::Etcd.run(&flags, stopped.map(drop)).await });
        assert_eq!(prints(&program, port, &["get", "a", "--print-value-only"], "").await.trim(), written);
        prints(&program, port, &["put", "a", "2"], "").await;
        drop(stop);
        serving.await.unwrap().unwrap();
    }
    let mut torn = std::fs::read(&file).unwrap();
    torn[40] ^= 1;
    let refused = kstore::EtcdServer::read_snapshot(&torn.into());
    assert!(matches!(refused, Err(kstore::RestoreError::Damaged { .. })), "{refused:?}");
    let refused = run(&program, address, &["user", "list"], "").await;
    assert!(text(&refused.stderr).contains("has no method Auth/UserList"), "{}", text(&refused.stderr));
}

/// A minute of writes at etcd's smallest load; what is measured is that they are all done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_perf_passes() {
    let Some(program) = etcdctl() else { return };
    let address = face().await;
    let output = run(&program, address, &["check", "perf", "--load", "s"], "").await;
    let printed = text(&output.stdout);
    assert!(printed.contains("PASS: Throughput is"), "{printed}{}", text(&output.stderr));
    assert_eq!(
        prints(&program, address, &["get", "--prefix", "/etcdctl-check-perf/", "--keys-only"], "").await,
        ""
    );
}

/// The program `etcd` under its own flags, with TLS and client certificates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_clients_with_a_certificate_are_served() {
    let Some(program) = etcdctl() else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(params, key);
    std::fs::write(at("ca.crt"), authority.pem()).unwrap();
    for name in ["server", "client"] {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let made = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(at(&format!("{name}.crt")), made.pem()).unwrap();
        std::fs::write(at(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let flags = Flags::parse([
        format!("--listen-client-urls=https://{port}"),
        format!("--cert-file={}", at("server.crt")),
        format!("--key-file={}", at("server.key")),
        format!("--trusted-ca-file={}", at("ca.crt")),
        "--client-cert-auth".to_owned(),
        "--name=one".to_owned(),
    ]);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(async move { Face::Etcd.run(&flags, stopped.map(drop)).await });
    let (ca, certificate, key) = (at("ca.crt"), at("client.crt"), at("client.key"));
    let known = ["--cacert", &ca, "--cert", &certificate, "--key", &key];
    // The client itself waits until the server is there.
    let put = [&known[..], &["put", "a", "1"]].concat();
    assert_eq!(prints(&program, port, &put, "").await, "OK\n");
    let members = [&known[..], &["member", "list"]].concat();
    assert!(prints(&program, port, &members, "").await.contains("started, one"));
    let unknown = run(&program, port, &["--cacert", &ca, "--command-timeout", "2s", "get", "a"], "").await;
    assert!(!unknown.status.success(), "{}", text(&unknown.stdout));
    drop(stop);
    serving.await.unwrap().unwrap();
}
