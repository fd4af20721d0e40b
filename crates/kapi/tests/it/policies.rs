//! Admission policies, through requests. Expected results: upstream's `admission/plugin/policy/{validating,mutating}` and their
//! tests, and the documentation of both kinds of policies.

use kapi::{ApiServer, authn::UserInfo};
use serde_json::{Value, json};

use crate::harness::{json as send, json_as, server, warned};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn make(server: &ApiServer, path: &str, body: &Value) {
    let (code, answer) = send(server, "POST", path, body).await;
    assert_eq!(code, 201, "{path}: {answer}");
}

fn constraints(resource: &str) -> Value {
    let (group, plural) = resource.split_once('/').unwrap();
    json!({"resourceRules": [{"apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [plural]}]})
}

/// A server with one policy and one binding of it.
async fn with_policy(kind: &str, mut spec: Value, mut binding: Value) -> ApiServer {
    let server = server().await;
    if spec["matchConstraints"].is_null() {
        spec["matchConstraints"] = constraints("/configmaps");
    }
    binding["policyName"] = json!("p");
    if kind == "mutating" && spec["reinvocationPolicy"].is_null() {
        spec["reinvocationPolicy"] = json!("Never");
    }
    if kind == "validating" && binding["validationActions"].is_null() {
        binding["validationActions"] = json!(["Deny"]);
    }
    make(
        &server,
        &format!("{GROUP}/{kind}admissionpolicies"),
        &json!({"metadata": {"name": "p"}, "spec": spec}),
    )
    .await;
    make(
        &server,
        &format!("{GROUP}/{kind}admissionpolicybindings"),
        &json!({"metadata": {"name": "b"}, "spec": binding}),
    )
    .await;
    server
}

fn map(data: Value) -> Value {
    json!({"metadata": {"name": "m", "labels": {"a": "b"}}, "data": data})
}

const DENIED: &str =
    "configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: ";

#[tokio::test]
async fn what_a_policy_does_not_allow_is_refused() {
    let short = |more: Value| {
        let mut spec = json!({"validations": [{"expression": "size(object.data.x) < 3"}]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        spec
    };
    let validation = |more: Value| {
        let mut one = json!({"expression": "size(object.data.x) < 3"});
        for (key, value) in more.as_object().unwrap() {
            one[key] = value.clone();
        }
        json!({"validations": [one]})
    };
    let (good, bad) = (json!({"x": "ab"}), json!({"x": "abc"}));
    for (spec, binding, data, expected) in [
        (short(json!({})), json!({}), &good, Ok(())),
        (short(json!({})), json!({}), &bad, Err((422, "failed expression: size(object.data.x) < 3"))),
        (validation(json!({"message": "too long"})), json!({}), &bad, Err((422, "too long"))),
        (
            validation(json!({"messageExpression": "'longer than ' + string(2)", "message": "m"})),
            json!({}),
            &bad,
            Err((422, "longer than 2")),
        ),
        // What a message's expression can't say, the message says.
        (
            validation(json!({"messageExpression": "string(object.data.nothing)", "message": "m"})),
            json!({}),
            &bad,
            Err((422, "m")),
        ),
        (
            validation(json!({"reason": "Forbidden"})),
            json!({}),
            &bad,
            Err((403, "failed expression: size(object.data.x) < 3")),
        ),
        (
            validation(json!({"reason": "RequestEntityTooLarge"})),
            json!({}),
            &bad,
            Err((413, "failed expression: size(object.data.x) < 3")),
        ),
        (
            short(json!({})),
            json!({}),
            &json!({"y": ""}),
            Err((422, "expression 'size(object.data.x) < 3' resulted in error: no such key: x")),
        ),
        (short(json!({"failurePolicy": "Ignore"})), json!({}), &json!({"y": ""}), Ok(())),
        (
            short(json!({"matchConditions": [{"name": "c", "expression": "object.metadata.name != 'm'"}]})),
            json!({}),
            &bad,
            Ok(()),
        ),
        (
            short(json!({"matchConditions": [{"name": "c", "expression": "object.data.nothing == ''"}]})),
            json!({}),
            &good,
            Err((422, "expression 'object.data.nothing == ''' resulted in error: no such key: nothing")),
        ),
        (
            json!({"variables": [{"name": "n", "expression": "size(object.data.x)"}, {"name": "m", "expression": "variables.n + 1"}],
                "validations": [{"expression": "variables.m < 4 || variables.n > 100"}]}),
            json!({}),
            &bad,
            Err((422, "failed expression: variables.m < 4 || variables.n > 100")),
        ),
        (
            json!({"variables": [{"name": "n", "expression": "object.data.nothing"}], "validations": [{"expression": "variables.n == ''"}]}),
            json!({}),
            &bad,
            Err((
                422,
                "expression 'variables.n == ''' resulted in error: composited variable \"n\" fails to evaluate: no such key: nothing",
            )),
        ),
        (
            json!({"validations": [{"expression": "request.operation == 'CREATE' && request.namespace == 'default' && namespaceObject.metadata.name == 'default' && request.userInfo.username == 'admin' && oldObject == null && request.resource.resource == 'configmaps'"}]}),
            json!({}),
            &bad,
            Ok(()),
        ),
        (
            json!({"validations": [{"expression": "authorizer.group('').resource('pods').namespace('default').check('create').allowed() && !authorizer.serviceAccount('default', 'default').requestResource.check('create').allowed()".replace("serviceAccount('default', 'default').requestResource", "serviceAccount('default', 'default').group('').resource('pods')")}]}),
            json!({}),
            &bad,
            Ok(()),
        ),
        (
            short(json!({})),
            json!({"matchResources": {"objectSelector": {"matchLabels": {"a": "c"}}}}),
            &bad,
            Ok(()),
        ),
        (
            short(json!({})),
            json!({"matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "other"}}}}),
            &bad,
            Ok(()),
        ),
        (
            short(
                json!({"matchConstraints": {"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}],
                "excludeResourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["*"], "resources": ["configmaps"], "resourceNames": ["m"]}]}}),
            ),
            json!({}),
            &bad,
            Ok(()),
        ),
        (
            short(
                json!({"validations": [{"expression": "[1,2,3,4,5,6,7,8,9,10].all(a, [1,2,3,4,5,6,7,8,9,10].all(b, [1,2,3,4,5,6,7,8,9,10].all(c, [1,2,3,4,5,6,7,8,9,10].all(d, [1,2,3,4,5,6,7,8,9,10].all(e, [1,2,3,4,5,6,7,8,9,10].all(f, a+b+c+d+e+f > 0))))))"}]}),
            ),
            json!({}),
            &good,
            Err((422, "expression '*' resulted in error: operation cancelled: actual cost limit exceeded")),
        ),
    ] {
        let server = with_policy("validating", spec.clone(), binding).await;
        let (code, answer) = send(&server, "POST", MAPS, &map(data.clone())).await;
        match expected {
            Ok(()) => assert_eq!(code, 201, "{spec}: {answer}"),
            Err((expected, why)) => {
                let message = answer["message"].as_str().unwrap_or_default();
                let (start, end) = why.split_once('*').unwrap_or((why, ""));
                assert_eq!(code, expected, "{spec}: {answer}");
                assert!(
                    message.starts_with(&format!("{DENIED}{start}")) && message.ends_with(end),
                    "{spec}: {message}"
                );
                let cause = answer["details"]["causes"][0]["message"].as_str().unwrap_or_default();
                assert_eq!(format!("configmaps \"m\" is forbidden: {cause}"), message, "{spec}");
            }
        }
    }
}

#[tokio::test]
async fn parameters_come_from_where_the_binding_says() {
    const WHY: &str =
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "Secret"},
        "validations": [{"expression": "params == null || object.data.x == params.metadata.name"}]});
    for (reference, x, expected) in [
        (json!({"name": "one", "parameterNotFoundAction": "Deny"}), "one", None),
        (
            json!({"name": "one", "parameterNotFoundAction": "Deny"}),
            "two",
            Some("failed expression: params == null || object.data.x == params.metadata.name"),
        ),
        (json!({"name": "none", "parameterNotFoundAction": "Deny"}), "one", Some(WHY)),
        (json!({"name": "none", "parameterNotFoundAction": "Allow"}), "one", None),
        (json!({"selector": {"matchLabels": {"k": "v"}}, "parameterNotFoundAction": "Deny"}), "two", None),
        (
            json!({"selector": {}, "parameterNotFoundAction": "Deny"}),
            "two",
            Some("failed expression: params == null || object.data.x == params.metadata.name"),
        ),
        (
            json!({"name": "one", "namespace": "kube-system", "parameterNotFoundAction": "Deny"}),
            "one",
            Some(WHY),
        ),
        (Value::Null, "one", None),
    ] {
        let binding = json!({"paramRef": reference});
        let server = with_policy("validating", spec.clone(), binding).await;
        for (name, labels) in [("one", json!({})), ("two", json!({"k": "v"}))] {
            let secret = json!({"metadata": {"name": name, "labels": labels}});
            make(&server, "/api/v1/namespaces/default/secrets", &secret).await;
        }
        let (code, answer) = send(&server, "POST", MAPS, &map(json!({"x": x}))).await;
        let found = answer["message"].as_str().map(|text| text.strip_prefix(DENIED).unwrap_or(text));
        assert_eq!((code == 201, found), (expected.is_none(), expected), "{reference} {x}");
    }
    // A kind that is not served is the policy's fault.
    let spec = json!({"paramKind": {"apiVersion": "e.com/v1", "kind": "Lost"}, "validations": [{"expression": "true"}]});
    let server = with_policy("validating", spec, json!({})).await;
    let (_, answer) = send(&server, "POST", MAPS, &map(json!({}))).await;
    let expected = "configmaps \"m\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: failed to configure policy: failed to find resource referenced by paramKind: 'e.com/v1, Kind=Lost'";
    assert_eq!(answer["message"], expected);
}

#[tokio::test]
async fn a_policy_may_warn_and_counts_from_the_next_request_until_it_goes() {
    let spec = json!({"validations": [{"expression": "false", "message": "never"}]});
    let server = with_policy("validating", spec, json!({"validationActions": ["Warn", "Audit"]})).await;
    let body = |name: &str| serde_json::to_vec(&json!({"metadata": {"name": name}})).unwrap();
    let (code, _, warnings) = warned(&server, "POST", MAPS, "application/json", body("a")).await;
    let text = "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': never";
    assert_eq!((code, &warnings[..]), (201, &[text.to_owned()][..]));
    let path = format!("{GROUP}/validatingadmissionpolicybindings/b");
    let patch = br#"{"spec": {"validationActions": ["Deny"]}}"#.to_vec();
    let (code, ..) = warned(&server, "PATCH", &path, "application/merge-patch+json", patch).await;
    assert_eq!(code, 200);
    assert_eq!(send(&server, "POST", MAPS, &json!({"metadata": {"name": "b"}})).await.0, 422);
    // Deletions were not meant, and dry runs are.
    assert_eq!(send(&server, "DELETE", &format!("{MAPS}/a"), &Value::Null).await.0, 200);
    let dry = format!("{MAPS}?dryRun=All");
    assert_eq!(send(&server, "POST", &dry, &json!({"metadata": {"name": "b"}})).await.0, 422);
    assert_eq!(send(&server, "DELETE", &path, &Value::Null).await.0, 200);
    assert_eq!(send(&server, "POST", MAPS, &json!({"metadata": {"name": "b"}})).await.0, 201);
}

/// Another version of a resource, its status, its scale and its deletion are matched as the rules say.
#[tokio::test]
async fn rules_meet_versions_subresources_and_deletions() {
    let rule = |version: &str, operations: &str, resources: &str| json!({"resourceRules": [{"apiGroups": ["apps", "autoscaling"], "apiVersions": [version], "operations": [operations], "resources": [resources]}]});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let scaler = json!({"metadata": {"name": "s"}, "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let apps = "/apis/apps/v1/namespaces/default/deployments";
    let scale = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "d", "namespace": "default"}, "spec": {"replicas": 5}});
    for (constraints, expression, method, path, body, expected) in [
        (
            rule("v1", "UPDATE", "deployments/scale"),
            "object.spec.replicas < 4",
            "PUT",
            format!("{apps}/d/scale"),
            &scale,
            422,
        ),
        (rule("v1", "UPDATE", "deployments"), "false", "PUT", format!("{apps}/d/scale"), &scale, 200),
        (
            rule("v1", "DELETE", "deployments"),
            "oldObject.spec.replicas == 2 || object != null",
            "DELETE",
            format!("{apps}/d"),
            &Value::Null,
            422,
        ),
        (
            rule("v1", "*", "horizontalpodautoscalers"),
            "object.apiVersion != 'autoscaling/v1'",
            "POST",
            "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers".to_owned(),
            &scaler,
            422,
        ),
        (
            {
                let mut exact = rule("v1", "*", "horizontalpodautoscalers");
                exact["matchPolicy"] = json!("Exact");
                exact
            },
            "false",
            "POST",
            "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers".to_owned(),
            &scaler,
            201,
        ),
    ] {
        let spec = json!({"matchConstraints": constraints, "validations": [{"expression": expression}]});
        let server = with_policy("validating", spec, json!({"matchResources": {"objectSelector": {}}})).await;
        if path.contains("/deployments") {
            make(&server, apps, &deployment).await;
        }
        let (code, answer) = send(&server, method, &path, body).await;
        assert_eq!(code, expected, "{method} {path} {expression}: {answer}");
    }
}

#[tokio::test]
async fn policies_change_what_is_written() {
    const REFUSED: &str = "policy 'p' with binding 'b' denied request: ";
    let apply = |expression: &str| json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]});
    let patch = |expression: &str| json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}]});
    for (spec, expected) in [
        (apply("Object{data: Object.data{y: object.data.x + '1'}}"), Ok(json!({"x": "a", "y": "a1"}))),
        (
            apply("Object{metadata: Object.metadata{labels: Object.metadata.labels{z: 'w'}}}"),
            Ok(json!({"x": "a"})),
        ),
        (
            patch(
                "[JSONPatch{op: 'test', path: '/data/x', value: 'a'}, JSONPatch{op: 'add', path: '/data/y', value: 'b'}]",
            ),
            Ok(json!({"x": "a", "y": "b"})),
        ),
        (
            patch(
                "[JSONPatch{op: 'test', path: '/data/x', value: 'b'}, JSONPatch{op: 'add', path: '/data/y', value: 'b'}]",
            ),
            Ok(json!({"x": "a"})),
        ),
        (
            json!({"variables": [{"name": "v", "expression": "object.data.x"}], "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{data: Object.data{y: variables.v}}"}}]}),
            Ok(json!({"x": "a", "y": "a"})),
        ),
        (
            apply("Object{data: Object.other{y: 'a'}}"),
            Err((
                403,
                "type mismatch: unexpected type name \"Object.other\", expected \"Object.data\", which matches field name path from root Object type",
            )),
        ),
        (
            apply("Object{unknown: 'a'}"),
            Err((
                403,
                "error applying patch: failed to convert patch object to typed object: .unknown: field not declared in schema",
            )),
        ),
        (patch("[JSONPatch{op: 'add', path: '/data/a/b', value: 'b'}]"), Err((403, "JSON Patch: *"))),
        (
            apply("Object{data: Object.data{y: object.data.none}}"),
            Err((
                403,
                "expression 'Object{data: Object.data{y: object.data.none}}' resulted in error: no such key: none",
            )),
        ),
    ] {
        let server = with_policy("mutating", spec.clone(), json!({})).await;
        let (code, answer) = send(&server, "POST", MAPS, &map(json!({"x": "a"}))).await;
        match expected {
            Ok(data) => assert_eq!((code, &answer["data"]), (201, &data), "{spec}: {answer}"),
            Err((expected, why)) => {
                let message = answer["message"].as_str().unwrap_or_default();
                let why = format!("{REFUSED}{}", why.trim_end_matches('*'));
                assert!(message.starts_with(&why), "{message}\n{why}");
                assert_eq!((code, &answer["reason"]), (expected, &json!("Invalid")), "{spec}");
            }
        }
    }
}

