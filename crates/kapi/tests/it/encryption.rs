//! Objects that are stored encrypted. Expected results: upstream's `test/integration/controlplane/transformation` and
//! `storage/value/transformer_test.go`.

use std::sync::Arc;

use bytes::Bytes;
use kapi::{ApiServer, encrypt::Encryption};
use kstore::{MemoryStore, Op, Store as _, Txn};
use serde_json::{Value, json};

use crate::harness::{get, json as send};

pub(crate) const SECRETS: &str = "/api/v1/namespaces/default/secrets";

/// A key of 32 bytes.
fn key(name: &str, byte: char) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    format!("{{name: {name}, secret: {}}}", STANDARD.encode(byte.to_string().repeat(32)))
}

fn config(providers: &str) -> String {
    format!(
        "{{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{{resources: [secrets], providers: [{providers}]}}]}}"
    )
}

pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) encryption: Option<Encryption>,
    store: Arc<MemoryStore>,
}

impl Cluster {
    pub(crate) async fn new(encryption: Option<Encryption>) -> Self {
        let store = Arc::new(MemoryStore::new());
        let builder = ApiServer::builder().store(Arc::clone(&store) as _);
        let builder = match encryption.clone() {
            Some(encryption) => builder.encryption(encryption),
            None => builder,
        };
        let server = builder.build().unwrap();
        server.bootstrap().await.unwrap();
        Self { server, encryption, store }
    }

    pub(crate) async fn create(&self, name: &str) {
        let secret = json!({"metadata": {"name": name}, "stringData": {"password": "hunter2"}});
        assert_eq!(send(&self.server, "POST", SECRETS, &secret).await.0, 201);
    }

    /// The bytes of a secret in the store.
    pub(crate) fn bytes(&self, name: &str) -> Bytes {
        let secrets = self.server.objects().registry().find("", "v1", "secrets").unwrap();
        let entry = self.store.snapshot().get(secrets.table, format!("default/{name}").as_bytes());
        entry.unwrap().value().clone()
    }

    /// Puts bytes where another server has left them.
    pub(crate) async fn put(&self, name: &str, value: Bytes) {
        let table = self.server.objects().registry().find("", "v1", "secrets").unwrap().table;
        let key = Bytes::from(format!("default/{name}"));
        let txn = Txn::new().op(Op::Put { table, key, value, lease: None, hint: None });
        self.store.commit(txn).await.unwrap();
    }
}

#[tokio::test]
async fn secrets_are_stored_as_the_first_provider_says() {
    for (providers, prefix) in [
        (format!("{{aesgcm: {{keys: [{}]}}}}", key("key1", 'a')), "k8s:enc:aesgcm:v1:key1:"),
        (
            format!("{{aescbc: {{keys: [{}, {}]}}}}", key("two", 'b'), key("one", 'a')),
            "k8s:enc:aescbc:v1:two:",
        ),
        (
            format!("{{secretbox: {{keys: [{}]}}}}, {{identity: {{}}}}", key("x", 'c')),
            "k8s:enc:secretbox:v1:x:",
        ),
        (format!("{{identity: {{}}}}, {{aesgcm: {{keys: [{}]}}}}", key("key1", 'a')), "{"),
    ] {
        let encryption = Encryption::parse(&config(&providers)).unwrap();
        let cluster = Cluster::new(Some(encryption.clone())).await;
        cluster.create("a").await;
        let stored = cluster.bytes("a");
        assert!(stored.starts_with(prefix.as_bytes()), "{prefix}");
        assert_eq!(
            stored.starts_with(b"{"),
            stored.windows(7).any(|window| window == b"aHVudGV"),
            "{prefix}"
        );
        // Whoever has the keys reads it, from the bytes alone.
        let other = Cluster::new(Some(encryption)).await;
        other.put("a", stored).await;
        for cluster in [&cluster, &other] {
            let (code, secret) = get(&cluster.server, &format!("{SECRETS}/a")).await;
            assert_eq!((code, &secret["data"]["password"]), (200, &json!("aHVudGVyMg==")), "{prefix}");
            let (_, list) = get(&cluster.server, &format!("{SECRETS}?fieldSelector=type%3DOpaque")).await;
            assert_eq!(list["items"].as_array().unwrap().len(), 1, "{prefix}");
        }
        let map = json!({"metadata": {"name": "m"}, "data": {"a": "b"}});
        assert_eq!(send(&cluster.server, "POST", "/api/v1/namespaces/default/configmaps", &map).await.0, 201);
    }
}

