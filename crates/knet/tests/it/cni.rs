//! The runtime's side of CNI: with Debian's plug-ins in network namespaces, and with a scripted one for what those don't do. The
//! expected results are those of the specification (SPEC.md 1.1.0, sections 2 to 5).

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use knet::{
    network::{
        NetworkError, PodAttachment, PodNetwork, PortMapping,
        cni::{CniNetwork, CniOptions, PluginError},
    },
    policy::Protocol,
};
use serde_json::{Value, json};

use crate::lab::{connect, inside, run};

const PLUGINS: &str = "/usr/lib/cni";

fn pod(id: &str) -> PodAttachment {
    PodAttachment {
        id: id.into(),
        namespace: "shop".into(),
        name: format!("pod-{id}"),
        uid: "1-2-3".into(),
        netns: Some(format!("/run/netns/{id}").into()),
        ports: Vec::new(),
    }
}

fn options(dir: &Path, plugins: &Path, config: &Value) -> CniOptions {
    let mut options = CniOptions::default();
    options.config_dir = dir.join("net.d");
    options.cache_dir = dir.join("cache");
    options.plugin_dirs = vec![plugins.to_owned()];
    fs::create_dir_all(&options.config_dir).unwrap();
    fs::write(options.config_dir.join("10-net.conflist"), config.to_string()).unwrap();
    options
}

