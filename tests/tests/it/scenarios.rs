//! Scenarios as data: the files of `tests/scenarios` have steps, and after `----` what is expected to be seen. `UPDATE=1` writes what is
//! seen into the files, to be reviewed as a diff. Time is the cluster's and paused, so that thirty days pass in seconds.
//!
//! A step is a line. KIND is the plural name, with `@NAMESPACE` behind it where that is not `default`:
//!
//! - before any other step `at TIME`, `nodes N`, `set WORD` (see [`Setting`]): when the cluster starts, how many nodes it has
//!   (2030-01-01 and 2 else), and what is not as usual;
//! - `let NAME TEXT`: `$NAME` is TEXT from here on; `$uid:KIND/NAME` within an object is the uid of that object;
//! - `create KIND OBJECT` (YAML on one line, `apiVersion` and `kind` are filled in), `patch KIND/NAME PATCH` (a merge patch in JSON; of the
//!   status with `/status` behind the name), `delete KIND/NAME [Background|Foreground|Orphan]`, `evict POD`;
//! - `refused STEP`: the step fails, and how is seen;
//! - `lose NODE`: its agent ends;
//! - `pass TIME`, such as `90s` or `30d`;
//! - `show KIND POINTER...`: each object's name with the values at these JSON pointers; `count KIND POINTER...`: how many objects have
//!   which values. Behind KIND `?QUERY` narrows the list down. `[Type]` at a list of conditions stands for the one of that type;
//!   a pointer with `?` at its end tells only whether something is there.
//!
//! With `KPLANE_PEER_CONTROLLER_MANAGER=PROGRAM` Kubernetes' own controllers play the part of kplane's, in real time and without what is
//! `set`: what then differs from the file is where the two differ.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kcore::{Clock, SystemClock, TokioClock};
use kplane::{Cluster, ClusterBuilder};
use kreconcile::{cloud::LocalCloud, controllers};
use kruntime::runtime::{
    ContainerConfig, SandboxConfig,
    simulated::{AnnotationScript, Plan, Script, SimulatedRuntime},
};
use kube::Client;
use serde_json::{Value, json};

use crate::peer::{self, Peer};

/// The kinds that scenarios are about: `plural group/version Kind`, with `*` at those without a namespace.
const KINDS: &str = "
    certificatesigningrequests certificates.k8s.io/v1 CertificateSigningRequest*
    clusterroles rbac.authorization.k8s.io/v1 ClusterRole*
    configmaps v1 ConfigMap
    controllerrevisions apps/v1 ControllerRevision
    cronjobs batch/v1 CronJob
    daemonsets apps/v1 DaemonSet
    deployments apps/v1 Deployment
    endpoints v1 Endpoints
    endpointslices discovery.k8s.io/v1 EndpointSlice
    events v1 Event
    horizontalpodautoscalers autoscaling/v2 HorizontalPodAutoscaler
    ipaddresses networking.k8s.io/v1 IPAddress*
    jobs batch/v1 Job
    namespaces v1 Namespace*
    nodes v1 Node*
    persistentvolumeclaims v1 PersistentVolumeClaim
    persistentvolumes v1 PersistentVolume*
    poddisruptionbudgets policy/v1 PodDisruptionBudget
    podgroups scheduling.k8s.io/v1beta1 PodGroup
    pods v1 Pod
    replicasets apps/v1 ReplicaSet
    replicationcontrollers v1 ReplicationController
    resourceclaims resource.k8s.io/v1 ResourceClaim
    resourceclaimtemplates resource.k8s.io/v1 ResourceClaimTemplate
    resourcequotas v1 ResourceQuota
    secrets v1 Secret
    serviceaccounts v1 ServiceAccount
    servicecidrs networking.k8s.io/v1 ServiceCIDR*
    services v1 Service
    statefulsets apps/v1 StatefulSet
    storageclasses storage.k8s.io/v1 StorageClass*
    storageversionmigrations storagemigration.k8s.io/v1 StorageVersionMigration*
    volumeattachments storage.k8s.io/v1 VolumeAttachment*
    volumeattributesclasses storage.k8s.io/v1 VolumeAttributesClass*
";

/// A kind of the table, in a namespace.
struct Kind<'a> {
    api_version: &'a str,
    kind: &'a str,
    path: String,
}

