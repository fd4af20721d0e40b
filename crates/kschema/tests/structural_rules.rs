//! Which schemas CustomResourceDefinitions may have: a table of schemas with what is wrong with them.
//!
//! From apiextensions-apiserver: apiserver/schema/validation_test.go, pkg/apis/apiextensions/validation/validation_test.go.

use kschema::{
    builtin,
    error::FieldError,
    structural::{
        SchemaRules, Structural, validate_columns, validate_scale, validate_schema,
        validate_selectable_fields,
    },
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn texts(errors: &[FieldError]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

fn check(schema: Value, expected: &[&str]) {
    let errors = validate_schema(&builtin::catalog(), &schema, "s", SchemaRules::default());
    assert_eq!(texts(&errors), expected, "{schema}");
}

/// A schema whose field `x` is this.
fn field(field: Value) -> Value {
    json!({"type": "object", "properties": {"x": field}})
}

#[test]
fn types_must_be_said() {
    check(json!({"type": "object"}), &[]);
    check(json!({}), &["s.type: Required value: must not be empty at the root"]);
    check(json!({"type": "string"}), &["s.type: Invalid value: \"string\": must be object at the root"]);
    check(
        field(json!({})),
        &["s.properties[x].type: Required value: must not be empty for specified object fields"],
    );
    check(
        field(json!({"type": "array", "items": {}})),
        &["s.properties[x].items.type: Required value: must not be empty for specified array items"],
    );
    check(field(json!({"type": "array"})), &["s.properties[x].items: Required value: must be specified"]);
    check(field(json!({"x-kubernetes-int-or-string": true})), &[]);
    check(
        field(
            json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
        &[],
    );
    check(field(json!({"x-kubernetes-preserve-unknown-fields": true})), &[]);
    check(
        field(json!({"type": "text"})),
        &[
            "s.properties[x].type: Unsupported value: \"text\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ],
    );
}

#[test]
fn what_a_schema_may_not_say() {
    check(
        json!({"type": "object", "additionalProperties": {"type": "string"}}),
        &["s.additionalProperties: Forbidden: must not be used at the root"],
    );
    check(
        field(
            json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
        ),
        &[
            "s.properties[x].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ],
    );
    check(
        field(json!({"type": "string", "uniqueItems": true})),
        &[
            "s.properties[x].uniqueItems: Forbidden: uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ],
    );
    check(field(json!({"$ref": "x"})), &["s.properties[x].$ref: Forbidden: $ref is not supported"]);
    // Regular expressions are refused in Go's words.
    check(
        field(json!({"type": "string", "pattern": "+"})),
        &[
            "s.properties[x].pattern: Invalid value: \"+\": must be a valid regular expression, but isn't: error parsing regexp: missing argument to repetition operator: `+`",
        ],
    );
    check(
        field(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": false})),
        &[
            "s.properties[x].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
        ],
    );
    check(
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
        &[
            "s.properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ],
    );
    check(
        json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"name": {"type": "string", "pattern": "^a"}}}}}),
        &[],
    );
    check(
        json!({"type": "object", "properties": {"kind": {"type": "integer"}}}),
        &["s.properties[kind].type: Invalid value: \"integer\": must be string"],
    );
    check(
        field(json!({"type": "object", "x-kubernetes-embedded-resource": true})),
        &[
            "s.properties[x].properties: Required value: must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields",
        ],
    );
}

#[test]
fn nested_validation_only_restricts() {
    let string = json!({"type": "string"});
    check(
        field(
            json!({"type": "string", "anyOf": [{"type": "string"}, {"maxLength": 3, "description": "x", "default": "y", "nullable": true}]}),
        ),
        &[
            "s.properties[x].anyOf[0].type: Forbidden: must be empty to be structural",
            "s.properties[x].anyOf[1].default: Forbidden: must be undefined to be structural",
            "s.properties[x].anyOf[1].description: Forbidden: must be empty to be structural",
            "s.properties[x].anyOf[1].nullable: Forbidden: must be false to be structural",
        ],
    );
    check(
        json!({"type": "object", "properties": {"a": string}, "allOf": [{"properties": {"a": {"maxLength": 1}, "b": {"maxLength": 1}}}]}),
        &["s.properties[b]: Required value: because it is defined in s.allOf[0].properties[b]"],
    );
    check(
        json!({"type": "object", "properties": {"a": string}, "not": {"properties": {"metadata": {}}}}),
        &[
            "s.not.properties[metadata]: Forbidden: must not be specified in a nested context",
            "s.properties[metadata]: Required value: because it is defined in s.not.properties[metadata]",
        ],
    );
}

#[test]
fn lists_and_maps_say_how_they_are_merged() {
    let list = |more: Value, items: Value| {
        let mut schema = json!({"type": "array", "items": items});
        schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        field(schema)
    };
    let keyed = |keys: Value| json!({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": keys});
    let item = json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}, "b": {"type": "string", "default": "x"}, "c": {"type": "string"}}});
    check(list(keyed(json!(["a", "b"])), item.clone()), &[]);
    check(
        list(keyed(json!(["c"])), item.clone()),
        &[
            "s.properties[x].items.properties[c].default: Required value: this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property",
        ],
    );
    check(
        list(keyed(json!(["z"])), item.clone()),
        &[
            "s.properties[x].x-kubernetes-list-map-keys: Invalid value: [\"z\"]: entries must all be names of item properties",
        ],
    );
    check(
        list(json!({"x-kubernetes-list-type": "map"}), item.clone()),
        &[
            "s.properties[x].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ],
    );
    check(
        list(json!({"x-kubernetes-list-type": "bag"}), item.clone()),
        &[
            "s.properties[x].x-kubernetes-list-type: Unsupported value: \"bag\": supported values: \"atomic\", \"set\", \"map\"",
        ],
    );
    check(
        list(json!({"x-kubernetes-list-type": "set"}), item),
        &[
            "s.properties[x].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
        ],
    );
    check(
        field(json!({"type": "string", "x-kubernetes-list-type": "set", "x-kubernetes-map-type": "atomic"})),
        &[
            "s.properties[x].type: Invalid value: \"string\": must be object if x-kubernetes-map-type is specified",
            "s.properties[x].type: Invalid value: \"string\": must be array if x-kubernetes-list-type is specified",
        ],
    );
}

#[test]
fn defaults_must_fit() {
    check(field(json!({"type": "integer", "default": 1})), &[]);
    check(
        field(json!({"type": "integer", "default": "1"})),
        &["s.properties[x].default: Invalid value: \"string\":  in body must be of type integer: \"string\""],
    );
    check(
        field(
            json!({"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "default": {"a": 0, "b": 1}}),
        ),
        &[
            "s.properties[x].default: Invalid value: {\"a\":0,\"b\":1}: must not have unknown fields",
            "s.properties[x].default.a: Invalid value: 0: a in body should be greater than or equal to 1",
        ],
    );
    let rules = SchemaRules {
        no_defaults: Some("(field spec.preserveUnknownFields must be false)"),
        ..SchemaRules::default()
    };
    let errors =
        validate_schema(&builtin::catalog(), &field(json!({"type": "integer", "default": 1})), "s", rules);
    assert_eq!(
        texts(&errors),
        [
            "s.properties[x].default: Forbidden: must not be set (field spec.preserveUnknownFields must be false)",
        ]
    );
    check(
        json!({"type": "object", "properties": {"kind": {"type": "string", "default": "K"}}}),
        &["s.properties[kind].default: Forbidden: must not be set in top-level kind"],
    );
}

#[test]
fn the_root_says_little_beside_a_status_subresource() {
    let rules = SchemaRules { status: true, ..SchemaRules::default() };
    let errors = |schema: Value| texts(&validate_schema(&builtin::catalog(), &schema, "s", rules));
    assert!(errors(json!({"type": "object", "required": ["spec"], "nullable": false})).is_empty());
    let found = errors(json!({"type": "object", "not": {"required": ["a"]}}));
    assert!(
        found[0].starts_with("s: Invalid value: {")
            && found[0].contains("only [Description Type Format Title "),
        "{found:?}"
    );
}

#[test]
fn rules_have_a_form() {
    let rule = |rule: Value| json!({"type": "object", "properties": {"a": {"type": "string"}}, "x-kubernetes-validations": [rule]});
    check(
        rule(
            json!({"rule": "self.a != ''", "message": "m", "fieldPath": ".a", "reason": "FieldValueInvalid"}),
        ),
        &[],
    );
    check(
        rule(json!({"rule": " "})),
        &["s.x-kubernetes-validations[0].rule: Required value: rule is not specified"],
    );
    check(
        rule(json!({"rule": "a\nb"})),
        &[
            "s.x-kubernetes-validations[0].message: Required value: message must be specified if rule contains line breaks",
        ],
    );
    check(
        rule(json!({"rule": "a", "fieldPath": ".b", "reason": "Because"})),
        &[
            "s.x-kubernetes-validations[0].reason: Unsupported value: \"Because\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \"FieldValueInvalid\", \"FieldValueRequired\"",
            "s.x-kubernetes-validations[0].fieldPath: Invalid value: \".b\": must be a valid path",
        ],
    );
}

#[test]
fn columns_fields_and_scales() {
    let mut errors = Vec::new();
    validate_columns(
        &json!([{"name": "A", "type": "string", "jsonPath": ".spec.a"}, {"type": "text", "jsonPath": "a", "format": "x"}]),
        "c",
        &mut errors,
    );
    assert_eq!(
        texts(&errors),
        [
            "c[1].name: Required value",
            "c[1].type: Invalid value: \"text\": must be one of boolean,date,integer,number,string",
            "c[1].format: Invalid value: \"x\": must be one of byte,date,date-time,double,float,int32,int64,password",
            "c[1].JSONPath: Invalid value: \"a\": must be a simple json path starting with .",
        ]
    );
    let mut errors = Vec::new();
    validate_scale(
        &json!({"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".spec.x"}),
        "scale",
        &mut errors,
    );
    assert_eq!(
        texts(&errors),
        ["scale.statusReplicasPath: Invalid value: \".spec.x\": should be a json path under .status"]
    );
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"a": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}}}}}});
    let mut errors = Vec::new();
    let fields = json!([{"jsonPath": ".spec.a"}, {"jsonPath": ".spec.a"}, {"jsonPath": ".spec.b"}, {"jsonPath": ".spec.l"}, {"jsonPath": ".spec['a']"}]);
    validate_selectable_fields(&fields, &schema, "f", &mut errors);
    assert_eq!(
        texts(&errors),
        [
            "f[1].jsonPath: Duplicate value: \".spec.a\"",
            "f[2].jsonPath: Invalid value: \".spec.b\": is an invalid path: does not refer to a valid field",
            "f[3].jsonPath: Invalid value: \".spec.l\": must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.",
            "f[4].jsonPath: Invalid value: \".spec['a']\": is an invalid path: array notation is not allowed",
        ]
    );
}

