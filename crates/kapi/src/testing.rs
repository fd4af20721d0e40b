//! What every step of admission, every authenticator and every authorizer must keep, as functions that panic where one doesn't;
//! behind the feature `testing`.
//!
//! A test of one's own step is a few lines:
//!
//! ```
//! use std::sync::Arc;
//! use kapi::{ApiServer, admission::Priority, testing};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = ApiServer::builder().build()?;
//! testing::admission_conformance(&server, Arc::new(Priority)).await;
//! # Ok(()) }
//! ```

use std::sync::Arc;

use futures::FutureExt as _;
use http::{Request, header::AUTHORIZATION, request::Parts};
use serde_json::{Value, json};

use crate::{
    ApiServer,
    admission::{Admission, AdmissionRequest, Operation, Phase},
    authn::{Authenticator, MASTERS, RequestedAudiences, UserInfo},
    authz::Authorizer,
    registry::Resource,
    request::{Given, RequestInfo},
};

/// Checks the promises of [`Admission`]: a step acts on nothing but the object, does the same when it is called again or with
/// nothing to be kept, leaves alone what an object is called, has nothing to say to kinds that it says don't concern it, and takes
/// objects of any form. What `server` holds is what the step may look up.
///
/// # Panics
/// When the step breaks a promise; the message says which, and with what object.
pub async fn admission_conformance(server: &ApiServer, step: Arc<dyn Admission>) {
    assert!(!step.name().is_empty(), "the step has no name");
    assert_eq!(step.name(), step.name(), "the step's name changes");
    let user = UserInfo::new("admin", [MASTERS]);
    let before = server.objects().snapshot().revision();
    for resource in resources(server) {
        for object in objects(&resource) {
            let check = Check { server, step: &*step, resource: &resource, object: &object, user: &user };
            for operation in [Operation::Create, Operation::Update] {
                check.changes(operation).await;
            }
            // A deletion is only looked at; what is thought of it is the step's affair.
            let _ = step.validate(&check.request(Operation::Delete, false), &object).await;
            // A caller that goes away at any point leaves nothing behind.
            let mut dropped = object.clone();
            let _ = step.admit(&check.request(Operation::Create, false), &mut dropped).now_or_never();
        }
    }
    assert_eq!(
        server.objects().snapshot().revision(),
        before,
        "{}: the step writes to the store",
        step.name()
    );
}

/// Every built-in resource that objects are made of.
fn resources(server: &ApiServer) -> Vec<Arc<Resource>> {
    let registry = server.objects().registry();
    let names = [
        ("", "v1", "pods"),
        ("", "v1", "namespaces"),
        ("", "v1", "nodes"),
        ("", "v1", "services"),
        ("", "v1", "serviceaccounts"),
        ("apps", "v1", "deployments"),
        ("scheduling.k8s.io", "v1", "priorityclasses"),
        ("", "v1", "configmaps"),
        ("", "v1", "persistentvolumes"),
        ("", "v1", "persistentvolumeclaims"),
        ("batch", "v1", "cronjobs"),
        ("certificates.k8s.io", "v1", "certificatesigningrequests"),
        ("networking.k8s.io", "v1", "ingresses"),
        ("storage.k8s.io", "v1", "volumeattributesclasses"),
        ("rbac.authorization.k8s.io", "v1", "clusterroles"),
    ];
    names.iter().filter_map(|(group, version, plural)| registry.find(group, version, plural)).collect()
}