impl Kind<'_> {
    /// Reads `plural` or `plural@namespace`.
    fn of(word: &str) -> Kind<'static> {
        let (plural, namespace) = word.split_once('@').unwrap_or((word, "default"));
        let lines = KINDS.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let line = lines.into_iter().find(|words| words.first() == Some(&plural));
        let [_, api_version, kind] = line.unwrap_or_else(|| panic!("{plural} is not in the table"))[..]
        else {
            panic!("{plural} is not well described");
        };
        let root = if api_version.contains('/') { "apis" } else { "api" };
        let path = match kind.strip_suffix('*') {
            Some(_) => format!("/{root}/{api_version}/{plural}"),
            None => format!("/{root}/{api_version}/namespaces/{namespace}/{plural}"),
        };
        Kind { api_version, kind: kind.trim_end_matches('*'), path }
    }

    /// Reads `plural[@namespace]/name[/subresource]` to a path.
    fn path_of(word: &str) -> String {
        let (kind, rest) = word.split_once('/').unwrap_or_else(|| panic!("{word} names no object"));
        format!("{}/{rest}", Kind::of(kind).path)
    }
}

/// What `set` says about a cluster.
enum Setting {
    /// `volumes`: the local provisioner with a default class, below a folder of the test's own.
    Volumes,
    /// `ranges CIDR`: nodes get parts of it, of 30 bits.
    Ranges(String),
    /// `cloud`: load balancers get addresses from 203.0.113.1 on.
    Cloud,
    /// `only NAME...`: these controllers, and a scheduler if it is named too, for times that are long where others look around each few
    /// seconds.
    Only(Vec<String>),
    /// `beat TIME`: nodes show that they are alive each TIME only, and are missed five times later: for times that are long.
    Beat(Duration),
    /// `token-age TIME`: so long legacy tokens must not have been used, and then be marked.
    TokenAge(Duration),
    /// `ended-pods N`: so many pods that have ended are kept.
    EndedPods(usize),
}

impl Setting {
    fn read(text: &str) -> Self {
        match text.split_once(' ').unwrap_or((text, "")) {
            ("volumes", "") => Self::Volumes,
            ("cloud", "") => Self::Cloud,
            ("only", names) => Self::Only(names.split_whitespace().map(str::to_owned).collect()),
            ("ranges", range) => Self::Ranges(range.to_owned()),
            ("token-age", text) => Self::TokenAge(time(text)),
            ("beat", text) => Self::Beat(time(text)),
            ("ended-pods", count) => Self::EndedPods(count.parse().unwrap()),
            _ => panic!("there is no setting {text}"),
        }
    }

    fn apply(self, builder: ClusterBuilder, folder: &Path) -> ClusterBuilder {
        let folder = folder.to_owned();
        match self {
            Self::Volumes => {
                builder.settings(|settings| settings.local_volumes = Some(folder)).default_storage_class()
            }
            Self::Ranges(range) => builder.settings(|settings| {
                settings.cluster_ranges = vec![range];
                settings.node_prefix_ipv4 = 30;
            }),
            Self::Cloud => builder.settings(|settings| {
                let addresses = (1..=9).map(|last| Ipv4Addr::new(203, 0, 113, last).into());
                settings.cloud = Some(Arc::new(LocalCloud::new(addresses)));
            }),
            Self::Only(names) => {
                let (scheduler, names): (Vec<_>, Vec<_>) =
                    names.into_iter().partition(|name| name == "scheduler");
                let builder = builder.without_controllers();
                let builder = if scheduler.is_empty() { builder.without_scheduler() } else { builder };
                builder.reconcilers(move |context| {
                    let mut all = controllers::defaults(context);
                    all.retain(|controller| names.iter().any(|name| name == controller.name()));
                    assert_eq!(all.len(), names.len(), "controllers that are there: {names:?}");
                    all
                })
            }
            Self::TokenAge(age) => builder.settings(move |settings| settings.legacy_token_age = age),
            Self::Beat(every) => builder
                .configure_node(move |node| {
                    node.lease = 4 * every;
                    node.status_every = every;
                })
                .settings(move |settings| {
                    settings.node_monitor_grace = 5 * every;
                    settings.node_monitor_period = every;
                }),
            Self::EndedPods(count) => builder.settings(move |settings| settings.terminated_pods_max = count),
        }
    }
}

/// What containers do, by annotations; two more than elsewhere are about pods of indexed Jobs. Both are a number: the indexes that it
/// divides are meant.
///
/// - `scenario/fails-each`: they fail, as often as they are tried;
/// - `scenario/fails-first`: they fail at their first try.
#[derive(Debug)]
struct ByIndex;

impl Script for ByIndex {
    fn plan(&self, pod: &SandboxConfig, container: &ContainerConfig) -> Plan {
        let plan = AnnotationScript.plan(pod, container);
        let number = |key: &str| pod.annotations.get(key).map(|text| text.parse::<u32>().unwrap());
        let Some(index) = number("batch.kubernetes.io/job-completion-index") else { return plan };
        let is_first = number("batch.kubernetes.io/job-index-failure-count").unwrap_or(0) == 0;
        let fails = |key| number(key).is_some_and(|step| index % step == 0);
        let fails = fails("scenario/fails-each") || is_first && fails("scenario/fails-first");
        Plan { exit_code: if fails { 1 } else { plan.exit_code }, ..plan }
    }
}

