//! A real kubectl. What it must print is what it prints against upstream (kubectl reference; `kubectl/pkg/cmd`).

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::Duration,
};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kplane::Cluster;

use crate::support::{Kubectl, PATIENCE, words};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: server, image: "example/server:1", ports: [{containerPort: 8080}]}
"#;

async fn simulated() -> Option<Kubectl> {
    let cluster = Cluster::builder().nodes(2).start().await.unwrap();
    let kubectl = Kubectl::new(cluster).await?;
    let account = kubectl.cluster.wait_until::<k8s_openapi::api::core::v1::ServiceAccount>(
        "default",
        "default",
        PATIENCE,
        |found| found.is_some(),
    );
    account.await.unwrap();
    Some(kubectl)
}

async fn available(kubectl: &Kubectl, replicas: i32) {
    let ready = |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.is_some_and(|status| {
            status.available_replicas == Some(replicas)
                && status.updated_replicas == Some(replicas)
                && status.replicas == Some(replicas)
        })
    };
    kubectl.cluster.wait_until::<Deployment>("default", "web", PATIENCE, ready).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_from_apply_to_delete() {
    let Some(kubectl) = simulated().await else { return };
    let web = kubectl.file("web.yaml", WEB);
    let expect =
        async |line: &str, expected: &str| assert_eq!(kubectl.run(line).await.trim_end(), expected, "{line}");
    let apply = format!("apply -f {web}");
    expect(&apply, "deployment.apps/web created").await;
    expect("rollout status deployment/web --timeout=60s", "deployment \"web\" successfully rolled out").await;
    available(&kubectl, 2).await;
    expect(&apply, "deployment.apps/web unchanged").await;
    let changed = kubectl.file("web2.yaml", &WEB.replace("server:1", "server:2"));
    let (same, difference) = kubectl.run_env(&format!("diff -f {changed}"), &[]).await;
    assert!(
        !same
            && difference.contains("-      - image: example/server:1")
            && difference.contains("+      - image: example/server:2"),
        "{difference}"
    );
    expect(&format!("apply -f {changed}"), "deployment.apps/web configured").await;
    kubectl.run("rollout status deployment/web --timeout=60s").await;
    available(&kubectl, 2).await;
    let history = kubectl.run("rollout history deployment/web").await;
    assert_eq!(
        history.lines().map(words).collect::<Vec<_>>(),
        [
            vec!["deployment.apps/web"],
            vec!["REVISION", "CHANGE-CAUSE"],
            vec!["1", "<none>"],
            vec!["2", "<none>"],
            vec![]
        ]
    );
    expect("rollout undo deployment/web", "deployment.apps/web rolled back").await;
    kubectl.run("rollout status deployment/web --timeout=60s").await;
    expect("get deployment web -o jsonpath={.spec.template.spec.containers[0].image}", "example/server:1")
        .await;
    expect("rollout restart deployment/web", "deployment.apps/web restarted").await;
    kubectl.run("rollout status deployment/web --timeout=60s").await;
    expect("rollout pause deployment/web", "deployment.apps/web paused").await;
    expect("rollout resume deployment/web", "deployment.apps/web resumed").await;
    expect("scale deployment web --replicas=4", "deployment.apps/web scaled").await;
    expect(
        "wait --for=condition=Available deployment/web --timeout=60s",
        "deployment.apps/web condition met",
    )
    .await;
    available(&kubectl, 4).await;
    expect("set image deployment/web server=example/server:3", "deployment.apps/web image updated").await;
    kubectl.run("rollout status deployment/web --timeout=60s").await;
    expect("expose deployment web --port=80 --target-port=8080", "service/web exposed").await;
    // kubectl 1.34 and later say from which namespace.
    assert!(
        kubectl
            .run("delete deployment web --cascade=foreground")
            .await
            .starts_with("deployment.apps \"web\" deleted")
    );
    let left = kubectl.run("get pods,replicasets -o name").await;
    assert_eq!(left, "", "everything that the deployment owned is gone first");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_shown_in_every_way() {
    let Some(kubectl) = simulated().await else { return };
    let web = kubectl.file("web.yaml", WEB);
    kubectl.run(&format!("create -f {web}")).await;
    available(&kubectl, 2).await;
    let table = kubectl.run("get deployment web").await;
    let rows: Vec<Vec<&str>> = table.lines().map(words).collect();
    assert_eq!(rows[0], ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]);
    assert_eq!(rows[1][..4], ["web", "2/2", "2", "2"]);
    let pods = kubectl.run("get pods -o wide").await;
    let rows: Vec<Vec<&str>> = pods.lines().map(words).collect();
    assert_eq!(rows[0].join(" "), "NAME READY STATUS RESTARTS AGE IP NODE NOMINATED NODE READINESS GATES");
    assert_eq!(rows[1][1..4], ["1/1", "Running", "0"]);
    assert_eq!(rows[1][7..], ["<none>", "<none>"]);
    let nodes = kubectl.run("get nodes").await;
    assert_eq!(words(nodes.lines().next().unwrap()), ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]);
    assert_eq!(words(nodes.lines().nth(1).unwrap())[..3], ["node-1", "Ready", "<none>"]);
    let services = kubectl.run("get services").await;
    assert_eq!(
        words(services.lines().nth(1).unwrap())[..5],
        ["kubernetes", "ClusterIP", "10.96.0.1", "<none>", "443/TCP"]
    );
    let json: serde_json::Value =
        serde_json::from_str(&kubectl.run("get deployment web -o json").await).unwrap();
    assert_eq!((&json["kind"], &json["spec"]["replicas"]), (&"Deployment".into(), &2.into()));
    assert!(
        kubectl
            .run("get deployment web -o yaml")
            .await
            .starts_with("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n")
    );
    assert_eq!(kubectl.run("get deployments -o jsonpath={.items[*].metadata.name}").await, "web");
    let columns = kubectl.run("get deployments -o custom-columns=N:.metadata.name,R:.spec.replicas").await;
    assert_eq!(columns.lines().map(words).collect::<Vec<_>>(), [["N", "R"], ["web", "2"]]);
    let selected = kubectl.run("get pods -l app=web --field-selector=status.phase=Running -o name").await;
    assert_eq!(selected.lines().count(), 2);
    assert_eq!(
        kubectl.fail("get pods nothing").await.trim_end(),
        "Error from server (NotFound): pods \"nothing\" not found"
    );
    assert_eq!(
        kubectl.fail("get frobs").await.trim_end(),
        "error: the server doesn't have a resource type \"frobs\""
    );
    let described = kubectl.run("describe deployment web").await;
    for line in [
        "Name:                   web",
        "Replicas:               2 desired | 2 updated | 2 total | 2 available | 0 unavailable",
        "StrategyType:           RollingUpdate",
    ] {
        assert!(described.contains(line), "{described}");
    }
    assert!(described.contains("Scaled up replica set web-"), "{described}");
    let resources = kubectl.run("api-resources --api-group=apps").await;
    let rows: Vec<Vec<&str>> = resources.lines().map(words).collect();
    assert_eq!(rows[0], ["NAME", "SHORTNAMES", "APIVERSION", "NAMESPACED", "KIND"]);
    assert!(rows.contains(&vec!["deployments", "deploy", "apps/v1", "true", "Deployment"]));
    let all = kubectl.run("get all -o name").await;
    assert!(
        all.contains("deployment.apps/web")
            && all.contains("service/kubernetes")
            && all.contains("replicaset.apps/web-"),
        "{all}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_changed_in_every_way() {
    let Some(kubectl) = simulated().await else { return };
    let expect =
        async |line: &str, expected: &str| assert_eq!(kubectl.run(line).await.trim_end(), expected, "{line}");
    expect("create configmap c --from-literal=a=1", "configmap/c created").await;
    expect("label configmap c tier=web", "configmap/c labeled").await;
    expect("label configmap c tier-", "configmap/c unlabeled").await;
    expect("annotate configmap c note=x", "configmap/c annotated").await;
    expect("get configmap c -o jsonpath={.metadata.annotations.note}", "x").await;
    for (kind, patch) in [
        ("merge", r#"{"data":{"b":"2"}}"#),
        ("strategic", r#"{"data":{"c":"3"}}"#),
        ("json", r#"[{"op":"remove","path":"/data/a"}]"#),
    ] {
        let out = kubectl.run_args(&["patch", "configmap", "c", "--type", kind, "-p", patch]).await;
        assert_eq!(out.trim_end(), "configmap/c patched");
    }
    expect("get configmap c -o jsonpath={.data}", r#"{"b":"2","c":"3"}"#).await;
    let editor = kubectl.script("editor", "#!/bin/sh\nexec sed -i 's/b: \"2\"/b: \"9\"/' \"$1\"\n");
    let (edited, said) = kubectl.run_env("edit configmap c", &[("KUBE_EDITOR", &editor)]).await;
    assert!(edited && said.contains("configmap/c edited"), "{said}");
    expect("get configmap c -o jsonpath={.data.b}", "9").await;
    expect("create secret generic s --from-literal=p=q", "secret/s created").await;
    expect("get secret s -o jsonpath={.data.p}", "cQ==").await;
    expect("create namespace extra", "namespace/extra created").await;
    expect("create service clusterip svc --tcp=80:8080", "service/svc created").await;
    expect("create job j --image=example/job -- true", "job.batch/j created").await;
    expect("run lone --image=example/lone --restart=Never", "pod/lone created").await;
    expect("delete namespace extra", "namespace \"extra\" deleted").await;
    expect("cordon node-1", "node/node-1 cordoned").await;
    let nodes = kubectl.run("get node node-1").await;
    assert_eq!(words(nodes.lines().nth(1).unwrap())[1], "Ready,SchedulingDisabled");
    expect("uncordon node-1", "node/node-1 uncordoned").await;
    let twice = kubectl.fail("create configmap c").await;
    assert_eq!(twice.trim_end(), "error: failed to create configmap: configmaps \"c\" already exists");
    let bad = kubectl.file("bad.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\nfrobs: 1\n");
    let refused = kubectl.fail(&format!("create -f {bad}")).await;
    assert!(refused.contains(r#"strict decoding error: unknown field "frobs""#), "{refused}");
    let stale = kubectl
        .file("stale.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c, resourceVersion: \"1\"}\n");
    let conflict = kubectl.fail(&format!("replace -f {stale}")).await;
    assert!(conflict.contains("Operation cannot be fulfilled on configmaps \"c\": the object has been modified; please apply your changes to the latest version and try again"), "{conflict}");
    let applied =
        kubectl.file("c.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {b: other}\n");
    let conflict = kubectl.fail(&format!("apply --server-side -f {applied}")).await;
    assert!(conflict.contains("Apply failed with 1 conflict: conflict with \"kubectl"), "{conflict}");
    assert!(conflict.contains("using v1: .data.b") && conflict.contains("--force-conflicts"), "{conflict}");
    expect(&format!("apply --server-side --force-conflicts -f {applied}"), "configmap/c serverside-applied")
        .await;
    expect("auth can-i create pods", "yes").await;
    let denied = kubectl.fail("get pods --as=system:anonymous").await;
    assert!(denied.contains("pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""), "{denied}");
    assert_eq!(
        kubectl.fail("delete configmap nothing").await.trim_end(),
        "Error from server (NotFound): configmaps \"nothing\" not found"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documentation_and_validation_come_from_the_server() {
    let Some(kubectl) = simulated().await else { return };
    let explained = kubectl.run("explain deployment.spec.replicas").await;
    assert!(
        explained.starts_with(
            "GROUP:      apps\nKIND:       Deployment\nVERSION:    v1\n\nFIELD: replicas <integer>\n"
        ),
        "{explained}"
    );
    assert!(explained.contains("Number of desired pods"), "{explained}");
    let fields = kubectl.run("explain pod.spec.containers").await;
    assert!(
        fields.contains("FIELD: containers <[]Container>") && fields.contains("livenessProbe\t<Probe>"),
        "{fields}"
    );
    let versions = kubectl.run("api-versions").await;
    assert!(
        versions.lines().any(|line| line == "apps/v1") && versions.lines().any(|line| line == "v1"),
        "{versions}"
    );
    let version = kubectl.run("version").await;
    assert!(version.contains("Server Version: v1.37.0"), "{version}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_shows_changes_as_they_come() {
    let Some(kubectl) = simulated().await else { return };
    let mut command = kubectl.command(&[
        "get",
        "pods",
        "-w",
        "--no-headers",
        "-o",
        "custom-columns=N:.metadata.name,P:.status.phase",
    ]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = child.stdout.take().unwrap();
    let (lines, mut seen) = tokio::sync::mpsc::channel(64);
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                break;
            }
        }
    });
    kubectl.run("run lone --image=example/lone").await;
    let running = async {
        while let Some(line) = seen.recv().await {
            if words(&line) == ["lone", "Running"] {
                return;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(PATIENCE, running).await.unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_and_exec_reach_real_processes() {
    let cluster = Cluster::builder().nodes(1).processes().unwrap().start().await.unwrap();
    let Some(kubectl) = Kubectl::new(cluster).await else { return };
    kubectl
        .cluster
        .wait_until::<k8s_openapi::api::core::v1::ServiceAccount>("default", "default", PATIENCE, |found| {
            found.is_some()
        })
        .await
        .unwrap();
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"terminationGracePeriodSeconds": 1, "restartPolicy": "Never", "containers": [
        {"name": "c", "image": "none", "command": ["sh", "-c", "echo one; echo two; cat >/dev/null; sleep 0.2; echo three; exec sleep 1000"]}]}}"#;
    kubectl.run(&format!("create -f {}", kubectl.file("pod.json", pod))).await;
    let running = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref())
            .is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    kubectl.cluster.wait_until::<Pod>("default", "p", PATIENCE, running).await.unwrap();
    let follow = kubectl.command(&["logs", "-f", "p"]).stdout(Stdio::piped()).spawn().unwrap();
    let (followed, exec) = tokio::join!(
        tokio::time::timeout(
            PATIENCE,
            tokio::task::spawn_blocking(move || {
                let mut follow = follow;
                let lines: Vec<String> = BufReader::new(follow.stdout.take().unwrap())
                    .lines()
                    .map_while(Result::ok)
                    .take(3)
                    .collect();
                follow.kill().unwrap();
                follow.wait().unwrap();
                lines
            })
        ),
        kubectl.run_args(&["exec", "p", "--", "sh", "-c", "echo $0-$((40 + 2))", "answer"]),
    );
    assert_eq!(followed.unwrap().unwrap(), ["one", "two", "three"]);
    assert_eq!(exec, "answer-42\n");
    assert_eq!(kubectl.run("logs p --tail=1").await, "three\n");
    let failed = kubectl.fail("exec p -- sh -c exit\\ 3").await;
    assert!(failed.contains("command terminated with exit code") || failed.contains("exit"), "{failed}");
    let output = tokio::task::spawn_blocking({
        let mut command = kubectl.command(&["exec", "-i", "p", "--", "tr", "a-z", "A-Z"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        move || {
            use std::io::Write as _;
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(b"shout\n").unwrap();
            child.wait_with_output().unwrap()
        }
    });
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(30), output).await.unwrap().unwrap().stdout,
        b"SHOUT\n"
    );
    assert!(kubectl.run("delete pod p").await.starts_with("pod \"p\" deleted"));
}
