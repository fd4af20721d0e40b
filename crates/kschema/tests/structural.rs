//! What structural schemas do to objects: tables of schemas, objects and what comes of them.

use kschema::{builtin, structural::Structural};
use proptest::prelude::*;
use serde_json::{Value, json};

fn compile(schema: &Value) -> Structural {
    Structural::compile(schema).expect("a schema")
}

/// A schema for one field.
fn of(field: &Value) -> Structural {
    compile(&json!({"type": "object", "properties": {"x": field}}))
}

/// apiextensions-apiserver, apiserver/schema/pruning/algorithm_test.go.
#[test]
fn unknown_fields_are_pruned_and_named() {
    let string = json!({"type": "string"});
    for (schema, object, expected, unknown) in [
        (
            json!({"type": "object"}),
            json!({"a": 1, "metadata": {"b": 1}, "kind": "K"}),
            json!({"metadata": {"b": 1}, "kind": "K"}),
            vec!["a"],
        ),
        (
            json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": string}}}}),
            json!({"spec": {"a": "1", "b": [{"c": 1}], "metadata": {}}, "status": 1}),
            json!({"spec": {"a": "1"}}),
            vec!["spec.b", "spec.metadata", "status"],
        ),
        (
            json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "object", "properties": {"a": string}}}}}),
            json!({"l": [{"a": "1", "b": 1}, 3, {"c": {}}]}),
            json!({"l": [{"a": "1"}, 3, {}]}),
            vec!["l[0].b", "l[2].c"],
        ),
        (
            json!({"type": "object", "properties": {"m": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": string}}}}}),
            json!({"m": {"k": {"a": "1", "b": 1}}}),
            json!({"m": {"k": {"a": "1"}}}),
            vec!["m.k.b"],
        ),
        (
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"known": {"type": "object"}, "list": {"type": "array", "items": {"type": "object"}}}}),
            json!({"other": {"a": 1}, "known": {"a": 1}, "list": [{"b": 1}]}),
            json!({"other": {"a": 1}, "known": {}, "list": [{}]}),
            vec!["known.a", "list[0].b"],
        ),
        (
            json!({"type": "object", "properties": {"o": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}}}}),
            json!({"o": {"apiVersion": "v1", "kind": "K", "metadata": {"x": 1}, "spec": {"a": 1}, "b": 1}}),
            json!({"o": {"apiVersion": "v1", "kind": "K", "metadata": {"x": 1}, "spec": {}}}),
            vec!["o.b", "o.spec.a"],
        ),
    ] {
        let mut pruned = object;
        assert_eq!(compile(&schema).prune(&mut pruned), unknown, "{schema}");
        assert_eq!(pruned, expected, "{schema}");
    }
}

/// apiextensions-apiserver, apiserver/schema/defaulting/algorithm_test.go and prunenulls_test.go.
#[test]
fn defaults_are_filled_in() {
    let with = |nullable: bool| json!({"type": "string", "default": "A", "nullable": nullable});
    for (schema, object, expected) in [
        (json!({"type": "object"}), json!({"a": null}), json!({"a": null})),
        (
            json!({"type": "object", "properties": {"a": with(false), "b": {"type": "object", "properties": {"c": with(false)}}}}),
            json!({"b": {}}),
            json!({"a": "A", "b": {"c": "A"}}),
        ),
        // What is filled in is filled up.
        (
            json!({"type": "object", "properties": {"b": {"type": "object", "default": {}, "properties": {"c": with(false)}}}}),
            json!({}),
            json!({"b": {"c": "A"}}),
        ),
        (
            json!({"type": "object", "properties": {"a": with(false), "b": with(true), "c": {"type": "string"}, "d": {"type": "string", "nullable": true}}}),
            json!({"a": null, "b": null, "c": null, "d": null}),
            json!({"a": "A", "b": null, "d": null}),
        ),
        (
            json!({"type": "object", "properties": {"l": {"type": "array", "items": with(false)}, "m": {"type": "object", "additionalProperties": with(false)}}}),
            json!({"l": ["x", null], "m": {"a": null, "b": "y"}}),
            json!({"l": ["x", "A"], "m": {"a": "A", "b": "y"}}),
        ),
        (
            json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "object", "properties": {"a": with(false)}}}}}),
            json!({"l": [{}, {"a": "x"}]}),
            json!({"l": [{"a": "A"}, {"a": "x"}]}),
        ),
    ] {
        let mut object = object;
        compile(&schema).default_in(&mut object);
        assert_eq!(object, expected, "{schema}");
    }
}

