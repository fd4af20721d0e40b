//! What is told of a request at one of its stages: `audit.k8s.io/v1` `Event`.

use std::{collections::BTreeMap, net::IpAddr};

use http::{HeaderMap, header, request::Parts};
use jiff::Timestamp;
use kcore::clock::format_micro_time;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Level, Stage};
use crate::{authn::UserInfo, request::RequestInfo};

/// The longest user agent that is kept, in bytes; what is longer is cut (upstream's `maxUserAgentLength`).
pub const USER_AGENT_BYTES_MAX: usize = 1024;

/// What a request is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    /// The resource's plural name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    /// The namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The uid, where the caller said it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// The API group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    /// The version.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// The resource version, where the caller said it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// The subresource.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

/// A stage of a request. [`to_json`](Self::to_json) gives the line of upstream's log.
#[derive(Clone, Copy, Debug)]
pub struct AuditEvent<'a> {
    /// How much is told.
    pub level: Level,
    /// When.
    pub stage: Stage,
    /// The same for all stages of a request; it is in the header `Audit-ID` of the answer.
    pub id: &'a str,
    /// The path and query.
    pub uri: &'a str,
    /// Who asked; `None` if that could not be found out.
    pub user: Option<&'a UserInfo>,
    /// Whom they acted as.
    pub impersonated: Option<&'a UserInfo>,
    /// Where the request came from: proxies that said so, then the connection's other end.
    pub source_ips: &'a [IpAddr],
    /// The client's word for itself.
    pub user_agent: &'a str,
    /// What was asked for.
    pub request: &'a RequestInfo,
    /// The object, if it is a request for one.
    pub object: Option<&'a ObjectReference>,
    /// The HTTP status of the answer; 0 as long as there is none.
    pub code: u16,
    /// The `Status` of the answer, if that is what was answered.
    pub status: Option<&'a Value>,
    /// The body of the request, from [`Level::Request`].
    pub request_object: Option<&'a Value>,
    /// The body of the answer, at [`Level::RequestResponse`].
    pub response_object: Option<&'a Value>,
    /// When the request came.
    pub received: Timestamp,
    /// When this stage was reached.
    pub at: Timestamp,
    /// What authorization and admission said.
    pub annotations: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: &'a str,
    stage: &'static str,
    #[serde(rename = "requestURI")]
    request_uri: &'a str,
    verb: &'a str,
    user: Person<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<Person<'a>>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "<[IpAddr]>::is_empty")]
    source_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "str::is_empty")]
    user_agent: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<&'a ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<&'a Value>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'a str, &'a str>,
}

#[derive(Default, Serialize)]
struct Person<'a> {
    #[serde(skip_serializing_if = "str::is_empty")]
    username: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    groups: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    extra: Option<&'a BTreeMap<String, Vec<String>>>,
}

impl<'a> From<&'a UserInfo> for Person<'a> {
    fn from(user: &'a UserInfo) -> Self {
        let extra = Some(&user.extra).filter(|extra| !extra.is_empty());
        Self { username: &user.name, uid: &user.uid, groups: &user.groups, extra }
    }
}

impl AuditEvent<'_> {
    /// The event as JSON, without a line break.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        self.encode(true)
    }

    /// The same; if that takes more bytes than `bytes_max`, without the bodies, which an annotation tells
    /// (upstream's `audit/truncate`).
    #[must_use]
    pub fn to_json_within(&self, bytes_max: usize) -> Vec<u8> {
        let whole = self.encode(true);
        if whole.len() <= bytes_max { whole } else { self.encode(false) }
    }

    fn encode(&self, whole: bool) -> Vec<u8> {
        let mut annotations: BTreeMap<&str, &str> =
            self.annotations.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        if !whole {
            annotations.insert("audit.k8s.io/truncated", "true");
        }
        let wire = Wire {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: self.level.name(),
            audit_id: self.id,
            stage: self.stage.name(),
            request_uri: self.uri,
            verb: &self.request.verb,
            user: self.user.map(Person::from).unwrap_or_default(),
            impersonated_user: self.impersonated.map(Person::from),
            source_ips: self.source_ips,
            user_agent: self.user_agent,
            object_ref: self.object,
            response_status: (self.code != 0).then(|| self.response_status()),
            request_object: self.request_object.filter(|_| whole),
            response_object: self.response_object.filter(|_| whole),
            request_received_timestamp: format_micro_time(self.received),
            stage_timestamp: format_micro_time(self.at),
            annotations,
        };
        serde_json::to_vec(&wire).unwrap_or_default()
    }

    fn response_status(&self) -> Value {
        let mut status = json!({"metadata": {}});
        for key in ["status", "message", "reason", "details"] {
            if let Some(value) = self.status.and_then(|status| status.get(key)) {
                status[key] = value.clone();
            }
        }
        status["code"] = self.code.into();
        status
    }
}

/// Request extension: the other end of the connection, as who serves the API knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress(pub IpAddr);

/// Where a request came from (`apimachinery/pkg/util/net.SourceIPs`).
pub(super) fn source_ips(parts: &Parts) -> Vec<IpAddr> {
    let text = |name: &str| header_text(&parts.headers, name);
    let mut addresses: Vec<IpAddr> =
        text("x-forwarded-for").split(',').filter_map(|part| part.trim().parse().ok()).collect();
    let real = text("x-real-ip").parse().ok();
    addresses.extend(real.filter(|real| !addresses.contains(real)));
    let peer = parts.extensions.get::<PeerAddress>().map(|peer| peer.0);
    addresses.extend(peer.filter(|peer| addresses.last() != Some(peer)));
    addresses
}

pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

pub(super) fn user_agent(headers: &HeaderMap) -> String {
    let agent = header_text(headers, header::USER_AGENT.as_str());
    // Header values that are text are ASCII.
    match agent.get(..USER_AGENT_BYTES_MAX) {
        Some(start) if agent.len() > USER_AGENT_BYTES_MAX => format!("{start}...TRUNCATED"),
        _ => agent.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: `apimachinery/pkg/util/net` `TestGetClientIP`, `audit/request_test.go`.
    #[test]
    fn where_it_came_from() {
        let peer = "1.2.3.4";
        for (forwarded, real, expected) in [
            ("", "", vec![peer]),
            ("10.0.0.1", "", vec!["10.0.0.1", peer]),
            ("10.0.0.1, x, 10.0.0.2", "10.0.0.1", vec!["10.0.0.1", "10.0.0.2", peer]),
            ("", "10.0.0.9", vec!["10.0.0.9", peer]),
            ("10.0.0.1,1.2.3.4", "", vec!["10.0.0.1", peer]),
            ("nonsense", "more", vec![peer]),
        ] {
            let request = http::Request::builder()
                .header("x-forwarded-for", forwarded)
                .header("x-real-ip", real)
                .extension(PeerAddress(peer.parse().unwrap()));
            let (parts, ()) = request.body(()).unwrap().into_parts();
            let found: Vec<String> = source_ips(&parts).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{forwarded} {real}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::USER_AGENT, "a".repeat(1025).parse().unwrap());
        assert_eq!(user_agent(&headers), format!("{}...TRUNCATED", "a".repeat(1024)));
    }
}
