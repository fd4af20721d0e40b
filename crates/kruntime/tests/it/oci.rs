//! Containers by real OCI runtimes, from an image that has nothing but busybox.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use futures::StreamExt as _;
use kcore::TokioClock;
use knet::AddressRange;
use kruntime::{
    ContainerRuntime, PodUid, RuntimeError,
    images::{CollectPolicy, ContentStore},
    managers::CpuSet,
    runtime::{
        AppArmor, ContainerConfig, ContainerPhase, ExecRequest, Exit, ImagePresence, LogOptions, Mount,
        ObservedContainer, Propagation, Resources, SandboxConfig, Seccomp, Security,
        oci::{OciOptions, OciRuntime},
    },
    testing::{
        self,
        images::{BUSYBOX, write_busybox},
        sandbox, wait_for,
    },
};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::images::needs;

const PROGRAMS: [&str; 2] = ["runc", "crun"];

pub(crate) struct Subject {
    pub(crate) runtime: Arc<OciRuntime>,
    pub(crate) options: OciOptions,
    pub(crate) dir: tempfile::TempDir,
}

fn has(program: &str) -> bool {
    // crun refuses machines that have controllers in both versions of control groups.
    let mixed = std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
    let works = program != "crun" || mixed.trim().is_empty();
    works && ["/usr/sbin", "/usr/bin"].iter().any(|dir| std::path::Path::new(dir).join(program).is_file())
}

/// The OCI runtimes that this machine has; none after saying so when something is missing.
pub(crate) fn programs() -> Vec<&'static str> {
    if !rustix::process::geteuid().is_root() {
        needs("root");
        return Vec::new();
    }
    if !std::path::Path::new(BUSYBOX).is_file() {
        needs("busybox");
        return Vec::new();
    }
    PROGRAMS
        .into_iter()
        .filter(|program| {
            has(program) || {
                needs(program);
                false
            }
        })
        .collect()
}

pub(crate) async fn subject(program: &str, change: impl FnOnce(&mut OciOptions)) -> Subject {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(TokioClock::new());
    let images = ContentStore::open(dir.path().join("images"), clock.clone()).unwrap();
    let layout = dir.path().join("layout");
    write_busybox(&layout, "docker.io/library/test:latest", &json!({"Cmd": ["sh"], "Env": ["FROM=image"]}))
        .unwrap();
    images.load(&layout, None).await.unwrap();
    let addresses: AddressRange = "127.77.0.0/16".parse().unwrap();
    let mut options = OciOptions::new(dir.path().join("state"), images, Arc::new(addresses), clock);
    options.program = program.into();
    change(&mut options);
    let runtime = Arc::new(OciRuntime::open(options.clone()).await.unwrap());
    Subject { runtime, options, dir }
}

pub(crate) fn shell(name: &str, script: &str) -> ContainerConfig {
    let command = ["sh", "-c", script].map(str::to_owned).to_vec();
    ContainerConfig { name: name.into(), image: "test".to_owned(), command, ..ContainerConfig::default() }
}

pub(crate) fn exit(phase: &ContainerPhase) -> Option<Exit> {
    match phase {
        ContainerPhase::Exited(exit) => Some(exit.clone()),
        ContainerPhase::Running { .. } => None,
    }
}

pub(crate) async fn log(runtime: &OciRuntime, pod: &PodUid, name: &str) -> String {
    let stream = runtime.logs(pod, name, LogOptions::default()).await.unwrap();
    let pieces: Vec<_> = stream.map(|piece| piece.unwrap()).collect().await;
    String::from_utf8_lossy(&pieces.concat()).into_owned()
}

/// Runs a container to its end: what it wrote, and how it ended.
pub(crate) async fn run(runtime: &OciRuntime, pod: &PodUid, config: &ContainerConfig) -> (String, Exit) {
    runtime.start(pod, config).await.unwrap();
    let ended = wait_for(runtime, pod, &config.name, |c| exit(&c.phase).is_some()).await;
    (log(runtime, pod, &config.name).await, exit(&ended.phase).unwrap())
}

