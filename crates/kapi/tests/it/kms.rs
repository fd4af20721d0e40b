//! Objects whose keys a key management service keeps (KMS v2). Expected results: upstream's
//! `test/integration/controlplane/transformation/kmsv2_transformation_test.go`.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::{Buf as _, Bytes};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kapi::encrypt::Encryption;
use prost::Message;
use serde_json::{Value, json};
use tokio::{net::UnixListener, sync::oneshot};

use crate::{
    encryption::{Cluster, SECRETS},
    harness::{get, json as send},
};

/// All fields of all messages that a plug-in gets and sends, by their numbers, which are theirs in every message.
#[derive(Clone, PartialEq, Message)]
struct Ask {
    /// What is to be encrypted or decrypted.
    #[prost(bytes = "bytes", tag = "1")]
    data: Bytes,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Bytes>,
}

#[derive(Clone, PartialEq, Message)]
struct Health {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct Encrypted {
    #[prost(bytes = "bytes", tag = "1")]
    ciphertext: Bytes,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Bytes>,
}

/// A plug-in on a thread of its own; it "encrypts" by adding its key's number to each byte.
struct Plugin {
    socket: PathBuf,
    says: Arc<Mutex<Says>>,
    stop: Option<oneshot::Sender<()>>,
}

struct Says {
    key: u8,
    well: bool,
    decrypted: usize,
}

impl Plugin {
    fn start() -> Self {
        let socket = std::env::temp_dir().join(format!("kapi-kms-{}.sock", uuid::Uuid::new_v4()));
        let says = Arc::new(Mutex::new(Says { key: 1, well: true, decrypted: 0 }));
        let (stop, stopped) = oneshot::channel();
        let (ready, readied) = std::sync::mpsc::channel();
        let (path, answers) = (socket.clone(), Arc::clone(&says));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = UnixListener::bind(path).unwrap();
                ready.send(()).unwrap();
                tokio::select! {
                    () = serve(listener, answers) => {}
                    _ = stopped => {}
                }
            });
        });
        readied.recv().unwrap();
        Self { socket, says, stop: Some(stop) }
    }

    fn config(&self) -> String {
        format!(
            "{{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{{resources: [secrets],
            providers: [{{kms: {{apiVersion: v2, name: vault, endpoint: 'unix://{}', timeout: 3s}}}}, {{identity: {{}}}}]}}]}}",
            self.socket.display()
        )
    }

    fn encryption(&self) -> Encryption {
        Encryption::parse(&self.config()).unwrap()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = std::fs::remove_file(&self.socket);
    }
}

