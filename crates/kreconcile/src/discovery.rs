//! Which kinds a server has.

use http::{Method, Request, header};
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

const AGGREGATED: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;q=0.9";

/// Asks the server what it has: in two requests where it knows aggregated discovery (KEP-3352), else in one per group.
pub(crate) async fn discover(requests: &Requests) -> Result<Discovery, kube::Error> {
    let mut discovery = Discovery::default();
    for root in ["/api", "/apis"] {
        let answer = ask(requests, root).await?;
        if answer["kind"] == "APIGroupDiscoveryList" {
            read_aggregated(&answer, &mut discovery);
        } else {
            ask_each(requests, root, &answer, &mut discovery).await;
        }
    }
    Ok(discovery)
}

async fn ask(requests: &Requests, path: &str) -> Result<Value, kube::Error> {
    let request = Request::builder().method(Method::GET).uri(path).header(header::ACCEPT, AGGREGATED);
    let request = request.body(Body::empty()).map_err(kube::Error::HttpError)?;
    let bytes = request::body_of(requests.client().send(request).await?).await?;
    serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)
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