#[tokio::test]
async fn keeps_the_suites_promises_on_runc() {
    if programs().contains(&"runc") {
        testing::check_runtime(subject("runc", |_| {}).await.runtime).await;
    }
}

#[tokio::test]
async fn keeps_the_suites_promises_on_crun() {
    if programs().contains(&"crun") {
        testing::check_runtime(subject("crun", |_| {}).await.runtime).await;
    }
}

#[tokio::test]
async fn keeps_the_suites_promises_without_overlays() {
    if programs().contains(&"crun") {
        testing::check_runtime(subject("crun", |options| options.overlay = false).await.runtime).await;
    }
}

/// What a container finds, by what its pod says. Expected results are those of Kubernetes' documentation of security
/// contexts, and of containerd's defaults.
#[tokio::test]
async fn containers_are_as_their_pods_say() {
    let security = |change: fn(&mut Security)| {
        let mut security = Security::default();
        change(&mut security);
        ContainerConfig { security, ..ContainerConfig::default() }
    };
    let plain = ContainerConfig::default;
    let default_caps = "CapEff:\t00000000a80425fb";
    let cases: Vec<(&str, ContainerConfig, &str, &str)> = vec![
        ("root", plain(), "id -u; id -g", "0\n0\n"),
        (
            "user",
            ContainerConfig { run_as_user: Some(1000), run_as_group: Some(7), ..plain() },
            "id -u; id -g; id -G",
            "1000\n7\n7 2000\n",
        ),
        ("groups", security(|s| s.supplemental_groups = vec![3000]), "id -G", "0 3000\n"),
        ("caps", plain(), "grep CapEff /proc/self/status", default_caps),
        (
            "no caps",
            security(|s| s.drop_capabilities = vec!["ALL".to_owned()]),
            "grep CapEff /proc/self/status",
            "CapEff:\t0000000000000000",
        ),
        (
            "one cap",
            security(|s| {
                s.drop_capabilities = vec!["ALL".to_owned()];
                s.add_capabilities = vec!["NET_ADMIN".to_owned()];
            }),
            "grep CapEff /proc/self/status",
            "CapEff:\t0000000000001000",
        ),
        (
            "read-only",
            security(|s| s.read_only_root = true),
            "touch /x 2>&1; touch /dev/shm/x && echo shm",
            "Read-only file system\nshm\n",
        ),
        ("writable", plain(), "touch /x && echo yes", "yes\n"),
        (
            "no new privileges",
            security(|s| s.no_new_privileges = true),
            "grep NoNewPrivs /proc/self/status",
            "NoNewPrivs:\t1",
        ),
        ("unconfined", plain(), "grep Seccomp: /proc/self/status", "Seccomp:\t0"),
        (
            "seccomp",
            security(|s| s.seccomp = Seccomp::RuntimeDefault),
            "grep Seccomp: /proc/self/status; mount -t tmpfs x /tmp 2>&1",
            "Seccomp:\t2",
        ),
        (
            "masked",
            plain(),
            "head -c 1 /proc/kcore 2>/dev/null | wc -c; cat /proc/timer_list 2>/dev/null | wc -c",
            "0\n0\n",
        ),
        (
            "sysctl is read-only",
            plain(),
            "echo x 2>&1 > /proc/sys/kernel/hostname || true; hostname",
            "pod-host\n",
        ),
        (
            "privileged",
            security(|s| s.privileged = true),
            "mount -t tmpfs x /tmp && echo mounted; ls /dev/kmsg",
            "mounted\n/dev/kmsg\n",
        ),
        (
            "host name",
            plain(),
            "hostname; cat /etc/hostname; tail -n 1 /etc/hosts",
            "pod-host\npod-host\n9.9.9.9\talias\n",
        ),
        ("resolver", plain(), "cat /etc/resolv.conf", "nameserver 127.9.9.9\n"),
        (
            "environment",
            ContainerConfig { env: vec![("A".to_owned(), "b".to_owned())], ..plain() },
            "echo $FROM $A $PATH",
            "image b /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n",
        ),
        (
            "directory",
            ContainerConfig { working_dir: Some("/some/where".into()), ..plain() },
            "pwd",
            "/some/where\n",
        ),
        // Counted by the shell itself: of a pipe's programs one may look before the other is there.
        ("processes", plain(), "set -- /proc/[0-9]*; echo \"[$#]\"", "[1]\n"),
        ("sysctls", plain(), "cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "80\n"),
        (
            "low oom score",
            ContainerConfig {
                resources: Resources { oom_score_adj: Some(-997), ..Resources::default() },
                ..plain()
            },
            "echo there",
            "there\n",
        ),
        (
            "oom score",
            ContainerConfig {
                resources: Resources { oom_score_adj: Some(500), ..Resources::default() },
                ..plain()
            },
            "cat /proc/self/oom_score_adj",
            "500\n",
        ),
    ];
    for program in programs() {
        let subject = subject(program, |_| {}).await;
        let uid = PodUid::from("security");
        let mut pod = sandbox("security");
        pod.hostname = "pod-host".to_owned();
        pod.host_aliases = vec![("9.9.9.9".to_owned(), vec!["alias".to_owned()])];
        pod.resolv_conf = Some("nameserver 127.9.9.9\n".to_owned());
        pod.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "80".to_owned())].into();
        subject.runtime.run_pod(&uid, &pod).await.unwrap();
        for (number, (name, config, script, expected)) in cases.iter().enumerate() {
            let with = shell(&format!("c{number}"), script);
            let config = ContainerConfig {
                name: with.name,
                image: with.image,
                command: with.command,
                ..config.clone()
            };
            let (said, ended) = run(&subject.runtime, &uid, &config).await;
            assert!(said.contains(expected), "{program}: {name}: {said:?}, not {expected:?}: {ended:?}");
        }
        subject.runtime.remove_pod(&uid).await.unwrap();
    }
}

