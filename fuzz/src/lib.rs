//! What must hold for every input that a stranger can send: one function for each fuzz target, which panics when it doesn't.
//!
//! An input is bytes. Where a target needs several documents they stand on lines of their own; what is no text or has too few
//! lines is no input, and passes. `src/tests.rs` runs each target over made-up inputs, without a fuzzer.

#[cfg(test)]
mod tests;

use std::{net::IpAddr, sync::Arc};

use bytes::{BufMut as _, Bytes, BytesMut};
use hickory_proto::op::{Message, MessageType};
use http::Method;
use http_body_util::{BodyExt as _, Full};
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kapi::{
    ApiServer,
    request::{DeleteOptions, ListOptions, Query, RequestInfo, WriteOptions},
};
use kcel::{Bindings, Decl, Env};
use kcore::selector::{FieldSelector, LabelSelector};
use knet::dns::{self, Reaction, UDP_BYTES_MAX, Zone};
use kruntime::spdy::{FrameDecoder, FrameEncoder, frame::Frame};
use kschema::{
    Type,
    apply::{ConvertError, FieldManager, Versions},
    builtin,
    patch::{self, Patch},
    protobuf,
    structural::{SchemaRules, Structural, validate_schema},
};
use kstore::{EtcdServer, MemoryStore, Store as _, testing::disk::damage};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// What an evaluation may cost here: enough for what a rule says, too little to make the fuzzer slow.
const COST_MAX: u64 = 20_000;

/// The next line of a text, and what is left.
fn line(text: &str) -> (&str, &str) {
    text.split_once('\n').unwrap_or((text, ""))
}

fn document(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

/// A request line, `METHOD /path?query`: it is read without a fault, the same whenever it is read, and only what stands below
/// `/api` and `/apis` is about a resource, which then has a name.
pub fn request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (method, target) = text.split_once(' ').unwrap_or(("GET", text));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = Query::parse(query);
    let info = RequestInfo::new(&method, path, &query);
    assert_eq!(info, RequestInfo::new(&method, path, &query));
    // Methods that no verb belongs to leave it empty, as upstream does.
    let known = matches!(method.as_str(), "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE");
    assert!(!info.is_resource || known != info.verb.is_empty(), "{info:?}");
    if info.is_resource {
        assert!(!info.resource.is_empty() && !info.version.is_empty(), "{info:?}");
        assert!(!info.resource.contains('/') && !info.name.contains('/'), "{info:?}");
    } else {
        assert!(info.resource.is_empty() && info.namespace.is_empty(), "{info:?}");
    }
    for watch in [false, true] {
        if let Ok(options) = ListOptions::parse(&query, watch) {
            let again = LabelSelector::parse(&options.labels.to_string());
            assert_eq!(again.as_ref(), Ok(&options.labels));
        }
    }
    let _ = WriteOptions::parse(&query, "PatchOptions");
    let _ = DeleteOptions::parse(&query, None);
}

thread_local! {
    /// One server for all inputs of a thread, which has every way to say who one is that needs nobody else.
    static SERVER: (tokio::runtime::Runtime, ApiServer) = {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let server = runtime.block_on(async {
            let server = ApiServer::builder().bootstrap_tokens(true).build().expect("a server");
            server.bootstrap().await.expect("a cluster's objects");
            server
        });
        (runtime, server)
    };
}

/// Headers, `name: value` on lines of their own, that may say who somebody is: nobody who makes them up is anybody, and no header
/// makes the server fail.
pub fn credentials(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut request = http::Request::get("/api/v1/namespaces/kube-system/secrets");
    for header in text.lines() {
        let Some((name, value)) = header.split_once(": ") else { continue };
        let (Ok(name), Ok(value)) = (http::HeaderName::try_from(name), http::HeaderValue::try_from(value))
        else {
            continue;
        };
        request = request.header(name, value);
    }
    let Ok(request) = request.body(Full::<Bytes>::default()) else { return };
    SERVER.with(|(runtime, server)| {
        let answer = runtime.block_on(server.clone().oneshot(request)).expect("it always answers");
        assert!(matches!(answer.status().as_u16(), 400 | 401 | 403), "{}", answer.status());
    });
}

