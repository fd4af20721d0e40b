//! Costs and estimates. Expected results: upstream's tests (apiserver `pkg/cel/library/cost_test.go`,
//! apiextensions-apiserver `pkg/apiserver/schema/cel/celcoststability_test.go` and `compilation_test.go`).

use kcel::{Bindings, Decl, Env, EvalError, ListKind, limits};
use serde_json::json;

/// Expressions without data, with the least and the most that they are estimated to cost.
#[test]
fn estimates_of_the_libraries() {
    let env = Env::builder().build();
    for (text, min, max) in [
        ("[1, 2, 3, 4, 5].sum()", 15, 15),
        ("[uint(1), uint(2), uint(3), uint(4), uint(5)].max()", 20, 20),
        ("[1, 2, 3, 4, 5].indexOf(3)", 15, 15),
        ("'01234567890123456789012345678901234567890123456789'.indexOf('123')", 5, 5),
        ("url('https:://kubernetes.io/').getHost()", 4, 4),
        ("url('https:://kubernetes.io/') == url('https:://kubernetes.io/')", 7, 9),
        ("url('https:://kubernetes.io/') == url('http://x.b')", 5, 5),
        ("ip('192.168.0.1')", 2, 2),
        ("ip('2001:db8:3333:4444:5555:6666:7777:8888').family()", 5, 5),
        ("ip('192.168.0.1') == ip('192.168.0.1')", 5, 5),
        ("ip.isCanonical('2001:db8::abcd')", 3, 3),
        ("cidr('192.168.0.0/16').masked()", 3, 3),
        ("cidr('192.168.0.0/16').containsCIDR(cidr('192.0.0.0/30'))", 7, 11),
        ("cidr('192.168.0.0/16').containsIP('192.169.0.1')", 5, 8),
        ("'ABCDEFGHIJ abcdefghij'.lowerAscii() == 'abcdefghij ABCDEFGHIJ'.lowerAscii()", 7, 9),
        ("strings.quote('ABCDEFGHIJ abcdefghij') == strings.quote('ABCDEFGHIJ abcdefghij')", 7, 11),
        ("'abc 123 def 123'.replace('123', '456')", 3, 3),
        ("'abc 123 def 123'.split(' ')", 3, 3),
        ("'abc 123 def 123'.find('123')", 2, 2),
        ("quantity('200M') == quantity('0.2G') && quantity('0.2G') == quantity('200M')", 3, 6),
        ("quantity('50k').add(20).sub(quantity('100k')).asInteger() > 0", 6, 6),
        ("format.named('dns1123Label').value().validate('my-name')", 34, 34),
        ("format.named('dns1123Label').value() == format.named('dns1123Label').value()", 5, 11),
        ("sets.contains([1, 2, 3, 4], [2, 3])", 29, 29),
        ("sets.equivalent([1], [1, 1])", 25, 25),
        ("!sets.intersects([1], [2])", 23, 23),
        ("semver('1234.56789012345.67890123456789')", 4, 4),
        ("semver('1.0.0').isLessThan(semver('1.1.0'))", 3, 3),
        ("{'a': 1, 'b': 2}.all(k, v, v > 0)", 37, 41),
        ("{'a': 1, 'b': 2}.transformMap(k, v, v < 5, v + 1)", 67, 75),
        ("[1, 2].transformList(i, v, v < 5, v + 1)", 27, 53),
    ] {
        let estimate = env.compile(text).unwrap().estimate();
        assert_eq!((estimate.min, estimate.max), (min, max), "{text}");
    }
}

fn values(of: impl IntoIterator<Item = Decl>) -> Decl {
    let mut decl = Decl::object("object");
    for (index, value) in of.into_iter().enumerate() {
        decl = decl.field(&format!("val{}", index + 1), value, false);
    }
    decl.named("selfType")
}