#[tokio::test]
async fn volumes_limits_and_messages() {
    for program in programs() {
        let subject = subject(program, |_| {}).await;
        let uid = PodUid::from("volumes");
        subject.runtime.run_pod(&uid, &sandbox("volumes")).await.unwrap();
        let volume = subject.dir.path().join("volume");
        std::fs::create_dir_all(volume.join("inner")).unwrap();
        std::fs::write(volume.join("file"), "text\n").unwrap();
        let mount = |source: &std::path::Path, target: &str, read_only| Mount {
            source: source.to_owned(),
            target: target.into(),
            read_only,
            propagation: Propagation::None,
        };
        let script = "cat /data/sub/file /one; touch /data/sub/x 2>/dev/null || echo refused; echo last > /dev/termination-log";
        let mut config = shell("main", script);
        config.mounts = vec![
            mount(&volume, "/data/sub", true),
            mount(&volume.join("inner"), "/data", false),
            mount(&volume.join("file"), "/one", true),
        ];
        config.termination_message_path = Some("/dev/termination-log".into());
        let (said, ended) = run(&subject.runtime, &uid, &config).await;
        assert_eq!(
            (said.as_str(), ended.message.as_deref()),
            ("text\ntext\nrefused\n", Some("last\n")),
            "{program}"
        );
        // More memory than it may have: the kernel ends it, and everybody hears why.
        let mut hog = shell("hog", "exec tail /dev/zero");
        hog.resources.memory_bytes_max = Some(16 << 20);
        let (_, ended) = run(&subject.runtime, &uid, &hog).await;
        assert_eq!((ended.reason, ended.code, ended.signal), ("OOMKilled", 137, Some(9)), "{program}");
        subject.runtime.remove_pod(&uid).await.unwrap();
        assert!(
            std::fs::read_dir(subject.options.dir.join("pods")).unwrap().next().is_none(),
            "nothing is left"
        );
    }
}

