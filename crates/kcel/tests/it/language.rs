//! The language itself. Expected results: the conformance files of the CEL specification
//! (cel-spec, `tests/simple/testdata/*.textproto`), each function names its files.

use kcel::{Bindings, Decl, Env, Feature};

/// The value as JSON (types and uints as text), or the error's message.
pub(crate) fn answer(env: &Env, text: &str, bindings: &Bindings<'_>) -> String {
    let program = match env.compile(text) {
        Ok(program) => program,
        Err(errors) => return errors.issues()[0].message().to_owned(),
    };
    match program.eval(bindings, 1_000_000).result {
        Ok(kcel::Value::Type(name)) => format!("type {}", &*name),
        Ok(kcel::Value::Uint(number)) => format!("{number}u"),
        Ok(value) => value.to_json().map_or_else(|error| error.to_string(), |value| value.to_string()),
        Err(error) => error.to_string(),
    }
}

/// Checks a table of expressions and answers.
pub(crate) fn check(cases: &[(&str, &str)]) {
    let env = Env::builder().with(Feature::Bindings).variable("any", Decl::dynamic()).build();
    let data = serde_json::json!({"a": 1, "b": [1, 2], "c": {"d": "e"}});
    for (text, expected) in cases {
        assert_eq!(answer(&env, text, &Bindings::new().json("any", &data)), *expected, "{text}");
    }
}

