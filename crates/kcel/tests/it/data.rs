//! Declared data. Expected results: upstream's tests of custom resources' rules
//! (apiextensions-apiserver `pkg/apiserver/schema/cel/validation_test.go`, apiserver `pkg/cel/common/values_test.go`).

use std::sync::Arc;

use kcel::{Bindings, Decl, Env, ListKind, Value};
use serde_json::{Value as Json, json};

fn object() -> Decl {
    Decl::object("object")
}

fn pair(name: &str, of: &Decl) -> Decl {
    object().field(&format!("{name}1"), of.clone(), false).field(&format!("{name}2"), of.clone(), false)
}

/// Evaluates rules over `self`; the answer is a bool, a value or an error's message.
fn check(decl: Decl, data: &Json, cases: &[(&str, &str)]) {
    let env = Env::builder().variable("self", decl.named("selfType")).build();
    for (text, expected) in cases {
        let bindings = Bindings::new().json("self", data);
        assert_eq!(super::language::answer(&env, text, &bindings), *expected, "{text}");
    }
}

#[test]
fn scalars_are_read_as_declared() {
    let decl = object()
        .field("int", Decl::int(), false)
        .field("number", Decl::double(), false)
        .field("whole", Decl::double(), false)
        .field("bytes", Decl::bytes(), false)
        .field("duration", Decl::duration(), false)
        .field("date", Decl::date(), false)
        .field("time", Decl::date_time(), false)
        .field("text", Decl::string(), false)
        .field("flag", Decl::bool(), false);
    let data = json!({
        "int": i64::MAX, "number": 1.5, "whole": 1, "bytes": "QUI=", "duration": "1h2m3s4ms", "date": "1997-07-16",
        "time": "2011-08-18T19:03:37.010000000+01:00", "text": "Rook takes 👑", "flag": true
    });
    check(
        decl,
        &data,
        &[
            ("self.int + 1", "integer overflow"),
            ("type(self.whole) == double && self.whole == 1.0", "true"),
            ("self.bytes == b'AB' && size(self.bytes) == 2", "true"),
            ("self.duration == duration('1h2m') + duration('3s4ms')", "true"),
            ("self.duration.getHours()", "1"),
            ("self.date == timestamp('1997-07-16T00:00:00.000Z')", "true"),
            ("self.time == timestamp('2011-08-18T00:00:00.000+01:00') + duration('19h3m37s10ms')", "true"),
            ("self.time.getDate('01:00')", "18"),
            ("size(self.text)", "12"),
            ("type(self.flag) == bool", "true"),
            ("double(self.int) > self.number", "true"),
            ("type(self) == map", "true"),
        ],
    );
}

#[test]
fn data_of_another_form_is_an_error() {
    let decl = object()
        .field("int", Decl::int(), false)
        .field("number", Decl::double(), false)
        .field("text", Decl::string(), false)
        .field("list", Decl::list(Decl::int()), false)
        .field("map", Decl::map(Decl::int()), false)
        .field("either", Decl::int_or_string(), false)
        .field("bytes", Decl::bytes(), false)
        .field("time", Decl::date_time(), false);
    let data = json!({
        "int": "x", "number": "x", "text": 1, "list": {}, "map": [], "either": 1.5, "bytes": "!", "time": "x"
    });
    check(
        decl,
        &data,
        &[
            ("self.int", "invalid data, expected int, got string"),
            ("self.number", "invalid data, expected float, got string"),
            ("self.text", "invalid data, expected string, got int64"),
            ("self.list", "invalid data, expected an array for the provided schema with type=array"),
            ("self.map", "invalid data, expected a map for the provided schema with type=object"),
            ("self.either", "invalid data, expected XIntOrString value to be either a string or integer"),
            ("self.bytes.size() == 0 || true", "true"),
            ("has(self.time)", "Invalid date-time formatted string x: cannot parse"),
        ],
    );
}