fn time(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => panic!("{text} has no unit"),
    };
    Duration::from_secs(number.parse::<u64>().unwrap() * seconds)
}

/// The value at a JSON pointer; `/conditions/[Ready]/status` looks a condition up by its type.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    let parts = pointer.split('/').filter(|part| !part.is_empty());
    parts.fold(value, |value, part| match part.strip_prefix('[').and_then(|part| part.strip_suffix(']')) {
        Some(kind) => {
            let mut all = value.as_array().into_iter().flatten();
            all.find(|one| one["type"] == kind).unwrap_or(&Value::Null)
        }
        None => value
            .get(part.replace("~1", "/"))
            .or_else(|| value.get(part.parse::<usize>().ok()?))
            .unwrap_or(&Value::Null),
    })
}

/// A running scenario.
struct Stage {
    cluster: Cluster,
    client: Client,
    _peer: Option<Peer>,
    texts: BTreeMap<String, String>,
    seen: String,
}

impl Stage {
    async fn start(nodes: usize, begin: &str, settings: Vec<Setting>, folder: &Path) -> Self {
        let program = peer::program();
        // A program beside this one knows no time but the real one.
        let begin = if program.is_some() { SystemClock.now() } else { begin.parse().unwrap() };
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(begin));
        let runtime = SimulatedRuntime::with_script(Arc::clone(&clock), Arc::new(ByIndex));
        let builder = Cluster::builder().clock(clock).runtime(Arc::new(runtime)).nodes(nodes);
        let builder = settings.into_iter().fold(builder, |builder, setting| setting.apply(builder, folder));
        let builder = if program.is_some() { builder.without_controllers() } else { builder };
        let cluster = builder.start().await.unwrap();
        let peer = match program {
            Some(program) => Some(Peer::start(program, &cluster).await),
            None => None,
        };
        // The controllers have made what every namespace has.
        tokio::time::sleep(Duration::from_secs(30)).await;
        Self { client: cluster.client(), cluster, _peer: peer, texts: BTreeMap::new(), seen: String::new() }
    }

    async fn ask(&self, method: &str, path: &str, kind: &str, body: String) -> Result<Value, kube::Error> {
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        self.client.request(request.body(body.into_bytes()).unwrap()).await
    }

    async fn get(&self, path: &str) -> Value {
        let got = self.ask("GET", path, "application/json", String::new()).await;
        got.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Writes what a step says.
    async fn write(&self, line: &str) -> Result<Value, kube::Error> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (word, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let text = self.filled(text).await;
        match verb {
            "create" => {
                let kind = Kind::of(word);
                let rest = text.trim_start_matches('{');
                let body = format!("{{apiVersion: {}, kind: {}, {rest}", kind.api_version, kind.kind);
                self.ask("POST", &kind.path, "application/yaml", body).await
            }
            "patch" => {
                let path = Kind::path_of(word);
                self.ask("PATCH", &path, "application/merge-patch+json", text).await
            }
            "delete" => {
                let policy = (!text.is_empty()).then_some(text);
                let options =
                    json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy});
                self.ask("DELETE", &Kind::path_of(word), "application/json", options.to_string()).await
            }
            "evict" => {
                let path = format!("{}/{word}/eviction", Kind::of("pods").path);
                let body = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": word}});
                self.ask("POST", &path, "application/json", body.to_string()).await
            }
            _ => panic!("{line:?} is no step"),
        }
    }

    async fn step(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "let" => {
                let (name, text) = rest.split_once(' ').unwrap();
                let text = self.filled(text).await;
                self.texts.insert(name.to_owned(), text);
            }
            "lose" => assert!(self.cluster.nodes().unwrap().stop_node(rest).await, "{rest} is there"),
            "pass" => tokio::time::sleep(time(rest)).await,
            "show" | "count" => {
                let (word, pointers) = rest.split_once(' ').unwrap();
                let (kind, query) = word.split_once('?').unwrap_or((word, ""));
                let objects = self.get(&format!("{}?{query}", Kind::of(kind).path)).await;
                let _ = writeln!(self.seen, "> {line}");
                self.tell(verb == "count", objects["items"].as_array().unwrap(), pointers);
            }
            "refused" => {
                let said = match self.write(rest).await {
                    Ok(_) => panic!("{line:?} is not refused"),
                    Err(kube::Error::Api(status)) => format!("{} {}", status.reason, status.message),
                    Err(error) => panic!("{line:?}: {error}"),
                };
                let _ = writeln!(self.seen, "> {line}\n{said}");
            }
            _ => drop(self.write(line).await.unwrap_or_else(|error| panic!("{line:?}: {error}"))),
        }
    }

    /// Puts texts in the places of their names, and uids of objects in the places of `$uid:KIND/NAME`.
    async fn filled(&self, text: &str) -> String {
        let is_name = |byte: char| byte.is_ascii_alphanumeric() || "-_@/:.".contains(byte);
        let mut parts = text.split('$');
        let mut whole = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (name, rest) = part.split_at(part.find(|one| !is_name(one)).unwrap_or(part.len()));
            match name.strip_prefix("uid:") {
                Some(object) => {
                    let object = self.get(&Kind::path_of(object)).await;
                    whole += object["metadata"]["uid"].as_str().unwrap();
                }
                None => whole += self.texts.get(name).unwrap_or_else(|| panic!("there is no ${name}")),
            }
            whole += rest;
        }
        whole
    }

    fn tell(&mut self, count: bool, objects: &[Value], pointers: &str) {
        let mut lines: BTreeMap<String, usize> = BTreeMap::new();
        for object in objects {
            let values = pointers.split_whitespace().map(|pointer| match pointer.strip_suffix('?') {
                Some(pointer) => {
                    if at(object, pointer).is_null() { "nothing" } else { "something" }.to_owned()
                }
                None => at(object, pointer).to_string(),
            });
            let name = (!count).then(|| object["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            let line = name.into_iter().chain(values).collect::<Vec<_>>().join(" ");
            *lines.entry(line).or_default() += 1;
        }
        for (line, number) in lines {
            let number = if count { format!("{number}x ") } else { String::new() };
            let _ = writeln!(self.seen, "{number}{line}");
        }
    }
}

/// Plays a file and compares what is seen.
fn check(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let (steps, expected) = text.split_once("----\n").unwrap_or((&text, ""));
    let lines = || steps.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let starts =
        |key: &'static str| lines().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(' '));
    let nodes = starts("nodes").next().map_or(2, |text| text.parse().unwrap());
    let begin = starts("at").next().unwrap_or("2030-01-01T00:00:00Z");
    let settings = starts("set").map(Setting::read).collect();
    let is_start = |line: &&str| ["nodes ", "at ", "set "].iter().any(|key| line.starts_with(key));
    let folder = tempfile::tempdir().unwrap();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(peer::program().is_none()).build().unwrap();
    let seen = runtime.block_on(async {
        let mut stage = Stage::start(nodes, begin, settings, folder.path()).await;
        for line in lines().filter(|line| !is_start(line)) {
            stage.step(line).await;
        }
        stage.cluster.shutdown().await.unwrap();
        stage.seen
    });
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        std::fs::write(path, format!("{steps}----\n{seen}")).unwrap();
    } else {
        assert_eq!(seen, expected, "{}: UPDATE=1 writes what is seen into the file", path.display());
    }
}

