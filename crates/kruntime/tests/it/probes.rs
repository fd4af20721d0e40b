//! Probes by gRPC (KEP-2727), of a real server.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::{TokioExecutor, TokioIo};
use kcore::SystemClock;
use knet::{AddressRange, loopback::LoopbackBlock};
use kreconcile::{Informers, Manager, Start};
use kruntime::{
    NodeAgent, NodeConfig,
    runtime::process::{ProcessOptions, ProcessRuntime},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, server::Grpc};
use tonic_prost::ProstCodec;

use crate::fake::FakeApi;

const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than a length of one byte can say.
const SERVICE: &str = "a.service.with.a.long.name.a.service.with.a.long.name.a.service.with.a.long.name.a.service.with.a.long.name.a.service.with.a.long.name";

/// `HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Question {
    #[prost(string, tag = "1")]
    service: String,
}

/// `HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Answer {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// What the server says of [`SERVICE`].
type Said = Arc<Mutex<Result<i32, Status>>>;

#[derive(Clone)]
struct Health(Said);

impl tonic::server::UnaryService<Question> for Health {
    type Response = Answer;
    type Future = std::future::Ready<Result<tonic::Response<Answer>, Status>>;

    fn call(&mut self, request: tonic::Request<Question>) -> Self::Future {
        let said = if request.into_inner().service == SERVICE {
            self.0.lock().unwrap().clone()
        } else {
            Err(Status::not_found("unknown service"))
        };
        std::future::ready(said.map(|status| tonic::Response::new(Answer { status })))
    }
}

async fn serve(address: SocketAddr, said: Said) -> AbortOnDropHandle<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let health = Health(Arc::clone(&said));
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let health = health.clone();
                async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let mut grpc = Grpc::new(ProstCodec::<Answer, Question>::default());
                    Ok::<_, std::convert::Infallible>(grpc.unary(health, request).await)
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    }))
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

#[tokio::test]
async fn health_is_asked_for_by_grpc() {
    let (api, dir, block) =
        (FakeApi::default(), tempfile::tempdir().unwrap(), LoopbackBlock::claim().unwrap());
    let addresses: AddressRange = block.pods()[0].parse().unwrap();
    let clock = Arc::new(SystemClock);
    let options = ProcessOptions::new(dir.path().join("runtime"), Arc::new(addresses), clock.clone());
    let informers = Informers::new(api.client());
    let mut config = NodeConfig::new("node", Arc::new(ProcessRuntime::new(options).unwrap()));
    config.state_dir = Some(dir.path().join("node"));
    let agent = NodeAgent::new(&informers, clock, [config]);
    let _running = Manager::new().informers(&informers).add(Start::Always, agent).start();
    let probe = |service: &str, more: Value| {
        // A busy machine may need its time to answer: only what is said decides.
        let mut probe =
            json!({"grpc": {"port": 5000, "service": service}, "periodSeconds": 1, "timeoutSeconds": 30});
        probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        probe
    };
    let endless = json!({"failureThreshold": 1_000_000});
    let at_once = json!({"failureThreshold": 1});
    let container = json!({"name": "c", "image": "i", "command": ["sleep", "1000"],
        "startupProbe": probe(SERVICE, endless), "livenessProbe": probe(SERVICE, at_once.clone()),
        "readinessProbe": probe(SERVICE, at_once.clone())});
    let other = json!({"name": "other", "image": "i", "command": ["sleep", "1000"],
        "readinessProbe": probe("other", at_once)});
    api.put(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": "default", "uid": "1"},
        "spec": {"nodeName": "node", "terminationGracePeriodSeconds": 1, "containers": [container, other]},
        "status": {"phase": "Pending"},
    }));
    let within = async |what: &str, is: &dyn Fn(&Value) -> bool| {
        let until = tokio::time::timeout(PATIENCE, api.until(|pods| is(&pods["pod"]))).await;
        until.unwrap_or_else(|_| panic!("{what}: {}", api.pods()["pod"]["status"]));
    };
    let told = async |words: &str| {
        let is = |writes: &[(http::Method, String, Value)]| {
            writes.iter().any(|(_, _, event)| event["message"].as_str() == Some(words))
        };
        let until = tokio::time::timeout(PATIENCE, api.until_written("/events", is)).await;
        until.unwrap_or_else(|_| panic!("{words}: {:?}", api.writes_to("/events")));
    };
    within("it runs", &|pod| pod["status"]["phase"] == "Running" && pod["status"]["podIP"].is_string()).await;
    let address = api.pods()["pod"]["status"]["podIP"].as_str().unwrap().to_owned();
    let said: Said = Arc::new(Mutex::new(Err(Status::new(Code::Unimplemented, "no such method"))));
    let _server = serve(format!("{address}:5000").parse().unwrap(), Arc::clone(&said)).await;
    told(
        "Startup probe failed: error: this server does not implement the grpc health protocol \
          (grpc.health.v1.Health): no such method",
    )
    .await;
    told("Readiness probe failed: error: health rpc probe failed: rpc error: code = NotFound desc = unknown service")
        .await;
    let status = |pod: &Value, name: &str| {
        let all = pod["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["name"] == name).unwrap_or_default()
    };
    assert_eq!(status(&api.pods()["pod"], "c")["started"], false);

    *said.lock().unwrap() = Ok(1);
    within("it has started", &|pod| status(pod, "c")["ready"] == true).await;
    assert!(!is_ready(&api.pods()["pod"]), "the other container's service is not known");
    *said.lock().unwrap() = Ok(2);
    told("Liveness probe failed: service unhealthy (responded with \"NOT_SERVING\")").await;
    within("it is started again", &|pod| status(pod, "c")["restartCount"].as_i64() >= Some(1)).await;
    assert_eq!(status(&api.pods()["pod"], "other")["restartCount"], 0);
}