/// Selectors of labels and fields: what is printed is read as the same, and no two requirements that exclude each other match.
pub fn selectors(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (selector, labels) = line(text);
    if let Ok(selector) = LabelSelector::parse(selector) {
        let printed = selector.to_string();
        assert_eq!(LabelSelector::parse(&printed).as_ref(), Ok(&selector), "{printed}");
        let pairs: Vec<_> = labels.split(',').filter_map(|pair| pair.split_once('=')).collect();
        let matches = selector.matches_pairs(pairs.iter().copied());
        let each = selector.requirements().iter().all(|requirement| {
            let value = pairs.iter().find(|(key, _)| *key == requirement.key).map(|(_, value)| *value);
            requirement.matches(value)
        });
        assert_eq!(matches, each, "{printed}");
    }
    if let Ok(selector) = FieldSelector::parse(selector) {
        assert_eq!(selector.is_empty(), selector.terms().is_empty());
        for term in selector.terms() {
            assert!(
                selector.required(&term.path).is_none() || selector.terms().iter().any(|term| term.equal)
            );
        }
    }
}

/// A patch (its media type, the object, the patch, on three lines): the outcome is the same each time, and a merge patch or
/// a strategic one that is applied to its own outcome changes nothing more, as long as it has no directives.
pub fn patches(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (media_type, rest) = line(text);
    let (object, body) = line(rest);
    let media_type = match media_type {
        "json" => "application/json-patch+json",
        "merge" => "application/merge-patch+json",
        "strategic" => patch::STRATEGIC,
        other => other,
    };
    let (Some(object), Some(body)) = (document(object), document(body)) else { return };
    let Ok(parsed) = Patch::parse(media_type, body.clone()) else { return };
    let catalog = builtin::catalog();
    let schema = Type::Named(catalog.find("~core.v1.Pod").expect("there are pods"));
    let Ok(patched) = parsed.apply(&catalog, &schema, &object) else { return };
    let again = parsed.apply(&catalog, &schema, &object);
    assert_eq!(again.ok().as_ref(), Some(&patched));
    if matches!(parsed, Patch::Merge(_)) {
        let twice = parsed.apply(&catalog, &schema, &patched);
        assert_eq!(twice.ok().as_ref(), Some(&patched), "a merge patch is idempotent (RFC 7386)");
    }
}

/// One version, nothing to convert.
struct OneVersion(Type);

impl Versions for OneVersion {
    fn schema(&self, api_version: &str) -> Option<&Type> {
        (api_version == "v1").then_some(&self.0)
    }

    fn convert(&self, _: &Value, _: &str) -> Result<Value, ConvertError> {
        Err(ConvertError::NoSuchVersion)
    }
}

/// Server-side apply of two configurations of a pod, on two lines: applying the same again changes nothing, and whoever
/// forces gets what he wants.
pub fn apply(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (first, second) = line(text);
    let configuration = |text: &str| {
        let mut object = document(text).filter(Value::is_object)?;
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Pod");
        object["metadata"] = json!({"name": "a"});
        Some(object)
    };
    let (Some(first), Some(second)) = (configuration(first), configuration(second)) else { return };
    let catalog = builtin::catalog();
    let versions = OneVersion(Type::Named(catalog.find("~core.v1.Pod").expect("there are pods")));
    let manager = FieldManager {
        catalog: &catalog,
        versions: &versions,
        api_version: "v1",
        kind: "Pod",
        subresource: "",
    };
    let now = jiff::Timestamp::UNIX_EPOCH;
    let apply = |live: &Value, object: &Value, who| manager.on_apply(live, object, who, true, now);
    let Ok(Some(live)) = apply(&json!({}), &first, "ann") else { return };
    assert!(matches!(apply(&live, &first, "ann"), Ok(None)), "applying the same again changes nothing");
    let Ok(Some(both)) = apply(&live, &second, "bob") else { return };
    assert!(matches!(apply(&both, &second, "bob"), Ok(None)), "applying the same again changes nothing");
    // By an update everything may change hands, but what comes of it can be read again.
    let mut updated = first;
    manager.on_update(&both, &mut updated, "carol", now);
    let _ = apply(&updated, &second, "bob");
}

/// A schema of a definition, and an object, on two lines: a schema without errors compiles, what is pruned and defaulted stays
/// as it is when that is done again, and validation comes to an end.
pub fn crd_schema(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (schema, object) = line(text);
    let Some(schema) = document(schema) else { return };
    let errors = validate_schema(&builtin::catalog(), &schema, "schema", SchemaRules::default());
    let Ok(compiled) = Structural::compile(&schema) else {
        assert!(!errors.is_empty(), "a schema without errors compiles");
        return;
    };
    let Some(mut object) = document(object).filter(Value::is_object).filter(|_| errors.is_empty()) else {
        return;
    };
    compiled.default_in(&mut object);
    let defaulted = object.clone();
    compiled.default_in(&mut object);
    assert_eq!(object, defaulted, "defaulting is idempotent");
    compiled.prune(&mut object);
    let pruned = object.clone();
    assert_eq!(compiled.prune(&mut object), Vec::<String>::new(), "nothing is left to prune");
    assert_eq!(object, pruned);
    let mut faults = Vec::new();
    compiled.validate(&object, None, &mut faults);
    compiled.validate_lists(&object, &mut faults);
    let mut unchanged = Vec::new();
    compiled.validate(&object, Some(&object), &mut unchanged);
    assert!(unchanged.len() <= faults.len(), "what was there before is no new fault");
}

