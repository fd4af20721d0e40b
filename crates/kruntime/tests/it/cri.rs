//! Containers by a real containerd, which the test starts with everything of its own, and images that have nothing but busybox.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use kcore::TokioClock;
use kruntime::{
    ContainerRuntime, PodUid,
    managers::CpuSet,
    runtime::{
        ContainerConfig, ContainerPhase, ExecRequest, Exit, ImagePresence, LogOptions, Mount, Propagation,
        Resources, SandboxConfig, Security,
        cri::{CriOptions, CriRuntime},
    },
    testing::{
        self,
        images::{BUSYBOX, write_busybox},
        sandbox, wait_for,
    },
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    images::needs,
    oci::{bound_cpus, memory_limits, two_sets},
};

const PAUSE: &str = "example.test/pause:1";
const PLUGINS: &str = "/usr/lib/cni";
/// How long containerd may take to answer first.
const STARTUP_MAX: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(100);

/// A containerd of its own, which ends with the test.
struct Server {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            let _ = std::fs::remove_dir(controller.path().join(&cgroup_parent()[1..]));
        }
        // Roots of containers that a failed test has left.
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let own = self.dir.path().to_string_lossy().into_owned();
        let mut points: Vec<_> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        points.retain(|point| point.starts_with(&own));
        for point in points.into_iter().rev() {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn cgroup_parent() -> String {
    format!("/kruntime-cri-{}", std::process::id())
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{dir}/containerd.sock"
[ttrpc]
  address = "{dir}/containerd.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{PLUGINS}"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"#
    )
}

