//! What mutating policies make. Expected results: `apiserver/pkg/cel/mutation/*_test.go` and the documentation of
//! MutatingAdmissionPolicy.

use kcel::{Bindings, Decl, Env, Feature, Value};

fn env() -> Env {
    Env::builder().with(Feature::Mutation).variable("object", Decl::dynamic()).build()
}

#[test]
fn objects_and_patches_become_json() {
    let env = env();
    let data = serde_json::json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 2}});
    for (text, expected) in [
        ("Object{spec: Object.spec{replicas: object.spec.replicas + 1}}", r#"{"spec":{"replicas":3}}"#),
        (
            "Object{spec: Object.spec{list: [Object.spec.list{name: 'x'}]}}",
            r#"{"spec":{"list":[{"name":"x"}]}}"#,
        ),
        ("Object{metadata: Object.metadata{?labels: optional.none()}}", r#"{"metadata":{}}"#),
        ("Object{metadata: Object.metadata{__namespace__: 'n'}}", r#"{"metadata":{"namespace":"n"}}"#),
        (
            "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('k8s.io/my~label'), value: 'x'}]",
            r#"[{"op":"add","path":"/metadata/labels/k8s.io~1my~0label","value":"x"}]"#,
        ),
        (
            "[JSONPatch{op: 'add', path: '/spec', value: Object.spec{a: {'b': [1]}}}, JSONPatch{op: 'remove', path: '/x'}]",
            r#"[{"op":"add","path":"/spec","value":{"a":{"b":[1]}}},{"op":"remove","path":"/x"}]"#,
        ),
        ("JSONPatch{op: 'test'} == JSONPatch{op: 'test'}", "true"),
        ("Object{a: 1} == Object{a: 2}", "false"),
        ("has(JSONPatch{op: 'test'}.value)", "false"),
        ("JSONPatch{op: 'test'}.op", "\"test\""),
    ] {
        let bindings = Bindings::new().json("object", &data);
        assert_eq!(super::language::answer(&env, text, &bindings), expected, "{text}");
    }
}

#[test]
fn types_and_their_mistakes() {
    let env = env();
    assert_eq!(env.compile("[JSONPatch{op: 'x'}]").unwrap().output_type().to_string(), "list(JSONPatch)");
    assert_eq!(env.compile("Object{}").unwrap().output_type().to_string(), "Object");
    for (text, message) in [
        ("JSONPatch{op: 1}", "expected type of field 'op' is 'string' but provided type is 'int'"),
        ("JSONPatch{from: 'x', what: 1}", "expected type of field 'what' is '' but provided type is 'int'"),
        ("Other{}", "undeclared reference to 'Other' (in container '')"),
    ] {
        assert_eq!(env.compile(text).unwrap_err().issues()[0].message(), message, "{text}");
    }
    let plain = Env::builder().build();
    assert!(plain.compile("Object{}").is_err(), "only where it is turned on");
    assert!(plain.compile("jsonpatch.escapeKey('x')").is_err(), "only where it is turned on");
}

/// The type names of nested objects say where they belong; whoever applies the object checks that.
#[test]
fn made_objects_tell_their_types() {
    let program = env().compile("Object{spec: Object.spec{replicas: 3}}").unwrap();
    let bindings = Bindings::new();
    let Ok(Value::Object(object)) = program.eval(&bindings, 1000).result else { panic!("no object") };
    assert_eq!(object.type_name(), "Object");
    let Some(Value::Object(spec)) = object.field("spec") else { panic!("no spec") };
    assert_eq!(spec.type_name(), "Object.spec");
    assert_eq!(spec.fields().count(), 1);
}
