//! Reviews: who am I, may I, is this token good.

mod access;

use std::sync::Arc;

use http::{Request, StatusCode, header::AUTHORIZATION};
use kcore::Status;
use serde_json::{Value, json};

use crate::{
    authn::{self, Authenticated, RequestedAudiences, UserInfo},
    error::ApiResult,
    server::Inner,
};

/// Answers a review.
pub(super) async fn answer(
    server: &Arc<Inner>,
    user: &UserInfo,
    plural: &str,
    mut review: Value,
) -> ApiResult<(StatusCode, Value)> {
    let status = match plural {
        "selfsubjectreviews" => json!({"userInfo": user_info(user)}),
        "selfsubjectaccessreviews" => access::decide(&server.authorizers, user, &review["spec"]).await,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            access::decide(&server.authorizers, &access::subject(&review["spec"]), &review["spec"]).await
        }
        "tokenreviews" => token(server, &review["spec"]).await?,
        "selfsubjectrulesreviews" => access::rules(&server.authorizers, user, &review["spec"]).await?,
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
            Ok(Some(Authenticated { user, audiences })) => {
                // Credentials that say nothing of audiences are for the API server.
                let shared = || own.iter().filter(|one| wanted.contains(one)).cloned().collect();
                let audiences: Arc<[String]> = audiences.unwrap_or_else(shared);
                if audiences.is_empty() {
                    continue;
                }
                let user = user_info(&authn::in_their_group(user));
                return Ok(json!({"authenticated": true, "user": user, "audiences": &*audiences}));
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
