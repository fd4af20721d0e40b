//! `serviceaccounts/token`: a token for a service account (KEP-1205, upstream's `TokenREST`).

use std::sync::Arc;

use http::StatusCode;
use jiff::SignedDuration;
use kcore::{Status, Stored, kind::split_api_version};
use serde_json::{Value, json};

use crate::{
    admission::Operation,
    authn::{Claims, EXPIRATION_DEFAULT_SECONDS, EXPIRATION_MAX_SECONDS, EXPIRATION_MIN_SECONDS, Reference},
    error::{ApiResult, FieldError, invalid},
    objects::Objects,
    server::Inner,
    write::{Call, timestamp},
};

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";

/// Answers a request for a token.
pub(super) async fn request(
    server: &Arc<Inner>,
    call: &Call<'_>,
    mut request: Value,
) -> ApiResult<(StatusCode, Value)> {
    let objects = call.objects;
    // Before anything is filled in: whose audience is not said is the server's, which a node's pods need not speak of.
    call.admit(Operation::Create, call.name, &mut request, None).await?;
    check_names(call, &request)?;
    let account = objects.get(call.resource, call.namespace, call.name).ok_or_else(|| call.not_found())?;
    complete(server, call, &mut request, &account)?;
    let errors = check_expiration(&request);
    if !errors.is_empty() {
        return Err(invalid(GROUP, KIND, "", &errors));
    }
    call.validate(Operation::Create, call.name, &request, None, None).await?;

    let bound = bound(objects, call, &request["spec"]["boundObjectRef"])?;
    let mut seconds = expiration(&request);
    if let (Some(warnings), Some(shorter)) = (call.warnings, server.issuer.shortened(seconds)) {
        warnings
            .set(vec![format!("requested expiration of {seconds} seconds shortened to {shorter} seconds")]);
    }
    if let Some(shorter) = server.issuer.shortened(seconds) {
        seconds = shorter;
        request["spec"]["expirationSeconds"] = json!(seconds);
    }
    let audiences: Vec<String> = request["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let now = objects.clock().now();
    let (lives, warns) = server.issuer.times(seconds, bound.pod.is_some(), &audiences);
    let later = |seconds: i64| -> ApiResult<jiff::Timestamp> {
        Ok(now.checked_add(SignedDuration::from_secs(seconds)).map_err(Status::internal)?)
    };
    let claims = Claims {
        namespace: call.namespace.to_owned(),
        account: reference(&account),
        pod: bound.pod,
        secret: bound.secret,
        node: bound.node,
        audiences,
        issued: now,
        not_before: Some(now),
        expires: Some(later(lives)?),
        warn_after: warns.map(later).transpose()?,
        id: uuid::Uuid::new_v4().to_string(),
    };
    let token = server.issuer.sign(&claims);
    let token = token.map_err(|error| Status::internal(format!("failed to generate token: {error}")))?;
    let expires = kcore::clock::format_time(later(seconds)?);
    request["status"] = json!({"expirationTimestamp": expires, "token": token});
    Ok((StatusCode::CREATED, request))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn reference(object: &Stored) -> Reference {
    let header = object.header();
    Reference { name: header.name.to_string(), uid: header.uid.to_string() }
}

/// What the body says of the account must be what the path says.
fn check_names(call: &Call<'_>, request: &Value) -> ApiResult<()> {
    let meta = &request["metadata"];
    for (key, wanted) in [("name", call.name), ("namespace", call.namespace)] {
        let given = text(meta, key);
        if !given.is_empty() && given != wanted {
            let why = format!("must match the service account {key} if specified");
            let error = FieldError::invalid_text(format!("metadata.{key}"), given, why);
            return Err(invalid(GROUP, KIND, call.name, &[error]));
        }
    }
    Ok(())
}

/// Fills in what the request leaves to the server.
fn complete(server: &Inner, call: &Call<'_>, request: &mut Value, account: &Stored) -> ApiResult<()> {
    let uid = &account.header().uid;
    let given = text(&request["metadata"], "uid");
    if !given.is_empty() && *given != **uid {
        let why = format!(
            "the UID in the token request ({given}) does not match the UID of the service account ({uid})"
        );
        return Err(Status::conflict(GROUP, KIND, call.name, &why).into());
    }
    if !request["metadata"].is_object() {
        request["metadata"] = json!({});
    }
    let meta = &mut request["metadata"];
    meta["name"] = json!(call.name);
    meta["namespace"] = json!(call.namespace);
    meta["uid"] = json!(uid);
    meta["creationTimestamp"] = json!(timestamp(call.objects));
    if !request["spec"].is_object() {
        request["spec"] = json!({});
    }
    let spec = &mut request["spec"];
    if spec["audiences"].as_array().is_none_or(Vec::is_empty) {
        spec["audiences"] = json!(server.issuer.audiences());
    }
    if !spec["expirationSeconds"].is_i64() {
        spec["expirationSeconds"] = json!(EXPIRATION_DEFAULT_SECONDS);
    }
    if spec.get("boundObjectRef").is_none() {
        // Shown even when there is none, as upstream does.
        spec["boundObjectRef"] = Value::Null;
    }
    Ok(())
}

fn expiration(request: &Value) -> i64 {
    request["spec"]["expirationSeconds"].as_i64().unwrap_or(EXPIRATION_DEFAULT_SECONDS)
}

fn check_expiration(request: &Value) -> Vec<FieldError> {
    let seconds = expiration(request);
    let why = if seconds < EXPIRATION_MIN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > EXPIRATION_MAX_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Vec::new();
    };
    vec![FieldError::invalid("spec.expirationSeconds", seconds, why)]
}

/// The objects that the token ends with.
#[derive(Debug, Default)]
struct Bound {
    pod: Option<Reference>,
    secret: Option<Reference>,
    node: Option<Reference>,
}

fn bound(objects: &Objects, call: &Call<'_>, asked: &Value) -> ApiResult<Bound> {
    if !asked.is_object() {
        return Ok(Bound::default());
    }
    let (kind, name) = (text(asked, "kind"), text(asked, "name"));
    let (group, version) = split_api_version(text(asked, "apiVersion"));
    let (plural, namespace) = match (group, kind) {
        ("", "Pod") => ("pods", call.namespace),
        ("", "Node") => ("nodes", ""),
        ("", "Secret") => ("secrets", call.namespace),
        _ => {
            let why = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
            return Err(Status::bad_request(why).into());
        }
    };
    let object =
        objects.find("", "v1", plural, namespace, name).ok_or_else(|| Status::not_found("", plural, name))?;
    let mut bound = Bound::default();
    let found = reference(&object);
    let uid = found.uid.clone();
    match plural {
        "secrets" => bound.secret = Some(found),
        "nodes" => bound.node = Some(found),
        _ => {
            let pod = object.value().map_err(Status::internal)?;
            if text(&pod["spec"], "serviceAccountName") != call.name {
                let why = format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    call.name
                );
                return Err(Status::bad_request(why).into());
            }
            bound.pod = Some(found);
            bound.node = Some(text(&pod["spec"], "nodeName")).filter(|name| !name.is_empty()).map(|name| {
                let node = objects.find("", "v1", "nodes", "", name);
                // A node that is not there is still named.
                node.map_or_else(
                    || Reference { name: name.to_owned(), uid: String::new() },
                    |node| reference(&node),
                )
            });
        }
    }
    let asked = text(asked, "uid");
    if !asked.is_empty() && asked != uid {
        let why = format!(
            "the UID in the bound object reference ({asked}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict("", kind, name, &why).into());
    }
    Ok(bound)
}