#[test]
fn int_or_string_is_told_apart_by_its_type() {
    let decl = object().field("min", Decl::int_or_string(), true).field("left", Decl::int(), true);
    let rule = "type(self.min) == int ? self.left <= self.min : double(self.left) / 10.0 >= double(self.min.replace('%', '')) / 100.0";
    check(
        decl.clone(),
        &json!({"min": "80%", "left": 8}),
        &[(rule, "true"), ("type(self.min) == string", "true")],
    );
    check(decl, &json!({"min": 5, "left": 8}), &[(rule, "false"), ("self.min == 5", "true")]);
}

#[test]
fn absent_and_null_fields() {
    let decl = object()
        .field("set", Decl::string(), false)
        .field("unset", Decl::string(), false)
        .field("nullable", Decl::string().nullable(true), false)
        .field("empty", Decl::string().nullable(true), false)
        .field("map", Decl::map(Decl::string().nullable(true)), false)
        .field("list", Decl::list(Decl::string().nullable(true)), false)
        .field("strict", Decl::list(Decl::string()), false);
    let data = json!({
        "set": "x", "nullable": "y", "empty": null, "map": {"a": null}, "list": [null, "x"], "strict": [null]
    });
    check(
        decl,
        &data,
        &[
            ("has(self.set) && self.set == 'x'", "true"),
            ("has(self.unset)", "false"),
            ("self.unset", "no such key: unset"),
            ("has(self.nullable) && self.nullable == 'y'", "true"),
            ("has(self.empty)", "false"),
            ("self.empty", "no such key: empty"),
            ("type(self.map['a']) == null_type", "true"),
            ("size(self.map)", "1"),
            ("self.list.all(e, type(e) == null_type || e == 'x')", "true"),
            ("self.strict[0]", "invalid data, got null for schema with nullable=false"),
            ("self.?unset.orValue('other')", "\"other\""),
            ("self.?empty.hasValue()", "false"),
        ],
    );
}

#[test]
fn names_are_escaped() {
    let mut decl = object();
    let mut data = json!({});
    for name in ["namespace", "if", "x-prop", "a.b", "c/d", "redact__d", "true", "_plain", "9no"] {
        decl = decl.field(name, Decl::string(), false);
        data[name] = name.into();
    }
    check(
        decl,
        &data,
        &[
            ("self.__namespace__", "\"namespace\""),
            ("self.namespace", "\"namespace\""),
            ("has(self.if) && self.__if__ == 'if'", "true"),
            ("self.x__dash__prop", "\"x-prop\""),
            ("self.a__dot__b", "\"a.b\""),
            ("self.c__slash__d", "\"c/d\""),
            ("self.redact__underscores__d", "\"redact__d\""),
            ("self.__true__", "\"true\""),
            ("self._plain", "\"_plain\""),
            ("self.redact__d", "undefined field 'redact__d'"),
        ],
    );
}