/// Anything that JSON can say, with the keywords of schemas as names.
fn anything() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["", "object", "array", "string", "map", "set", "a", ".a", "^a+$", "("])
            .prop_map(Value::from),
    ];
    let names = vec![
        "type",
        "properties",
        "items",
        "additionalProperties",
        "default",
        "nullable",
        "required",
        "anyOf",
        "allOf",
        "not",
        "oneOf",
        "pattern",
        "format",
        "enum",
        "minimum",
        "multipleOf",
        "a",
        "metadata",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-int-or-string",
        "x-kubernetes-embedded-resource",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
        "rule",
        "fieldPath",
        "jsonPath",
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::btree_map(prop::sample::select(names.clone()), inner, 0..6)
                .prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn any_schema_is_read_or_refused(schema in anything(), object in anything()) {
        let catalog = builtin::catalog();
        let _ = validate_schema(&catalog, &schema, "s", SchemaRules { status: true, no_defaults: None });
        let mut errors = Vec::new();
        validate_columns(&schema, "c", &mut errors);
        validate_scale(&schema, "s", &mut errors);
        validate_selectable_fields(&object, &schema, "f", &mut errors);
        if let Ok(compiled) = Structural::compile(&schema) {
            let mut object = object;
            compiled.default_in(&mut object);
            let _ = compiled.coerce_metadata(&catalog, &mut object, false);
            let _ = compiled.coerce_metadata(&catalog, &mut object, true);
            compiled.prune(&mut object);
            compiled.validate(&object, Some(&schema), &mut errors);
            compiled.validate_lists(&object, &mut errors);
            compiled.validate_metadata(&catalog, &object, &mut errors);
        }
    }
}
