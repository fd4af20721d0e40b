//! The agents that follow an API server: what it says reaches who has to know it.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use futures::{StreamExt, stream};
use http::{Request, Response};
use kcore::{
    Stored, TokioClock,
    local::{LocalEvent, LocalEvents},
};
use knet::{
    ProxyAgent,
    health::{ProxyHealth, ServiceHealth, ServiceHealthAgent},
    http_proxy::{Action, HttpProxy, ProxyOptions},
    ingress::IngressAgent,
    policy::{PolicyAgent, RecordingEnforcer},
    proxy::recording::RecordingProxy,
    rules::Place,
};
use kreconcile::{EventRecorder, Informers, Runnable};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Watches of an API server, within the process: first what there is, then what is sent.
#[derive(Default)]
pub(crate) struct Server {
    first: BTreeMap<&'static str, Vec<Value>>,
    /// The kinds that it does not have.
    absent: Mutex<BTreeSet<String>>,
    watches: Mutex<BTreeMap<String, mpsc::UnboundedSender<LocalEvent>>>,
    /// What was written: paths and bodies.
    pub(crate) written: Mutex<Vec<(String, Value)>>,
    pub(crate) writes: tokio::sync::Notify,
}

pub(crate) fn stored(mut object: Value, revision: u64) -> Arc<Stored> {
    object["metadata"]["resourceVersion"] = revision.to_string().into();
    object["metadata"]["uid"] = object["metadata"]["name"].clone();
    Arc::new(Stored::from_value(object).unwrap())
}

impl Server {
    pub(crate) fn new(first: impl IntoIterator<Item = (&'static str, Vec<Value>)>) -> Arc<Self> {
        Arc::new(Self { first: first.into_iter().collect(), ..Self::default() })
    }

    /// Has only kinds from now on that are not among these.
    pub(crate) fn lacks(&self, plurals: &[&str]) {
        *self.absent.lock().unwrap() = plurals.iter().map(|plural| (*plural).to_owned()).collect();
    }

    pub(crate) fn informers(self: &Arc<Self>) -> Informers {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                Ok::<_, Infallible>(match *request.method() {
                    http::Method::GET => server.watch(&request),
                    _ => server.write(request).await,
                })
            }
        });
        Informers::new(Client::new(service, "default"))
    }

    async fn write(&self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        let body = http_body_util::BodyExt::collect(request.into_body()).await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        self.written.lock().unwrap().push((path, body.clone()));
        self.writes.notify_one();
        Response::new(Body::from(body.to_string().into_bytes()))
    }

    fn watch(&self, request: &Request<Body>) -> Response<Body> {
        let plural = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        if self.absent.lock().unwrap().contains(&plural) {
            let status = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404,
                "message": "the server could not find the requested resource"});
            let mut response = Response::new(Body::from(status.to_string().into_bytes()));
            *response.status_mut() = http::StatusCode::NOT_FOUND;
            return response;
        }
        let objects = self.first.get(plural.as_str()).cloned().unwrap_or_default();
        let mut batch: Vec<_> =
            objects.into_iter().map(|object| LocalEvent::Added(stored(object, 1))).collect();
        batch.push(LocalEvent::Bookmark { revision: 1, initial_events_end: true });
        let (sender, receiver) = mpsc::unbounded_channel();
        self.watches.lock().unwrap().insert(plural, sender);
        let later = stream::unfold(receiver, |mut receiver| async {
            let event = receiver.recv().await?;
            Some((vec![event], receiver))
        });
        let mut response = Response::new(Body::empty());
        response.extensions_mut().insert(LocalEvents::new(stream::iter([batch]).chain(later)));
        response
    }

    pub(crate) fn send(&self, plural: &str, event: LocalEvent) {
        self.watches.lock().unwrap()[plural].send(event).unwrap();
    }
}

pub(crate) fn run(agent: impl Runnable + 'static) -> tokio_util::sync::DropGuard {
    let stop = CancellationToken::new();
    let until = stop.clone();
    tokio::spawn(async move { agent.run(until).await });
    stop.drop_guard()
}

