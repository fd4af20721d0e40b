//! Forms of answers: protobuf, YAML, metadata alone, and what is not to be had.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
    schema::{builtin, protobuf},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{get, json as send, server};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

async fn ask(server: &ApiServer, method: &str, path: &str, accept: &str, body: &str) -> (u16, String, Bytes) {
    let request = Request::builder().method(method).uri(path).header("accept", accept);
    let request =
        request.header("content-type", "application/json").body(Full::new(body.to_owned().into())).unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().unwrap().to_owned());
    let code = response.status().as_u16();
    (code, kind.unwrap_or_default(), response.into_body().collect().await.unwrap().to_bytes())
}

#[tokio::test]
async fn objects_and_lists_are_the_same_in_protobuf() {
    let server = server().await;
    let catalog = builtin::catalog();
    let map = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "data": {"k": "v"}, "binaryData": {"b": "AAE="}});
    let (code, kind, made) = ask(&server, "POST", MAPS, PROTOBUF, &map.to_string()).await;
    assert_eq!((code, kind.as_str()), (201, PROTOBUF));
    let (_, plain) = get(&server, &format!("{MAPS}/a")).await;
    assert_eq!(protobuf::decode(&catalog, &made).unwrap(), plain);
    let (_, _, got) =
        ask(&server, "GET", &format!("{MAPS}/a"), &format!("{PROTOBUF},application/json"), "").await;
    assert_eq!(got, made);
    let (_, plain) = get(&server, "/api/v1/namespaces").await;
    let (code, _, list) = ask(&server, "GET", "/api/v1/namespaces", PROTOBUF, "").await;
    assert_eq!(code, 200);
    let decoded = protobuf::decode(&catalog, &list).unwrap();
    assert_eq!((&decoded["kind"], &decoded["metadata"]), (&plain["kind"], &plain["metadata"]));
    let names = |list: &Value| -> Vec<Value> {
        list["items"].as_array().unwrap().iter().map(|item| item["metadata"].clone()).collect()
    };
    assert_eq!(names(&decoded), names(&plain));
}

/// Deletions, too, are answered in the form that is asked for.
#[tokio::test]
async fn deletions_are_answered_in_protobuf() {
    let server = server().await;
    let catalog = builtin::catalog();
    for name in ["a", "b"] {
        assert_eq!(send(&server, "POST", MAPS, &json!({"metadata": {"name": name}})).await.0, 201);
    }
    // What is gone is told by a status, what stays a while by the object.
    let (code, kind, gone) = ask(&server, "DELETE", &format!("{MAPS}/a"), PROTOBUF, "").await;
    let status = protobuf::decode(&catalog, &gone).unwrap();
    assert_eq!((code, kind.as_str()), (200, PROTOBUF));
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")), "{status}");
    assert_eq!((&status["details"]["name"], &status["details"]["kind"]), (&json!("a"), &json!("configmaps")));
    let held = json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}});
    assert_eq!(send(&server, "POST", MAPS, &held).await.0, 201);
    let (_, kind, later) = ask(&server, "DELETE", &format!("{MAPS}/held"), PROTOBUF, "").await;
    let later = protobuf::decode(&catalog, &later).unwrap();
    assert_eq!((kind.as_str(), &later["kind"]), (PROTOBUF, &json!("ConfigMap")), "{later}");
    assert!(later["metadata"]["deletionTimestamp"].is_string(), "{later}");
    assert_eq!(later, get(&server, &format!("{MAPS}/held")).await.1);
    let (_, kind, list) = ask(&server, "DELETE", MAPS, PROTOBUF, "").await;
    let list = protobuf::decode(&catalog, &list).unwrap();
    assert_eq!((kind.as_str(), &list["kind"]), (PROTOBUF, &json!("ConfigMapList")), "{list}");
    let (_, kind, _) = ask(&server, "DELETE", &format!("{MAPS}/none"), PROTOBUF, "").await;
    assert_eq!(kind, "application/json", "errors are told in JSON, which every client reads");
}

#[tokio::test]
async fn watches_are_framed_in_protobuf() {
    let server = server().await;
    let catalog = builtin::catalog();
    assert_eq!(send(&server, "POST", MAPS, &json!({"metadata": {"name": "a"}})).await.0, 201);
    let path = format!("{MAPS}?watch=true&timeoutSeconds=1");
    let accept = format!("{PROTOBUF};stream=watch");
    let request = Request::get(path).header("accept", &accept).body(Full::<Bytes>::default()).unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], accept.as_str());
    let mut body = response.into_body();
    let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    assert_eq!(frame.len(), length + 4);
    // An event is its type, then the object in its envelope.
    assert_eq!(&frame[4..11], b"\x0a\x05ADDED");
    let at = frame.windows(4).position(|window| window == b"k8s\0").unwrap();
    let object = protobuf::decode(&catalog, &frame[at..]).unwrap();
    assert_eq!(object["metadata"]["name"], "a");
}