#[test]
fn literals_are_read() {
    // parse.textproto, basic.textproto
    check(&[
        ("42", "42"),
        ("0x55555555", "1431655765"),
        ("-0x7fffffffffffffff", "-9223372036854775807"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775808", "invalid int literal"),
        ("18446744073709551615u", "18446744073709551615u"),
        ("0xFu", "15u"),
        ("-2.3e+1", "-23.0"),
        (".5", "0.5"),
        ("\"\"", "\"\""),
        ("'a\\nb'", "\"a\\nb\""),
        ("r'a\\nb'", "\"a\\\\nb\""),
        ("'''a'b'''", "\"a'b\""),
        ("'\\u00e9\\x41\\101\\U0001F62C'", "\"éAA😬\""),
        ("b'abc'", "\"YWJj\""),
        ("b'\\377' == b'\\xff'", "true"),
        ("b'ÿ' == b'\\303\\277'", "true"),
        ("null", "null"),
        ("[1, 2,]", "[1,2]"),
        ("{'a': 1, 'b': 2,}", "{\"a\":1,\"b\":2}"),
        ("1 // a comment", "1"),
        ("--1", "1"),
        ("!!true", "true"),
        ("- 1", "-1"),
    ]);
}

#[test]
fn operators_have_their_precedence() {
    // parse.textproto, logic.textproto
    check(&[
        ("1 + 2 * 3", "7"),
        ("2 * 3 + 1", "7"),
        ("10 - 3 - 2", "5"),
        ("100 / 10 / 5", "2"),
        ("1 < 2 == true", "true"),
        ("false && true || true", "true"),
        ("true || true && false", "true"),
        ("false ? 1 : true ? 2 : 3", "2"),
        ("-[-1][0]", "1"),
        ("!false && false", "false"),
        ("1 in [1] == true", "true"),
    ]);
}

#[test]
fn arithmetic_is_checked() {
    // integer_math.textproto, fp_math.textproto
    check(&[
        ("9223372036854775807 + 1", "integer overflow"),
        ("-9223372036854775808 - 1", "integer overflow"),
        ("5000000000 * 5000000000", "integer overflow"),
        ("-(-9223372036854775808)", "integer overflow"),
        ("(-9223372036854775808) / -1", "integer overflow"),
        ("0u - 1u", "unsigned integer overflow"),
        ("18446744073709551615u + 1u", "unsigned integer overflow"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "modulus by zero"),
        ("1u / 0u", "division by zero"),
        ("-11 / 3", "-3"),
        ("-5 % 3", "-2"),
        ("43u % 5u", "3u"),
        ("1.5 / 0.5", "3.0"),
        ("15.75 / 0.0 == 1.0 / 0.0", "true"),
        ("0.1 + 0.2 == 0.3", "false"),
        ("[1] + [2, 3]", "[1,2,3]"),
        ("'a' + 'b'", "\"ab\""),
        ("b'a' + b'b' == b'ab'", "true"),
    ]);
}

#[test]
fn logic_absorbs_errors() {
    // logic.textproto
    check(&[
        ("true || 1 / 0 > 1", "true"),
        ("1 / 0 > 1 || true", "true"),
        ("false && 1 / 0 > 1", "false"),
        ("1 / 0 > 1 && false", "false"),
        ("1 / 0 > 1 && true", "division by zero"),
        ("false || 1 / 0 > 1", "division by zero"),
        ("1 / 0 > 1 || 1 % 0 > 1", "division by zero"),
        ("dyn('x') && true", "no such overload"),
        ("dyn('x') && false", "false"),
        ("dyn(1) ? 1 : 2", "no such overload"),
        ("false ? 1 / 0 : 3", "3"),
        ("!dyn(0)", "no such overload"),
    ]);
}

#[test]
fn values_are_compared_across_numeric_types() {
    // comparisons.textproto
    check(&[
        ("dyn(1) == 1u", "true"),
        ("dyn(1) == 1.0", "true"),
        ("dyn(1) == '1'", "false"),
        ("1 == 1u", "found no matching overload for '_==_' applied to '(int, uint)'"),
        ("1 < 1.1", "true"),
        ("1 < 2u", "true"),
        ("9223372036854775807 < 9223372036854775808.0", "false"),
        ("-1 < 0u", "true"),
        ("1u > -1", "true"),
        ("18446744073709551615u > 9223372036854775807", "true"),
        ("'a' < 'b'", "true"),
        ("b'a' < b'b'", "true"),
        ("false < true", "true"),
        ("dyn(double('NaN')) == dyn(double('NaN'))", "false"),
        ("double('NaN') < 1.0", "NaN values cannot be ordered"),
        ("[1, 2] == [1, 2]", "true"),
        ("[1, 2] == [2, 1]", "false"),
        ("dyn([1.0]) == dyn([1])", "true"),
        ("{'a': 1} == {'a': 1}", "true"),
        ("dyn({1: 'a'}) == dyn({1u: 'a'})", "true"),
        ("null == null", "true"),
        ("dyn(null) == 1", "false"),
        ("type(1) == int", "true"),
        ("type(type(1)) == type", "true"),
        ("type(1) == type(1u)", "false"),
        ("timestamp('2020-01-01T00:00:00+01:00') == timestamp('2019-12-31T23:00:00Z')", "true"),
    ]);
}

#[test]
fn conversions_are_checked() {
    // conversions.textproto
    check(&[
        ("int('42')", "42"),
        ("int('0x2a')", "type conversion error from 'string' to 'int'"),
        ("int(1.9)", "1"),
        ("int(-1.9)", "-1"),
        ("int(1e99)", "integer overflow"),
        ("int(18446744073709551615u)", "integer overflow"),
        ("int(timestamp('2009-02-13T23:31:30Z'))", "1234567890"),
        ("int(duration('1s'))", "1000000000"),
        ("uint(-1)", "unsigned integer overflow"),
        ("uint(3.99)", "3u"),
        ("double('1e3')", "1000.0"),
        ("double(9223372036854775807)", "9.223372036854776e+18"),
        ("string(1.5)", "\"1.5\""),
        ("string(123456789.0)", "\"1.23456789e+08\""),
        ("string(0.00001)", "\"1e-05\""),
        ("string(true)", "\"true\""),
        ("string(b'caf\\303\\251')", "\"café\""),
        ("string(b'\\xff')", "invalid UTF-8 in bytes, cannot convert to string"),
        ("string(duration('1m1ms'))", "\"60.001s\""),
        ("string(timestamp('2009-02-13T23:31:30.5+02:00'))", "\"2009-02-13T23:31:30.5+02:00\""),
        ("string(timestamp('9999-12-31T23:59:59.999999999Z'))", "\"9999-12-31T23:59:59.999999999Z\""),
        ("bytes('a')", "\"YQ==\""),
        ("bool('t')", "true"),
        ("bool('yes')", "type conversion error from 'string' to 'bool'"),
        ("dyn(1)", "1"),
        ("type(1.0)", "type double"),
        ("type(null)", "type null_type"),
        ("type({})", "type map"),
        ("type(timestamp(0))", "type google.protobuf.Timestamp"),
        ("type(optional.none())", "type optional_type"),
    ]);
}

#[test]
fn collections_are_indexed() {
    // lists.textproto, fields.textproto
    check(&[
        ("[7, 8, 9][1]", "8"),
        ("[7, 8, 9][dyn(1u)]", "8"),
        ("[7, 8, 9][dyn(1.0)]", "8"),
        ("[7, 8, 9][dyn(0.1)]", "unsupported index type 'double' in list"),
        ("[7][1]", "index out of bounds: 1"),
        ("[7][-1]", "index out of bounds: -1"),
        ("{'a': 1}['b']", "no such key: b"),
        ("{'a': 1}.a", "1"),
        ("{'a': 1}.b", "no such key: b"),
        ("{1: 'x'}[dyn(1.0)]", "\"x\""),
        ("{true: 'x'}[true]", "\"x\""),
        ("2 in [1, 2]", "true"),
        ("2 in []", "false"),
        ("dyn(2.0) in [1, 2]", "true"),
        ("'a' in {'a': 1}", "true"),
        ("size([1, 2]) + [1].size()", "3"),
        ("size({'a': 1})", "1"),
        ("size('☃é')", "2"),
        ("size(b'\\xff\\x00')", "2"),
        ("has({'a': 1}.a)", "true"),
        ("has({'a': 1}.b)", "false"),
        ("any.c.d", "\"e\""),
        ("any.b[1]", "2"),
        ("any.x", "no such key: x"),
        ("any.a.x", "no such key: x"),
        ("has(any.c.x)", "false"),
        ("has(any.x.y)", "no such key: x"),
        ("any['a']", "1"),
    ]);
}

#[test]
fn comprehensions_fold() {
    // macros.textproto, macros2.textproto, bindings_ext.textproto
    check(&[
        ("[1, 2, 3].all(e, e > 0)", "true"),
        ("[1, 2, 3].all(e, e > 1)", "false"),
        ("[].all(e, e > 1)", "true"),
        ("[1, 0].all(e, 1 / e > 5)", "false"),
        ("[0, 1].all(e, 1 / e > 0)", "division by zero"),
        ("[1, 2].exists(e, e == 2)", "true"),
        ("[0, 1].exists(e, 1 / e == 1)", "true"),
        ("[1, 2, 2].exists_one(e, e == 2)", "false"),
        ("[1, 2].existsOne(e, e == 2)", "true"),
        ("{'a': 1, 'b': 2}.all(k, k < 'c')", "true"),
        ("[1, 2, 3].map(e, e * e)", "[1,4,9]"),
        ("[1, 2, 3].map(e, e > 1, e * e)", "[4,9]"),
        ("[1, 2, 3].filter(e, e % 2 == 1)", "[1,3]"),
        ("{'x': 1, 'y': 2}.filter(k, k == 'y')", "[\"y\"]"),
        ("['a', 'b'].map(e, [e].map(f, f + e))", "[[\"aa\"],[\"bb\"]]"),
        ("[[1, 2], [3]].exists(l, l.exists(e, e == 3))", "true"),
        ("[0, 1].map(e, 1 / e)", "division by zero"),
        (
            "1.all(e, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("[1].all(1, true)", "argument must be a simple name"),
        ("[1].map(1, true)", "argument is not an identifier"),
        ("[1].all(__result__, true)", "iteration variable overwrites accumulator variable"),
        ("has(1)", "invalid argument to has() macro"),
        ("[10, 20].all(i, v, v == (i + 1) * 10)", "true"),
        ("{'a': 1}.exists(k, v, k == 'a' && v == 1)", "true"),
        ("[1, 2].existsOne(i, v, v > 1)", "true"),
        ("[1, 2].all(i, i, true)", "duplicate variable name: i"),
        ("[1, 2, 3].transformList(i, v, i * v)", "[0,2,6]"),
        ("[1, 2, 3].transformList(i, v, v > 1, i * v)", "[2,6]"),
        ("{'a': 1}.transformMap(k, v, v + 1)", "{\"a\":2}"),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v + 1)", "{\"b\":3}"),
        ("{'a': 'b'}.transformMapEntry(k, v, {v: k})", "{\"b\":\"a\"}"),
        ("{'a': 'x', 'b': 'x'}.transformMapEntry(k, v, {v: k})", "insert failed: key x already exists"),
        ("cel.bind(t, 'a', t + t)", "\"aa\""),
        ("cel.bind(t, 1 / 0, true)", "true"),
        ("cel.bind(1, 1, 1)", "cel.bind() variable names must be simple identifiers"),
        ("[1, 2].map(any, any + 1)", "[2,3]"),
        ("[1, 2].map(any, .any.a)", "[1,1]"),
    ]);
}

#[test]
fn optionals_are_chained() {
    // optionals.textproto
    check(&[
        ("{'a': 1}.?a.hasValue()", "true"),
        ("{'a': 1}.?b.hasValue()", "false"),
        ("{'a': {'b': 1}}.?a.b.value()", "1"),
        ("{'a': {'b': 1}}.?a.c.orValue(5)", "5"),
        ("{'a': 1}[?'b'].orValue(2)", "2"),
        ("[1, 2][?1].value()", "2"),
        ("[1, 2][?2].hasValue()", "false"),
        ("optional.none().value()", "optional.none() dereference"),
        ("optional.of(1).or(optional.of(2)).value()", "1"),
        ("optional.none().or(optional.of(2)).value()", "2"),
        ("optional.none().orValue(1 / 0)", "division by zero"),
        ("optional.of(1).orValue(1 / 0)", "1"),
        ("optional.ofNonZeroValue('').hasValue()", "false"),
        ("optional.ofNonZeroValue('a').hasValue()", "true"),
        ("{'a': 1}.?a.optMap(v, v + 1).value()", "2"),
        ("{'a': 1}.?b.optMap(v, v + 1).hasValue()", "false"),
        ("{'a': {'b': 1}}.?a.optFlatMap(v, v.?b).value()", "1"),
        ("optional.of(1).optMap(1, 1)", "optMap() variable name must be a simple identifier"),
        ("[?optional.of(1), ?optional.none(), 3]", "[1,3]"),
        ("{?'a': optional.of(1), ?'b': optional.none()}", "{\"a\":1}"),
        ("[?1]", "expected type 'optional_type(int)' but found 'int'"),
        ("optional.of(1) == optional.of(1)", "true"),
        ("optional.none() == optional.none()", "true"),
        ("has({'a': {'b': 1}}.?a.b)", "true"),
        ("optional.unwrap([optional.of(1), optional.none()])", "[1]"),
        ("[1, 2].first().value() + [1, 2].last().value()", "3"),
        ("[].first().hasValue()", "false"),
        ("any.?c.?d.orValue('')", "\"e\""),
        ("any.?x.?y.orValue('')", "\"\""),
    ]);
}

#[test]
fn times_are_taken_apart() {
    // timestamps.textproto
    check(&[
        ("timestamp('2009-02-13T23:31:30Z').getFullYear()", "2009"),
        ("timestamp('2009-02-13T23:31:30Z').getMonth()", "1"),
        ("timestamp('2009-02-13T23:31:30Z').getDate()", "13"),
        ("timestamp('2009-02-13T23:31:30Z').getDayOfMonth()", "12"),
        ("timestamp('2009-02-13T23:31:30Z').getDayOfWeek()", "5"),
        ("timestamp('2009-02-13T23:31:30Z').getDayOfYear()", "43"),
        ("timestamp('2009-02-13T23:31:30Z').getHours('02:00')", "1"),
        ("timestamp('2009-02-13T02:00:00Z').getDayOfMonth('-02:30')", "11"),
        ("timestamp('2009-02-13T23:31:20.123456789Z').getMilliseconds()", "123"),
        ("timestamp('2009-02-13T23:31:30Z').getHours('x:00')", "strconv.Atoi: parsing \"x\": invalid syntax"),
        ("duration('10000s').getHours()", "2"),
        ("duration('3730s').getMinutes()", "62"),
        ("duration('1.5s').getMilliseconds()", "1500"),
        ("timestamp('2009-02-13T23:00:00Z') + duration('240s') == timestamp('2009-02-13T23:04:00Z')", "true"),
        ("timestamp('2009-02-13T23:10:00Z') - timestamp('2009-02-13T23:09:00Z') == duration('60s')", "true"),
        ("timestamp('9999-12-31T23:59:59Z') + duration('1s')", "timestamp overflow"),
        ("timestamp('0001-01-01T00:00:00Z') - duration('1ns')", "timestamp overflow"),
        ("timestamp('9999-12-31T23:59:59Z') - timestamp('0001-01-01T00:00:00Z')", "duration overflow"),
        ("timestamp('10000-01-01T00:00:00Z')", "invalid timestamp argument"),
        ("timestamp('2020-02-30T00:00:00Z')", "invalid timestamp argument"),
        ("timestamp(-62135596801)", "invalid timestamp argument"),
        ("duration('1x')", "invalid duration argument"),
        ("duration('1h2m3s4ms5us6ns') == duration('3723.004005006s')", "true"),
        ("timestamp('1969-12-31T23:59:59.5Z') < timestamp(0)", "true"),
        ("string(timestamp('0001-01-01T00:00:00Z'))", "\"0001-01-01T00:00:00Z\""),
    ]);
}

#[test]
fn text_is_searched() {
    // string.textproto; patterns by RE2's syntax (github.com/google/re2/wiki/Syntax)
    check(&[
        ("'foobar'.contains('ob')", "true"),
        ("'foobar'.startsWith('foo')", "true"),
        ("'foobar'.endsWith('bar')", "true"),
        ("'foobar'.matches('^fo+b')", "true"),
        ("matches('foobar', 'o{2}')", "true"),
        ("'١'.matches(r'\\d')", "false"),
        ("'é'.matches(r'\\w')", "false"),
        ("'a b'.matches(r'a\\sb')", "true"),
        ("'a-b'.matches(r'^[\\w-]+$')", "true"),
        ("'[x]'.matches(r'^[[x]+]$')", "true"),
        ("'a{'.matches('a{')", "true"),
        ("'a&&b'.matches('[&&]')", "true"),
        ("'x.y'.matches(r'^x\\Q.\\Ey$')", "true"),
        ("'☃'.matches('^.$')", "true"),
        ("'x'.matches('x++')", "invalid matches argument"),
        ("'x'.matches('a{1001}')", "invalid matches argument"),
        ("'x'.matches('(?=x)')", "invalid matches argument"),
        ("'x'.matches(')')", "invalid matches argument"),
        ("'x'.matches(any.c.d + '(')", "error parsing regexp: missing closing ): `e(`"),
    ]);
}