fn pod(name: &str, address: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {"nodeName": "here", "containers": [{"name": "main"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
}

#[tokio::test]
async fn policies_follow_pods() {
    let policy = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
        "podSelector": {"matchLabels": {"app": "web"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "cart"}}}]}]}});
    let namespace = json!({"metadata": {"name": "shop"}});
    let pods = vec![pod("web", "10.0.0.1"), pod("cart", "10.0.0.2")];
    let server =
        Server::new([("networkpolicies", vec![policy]), ("namespaces", vec![namespace]), ("pods", pods)]);
    let enforcer = Arc::new(RecordingEnforcer::default());
    let mut tables = enforcer.tables();
    let informers = server.informers();
    let _agent = run(PolicyAgent::new(&informers, enforcer, Some("here".into())));
    let mut members = async |expected: &[&str]| {
        let expected: Vec<std::net::IpAddr> = expected.iter().map(|one| one.parse().unwrap()).collect();
        let told = tables.wait_for(|table| {
            let members = table.groups.values().flatten().map(|member| member.address);
            table.pods.len() == 1 && members.eq(expected.iter().copied())
        });
        drop(told.await.unwrap());
    };
    members(&["10.0.0.2"]).await;
    let mut ended = pod("cart", "10.0.0.2");
    ended["status"]["phase"] = "Succeeded".into();
    server.send("pods", LocalEvent::Modified(stored(ended, 2)));
    members(&[]).await;
    server.send("pods", LocalEvent::Added(stored(pod("cart", "10.0.0.3"), 3)));
    members(&["10.0.0.3"]).await;
}

/// What an Ingress refers to is followed, and its status says where it is served.
#[tokio::test]
async fn ingresses_follow_endpoints_and_say_where_they_are() {
    let slice = |address: &str| {
        json!({"metadata": {"name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"port": 8080, "name": ""}], "endpoints": [{"addresses": [address]}]})
    };
    let ingress = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"ingressClassName": "kplane",
        "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}, "tls": [{"secretName": "gone"}]}});
    let class = json!({"metadata": {"name": "kplane"}, "spec": {"controller": knet::ingress::CONTROLLER}});
    let service = json!({"metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    let server = Server::new([
        ("ingresses", vec![ingress]),
        ("ingressclasses", vec![class]),
        ("services", vec![service]),
        ("endpointslices", vec![slice("10.0.0.1")]),
    ]);
    let informers = server.informers();
    let events = EventRecorder::new(informers.client().clone(), Arc::new(TokioClock::new()), "ingress");
    let proxy = HttpProxy::new(ProxyOptions::default());
    let mut tables = proxy.tables();
    let agent = IngressAgent::new(&informers, proxy.clone()).addresses(vec!["192.0.2.1".parse().unwrap()]);
    let _agent = run(agent.events(events));
    let mut goes_to = async |expected: &str| {
        let expected = [SocketAddr::new(expected.parse().unwrap(), 8080)];
        let table = tables.wait_for(|table| {
            table.rules().any(|rule| {
                let Action::Forward(backends) = &rule.action else { return false };
                backends[0].endpoints.as_deref() == Some(&expected[..])
            })
        });
        drop(table.await.unwrap());
    };
    goes_to("10.0.0.1").await;
    server.send("endpointslices", LocalEvent::Modified(stored(slice("10.0.0.2"), 2)));
    goes_to("10.0.0.2").await;
    loop {
        let written = server.written.lock().unwrap().clone();
        let status = written.iter().find(|(path, _)| path.ends_with("/namespaces/shop/ingresses/web/status"));
        let event = written.iter().find(|(path, _)| path.ends_with("/namespaces/shop/events"));
        if let (Some((_, status)), Some((_, event))) = (status, event) {
            assert_eq!(*status, json!({"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}));
            assert_eq!(event["reason"], "InvalidCertificate", "{event}");
            assert_eq!(event["involvedObject"]["name"], "web");
            return;
        }
        server.writes.notified().await;
    }
}

#[tokio::test]
async fn health_follows_services_and_the_proxy() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let service = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {
        "type": "LoadBalancer", "clusterIP": "10.96.0.1", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": port, "ports": [{"port": 80}]}});
    let slice = json!({"metadata": {"name": "web-1", "namespace": "shop",
        "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "here"}, {"addresses": ["10.0.0.2"], "nodeName": "there"}]});
    let server = Server::new([("services", vec![service]), ("endpointslices", vec![slice])]);
    let informers = server.informers();
    let health = Arc::new(ProxyHealth::new(Arc::new(TokioClock::new())));
    let proxy = Arc::new(RecordingProxy::default());
    let mut tables = proxy.tables();
    let _proxy = run(ProxyAgent::new(&informers, proxy, Place::default()).health(Arc::clone(&health)));
    let ports = ServiceHealth::new(vec![[127, 0, 0, 1].into()], Arc::clone(&health));
    let _health = run(ServiceHealthAgent::new(&informers).nodes(ports, ["here".to_owned()]));
    tables.wait_for(|table| table.rules().count() > 0).await.unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    // It listens as soon as the agent has heard of it.
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::task::yield_now().await;
    }
    let (status, head, body) = crate::health::get(address, "/").await;
    assert_eq!(status, 200, "{body}");
    assert!(head.contains("endpoint-weight: 1"), "{head}");
    assert!(health.is_healthy());
}