#[tokio::test]
async fn what_can_not_be_given_is_refused() {
    let server = server().await;
    assert_eq!(
        send(&server, "POST", MAPS, &json!({"metadata": {"name": "a"}, "data": {"k": "v"}})).await.0,
        201
    );
    let one = format!("{MAPS}/a");
    let (code, kind, yaml) = ask(&server, "GET", &one, "application/yaml", "").await;
    assert_eq!((code, kind.as_str()), (200, "application/yaml"));
    let yaml = String::from_utf8(yaml.to_vec()).unwrap();
    assert!(yaml.contains("kind: ConfigMap") && yaml.contains("  k: v"), "{yaml}");
    for accept in
        ["application/cbor", "application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1", "text/html"]
    {
        assert_eq!(ask(&server, "GET", &one, accept, "").await.0, 406, "{accept}");
    }
    let metadata = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
    let (_, _, partial) = ask(&server, "GET", &one, metadata, "").await;
    let partial: Value = serde_json::from_slice(&partial).unwrap();
    assert_eq!((&partial["kind"], partial.get("data")), (&json!("PartialObjectMetadata"), None));
}

/// Every kind in every text that is spoken: an object made up from its schema is the same after the way there and back.
#[test]
fn every_kind_survives_the_way_through_texts() {
    let catalog = builtin::catalog();
    let mut count = 0;
    // What a watch sends has no kind of its own.
    for (group, version, kind, id) in builtin::kinds(&catalog).filter(|kind| kind.2 != "WatchEvent") {
        let object = kschema::testing::object_of(&catalog, (group, version, kind), id, 7);
        let (back, duplicates) = kschema::json::parse(object.to_string().as_bytes()).unwrap();
        assert_eq!((&back, duplicates.as_slice()), (&object, &[][..]), "{kind}");
        let (mut checked, ty) = (object.clone(), kschema::Type::Named(id));
        assert_eq!(
            kschema::check::check(&catalog, &ty, &mut checked).unwrap(),
            Vec::<String>::new(),
            "{kind}"
        );
        count += 1;
    }
    assert!(count > 200, "only {count} kinds");
}

/// A list of 16 MB: as long as nobody takes the next piece, it is not made, so memory does not grow with the list.
#[tokio::test]
async fn a_large_list_is_made_piece_by_piece() {
    const OBJECTS: usize = 2_000;
    const PIECE_BYTES_MAX: usize = 128 * 1024 + 16 * 1024;
    let server = server().await;
    let text = "x".repeat(8 * 1024);
    for number in 0..OBJECTS {
        let map = json!({"metadata": {"name": format!("c{number}")}, "data": {"text": text}});
        let (code, _) = send(&server, "POST", MAPS, &map).await;
        assert_eq!(code, 201);
    }
    let metadata = "as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
    let forms = [
        ("application/json".to_owned(), 16_000_000),
        (format!("application/json;{metadata}"), 400_000),
        (PROTOBUF.to_owned(), 16_000_000),
        (format!("{PROTOBUF};{metadata}"), 200_000),
    ];
    for (accept, length_min) in forms {
        let (mut body, mut all) = (open(&server, &accept).await, Vec::new());
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE_BYTES_MAX, "{accept}: a piece of {} bytes", piece.len());
            all.extend_from_slice(&piece);
        }
        assert!(all.len() > length_min, "{accept}: {} bytes", all.len());
        if accept == format!("{PROTOBUF};{metadata}") {
            // Clients read it by the message's numbers: 2 is an item, and of it 1 the metadata, of which 1 is the name.
            let list = field(&all[4..], 2).next().unwrap();
            let names: Vec<_> =
                field(list, 2).map(|item| field(field(item, 1).next().unwrap(), 1).next().unwrap()).collect();
            assert_eq!(names.len(), OBJECTS);
            assert!(names.iter().all(|name| name.starts_with(b"c")));
            continue;
        }
        let list: Value = if accept == PROTOBUF {
            protobuf::decode(&builtin::catalog(), &all).unwrap()
        } else {
            serde_json::from_slice(&all).unwrap()
        };
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), OBJECTS, "{accept}");
        assert!(
            items
                .iter()
                .all(|item| item["metadata"]["name"].as_str().is_some_and(|name| name.starts_with('c')))
        );
        assert_eq!(
            items[0]["kind"] == "PartialObjectMetadata",
            accept == format!("application/json;{metadata}"),
            "{accept}"
        );
    }
}

/// The fields of this number in a message that has only fields with a length.
fn field(mut message: &[u8], number: u8) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (key, rest) = message.split_first()?;
        assert_eq!(key & 7, 2);
        let end = rest.iter().position(|byte| byte & 0x80 == 0).unwrap();
        let length = rest[..=end].iter().rev().fold(0, |length, byte| length << 7 | usize::from(byte & 0x7f));
        let (value, rest) = rest[end + 1..].split_at(length);
        message = rest;
        Some((key >> 3, value))
    })
    .filter(move |(found, _)| *found == number)
    .map(|(_, value)| value)
}

async fn open(server: &ApiServer, accept: &str) -> kapi::Body {
    let request = Request::get(MAPS).header("accept", accept).body(Full::new(Bytes::new())).unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body()
}
