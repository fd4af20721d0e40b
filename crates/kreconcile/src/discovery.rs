//! Which kinds a server has.

use http::{HeaderValue, Method, Request, StatusCode, header};
use kube::client::Body;
use serde_json::Value;

use crate::{
    request::{self, Requests},
    resource::ResourceType,
};

/// A kind, and what can be done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Discovered {
    pub(crate) resource: ResourceType,
    pub(crate) verbs: Vec<String>,
}

impl Discovered {
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|known| known == verb)
    }
}

/// What a server has, each kind in its preferred version only.
#[derive(Clone, Debug, Default)]
pub(crate) struct Discovery {
    pub(crate) resources: Vec<Discovered>,
    /// Groups and versions that could not be asked, and why: behind an aggregated server that does not answer.
    pub(crate) failures: Vec<(String, String)>,
}

/// Asks again and again: an answer that has not changed is neither sent nor read again where the server has tags for it (KEP-3352).
#[derive(Debug, Default)]
pub(crate) struct Repeated {
    known: [Option<Tagged>; 2],
}

/// An aggregated answer and its tag.
#[derive(Debug)]
struct Tagged {
    tag: HeaderValue,
    answer: Value,
}

impl Repeated {
    /// What the server has; `None` when that is what it had the last time.
    pub(crate) async fn discover(&mut self, requests: &Requests) -> Result<Option<Discovery>, kube::Error> {
        let mut new = false;
        for (root, known) in ROOTS.into_iter().zip(&mut self.known) {
            match ask(requests, root, known.as_ref().map(|known| &known.tag)).await? {
                Answer::Known => {}
                Answer::New { answer, tag } => {
                    let is_aggregated = answer["kind"] == AGGREGATED_KIND;
                    *known = tag.filter(|_| is_aggregated).map(|tag| Tagged { tag, answer });
                    new = true;
                }
            }
        }
        let [Some(core), Some(others)] = &self.known else { return Ok(Some(discover(requests).await?)) };
        if !new {
            return Ok(None);
        }
        let mut discovery = Discovery::default();
        for known in [core, others] {
            read_aggregated(&known.answer, &mut discovery);
        }
        Ok(Some(discovery))
    }
}

const ROOTS: [&str; 2] = ["/api", "/apis"];
const AGGREGATED_KIND: &str = "APIGroupDiscoveryList";
const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;q=0.9";

/// Asks the server what it has: in two requests where it knows aggregated discovery (KEP-3352), else in one per group.
pub(crate) async fn discover(requests: &Requests) -> Result<Discovery, kube::Error> {
    let mut discovery = Discovery::default();
    for root in ROOTS {
        let Answer::New { answer, .. } = ask(requests, root, None).await? else { continue };
        if answer["kind"] == AGGREGATED_KIND {
            read_aggregated(&answer, &mut discovery);
        } else {
            ask_each(requests, root, &answer, &mut discovery).await;
        }
    }
    Ok(discovery)
}

/// What a server answers to a caller who may have the answer already.
enum Answer {
    New {
        answer: Value,
        tag: Option<HeaderValue>,
    },
    /// What the caller's tag stands for.
    Known,
}

async fn ask(requests: &Requests, path: &str, known: Option<&HeaderValue>) -> Result<Answer, kube::Error> {
    let mut request = Request::builder().method(Method::GET).uri(path).header(header::ACCEPT, AGGREGATED);
    if let Some(tag) = known {
        request = request.header(header::IF_NONE_MATCH, tag);
    }
    let request = request.body(Body::empty()).map_err(kube::Error::HttpError)?;
    let response = requests.client().send(request).await?;
    if known.is_some() && response.status() == StatusCode::NOT_MODIFIED {
        return Ok(Answer::Known);
    }
    let tag = response.headers().get(header::ETAG).cloned();
    let bytes = request::body_of(response).await?;
    Ok(Answer::New { answer: serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)?, tag })
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn verbs(value: &Value) -> Vec<String> {
    items(value, "verbs").map(text).collect()
}

impl Discovery {
    /// Adds a kind unless an earlier, preferred version of its group has it.
    fn add(&mut self, resource: ResourceType, verbs: Vec<String>) {
        let same = |known: &Discovered| {
            known.resource.group == resource.group && known.resource.plural == resource.plural
        };
        if !self.resources.iter().any(same) {
            self.resources.push(Discovered { resource, verbs });
        }
    }
}

fn read_aggregated(answer: &Value, discovery: &mut Discovery) {
    for group in items(answer, "items") {
        let name = text(&group["metadata"]["name"]);
        for version in items(group, "versions") {
            if version["freshness"] == "Stale" {
                let which = format!("{name}/{}", text(&version["version"]));
                discovery.failures.push((which.clone(), format!("stale GroupVersion discovery: {which}")));
            }
            for resource in items(version, "resources") {
                let known = ResourceType {
                    group: name.clone(),
                    version: text(&version["version"]),
                    kind: text(&resource["responseKind"]["kind"]),
                    plural: text(&resource["resource"]),
                    namespaced: resource["scope"] == "Namespaced",
                };
                discovery.add(known, verbs(resource));
            }
        }
    }
}