/// The most that rules over declared data are estimated to cost: what CRDs are refused by.
#[test]
fn estimates_follow_declared_sizes() {
    let items = Decl::list(Decl::int());
    let text_map = Decl::map(Decl::string());
    let listed = Decl::object("object").field("k", Decl::string(), false).field("v", Decl::string(), false);
    let keyed = Decl::list(listed).list_kind(ListKind::Map(vec!["k".to_owned()]));
    let decl = Decl::object("object")
        .field("array", items, false)
        .field("m", text_map, false)
        .field("l", Decl::list(Decl::string()), false)
        .field("listMap", keyed, false)
        .field("something", Decl::int_or_string(), false)
        .field("val1", Decl::string(), false)
        .field("val2", Decl::string(), false)
        .field("short", Decl::string().max_length(10), false)
        .field("few", Decl::list(Decl::string().max_length(5)).max_items(3), false)
        .named("selfType");
    let env = Env::builder().variable("self", decl).build();
    for (text, max) in [
        ("isQuantity(self.val1)", 314_575),
        ("quantity(self.val1).isLessThan(quantity(self.val2))", 629_151),
        ("self.array.map(e, e * 20).filter(e, e > 50).exists(e, e == 60)", 53_477_367),
        ("self.listMap.map(m, m.v).exists(v, v == 'b1')", 19_922_939),
        ("type(self.something) == int ? self.something == 1 : self.something == '25%'", 7),
        ("optional.of('a') != optional.of('b')", 1_844_674_407_370_955_266),
        ("self.m[?'k'] == optional.of('v')", 1_844_674_407_370_955_268),
        ("self.l[?0].optMap(v, v == 'a').hasValue()", 22),
        ("self.short == 'a'", 3),
        ("self.short.matches('^a+$')", 7),
        ("self.few.all(e, e.startsWith('x'))", 18),
        ("has(self.few) && self.few.size() < 3", 5),
    ] {
        assert_eq!(env.compile(text).unwrap().estimate().max, max, "{text}");
    }
}

/// The most that a rule is estimated to cost where nothing but the size of a request limits the data.
#[test]
fn estimates_where_nothing_is_limited() {
    let required = Decl::object("object").field("required", Decl::string(), true);
    for (decl, text, max) in [
        (Decl::list(Decl::double()), "self.all(x, true)", 4_718_591),
        (Decl::list(Decl::string()), "self.all(x, true)", 3_145_727),
        (Decl::list(Decl::bool()), "self.all(x, true)", 1_887_437),
        (Decl::list(Decl::list(Decl::double())), "self.all(x, true)", 3_145_727),
        (Decl::list(Decl::date()), "self.all(x, true)", 725_936),
        (Decl::list(Decl::date_time()), "self.all(x, true)", 428_963),
        (Decl::list(Decl::duration()), "self.all(x, true)", 2_359_295),
        (Decl::list(required), "self.all(x, true)", 555_128),
        (Decl::map(Decl::double()), "self.all(x, true)", 1_348_169),
        (Decl::map(Decl::string()), "self.all(x, true)", 1_179_647),
        (Decl::map(Decl::bool()), "self.all(x, true)", 943_718),
        (Decl::list(Decl::double()), "self.all(x, x == 0.0)", 6_291_454),
        (Decl::list(Decl::double()), "self[1] == 0.0", 2),
        (Decl::list(Decl::string()), "self[1] == self[1]", 314_577),
        (Decl::map(Decl::date_time()), "self['a'] == self['b']", 8),
        (Decl::map(Decl::string()), "self.all(x, x.contains(self[x]))", 2_752_507),
        (Decl::string(), "self.contains('test')", 314_574),
        (Decl::string(), "self.startsWith('test')", 2),
        (Decl::string(), "size(self + 'hello') > size('hello')", 314_578),
        (Decl::string(), "self.matches('x')", 314_574),
        (Decl::string(), "self.find('[0-9]+') == ''", 629_147),
        (Decl::string(), "self == 'x'", 2),
    ] {
        let env = Env::builder().variable("self", decl.clone()).build();
        assert_eq!(env.compile(text).unwrap().estimate().max, max, "{text} over {decl:?}");
    }
}

/// The same with limits in the declaration.
#[test]
fn estimates_where_sizes_are_limited() {
    let tens = Decl::list(Decl::list(Decl::list(Decl::double()).max_items(10)).max_items(10)).max_items(10);
    let keyed = Decl::map(Decl::string().max_length(10)).max_properties(10);
    for (decl, text, max) in [
        (Decl::list(Decl::double()).max_items(10), "self.all(x, true)", 32),
        (Decl::list(Decl::string()).max_items(20), "self.all(x, true)", 62),
        (Decl::list(Decl::list(Decl::double())).max_items(100), "self.all(x, true)", 302),
        (Decl::map(Decl::string()).max_properties(3), "self.all(x, true)", 11),
        (Decl::map(Decl::bool()).max_properties(100), "self.all(x, true)", 302),
        (Decl::list(Decl::double()).max_items(10), "self.all(x, self.all(y, true))", 352),
        (tens, "self.all(x, x.all(y, y.all(z, true)))", 3552),
        (keyed, "self.all(x, x.contains(self[x]))", 72),
        (Decl::string().max_length(10), "self.contains('test')", 5),
        (Decl::string().max_length(4), "size(self + 'hello') > size('hello')", 7),
        (Decl::string().max_length(50), "self.matches('x')", 22),
        (Decl::string().max_length(10), "self.find('[0-9]+') == ''", 11),
        (Decl::string().max_length(0), "self == 'x'", 1),
        (Decl::string().with_elements_max(9), "self.contains('A')", 2),
        (Decl::string().max_length(1000), "self.contains('A')", 401),
    ] {
        let env = Env::builder().variable("self", decl.clone()).build();
        assert_eq!(env.compile(text).unwrap().estimate().max, max, "{text} over {decl:?}");
    }
}