async fn serve(listener: UnixListener, says: Arc<Mutex<Says>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let says = Arc::clone(&says);
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let says = Arc::clone(&says);
            async move {
                let path = request.uri().path().to_owned();
                assert_eq!(request.uri().authority().unwrap(), "localhost");
                let mut body = request.into_body().collect().await.unwrap().to_bytes();
                body.advance(5);
                let answer = answer(&path, &Ask::decode(body).unwrap(), &mut says.lock().unwrap());
                Ok::<_, std::convert::Infallible>(respond(answer))
            }
        });
        tokio::spawn(async move {
            let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn answer(path: &str, ask: &Ask, says: &mut Says) -> Option<Vec<u8>> {
    if !says.well {
        return None;
    }
    let shifted = |by: u8| ask.data.iter().map(|byte| byte.wrapping_add(by)).collect::<Bytes>();
    Some(match path.strip_prefix("/v2.KeyManagementService/").unwrap() {
        "Status" => {
            let key_id = says.key.to_string();
            Health { version: "v2".to_owned(), healthz: "ok".to_owned(), key_id }.encode_to_vec()
        }
        "Encrypt" => {
            let annotations = [("where.example.com".to_owned(), Bytes::from_static(b"here"))].into();
            Encrypted { ciphertext: shifted(says.key), key_id: says.key.to_string(), annotations }
                .encode_to_vec()
        }
        "Decrypt" => {
            says.decrypted += 1;
            assert_eq!(ask.annotations["where.example.com"], "here");
            let data = shifted(0_u8.wrapping_sub(ask.key_id.parse().unwrap()));
            Ask { data, ..Ask::default() }.encode_to_vec()
        }
        other => panic!("{other}"),
    })
}

fn respond(
    answer: Option<Vec<u8>>,
) -> Response<impl hyper::body::Body<Data = Bytes, Error = std::convert::Infallible>> {
    let (body, code) = match answer {
        Some(message) => {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            ([&[0][..], &length, &message].concat(), "0")
        }
        None => (Vec::new(), "9"),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(code));
    trailers.insert("grpc-message", HeaderValue::from_static("key disabled"));
    let body = Full::new(Bytes::from(body)).with_trailers(async move { Some(Ok(trailers)) });
    Response::builder().header("content-type", "application/grpc").body(body).unwrap()
}

#[tokio::test]
async fn the_plugin_is_asked_once_for_each_seed() {
    let plugin = Plugin::start();
    let writer = Cluster::new(Some(plugin.encryption())).await;
    let reader = Cluster::new(Some(plugin.encryption())).await;
    let decrypted = || plugin.says.lock().unwrap().decrypted;
    for name in ["a", "b", "c", "d"] {
        writer.create(name).await;
        let stored = writer.bytes(name);
        assert!(
            stored.starts_with(b"k8s:enc:kms:v2:vault:") && !stored.windows(7).any(|part| part == b"aHVudGV")
        );
        assert_eq!(
            get(&writer.server, &format!("{SECRETS}/{name}")).await.1["data"]["password"],
            "aHVudGVyMg=="
        );
        reader.put(name, stored).await;
    }
    assert_eq!(decrypted(), 0, "its own seed a server knows");
    let (code, list) = get(&reader.server, SECRETS).await;
    assert_eq!((code, list["items"].as_array().unwrap().len(), decrypted()), (200, 4, 1));
    for name in ["a", "b", "c", "d"] {
        assert_eq!(
            get(&reader.server, &format!("{SECRETS}/{name}")).await.1["data"]["password"],
            "aHVudGVyMg=="
        );
    }
    assert_eq!(decrypted(), 1);
    assert_eq!(get(&reader.server, "/healthz/kms-providers").await.0, 200);
    // Where nobody can wait, the first reader does.
    let third = Cluster::new(Some(plugin.encryption())).await;
    third.put("a", writer.bytes("a")).await;
    let found = third.server.objects().find("", "v1", "secrets", "default", "a").unwrap();
    assert_eq!((found.value().unwrap()["data"]["password"].clone(), decrypted()), (json!("aHVudGVyMg=="), 2));
}

#[tokio::test]
async fn objects_are_written_anew_with_the_plugins_new_key() {
    let plugin = Plugin::start();
    let encryption = plugin.encryption();
    let cluster = Cluster::new(Some(encryption.clone())).await;
    cluster.create("a").await;
    let path = format!("{SECRETS}/a");
    let (_, before) = get(&cluster.server, &path).await;
    let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
    let (_, same) = send(&cluster.server, "PUT", &path, &before).await;
    assert_eq!(version(&same), version(&before), "nothing has changed");
    plugin.says.lock().unwrap().key = 2;
    // Anew from the file, so that it is asked at once.
    encryption.reload(&plugin.config()).unwrap();
    encryption.check().await.unwrap();
    let (code, after) = send(&cluster.server, "PUT", &path, &before).await;
    assert_eq!(code, 200, "{after}");
    assert_ne!(version(&after), version(&before));
    assert_eq!(get(&cluster.server, &path).await.1["data"], before["data"]);
}

#[tokio::test]
async fn a_plugin_that_is_away_is_told_of_and_costs_the_others_nothing() {
    let plugin = Plugin::start();
    let writer = Cluster::new(Some(plugin.encryption())).await;
    writer.create("a").await;
    plugin.says.lock().unwrap().well = false;
    let cluster = Cluster::new(Some(plugin.encryption())).await;
    cluster.put("a", writer.bytes("a")).await;
    let secret = json!({"metadata": {"name": "b"}});
    let map = json!({"metadata": {"name": "m"}});
    for (method, path, body, code, why) in [
        (
            "GET",
            format!("{SECRETS}/a"),
            &Value::Null,
            500,
            "unable to transform key \"/registry/secrets/default/a\": failed to decrypt DEK, error: rpc error: code = FailedPrecondition desc = key disabled",
        ),
        ("GET", SECRETS.to_owned(), &Value::Null, 500, "unable to transform key"),
        ("POST", SECRETS.to_owned(), &secret, 500, "key disabled"),
        ("POST", "/api/v1/namespaces/default/configmaps".to_owned(), &map, 201, ""),
        ("GET", "/healthz/kms-providers".to_owned(), &Value::Null, 500, ""),
        ("GET", "/readyz".to_owned(), &Value::Null, 500, ""),
        ("GET", "/healthz/ping".to_owned(), &Value::Null, 200, ""),
    ] {
        let (found, answer) = send(&cluster.server, method, &path, body).await;
        assert_eq!(found, code, "{method} {path}: {answer}");
        assert!(answer["message"].as_str().unwrap_or_default().contains(why), "{method} {path}: {answer}");
    }
    let health = cluster.encryption.as_ref().unwrap().check().await.unwrap_err().to_string();
    assert!(health.starts_with("vault: ") && health.contains("key disabled"), "{health}");
}

/// Written by a kube-apiserver 1.36 that had this plug-in, as JSON.
#[tokio::test]
async fn what_a_real_server_wrote_with_the_plugin_is_read() {
    let plugin = Plugin::start();
    let cluster = Cluster::new(Some(plugin.encryption())).await;
    cluster.put("kms", crate::encryption::hex(include_str!("encryption/kms.hex"))).await;
    let (code, secret) = get(&cluster.server, &format!("{SECRETS}/kms")).await;
    assert_eq!((code, &secret["data"]["password"]), (200, &json!("aHVudGVyMg==")), "{secret}");
}