#[tokio::test]
async fn terminals_input_and_ports() {
    for program in programs() {
        let subject = subject(program, |_| {}).await;
        let uid = PodUid::from("streams");
        let address = subject.runtime.run_pod(&uid, &sandbox("streams")).await.unwrap()[0];
        // A container with a terminal, and a program with one.
        let mut config = shell("tty", "tty; read line; echo got $line; read line");
        config.tty = true;
        config.stdin = true;
        subject.runtime.start(&uid, &config).await.unwrap();
        let mut joined = subject.runtime.attach(&uid, "tty").await.unwrap();
        joined.stdin.as_mut().unwrap().write_all(b"hello\n").await.unwrap();
        let mut text = String::new();
        while !text.contains("got hello") {
            let mut piece = [0; 256];
            let length = joined.stdout.as_mut().unwrap().read(&mut piece).await.unwrap();
            assert!(length > 0, "{program}: {text:?}");
            text.push_str(&String::from_utf8_lossy(&piece[..length]));
        }
        let request = ExecRequest {
            command: ["sh", "-c", "test -t 0 && stty size; exit 4"].map(str::to_owned).to_vec(),
            stdin: false,
            tty: true,
        };
        let mut session = subject.runtime.exec(&uid, "tty", request).await.unwrap();
        session.resize.as_ref().unwrap()(80, 24);
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!(session.exit.await.unwrap(), 4, "{program}: {text:?}");
        // Input goes in, and its end too.
        let request = ExecRequest { command: vec!["cat".to_owned()], stdin: true, tty: false };
        let mut session = subject.runtime.exec(&uid, "tty", request).await.unwrap();
        let mut input = session.stdin.take().unwrap();
        input.write_all(b"through").await.unwrap();
        drop(input);
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), session.exit.await.unwrap()), ("through", 0), "{program}");
        // A server in the pod is reached from here, though the pod is connected to nothing.
        let serve = shell("server", "echo ready; while :; do echo served | nc -l -p 8080 >/dev/null; done");
        subject.runtime.start(&uid, &serve).await.unwrap();
        let follow = LogOptions { follow: true, limit_bytes: Some(6), ..LogOptions::default() };
        subject.runtime.logs(&uid, "server", follow).await.unwrap().next().await.unwrap().unwrap();
        for local in [false, true] {
            let said = served(&subject.runtime, &uid, SocketAddr::new(address, 8080), local).await;
            assert_eq!(said, "served\n", "{program} {local}");
        }
        subject.runtime.remove_pod(&uid).await.unwrap();
    }
}

#[tokio::test]
async fn processes_are_shared_where_the_pod_says_so() {
    for program in programs() {
        let subject = subject(program, |_| {}).await;
        let uid = PodUid::from("shared");
        let pod = SandboxConfig { share_processes: true, ..sandbox("shared") };
        subject.runtime.run_pod(&uid, &pod).await.unwrap();
        // Its child outlives it, and ends with the pod at the latest.
        subject.runtime.start(&uid, &shell("one", "sleep 1234 & sleep 1235")).await.unwrap();
        let script = "until grep -q 1235 /proc/[0-9]*/cmdline; do sleep 0.05; done; cat /proc/1/cmdline";
        let (said, ended) = run(&subject.runtime, &uid, &shell("two", script)).await;
        assert_eq!((said.trim_end_matches('\0'), ended.code), ("/pause", 0), "{program}");
        subject.runtime.stop(&uid, "one", Duration::ZERO).await.unwrap();
        subject.runtime.remove_pod(&uid).await.unwrap();
        assert!(std::fs::read_dir(subject.options.dir.join("pods")).unwrap().next().is_none(), "{program}");
    }
}

/// It says that it is ready just before it listens.
async fn served(runtime: &OciRuntime, uid: &PodUid, address: SocketAddr, local: bool) -> String {
    let patience = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Ok(mut stream) = runtime.connect(uid, address, local).await {
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            return text;
        }
        assert!(tokio::time::Instant::now() < patience, "nobody listens at {address}");
        tokio::task::yield_now().await;
    }
}

