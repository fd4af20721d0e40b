//! The environment of admission policies. Expected results: `apiserver/pkg/admission/plugin/cel/{compile,condition,composition}_test.go`
//! and the documentation of ValidatingAdmissionPolicy.

use std::sync::Arc;

use kcel::{
    Authorizer, AuthorizerValue, Bindings, Check, Compute, Decision, EvalError, PolicyEnv, Program, Purpose,
    ResourceCheck, Value,
};
use serde_json::json;

struct OnlyReading;

impl Authorizer for OnlyReading {
    fn authorize(&self, check: &Check<'_>) -> Decision {
        Decision::new(check.verb == "get", "")
    }
}

struct Variable<'v>(&'v Program, &'v Bindings<'v>);

impl Compute for Variable<'_> {
    fn compute(&self) -> Result<Value<'_>, EvalError> {
        self.0.eval(self.1, 1_000_000).result
    }
}

#[test]
fn what_is_compiled_can_be_evaluated() {
    let mut env = PolicyEnv::new(true).with_variables();
    let replicas = env.declare("replicas", "object.spec.replicas").unwrap();
    let object = json!({"spec": {"replicas": 3}});
    let params = json!({"most": 5});
    let request = json!({
        "name": "a", "namespace": "ns", "operation": "CREATE", "dryRun": false,
        "kind": {"group": "apps", "version": "v1", "kind": "Deployment"},
        "userInfo": {"username": "u", "groups": ["g"], "extra": {"k": ["v"]}}
    });
    let namespace = json!({
        "metadata": {"name": "ns", "labels": {"a": "b"}, "creationTimestamp": "2026-01-02T03:04:05Z"},
        "status": {"phase": "Active"}
    });
    let authorizer = AuthorizerValue::new(Arc::new(OnlyReading));
    let resource = authorizer.resource(ResourceCheck::default());
    let none = json!(null);
    let outer = Bindings::new()
        .json("object", &object)
        .json("oldObject", &none)
        .json("params", &params)
        .json("request", &request)
        .json("namespaceObject", &namespace)
        .with("authorizer", authorizer.clone().value())
        .with("authorizer.requestResource", resource);
    let variable = Variable(&replicas, &outer);
    let bindings = outer.clone().lazy("variables.replicas", &variable);
    for (text, expected) in [
        ("variables.replicas <= params.most", true),
        ("variables.replicas + 3 <= params.most", false),
        ("oldObject == null && object.spec.replicas == 3", true),
        ("request.namespace == 'ns' && request.kind.kind == 'Deployment' && !request.dryRun", true),
        ("request.userInfo.groups.exists(g, g == 'g') && request.userInfo.extra['k'][0] == 'v'", true),
        ("has(request.subResource)", false),
        ("namespaceObject.metadata.labels['a'] == 'b'", true),
        ("namespaceObject.metadata.creationTimestamp < timestamp('2026-02-01T00:00:00Z')", true),
        ("authorizer.group('apps').resource('deployments').check('get').allowed()", true),
        ("authorizer.requestResource.check('delete').allowed()", false),
    ] {
        let program =
            env.compile(Purpose::Validation, text).unwrap_or_else(|error| panic!("{text}: {error}"));
        let outcome = program.eval(&bindings, 1_000_000);
        assert_eq!(
            outcome.result.unwrap_or_else(|error| panic!("{text}: {error}")).as_bool(),
            Some(expected),
            "{text}"
        );
    }
}

#[test]
fn each_purpose_has_its_sight_and_its_type() {
    let mut env = PolicyEnv::new(false).with_variables();
    env.declare("text", "'a'").unwrap();
    env.declare("broken", "nothing").unwrap_err();
    let undeclared = |name: &str, text: &str| {
        format!(
            "compilation failed: ERROR: <input>:1:1: undeclared reference to '{name}' (in container '')\n | {text}\n | ^"
        )
    };
    for (purpose, text, expected) in [
        (Purpose::Validation, "variables.broken == 1 && variables.text == 'a'", None),
        (Purpose::Validation, "variables.text", Some("must evaluate to bool but got string".to_owned())),
        (Purpose::Condition, "variables.text == 'a'", Some(undeclared("variables", "variables.text == 'a'"))),
        (Purpose::Validation, "params.a", Some(undeclared("params", "params.a"))),
        (Purpose::Message, "variables.text", None),
        (
            Purpose::Message,
            "authorizer.path('/').check('get').reason()",
            Some(undeclared("authorizer", "authorizer.path('/').check('get').reason()")),
        ),
        (Purpose::AuditAnnotation, "null", None),
        (
            Purpose::AuditAnnotation,
            "timestamp('2026-01-02T03:04:05Z')",
            Some("must evaluate to one of [string null_type] but got google.protobuf.Timestamp".to_owned()),
        ),
        (Purpose::ApplyConfiguration, "Object{spec: Object.spec{a: variables.text}}", None),
        (Purpose::JsonPatch, "[JSONPatch{op: 'test', path: '/a'}]", None),
        (Purpose::JsonPatch, "Object{}", Some("must evaluate to list(JSONPatch) but got Object".to_owned())),
        (
            Purpose::Validation,
            "Object{} == Object{}",
            Some(
                undeclared("Object", "Object{} == Object{}")
                    .replace("1:1:", "1:7:")
                    .replace(" | ^", " | ......^"),
            ),
        ),
    ] {
        let found = env
            .compile(purpose, text)
            .err()
            .map(|error| error.to_string().lines().take(3).collect::<Vec<_>>().join("\n"));
        assert_eq!(found, expected, "{purpose:?} {text}");
    }
}