/// A policy that wants to be asked again sees what those after it have made, once.
#[tokio::test]
async fn policies_are_asked_again_after_others_have_changed_the_object() {
    for (reinvocation, expected) in
        [("Never", json!({"x": "", "seen": "0"})), ("IfNeeded", json!({"x": "", "seen": "1"}))]
    {
        let seen = "Object{data: Object.data{seen: 'later' in object.metadata.labels ? '1' : '0'}}";
        let spec = json!({"reinvocationPolicy": reinvocation, "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": seen}}]});
        let server = with_policy("mutating", spec, json!({})).await;
        let later = "Object{metadata: Object.metadata{labels: Object.metadata.labels{later: 'yes'}}}";
        let spec = json!({"matchConstraints": constraints("/configmaps"), "reinvocationPolicy": "Never", "failurePolicy": "Fail",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": later}}]});
        make(
            &server,
            &format!("{GROUP}/mutatingadmissionpolicies"),
            &json!({"metadata": {"name": "q"}, "spec": spec}),
        )
        .await;
        let binding = json!({"metadata": {"name": "c"}, "spec": {"policyName": "q"}});
        make(&server, &format!("{GROUP}/mutatingadmissionpolicybindings"), &binding).await;
        let (code, answer) = send(&server, "POST", MAPS, &map(json!({"x": ""}))).await;
        assert_eq!((code, &answer["data"]), (201, &expected), "{answer}");
    }
}

