//! The scheduler's loop against an API server in memory that knows pods, nodes, bindings and conditions.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures::{StreamExt, channel::mpsc, stream};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kcore::{
    Stored,
    local::{LocalEvent, LocalEvents},
};
use kreconcile::{Manager, Running, Start};
use ksched::{
    Booking, Extender, ExtenderError, NodeIndex, PodInfo, Profile, Scheduler, Snapshot, WaitingPods,
    build::{NodeBuilder, PodBuilder, node, pod},
    extender::Filtered,
    groups::Groups,
    plugin::{Permit, PermitVerdict, Reserve, Verdict},
    plugins::VolumeBinding,
};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::watch;

#[derive(Default)]
struct State {
    revision: u64,
    /// By plural and name.
    objects: BTreeMap<(String, String), Value>,
    watches: Vec<(String, mpsc::UnboundedSender<Vec<LocalEvent>>)>,
    events: Vec<(String, String)>,
}

struct Api {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    failing_bindings: AtomicUsize,
    patches: AtomicUsize,
    /// Plurals of kinds that there are not.
    not_served: &'static [&'static str],
}

impl Api {
    fn new() -> Arc<Self> {
        Self::without(&[])
    }

    fn without(not_served: &'static [&'static str]) -> Arc<Self> {
        Arc::new(Self {
            not_served,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            failing_bindings: AtomicUsize::new(0),
            patches: AtomicUsize::new(0),
        })
    }

    fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = tower::service_fn(move |request| {
            let api = Arc::clone(&api);
            async move { Ok::<_, Infallible>(api.answer(request).await) }
        });
        Client::new(service, "default")
    }

    fn start(self: &Arc<Self>) -> Running {
        self.start_with(Profile::default())
    }

    fn start_with(self: &Arc<Self>, profile: Profile) -> Running {
        let scheduler = Scheduler::builder(self.client()).profile(profile).build().unwrap();
        Manager::new().add(Start::Always, scheduler).start()
    }

    fn add_node(&self, builder: NodeBuilder) {
        let object = serde_json::to_value(builder.object()).unwrap();
        self.put("nodes", object);
    }

    fn add_pod(&self, builder: PodBuilder) {
        let object = serde_json::to_value(builder.object()).unwrap();
        self.put("pods", object);
    }

    fn put(&self, plural: &str, mut object: Value) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let stored = Arc::new(Stored::from_value(object.clone()).unwrap());
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let event = match state.objects.insert((plural.to_owned(), name), object) {
            None => LocalEvent::Added(stored),
            Some(_) => LocalEvent::Modified(stored),
        };
        state
            .watches
            .retain(|(kind, sender)| kind != plural || sender.unbounded_send(vec![event.clone()]).is_ok());
        self.changed.send_replace(state.revision);
    }

    fn remove(&self, plural: &str, name: &str) {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let Some(mut object) = state.objects.remove(&(plural.to_owned(), name.to_owned())) else { return };
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let event = LocalEvent::Deleted(Arc::new(Stored::from_value(object).unwrap()));
        state
            .watches
            .retain(|(kind, sender)| kind != plural || sender.unbounded_send(vec![event.clone()]).is_ok());
        self.changed.send_replace(state.revision);
    }

    fn get(&self, plural: &str, name: &str) -> Value {
        let state = self.state.lock().unwrap();
        state.objects.get(&(plural.to_owned(), name.to_owned())).cloned().unwrap_or_default()
    }

    fn events(&self, reason: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        state.events.iter().filter(|(known, _)| known == reason).map(|(_, message)| message.clone()).collect()
    }

    /// Waits until something is so; an hour of (paused) time is long enough for anything.
    async fn until(&self, mut is_so: impl FnMut(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let wait = async {
            while !is_so(self) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(3600), wait).await.expect("it did not happen");
    }

    async fn until_on(&self, pod: &str, node: &str) {
        self.until(|api| api.get("pods", pod)["spec"]["nodeName"] == node).await;
    }

    async fn answer(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let path: Vec<&str> = parts.uri.path().trim_start_matches("/api/v1/").split('/').collect();
        match (parts.method, &path[..]) {
            (Method::GET, [plural] | ["", "apis", _, _, plural]) if self.not_served.contains(plural) => {
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound",
                    "message": "the server could not find the requested resource", "metadata": {},
                });
                answer(StatusCode::NOT_FOUND, &status)
            }
            (Method::GET, [plural] | ["", "apis", _, _, plural]) => self.watch(plural),
            (Method::POST, ["namespaces", _, "pods", name, "binding"]) => {
                if self.failing_bindings.load(Ordering::Relaxed) > 0 {
                    self.failing_bindings.fetch_sub(1, Ordering::Relaxed);
                    return answer(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        &json!({
                            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 500, "message": "no",
                            "reason": "InternalError", "metadata": {},
                        }),
                    );
                }
                let mut pod = self.get("pods", name);
                pod["spec"]["nodeName"] = body["target"]["name"].clone();
                self.put("pods", pod);
                answer(StatusCode::CREATED, &json!({"kind": "Status", "status": "Success"}))
            }
            (Method::PATCH, ["namespaces", _, "pods", name, "status"]) => {
                self.patches.fetch_add(1, Ordering::Relaxed);
                let mut pod = self.get("pods", name);
                for (key, value) in body["status"].as_object().into_iter().flatten() {
                    pod["status"][key] = value.clone();
                }
                self.put("pods", pod.clone());
                answer(StatusCode::OK, &pod)
            }
            (Method::PATCH, ["persistentvolumes", name]) => self.merge("persistentvolumes", name, &body),
            (Method::PATCH, ["namespaces", _, "persistentvolumeclaims", name]) => {
                self.merge("persistentvolumeclaims", name, &body)
            }
            (Method::PATCH, ["", "apis", _, _, "namespaces", _, "podgroups", name, "status"]) => {
                let mut group = self.get("podgroups", name);
                group["status"]["conditions"] = body["status"]["conditions"].clone();
                self.put("podgroups", group.clone());
                answer(StatusCode::OK, &group)
            }
            (Method::DELETE, ["namespaces", _, "pods", name]) => {
                let mut pod = self.get("pods", name);
                pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
                self.put("pods", pod.clone());
                answer(StatusCode::OK, &pod)
            }
            (Method::POST, ["namespaces", _, "events"]) => {
                let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
                self.state.lock().unwrap().events.push((text("reason"), text("message")));
                self.changed.send_modify(|_| {});
                answer(StatusCode::CREATED, &body)
            }
            (_, _) => answer(StatusCode::NOT_FOUND, &json!({})),
        }
    }

    /// A merge patch that is refused when it was made from another revision.
    fn merge(&self, plural: &str, name: &str, patch: &Value) -> Response<Body> {
        fn merge(into: &mut Value, patch: &Value) {
            match patch {
                Value::Object(fields) => {
                    fields.iter().for_each(|(key, value)| merge(&mut into[key], value));
                }
                Value::Null => {}
                other => *into = other.clone(),
            }
        }
        let mut object = self.get(plural, name);
        if object["metadata"]["resourceVersion"] != patch["metadata"]["resourceVersion"] {
            let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 409,
                "reason": "Conflict", "message": "the object has been modified", "metadata": {}});
            return answer(StatusCode::CONFLICT, &status);
        }
        merge(&mut object, patch);
        self.put(plural, object);
        answer(StatusCode::OK, &self.get(plural, name))
    }

    /// What a volume controller does: claim and volume are told of each other.
    fn bind_claim(&self, name: &str, volume: &str) {
        let mut claim = self.get("persistentvolumeclaims", name);
        claim["spec"]["volumeName"] = json!(volume);
        claim["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"] = json!("yes");
        self.put("persistentvolumeclaims", claim);
    }

    fn watch(&self, plural: &str) -> Response<Body> {
        let (sender, receiver) = mpsc::unbounded();
        let mut state = self.state.lock().unwrap();
        let objects = state.objects.iter().filter(|((kind, _), _)| kind == plural);
        let mut first: Vec<_> = objects
            .map(|(_, object)| LocalEvent::Added(Arc::new(Stored::from_value(object.clone()).unwrap())))
            .collect();
        first.push(LocalEvent::Bookmark { revision: state.revision.max(1), initial_events_end: true });
        state.watches.push((plural.to_owned(), sender));
        let mut response = answer(StatusCode::OK, &json!({}));
        response.extensions_mut().insert(LocalEvents::new(stream::iter([first]).chain(receiver)));
        response
    }
}