#[tokio::test]
async fn a_key_that_is_missing_is_told_with_the_name_of_the_object() {
    let old = format!("{{aesgcm: {{keys: [{}]}}}}", key("old", 'a'));
    let new = format!("{{aesgcm: {{keys: [{}]}}}}, {{identity: {{}}}}", key("new", 'b'));
    let writer = Cluster::new(Some(Encryption::parse(&config(&old)).unwrap())).await;
    writer.create("a").await;
    let stored = writer.bytes("a");
    let encryption = Encryption::parse(&config(&new)).unwrap();
    for (encryption, path) in [(Some(encryption.clone()), "/registry/secrets/default/a"), (None, "default/a")]
    {
        let why = |answer: &Value| {
            answer["message"]
                .as_str()
                .unwrap_or_default()
                .contains(&format!("unable to transform key {path:?}"))
        };
        let cluster = Cluster::new(encryption).await;
        cluster.create("b").await;
        cluster.put("a", stored.clone()).await;
        let change = json!({"metadata": {"name": "a"}, "data": {}});
        for (method, path, body, code) in [
            ("GET", format!("{SECRETS}/a"), Value::Null, 500),
            ("GET", SECRETS.to_owned(), Value::Null, 500),
            ("PUT", format!("{SECRETS}/a"), change, 500),
            ("DELETE", format!("{SECRETS}/a"), Value::Null, 500),
            ("GET", format!("{SECRETS}/b"), Value::Null, 200),
            ("GET", "/api/v1/namespaces/default/serviceaccounts".to_owned(), Value::Null, 200),
        ] {
            let (found, answer) = send(&cluster.server, method, &path, &body).await;
            assert_eq!((found, why(&answer)), (code, code == 500), "{method} {path}: {answer}");
        }
        let (_, events) = get(
            &cluster.server,
            &format!(
                "{SECRETS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Da&resourceVersion=0"
            ),
        )
        .await;
        assert_eq!((&events["type"], why(&events["object"])), (&json!("ERROR"), true), "{events}");
    }
    // Once the key is there, so is the object.
    let cluster = Cluster::new(Some(encryption.clone())).await;
    cluster.put("a", stored).await;
    assert_eq!(get(&cluster.server, &format!("{SECRETS}/a")).await.0, 500);
    let both = format!("{{aesgcm: {{keys: [{}, {}]}}}}", key("new", 'b'), key("old", 'a'));
    encryption.reload(&config(&both)).unwrap();
    assert_eq!(get(&cluster.server, &format!("{SECRETS}/a")).await.0, 200);
}

#[tokio::test]
async fn an_update_that_changes_nothing_is_written_with_the_new_key() {
    let one = format!("{{aescbc: {{keys: [{}]}}}}", key("one", 'a'));
    let encryption = Encryption::parse(&config(&one)).unwrap();
    let cluster = Cluster::new(Some(encryption.clone())).await;
    cluster.create("a").await;
    let path = format!("{SECRETS}/a");
    for (providers, prefix, rewritten) in [
        (one.clone(), "k8s:enc:aescbc:v1:one:", false),
        (
            format!("{{aescbc: {{keys: [{}, {}]}}}}", key("two", 'b'), key("one", 'a')),
            "k8s:enc:aescbc:v1:two:",
            true,
        ),
        (
            format!(
                "{{secretbox: {{keys: [{}]}}}}, {{aescbc: {{keys: [{}]}}}}",
                key("box", 'c'),
                key("two", 'b')
            ),
            "k8s:enc:secretbox:v1:box:",
            true,
        ),
        (format!("{{identity: {{}}}}, {{secretbox: {{keys: [{}]}}}}", key("box", 'c')), "{", true),
        (format!("{{identity: {{}}}}, {{secretbox: {{keys: [{}]}}}}", key("box", 'c')), "{", false),
    ] {
        encryption.reload(&config(&providers)).unwrap();
        let (_, before) = get(&cluster.server, &path).await;
        let (code, after) = send(&cluster.server, "PUT", &path, &before).await;
        assert_eq!(code, 200, "{after}");
        assert!(cluster.bytes("a").starts_with(prefix.as_bytes()), "{prefix}");
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        assert_eq!(version(&before) != version(&after), rewritten, "{prefix}");
        assert_eq!(before["data"], after["data"]);
    }
    // A configuration that is wrong changes nothing.
    assert!(encryption.reload(&config("{aescbc: {keys: []}}")).is_err());
    assert_eq!(get(&cluster.server, &path).await.0, 200);
}