/// Objects of a kind in every form that can get to admission: usual ones, and those that are nothing but a name.
fn objects(resource: &Resource) -> Vec<Value> {
    let kind = &resource.def.kind;
    let named = |rest: Value| {
        let mut object = json!({
            "apiVersion": resource.api_version(), "kind": kind,
            "metadata": {"name": "a", "namespace": "default", "uid": "u", "labels": {"a": "b"}},
        });
        for (key, value) in rest.as_object().into_iter().flatten() {
            object[key] = value.clone();
        }
        object
    };
    vec![
        named(json!({})),
        named(json!({"spec": {}})),
        named(
            json!({"spec": {"containers": [{"name": "c", "image": "i"}], "tolerations": [], "serviceAccountName": "s"}}),
        ),
        named(json!({"spec": {"priorityClassName": "system-node-critical", "nodeName": "n", "priority": 7}})),
        named(json!({"spec": {"taints": [], "finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})),
        // What a custom kind may be, and a patch may make of it.
        named(json!({"spec": null, "status": 1})),
        named(json!({"spec": {"tolerations": "x", "containers": {"a": 1}, "taints": 2, "priority": "high"}})),
        json!({"apiVersion": resource.api_version(), "kind": kind, "metadata": {"generateName": "a-"}}),
        json!({"apiVersion": resource.api_version(), "kind": kind}),
    ]
}

/// One step before one object.
struct Check<'a> {
    server: &'a ApiServer,
    step: &'a dyn Admission,
    resource: &'a Resource,
    object: &'a Value,
    user: &'a UserInfo,
}

impl Check<'_> {
    fn request<'r>(&'r self, operation: Operation, dry_run: bool) -> AdmissionRequest<'r> {
        AdmissionRequest {
            operation,
            resource: self.resource,
            subresource: "",
            namespace: if self.resource.def.namespaced { "default" } else { "" },
            name: "a",
            user: self.user,
            old: (operation != Operation::Create).then_some(self.object),
            dry_run,
            given: Given::Nothing,
            objects: self.server.objects(),
            notes: None,
            rounds: None,
            bill: None,
        }
    }

    /// What the step makes of an object; `None` if it refuses it.
    async fn admitted(&self, operation: Operation, object: &Value, dry_run: bool) -> Option<Value> {
        let mut object = object.clone();
        let verdict = self.step.admit(&self.request(operation, dry_run), &mut object).await;
        verdict.is_ok().then_some(object)
    }

    async fn changes(&self, operation: Operation) {
        let (step, object) = (self.step.name(), self.object);
        let once = self.admitted(operation, object, false).await;
        let again = self.admitted(operation, object, false).await;
        assert_eq!(once, again, "{step}: another result for the same {operation:?} of {object}");
        let dry = self.admitted(operation, object, true).await;
        assert_eq!(once, dry, "{step}: another result when nothing is kept, for {operation:?} of {object}");
        let concerns = |phase| self.step.concerns(&self.request(operation, false), phase);
        assert!(
            concerns(Phase::Admit) || once.as_ref() == Some(object),
            "{step}: changes or refuses what it says doesn't concern it, {operation:?} of {object}"
        );
        let Some(once) = once else { return };
        let twice = self.admitted(operation, &once, false).await;
        assert_eq!(
            twice.as_ref(),
            Some(&once),
            "{step}: changes its own result of {operation:?} of {object}"
        );
        for path in [
            "/apiVersion",
            "/kind",
            "/metadata/name",
            "/metadata/generateName",
            "/metadata/namespace",
            "/metadata/uid",
        ] {
            assert_eq!(
                once.pointer(path),
                object.pointer(path),
                "{step}: changes {path} in {operation:?} of {object}"
            );
        }
        let verdicts = [
            self.step.validate(&self.request(operation, false), &once).await.is_ok(),
            self.step.validate(&self.request(operation, false), &once).await.is_ok(),
        ];
        assert_eq!(verdicts[0], verdicts[1], "{step}: another verdict on the same {operation:?} of {object}");
        assert!(
            concerns(Phase::Validate) || verdicts[0],
            "{step}: refuses what it says doesn't concern it, {operation:?} of {object}"
        );
    }
}

/// Checks the promises of [`Authenticator`]: who shows nothing is nobody, who shows nonsense is nobody either or refused, the same
/// answer is given to the same request, and credentials that know of audiences are refused for others.
///
/// # Panics
/// When the authenticator breaks a promise.
pub async fn authenticator_conformance(authenticator: Arc<dyn Authenticator>) {
    let parts = |credentials: Option<&str>, audience: Option<&str>| -> Parts {
        let mut request = Request::builder().uri("/api/v1/pods");
        if let Some(credentials) = credentials {
            request = request.header(AUTHORIZATION, credentials);
        }
        if let Some(audience) = audience {
            request = request.extension(RequestedAudiences([audience.to_owned()].into()));
        }
        // The parts above make a request.
        request.body(()).unwrap_or_default().into_parts().0
    };
    let nobody = authenticator.authenticate(&parts(None, None)).await;
    assert!(matches!(nobody, Ok(None)), "{authenticator:?}: who shows nothing is {nobody:?}");
    let long = format!("Bearer {}", "a".repeat(1 << 20));
    for credentials in [
        "",
        "Bearer",
        "Bearer ",
        "Bearer x",
        "Bearer a.b.c",
        "Bearer e30.e30.",
        "Basic eDp5",
        "Bearer \u{1}",
        long.as_str(),
    ] {
        // What no header can carry comes to nobody.
        if http::HeaderValue::from_str(credentials).is_err() {
            continue;
        }
        for audience in [None, Some("somebody-else")] {
            let parts = parts(Some(credentials), audience);
            let answers =
                [authenticator.authenticate(&parts).await, authenticator.authenticate(&parts).await];
            for answer in &answers {
                assert!(!matches!(answer, Ok(Some(_))), "{authenticator:?}: believes {credentials:.40?}");
            }
            assert_eq!(
                answers[0].is_ok(),
                answers[1].is_ok(),
                "{authenticator:?}: two answers to {credentials:.40?}"
            );
        }
    }
}

