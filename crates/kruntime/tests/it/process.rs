use std::{net::IpAddr, sync::Arc, time::Duration};

use kcore::TokioClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kruntime::{
    ContainerRuntime, PodUid,
    runtime::{
        ContainerConfig, ContainerPhase, ExecRequest, ImageMount, LogOptions, Mount, Propagation,
        process::{ProcessOptions, ProcessRuntime},
    },
    testing::{self, sandbox, wait_for},
};
use tokio::io::AsyncReadExt;

/// A runtime with addresses of its own; the lock ends with it.
struct Subject {
    runtime: Arc<ProcessRuntime>,
    dir: tempfile::TempDir,
    _block: LoopbackBlock,
}

fn subject(change: impl FnOnce(&mut ProcessOptions)) -> Subject {
    let dir = tempfile::tempdir().unwrap();
    let block = LoopbackBlock::claim().unwrap();
    let addresses: AddressRange = block.pods()[0].parse().unwrap();
    let mut options = ProcessOptions::new(dir.path(), Arc::new(addresses), Arc::new(TokioClock::new()));
    change(&mut options);
    let runtime = Arc::new(ProcessRuntime::new(options).unwrap());
    Subject { runtime, dir, _block: block }
}

fn shell(name: &str, script: &str) -> ContainerConfig {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    ContainerConfig { name: name.into(), command, ..ContainerConfig::default() }
}

async fn exec(runtime: &ProcessRuntime, pod: &PodUid, name: &str, request: ExecRequest) -> (String, i32) {
    let mut session = runtime.exec(pod, name, request).await.unwrap();
    drop(session.stdin.take());
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    (text, session.exit.await.unwrap())
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecRequest::default() }
}

#[tokio::test]
async fn keeps_the_suites_promises() {
    testing::check_runtime(subject(|_| {}).runtime).await;
}

/// Processes have no images that they could read.
#[tokio::test]
async fn refuses_image_volumes() {
    let subject = subject(|_| {});
    let uid = PodUid::from("images");
    subject.runtime.run_pod(&uid, &sandbox("images")).await.unwrap();
    let image = ImageMount { image: "i".to_owned(), target: "/i".into(), sub_path: String::new() };
    let config = ContainerConfig { images: vec![image], ..shell("c", "true") };
    let error = subject.runtime.start(&uid, &config).await.unwrap_err();
    assert_eq!(error.waiting_reason(), "CreateContainerError");
    assert_eq!(error.to_string(), "the runtime does not support image volumes: processes have no images");
}

#[tokio::test]
async fn takes_pods_of_its_handlers() {
    let subject = subject(|options| options.handlers = vec!["special".to_owned()]);
    testing::check_handlers(subject.runtime, "special").await;
}

#[tokio::test]
async fn keeps_them_without_help_from_the_kernel() {
    let subject = subject(|options| {
        options.mount = false;
        options.rewrite = false;
    });
    testing::check_runtime(subject.runtime).await;
}

/// Three servers that all listen on 0.0.0.0:8080 run side by side, each at its pod's address, and find themselves at
/// localhost.
#[tokio::test]
async fn unmodified_servers_run_side_by_side() {
    let subject = subject(|_| {});
    if !subject.runtime.rewrites() {
        eprintln!("not allowed here: {:?}", subject.runtime.info().limitations);
        return;
    }
    let mut pods: Vec<(PodUid, IpAddr)> = Vec::new();
    for number in 0..3 {
        let uid = PodUid::from(format!("web-{number}").as_str());
        let address = subject.runtime.run_pod(&uid, &sandbox(uid.as_str())).await.unwrap()[0];
        let script = "mkdir -p /tmp/www-$HOSTNAME && cd /tmp/www-$HOSTNAME && echo $HOSTNAME > index.html && \
            exec python3 -u -m http.server 8080";
        let mut config = shell("web", script);
        config.env.push(("HOSTNAME".to_owned(), uid.to_string()));
        subject.runtime.start(&uid, &config).await.unwrap();
        pods.push((uid, address));
    }
    for (uid, address) in &pods {
        let options = LogOptions { follow: true, limit_bytes: Some(7), ..LogOptions::default() };
        let mut log = subject.runtime.logs(uid, "web", options).await.unwrap();
        let said = futures::StreamExt::next(&mut log).await;
        assert_eq!(said.unwrap().unwrap(), "Serving", "the server of {uid} listens");
        let url = format!("http://{address}:8080/");
        let output = tokio::process::Command::new("curl")
            .args(["-sS", "--noproxy", "*", &url])
            .output()
            .await
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{uid}\n"), "{output:?}");
        let inside = sh("curl -sS --noproxy '*' http://localhost:8080/");
        assert_eq!(exec(&subject.runtime, uid, "web", inside).await, (format!("{uid}\n"), 0));
    }
    for (uid, _) in pods {
        subject.runtime.remove_pod(&uid).await.unwrap();
        let _ = std::fs::remove_dir_all(format!("/tmp/www-{uid}"));
    }
}