/// A runtime that goes away without a word leaves its pods to the next: those that run, those that have ended, and what they wrote.
#[tokio::test]
async fn the_next_runtime_finds_what_the_last_one_left() {
    for program in programs() {
        let mut subject = subject(program, |options| options.outlive = true).await;
        let uid = PodUid::from("kept");
        let addresses = subject.runtime.run_pod(&uid, &sandbox("kept")).await.unwrap();
        let (_, before) = run(&subject.runtime, &uid, &shell("done", "exit 5")).await;
        subject.runtime.start(&uid, &testing::container("long", 0)).await.unwrap();
        let script = "trap 'echo bye; exit 6' TERM; echo hello; while :; do sleep 0.05; done";
        subject.runtime.start(&uid, &shell("dies", script)).await.unwrap();
        let follow = LogOptions { follow: true, limit_bytes: Some(6), ..LogOptions::default() };
        subject.runtime.logs(&uid, "dies", follow).await.unwrap().next().await.unwrap().unwrap();
        let first = subject.runtime.observe(&uid);
        drop(subject.runtime);
        // It ends while nobody looks.
        let state = std::fs::read(subject.options.dir.join("pods/kept/dies/0/state.json")).unwrap();
        let state: serde_json::Value = serde_json::from_slice(&state).unwrap();
        let pid = i32::try_from(state["container"]["pid"].as_i64().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
        while !std::fs::read_to_string(&stat).unwrap().contains(") Z ") {
            tokio::task::yield_now().await;
        }
        subject.options.addresses = Arc::new("127.77.0.0/16".parse::<AddressRange>().unwrap());
        subject.options.outlive = false;
        let runtime = OciRuntime::open(subject.options.clone()).await.unwrap();
        let again = runtime.observe(&uid);
        assert_eq!(again.addresses, Some(addresses), "{program}");
        let ids = |pod: &kruntime::runtime::ObservedPod| {
            pod.containers.iter().map(|c| c.id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&again), ids(&first), "{program}: the same containers in the same order");
        assert_eq!(exit(&again.containers[0].phase), Some(before), "{program}");
        let died = wait_for(&runtime, &uid, "dies", |c| exit(&c.phase).is_some()).await;
        assert_eq!(exit(&died.phase).unwrap().code, 6, "{program}: an exit code that nobody has read stays");
        assert_eq!(
            log(&runtime, &uid, "dies").await,
            "hello\nbye\n",
            "{program}: and so does what nobody has read"
        );
        let request =
            ExecRequest { command: vec!["echo".to_owned(), "hi".to_owned()], ..ExecRequest::default() };
        let mut session = runtime.exec(&uid, "long", request).await.unwrap();
        let mut text = String::new();
        session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), session.exit.await.unwrap()), ("hi\n", 0), "{program}");
        runtime.stop(&uid, "long", Duration::from_secs(20)).await.unwrap();
        let ended = wait_for(&runtime, &uid, "long", |c| exit(&c.phase).is_some()).await;
        assert_eq!(exit(&ended.phase).unwrap().code, 0, "{program}");
        // What is new goes on from there.
        let (said, _) = run(&runtime, &uid, &shell("new", "echo new")).await;
        assert_eq!(said, "new\n");
        drop(runtime);
        assert!(
            std::fs::read_dir(subject.options.dir.join("pods")).unwrap().next().is_none(),
            "{program}: nothing is left"
        );
    }
}