/// Checks the promises of [`Authorizer`]: the same verdict on the same request, whatever is asked and by whom.
///
/// # Panics
/// When the authorizer breaks a promise.
pub async fn authorizer_conformance(authorizer: Arc<dyn Authorizer>) {
    let users = [
        UserInfo::default(),
        UserInfo::anonymous(),
        UserInfo::new("jane", ["system:authenticated"]),
        UserInfo::new("system:node:n", ["system:nodes", "system:authenticated"]),
        UserInfo::new("admin", [MASTERS]),
    ];
    let text = |text: &str| text.to_owned();
    let mut requests = vec![
        RequestInfo::default(),
        RequestInfo { verb: text("get"), path: text("/healthz"), ..RequestInfo::default() },
        RequestInfo { verb: text("*"), path: text("*"), ..RequestInfo::default() },
    ];
    for (verb, namespace, subresource, name) in [
        ("get", "default", "", "a"),
        ("*", "", "*", ""),
        ("create", "\u{0}", "status", "../.."),
        ("", "", "", ""),
    ] {
        requests.push(RequestInfo {
            is_resource: true,
            verb: text(verb),
            version: text("v1"),
            namespace: text(namespace),
            resource: text("pods"),
            subresource: text(subresource),
            name: text(name),
            ..RequestInfo::default()
        });
    }
    for user in &users {
        for request in &requests {
            let verdicts =
                [authorizer.authorize(user, request).await, authorizer.authorize(user, request).await];
            assert_eq!(verdicts[0], verdicts[1], "{authorizer:?}: two verdicts on {request:?} of {user:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::{
        admission,
        authn::{ClientCertificates, FrontProxy, StaticTokens},
        authz::{AlwaysAllow, AuthenticatedOnly, Masters, Node, Rbac},
        error::ApiResult,
    };

    async fn server() -> ApiServer {
        let server = ApiServer::builder().build().unwrap();
        server.bootstrap().await.unwrap();
        server
    }

    #[tokio::test]
    async fn the_steps_that_are_built_in_keep_what_they_promise() {
        let server = server().await;
        for step in admission::defaults() {
            admission_conformance(&server, step).await;
        }
    }

    #[tokio::test]
    async fn the_authenticators_that_are_built_in_keep_what_they_promise() {
        let mut all: Vec<Arc<dyn Authenticator>> = server().await.0.authenticators.clone();
        all.push(Arc::new(ClientCertificates));
        all.push(Arc::new(FrontProxy::new(["proxy"])));
        all.push(Arc::new(StaticTokens::new().with("known", UserInfo::new("jane", ["dev"]))));
        for authenticator in all {
            authenticator_conformance(authenticator).await;
        }
    }

    #[tokio::test]
    async fn the_authorizers_that_are_built_in_keep_what_they_promise() {
        let objects = Arc::clone(&server().await.0.objects);
        let all: [Arc<dyn Authorizer>; 5] = [
            Arc::new(AuthenticatedOnly),
            Arc::new(AlwaysAllow),
            Arc::new(Masters),
            Arc::new(Rbac::new(Arc::clone(&objects))),
            Arc::new(Node::new(objects)),
        ];
        for authorizer in all {
            authorizer_conformance(authorizer).await;
        }
    }

    /// Does what a step must not do, in one way.
    #[derive(Debug)]
    struct Bad(&'static str);

    #[async_trait]
    impl Admission for Bad {
        fn name(&self) -> &str {
            "Bad"
        }

        async fn admit(&self, request: &AdmissionRequest<'_>, object: &mut Value) -> ApiResult<()> {
            if !object["metadata"].is_object() {
                return Ok(());
            }
            let meta = &mut object["metadata"];
            match self.0 {
                "counts" => meta["count"] = json!(meta["count"].as_i64().unwrap_or(0) + 1),
                "renames" => meta["name"] = json!("other"),
                "tells dry runs apart" => meta["dry"] = json!(request.dry_run),
                _ => meta["random"] = json!(uuid::Uuid::new_v4().to_string()),
            }
            Ok(())
        }
    }

    #[tokio::test]
    async fn bad_steps_are_found() {
        let server = server().await;
        for (way, why) in [
            ("counts", "changes its own result"),
            ("renames", "changes /metadata/name"),
            ("tells dry runs apart", "when nothing is kept"),
            ("rolls dice", "another result for the same"),
        ] {
            let server = server.clone();
            let check = tokio::spawn(async move { admission_conformance(&server, Arc::new(Bad(way))).await });
            let panic = check.await.unwrap_err().into_panic();
            let message = panic.downcast_ref::<String>().unwrap();
            assert!(message.contains(why), "{way}: {message}");
        }
    }
}
