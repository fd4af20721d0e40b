//! Images that containers see as files (KEP-4639), by real OCI runtimes.

use std::{sync::Arc, time::Duration};

use kcore::TokioClock;
use kreconcile::{Informers, Manager, Start};
use kruntime::{
    ContainerRuntime, NodeAgent, NodeConfig, PodUid,
    images::CollectPolicy,
    runtime::{ContainerConfig, ImageMount},
    testing::{
        images::{Tar, write_layout},
        sandbox,
    },
};
use serde_json::{Value, json};

use crate::{
    fake::FakeApi,
    oci::{Subject, programs, run, shell, subject},
};

/// Two layers, of which the second one changes and removes files of the first.
async fn load_files(subject: &Subject) {
    let first = Tar::default()
        .directory("models/", 0o755)
        .file("models/a", 0o644, b"one\n")
        .file("models/gone", 0o644, b"gone\n")
        .symlink("current", "/models");
    let second = Tar::default().file("models/a", 0o644, b"two\n").file("models/.wh.gone", 0o644, b"");
    let layout = subject.dir.path().join("files");
    let layers = [first.finish(), second.finish()];
    write_layout(&layout, "example.test/files:1", &json!({}), &layers).unwrap();
    subject.options.images.load(&layout, None).await.unwrap();
}

fn with_images(config: ContainerConfig, images: &[(&str, &str, &str)]) -> ContainerConfig {
    let mount = |(image, target, sub_path): &(&str, &str, &str)| ImageMount {
        image: (*image).to_owned(),
        target: (*target).into(),
        sub_path: (*sub_path).to_owned(),
    };
    ContainerConfig { images: images.iter().map(mount).collect(), ..config }
}

const FILES: &str = "example.test/files:1";

#[tokio::test]
async fn containers_read_images() {
    for program in programs() {
        for overlay in [true, false] {
            let subject = subject(program, |options| options.overlay = overlay).await;
            load_files(&subject).await;
            let runtime = &subject.runtime;
            let uid = PodUid::from("images");
            runtime.run_pod(&uid, &sandbox("images")).await.unwrap();
            let all = [(FILES, "/all", ""), (FILES, "/part", "current"), (FILES, "/file", "models/a")];
            let script = "cat /all/models/a /part/a /file; ls /part; touch /all/x 2>/dev/null || echo refused; \
                          (echo more > /file) 2>/dev/null || echo refused";
            let (said, _) = run(runtime, &uid, &with_images(shell("c", script), &all)).await;
            assert_eq!(said, "two\ntwo\ntwo\na\nrefused\nrefused\n", "{program} {overlay}");

            // What isn't there is said; nothing of the try is left in the way of the next one.
            for (image, sub_path, reason, why) in [
                ("example.test/none:1", "", "CreateContainerError", "ImageVolumeMountFailed"),
                (FILES, "none", "CreateContainerError", "ImageVolumeMountFailed"),
                ("NOT A NAME", "", "InvalidImageName", "Failed to apply default image tag"),
            ] {
                let config = with_images(shell("bad", "true"), &[(FILES, "/a", ""), (image, "/b", sub_path)]);
                let error = runtime.start(&uid, &config).await.unwrap_err();
                assert_eq!(error.waiting_reason(), reason, "{error}");
                assert!(error.to_string().starts_with(why), "{error}");
            }
            let fixed = with_images(shell("bad", "cat /a/models/a"), &[(FILES, "/a", "")]);
            assert_eq!(run(runtime, &uid, &fixed).await.0, "two\n");

            // An image that is mounted is used as much as one that is run.
            let everything =
                CollectPolicy { high_percent: 0, low_percent: 0, age_min: Duration::ZERO, unused_max: None };
            assert!(runtime.collect_images(&everything).await.unwrap().is_empty(), "{program} {overlay}");
            runtime.remove_pod(&uid).await.unwrap();
            assert_eq!(runtime.collect_images(&everything).await.unwrap().len(), 2);
            let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
            let dir = subject.dir.path().to_string_lossy().into_owned();
            assert!(!mounts.contains(&dir), "{program} {overlay}: {mounts}");
        }
    }
}

/// The way from the pod's volume to the container, with its pull policy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_name_images_as_volumes() {
    let Some(program) = programs().pop() else { return };
    let subject = subject(program, |_| {}).await;
    load_files(&subject).await;
    let api = FakeApi::default();
    let informers = Informers::new(api.client());
    let mut config = NodeConfig::new("node", subject.runtime.clone() as Arc<dyn ContainerRuntime>);
    config.state_dir = Some(subject.dir.path().join("node"));
    let agent = NodeAgent::new(&informers, Arc::new(TokioClock::new()), [config]);
    let running = Manager::new().informers(&informers).add(Start::Always, agent).start();
    let pod = |name: &str, image: &str, mount: Value| {
        let script = "cat /models/a > /dev/termination-log";
        let container =
            json!({"name": "c", "image": "test", "command": ["sh", "-c", script], "volumeMounts": [mount]});
        let volume = json!({"name": "v", "image": {"reference": image, "pullPolicy": "Never"}});
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"nodeName": "node", "restartPolicy": "Never", "automountServiceAccountToken": false,
                "containers": [container], "volumes": [volume]},
            "status": {"phase": "Pending"},
        })
    };
    let mount = |sub_path: &str| json!({"name": "v", "mountPath": "/models", "subPath": sub_path});
    api.put(pod("good", FILES, mount("models")));
    api.put(pod("missing", "example.test/none:1", mount("")));
    api.put(pod("absolute", FILES, mount("/models")));
    let state = |pod: &Value| pod["status"]["containerStatuses"][0]["state"].clone();
    let until = api.until(|pods| {
        let waits = |name: &str| state(&pods[name])["waiting"]["message"].is_string();
        pods["good"]["status"]["phase"] == "Succeeded" && waits("missing") && waits("absolute")
    });
    tokio::time::timeout(Duration::from_secs(120), until).await.unwrap();
    let pods = api.pods();
    assert_eq!(state(&pods["good"])["terminated"]["message"], "two\n");
    for (name, reason, message) in [
        (
            "missing",
            "ErrImageNeverPull",
            "Container image \"example.test/none:1\" is not present with pull policy of Never",
        ),
        ("absolute", "CreateContainerConfigError", "error SubPath `/models` must not be an absolute path"),
    ] {
        let waiting = &state(&pods[name])["waiting"];
        assert_eq!(waiting["reason"], reason, "{waiting}");
        assert_eq!(waiting["message"], message, "{waiting}");
    }
    running.stop().await;
}
