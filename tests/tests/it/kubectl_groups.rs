//! kubectl's command groups, one test each, with every kubectl that is there. What it must print is what it prints against
//! upstream (kubectl reference, `kubectl/pkg/cmd`, `pkg/printers/internalversion`).

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, Pod, ServiceAccount},
};
use kplane::Cluster;

use crate::support::{Kubectl, PATIENCE, kubectls, words};

/// What a command must answer. Files of a scenario are named `@name` in a line.
enum Answer {
    /// It succeeds and prints exactly this, ends of lines aside.
    Is(&'static str),
    /// It succeeds, and each of these is in what it prints.
    Has(&'static [&'static str]),
    /// It succeeds and prints these lines, each the same but for the widths of its columns; `*` stands for any one word.
    Rows(&'static [&'static str]),
    /// It fails and says this, at least.
    Refused(&'static str),
}
use Answer::{Has, Is, Refused, Rows};

fn same_row(line: &str, expected: &str) -> bool {
    let (line, expected) = (words(line), words(expected));
    line.len() == expected.len()
        && line.iter().zip(expected).all(|(word, wanted)| wanted == "*" || *word == wanted)
}

/// Runs the lines of a scenario in turn.
async fn check(kubectl: &Kubectl, files: &[(&str, &str)], steps: &[(&str, Answer)]) {
    let mut paths: Vec<_> =
        files.iter().map(|(name, content)| (*name, kubectl.file(name, content))).collect();
    // The longest first, so that no name is taken for another's beginning.
    paths.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    for (line, answer) in steps {
        let real = paths
            .iter()
            .fold((*line).to_owned(), |line, (name, path)| line.replace(&format!("@{name}"), path));
        match answer {
            Refused(why) => {
                let said = kubectl.fail(&real).await;
                assert!(said.contains(why), "kubectl {line}\nsaid   {said}\nwanted {why}");
            }
            Is(expected) => assert_eq!(kubectl.run(&real).await.trim_end(), *expected, "kubectl {line}"),
            Has(parts) => {
                let (succeeded, said) = kubectl.run_env(&real, &[]).await;
                assert!(succeeded, "kubectl {line}\n{said}");
                for part in *parts {
                    assert!(said.contains(part), "kubectl {line}\nwanted {part}\nin     {said}");
                }
            }
            Rows(expected) => {
                let said = kubectl.run(&real).await;
                let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
                let same = lines.len() == expected.len()
                    && lines.iter().zip(*expected).all(|(line, expected)| same_row(line, expected));
                assert!(same, "kubectl {line}\nsaid\n{said}\nwanted\n{}", expected.join("\n"));
            }
        }
    }
}

/// Runs a scenario once for each kubectl, each time in a cluster of its own.
async fn each(scenario: impl AsyncFn(&Kubectl)) {
    for program in kubectls() {
        let cluster = Cluster::builder().nodes(2).start().await.unwrap();
        let account =
            cluster.wait_until::<ServiceAccount>("default", "default", PATIENCE, |found| found.is_some());
        account.await.unwrap();
        let kubectl = Kubectl::of(cluster, program).await;
        scenario(&kubectl).await;
    }
}

async fn available(kubectl: &Kubectl, replicas: i32) {
    let ready = |deployment: Option<&Deployment>| {
        deployment.and_then(|deployment| deployment.status.as_ref()).is_some_and(|status| {
            status.available_replicas == Some(replicas)
                && status.updated_replicas == Some(replicas)
                && status.replicas == Some(replicas)
        })
    };
    kubectl.cluster.wait_until::<Deployment>("default", "web", PATIENCE, ready).await.unwrap();
}

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

const ONE: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {set: p}}
data: {a: "1"}
"#;