/// Nothing on the machine is changed by a mount path that the machine doesn't have.
#[tokio::test]
async fn volumes_are_where_the_pod_wants_them() {
    let subject = subject(|_| {});
    if !subject.runtime.mounts() {
        eprintln!("not allowed here: {:?}", subject.runtime.info().limitations);
        return;
    }
    let volume = subject.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("file"), "text").unwrap();
    let uid = PodUid::from("volumes");
    let mut pod = sandbox("volumes");
    pod.resolv_conf = Some("nameserver 127.9.9.9\n".to_owned());
    subject.runtime.run_pod(&uid, &pod).await.unwrap();
    let mount = |source: &std::path::Path, target: &str, read_only| Mount {
        source: source.to_owned(),
        target: target.into(),
        read_only,
        propagation: Propagation::None,
    };
    let mut config = shell("main", "echo bye > /dev/termination-log; while :; do sleep 0.05; done");
    config.termination_message_path = Some("/dev/termination-log".into());
    config.mounts = vec![
        mount(&volume, "/var/run/secrets/kubernetes.io/serviceaccount", true),
        mount(&volume, "/no-such-directory/deep", false),
        mount(&volume.join("file"), "/etc/no-such-app.conf", true),
    ];
    subject.runtime.start(&uid, &config).await.unwrap();
    wait_for(&*subject.runtime, &uid, "main", |c| {
        assert!(matches!(c.phase, ContainerPhase::Running { .. }), "{c:?}");
        true
    })
    .await;
    let script = "cat /var/run/secrets/kubernetes.io/serviceaccount/file /no-such-directory/deep/file \
        /etc/no-such-app.conf /etc/resolv.conf; hostname; grep volumes /etc/hosts | cut -f2; echo new > \
        /no-such-directory/deep/new; touch /var/run/secrets/kubernetes.io/serviceaccount/x || echo read-only; \
        test -e /etc/passwd && test -c /dev/null && echo ok > /dev/null && echo machine";
    let (text, code) = exec(&subject.runtime, &uid, "main", sh(script)).await;
    let expected = "texttexttextnameserver 127.9.9.9\nvolumes\nvolumes\nread-only\nmachine\n";
    assert_eq!((text.as_str(), code), (expected, 0));
    assert_eq!(std::fs::read_to_string(volume.join("new")).unwrap(), "new\n");
    assert!(!std::path::Path::new("/no-such-directory").exists());
    assert!(!std::path::Path::new("/etc/no-such-app.conf").exists());
    subject.runtime.stop(&uid, "main", Duration::ZERO).await.unwrap();
    let ended = wait_for(&*subject.runtime, &uid, "main", |_| true).await;
    let ContainerPhase::Exited(exit) = ended.phase else { panic!("it has ended") };
    assert_eq!((exit.code, exit.message.as_deref()), (137, Some("bye\n")));
}

/// What left the container's session is ended with the container, and everything is ended with the runtime.
#[tokio::test]
async fn nothing_is_left_behind() {
    let subject = subject(|_| {});
    let uid = PodUid::from("tree");
    subject.runtime.run_pod(&uid, &sandbox("tree")).await.unwrap();
    let script = "setsid sleep 3600 & sleep 3600 & echo $! ; exec sleep 3600";
    subject.runtime.start(&uid, &shell("main", script)).await.unwrap();
    let options = LogOptions { follow: true, limit_bytes: Some(1), ..LogOptions::default() };
    let mut log = subject.runtime.logs(&uid, "main", options).await.unwrap();
    futures::StreamExt::next(&mut log).await;
    let mark = subject.runtime.observe(&uid).containers[0].id.clone();
    assert!(marked(&mark) >= 2);
    drop(log);
    drop(subject.runtime);
    assert_eq!(marked(&mark), 0);
}