#[test]
fn sets_and_map_lists_have_no_order() {
    let item = object().field("k", Decl::string(), true).field("v", Decl::string(), false);
    let set = Decl::list(Decl::string()).list_kind(ListKind::Set);
    let keyed = Decl::list(item.clone()).list_kind(ListKind::Map(vec!["k".to_owned()]));
    let plain = Decl::list(Decl::string());
    let decl = object().field("sets", pair("s", &set), true).field("keyed", Decl::list(keyed), true).field(
        "plain",
        pair("p", &plain),
        true,
    );
    let data = json!({
        "sets": {"s1": ["a", "b"], "s2": ["b", "a"]},
        "keyed": [[{"k": "x", "v": "1"}, {"k": "y", "v": "2"}], [{"k": "y", "v": "2"}, {"k": "x", "v": "1"}]],
        "plain": {"p1": ["a", "b"], "p2": ["b", "a"]}
    });
    check(
        decl,
        &data,
        &[
            ("self.sets.s1 == self.sets.s2", "true"),
            ("self.sets.s1 == ['b', 'a']", "true"),
            ("self.sets.s1 + ['b', 'c']", r#"["a","b","c"]"#),
            ("(self.sets.s1 + ['c']) == ['c', 'b', 'a']", "true"),
            ("self.keyed[0] == self.keyed[1]", "true"),
            ("(self.keyed[0] + self.keyed[1]).size()", "2"),
            ("self.keyed[0].filter(e, e.k == 'x')[0].v", "\"1\""),
            ("self.plain.p1 == self.plain.p2", "false"),
            ("self.plain.p1 + self.plain.p2", r#"["a","b","b","a"]"#),
            ("self.sets.s1.exists_one(e, e == 'a')", "true"),
        ],
    );
}

#[test]
fn objects_and_maps_are_compared() {
    let inner = object().field("a", Decl::int(), false).field("b", Decl::string().nullable(true), false);
    let decl = object().field("o", Decl::list(inner), true).field("m", Decl::map(Decl::int()), true);
    let data = json!({
        "o": [{"a": 1, "b": null}, {"a": 1, "b": null}, {"a": 2}], "m": {"x": 1, "y": 2}
    });
    check(
        decl,
        &data,
        &[
            ("self.o[0] == self.o[1]", "true"),
            ("self.o[0] == self.o[2]", "false"),
            ("self.o[0] in self.o", "true"),
            ("self.m == {'y': 2, 'x': 1}", "true"),
            ("self.m != {'y': 2}", "true"),
            ("self.m.all(k, self.m[k] > 0)", "true"),
            ("self.m.x + self.m['y']", "3"),
            ("'x' in self.m && !('z' in self.m)", "true"),
            ("self.m.z", "no such key: z"),
            ("self.m.transformList(k, v, k + string(v))", r#"["x1","y2"]"#),
            ("self.o[0].a in self.m.map(k, self.m[k])", "true"),
        ],
    );
}

/// The data of an update: before the first version there is none.
#[test]
fn old_values_may_be_absent() {
    let decl = Arc::new(object().field("n", Decl::int(), true).named("selfType"));
    let plain = Env::builder().variable("self", decl.clone()).variable("oldSelf", decl.clone()).build();
    let (new, old) = (json!({"n": 2}), json!({"n": 1}));
    let program = plain.compile("self.n > oldSelf.n && self != oldSelf").unwrap();
    assert!(program.uses("oldSelf") && program.uses("self"));
    assert!(!plain.compile("self.n > 0").unwrap().uses("oldSelf"));
    let bindings = Bindings::new().json("self", &new).json("oldSelf", &old);
    assert_eq!(program.eval(&bindings, 1000).result.unwrap().as_bool(), Some(true));
    let alone = Bindings::new().json("self", &new);
    assert_eq!(program.eval(&alone, 1000).result.unwrap_err().to_string(), "no such attribute(s): oldSelf");

    let optional = Env::builder().variable("self", decl.clone()).optional_variable("oldSelf", &decl).build();
    let program = optional.compile("!oldSelf.hasValue() || self.n >= oldSelf.value().n").unwrap();
    for (old, expected) in [(json!(null), true), (json!({"n": 1}), true), (json!({"n": 3}), false)] {
        let bindings = Bindings::new().json("self", &new).json("oldSelf", &old);
        assert_eq!(program.eval(&bindings, 1000).result.unwrap().as_bool(), Some(expected), "{old}");
    }
    let absent = Bindings::new().json("self", &new).with("oldSelf", Value::optional(None));
    assert_eq!(program.eval(&absent, 1000).result.unwrap().as_bool(), Some(true));
}

/// Programs and environments are shared by the threads of a server.
#[test]
fn programs_are_shared() {
    fn shared<T: Send + Sync>() {}
    shared::<kcel::Program>();
    shared::<Env>();
    shared::<kcel::CompileErrors>();
}
