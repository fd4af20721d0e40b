//! Reviews: who am I, may I, is this token good.

use std::sync::Arc;

use http::{Request, StatusCode, header::AUTHORIZATION};
use kcore::Status;
use serde_json::{Value, json};

use crate::{
    authn::{AUTHENTICATED, Authenticated, RequestedAudiences, UserInfo},
    authz::Verdict,
    error::{ApiResult, FieldError, invalid},
    request::RequestInfo,
    server::Inner,
};

/// Answers a review.
pub(super) async fn answer(
    server: &Arc<Inner>,
    user: &UserInfo,
    plural: &str,
    namespace: &str,
    mut review: Value,
) -> ApiResult<(StatusCode, Value)> {
    let status = match plural {
        "selfsubjectreviews" => json!({"userInfo": user_info(user)}),
        "selfsubjectaccessreviews" => access(server, user, &review["spec"]).await?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let subject = subject(&review["spec"])?;
            let mut spec = review["spec"].clone();
            if plural == "localsubjectaccessreviews" && spec["resourceAttributes"].is_object() {
                spec["resourceAttributes"]["namespace"] = json!(namespace);
            }
            access(server, &subject, &spec).await?
        }
        "tokenreviews" => token(server, &review["spec"]).await?,
        "selfsubjectrulesreviews" => rules(server, user).await,
        other => {
            return Err(Status::failure(
                501,
                "NotImplemented",
                format!("{other} are not served by kplane yet"),
            )
            .into());
        }
    };
    review["status"] = status;
    Ok((StatusCode::CREATED, review))
}

fn user_info(user: &UserInfo) -> Value {
    let mut info = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

fn subject(spec: &Value) -> ApiResult<UserInfo> {
    let name = spec["user"].as_str().unwrap_or_default();
    let groups: Vec<&str> =
        spec["groups"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if name.is_empty() && groups.is_empty() {
        let error =
            FieldError::invalid("spec.user", "\"\"", "at least one of user or group must be specified");
        return Err(invalid("authorization.k8s.io", "SubjectAccessReview", "", &[error]));
    }
    Ok(UserInfo::new(name, groups))
}

async fn access(server: &Inner, user: &UserInfo, spec: &Value) -> ApiResult<Value> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        let error = FieldError::invalid(
            "spec.resourceAttributes",
            resource,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
        return Err(invalid("authorization.k8s.io", "SubjectAccessReview", "", &[error]));
    }
    let info = if resource.is_object() {
        RequestInfo {
            is_resource: true,
            verb: text(&resource["verb"]),
            group: text(&resource["group"]),
            version: text(&resource["version"]),
            namespace: text(&resource["namespace"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            name: text(&resource["name"]),
            ..RequestInfo::default()
        }
    } else {
        RequestInfo { verb: text(&path["verb"]), path: text(&path["path"]), ..RequestInfo::default() }
    };
    for authorizer in &server.authorizers {
        match authorizer.authorize(user, &info).await {
            Verdict::Allow => return Ok(json!({"allowed": true})),
            Verdict::Deny(reason) => return Ok(json!({"allowed": false, "denied": true, "reason": reason})),
            Verdict::NoOpinion => {}
        }
    }
    Ok(json!({"allowed": false}))
}

/// Runs a token through the authenticators as if it had come with a request.
async fn token(server: &Inner, spec: &Value) -> ApiResult<Value> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(Status::bad_request("token is required for TokenReview in authentication").into());
    }
    let own = server.issuer.audiences();
    let asked: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let wanted: Arc<[String]> = if asked.is_empty() { own.into() } else { asked.into() };
    let request = Request::builder()
        .header(AUTHORIZATION, format!("Bearer {token}"))
        .extension(RequestedAudiences(Arc::clone(&wanted)))
        .body(());
    let (parts, ()) = request
        .map_err(|_| Status::bad_request("the token has characters that no header can carry"))?
        .into_parts();
    let mut refusals = Vec::new();
    for authenticator in &server.authenticators {
        match authenticator.authenticate(&parts).await {
            Ok(Some(Authenticated { mut user, audiences })) => {
                // Credentials that say nothing of audiences are for the API server.
                let shared = || own.iter().filter(|one| wanted.contains(one)).cloned().collect();
                let audiences: Vec<String> = audiences.unwrap_or_else(shared);
                if audiences.is_empty() {
                    continue;
                }
                if !user.is_in(AUTHENTICATED) {
                    user.groups.push(AUTHENTICATED.to_owned());
                }
                return Ok(json!({"authenticated": true, "user": user_info(&user), "audiences": audiences}));
            }
            Ok(None) => {}
            Err(error) => refusals.push(error.0.message),
        }
    }
    let why = match refusals.as_slice() {
        [] => "invalid bearer token".to_owned(),
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    };
    Ok(json!({"user": {}, "error": why}))
}

/// What the caller may do, as far as it can be found by asking: an authorizer can't list its rules, so all that is told is
/// whether everything is allowed, and `incomplete` says that there may be more.
async fn rules(server: &Inner, user: &UserInfo) -> Value {
    let all = || "*".to_owned();
    let resource = RequestInfo {
        is_resource: true,
        verb: all(),
        group: all(),
        resource: all(),
        ..RequestInfo::default()
    };
    let path = RequestInfo { verb: all(), path: all(), ..RequestInfo::default() };
    let mut resources = json!([]);
    let mut paths = json!([]);
    let everything = allowed(server, user, &resource).await && allowed(server, user, &path).await;
    if allowed(server, user, &resource).await {
        resources = json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]);
    }
    if allowed(server, user, &path).await {
        paths = json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
    }
    let mut rules = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": !everything});
    if !everything {
        rules["evaluationError"] = json!("the authorizers of this server can't list their rules");
    }
    rules
}

async fn allowed(server: &Inner, user: &UserInfo, info: &RequestInfo) -> bool {
    for authorizer in &server.authorizers {
        match authorizer.authorize(user, info).await {
            Verdict::Allow => return true,
            Verdict::Deny(_) => return false,
            Verdict::NoOpinion => {}
        }
    }
    false
}