/// The processes that carry the mark and have not ended.
fn marked(mark: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let environs = entries.filter_map(|entry| std::fs::read(entry.path().join("environ")).ok());
    environs.filter(|environ| String::from_utf8_lossy(environ).contains(mark)).count()
}

#[tokio::test]
async fn a_terminal_is_a_terminal() {
    let subject = subject(|_| {});
    let uid = PodUid::from("tty");
    subject.runtime.run_pod(&uid, &sandbox("tty")).await.unwrap();
    subject.runtime.start(&uid, &testing::container("long", 0)).await.unwrap();
    let request = ExecRequest { tty: true, stdin: true, ..sh("test -t 0 && stty size; exit 7") };
    let mut session = subject.runtime.exec(&uid, "long", request).await.unwrap();
    assert!(session.stderr.is_none());
    session.resize.as_ref().unwrap()(132, 43);
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(session.exit.await.unwrap(), 7);
    assert!(text.contains("43 132") || text.contains("0 0"), "{text:?}");
}

/// A server that listens on port 80 without the privilege for it is found there by others, and by itself.
#[tokio::test]
async fn low_ports_work_without_privileges() {
    let redirects = knet::Redirects::default();
    let shared = redirects.clone();
    let subject = subject(move |options| options.redirects = shared);
    if !subject.runtime.rewrites() {
        eprintln!("not allowed here: {:?}", subject.runtime.info().limitations);
        return;
    }
    let uid = PodUid::from("low");
    let address = subject.runtime.run_pod(&uid, &sandbox("low")).await.unwrap()[0];
    let script = "exec python3 -u -m http.server --directory /proc/self/fdinfo 80";
    subject.runtime.start(&uid, &shell("web", script)).await.unwrap();
    let options = LogOptions { follow: true, limit_bytes: Some(7), ..LogOptions::default() };
    let mut log = subject.runtime.logs(&uid, "web", options).await.unwrap();
    let said = futures::StreamExt::next(&mut log).await;
    assert_eq!(said.unwrap().unwrap(), "Serving");
    let target = subject.runtime.dial_address(std::net::SocketAddr::new(address, 80));
    assert!(tokio::net::TcpStream::connect(target).await.is_ok());
    let inside = sh(&format!("curl -sS -o /dev/null -w '%{{http_code}}' --noproxy '*' http://{address}/"));
    assert_eq!(exec(&subject.runtime, &uid, "web", inside).await, ("200".to_owned(), 0));
    subject.runtime.remove_pod(&uid).await.unwrap();
    let free = std::net::SocketAddr::new(address, 80);
    assert_eq!(redirects.resolve(knet::Transport::Tcp, free), free);
}

/// Set in the process that [`nothing_leaks`] has to itself.
const ALONE: &str = "KPLANE_TEST_ALONE";

/// A hundred containers come and go: no process, descriptor or address is left. Descriptors are counted for a whole
/// process, and other tests open some of their own, so it runs in one of its own.
#[test]
fn nothing_leaks() {
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        return runtime.block_on(come_and_go());
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["process::nothing_leaks", "--exact", "--nocapture", "--test-threads=1"]).env(ALONE, "1");
    let output = command.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

async fn come_and_go() {
    let subject = subject(|_| {});
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let round = async |round: u32| {
        let uid = PodUid::from(format!("leak-{round}").as_str());
        subject.runtime.run_pod(&uid, &sandbox("leak")).await.unwrap();
        subject.runtime.start(&uid, &testing::container("short", 0)).await.unwrap();
        wait_for(&*subject.runtime, &uid, "short", |c| matches!(c.phase, ContainerPhase::Exited(_))).await;
        subject.runtime.remove_pod(&uid).await.unwrap();
    };
    round(0).await;
    let before = descriptors();
    for number in 1..100 {
        round(number).await;
    }
    // A few may still be on their way out of the event loop.
    let mut left = descriptors();
    for _ in 0..1000 {
        if left <= before {
            break;
        }
        tokio::task::yield_now().await;
        left = descriptors();
    }
    assert!(left <= before, "{left} descriptors, {before} before");
    assert!(subject.runtime.pods().is_empty());
}