/// apiextensions-apiserver, apiserver/validation/validation_test.go; kube-openapi, validation/errors/schema.go for the words.
#[test]
fn values_are_checked_in_upstreams_words() {
    let integer = |more: Value| {
        let mut schema = json!({"type": "integer"});
        schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        schema
    };
    for (schema, value, errors) in [
        (
            integer(json!({"minimum": 1})),
            json!(0),
            vec!["x: Invalid value: 0: x in body should be greater than or equal to 1"],
        ),
        (
            integer(json!({"maximum": 3, "exclusiveMaximum": true})),
            json!(3),
            vec!["x: Invalid value: 3: x in body should be less than 3"],
        ),
        (
            integer(json!({"multipleOf": 5})),
            json!(7),
            vec!["x: Invalid value: 7: x in body should be a multiple of 5"],
        ),
        (json!({"type": "number", "multipleOf": 0.1}), json!(0.3), vec![]),
        (
            json!({"type": "number", "minimum": 0.5}),
            json!(0.25),
            vec!["x: Invalid value: 0.25: x in body should be greater than or equal to 0.5"],
        ),
        (
            integer(json!({})),
            json!("3"),
            vec!["x: Invalid value: \"string\": x in body must be of type integer: \"string\""],
        ),
        (integer(json!({})), json!(1.0), vec![]),
        (
            integer(json!({})),
            json!(1.5),
            vec![
                "x: Invalid value: \"number\": x in body must be of type integer: \"number\"",
                "<nil>: Invalid value: \"\": Checked value must be of type integer (default format) in x",
            ],
        ),
        (
            integer(json!({"format": "int32"})),
            json!(3_000_000_000_i64),
            vec!["<nil>: Invalid value: \"\": Checked value must be of type integer with format int32 in x"],
        ),
        (integer(json!({"nullable": true})), json!(null), vec![]),
        (
            integer(json!({})),
            json!(null),
            vec!["x: Invalid value: \"null\": x in body must be of type integer: \"null\""],
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("äöü"),
            vec!["x: Too long: may not be more than 2 bytes"],
        ),
        (json!({"type": "string", "maxLength": 3}), json!("äöü"), vec![]),
        (
            json!({"type": "string", "minLength": 2}),
            json!("a"),
            vec!["x: Invalid value: \"a\": x in body should be at least 2 chars long"],
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("b"),
            vec!["x: Invalid value: \"b\": x in body should match '^a+$'"],
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("today"),
            vec!["x: Invalid value: \"today\": x in body must be of type date-time: \"today\""],
        ),
        (json!({"type": "string", "format": "unheard-of"}), json!("today"), vec![]),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("c"),
            vec!["x: Unsupported value: \"c\": supported values: \"a\", \"b\""],
        ),
        (
            integer(json!({"enum": [1, 2]})),
            json!(3),
            vec!["x: Unsupported value: 3: supported values: \"1\", \"2\""],
        ),
        (
            json!({"type": "boolean"}),
            json!({}),
            vec!["x: Invalid value: \"object\": x in body must be of type boolean: \"object\""],
        ),
        (json!({"x-kubernetes-int-or-string": true}), json!("1"), vec![]),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            vec!["x: Invalid value: \"boolean\": x in body must be of type integer,string: \"boolean\""],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
            json!([]),
            vec!["x: Invalid value: 0: x in body should have at least 1 items"],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            vec!["x: Too many: 2: must have at most 1 item"],
        ),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            json!(["a", 1]),
            vec!["x[1]: Invalid value: \"integer\": x[1] in body must be of type string: \"integer\""],
        ),
        (
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}}),
            json!({"b": 1}),
            vec![
                "x.b: Invalid value: \"integer\": x.b in body must be of type string: \"integer\"",
                "x.a: Required value",
            ],
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 2}),
            json!({"a": 1}),
            vec![
                "x: Invalid value: 1: x in body should have at least 2 properties",
                "x.a: Invalid value: \"integer\": x.a in body must be of type string: \"integer\"",
            ],
        ),
        (
            integer(json!({"anyOf": [{"minimum": 5}, {"maximum": 1}]})),
            json!(3),
            vec![
                "<nil>: Invalid value: \"\": \"x\" must validate at least one schema (anyOf)",
                "x: Invalid value: 3: x in body should be greater than or equal to 5",
            ],
        ),
        (
            integer(json!({"oneOf": [{"minimum": 1}, {"maximum": 5}]})),
            json!(3),
            vec![
                "<nil>: Invalid value: \"\": \"x\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
            ],
        ),
        (
            integer(json!({"allOf": [{"minimum": 5}, {"maximum": 7}]})),
            json!(3),
            vec![
                "x: Invalid value: 3: x in body should be greater than or equal to 5",
                "<nil>: Invalid value: \"\": \"x\" must validate all the schemas (allOf)",
            ],
        ),
        (
            integer(json!({"not": {"minimum": 1}})),
            json!(3),
            vec!["<nil>: Invalid value: \"\": \"x\" must not validate the schema (not)"],
        ),
    ] {
        let mut found = Vec::new();
        of(&schema).validate(&json!({ "x": value }), None, &mut found);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, errors, "{schema} {value}");
    }
}