fn scenario(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios").join(format!("{name}.txt"))
}

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            check(&scenario(stringify!($name)));
        })*

        /// A file that no test plays would be no scenario.
        #[test]
        fn every_file_is_played() {
            let known = BTreeSet::from([$(scenario(stringify!($name))),*]);
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
            let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
            assert_eq!(files.collect::<BTreeSet<_>>(), known);
        }
    };
}

scenarios! {
    autoscaler_under_a_load_curve,
    balancer_of_a_service,
    bootstrap_tokens_expire,
    budgets_allow_or_refuse,
    certificate_requests_are_answered_and_cleaned_away,
    claims_find_volumes_or_wait,
    claims_for_devices,
    classes_of_attributes_in_use,
    cron_job_in_the_hour_that_comes_twice,
    cron_jobs_over_thirty_days,
    cron_jobs_whose_runs_overlap_or_are_missed,
    daemon_set_on_changing_nodes,
    deployment_that_recreates_scales_and_pauses,
    endpoints_by_hand_are_mirrored,
    groups_of_pods_in_use,
    job_of_a_thousand_indexes,
    jobs_of_a_thousand_indexes_with_failures,
    jobs_that_fail_each_in_its_way,
    legacy_tokens_that_nobody_uses,
    migrations_that_end_well_and_not,
    namespace_with_a_stuck_finalizer,
    networks_of_services,
    node_ranges_that_run_out,
    nodes_that_fall_silent,
    owners_in_a_circle,
    owners_that_are_gone_or_elsewhere,
    pods_that_nobody_needs,
    quota_of_many_kinds,
    replica_set_that_is_refused_pods,
    replication_controller_and_its_pods,
    roles_made_of_others,
    rollout_that_stalls_and_rolls_back,
    slices_of_a_large_service,
    stateful_set_under_node_loss,
    stateful_set_whose_update_is_stuck,
    taints_evict_pods,
    volumes_of_a_pod_of_its_own,
    volumes_that_are_attached_elsewhere,
    what_every_namespace_has,
}