/// Bytes, as `xxd` writes them.
pub(crate) fn hex(text: &str) -> Bytes {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Each was written by a kube-apiserver 1.36 with `--storage-media-type=application/json`: a Secret that has the provider's name.
#[tokio::test]
async fn what_a_real_server_wrote_is_read() {
    let one = |provider: &str, key: String| format!("{{{provider}: {{keys: [{key}]}}}}");
    let short = "{name: short, secret: YmJiYmJiYmJiYmJiYmJiYg==}".to_owned();
    for (name, provider, stored) in [
        ("aesgcm", one("aesgcm", key("key1", 'a')), include_str!("encryption/aesgcm.hex")),
        ("aesgcm16", one("aesgcm", short), include_str!("encryption/aesgcm16.hex")),
        ("aescbc", one("aescbc", key("key1", 'a')), include_str!("encryption/aescbc.hex")),
        ("secretbox", one("secretbox", key("key1", 'a')), include_str!("encryption/secretbox.hex")),
    ] {
        let cluster = Cluster::new(Some(Encryption::parse(&config(&provider)).unwrap())).await;
        cluster.put(name, hex(stored)).await;
        let (code, secret) = get(&cluster.server, &format!("{SECRETS}/{name}")).await;
        assert_eq!((code, &secret["data"]["password"]), (200, &json!("aHVudGVyMg==")), "{name}: {secret}");
        // With its key's path as what is authenticated, where the provider does that.
        cluster.put("other", hex(stored)).await;
        let moved = get(&cluster.server, &format!("{SECRETS}/other")).await.0;
        assert_eq!(moved, if name.starts_with("aesgcm") { 500 } else { 200 }, "{name}");
    }
}

#[tokio::test]
async fn a_watch_ends_with_what_it_can_not_read() {
    let one = format!("{{aesgcm: {{keys: [{}]}}}}", key("one", 'a'));
    let other = format!("{{aesgcm: {{keys: [{}]}}}}", key("other", 'b'));
    let writer = Cluster::new(Some(Encryption::parse(&config(&other)).unwrap())).await;
    writer.create("a").await;
    let cluster = Cluster::new(Some(Encryption::parse(&config(&one)).unwrap())).await;
    let revision = cluster.server.objects().snapshot().revision();
    cluster.put("a", writer.bytes("a")).await;
    cluster.create("b").await;
    let path = format!("{SECRETS}?watch=true&timeoutSeconds=3600&resourceVersion={revision}");
    // One event, which is parsed as the only document of the answer, and then the end.
    let (code, event) = get(&cluster.server, &path).await;
    assert_eq!(
        (code, &event["type"], &event["object"]["code"]),
        (200, &json!("ERROR"), &json!(500)),
        "{event}"
    );
}

#[tokio::test]
async fn kinds_of_definitions_are_covered_by_wildcards() {
    let text = format!(
        "{{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration,
        resources: [{{resources: ['*.example.com'], providers: [{{secretbox: {{keys: [{}]}}}}]}}]}}",
        key("k", 'k')
    );
    let cluster = Cluster::new(Some(Encryption::parse(&text).unwrap())).await;
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({"metadata": {"name": "vaults.example.com"}, "spec": {"group": "example.com", "scope": "Cluster",
        "names": {"plural": "vaults", "kind": "Vault"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    assert_eq!(send(&cluster.server, "POST", definitions, &definition).await.0, 201);
    let vault = json!({"apiVersion": "example.com/v1", "kind": "Vault", "metadata": {"name": "a"}, "spec": {"gold": "bars"}});
    assert_eq!(send(&cluster.server, "POST", "/apis/example.com/v1/vaults", &vault).await.0, 201);
    let resource = cluster.server.objects().registry().find("example.com", "v1", "vaults").unwrap();
    let entry = cluster.store.snapshot().get(resource.table, b"a").unwrap();
    assert!(entry.value().starts_with(b"k8s:enc:secretbox:v1:k:"));
    assert_eq!(get(&cluster.server, "/apis/example.com/v1/vaults/a").await.1["spec"]["gold"], "bars");
}