/// KEP-4008; apiextensions-apiserver, apiserver/validation/ratcheting_test.go.
#[test]
fn what_has_not_changed_is_excused() {
    let positive = json!({"type": "integer", "minimum": 1});
    let entry = json!({"type": "object", "properties": {"name": {"type": "string"}, "n": positive}});
    let schema = compile(&json!({"type": "object", "properties": {
        "n": positive,
        "other": {"type": "string"},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": entry},
        "list": {"type": "array", "items": entry},
        "need": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {"type": "string"}}},
    }}));
    for (old, new, places) in [
        (json!({"n": 0}), json!({"n": 0, "other": "x"}), vec![]),
        (json!({"n": 0}), json!({"n": -1}), vec!["n"]),
        (json!({}), json!({"n": 0}), vec!["n"]),
        (
            json!({"map": [{"name": "a", "n": 0}, {"name": "b", "n": 1}]}),
            json!({"map": [{"name": "b", "n": 2}, {"name": "a", "n": 0}, {"name": "c", "n": 0}]}),
            vec!["map[2].n"],
        ),
        (json!({"list": [{"n": 0}]}), json!({"list": [{"n": 0}]}), vec![]),
        // Entries of other lists are not told from each other.
        (json!({"list": [{"n": 0}]}), json!({"list": [{"n": 0}, {"n": 1}]}), vec!["list[0].n"]),
        (json!({"need": {"b": "x"}}), json!({"need": {"b": "x"}, "n": 1}), vec![]),
        (json!({"need": {"b": "x"}}), json!({"need": {"b": "y"}}), vec!["need.a"]),
    ] {
        let mut errors = Vec::new();
        schema.validate(&new, Some(&old), &mut errors);
        let found: Vec<&str> = errors.iter().map(kschema::error::FieldError::field).collect();
        assert_eq!(found, places, "{old} -> {new}");
    }
}