fn answer(status: StatusCode, body: &Value) -> Response<Body> {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    Response::builder().status(status).body(body).unwrap()
}

#[tokio::test(start_paused = true)]
async fn pods_are_bound_and_told_about() {
    let api = Api::new();
    api.add_node(node("a").resource("cpu", "1"));
    api.add_node(node("b").resource("cpu", "4"));
    api.add_pod(pod("early").request("cpu", "2"));
    api.add_pod(pod("foreign").edit(|pod| {
        pod.spec.get_or_insert_default().scheduler_name = Some("another".to_owned());
    }));
    let running = api.start();
    api.until_on("early", "b").await;
    api.add_pod(pod("late").request("cpu", "2"));
    api.until_on("late", "b").await;
    api.until(|api| api.events("Scheduled").len() == 2).await;
    assert!(api.events("Scheduled").contains(&"Successfully assigned default/late to b".to_owned()));
    assert_eq!(api.get("pods", "foreign")["spec"]["nodeName"], Value::Null);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_without_a_place_says_so_once_and_is_woken_by_a_node() {
    let api = Api::new();
    api.add_node(node("a").resource("cpu", "1"));
    let running = api.start();
    api.add_pod(pod("large").request("cpu", "2"));
    let expected = "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes \
                    are available: 1 Preemption is not helpful for scheduling.";
    api.until(|api| {
        let condition = &api.get("pods", "large")["status"]["conditions"][0];
        condition["type"] == "PodScheduled"
            && condition["reason"] == "Unschedulable"
            && condition["message"] == expected
    })
    .await;
    api.until(|api| api.events("FailedScheduling") == [expected]).await;
    // Five minutes later it is tried again, with the same result, which is not written again.
    tokio::time::sleep(std::time::Duration::from_secs(301)).await;
    assert_eq!(api.patches.load(Ordering::Relaxed), 1);
    api.add_node(node("b").resource("cpu", "2"));
    api.until_on("large", "b").await;
    running.stop().await;
}

/// One pod is bound at its second try, another finds no place.
#[tokio::test(start_paused = true)]
async fn what_happens_to_pods_is_counted() {
    let api = Api::new();
    api.failing_bindings.store(1, Ordering::Relaxed);
    api.add_node(node("a").resource("cpu", "1"));
    let scheduler = Scheduler::builder(api.client()).build().unwrap();
    let metrics = scheduler.metrics();
    let running = Manager::new().add(Start::Always, scheduler).start();
    api.add_pod(pod("small").request("cpu", "1"));
    api.add_pod(pod("large").request("cpu", "2"));
    api.until_on("small", "a").await;
    api.until(|api| api.events("Scheduled").len() == 1).await;
    running.stop().await;
    let text = metrics.text();
    let profile = "profile=\"default-scheduler\"";
    for line in [
        &format!("scheduler_schedule_attempts_total{{result=\"scheduled\",{profile}}} 1"),
        &format!("scheduler_schedule_attempts_total{{result=\"error\",{profile}}} 1"),
        &format!("scheduler_scheduling_attempt_duration_seconds_count{{result=\"scheduled\",{profile}}} 1"),
        &format!("scheduler_unschedulable_pods{{plugin=\"NodeResourcesFit\",{profile}}} 1"),
        &format!(
            "scheduler_framework_extension_point_duration_seconds_count{{extension_point=\"Bind\",status=\"Error\",{profile}}} 1"
        ),
        "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"2\",le=\"0.64\"} 0",
        "scheduler_pod_scheduling_sli_duration_seconds_bucket{attempts=\"2\",le=\"1.28\"} 1",
        "scheduler_pending_pods{queue=\"unschedulable\"} 1",
        "scheduler_queue_incoming_pods_total{queue=\"active\",event=\"UnschedulablePodAdd\"} 2",
        "scheduler_queue_incoming_pods_total{queue=\"backoff\",event=\"ScheduleAttemptFailure\"} 1",
        "scheduler_cache_size{type=\"nodes\"} 1",
        "scheduler_goroutines{operation=\"binding\"} 0",
        "scheduler_event_handling_duration_seconds_count{event=\"NodeAdd\"} 1",
        &format!("scheduler_batch_attempts_total{{{profile},result=\"hint_used\"}} 2"),
        &format!("scheduler_get_node_hint_duration_seconds_count{{hinted=\"hint\",{profile}}} 2"),
    ] {
        assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_binding_gives_the_place_back_and_is_tried_again() {
    let api = Api::new();
    api.failing_bindings.store(2, Ordering::Relaxed);
    api.add_node(node("a").resource("cpu", "1"));
    let running = api.start();
    let started = tokio::time::Instant::now();
    api.add_pod(pod("p").request("cpu", "1"));
    api.until_on("p", "a").await;
    assert_eq!(started.elapsed().as_secs(), 1 + 2);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_gated_pod_is_bound_once_its_gate_is_gone() {
    let api = Api::new();
    api.add_node(node("a"));
    let running = api.start();
    api.add_pod(pod("p").gate("quota"));
    api.until(|api| api.get("pods", "p")["status"]["conditions"][0]["reason"] == "SchedulingGated").await;
    api.add_pod(pod("p"));
    api.until_on("p", "a").await;
    running.stop().await;
}

/// Lets pods go in pairs, and counts what is booked.
#[derive(Default)]
struct Pairs {
    booked: AtomicUsize,
}

impl Reserve for Pairs {
    fn name(&self) -> &str {
        "Pairs"
    }

    fn reserve(&self, _: &mut Booking<'_>) -> Verdict {
        self.booked.fetch_add(1, Ordering::Relaxed);
        Verdict::Pass
    }

    fn unreserve(&self, _: &mut Booking<'_>) {
        self.booked.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Permit for Pairs {
    fn name(&self) -> &str {
        "Pairs"
    }

    fn permit(&self, _: &mut Booking<'_>, waiting: &WaitingPods, _: &Groups) -> PermitVerdict {
        match waiting.list().first() {
            Some((other, _)) => {
                waiting.allow(&other.uid, "Pairs");
                PermitVerdict::Allow
            }
            None => PermitVerdict::Wait(std::time::Duration::from_secs(20)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_waits_for_its_permission_and_gives_back_what_it_booked() {
    let api = Api::new();
    api.add_node(node("a"));
    let pairs = Arc::new(Pairs::default());
    let profile =
        Profile::builder().reserve(Arc::clone(&pairs) as Arc<_>).permit(Arc::clone(&pairs) as Arc<_>).build();
    let running = api.start_with(profile.unwrap());
    api.add_pod(pod("first"));
    let expected = "0/1 nodes are available: 1 rejected due to timeout after waiting 20s at plugin Pairs.";
    api.until(|api| api.events("FailedScheduling") == [expected]).await;
    assert_eq!(api.get("pods", "first")["spec"]["nodeName"], Value::Null);
    api.add_pod(pod("second"));
    api.until_on("first", "a").await;
    api.until_on("second", "a").await;
    assert_eq!(pairs.booked.load(Ordering::Relaxed), 2);
    running.stop().await;
}

/// What happens while a pod waits for its permission helps it when it is refused in the end: it is tried again after its back-off, not
/// when the five minutes are over.
#[tokio::test(start_paused = true)]
async fn what_happens_while_a_pod_waits_for_its_permission_is_not_lost() {
    let api = Api::new();
    api.add_node(node("a"));
    let pairs = Arc::new(Pairs::default());
    let profile = Profile::builder().permit(Arc::clone(&pairs) as Arc<_>).build();
    let running = api.start_with(profile.unwrap());
    let started = tokio::time::Instant::now();
    api.add_pod(pod("first"));
    let after = |seconds| tokio::time::sleep_until(started + std::time::Duration::from_secs(seconds));
    after(5).await;
    api.add_node(node("b"));
    after(25).await;
    assert_eq!(api.events("FailedScheduling").len(), 1, "its first wait has ended");
    api.add_pod(pod("second"));
    api.until(|api| {
        ["first", "second"].iter().all(|name| api.get("pods", name)["spec"]["nodeName"].is_string())
    })
    .await;
    assert_eq!(started.elapsed().as_secs(), 25, "the first was waiting again");
    running.stop().await;
}

/// Nodes are equal but for their names; only one is beside the pod that the other wants to be near, and that is found only
/// by the labels of its namespace.
#[tokio::test(start_paused = true)]
async fn a_plugin_finds_the_kinds_that_it_asks_for() {
    let api = Api::new();
    for name in ["a", "b", "c", "d"] {
        api.add_node(node(name).label("host", name));
    }
    let namespace = json!({"metadata": {"name": "default", "labels": {"team": "shop"}}});
    api.put("namespaces", namespace);
    api.add_pod(pod("db").on("c").edit(|pod| {
        pod.metadata.labels = Some(BTreeMap::from([("app".to_owned(), "db".to_owned())]));
    }));
    let running = api.start();
    let affinity = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
        "topologyKey": "host",
        "labelSelector": {"matchLabels": {"app": "db"}},
        "namespaceSelector": {"matchLabels": {"team": "shop"}},
    }]}});
    api.add_pod(pod("web").edit(|pod| {
        pod.spec.get_or_insert_default().affinity = serde_json::from_value(affinity).unwrap();
    }));
    api.until_on("web", "c").await;
    running.stop().await;
}

/// A server that leaves out kinds that plug-ins would look at is a server all the same.
#[tokio::test(start_paused = true)]
async fn kinds_that_are_not_served_do_not_keep_the_scheduler_from_starting() {
    let api = Api::without(&["persistentvolumes", "storageclasses", "csinodes", "volumeattachments"]);
    api.add_node(node("a"));
    let running = api.start();
    api.add_pod(pod("p"));
    api.until_on("p", "a").await;
    running.stop().await;
}

/// A pod waits for its claim, and is woken when the claim is bound.
#[tokio::test(start_paused = true)]
async fn a_pod_waits_until_its_claim_is_bound() {
    let api = Api::new();
    api.add_node(node("a").label("disk", "hdd"));
    api.add_node(node("b").label("disk", "ssd"));
    let running = api.start();
    api.add_pod(pod("db").edit(|pod| {
        let volume = json!({"name": "data", "persistentVolumeClaim": {"claimName": "data"}});
        pod.spec.get_or_insert_default().volumes = Some(vec![serde_json::from_value(volume).unwrap()]);
    }));
    let said =
        |api: &Api, text: &str| api.events("FailedScheduling").iter().any(|event| event.contains(text));
    api.until(|api| said(api, "persistentvolumeclaim \"data\" not found")).await;
    let mut claim = json!({"metadata": {"namespace": "default", "name": "data"}, "spec": {}});
    api.put("persistentvolumeclaims", claim.clone());
    api.until(|api| said(api, "pod has unbound immediate PersistentVolumeClaims")).await;
    let terms = json!([{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}]);
    let affinity = json!({"required": {"nodeSelectorTerms": terms}});
    api.put("persistentvolumes", json!({"metadata": {"name": "pv"}, "spec": {"nodeAffinity": affinity}}));
    claim["metadata"]["annotations"] = json!({"pv.kubernetes.io/bind-completed": "yes"});
    claim["spec"]["volumeName"] = json!("pv");
    api.put("persistentvolumeclaims", claim);
    api.until_on("db", "b").await;
    running.stop().await;
}

fn gang(api: &Api, name: &str, least: u32) {
    let policy = json!({"gang": {"minCount": least}});
    api.put(
        "podgroups",
        json!({"metadata": {"namespace": "default", "name": name}, "spec": {"schedulingPolicy": policy}}),
    );
}

/// Two of three would fit: none is bound, and none keeps a place from others. With room for three all are bound at once.
#[tokio::test(start_paused = true)]
async fn a_gang_is_bound_together_or_not_at_all() {
    let api = Api::new();
    api.add_node(node("a").resource("cpu", "2"));
    let running = api.start();
    let member = |name: &str| pod(name).group("train").request("cpu", "1");
    api.add_pod(member("one"));
    api.add_pod(member("two"));
    api.add_pod(pod("plain"));
    api.until_on("plain", "a").await;
    gang(&api, "train", 3);
    // Nothing is said of pods that are held back.
    tokio::time::sleep(std::time::Duration::from_secs(700)).await;
    assert_eq!(api.events("FailedScheduling"), [""; 0]);
    api.add_pod(member("three"));
    let expected = [
        "0/1 nodes are available: 1 Insufficient cpu. no new claims to deallocate, preemption: 0/1 nodes are \
         available: 1 No preemption victims found for incoming pod.",
        "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled",
        "pod group is unschedulable, waiting for minCount pods from a gang to be scheduled",
    ];
    let mut said = Vec::new();
    api.until(|api| {
        said = api.events("FailedScheduling");
        said.sort();
        said.len() >= 3
    })
    .await;
    assert_eq!(said, expected);
    let condition = |api: &Api| {
        let condition = api.get("podgroups", "train")["status"]["conditions"][0].clone();
        [condition["type"].clone(), condition["status"].clone(), condition["reason"].clone()]
    };
    api.until(|api| condition(api) == ["PodGroupScheduled", "False", "Unschedulable"]).await;
    api.add_pod(pod("large").request("cpu", "2"));
    api.until_on("large", "a").await;
    api.add_node(node("b").resource("cpu", "3"));
    for name in ["one", "two", "three"] {
        api.until_on(name, "b").await;
    }
    api.until(|api| condition(api) == ["PodGroupScheduled", "True", "Scheduled"]).await;
    // The gang runs: one more needs nobody beside it.
    api.add_node(node("c").resource("cpu", "1"));
    api.add_pod(member("four"));
    api.until_on("four", "c").await;
    running.stop().await;
}

/// Others are removed only when that completes the gang.
#[tokio::test(start_paused = true)]
async fn room_is_made_for_a_whole_gang_only() {
    let api = Api::new();
    api.add_node(node("a").resource("cpu", "2"));
    let running = api.start();
    for name in ["low-1", "low-2"] {
        api.add_pod(pod(name).request("cpu", "1"));
        api.until_on(name, "a").await;
    }
    let going = |api: &Api| {
        let is_going = |name: &&str| !api.get("pods", name)["metadata"]["deletionTimestamp"].is_null();
        ["low-1", "low-2"].into_iter().filter(is_going).count()
    };
    let member = |name: &str, group: &str| pod(name).group(group).priority(10).request("cpu", "1");
    gang(&api, "three", 3);
    for name in ["x-1", "x-2", "x-3"] {
        api.add_pod(member(name, "three"));
    }
    api.until(|api| api.events("FailedScheduling").len() >= 3).await;
    tokio::time::sleep(std::time::Duration::from_secs(400)).await;
    assert_eq!(going(&api), 0);
    for name in ["x-1", "x-2", "x-3"] {
        api.remove("pods", name);
    }
    gang(&api, "two", 2);
    for name in ["y-1", "y-2"] {
        api.add_pod(member(name, "two"));
    }
    api.until(|api| going(api) == 2).await;
    api.remove("pods", "low-1");
    api.remove("pods", "low-2");
    api.until_on("y-1", "a").await;
    api.until_on("y-2", "a").await;
    running.stop().await;
}

/// Keeps pods with the label away from all nodes but one, takes over their binding, and fails as often as it is told.
struct Keeper {
    bound: Mutex<Vec<String>>,
    failures: AtomicUsize,
}

#[async_trait::async_trait]
impl Extender for Keeper {
    fn name(&self) -> &str {
        "keeper"
    }

    fn is_interested(&self, pod: &PodInfo) -> bool {
        pod.labels.get("kept").is_some()
    }

    async fn filter(
        &self,
        _: &PodInfo,
        snapshot: &Snapshot,
        nodes: &[NodeIndex],
    ) -> Result<Option<Filtered>, ExtenderError> {
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.fetch_sub(1, Ordering::Relaxed);
            return Err(ExtenderError::new("the keeper sleeps"));
        }
        let mut said = Filtered::default();
        for &node in nodes {
            if snapshot.node(node).name() == "b" {
                said.nodes.push(node);
            } else {
                said.failed.push((node, "not the keeper's".to_owned()));
            }
        }
        Ok(Some(said))
    }

    async fn bind(&self, pod: &PodInfo, node: &str) -> Result<bool, ExtenderError> {
        self.bound.lock().unwrap().push(format!("{} on {node}", pod.name));
        Ok(true)
    }
}

#[tokio::test(start_paused = true)]
async fn an_extender_has_its_say_and_binds() {
    let api = Api::new();
    for name in ["a", "c"] {
        api.add_node(node(name));
    }
    let keeper = Arc::new(Keeper { bound: Mutex::default(), failures: AtomicUsize::new(1) });
    let scheduler = Scheduler::builder(api.client()).extender(Arc::clone(&keeper) as Arc<_>).build().unwrap();
    let running = Manager::new().add(Start::Always, scheduler).start();
    api.add_pod(pod("free"));
    api.add_pod(pod("kept").edit(|pod| {
        pod.metadata.labels = Some(BTreeMap::from([("kept".to_owned(), "yes".to_owned())]));
    }));
    api.until(|api| api.events("FailedScheduling").iter().any(|text| text == "the keeper sleeps")).await;
    let expected = "0/2 nodes are available: 2 not the keeper's. no new claims to deallocate, preemption: 0/2 nodes \
                    are available: 2 No preemption victims found for incoming pod.";
    api.until(|api| api.events("FailedScheduling").iter().any(|text| text == expected)).await;
    assert!(!api.get("pods", "free")["spec"]["nodeName"].is_null());
    api.add_node(node("b"));
    api.until(|api| {
        api.events("Scheduled").iter().any(|text| text == "Successfully assigned default/kept to b")
    })
    .await;
    assert_eq!(*keeper.bound.lock().unwrap(), ["kept on b"]);
    assert_eq!(api.get("pods", "kept")["spec"]["nodeName"], Value::Null, "no plug-in has bound it");
    running.stop().await;
}

/// Two hosts with a disk each, and a class of disks that are chosen with the pod.
fn with_local_disks() -> Arc<Api> {
    let api = Api::new();
    let provisioner = "kubernetes.io/no-provisioner";
    for (name, provisioner) in [("local", provisioner), ("network", "example.com/disk")] {
        let class = json!({"metadata": {"name": name}, "provisioner": provisioner,
            "volumeBindingMode": "WaitForFirstConsumer"});
        api.put("storageclasses", class);
    }
    for host in ["a", "b"] {
        api.add_node(node(host).label("kubernetes.io/hostname", host));
        let terms = json!([{"matchExpressions":
            [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]);
        api.put(
            "persistentvolumes",
            json!({
                "metadata": {"name": format!("disk-{host}")},
                "spec": {"storageClassName": "local", "capacity": {"storage": "10Gi"},
                    "accessModes": ["ReadWriteOnce"], "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}},
                "status": {"phase": "Available"},
            }),
        );
    }
    api
}

fn claim(name: &str, class: &str) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-{name}")},
        "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}},
    })
}

fn user(name: &str, claim: &str) -> PodBuilder {
    pod(name).edit(|pod| {
        let volume = json!({"name": "data", "persistentVolumeClaim": {"claimName": claim}});
        pod.spec.get_or_insert_default().volumes = Some(vec![serde_json::from_value(volume).unwrap()]);
    })
}

/// Three pods, two disks: each disk is written for one claim, the third pod has none; and no pod is bound before its claim.
#[tokio::test(start_paused = true)]
async fn volumes_are_bound_with_the_pods_that_use_them() {
    let api = with_local_disks();
    let running = api.start();
    for name in ["one", "two", "three"] {
        api.put("persistentvolumeclaims", claim(name, "local"));
        api.add_pod(user(name, name));
    }
    let owner = |api: &Api, host: &str| {
        let claim = api.get("persistentvolumes", &format!("disk-{host}"))["spec"]["claimRef"]["name"].clone();
        claim.as_str().map(str::to_owned)
    };
    api.until(|api| owner(api, "a").is_some() && owner(api, "b").is_some()).await;
    api.until(|api| {
        api.events("FailedScheduling")
            .iter()
            .any(|text| text.contains("2 node(s) didn't find available persistent volumes to bind"))
    })
    .await;
    for host in ["a", "b"] {
        let disk = format!("disk-{host}");
        let volume = api.get("persistentvolumes", &disk);
        assert_eq!(volume["metadata"]["annotations"]["pv.kubernetes.io/bound-by-controller"], "yes");
        let claim = owner(&api, host).unwrap();
        assert_eq!(volume["spec"]["claimRef"]["uid"], format!("uid-{claim}"));
        assert_eq!(api.get("pods", &claim)["spec"]["nodeName"], Value::Null, "its claim is not bound");
        api.bind_claim(&claim, &disk);
        api.until_on(&claim, host).await;
    }
    let last =
        ["one", "two", "three"].into_iter().find(|name| api.get("pods", name)["spec"]["nodeName"].is_null());
    let mut disk = api.get("persistentvolumes", "disk-a");
    disk["metadata"] = json!({"name": "disk-c"});
    disk["spec"]["claimRef"] = Value::Null;
    api.put("persistentvolumes", disk);
    api.until(|api| owner(api, "c").as_deref() == last).await;
    api.bind_claim(last.unwrap(), "disk-c");
    api.until_on(last.unwrap(), "a").await;
    running.stop().await;
}

/// A provisioner is told the node, and says that it can't by taking the name away; then the pod is tried again.
#[tokio::test(start_paused = true)]
async fn a_volume_is_provisioned_for_the_node_or_the_pod_is_tried_again() {
    let api = with_local_disks();
    let running = api.start();
    api.put("persistentvolumeclaims", claim("data", "network"));
    api.add_pod(user("p", "data"));
    let selected = |api: &Api| {
        let claim = api.get("persistentvolumeclaims", "data");
        claim["metadata"]["annotations"]["volume.kubernetes.io/selected-node"].as_str().map(str::to_owned)
    };
    api.until(|api| selected(api).is_some()).await;
    let mut failed = api.get("persistentvolumeclaims", "data");
    failed["metadata"]["annotations"] = json!({"other": "one"});
    api.put("persistentvolumeclaims", failed);
    let expected =
        "running PreBind plugin \"VolumeBinding\": binding volumes: provisioning failed for PVC \"data\"";
    api.until(|api| api.events("FailedScheduling") == [expected]).await;
    api.until(|api| selected(api).is_some()).await;
    let node = selected(&api).unwrap();
    api.put("persistentvolumes", json!({"metadata": {"name": "new"}, "spec": {}}));
    api.bind_claim("data", "new");
    api.until_on("p", &node).await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn volumes_that_are_not_bound_in_time_give_the_place_back() {
    let api = with_local_disks();
    let short = Arc::new(VolumeBinding::new(std::time::Duration::from_secs(30)));
    let profile = Profile::builder().reserve(Arc::clone(&short) as Arc<_>).pre_bind(short as Arc<_>).build();
    let running = api.start_with(profile.unwrap());
    api.put("persistentvolumeclaims", claim("data", "network"));
    let started = tokio::time::Instant::now();
    api.add_pod(user("p", "data"));
    let expected = "running PreBind plugin \"VolumeBinding\": binding volumes: context deadline exceeded";
    api.until(|api| api.events("FailedScheduling") == [expected]).await;
    assert_eq!(started.elapsed().as_secs(), 30);
    // A pod that goes does not keep its volumes waiting.
    api.until(|api| api.patches.load(Ordering::Relaxed) > 0).await;
    api.remove("pods", "p");
    api.put("persistentvolumeclaims", claim("local", "local"));
    api.add_pod(user("q", "local"));
    api.until(|api| {
        !api.get("persistentvolumes", "disk-a")["spec"]["claimRef"].is_null()
            || !api.get("persistentvolumes", "disk-b")["spec"]["claimRef"].is_null()
    })
    .await;
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_of_higher_priority_takes_the_place_of_others_once_they_are_gone() {
    let api = Api::new();
    api.add_node(node("a").resource("cpu", "2"));
    let running = api.start();
    api.add_pod(pod("low").request("cpu", "1"));
    api.add_pod(pod("middle").priority(5).request("cpu", "1"));
    api.until_on("low", "a").await;
    api.until_on("middle", "a").await;
    api.add_pod(pod("high").priority(10).request("cpu", "1"));
    let condition = |api: &Api| {
        let conditions = api.get("pods", "low")["status"]["conditions"].clone();
        conditions.as_array().into_iter().flatten().find(|known| known["type"] == "DisruptionTarget").cloned()
    };
    api.until(|api| {
        !api.get("pods", "low")["metadata"]["deletionTimestamp"].is_null()
            && api.get("pods", "high")["status"]["nominatedNodeName"] == "a"
            && condition(api).is_some()
    })
    .await;
    let condition = condition(&api).unwrap();
    assert_eq!(
        (&condition["reason"], &condition["message"]),
        (
            &json!("PreemptionByScheduler"),
            &json!("default-scheduler: preempting to accommodate a higher priority pod")
        )
    );
    let uid = api.get("pods", "high")["metadata"]["uid"].as_str().unwrap().to_owned();
    api.until(|api| api.events("Preempted") == [format!("Preempted by pod {uid} on node a")]).await;
    // The room is kept: neither does another pod get it, nor is anyone else removed for it.
    api.add_pod(pod("other").priority(7).request("cpu", "1"));
    tokio::time::sleep(std::time::Duration::from_secs(400)).await;
    assert_eq!(api.get("pods", "high")["spec"]["nodeName"], Value::Null);
    assert!(
        api.get("pods", "middle")["metadata"]["deletionTimestamp"].is_string(),
        "other is more important"
    );
    api.remove("pods", "low");
    api.until_on("high", "a").await;
    assert_eq!(api.get("pods", "other")["spec"]["nodeName"], Value::Null);
    api.remove("pods", "middle");
    api.until_on("other", "a").await;
    assert_eq!(api.events("Preempted").len(), 2);
    running.stop().await;
}