#[tokio::test]
async fn images_in_use_stay_and_wrong_ones_are_refused() {
    let Some(program) = programs().pop() else { return };
    let subject = subject(program, |_| {}).await;
    let runtime = &subject.runtime;
    let uid = PodUid::from("images");
    runtime.run_pod(&uid, &SandboxConfig { host_network: true, ..sandbox("images") }).await.unwrap();
    runtime.start(&uid, &testing::container("long", 0)).await.unwrap();
    let all = CollectPolicy { high_percent: 0, low_percent: 0, age_min: Duration::ZERO, unused_max: None };
    assert!(runtime.collect_images(&all).await.unwrap().is_empty());
    assert_eq!(runtime.image("test").await, ImagePresence::Present);
    runtime.remove_pod(&uid).await.unwrap();
    assert_eq!(runtime.collect_images(&all).await.unwrap().len(), 1);
    assert_eq!(runtime.image("test").await, ImagePresence::Absent);
    let error = runtime.pull("test", &[]).await.unwrap_err();
    let name = "docker.io/library/test:latest";
    let expected = format!(
        "failed to pull and unpack image \"{name}\": failed to resolve reference \"{name}\": {name}: not found"
    );
    assert_eq!((error.waiting_reason(), error.to_string()), ("ErrImagePull", expected));
    let wrong = runtime.pull("NOT A NAME", &[]).await.unwrap_err();
    assert_eq!(wrong.waiting_reason(), "InvalidImageName");
    let mut config = shell("x", "true");
    config.security.add_capabilities = vec!["NOPE".to_owned()];
    runtime.run_pod(&uid, &sandbox("images")).await.unwrap();
    let error = runtime.start(&uid, &config).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Image(_)), "{error}");
    runtime.remove_pod(&uid).await.unwrap();
}

/// Each handler is an OCI runtime of its own, which a runtime that is opened again knows the containers of.
#[tokio::test]
async fn handlers_are_other_oci_runtimes() {
    for program in programs() {
        let Subject { runtime, mut options, dir } = subject(program, |options| {
            options.handlers = [("special".to_owned(), program.into())].into();
            options.outlive = true;
        })
        .await;
        testing::check_handlers(runtime.clone(), "special").await;
        let uid = PodUid::from("special");
        let config = SandboxConfig { runtime_handler: "special".to_owned(), ..sandbox("special") };
        runtime.run_pod(&uid, &config).await.unwrap();
        runtime.start(&uid, &shell("long", "sleep 1000")).await.unwrap();
        let known = std::fs::read_dir(dir.path().join("state/engine-special")).unwrap().count();
        assert_eq!(known, 1, "{program} keeps what it knows apart");
        drop(runtime);
        options.outlive = false;
        let runtime = OciRuntime::open(options).await.unwrap();
        assert!(matches!(runtime.observe(&uid).containers[0].phase, ContainerPhase::Running { .. }));
        runtime.remove_pod(&uid).await.unwrap();
        let known = std::fs::read_dir(dir.path().join("state/engine-special")).unwrap().count();
        assert_eq!(known, 0, "it is deleted where it was made");
    }
}