/// The way of servers before 1.30. A group that does not answer does not hide the others.
async fn ask_each(requests: &Requests, root: &str, answer: &Value, discovery: &mut Discovery) {
    let mut versions: Vec<(String, String)> = Vec::new();
    if root == "/api" {
        versions.extend(items(answer, "versions").map(|version| (String::new(), text(version))));
    }
    for group in items(answer, "groups") {
        let name = text(&group["name"]);
        let preferred = text(&group["preferredVersion"]["version"]);
        let all = items(group, "versions").map(|version| text(&version["version"]));
        let others: Vec<String> = all.filter(|version| *version != preferred).collect();
        versions.extend([preferred].into_iter().chain(others).map(|version| (name.clone(), version)));
    }
    for (group, version) in versions {
        let path =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        match requests.get::<Value>(&path).await {
            Ok(list) => read_list(&list, &group, &version, discovery),
            Err(error) => discovery.failures.push((format!("{group}/{version}"), error.to_string())),
        }
    }
}

fn read_list(list: &Value, group: &str, version: &str, discovery: &mut Discovery) {
    for resource in items(list, "resources") {
        let plural = text(&resource["name"]);
        if plural.contains('/') {
            continue;
        }
        let known = ResourceType {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: text(&resource["kind"]),
            plural,
            namespaced: resource["namespaced"] == true,
        };
        discovery.add(known, verbs(resource));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A server with tags is read again when it has something new; one without, each time.
    #[tokio::test]
    async fn what_has_not_changed_is_not_read_again() {
        use std::sync::{Arc, Mutex};

        for tagged in [true, false] {
            let state = Arc::new(Mutex::new(("1".to_owned(), Vec::<String>::new())));
            let shared = Arc::clone(&state);
            let service = tower::service_fn(move |request: Request<Body>| {
                let mut state = shared.lock().unwrap();
                let asked = request.headers().get(header::IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
                let is_known = tagged && asked == Some(&*state.0);
                let mut response = http::Response::builder();
                if tagged {
                    response = response.header(header::ETAG, &*state.0);
                }
                let body = json!({"kind": AGGREGATED_KIND, "items": [{"metadata": {"name": "g"}, "versions": [{"version": "v1",
                    "resources": [{"resource": format!("things{}", state.0), "scope": "Cluster", "responseKind": {"kind": "Thing"}, "verbs": ["list"]}]}]}]});
                let (code, body) =
                    if is_known { (304, Vec::new()) } else { (200, body.to_string().into_bytes()) };
                state.1.push(format!("{} {code}", request.uri().path()));
                let response = response.status(code).body(Body::from(body)).unwrap();
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let requests = Requests::new(kube::Client::new(service, "default"));
            let mut repeated = Repeated::default();
            let mut kinds = async || {
                let found = repeated.discover(&requests).await.unwrap();
                found.map(|found| {
                    found.resources.iter().map(|one| one.resource.plural.clone()).collect::<Vec<_>>()
                })
            };
            assert_eq!(kinds().await.as_deref(), Some(&["things1".to_owned()][..]));
            let again = kinds().await;
            assert_eq!(again.is_none(), tagged, "{again:?}");
            state.lock().unwrap().0 = "2".to_owned();
            assert_eq!(kinds().await.as_deref(), Some(&["things2".to_owned()][..]));
            if tagged {
                let expected = ["/api 200", "/apis 200", "/api 304", "/apis 304", "/api 200", "/apis 200"];
                assert_eq!(state.lock().unwrap().1, expected);
            }
        }
    }

    #[test]
    fn the_preferred_version_of_each_kind_is_taken() {
        let resource = |name: &str, kind: &str| json!({"resource": name, "scope": "Namespaced", "responseKind": {"kind": kind}, "verbs": ["list"]});
        let answer = json!({"items": [{"metadata": {"name": "autoscaling"}, "versions": [
            {"version": "v2", "resources": [resource("horizontalpodautoscalers", "HorizontalPodAutoscaler")]},
            {"version": "v1", "freshness": "Stale", "resources": [
                resource("horizontalpodautoscalers", "HorizontalPodAutoscaler"), resource("others", "Other")]},
        ]}]});
        let mut discovery = Discovery::default();
        read_aggregated(&answer, &mut discovery);
        let seen: Vec<_> = discovery.resources.iter().map(|found| found.resource.path("n", "")).collect();
        assert_eq!(
            seen,
            [
                "/apis/autoscaling/v2/namespaces/n/horizontalpodautoscalers",
                "/apis/autoscaling/v1/namespaces/n/others"
            ]
        );
        assert_eq!(discovery.failures[0].0, "autoscaling/v1");
    }
}