/// Nobody can lock the cluster by a policy about policies, and who owns fields stays told.
#[tokio::test]
async fn policies_are_not_asked_about_policies() {
    let everything = json!({"resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"]}]});
    let spec = json!({"matchConstraints": everything, "validations": [{"expression": "false"}]});
    let server = with_policy("validating", spec, json!({})).await;
    assert_eq!(send(&server, "POST", MAPS, &map(json!({}))).await.0, 422);
    let jane = UserInfo::new("jane", [""; 0]);
    assert_eq!(
        json_as(&server, jane, "POST", MAPS, &map(json!({}))).await.0,
        403,
        "authorization comes first"
    );
    for path in ["validatingadmissionpolicybindings/b", "validatingadmissionpolicies/p"] {
        assert_eq!(send(&server, "DELETE", &format!("{GROUP}/{path}"), &Value::Null).await.0, 200);
    }
    assert_eq!(send(&server, "POST", MAPS, &map(json!({}))).await.0, 201);
}

/// KEP-3488, "Type Checking": the cases of upstream's `TestTypeCheck`, with kinds that are served.
#[tokio::test]
async fn the_status_of_a_policy_tells_of_types() {
    const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
    let server = crate::harness::server().await;
    let rule = |groups: Value, versions: Value, resources: Value| json!([{"apiGroups": groups, "apiVersions": versions, "operations": ["CREATE"], "resources": resources}]);
    let deployments = rule(json!(["apps"]), json!(["v1"]), json!(["deployments"]));
    let validations = |expressions: &[&str]| -> Value {
        expressions.iter().map(|expression| json!({"expression": expression})).collect()
    };
    let undefined = "apps/v1, Kind=Deployment: ERROR: <input>:1:12: undefined field 'replica'\n | object.spec.replica > 1\n | ...........^\n";
    let expression = "spec.validations[0].expression";
    for (name, rules, more, expected) in [
        (
            "good",
            &deployments,
            json!({"validations": validations(&["object.spec.replicas > 1 && object.metadata.name != ''"])}),
            vec![],
        ),
        (
            "undefined",
            &deployments,
            json!({"validations": validations(&["object.spec.replica > 1"])}),
            vec![(expression, undefined)],
        ),
        (
            "mismatch",
            &deployments,
            json!({"validations": validations(&["object.spec.replicas == 'x'"])}),
            vec![(expression, "found no matching overload for '_==_' applied to '(int, string)'")],
        ),
        (
            "int-or-string",
            &deployments,
            json!({"validations": validations(&["object.spec.strategy.rollingUpdate.maxSurge == '25%'"])}),
            vec![],
        ),
        (
            "second",
            &deployments,
            json!({"validations": validations(&["true", "has(object.spec.nothing)"])}),
            vec![("spec.validations[1].expression", "undefined field 'nothing'")],
        ),
        (
            "message",
            &deployments,
            json!({"validations": [{"expression": "true", "messageExpression": "string(object.spec.nothing)"}]}),
            vec![("spec.validations[0].messageExpression", "undefined field 'nothing'")],
        ),
        (
            "authorizer",
            &deployments,
            json!({"validations": validations(&["authorizer.group('').resource('endpoints').check('create').allowed()"])}),
            vec![],
        ),
        (
            "variables",
            &deployments,
            json!({"variables": [{"name": "count", "expression": "object.spec.replicas"}], "validations": validations(&["variables.count == 'x'"])}),
            vec![(expression, "applied to '(int, string)'")],
        ),
        (
            "params",
            &deployments,
            json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": validations(&["params.data.max == 1"])}),
            vec![(expression, "applied to '(string, int)'")],
        ),
        (
            "wildcard",
            &rule(json!(["apps"]), json!(["*"]), json!(["deployments"])),
            json!({"validations": validations(&["object.nothing == 1"])}),
            vec![],
        ),
        (
            "unknown",
            &rule(json!(["none.example.com"]), json!(["v1"]), json!(["things"])),
            json!({"validations": validations(&["object.nothing == 1"])}),
            vec![],
        ),
        (
            "two",
            &rule(
                json!(["apps", "batch"]),
                json!(["v1"]),
                json!(["jobs", "deployments", "deployments/scale"]),
            ),
            json!({"validations": validations(&["object.spec.replicas > 1"])}),
            vec![(expression, "batch/v1, Kind=Job: ERROR: <input>:1:12: undefined field 'replicas'")],
        ),
    ] {
        let mut spec = json!({"failurePolicy": "Ignore", "matchConstraints": {"resourceRules": rules}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name}, "spec": spec});
        let (code, answer) = send(&server, "POST", POLICIES, &policy).await;
        assert_eq!(code, 201, "{answer}");
        let (_, found) = crate::harness::get(&server, &format!("{POLICIES}/{name}")).await;
        assert_eq!(found["status"]["observedGeneration"], 1, "{name}");
        let warnings =
            found["status"]["typeChecking"]["expressionWarnings"].as_array().cloned().unwrap_or_default();
        assert!(
            found["status"]["typeChecking"].is_object() && warnings.len() == expected.len(),
            "{name}: {found}"
        );
        for (warning, (field, words)) in warnings.iter().zip(&expected) {
            let told = warning["warning"].as_str().unwrap();
            assert!(warning["fieldRef"] == *field && told.contains(words), "{name}: {told}");
        }
    }
    // A change of the specification is looked at, one of the metadata is not.
    let path = format!("{POLICIES}/undefined");
    let patch = json!({"spec": {"validations": [{"expression": "object.spec.replicas > 1"}]}});
    let body = serde_json::to_vec(&patch).unwrap();
    let (code, ..) =
        crate::harness::warned(&server, "PATCH", &path, "application/merge-patch+json", body).await;
    assert_eq!(code, 200);
    let (_, found) = crate::harness::get(&server, &path).await;
    assert_eq!(found["status"], json!({"observedGeneration": 2, "typeChecking": {}}));
}
