//! What compiling refuses, in cel-go's words and form. Expected results: cel-go's `parser/parser_test.go`,
//! `checker/checker_test.go` and `cel/validator_test.go`.

use kcel::{Decl, Env, Phase};

const OPERANDS: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}";

fn env() -> Env {
    let inner = Decl::object("object").field("name", Decl::string(), false);
    let root = Decl::object("object")
        .field("a", Decl::int(), true)
        .field("inner", inner, false)
        .field("list", Decl::list(Decl::string()), false)
        .named("selfType");
    Env::builder().variable("self", root).variable("any", Decl::dynamic()).build()
}

#[test]
fn errors_are_displayed_with_their_place() {
    let env = env();
    for (text, display) in [
        ("x + 1", "ERROR: <input>:1:1: undeclared reference to 'x' (in container '')\n | x + 1\n | ^"),
        (
            "1 +\n\t'a'",
            "ERROR: <input>:1:3: found no matching overload for '_+_' applied to '(int, string)'\n | 1 +\n | ..^",
        ),
        (
            "'é' == 1",
            "ERROR: <input>:1:5: found no matching overload for '_==_' applied to '(string, int)'\n | 'é' == 1\n | .\u{ff0e}..^",
        ),
    ] {
        assert_eq!(env.compile(text).unwrap_err().to_string(), display, "{text}");
    }
}

#[test]
fn syntax_errors() {
    let env = env();
    let operands = |how: &str, what: &str| format!("Syntax error: {how} input '{what}' expecting {OPERANDS}");
    for (text, place, message) in [
        ("1 +", (1, 4), operands("mismatched", "<EOF>")),
        ("", (1, 0), operands("mismatched", "<EOF>")),
        ("1 + + 2", (1, 5), operands("extraneous", "+")),
        ("1 1", (1, 3), "Syntax error: extraneous input '1' expecting <EOF>".to_owned()),
        ("1 1 1", (1, 3), "Syntax error: mismatched input '1' expecting <EOF>".to_owned()),
        ("(1", (1, 3), "Syntax error: mismatched input '<EOF>' expecting ')'".to_owned()),
        ("any.'x'", (1, 5), "Syntax error: no viable alternative at input '.'x''".to_owned()),
        ("any.true", (1, 5), "Syntax error: mismatched input 'true' expecting IDENTIFIER".to_owned()),
        (
            "x{.",
            (1, 3),
            "Syntax error: mismatched input '.' expecting {'}', ',', '?', IDENTIFIER, ESC_IDENTIFIER}"
                .to_owned(),
        ),
        ("1 # 2", (1, 3), "Syntax error: token recognition error at: '#'".to_owned()),
        ("a | b", (1, 3), "Syntax error: token recognition error at: '| '".to_owned()),
        ("'\\q'", (1, 1), "Syntax error: token recognition error at: ''\\q'".to_owned()),
        ("if", (1, 1), "reserved identifier: if".to_owned()),
        ("var(1)", (1, 1), "reserved identifier: var".to_owned()),
        ("99999999999999999999", (1, 1), "invalid int literal".to_owned()),
        ("99999999999999999999u", (1, 1), "invalid uint literal".to_owned()),
        ("1.99e90000009", (1, 1), "invalid double literal".to_owned()),
        ("'\\ud800'", (1, 1), "invalid unicode code point".to_owned()),
        ("any.`a`", (1, 5), "unsupported syntax: '`'".to_owned()),
    ] {
        let errors = env.compile(text).unwrap_err();
        let first = &errors.issues()[0];
        assert_eq!((first.line(), first.column()), place, "{text}");
        assert_eq!(first.message(), message, "{text}");
    }
}