#[tokio::test]
async fn debians_plugins_connect_pods() {
    let tools = ["/usr/lib/cni/bridge", "/usr/lib/cni/portmap", "iptables", "sysctl"];
    if !inside("cni::debians_plugins_connect_pods", "", &tools) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let leases = dir.path().join("leases");
    let config = json!({"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipam": {
            "type": "host-local", "dataDir": leases, "routes": [{"dst": "0.0.0.0/0"}],
            "ranges": [[{"subnet": "10.1.0.0/24"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}},
    ]});
    let network = CniNetwork::new(options(dir.path(), Path::new(PLUGINS), &config));
    network.ready().await.unwrap();
    run("sysctl -qw net.ipv4.ip_forward=1 && ip netns add one && ip netns add two && ip netns add far \
         && ip link add v-far type veth peer name eth0 netns far && ip addr add 192.0.2.1/24 dev v-far \
         && ip link set v-far up && ip -n far addr add 192.0.2.9/24 dev eth0 && ip -n far link set eth0 up");
    let mut one = pod("one");
    let mapping = PortMapping { host_address: None, host_port: 8080, pod_port: 80, protocol: Protocol::Tcp };
    one.ports.push(mapping);
    let first = network.attach(&one).await.unwrap();
    let second = network.attach(&pod("two")).await.unwrap();
    assert_eq!(first.addresses, ["10.1.0.2".parse::<std::net::IpAddr>().unwrap()]);
    assert_ne!(first, second);
    assert_eq!(network.attach(&one).await.unwrap(), first, "once more is the same");

    let address = SocketAddr::new(first.addresses[0], 80);
    crate::lab::serve("one", address);
    crate::lab::serve("one", "127.0.0.1:90".parse().unwrap());
    assert_eq!(connect("two", address).unwrap().0, second.addresses[0].to_string(), "pod to pod without NAT");
    assert_eq!(connect("far", "192.0.2.1:8080".parse().unwrap()).unwrap().0, "192.0.2.9", "a host port");
    assert!(connect("one", "127.0.0.1:90".parse().unwrap()).is_ok(), "the loopback device is up");

    // The pod without host ports: this release of portmap expects rules for a family that the pod doesn't have.
    let two = pod("two");
    network.check(&two).await.unwrap();
    run("ip -n two addr flush dev eth0");
    assert!(matches!(network.check(&two).await, Err(NetworkError::Plugin(PluginError::Reported { .. }))));
    // A pod with another namespace is a new one.
    run("ip netns add other");
    let other = PodAttachment { netns: Some("/run/netns/other".into()), ..pod("two") };
    let again = network.attach(&other).await.unwrap();
    network.check(&other).await.unwrap();

    // Another life of the runtime knows what this one did.
    let config_dir = dir.path().join("net.d");
    fs::remove_file(config_dir.join("10-net.conflist")).unwrap();
    let network = CniNetwork::new({
        let mut options = CniOptions::default();
        options.config_dir = config_dir;
        options.cache_dir = dir.path().join("cache");
        options.plugin_dirs = vec![PLUGINS.into()];
        options
    });
    assert!(matches!(network.ready().await, Err(NetworkError::NotReady(_))));
    let lease = |address: std::net::IpAddr| leases.join("pods").join(address.to_string()).exists();
    assert!(lease(again.addresses[0]) && lease(first.addresses[0]));
    network.detach(&one).await.unwrap();
    network.detach(&one).await.unwrap();
    run("ip netns del other");
    network.detach(&PodAttachment { netns: None, ..pod("two") }).await.unwrap();
    assert!(!lease(again.addresses[0]) && !lease(first.addresses[0]));
    assert!(!run("iptables-save -t nat").contains("8080"));
}

/// Logs each call and answers as a file says.
const SCRIPT: &str = r#"#!/bin/sh
dir=$(dirname "$0")/..; name=$(basename "$0"); input=$(cat)
printf '%s\t%s\t%s\t%s\t%s\t%s\n' "$name" "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_IFNAME" "$CNI_ARGS" "$input" >> "$dir/log"
if [ -f "$dir/$name-$CNI_COMMAND" ]; then . "$dir/$name-$CNI_COMMAND"; fi
if [ "$CNI_COMMAND" = ADD ]; then
  printf '{"cniVersion":"1.1.0","ips":[{"address":"10.9.0.2/24"}],"by":"%s"}' "$name"
fi
"#;

struct Scripted {
    dir: tempfile::TempDir,
    network: CniNetwork,
}

impl Scripted {
    fn new(version: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plugins = dir.path().join("bin");
        fs::create_dir(&plugins).unwrap();
        for name in ["first", "second"] {
            fs::write(plugins.join(name), SCRIPT).unwrap();
            fs::set_permissions(plugins.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        let config = json!({"cniVersion": version, "name": "net",
            "plugins": [{"type": "first"}, {"type": "second", "capabilities": {"portMappings": true}}]});
        let mut options = options(dir.path(), &plugins, &config);
        options.loopback = false;
        options.timeout = Duration::from_secs(20);
        Self { network: CniNetwork::new(options), dir }
    }

    /// Makes a plug-in do something else for a command.
    fn answer(&self, plugin: &str, command: &str, script: &str) {
        fs::write(self.dir.path().join(format!("{plugin}-{command}")), script).unwrap();
    }

    /// The calls since the last time: plug-in and command, and what was read.
    fn calls(&self) -> Vec<(String, Value)> {
        let path = self.dir.path().join("log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        let calls = text.lines().map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            (format!("{} {}", fields[0], fields[1]), serde_json::from_str(fields[5]).unwrap())
        });
        calls.collect()
    }

    fn commands(&self) -> Vec<String> {
        self.calls().into_iter().map(|(call, _)| call).collect()
    }
}

#[tokio::test]
async fn plugins_are_chained_and_undone_in_reverse() {
    let scripted = Scripted::new("1.1.0");
    let mut one = pod("one");
    one.ports.push(PortMapping { host_address: None, host_port: 1, pod_port: 2, protocol: Protocol::Udp });
    scripted.network.attach(&one).await.unwrap();
    let log = fs::read_to_string(scripted.dir.path().join("log")).unwrap();
    assert!(log.starts_with(
        "first\tADD\tone\teth0\tIgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=pod-one;\
         K8S_POD_INFRA_CONTAINER_ID=one;K8S_POD_UID=1-2-3\t"
    ));
    let calls = scripted.calls();
    assert_eq!(calls[0].1, json!({"type": "first", "name": "net", "cniVersion": "1.1.0"}));
    let result = |by: &str| json!({"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}], "by": by});
    let ports = json!([{"hostPort": 1, "containerPort": 2, "protocol": "udp", "hostIP": ""}]);
    assert_eq!(
        calls[1],
        (
            "second ADD".to_owned(),
            json!({"type": "second", "name": "net", "cniVersion": "1.1.0", "prevResult": result("first"),
                "runtimeConfig": {"portMappings": ports}})
        )
    );
    scripted.network.check(&one).await.unwrap();
    let calls = scripted.calls();
    assert_eq!(
        calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(),
        ["first CHECK", "second CHECK"]
    );
    assert_eq!(calls[0].1["prevResult"], result("second"), "the whole list's result");
    scripted.network.detach(&one).await.unwrap();
    let calls = scripted.calls();
    assert_eq!(calls.iter().map(|(call, _)| call.as_str()).collect::<Vec<_>>(), ["second DEL", "first DEL"]);
    assert_eq!(calls[1].1["prevResult"], result("second"));
    scripted.network.detach(&one).await.unwrap();
    assert_eq!(
        scripted.commands(),
        ["second DEL", "first DEL"],
        "who knows nothing undoes what there may be"
    );
}

#[tokio::test]
async fn old_versions_are_not_asked_what_they_do_not_know() {
    let scripted = Scripted::new("0.3.1");
    let one = pod("one");
    scripted.network.attach(&one).await.unwrap();
    scripted.network.check(&one).await.unwrap();
    scripted.network.ready().await.unwrap();
    scripted.network.detach(&one).await.unwrap();
    scripted.network.collect(&[]).await.unwrap();
    let calls = scripted.calls();
    let commands: Vec<_> = calls.iter().map(|(call, _)| call.as_str()).collect();
    assert_eq!(commands, ["first ADD", "second ADD", "second DEL", "first DEL"]);
    assert_eq!(calls[2].1.get("prevResult"), None, "results are for later versions");
}

#[tokio::test]
async fn errors_are_told_and_undone() {
    let scripted = Scripted::new("1.1.0");
    let (network, one) = (&scripted.network, pod("one"));
    scripted.answer("second", "ADD", r#"echo '{"code": 11, "msg": "later", "details": "busy"}'; exit 1"#);
    let error = network.attach(&one).await.unwrap_err();
    assert_eq!(error.to_string(), "plugin second failed with code 11: later; busy");
    assert_eq!(scripted.commands(), ["first ADD", "second ADD", "second DEL", "first DEL"]);
    scripted.answer("second", "ADD", "echo no good >&2; exit 3");
    assert_eq!(network.attach(&one).await.unwrap_err().to_string(), "plugin second failed: no good");
    scripted.answer("second", "ADD", "echo nonsense; exit 0");
    assert!(matches!(network.attach(&one).await, Err(NetworkError::Plugin(PluginError::Unreadable(_)))));
    fs::remove_file(scripted.dir.path().join("bin/second")).unwrap();
    let error = network.attach(&one).await.unwrap_err();
    assert!(matches!(error, NetworkError::Plugin(PluginError::Missing(name, _)) if name == "second"));
    assert!(matches!(network.ready().await, Err(NetworkError::NotReady(_))));
    for id in ["", "../x", "a b"] {
        let strange = PodAttachment { id: id.to_owned(), ..pod("one") };
        assert!(matches!(network.attach(&strange).await, Err(NetworkError::Invalid(_))), "{id}");
    }
}

#[tokio::test]
async fn a_plugin_that_hangs_is_ended() {
    let scripted = Scripted::new("1.1.0");
    let mut options = CniOptions::default();
    options.config_dir = scripted.dir.path().join("net.d");
    options.cache_dir = scripted.dir.path().join("cache");
    options.plugin_dirs = vec![scripted.dir.path().join("bin")];
    options.loopback = false;
    options.timeout = Duration::from_millis(500);
    scripted.answer("first", "ADD", "exec tail -f /dev/null");
    let error = CniNetwork::new(options).attach(&pod("one")).await.unwrap_err();
    assert!(matches!(error, NetworkError::Plugin(PluginError::TimedOut { plugin, .. }) if plugin == "first"));
}

#[tokio::test]
async fn what_is_left_is_collected() {
    let scripted = Scripted::new("1.1.0");
    let network = &scripted.network;
    network.attach(&pod("alive")).await.unwrap();
    network.attach(&pod("dead")).await.unwrap();
    scripted.calls();
    network.collect(&["alive".to_owned()]).await.unwrap();
    let calls = scripted.calls();
    let commands: Vec<_> = calls.iter().map(|(call, _)| call.as_str()).collect();
    assert_eq!(commands, ["second DEL", "first DEL", "first GC", "second GC"]);
    assert_eq!(calls[2].1["cni.dev/valid-attachments"], json!([{"containerID": "alive", "ifname": "eth0"}]));
    assert!(network.check(&pod("dead")).await.is_err());
    scripted.calls();
    scripted.answer("second", "STATUS", r#"echo '{"code": 50, "msg": "no daemon"}'; exit 1"#);
    let error = network.ready().await.unwrap_err();
    assert_eq!(error.to_string(), "network is not ready: plugin second failed with code 50: no daemon");
    assert_eq!(scripted.commands(), ["first STATUS", "second STATUS"]);
}