/// An expression, and the object that it is about, on two lines: it is refused, or evaluated within its budget, the same
/// each time.
pub fn cel(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (source, object) = line(text);
    let part = Decl::object("part").field("name", Decl::string().max_length(50), true);
    let root = Decl::object("root")
        .field("size", Decl::int(), false)
        .field("name", Decl::string().max_length(50), false)
        .field("parts", Decl::list(part).max_items(5), false)
        .field("tags", Decl::map(Decl::string()).max_properties(5), false)
        .field("when", Decl::date_time(), false)
        .named("selfType");
    let Ok(program) = Env::builder().variable("self", root).build().compile(source) else { return };
    let object = document(object).unwrap_or_else(|| json!({}));
    let evaluate = || {
        let bindings = Bindings::new().json("self", &object);
        let outcome = program.eval(&bindings, COST_MAX);
        (outcome.cost, outcome.result.map(|value| format!("{value:?}")).map_err(|error| error.to_string()))
    };
    let (cost, result) = evaluate();
    assert!(result.is_err() || cost <= COST_MAX, "{cost} is more than there was");
    assert_eq!(evaluate(), (cost, result));
}

/// Bytes in Kubernetes' protobuf: an object that can be read can be written, and what is written is read as the same from then
/// on. (The first writing adds what a message always has, such as metadata.)
pub fn protobuf(data: &[u8]) {
    let catalog = builtin::catalog();
    let Ok(object) = protobuf::decode(&catalog, data) else { return };
    let rewrite = |object: &Value| {
        let written = protobuf::encode(&catalog, object).ok()?;
        Some(protobuf::decode(&catalog, &written).expect("what is written can be read"))
    };
    let Some(read) = rewrite(&object) else { return };
    assert_eq!(rewrite(&read).as_ref(), Some(&read), "what is written is read as the same");
}

/// JSON: the reader that notes duplicate keys reads what `serde_json` reads, as the same.
pub fn json(data: &[u8]) {
    let plain: Option<Value> = serde_json::from_slice(data).ok();
    let noted = kschema::json::parse(data).ok();
    assert_eq!(noted.as_ref().map(|(value, _)| value), plain.as_ref());
    if let Some((value, duplicates)) = noted {
        let text = value.to_string();
        let again = kschema::json::parse(text.as_bytes()).ok();
        assert_eq!(again, Some((value, Vec::new())), "what is written has no duplicates: {duplicates:?}");
    }
}

/// Bytes of a SPDY connection: they are read the same whole and byte by byte, and what is written of the frames is read as the
/// same again.
pub fn spdy(data: &[u8]) {
    let read = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut decoder, mut buffer, mut frames) = (FrameDecoder::default(), BytesMut::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(frame)) => join(&mut frames, frame),
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error)),
                }
            }
        }
        (frames, None)
    };
    let (frames, error) = read(&mut std::iter::once(data));
    assert_eq!(read(&mut data.chunks(1)), (frames.clone(), error), "pieces make no difference");
    let (mut encoder, mut written) = (FrameEncoder::default(), BytesMut::new());
    frames.iter().for_each(|frame| encoder.encode(frame, &mut written));
    assert_eq!(
        read(&mut std::iter::once(&written[..])),
        (frames, None),
        "what is written is read as the same"
    );
}

/// Data come in pieces of any size; together they are what was sent.
fn join(frames: &mut Vec<Frame>, frame: Frame) {
    if let (Some(Frame::Data { stream, fin, data }), Frame::Data { stream: of, fin: last, data: more }) =
        (frames.last_mut(), &frame)
        && stream == of
        && !*fin
    {
        *data = [&data[..], more].concat().into();
        *fin = *last;
    } else {
        frames.push(frame);
    }
}

/// What stands in the directory of a store, behind its first letter: a log, the records of a frame (after a byte that says how
/// many) or a checkpoint, the last two with checksums that are right. It is opened or refused, never more memory is set aside
/// than the bytes can fill, and what is opened agrees with itself.
pub fn disk(data: &[u8]) {
    let files = match data.split_first() {
        Some((b'l', bytes)) => damage::log(bytes),
        Some((b'r', [count, records @ ..])) => damage::log_of_records(records, u32::from(*count)),
        Some((b'c', backup)) => damage::checkpoint(backup),
        _ => return,
    };
    let once = damage::open_files(files.clone());
    let twice = damage::open_files(files);
    assert_eq!(once.is_ok(), twice.is_ok(), "{once:?}, {twice:?}");
}