/// Pods get addresses of a range that no other network has, over devices that go with them.
fn network(dir: &Path) -> Value {
    json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": false, "ipam": {
        "type": "host-local", "dataDir": dir.join("addresses"),
        "ranges": [[{"subnet": "100.115.92.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]})
}

/// Loads an image into containerd, under its whole name.
fn import(dir: &Path, name: &str, run: &Value) {
    let layout = dir.join("layout");
    write_busybox(&layout, name, run).unwrap();
    let index = layout.join("index.json");
    let mut content: Value = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
    content["manifests"][0]["annotations"]["io.containerd.image.name"] = json!(name);
    std::fs::write(&index, content.to_string()).unwrap();
    let archive = dir.join("image.tar");
    let made = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg(".").status().unwrap();
    assert!(made.success());
    let socket = dir.join("containerd.sock");
    let imported = Command::new("ctr")
        .args(["--address", socket.to_str().unwrap(), "--namespace", "k8s.io", "images", "import"])
        .args(["--snapshotter", "native"])
        .arg(&archive)
        .output()
        .unwrap();
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));
    std::fs::remove_dir_all(&layout).unwrap();
}

async fn server() -> Option<Server> {
    let is_there = |path: &str| {
        Path::new(path).exists() || {
            needs(path);
            false
        }
    };
    if !rustix::process::geteuid().is_root() {
        needs("root");
        return None;
    }
    if !["/usr/bin/containerd", "/usr/bin/ctr", PLUGINS, BUSYBOX].into_iter().all(is_there) {
        return None;
    }
    let dir = tempfile::Builder::new().prefix("kruntime-cri-").tempdir().unwrap();
    std::fs::create_dir(dir.path().join("cni")).unwrap();
    std::fs::write(dir.path().join("cni/10-pods.conflist"), network(dir.path()).to_string()).unwrap();
    let config = dir.path().join("config.toml");
    std::fs::write(&config, configuration(dir.path())).unwrap();
    let log = std::fs::File::create(dir.path().join("containerd.log")).unwrap();
    let child = Command::new("/usr/bin/containerd")
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let server = Server { child, dir };
    let answers = async {
        while connect(&server).await.is_err() {
            tokio::time::sleep(ASK_EVERY).await;
        }
    };
    if tokio::time::timeout(STARTUP_MAX, answers).await.is_err() {
        let log = std::fs::read_to_string(server.dir.path().join("containerd.log")).unwrap_or_default();
        panic!("containerd doesn't answer:\n{log}");
    }
    import(server.dir.path(), PAUSE, &json!({"Entrypoint": ["/bin/sleep", "1000000"]}));
    import(
        server.dir.path(),
        "docker.io/library/test:latest",
        &json!({"Cmd": ["sh"], "Env": ["FROM=image"]}),
    );
    Some(server)
}

fn options(server: &Server) -> CriOptions {
    let dir: PathBuf = server.dir.path().into();
    let mut options =
        CriOptions::new(dir.join("containerd.sock"), dir.join("kplane"), Arc::new(TokioClock::new()));
    options.cgroup_parent = cgroup_parent();
    options
}

async fn connect(server: &Server) -> std::io::Result<CriRuntime> {
    CriRuntime::connect(options(server)).await
}

fn shell(name: &str, script: &str) -> ContainerConfig {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    ContainerConfig { name: name.into(), image: "test".to_owned(), command, ..ContainerConfig::default() }
}

fn exit(phase: &ContainerPhase) -> Option<Exit> {
    match phase {
        ContainerPhase::Exited(exit) => Some(exit.clone()),
        ContainerPhase::Running { .. } => None,
    }
}

async fn log(runtime: &CriRuntime, pod: &PodUid, name: &str) -> String {
    let stream = runtime.logs(pod, name, LogOptions::default()).await.unwrap();
    let pieces: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
    String::from_utf8_lossy(&pieces.concat()).into_owned()
}

async fn run(runtime: &CriRuntime, pod: &PodUid, config: &ContainerConfig) -> (String, Exit) {
    runtime.start(pod, config).await.unwrap();
    let ended = wait_for(runtime, pod, &config.name, |c| exit(&c.phase).is_some()).await;
    (log(runtime, pod, &config.name).await, exit(&ended.phase).unwrap())
}

#[tokio::test]
async fn keeps_the_suites_promises_on_containerd() {
    let Some(server) = server().await else { return };
    testing::check_runtime(Arc::new(connect(&server).await.unwrap())).await;
    let has = |_: &PodUid, _: &str, wanted: &Resources| {
        let limits = memory_limits(&cgroup_parent()[1..], "");
        limits.iter().any(|limit| Some(*limit) == wanted.memory_bytes_max)
    };
    testing::check_resize(Arc::new(connect(&server).await.unwrap()), has).await;
    let has = |_: &PodUid, _: &str, cpus: &CpuSet| {
        bound_cpus(&cgroup_parent()[1..], "").contains(&cpus.to_string())
    };
    testing::check_cpus(Arc::new(connect(&server).await.unwrap()), two_sets(), has).await;
    containers_are_as_their_pods_say(&server).await;
    streams_carry_both_ways(&server).await;
    a_second_life_finds_what_the_first_had(&server).await;
    images_are_the_servers(&server).await;
}

/// What a container finds, by what its pod says. Expected results are those of Kubernetes' documentation.
async fn containers_are_as_their_pods_say(server: &Server) {
    let runtime = connect(server).await.unwrap();
    assert!(runtime.info().version.starts_with("containerd://"), "{:?}", runtime.info());
    assert_eq!(runtime.info().limitations, Vec::<String>::new());
    let pod = PodUid::from("says");
    let config = SandboxConfig {
        hostname: "front".to_owned(),
        fqdn: Some("front.web.default.svc.cluster.local".to_owned()),
        host_aliases: vec![("10.1.2.3".to_owned(), vec!["a".to_owned(), "b".to_owned()])],
        resolv_conf: Some("search x.svc\nnameserver 10.0.0.10\noptions ndots:5\n".to_owned()),
        ..sandbox("says")
    };
    let addresses = runtime.run_pod(&pod, &config).await.unwrap();
    let own = addresses[0];
    let hosts = format!("{own}\tfront.web.default.svc.cluster.local\tfront\n10.1.2.3\ta\tb\n");
    let script = |script: &str| shell(&format!("c{}", script.len()), script);
    let cases: Vec<(ContainerConfig, String)> = vec![
        (script("hostname; tail -n 2 /etc/hosts"), format!("front\n{hosts}")),
        (script("cat /etc/resolv.conf"), "search x.svc\nnameserver 10.0.0.10\noptions ndots:5\n".to_owned()),
        (
            ContainerConfig {
                env: vec![("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2".to_owned())],
                working_dir: Some("/tmp".into()),
                ..script("echo $A $FROM; pwd")
            },
            "2 image\n/tmp\n".to_owned(),
        ),
        (
            ContainerConfig {
                run_as_user: Some(1000),
                run_as_group: Some(1000),
                security: Security {
                    read_only_root: true,
                    no_new_privileges: true,
                    drop_capabilities: vec!["ALL".to_owned()],
                    supplemental_groups: vec![3000],
                    ..Security::default()
                },
                ..script(
                    "id -u; id -G; touch /x 2>/dev/null || echo read-only; grep CapEff /proc/self/status",
                )
            },
            "1000\n1000 2000 3000\nread-only\nCapEff:\t0000000000000000\n".to_owned(),
        ),
    ];
    for (config, expected) in cases {
        let (found, ended) = run(&runtime, &pod, &config).await;
        assert_eq!((found, ended.code), (expected, 0), "{config:?}");
    }
    let volume = server.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    let mounted = ContainerConfig {
        mounts: vec![Mount {
            source: volume.clone(),
            target: "/data".into(),
            read_only: false,
            propagation: Propagation::None,
        }],
        termination_message_path: Some("/dev/termination-log".into()),
        ..shell("last", "echo kept > /data/file; echo words > /dev/termination-log; exit 4")
    };
    let (_, ended) = run(&runtime, &pod, &mounted).await;
    assert_eq!((ended.code, ended.message.as_deref()), (4, Some("words\n")));
    assert_eq!(std::fs::read_to_string(volume.join("file")).unwrap(), "kept\n");
    let told = ContainerConfig { termination_message_from_log: true, ..shell("told", "echo why; exit 5") };
    let (_, ended) = run(&runtime, &pod, &told).await;
    assert_eq!((ended.code, ended.message.as_deref()), (5, Some("why\n")));
    runtime.remove_pod(&pod).await.unwrap();
}

async fn streams_carry_both_ways(server: &Server) {
    let runtime = connect(server).await.unwrap();
    let pod = PodUid::from("streams");
    let addresses = runtime.run_pod(&pod, &sandbox("streams")).await.unwrap();
    let serve = "while :; do echo served | nc -l -p 8080 > /tmp/got; cat /tmp/got; done";
    runtime.start(&pod, &shell("serve", serve)).await.unwrap();
    // The end of the input is told, and both outputs are apart.
    let command = ["sh", "-c", "cat; echo wrong >&2; exit 7"].map(str::to_owned).to_vec();
    let request = ExecRequest { command, stdin: true, tty: false };
    let mut session = runtime.exec(&pod, "serve", request).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through").await.unwrap();
    stdin.shutdown().await.unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    session.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    session.stderr.take().unwrap().read_to_string(&mut err).await.unwrap();
    assert_eq!((out.as_str(), err.as_str(), session.exit.await.unwrap()), ("through", "wrong\n", 7));
    // A terminal has the size that it was given.
    let request = ExecRequest { command: vec!["sh".to_owned()], stdin: true, tty: true };
    let mut session = runtime.exec(&pod, "serve", request).await.unwrap();
    (session.resize.take().unwrap())(91, 37);
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"while ! stty size | grep '37 91'; do :; done; exit 3\n").await.unwrap();
    let mut out = String::new();
    session.stdout.take().unwrap().read_to_string(&mut out).await.unwrap();
    assert!(out.contains("37 91"), "{out}");
    assert_eq!(session.exit.await.unwrap(), 3);
    // A port is reached from inside and, by the pod's address, from outside.
    for local in [true, false] {
        let address = (addresses[0], 8080).into();
        let reach = async {
            loop {
                let Ok(mut stream) = runtime.connect(&pod, address, local).await else { continue };
                let mut text = String::new();
                if stream.write_all(b"hello\n").await.is_err() || stream.shutdown().await.is_err() {
                    continue;
                }
                // It may be between two connections.
                if stream.read_to_string(&mut text).await.is_ok() && text == "served\n" {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reach).await.expect("the port is reached");
    }
    runtime.remove_pod(&pod).await.unwrap();
}

async fn a_second_life_finds_what_the_first_had(server: &Server) {
    let pod = PodUid::from("lives");
    let (before, address) = {
        let first = connect(server).await.unwrap();
        let address = first.run_pod(&pod, &sandbox("lives")).await.unwrap();
        first.start(&pod, &testing::container("long", 2)).await.unwrap();
        let told =
            ContainerConfig { termination_message_from_log: true, ..shell("told", "echo why; exit 5") };
        run(&first, &pod, &told).await;
        (first.observe(&pod), address)
    };
    let second = connect(server).await.unwrap();
    assert_eq!(second.pods(), std::slice::from_ref(&pod));
    assert_eq!(second.observe(&pod), before, "a new life sees what the one before saw");
    assert_eq!(second.run_pod(&pod, &sandbox("lives")).await.unwrap(), address);
    // What ends while nobody looks, or by itself, is noticed.
    let request =
        ExecRequest { command: ["kill", "-9", "1"].map(str::to_owned).to_vec(), ..Default::default() };
    second.exec(&pod, "long", request).await.unwrap().exit.await.ok();
    second.stop(&pod, "long", Duration::ZERO).await.unwrap();
    let ended = wait_for(&second, &pod, "long", |c| exit(&c.phase).is_some()).await;
    assert_eq!((ended.attempt, exit(&ended.phase).unwrap().code), (2, 137));
    // Another runtime over the same server has pods of its own.
    let mut other = options(server);
    other.dir = server.dir.path().join("other");
    assert!(CriRuntime::connect(other).await.unwrap().pods().is_empty());
    second.remove_all().await.unwrap();
    assert!(connect(server).await.unwrap().pods().is_empty());
}

async fn images_are_the_servers(server: &Server) {
    let runtime = connect(server).await.unwrap();
    assert_eq!(runtime.image("test").await, ImagePresence::Present);
    assert_eq!(runtime.image("missing").await, ImagePresence::Absent);
    let images = runtime.images().await.unwrap();
    let named = |name: &str| images.iter().any(|(names, size)| *size > 0 && names.iter().any(|n| n == name));
    assert!(named("docker.io/library/test:latest"), "{images:?}");
    assert!(!runtime.image_bytes().await.unwrap().is_empty());
    let refused = runtime.pull("127.0.0.1:1/nothing:1", &[]).await.unwrap_err();
    assert_eq!(refused.waiting_reason(), "ErrImagePull");
    let refused = runtime.pull("UPPER/case:1", &[]).await.unwrap_err();
    assert_eq!(refused.waiting_reason(), "InvalidImageName");
    runtime.remove_image("test").await.unwrap();
    runtime.remove_image("test").await.unwrap();
    assert_eq!(runtime.image("test").await, ImagePresence::Absent);
}