const PAIR: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: one, labels: {set: p}}
data: {a: "2"}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: two, labels: {set: p}}
data: {a: "1"}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_apply_diff_replace_and_prune() {
    each(async |kubectl| {
        let files = [("one", ONE), ("pair", PAIR)];
        let steps = [
            ("create -f @one --dry-run=server", Is("configmap/one created (server dry run)")),
            ("get configmap one", Refused("Error from server (NotFound): configmaps \"one\" not found")),
            ("create -f @one", Is("configmap/one created")),
            ("create -f @one", Refused("Error from server (AlreadyExists): error when creating")),
            // What create made, apply takes over with a warning.
            (
                "apply -f @one",
                Has(&[
                    "Warning: resource configmaps/one is missing the kubectl.kubernetes.io/last-applied-configuration annotation which is required by kubectl apply.",
                    "configmap/one configured",
                ]),
            ),
            ("apply -f @one", Is("configmap/one unchanged")),
            ("apply view-last-applied configmap one -o json", Has(&["\"a\": \"1\""])),
            ("apply -f @pair", Is("configmap/one configured\nconfigmap/two created")),
            ("diff -f @pair", Is("")),
            ("diff -f @one", Refused("")),
            (
                "apply --prune -l set=p --prune-allowlist=core/v1/ConfigMap -f @one",
                Is("configmap/one configured\nconfigmap/two pruned"),
            ),
            ("get configmaps -l set=p -o name", Is("configmap/one")),
            (
                "apply --server-side -f @pair",
                Has(&["configmap/two serverside-applied"]),
            ),
        ];
        // The first apply on the server's side takes over what was applied on the client's, so nothing conflicts.
        check(kubectl, &files, &steps).await;
        let steps = [
            ("apply --server-side --field-manager=other -f @one", Refused("Apply failed with 1 conflict: conflict with \"kubectl\": .data.a")),
            ("apply --server-side --field-manager=other --force-conflicts -f @one", Is("configmap/one serverside-applied")),
            ("get configmap one -o jsonpath={.data.a}", Is("1")),
            ("get configmap one --show-managed-fields -o jsonpath={.metadata.managedFields[?(@.manager==\"other\")].operation}",
                Is("Apply")),
            ("replace -f @pair", Is("configmap/one replaced\nconfigmap/two replaced")),
            ("replace --force -f @one", Has(&["configmap \"one\" deleted", "configmap/one replaced"])),
            ("delete -f @pair", Has(&["configmap \"one\" deleted", "configmap \"two\" deleted"])),
            ("replace -f @one", Refused("Error from server (NotFound): error when replacing")),
            ("delete -f @pair --ignore-not-found", Is("")),
        ];
        check(kubectl, &files, &steps).await;
    })
    .await;
}

const GAUGES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gauges.lab.example}
spec:
  group: lab.example
  scope: Namespaced
  names: {plural: gauges, singular: gauge, kind: Gauge, shortNames: [ga], categories: [lab]}
  versions:
  - name: v1
    served: true
    storage: true
    additionalPrinterColumns:
    - {name: Site, type: string, jsonPath: .spec.site}
    - {name: Level, type: integer, jsonPath: .spec.level, priority: 1}
    selectableFields: [{jsonPath: .spec.site}]
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}
    schema:
      openAPIV3Schema:
        description: A gauge that shows a level.
        type: object
        properties:
          spec:
            description: What the gauge measures.
            type: object
            required: [site]
            properties:
              site: {description: Where the gauge hangs., type: string, enum: [north, south]}
              level: {description: The level in percent., type: integer, minimum: 0, maximum: 100}
              replicas: {type: integer, default: 1}
              parts: {type: array, items: {type: object, properties: {name: {type: string}}}}
          status:
            type: object
            properties:
              replicas: {type: integer}
              conditions:
                type: array
                items: {type: object, properties: {type: {type: string}, status: {type: string}}}
"#;

