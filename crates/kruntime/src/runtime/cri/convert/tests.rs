use super::*;

/// After the enumeration `Signal` of `api.proto`.
#[test]
fn signals_have_the_interfaces_numbers() {
    for (name, number) in [
        ("SIGABRT", 1),
        ("SIGINT", 10),
        ("SIGKILL", 13),
        ("SIGTERM", 23),
        ("SIGXFSZ", 34),
        ("SIGRTMIN", 35),
        ("SIGRTMIN+15", 50),
        ("SIGRTMAX-14", 51),
        ("SIGRTMAX-1", 64),
        ("SIGRTMAX", 65),
        ("SIGRTMIN+16", 0),
        ("SIGNOTHING", 0),
    ] {
        assert_eq!(signal(name), number, "{name}");
    }
}

/// After `verifyRunAsNonRoot` and `getImageUser` of upstream's kuberuntime.
#[test]
fn users_are_the_containers_or_the_images() {
    let image = |uid: Option<i64>, name: &str| pb::Image {
        uid: uid.map(|value| pb::Value64 { value }),
        username: name.to_owned(),
        ..pb::Image::default()
    };
    let refused = None;
    for (own, non_root, image, expected) in [
        (None, false, image(Some(0), ""), Some((Some(0), ""))),
        (None, false, image(None, ""), Some((None, ""))),
        (None, false, image(None, "app"), Some((None, "app"))),
        (None, false, image(Some(5), ""), Some((Some(5), ""))),
        (None, true, image(Some(5), ""), Some((Some(5), ""))),
        (None, true, image(Some(0), ""), refused),
        (None, true, image(None, "app"), refused),
        (None, true, image(None, ""), refused),
        (Some(7), true, image(None, "app"), Some((Some(7), ""))),
        (Some(0), true, image(Some(5), ""), refused),
        (Some(0), false, image(Some(5), ""), Some((Some(0), ""))),
    ] {
        let config =
            ContainerConfig { run_as_user: own, run_as_non_root: non_root, ..ContainerConfig::default() };
        let found = run_as(&config, &image).ok();
        let found = found.as_ref().map(|(user, name)| (user.map(|user| user.value), name.as_str()));
        assert_eq!(found, expected, "{own:?} {non_root} {image:?}");
    }
}

/// The namespaces of a pod, after "namespacesForPod" of upstream's kuberuntime.
#[test]
fn namespaces_are_as_the_pod_says() {
    use pb::NamespaceMode::{Container, Node, Pod};
    for (config, expected) in [
        (SandboxConfig::default(), (Pod, Container, Pod)),
        (SandboxConfig { host_network: true, ..SandboxConfig::default() }, (Node, Container, Pod)),
        (SandboxConfig { host_pid: true, host_ipc: true, ..SandboxConfig::default() }, (Pod, Node, Node)),
        (SandboxConfig { share_processes: true, ..SandboxConfig::default() }, (Pod, Pod, Pod)),
        (
            SandboxConfig { share_processes: true, host_pid: true, ..SandboxConfig::default() },
            (Pod, Node, Pod),
        ),
    ] {
        let found = namespaces(&config);
        assert_eq!((found.network(), found.pid(), found.ipc()), expected, "{config:?}");
    }
}

#[test]
fn a_resolvers_file_is_taken_apart() {
    let found =
        dns("search a.svc b\nnameserver 10.0.0.10\nnameserver 10.0.0.11\noptions ndots:5 rotate\n# no\n");
    assert_eq!(found.servers, ["10.0.0.10", "10.0.0.11"]);
    assert_eq!(found.searches, ["a.svc", "b"]);
    assert_eq!(found.options, ["ndots:5", "rotate"]);
}

/// What a runtime writes with a container, the next one reads.
#[test]
fn traits_come_back() {
    for bits in 0..8_u8 {
        let traits = Traits { message_from_log: bits & 1 != 0, tty: bits & 2 != 0, stdin: bits & 4 != 0 };
        assert_eq!(Traits::read(&traits.annotations()), traits);
    }
}

/// The container's own mounts go before the runtime's.
#[test]
fn own_files_are_not_put_over_volumes() {
    let files = OwnFiles { hosts: Some("/h".into()), message: "/m".into(), log: "c/0.log".to_owned() };
    let targets = |targets: &[&str], message: Option<&str>| -> Vec<String> {
        let mount = |target: &&str| Mount {
            source: "/v".into(),
            target: target.into(),
            read_only: false,
            propagation: Propagation::None,
        };
        let config = ContainerConfig {
            mounts: targets.iter().map(mount).collect(),
            termination_message_path: message.map(Into::into),
            ..ContainerConfig::default()
        };
        mounts(&config, &files)
            .into_iter()
            .map(|mount| mount.host_path + ":" + &mount.container_path)
            .collect()
    };
    assert_eq!(targets(&[], Some("/t")), ["/h:/etc/hosts", "/m:/t"]);
    assert_eq!(targets(&["/etc/hosts"], None), ["/v:/etc/hosts"]);
    assert_eq!(targets(&["/t"], Some("/t")), ["/v:/t", "/h:/etc/hosts"]);
}

/// As the wire has it (`api.proto` of CRI v1: `Mount` has `image = 9` and `image_sub_path = 10`).
#[test]
fn image_volumes_are_images_of_the_server() {
    let wanted = ImageMount { image: "one:1".to_owned(), target: "/m".into(), sub_path: "a/b".to_owned() };
    let found = prost::Message::encode_to_vec(&image_mount(&wanted, "sha256:1"));
    let spec = [&b"\x0a\x08sha256:1"[..], b"\x92\x01\x05one:1"].concat();
    let expected = [&b"\x0a\x02/m"[..], b"\x18\x01", b"\x4a\x12", &spec, b"\x52\x03a/b"].concat();
    assert_eq!(found, expected);
}