/// The methods of etcd's API that take more than nothing.
const ETCD_METHODS: [&str; 14] = [
    "KV/Range",
    "KV/Put",
    "KV/DeleteRange",
    "KV/Txn",
    "KV/Compact",
    "Watch/Watch",
    "Lease/LeaseGrant",
    "Lease/LeaseRevoke",
    "Lease/LeaseKeepAlive",
    "Lease/LeaseTimeToLive",
    "Lease/LeaseLeases",
    "Maintenance/HashKV",
    "Maintenance/Snapshot",
    "Auth/Authenticate",
];

/// Calls of etcd's API, one after the other: a method, the length of its message, the message. Every call is answered with a
/// status of gRPC, and the store agrees with itself afterwards.
pub fn etcd(data: &[u8]) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()
    else {
        return;
    };
    runtime.block_on(async {
        let store = std::sync::Arc::new(MemoryStore::new());
        let Ok(server) = EtcdServer::new(store.clone()).await else { return };
        let mut rest = data;
        while let [method, length, more @ ..] = rest {
            let (message, after) = more.split_at(usize::from(*length).min(more.len()));
            rest = after;
            let mut body = BytesMut::with_capacity(5 + message.len());
            body.put_u8(0);
            body.put_u32(message.len() as u32);
            body.put_slice(message);
            let path = format!("/etcdserverpb.{}", ETCD_METHODS[usize::from(*method) % ETCD_METHODS.len()]);
            let request = http::Request::post(&path).header("content-type", "application/grpc");
            let Ok(request) = request.body(Full::<Bytes>::from(body.freeze())) else { return };
            let response = server.call(request).await;
            assert_eq!(response.status(), 200, "{path}");
            let headers = response.headers().clone();
            let told = response.into_body().collect().await;
            let Ok(told) = told else { panic!("{path}: the answer breaks off") };
            let status = told.trailers().and_then(|trailers| trailers.get("grpc-status"));
            assert!(status.is_some() || headers.contains_key("grpc-status"), "{path}: no status");
        }
        assert!(store.snapshot().verify().is_ok());
    });
}

/// A zone with a Service of each kind.
#[derive(Debug)]
struct SmallZone;

impl Zone for SmallZone {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let spec = match name {
            "web" => json!({"clusterIP": "10.3.0.100", "ports": [{"name": "http", "port": 80}]}),
            "db" => json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
            "out" => json!({"type": "ExternalName", "externalName": "example.com"}),
            "loop" => json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"}),
            _ => return None,
        };
        let service = json!({"metadata": {"name": name, "namespace": namespace}, "spec": spec});
        (namespace == "shop").then(|| serde_json::from_value(service).ok().map(Arc::new))?
    }

    fn slices(&self, _namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let endpoints: Vec<Value> = (0..40).map(|host| json!({"addresses": [format!("10.1.0.{host}")]})).collect();
        let slice = json!({"metadata": {"labels": {"kubernetes.io/service-name": service}}, "addressType": "IPv4",
            "ports": [{"name": "sql", "port": 5432}], "endpoints": endpoints});
        serde_json::from_value(slice).into_iter().map(Arc::new).collect()
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        namespace == "shop"
    }

    fn service_at(&self, address: IpAddr) -> Option<(String, String)> {
        (address == IpAddr::from([10, 3, 0, 100])).then(|| ("shop".to_owned(), "web".to_owned()))
    }

    fn hosts_at(&self, _address: IpAddr) -> Vec<(String, String, String)> {
        Vec::new()
    }
}

/// The cluster's DNS: what comes is answered under its number within the limit, by what is itself no question, or not at all.
pub fn dns(data: &[u8]) {
    match dns::respond(data, "cluster.local", &SmallZone) {
        Reaction::Ignore => assert!(data.len() < 12 || data[2] & 0x80 != 0, "a question is not answered"),
        Reaction::Reply(reply, limit) => {
            assert_eq!(reply.metadata.id.to_be_bytes(), [data[0], data[1]]);
            assert_eq!(reply.metadata.message_type, MessageType::Response);
            assert!(limit <= UDP_BYTES_MAX);
            if let Some(bytes) = dns::encode(&reply, limit) {
                assert!(bytes.len() <= limit);
                assert!(Message::from_vec(&bytes).is_ok(), "an answer that can't be read");
                assert!(matches!(dns::respond(&bytes, "cluster.local", &SmallZone), Reaction::Ignore));
            }
        }
        Reaction::Ask(question, _) => assert_eq!(question.queries.len(), 1),
    }
}