const GAUGE: &str = r#"
apiVersion: lab.example/v1
kind: Gauge
metadata: {name: g, labels: {app: g}}
spec: {site: north, level: 7}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources() {
    each(async |kubectl| {
        let wrong = GAUGE.replace("level: 7", "level: 7, colour: red");
        let files = [("gauges", GAUGES), ("gauge", GAUGE), ("wrong", wrong.as_str())];
        let steps = [
            ("apply -f @gauges", Is("customresourcedefinition.apiextensions.k8s.io/gauges.lab.example created")),
            (
                "wait --for=condition=Established crd/gauges.lab.example --timeout=30s",
                Is("customresourcedefinition.apiextensions.k8s.io/gauges.lab.example condition met"),
            ),
            (
                "api-resources --api-group=lab.example",
                Rows(&["NAME SHORTNAMES APIVERSION NAMESPACED KIND", "gauges ga lab.example/v1 true Gauge"]),
            ),
            (
                "explain gauge",
                Has(&[
                    "GROUP:      lab.example\nKIND:       Gauge\nVERSION:    v1\n",
                    "DESCRIPTION:\n    A gauge that shows a level.",
                    "  metadata\t<ObjectMeta>",
                    "  spec\t<Object>\n    What the gauge measures.",
                ]),
            ),
            (
                "explain gauge.spec",
                Has(&[
                    "FIELD: spec <Object>",
                    "  level\t<integer>\n    The level in percent.",
                    "  site\t<string> -required-\n  enum: north, south\n    Where the gauge hangs.",
                    "  parts\t<[]Object>",
                ]),
            ),
            ("create -f @wrong", Refused("strict decoding error: unknown field \"spec.colour\"")),
            ("create --validate=ignore -f @wrong", Is("gauge.lab.example/g created")),
            ("get gauge g -o jsonpath={.spec}", Is(r#"{"level":7,"replicas":1,"site":"north"}"#)),
            ("get ga", Rows(&["NAME SITE", "g north"])),
            ("get gauges -o wide", Rows(&["NAME SITE LEVEL", "g north 7"])),
            ("get lab -o name", Is("gauge.lab.example/g")),
            ("get gauges --field-selector spec.site=north -o name", Is("gauge.lab.example/g")),
            ("get gauges --field-selector spec.site=south -o name", Is("")),
            ("get gauges --field-selector spec.level=7", Refused("field label not supported: spec.level")),
            ("apply --server-side -f @gauge", Is("gauge.lab.example/g serverside-applied")),
            (r#"patch gauge g --type merge -p {"spec":{"level":9}}"#, Is("gauge.lab.example/g patched")),
            (r#"patch gauge g --type merge -p {"spec":{"level":9}}"#, Is("gauge.lab.example/g patched (no change)")),
            (r#"patch gauge g -p {"spec":{"level":9}}"#, Refused("application/strategic-merge-patch+json is not supported by lab.example/v1, Kind=Gauge")),
            (
                r#"patch gauge g --type merge -p {"spec":{"site":"west","level":200}}"#,
                Refused("spec.site: Unsupported value: \"west\": supported values: \"north\", \"south\""),
            ),
            (
                r#"patch gauge g --type merge -p {"spec":{"level":200}}"#,
                Refused("The Gauge \"g\" is invalid: spec.level: Invalid value: 200: spec.level in body should be less than or equal to 100"),
            ),
            ("apply --server-side --field-manager=other -f @gauge", Refused("conflict with \"kubectl-patch\" using lab.example/v1: .spec.level")),
            (
                r#"patch gauge g --subresource=status --type merge -p {"status":{"replicas":2,"conditions":[{"type":"Ready","status":"True"}]}}"#,
                Is("gauge.lab.example/g patched"),
            ),
            ("wait --for=condition=Ready gauge/g --timeout=30s", Is("gauge.lab.example/g condition met")),
            ("wait --for=jsonpath={.status.replicas}=2 gauge/g --timeout=30s", Is("gauge.lab.example/g condition met")),
            ("scale gauge/g --replicas=3", Is("gauge.lab.example/g scaled")),
            ("get gauge g -o jsonpath={.spec.replicas}", Is("3")),
            ("get gauge g --subresource=scale", Rows(&["NAME DESIRED AVAILABLE AGE", "g 3 2 *"])),
            ("label gauge g tier=top", Is("gauge.lab.example/g labeled")),
            ("get gauges -l tier=top,app=g -o name", Is("gauge.lab.example/g")),
            ("describe gauge g", Has(&["Name:         g\n", "API Version:  lab.example/v1\n", "  Site:      north\n"])),
            ("delete gauge g", Has(&["gauge.lab.example \"g\" deleted"])),
            ("wait --for=delete gauge/g --timeout=30s", Is("")),
            ("create --validate=ignore -f @wrong", Is("gauge.lab.example/g created")),
            ("delete -f @gauges", Has(&["customresourcedefinition.apiextensions.k8s.io \"gauges.lab.example\" deleted"])),
            ("get --raw /apis/lab.example/v1/gauges", Refused("the server could not find the requested resource")),
            // A new definition of the same name starts empty.
            ("apply -f @gauges", Has(&["created"])),
            ("wait --for=condition=Established crd/gauges.lab.example --timeout=30s", Has(&["condition met"])),
            ("get gauges -o name", Is("")),
        ];
        check(kubectl, &files, &steps).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_annotations_set_scale_and_rollout() {
    each(async |kubectl| {
        let files = [("web", WEB)];
        let steps = [
            ("apply -f @web", Is("deployment.apps/web created")),
            ("label deployment web a=b", Is("deployment.apps/web labeled")),
            (
                "label deployment web a=c",
                Refused("error: 'a' already has a value (b), and --overwrite is false"),
            ),
            ("label deployment web a=c --overwrite", Is("deployment.apps/web labeled")),
            ("label deployment web a=c", Is("deployment.apps/web not labeled")),
            ("label deployment web a-", Is("deployment.apps/web unlabeled")),
            ("label deployment web bad/label/x=y", Refused("The Deployment \"web\" is invalid: metadata.labels: Invalid value: \"bad/label/x\": a qualified name must consist of")),
            ("annotate deployment web kubernetes.io/change-cause=first", Is("deployment.apps/web annotated")),
            (
                "rollout status deployment/web --timeout=60s",
                Has(&["deployment \"web\" successfully rolled out"]),
            ),
        ];
        check(kubectl, &files, &steps).await;
        available(kubectl, 2).await;
        let steps = [
            ("set image deployment/web server=example/server:2", Is("deployment.apps/web image updated")),
            ("set image deployment/web other=x", Refused("error: unable to find container named \"other\"")),
            (
                "annotate deployment web kubernetes.io/change-cause=second --overwrite",
                Is("deployment.apps/web annotated"),
            ),
            ("rollout status deployment/web --timeout=60s", Has(&["successfully rolled out"])),
        ];
        check(kubectl, &files, &steps).await;
        available(kubectl, 2).await;
        let steps = [
            (
                "rollout history deployment/web",
                Rows(&["deployment.apps/web", "REVISION CHANGE-CAUSE", "1 first", "2 second"]),
            ),
            (
                "rollout history deployment/web --revision=1",
                Has(&["with revision #1", "Image:\texample/server:1"]),
            ),
            ("rollout undo deployment/web --to-revision=1", Is("deployment.apps/web rolled back")),
            (
                "rollout undo deployment/web --to-revision=9",
                Refused("error: unable to find specified revision 9 in history"),
            ),
            ("rollout pause deployment/web", Is("deployment.apps/web paused")),
            ("rollout pause deployment/web", Refused("error: deployments.apps \"web\" is already paused")),
            ("set env deployment/web A=b", Is("deployment.apps/web env updated")),
            ("set env deployment/web --list", Is("# Deployment web, container server\nA=b")),
            (
                "set resources deployment/web --limits=cpu=100m,memory=64Mi --requests=cpu=50m",
                Is("deployment.apps/web resource requirements updated"),
            ),
            (
                "get deployment web -o jsonpath={.spec.template.spec.containers[0].resources}",
                Is(r#"{"limits":{"cpu":"100m","memory":"64Mi"},"requests":{"cpu":"50m"}}"#),
            ),
            ("create serviceaccount builder", Is("serviceaccount/builder created")),
            ("set serviceaccount deployment/web builder", Is("deployment.apps/web serviceaccount updated")),
            (
                "set resources deployment/web --limits=cpu=50m --requests=cpu=100m",
                Refused("must be less than or equal to cpu limit"),
            ),
            ("rollout resume deployment/web", Is("deployment.apps/web resumed")),
            ("rollout status deployment/web --timeout=60s", Has(&["successfully rolled out"])),
            (
                "autoscale deployment web --min=1 --max=5 --cpu-percent=50",
                Has(&["horizontalpodautoscaler.autoscaling/web autoscaled"]),
            ),
            (
                "get hpa web",
                Rows(&[
                    "NAME REFERENCE TARGETS MINPODS MAXPODS REPLICAS AGE",
                    "web Deployment/web cpu: <unknown>/50% 1 5 * *",
                ]),
            ),
            (
                "scale --current-replicas=7 --replicas=3 deployment/web",
                Refused("error: Expected replicas to be 7, was 2"),
            ),
            ("scale --current-replicas=2 --replicas=3 deployment/web", Is("deployment.apps/web scaled")),
            (
                "wait --for=jsonpath={.status.availableReplicas}=3 deployment/web --timeout=60s",
                Is("deployment.apps/web condition met"),
            ),
            ("get deployment web --subresource=scale", Rows(&["NAME DESIRED AVAILABLE AGE", "web 3 3 *"])),
        ];
        check(kubectl, &files, &steps).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn get_selects_sorts_pages_and_shows() {
    each(async |kubectl| {
        let maps: String = (0..7)
            .map(|n| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m{n}, labels: {{num: \"{n}\", odd: \"{}\"}}}}\ndata: {{order: \"{}\"}}\n---\n", n % 2, 9 - n))
            .collect();
        let files = [("maps", maps.as_str()), ("one", ONE)];
        let steps = [
            ("create -f @maps", Has(&["configmap/m0 created", "configmap/m6 created"])),
            ("get configmaps -l odd=1 -o name", Is("configmap/m1\nconfigmap/m3\nconfigmap/m5")),
            ("get configmaps -l odd!=1,num,num!=4 -o name", Is("configmap/m0\nconfigmap/m2\nconfigmap/m6")),
            ("get configmaps -l num -o name --chunk-size=2", Is("configmap/m0\nconfigmap/m1\nconfigmap/m2\nconfigmap/m3\nconfigmap/m4\nconfigmap/m5\nconfigmap/m6")),
            (
                "get configmaps -l odd=0 --sort-by={.data.order} -o name",
                Is("configmap/m6\nconfigmap/m4\nconfigmap/m2\nconfigmap/m0"),
            ),
            ("get configmaps --field-selector=metadata.name=m3 -o name", Is("configmap/m3")),
            ("get configmaps --field-selector=metadata.name!=m3 -l odd=1 -o name", Is("configmap/m1\nconfigmap/m5")),
            ("get configmaps --field-selector=data.order=1", Refused("\"data.order\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")),
            ("get configmaps -l num=3 -L odd", Rows(&["NAME DATA AGE ODD", "m3 1 * 1"])),
            ("get configmaps -l num=3 --show-labels", Rows(&["NAME DATA AGE LABELS", "m3 1 * num=3,odd=1"])),
            ("get configmaps -l num=3 --no-headers", Rows(&["m3 1 *"])),
            ("get configmap/m1 configmap/m2 --no-headers", Rows(&["m1 1 *", "m2 1 *"])),
            ("get configmaps -l nothing", Has(&["No resources found in default namespace."])),
            ("get configmap m1 nothing -o name", Refused("Error from server (NotFound): configmaps \"nothing\" not found")),
            ("get configmap nothing --ignore-not-found", Is("")),
            ("get --raw /api/v1/namespaces/default/configmaps/m1?fieldManager=x", Has(&["\"kind\":\"ConfigMap\"", "\"name\":\"m1\""])),
            ("get --raw /livez?verbose", Has(&["[+]ping ok", "livez check passed"])),
            ("get --raw /frobs", Refused("Error from server (NotFound): the server could not find the requested resource")),
            ("get configmap m1 -o yaml", Has(&["apiVersion: v1\ndata:\n  order: \"8\"\nkind: ConfigMap\nmetadata:\n"])),
            ("get configmap m1 --show-managed-fields -o jsonpath={.metadata.managedFields[0].manager}:{.metadata.managedFields[0].operation}", Is("kubectl-create:Update")),
            ("get configmap m1 --show-managed-fields -o jsonpath={.metadata.managedFields[0].fieldsV1}", Is(r#"{"f:data":{".":{},"f:order":{}},"f:metadata":{"f:labels":{".":{},"f:num":{},"f:odd":{}}}}"#)),
            ("get configmaps -A -l num=1", Rows(&["NAMESPACE NAME DATA AGE", "default m1 1 *"])),
            ("get configmaps -l num=1 -o go-template={{range.items}}{{.metadata.name}}{{end}}", Is("m1")),
            ("get service kubernetes -o jsonpath={.spec.ports[0].targetPort}", Is("6443")),
        ];
        check(kubectl, &files, &steps).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_and_may() {
    each(async |kubectl| {
        let steps = [
            (
                "auth whoami",
                Rows(&["ATTRIBUTE VALUE", "Username kubernetes-admin", "Groups [system:masters system:authenticated]"]),
            ),
            (
                "auth whoami --as=ann --as-group=dev",
                Rows(&["ATTRIBUTE VALUE", "Username ann", "Groups [dev system:authenticated]"]),
            ),
            ("auth can-i create deployments.apps", Is("yes")),
            ("auth can-i create pods/exec --subresource=log", Has(&["yes"])),
            ("auth can-i get /healthz", Has(&["yes"])),
            ("auth can-i list pods --as=system:anonymous --as-group=system:unauthenticated", Refused("")),
            ("auth can-i --list", Has(&["*.*", "[*]"])),
            ("get pods --as=system:anonymous --as-group=system:unauthenticated", Refused(
                "Error from server (Forbidden): pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"",
            )),
        ];
        check(kubectl, &[], &steps).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_tainted_cordoned_and_drained() {
    each(async |kubectl| {
        let steps = [
            ("taint node node-1 k=v:NoSchedule", Is("node/node-1 tainted")),
            (
                "taint node node-1 k=v:NoSchedule",
                Refused(
                    "error: node node-1 already has k taint(s) with same effect(s) and --overwrite is false",
                ),
            ),
            ("taint node node-1 k=w:NoSchedule --overwrite", Is("node/node-1 modified")),
            (
                "get node node-1 -o jsonpath={.spec.taints}",
                Is(r#"[{"effect":"NoSchedule","key":"k","value":"w"}]"#),
            ),
            ("taint node node-1 k:NoSchedule-", Is("node/node-1 untainted")),
            ("apply -f @web", Is("deployment.apps/web created")),
            ("rollout status deployment/web --timeout=60s", Has(&["successfully rolled out"])),
            ("run lone --image=example/lone", Is("pod/lone created")),
            ("wait --for=condition=Ready pod/lone --timeout=60s", Is("pod/lone condition met")),
            ("cordon node-1", Is("node/node-1 cordoned")),
            ("cordon node-1", Is("node/node-1 already cordoned")),
            ("uncordon node-1", Is("node/node-1 uncordoned")),
        ];
        check(kubectl, &[("web", WEB)], &steps).await;
        let node = kubectl.run("get pod lone -o jsonpath={.spec.nodeName}").await;
        let refused = kubectl.fail(&format!("drain {node} --ignore-daemonsets --timeout=60s")).await;
        assert!(
            refused.contains(
                "cannot delete Pods that declare no controller (use --force to override): default/lone"
            ),
            "{refused}"
        );
        let drained = kubectl
            .run(&format!("drain {node} --ignore-daemonsets --force --grace-period=0 --timeout=60s"))
            .await;
        assert!(
            drained.contains("pod/lone evicted") && drained.contains(&format!("node/{node} drained")),
            "{drained}"
        );
        available(kubectl, 2).await;
        let steps = [
            ("get nodes --no-headers -o custom-columns=S:.spec.unschedulable", Has(&["true"])),
            ("get pod lone", Refused("pods \"lone\" not found")),
            ("uncordon node-1 node-2", Has(&["node/node-1", "node/node-2"])),
            ("uncordon node-1", Is("node/node-1 already uncordoned")),
        ];
        check(kubectl, &[], &steps).await;
        let free = |node: Option<&Node>| {
            node.is_some_and(|node| node.spec.as_ref().is_some_and(|spec| spec.unschedulable.is_none()))
        };
        kubectl.cluster.wait_until::<Node>("", &node, PATIENCE, free).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_approved_and_denied() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "jane");
    let request = parameters.serialize_request(&key).unwrap().pem().unwrap();
    let file = |name: &str, request: &str| {
        serde_json::json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
            "spec": {"request": k8s_openapi::ByteString(request.as_bytes().to_vec()), "usages": ["client auth"],
                "signerName": "kubernetes.io/kube-apiserver-client", "username": "somebody-else"},
        })
        .to_string()
    };
    let (jane, joan, bad) = (file("jane", &request), file("joan", &request), file("bad", "nonsense"));
    each(async |kubectl| {
        let files = [("jane", jane.as_str()), ("joan", &joan), ("bad", &bad)];
        let steps = [
            ("create -f @jane", Is("certificatesigningrequest.certificates.k8s.io/jane created")),
            ("create -f @joan", Is("certificatesigningrequest.certificates.k8s.io/joan created")),
            ("create -f @bad", Refused("spec.request: Invalid value:")),
            (
                "get csr jane",
                Rows(&[
                    "NAME AGE SIGNERNAME REQUESTOR REQUESTEDDURATION CONDITION",
                    "jane * kubernetes.io/kube-apiserver-client kubernetes-admin <none> Pending",
                ]),
            ),
            ("certificate approve jane", Is("certificatesigningrequest.certificates.k8s.io/jane approved")),
            ("certificate deny joan", Is("certificatesigningrequest.certificates.k8s.io/joan denied")),
            ("certificate deny jane", Refused("certificate signing request \"jane\" is already Approved")),
            (
                "get csr jane -o jsonpath={.status.conditions[0].type}:{.status.conditions[0].reason}",
                Is("Approved:KubectlApprove"),
            ),
            (
                "get csr joan -o jsonpath={.status.conditions[0].type}:{.status.conditions[0].reason}",
                Is("Denied:KubectlDeny"),
            ),
            // What is asked for is fixed once the request is made.
            (r#"patch csr jane --type merge -p {"spec":{"expirationSeconds":3600}}"#, Has(&["patched"])),
            ("get csr jane -o jsonpath={.spec.expirationSeconds}", Is("")),
        ];
        check(kubectl, &files, &steps).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_debugged_and_their_events_shown() {
    each(async |kubectl| {
        let steps = [
            ("run lone --image=example/lone --labels=app=lone", Is("pod/lone created")),
            ("wait --for=condition=Ready pod/lone --timeout=60s", Is("pod/lone condition met")),
            ("debug lone --image=example/tools --container=tools --profile=general -- true", Has(&[])),
            ("get pod lone -o jsonpath={.spec.ephemeralContainers[0].name}:{.spec.ephemeralContainers[0].image}", Is("tools:example/tools")),
            ("debug lone --image=example/tools --container=tools --profile=general -- true", Refused("tools")),
            ("debug lone --image=example/tools --copy-to=copy --same-node --profile=general --container=tools -- true", Has(&[])),
            ("get pod copy -o jsonpath={.spec.containers[*].name}", Is("lone tools")),
            ("get pod lone --no-headers", Rows(&["lone 1/1 Running 0 *"])),
            ("events --for pod/lone --types=Normal", Has(&["Scheduled", "Pod/lone", "Successfully assigned default/lone to node-"])),
            ("get events --field-selector=involvedObject.name=lone,reason=Scheduled -o jsonpath={.items[*].type}", Is("Normal")),
            ("describe pod lone", Has(&["Name:             lone\n", "Ephemeral Containers:\n  tools:\n", "Successfully assigned default/lone"])),
        ];
        check(kubectl, &[], &steps).await;
        let named = |pod: Option<&Pod>| {
            let statuses = pod.and_then(|pod| pod.status.as_ref()?.ephemeral_container_statuses.as_ref());
            statuses.is_some_and(|statuses| statuses.iter().any(|status| status.name == "tools"))
        };
        kubectl.cluster.wait_until::<Pod>("default", "lone", PATIENCE, named).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cluster_tells_about_itself() {
    each(async |kubectl| {
        let steps = [
            ("cluster-info", Has(&["Kubernetes control plane", "is running at", "https://127.0.0.1:"])),
            ("api-versions", Has(&["admissionregistration.k8s.io/v1\n", "apps/v1\n", "batch/v1\n", "storage.k8s.io/v1\n", "\nv1"])),
            ("version -o json", Has(&["\"serverVersion\": {\n    \"major\": \"1\",\n    \"minor\": \"37\"", "\"gitVersion\": \"v1.37.0"])),
            ("api-resources --namespaced=false --verbs=list -o name", Has(&["namespaces\n", "nodes\n", "storageclasses.storage.k8s.io\n"])),
            (
                "api-resources --api-group=autoscaling",
                Rows(&["NAME SHORTNAMES APIVERSION NAMESPACED KIND", "horizontalpodautoscalers hpa autoscaling/v2 true HorizontalPodAutoscaler"]),
            ),
            ("api-resources --categories=all -o name", Has(&["pods\n", "deployments.apps\n", "cronjobs.batch\n"])),
            ("explain pod.spec.containers.resources --recursive", Has(&["FIELD: resources <ResourceRequirements>", "limits\t<map[string]Quantity>"])),
            ("explain horizontalpodautoscaler --api-version=autoscaling/v1", Has(&["GROUP:      autoscaling\nKIND:       HorizontalPodAutoscaler\nVERSION:    v1\n"])),
            ("explain pod.spec.nothing", Refused("error: field \"nothing\" does not exist")),
            ("get namespaces -o name", Is("namespace/default\nnamespace/kube-node-lease\nnamespace/kube-public\nnamespace/kube-system")),
            ("describe namespace default", Has(&["Name:         default\n", "Status:       Active\n", "No resource quota.\n"])),
        ];
        check(kubectl, &[], &steps).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deletions_cascade_as_told() {
    each(async |kubectl| {
        let files = [("web", WEB)];
        let start = [
            ("apply -f @web", Is("deployment.apps/web created")),
            ("rollout status deployment/web --timeout=60s", Has(&["successfully rolled out"])),
        ];
        check(kubectl, &files, &start).await;
        let steps = [
            ("delete deployment web --cascade=orphan", Has(&["deployment.apps \"web\" deleted"])),
            ("wait --for=delete deployment/web --timeout=60s", Is("")),
            ("get pods -l app=web --no-headers", Rows(&["* 1/1 Running 0 *", "* 1/1 Running 0 *"])),
            ("get replicasets -l app=web -o jsonpath={.items[0].metadata.ownerReferences}", Is("")),
            // A Deployment with the same selector adopts what was orphaned.
            ("apply -f @web", Is("deployment.apps/web created")),
            ("rollout status deployment/web --timeout=60s", Has(&["successfully rolled out"])),
            (
                "get replicasets -l app=web -o jsonpath={.items[*].metadata.ownerReferences[0].name}",
                Is("web"),
            ),
            (
                "delete deployment web --cascade=foreground --timeout=60s",
                Has(&["deployment.apps \"web\" deleted"]),
            ),
            ("get replicasets,pods -l app=web -o name", Is("")),
            ("run lone --image=example/lone", Is("pod/lone created")),
            ("wait --for=condition=Ready pod/lone --timeout=60s", Is("pod/lone condition met")),
            ("delete pod lone --dry-run=server", Has(&["pod \"lone\" deleted", "(server dry run)"])),
            ("get pod lone -o jsonpath={.status.phase}", Is("Running")),
            (
                "delete pod lone --grace-period=0 --force",
                Has(&["Warning: Immediate deletion does not wait", "pod \"lone\" force deleted"]),
            ),
            ("wait --for=delete pod/lone --timeout=60s", Is("")),
            (
                "wait --for=condition=Ready pod/lone --timeout=1s",
                Refused("Error from server (NotFound): pods \"lone\" not found"),
            ),
            ("create configmap c", Is("configmap/c created")),
            (
                "wait --for=jsonpath={.data.x}=1 configmap/c --timeout=1s",
                Refused("error: timed out waiting for the condition on configmaps/c"),
            ),
            ("delete configmaps --all", Has(&["configmap \"c\" deleted"])),
            ("delete configmap c --now", Refused("Error from server (NotFound): configmaps \"c\" not found")),
        ];
        check(kubectl, &files, &steps).await;
    })
    .await;
}