/// apiextensions-apiserver, apiserver/schema/listtype/validation_test.go.
#[test]
fn sets_and_maps_have_nothing_twice() {
    let list = |more: Value, items: Value| {
        let mut schema = json!({"type": "array", "items": items});
        schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        of(&schema)
    };
    let object = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}});
    let map = |keys: Value| json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys});
    for (schema, value, errors) in [
        (
            list(json!({"x-kubernetes-list-type": "set"}), json!({"type": "string"})),
            json!(["a", "b", "a", "a"]),
            vec!["x[2]: Duplicate value: \"a\""],
        ),
        (
            list(map(json!(["a"])), object.clone()),
            json!([{"a": "1"}, {"a": "1", "b": 2}, {"b": 1}, {}]),
            vec!["x[1]: Duplicate value: {\"a\":\"1\"}", "x[3]: Duplicate value: {}"],
        ),
        (
            list(map(json!(["a", "b"])), object.clone()),
            json!([{"a": "1", "b": 1}, {"a": "1", "b": 2}]),
            vec![],
        ),
        (
            list(map(json!(["a", "b"])), object),
            json!([{"a": "1", "b": 1}, {"a": "1", "b": 1}]),
            vec!["x[1]: Duplicate value: {\"a\":\"1\",\"b\":1}"],
        ),
    ] {
        let mut found = Vec::new();
        schema.validate_lists(&json!({ "x": value }), &mut found);
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), errors, "{value}");
    }
}

/// apiextensions-apiserver, apiserver/schema/objectmeta: algorithm_test.go and validation_test.go.
#[test]
fn metadata_is_brought_into_form() {
    let catalog = builtin::catalog();
    let schema = of(
        &json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
    );
    let object = json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "a", "labels": {"a": 1}, "foo": 1},
        "x": {"apiVersion": "v1", "metadata": {"name": "b", "bar": true}}});
    let mut strict = object.clone();
    let error = schema.coerce_metadata(&catalog, &mut strict, false).unwrap_err();
    assert_eq!(error.field(), "metadata");
    let mut lenient = object;
    assert_eq!(schema.coerce_metadata(&catalog, &mut lenient, true).unwrap(), ["x.metadata.bar"]);
    assert_eq!(lenient["metadata"], json!({"name": "a"}));
    let mut errors = Vec::new();
    let embedded = json!({"x": {"apiVersion": "a/b/c", "metadata": {"name": "a/b", "labels": {"-": "x"}}}});
    schema.validate_metadata(&catalog, &embedded, &mut errors);
    let found: Vec<&str> = errors.iter().map(kschema::error::FieldError::field).collect();
    assert_eq!(found, ["x.apiVersion", "x.kind", "x.metadata.name", "x.metadata.labels"]);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..3_i64).prop_map(Value::from),
        "[ab]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::btree_map("[abc]", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

fn any_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string", "default": "d"})),
        Just(json!({"type": "integer", "nullable": true, "default": 1})),
        Just(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})),
        Just(json!({"type": "object"})),
    ];
    leaf.prop_recursive(3, 16, 3, |inner| {
        prop_oneof![
            inner.clone().prop_map(|items| json!({"type": "array", "items": items})),
            inner.clone().prop_map(|other| json!({"type": "object", "additionalProperties": other})),
            (prop::collection::btree_map("[abc]", inner, 0..3), any::<bool>(), any::<bool>()).prop_map(
                |(properties, keeps, defaults)| {
                    let mut schema = json!({"type": "object", "properties": properties});
                    if keeps {
                        schema["x-kubernetes-preserve-unknown-fields"] = json!(true);
                    }
                    if defaults {
                        schema["default"] = json!({});
                    }
                    schema
                }
            ),
        ]
    })
}

proptest! {
    #[test]
    fn pruning_and_defaulting_twice_is_doing_it_once(schema in any_schema(), object in any_value()) {
        let schema = of(&schema);
        let mut once = json!({ "x": object });
        schema.default_in(&mut once);
        schema.prune(&mut once);
        let mut twice = once.clone();
        prop_assert!(schema.prune(&mut twice).is_empty());
        prop_assert_eq!(&twice, &once);
        schema.default_in(&mut twice);
        prop_assert_eq!(&twice, &once);
    }

    #[test]
    fn any_object_is_checked(schema in any_schema(), object in any_value(), old in any_value()) {
        let schema = of(&schema);
        let mut errors = Vec::new();
        schema.validate(&json!({ "x": object }), Some(&json!({ "x": old })), &mut errors);
        let mut same = Vec::new();
        schema.validate(&json!({ "x": object }), Some(&json!({ "x": object })), &mut same);
        prop_assert!(same.len() <= errors.len());
    }
}