#[test]
fn type_errors() {
    let env = env();
    for (text, message) in [
        ("self.b", "undefined field 'b'"),
        ("self.inner.x", "undefined field 'x'"),
        ("has(self.b)", "undefined field 'b'"),
        ("self.?b", "undefined field 'b'"),
        ("self.a.x", "type 'int' does not support field selection"),
        ("self.list.x", "type 'list(string)' does not support field selection"),
        ("self.a == 'x'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("self == 1", "found no matching overload for '_==_' applied to '(selfType, int)'"),
        (
            "self.inner == self",
            "found no matching overload for '_==_' applied to '(selfType.inner, selfType)'",
        ),
        ("self.list[0] > 1", "found no matching overload for '_>_' applied to '(string, int)'"),
        ("self.list.all(e, e + 1)", "found no matching overload for '_+_' applied to '(string, int)'"),
        ("self.list.all(e, e)", "expected type 'bool' but found 'string'"),
        ("1 && true", "expected type 'bool' but found 'int'"),
        ("true ? 1 : 'a'", "found no matching overload for '_?_:_' applied to '(bool, int, string)'"),
        ("nothing(1)", "undeclared reference to 'nothing' (in container '')"),
        ("'a'.nothing()", "undeclared reference to 'nothing' (in container '')"),
        ("'a'.size(1)", "found no matching overload for 'size' applied to 'string.(int)'"),
        ("size()", "found no matching overload for 'size' applied to '()'"),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        ("{'a': 1, 'b': 'c'}", "expected type 'int' but found 'string'"),
        ("{'a': 1, 2: 3}", "expected type 'string' but found 'int'"),
        ("Message{}", "undeclared reference to 'Message' (in container '')"),
        ("-'a'", "found no matching overload for '-_' applied to '(string)'"),
        ("1 in 2", "found no matching overload for '@in' applied to '(int, int)'"),
    ] {
        assert_eq!(env.compile(text).unwrap_err().issues()[0].message(), message, "{text}");
    }
}

#[test]
fn types_are_inferred() {
    let env = env();
    for (text, expected) in [
        ("self", "selfType"),
        ("self.inner", "selfType.inner"),
        ("self.list", "list(string)"),
        ("self.list.map(e, e.size())", "list(int)"),
        ("self.list.filter(e, true)", "list(string)"),
        ("self.?inner.?name", "optional_type(string)"),
        ("self.?inner.?name.orValue('x')", "string"),
        ("[]", "list(dyn)"),
        ("{}", "map(dyn, dyn)"),
        ("[[]] + [[1]]", "list(list(int))"),
        ("{'a': [1.5]}", "map(string, list(double))"),
        ("any", "dyn"),
        ("any + 1", "int"),
        ("any.x[0]", "dyn"),
        ("true ? any : 1", "dyn"),
        ("type(1)", "type(int)"),
        ("null", "null"),
        ("timestamp(0) - timestamp(0)", "duration"),
        ("{'a': 1}.transformList(k, v, k)", "list(string)"),
        ("[1].transformMap(i, v, 'x')", "map(int, string)"),
        ("optional.none()", "optional_type(dyn)"),
        ("[1, 2].sortBy(e, -e)", "list(int)"),
        ("ip('::1')", "net.IP"),
        ("quantity('1')", "kubernetes.Quantity"),
        ("url('/x').getQuery()", "map(string, list(string))"),
        ("format.named('x')", "optional_type(kubernetes.NamedFormat)"),
    ] {
        let program = env.compile(text).unwrap_or_else(|errors| panic!("{text}: {errors}"));
        assert_eq!(program.output_type().to_string(), expected, "{text}");
    }
}

/// What is found when a checked expression is made ready has no place (apiextensions `validation_test.go`).
#[test]
fn constants_that_can_not_be_computed() {
    let env = env();
    for (text, message) in [
        ("'x'.find(')')", "error parsing regexp: unexpected ): `)`"),
        ("int('x')", "type conversion error from 'string' to 'int'"),
    ] {
        let errors = env.compile(text).unwrap_err();
        assert_eq!(errors.phase(), Phase::Instantiation, "{text}");
        assert_eq!(errors.to_string(), message, "{text}");
    }
    assert_eq!(env.compile("1 +").unwrap_err().phase(), Phase::Compilation);
}

#[test]
fn limits_of_expressions() {
    let env = env();
    let parens = |depth: usize| "(".repeat(depth) + "1" + &")".repeat(depth);
    for (text, message) in [
        (parens(250), "expression recursion limit exceeded: 250"),
        ("any".to_owned() + &".x".repeat(251), "max recursion depth exceeded"),
        ("1".to_owned() + &" + 1".repeat(251), "max recursion depth exceeded"),
        (" ".repeat(100_001), "expression code point size exceeds limit: size: 100001, limit 100000"),
    ] {
        let errors = env.compile(&text).unwrap_err();
        assert_eq!(errors.to_string(), format!("ERROR: <input>:-1:0: {message}"));
    }
    assert!(env.compile(&parens(249)).is_ok());
    assert!(
        env.compile(&("true".to_owned() + &" && true".repeat(2000))).is_ok(),
        "chains of logic stay shallow"
    );
    let many = vec!["x"; 150].join(" + ");
    let shown = env.compile(&many).unwrap_err();
    assert_eq!(shown.issues().len(), kcel::ERRORS_MAX);
    assert!(shown.to_string().ends_with("50 more errors were truncated"));
}