/// A rule over a list without a limit, in a list without a limit, is beyond what a CRD may have.
#[test]
fn unlimited_lists_in_lists_are_too_expensive() {
    let inner = Decl::list(Decl::string());
    let limited = Decl::list(Decl::string().max_length(10)).max_items(10);
    for (decl, allowed) in [(Decl::list(inner), false), (Decl::list(limited).max_items(100), true)] {
        let env = Env::builder().variable("self", decl).build();
        let program = env.compile("self.all(l, l.all(e, e.contains('x')))").unwrap();
        assert_eq!(program.estimate().max <= limits::RULE_ESTIMATE_MAX, allowed);
    }
}

#[test]
fn sizes_that_nothing_limits_follow_from_the_request() {
    for (decl, elements, bytes) in [
        (Decl::string(), 3_145_726, 2),
        (Decl::string().max_length(10), 40, 2),
        (Decl::string().with_elements_max(7), 7, 2),
        (Decl::bytes().max_length(10), 10, 2),
        (Decl::date_time(), 32, 21),
        (Decl::duration(), 32, 3),
        (Decl::int(), 0, 1),
        (Decl::list(Decl::int()), 1_572_863, 2),
        (Decl::list(Decl::string()), 1_048_575, 2),
        (Decl::list(Decl::int()).max_items(5), 5, 2),
        (Decl::map(Decl::int()), 449_389, 2),
        (Decl::object("object").field("name", Decl::string(), true).field("x", Decl::int(), false), 0, 12),
    ] {
        assert_eq!((decl.elements_max(), decl.bytes_min()), (elements, bytes), "{decl:?}");
    }
    assert_eq!(Decl::int().cardinality_max(), 1_572_864);
}

/// What rules over data have cost.
#[test]
fn costs_of_evaluations() {
    let decl = values([Decl::int(), Decl::int(), Decl::string(), Decl::string(), Decl::list(Decl::int())]);
    let env = Env::builder().variable("self", decl).build();
    let data =
        json!({"val1": 5, "val2": 5, "val3": "Rook takes 👑", "val4": "Rook takes 👑", "val5": [1, 2, 3]});
    for (text, cost) in [
        ("self.val1 == 5 && 5 == self.val1 && self.val1 == self.val2", 11),
        ("self.val1 == self.val2", 5),
        ("type(self.val1) == int", 4),
        ("double(self.val1) < 10.0", 4),
        ("double(5) < 10.0", 1),
        ("5 < int(10.0)", 1),
        ("self.val3.startsWith('Rook')", 4),
        ("!self.val3.startsWith('knight')", 5),
        ("self.val3.matches('^[^0-9]*$')", 8),
        ("!self.val3.matches('^[0-9]*$')", 7),
        ("size(self.val3) == 12", 4),
        ("self.val3.charAt(3) == 'k'", 4),
        ("self.val3.indexOf('o') == 1", 4),
        ("self.val3.replace(' ', 'x') == 'Rookxtakesx👑'", 7),
        ("self.val3.split(' ') == ['Rook', 'takes', '👑']", 6),
        ("self.val3.substring(4, 10).trim() == 'takes'", 6),
        ("self.val3.lowerAscii() == self.val3.lowerAscii()", 10),
        ("'%b %b %b'.format([7, 8, 9]) == '111 1000 1001'", 3),
        ("self.val1 in [1, 5]", 2),
        ("has(self.val1)", 1),
        ("self.val5.all(e, e > 0)", 18),
        ("false && self.val1 == 1", 0),
        ("true ? self.val1 : 2", 1),
    ] {
        let program = env.compile(text).unwrap();
        let bindings = Bindings::new().json("self", &data);
        let outcome = program.eval(&bindings, limits::PER_CALL_COST_MAX);
        assert!(outcome.result.is_ok(), "{text}");
        assert_eq!(outcome.cost, cost, "{text}");
    }
}

/// The limit ends an evaluation as soon as it is passed, also inside of `||`, which hides other errors.
#[test]
fn the_limit_can_not_be_caught() {
    let env = Env::builder().variable("self", Decl::list(Decl::int())).build();
    let data = json!(vec![1; 1000]);
    let program = env.compile("self.all(a, self.all(b, a == b)) || true").unwrap();
    let bindings = Bindings::new().json("self", &data);
    let outcome = program.eval(&bindings, 10_000);
    assert_eq!(outcome.result.unwrap_err(), EvalError::CostLimit);
    assert!((10_001..10_100).contains(&outcome.cost), "{}", outcome.cost);
    assert_eq!(EvalError::CostLimit.to_string(), "operation cancelled: actual cost limit exceeded");
}
