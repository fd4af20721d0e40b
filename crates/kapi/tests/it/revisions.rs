//! What options about revisions do to get, list and watch: what a kube-apiserver answered to the same is in `revisions/answers.txt`.

use std::collections::BTreeMap;

use futures::future::join_all;
use http_body_util::BodyExt as _;
use kapi::{
    ApiServer,
    authn::{MASTERS, UserInfo},
};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::harness::{get, json as send, server};

const ANSWERS: &str = include_str!("revisions/answers.txt");
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// How much later than everything `{future}` is.
const AHEAD: u64 = 1_000_000;

/// What stands for what in the answers.
struct Names {
    revisions: BTreeMap<&'static str, u64>,
    token: String,
}

impl Names {
    fn revision(&self, found: &Value) -> String {
        let number: u64 = found.as_str().unwrap_or_default().parse().unwrap();
        let name = self.revisions.iter().find(|(_, known)| **known == number);
        name.map_or_else(|| format!("?{number}"), |(name, _)| (*name).to_owned())
    }

    /// A query with the names' values, and without what begins with them.
    fn query(&self, text: &str) -> String {
        let text = if text == "-" { "" } else { text };
        let text = text.replace("{token}", &self.token).replace("!x", "%21x").replace("x=y", "x%3Dy");
        let text = text.replace("name=b", "name%3Db");
        self.revisions
            .iter()
            .fold(text, |text, (name, number)| text.replace(&format!("{{{name}}}"), &number.to_string()))
    }

    fn item(&self, object: &Value) -> String {
        let meta = &object["metadata"];
        format!("{}@{}", meta["name"].as_str().unwrap(), self.revision(&meta["resourceVersion"]))
    }

    fn refusal(&self, status: &Value) -> String {
        let reason = status["reason"].as_str().unwrap_or("-");
        let message = status["message"].as_str().unwrap().to_owned();
        let message = self.revisions.iter().fold(message, |message, (name, number)| {
            message.split(' ').map(|word| named(word, name, *number)).collect::<Vec<_>>().join(" ")
        });
        format!("{reason}: {message}")
    }

    fn list(&self, code: u16, list: &Value) -> String {
        if code != 200 {
            return format!("{code} {}", self.refusal(list));
        }
        let meta = &list["metadata"];
        let items: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| self.item(item)).collect();
        let left = if meta["continue"].as_str().is_some_and(|token| !token.is_empty()) {
            format!(
                " +{}",
                meta["remainingItemCount"].as_u64().map_or_else(|| "?".to_owned(), |left| left.to_string())
            )
        } else {
            String::new()
        };
        format!("200 {}: {}{left}", self.revision(&meta["resourceVersion"]), items.join(" "))
    }

    fn event(&self, event: &Value) -> String {
        let (kind, object) = (event["type"].as_str().unwrap(), &event["object"]);
        match kind {
            "ERROR" => format!("ERROR {} {}", object["code"], self.refusal(object)),
            "BOOKMARK" => {
                let meta = &object["metadata"];
                let end = if meta["annotations"]["k8s.io/initial-events-end"] == "true" { "!" } else { "" };
                format!("BOOKMARK@{}{end}", self.revision(&meta["resourceVersion"]))
            }
            _ => format!("{kind} {}", self.item(object)),
        }
    }

    fn watch(&self, code: u16, body: &[u8]) -> String {
        if code != 200 {
            return format!("{code} {}", self.refusal(&serde_json::from_slice(body).unwrap()));
        }
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let events: Vec<_> = lines.map(|line| self.event(&serde_json::from_slice(line).unwrap())).collect();
        format!("200 {}", events.join(", "))
    }
}

/// A word of a message that is a revision, by its name.
fn named(word: &str, name: &str, number: u64) -> String {
    let bare = word.trim_end_matches(',');
    if bare == number.to_string() { word.replace(bare, &format!("{{{name}}}")) } else { word.to_owned() }
}

async fn prepare(server: &ApiServer) -> Names {
    let mut revisions = BTreeMap::new();
    let revision =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    let map = |name: &str, v: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"v": v}});
    for name in ["a", "b", "c", "d"] {
        let (code, made) = send(server, "POST", MAPS, &map(name, "1")).await;
        assert_eq!(code, 201, "{made}");
        revisions.insert(name, revision(&made));
    }
    let (_, updated) = send(server, "PUT", &format!("{MAPS}/a"), &map("a", "2")).await;
    revisions.insert("ua", revision(&updated));
    send(server, "DELETE", &format!("{MAPS}/d"), &Value::Null).await;
    let (_, list) = get(server, &format!("{MAPS}?limit=1")).await;
    revisions.insert("now", revision(&list));
    revisions.insert("future", revision(&list) + AHEAD);
    Names { revisions, token: list["metadata"]["continue"].as_str().unwrap().to_owned() }
}

async fn answer(server: &ApiServer, names: &Names, asked: &str) -> String {
    let (verb, query) = asked.split_once(' ').unwrap();
    let query = names.query(query);
    let path = match verb {
        "get" => format!("{MAPS}/a?{query}"),
        "watch" => format!("{MAPS}?watch=true&timeoutSeconds=2&{query}"),
        _ => format!("{MAPS}?{query}"),
    };
    let request = http::Request::get(path).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let response = server.as_user(UserInfo::new("admin", [MASTERS])).oneshot(request).await.unwrap();
    let code = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let object = || serde_json::from_slice::<Value>(&body).unwrap();
    match verb {
        "watch" => names.watch(code, &body),
        "get" if code == 200 => format!("200 {}", names.item(&object())),
        "get" => format!("{code} {}", names.refusal(&object())),
        _ => names.list(code, &object()),
    }
}

#[tokio::test(start_paused = true)]
async fn revisions_are_understood_as_upstream() {
    let server = server().await;
    let names = prepare(&server).await;
    let lines: Vec<_> = ANSWERS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let cases = lines.chunks_exact(2).map(|pair| (pair[0], pair[1].trim()));
    let found = join_all(cases.map(async |(asked, expected)| {
        let found = answer(&server, &names, asked).await;
        (found.trim() != expected).then(|| format!("{asked}\n  expected {expected}\n  found    {found}"))
    }));
    let wrong: Vec<_> = found.await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{} of {} differ:\n{}", wrong.len(), lines.len() / 2, wrong.join("\n"));
}