#[tokio::test]
async fn a_profile_of_apparmor_is_enforced_or_refused() {
    let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
    for program in
        programs().into_iter().filter(|_| !enabled.as_ref().is_ok_and(|text| text.starts_with('Y')))
    {
        let subject = subject(program, |_| {}).await;
        let uid = PodUid::from("apparmor");
        subject.runtime.run_pod(&uid, &sandbox("apparmor")).await.unwrap();
        let mut config = shell("c", "true");
        config.security.apparmor = AppArmor::Localhost("own".to_owned());
        let refused = subject.runtime.start(&uid, &config).await.unwrap_err();
        assert_eq!(refused.to_string(), "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        subject.runtime.remove_pod(&uid).await.unwrap();
    }
}

#[tokio::test]
async fn gives_containers_more_or_less() {
    for program in programs() {
        let subject = subject(program, |_| {}).await;
        let runtime = subject.runtime.clone();
        let has = |pod: &PodUid, _: &str, wanted: &Resources| {
            let limits = memory_limits("kplane", &format!("/pod{pod}/"));
            limits.iter().any(|limit| Some(*limit) == wanted.memory_bytes_max)
        };
        testing::check_resize(runtime, has).await;
    }
}

#[tokio::test]
async fn devices_are_found_by_their_names() {
    for program in programs() {
        let dir = tempfile::tempdir().unwrap();
        let file = json!({"cdiVersion": "0.6.0", "kind": "vendor.example/thing", "containerEdits": {"env": ["KIND=thing"]},
            "devices": [{"name": "a", "containerEdits": {"env": ["NAME=a"],
                "deviceNodes": [{"path": "/dev/thing", "hostPath": "/dev/zero", "permissions": "r"}],
                "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/thing/name", "options": ["ro", "bind"]}]}}]});
        std::fs::write(dir.path().join("thing.json"), file.to_string()).unwrap();
        let subject = subject(program, |options| options.cdi_dirs = vec![dir.path().to_owned()]).await;
        let runtime = &subject.runtime;
        let uid = PodUid::from("cdi");
        runtime.run_pod(&uid, &sandbox("cdi")).await.unwrap();
        let script = "test \"$KIND$NAME\" = thinga && test -s /thing/name && test $(head -c 5 /dev/thing | wc -c) = 5 \
                      && ! echo x > /thing/name";
        let mut config = shell("c", script);
        config.devices.cdi = vec!["vendor.example/thing=a".to_owned()];
        runtime.start(&uid, &config).await.unwrap();
        let ended = |seen: &ObservedContainer| matches!(seen.phase, ContainerPhase::Exited(_));
        let seen = wait_for(&**runtime, &uid, "c", ended).await;
        let ContainerPhase::Exited(exit) = seen.phase else { panic!("it runs") };
        assert_eq!(exit.code, 0, "{program}: {exit:?}");
        let mut other = shell("other", "true");
        other.devices.cdi = vec!["vendor.example/thing=b".to_owned()];
        let refused = runtime.start(&uid, &other).await.unwrap_err();
        assert_eq!(
            refused.to_string(),
            "CDI device injection failed: unresolvable CDI devices vendor.example/thing=b"
        );
        runtime.remove_pod(&uid).await.unwrap();
    }
}

#[tokio::test]
async fn binds_containers_to_processors() {
    for program in programs() {
        let subject = subject(program, |_| {}).await;
        let has = |pod: &PodUid, _: &str, cpus: &CpuSet| {
            bound_cpus("kplane", &format!("/pod{pod}/")).contains(&cpus.to_string())
        };
        testing::check_cpus(subject.runtime.clone(), two_sets(), has).await;
    }
}

/// The first processor that this test may run on, and all of them.
pub(crate) fn two_sets() -> [CpuSet; 2] {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap();
    let all: CpuSet = list.trim().parse().unwrap();
    [all.iter().take(1).collect(), all]
}

/// The processors that control groups below `parent` are bound to whose paths contain `part`, of either version.
pub(crate) fn bound_cpus(parent: &str, part: &str) -> Vec<String> {
    values(&["/sys/fs/cgroup/cpuset", "/sys/fs/cgroup"], &["cpuset.cpus"], parent, part)
}

/// The limits of memory that control groups below `parent` have whose paths contain `part`, of either version.
pub(crate) fn memory_limits(parent: &str, part: &str) -> Vec<i64> {
    let names = ["memory.limit_in_bytes", "memory.max"];
    let found = values(&["/sys/fs/cgroup/memory", "/sys/fs/cgroup"], &names, parent, part);
    found.iter().filter_map(|text| text.parse().ok()).collect()
}

fn values(roots: &[&str], names: &[&str], parent: &str, part: &str) -> Vec<String> {
    let groups = roots.iter().map(|root| std::path::Path::new(root).join(parent));
    let mut dirs: Vec<_> = groups.filter(|dir| dir.is_dir()).collect();
    let mut found = Vec::new();
    while let Some(dir) = dirs.pop() {
        let is_meant = dir.to_string_lossy().contains(part);
        let values = names.iter().filter_map(|name| std::fs::read_to_string(dir.join(name)).ok());
        found.extend(values.filter(|_| is_meant).map(|text| text.trim().to_owned()));
        let below = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        dirs.extend(below.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
    found
}
