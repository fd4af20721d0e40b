//! Whatever the text and the data are: an answer, no panic.

use kcel::{Bindings, Decl, Env, Feature, ListKind, escape, unescape};
use proptest::prelude::*;

fn env() -> Env {
    let item = Decl::object("object").field("name", Decl::string().max_length(5), true);
    let root = Decl::object("object")
        .field("a", Decl::int(), true)
        .field("s", Decl::string(), false)
        .field("when", Decl::date_time().nullable(true), false)
        .field("items", Decl::list(item).list_kind(ListKind::Map(vec!["name".to_owned()])), false)
        .field("map", Decl::map(Decl::int_or_string()), false)
        .named("selfType");
    Env::builder()
        .variable("self", root.clone())
        .variable("oldSelf", root)
        .variable("any", Decl::dynamic())
        .with(Feature::Bindings)
        .with(Feature::Mutation)
        .build()
}

/// Compiles and evaluates `text` and uses everything that a program offers.
fn run(env: &Env, text: &str, data: &serde_json::Value) {
    match env.compile(text) {
        Err(errors) => {
            assert!(!errors.to_string().is_empty());
            assert!(!errors.issues().is_empty());
        }
        Ok(program) => {
            let estimate = program.estimate();
            assert!(estimate.min <= estimate.max, "{text}: {estimate:?}");
            let bindings = Bindings::new().json("self", data).json("oldSelf", data).json("any", data);
            let outcome = program.eval(&bindings, 100_000);
            if let Ok(value) = outcome.result {
                let _ = value.to_json();
            }
        }
    }
}

/// Words that make up expressions, so that random sequences of them often nearly are one.
const WORDS: &[&str] = &[
    "self",
    "oldSelf",
    "any",
    ".",
    "a",
    "s",
    "items",
    "map",
    "name",
    "when",
    "x",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "?",
    "&&",
    "||",
    "!",
    "-",
    "+",
    "*",
    "/",
    "%",
    "==",
    "!=",
    "<",
    ">=",
    "in",
    "1",
    "2.5",
    "3u",
    "'t'",
    "b'x'",
    "null",
    "true",
    "has",
    "all(x, ",
    "exists(x, ",
    "map(x, ",
    "filter(x, ",
    ".size()",
    "type(",
    "int(",
    "string(",
    "duration('1h')",
    "timestamp('2020-01-01T00:00:00Z')",
    "matches('a+')",
    "cel.bind(x, ",
    "?.",
    "[?",
    ".?",
    "optional.of(",
    ".value()",
    ".orValue(",
    "quantity('1Gi')",
    "ip('10.0.0.1')",
    "JSONPatch{op: ",
    "Object{",
    ".format([",
    "sets.contains(",
    ".sum()",
    ".sort()",
    "lists.range(3)",
    "transformMap(i, x, ",
    "r'\\d'",
    "'''",
    "\"",
    "//",
    "\n",
    "é",
    "9223372036854775807",
    "-9223372036854775808",
    "1e308",
    "0x7f",
];

fn sentence() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(WORDS), 0..24).prop_map(|words| words.concat())
}

/// Expressions that are well-formed by construction.
fn expression() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "self.a",
        "self.s",
        "self.items",
        "self.map",
        "self.when",
        "any",
        "any.x",
        "1",
        "2u",
        "1.5",
        "'text'",
        "b'b'",
        "null",
        "true",
        "[1, 2]",
        "{'k': 1}",
        "duration('1h')",
        "timestamp('2020-01-01T00:00:00Z')",
        "oldSelf.a",
    ]);
    let leaf = leaf.prop_map(str::to_owned);
    leaf.prop_recursive(4, 40, 3, |inner| {
        let pair = (inner.clone(), inner.clone());
        let operators = vec!["+", "-", "*", "/", "%", "==", "!=", "<", "<=", "&&", "||", "in"];
        let calls = vec!["size", "string", "int", "double", "type", "dyn", "optional.of"];
        let members = vec![
            "size()",
            "all(e, e == e)",
            "map(e, [e])",
            "exists(e, e != null)",
            "filter(e, true)",
            "sum()",
            "max()",
            "sort()",
            "distinct()",
            "trim()",
            "split('')",
            "upperAscii()",
            "format([1])",
            "x",
            "?x",
            "matches('(a|b)*')",
        ];
        prop_oneof![
            (pair.clone(), prop::sample::select(operators))
                .prop_map(|((left, right), operator)| format!("({left} {operator} {right})")),
            (inner.clone(), prop::sample::select(calls)).prop_map(|(of, call)| format!("{call}(dyn({of}))")),
            (inner.clone(), prop::sample::select(members))
                .prop_map(|(of, member)| format!("dyn({of}).{member}")),
            pair.clone().prop_map(|(of, index)| format!("dyn({of})[dyn({index})]")),
            pair.clone().prop_map(|(of, index)| format!("dyn({of})[?dyn({index})]")),
            (pair, inner).prop_map(|((when, yes), no)| format!("(dyn({when}) ? dyn({yes}) : dyn({no}))")),
        ]
    })
}

fn data() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<u64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        "[a-z0-9:TZ.-]{0,8}".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let names = prop::sample::select(vec!["a", "s", "when", "items", "map", "name", "x"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            prop::collection::btree_map(names, inner, 0..5).prop_map(|fields| {
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_compiled_or_refused(text in ".{0,60}") {
        run(&env(), &text, &serde_json::json!({"a": 1}));
    }

    #[test]
    fn any_sequence_of_words_is_compiled_or_refused(text in sentence(), data in data()) {
        run(&env(), &text, &data);
    }

    #[test]
    fn any_expression_has_a_value_or_an_error(text in expression(), data in data()) {
        run(&env(), &text, &data);
    }

    #[test]
    fn any_pattern_is_compiled_or_refused(pattern in "[a-c.*+?(){}\\[\\]|^$\\\\dDwWsSbBQEpP:,0-9&~-]{0,12}") {
        run(&env(), &format!("self.s.matches(r'''{pattern}''')"), &serde_json::json!({"a": 1, "s": "abc 1"}));
    }

    #[test]
    fn what_is_escaped_is_unescaped_to_the_same(name in "[a-z_./-]{1,12}") {
        let escaped = escape(&name).map(|escaped| unescape(&escaped).map(|name| name.into_owned()));
        if let Some(unescaped) = escaped {
            prop_assert_eq!(unescaped, Some(name));
        }
    }
}

/// Nesting is refused before it could exhaust the stack, and what is accepted can be evaluated.
#[test]
fn deep_nesting_is_refused_or_evaluated() {
    let env = env();
    let data = serde_json::json!({"a": 1});
    for depth in [1, 50, 100, 240, 249, 260, 5000, 30_000] {
        for (open, middle, close) in [
            ("(", "1", ")"),
            ("[", "1", "]"),
            ("!(", "true", ")"),
            ("-(", "1", ")"),
            ("1 + ", "1", ""),
            ("true ? 1 : ", "1", ""),
            ("[1].map(x, ", "1", ")"),
            ("[1].all(x, ", "true", ")"),
            ("{'k': ", "1", "}"),
            ("dyn(", "1", ")"),
        ] {
            run(&env, &format!("{}{middle}{}", open.repeat(depth), close.repeat(depth)), &data);
        }
        for link in [".x", "[0]", ".size()", " + 1", " && true", " == any"] {
            run(&env, &format!("any{}", link.repeat(depth)), &data);
        }
    }
}
