//! Kubernetes' libraries. Expected results: upstream's tests and documentation of them
//! (`apiserver/pkg/cel/library/*_test.go`, the doc comments beside them, cel-go's `ext`), each function names its files.

use super::language::check;

#[test]
fn lists() {
    // library/lists.go
    check(&[
        ("[1, 2, 2].isSorted()", "true"),
        ("['b', 'a'].isSorted()", "false"),
        ("[].isSorted()", "true"),
        ("[1, 3].sum()", "4"),
        ("[1.5, 2.5].sum()", "4.0"),
        ("[duration('1m'), duration('1s')].sum() == duration('61s')", "true"),
        ("[1u].sum()", "1u"),
        ("dyn([1.5, 2.0]).sum()", "3.5"),
        ("[1, 3].min()", "1"),
        ("[1, 3].max()", "3"),
        ("['a', 'c', 'b'].max()", "\"c\""),
        ("any.b.filter(x, false).max()", "max called on empty list"),
        ("[1, 2, 2, 3].indexOf(2)", "1"),
        ("[1, 2, 2, 3].lastIndexOf(2)", "2"),
        ("['a'].indexOf('b')", "-1"),
        ("[true, false].max()", "true"),
        ("[{}].max()", "found no matching overload for 'max' applied to 'list(map(dyn, dyn)).()'"),
    ]);
}

#[test]
fn list_extensions() {
    // cel-go ext/lists.go
    check(&[
        ("[1, 2, 3, 4].slice(1, 3)", "[2,3]"),
        ("[1].slice(-1, 1)", "cannot slice(-1, 1), negative indexes not supported"),
        ("[1].slice(1, 0)", "cannot slice(1, 0), start index must be less than or equal to end index"),
        ("[1].slice(0, 2)", "cannot slice(0, 2), list is length 1"),
        ("[[1], [2, 3]].flatten()", "[1,2,3]"),
        ("dyn([1, [2, [3]]]).flatten(1)", "expected type 'int' but found 'list(dyn)'"),
        ("[[[1], [2]], [[3]]].flatten(2)", "[1,2,3]"),
        ("[[1]].flatten(-1)", "level must be non-negative"),
        ("[3, 1, 2].sort()", "[1,2,3]"),
        ("['b', 'a'].sort()", "[\"a\",\"b\"]"),
        ("[{'n': 2}, {'n': 1}].sortBy(e, e.n)", "[{\"n\":1},{\"n\":2}]"),
        ("[1, -3, 2].sortBy(e, -e)", "[2,1,-3]"),
        ("lists.range(3)", "[0,1,2]"),
        ("lists.range(-1)", "[]"),
        ("lists.range(1000000000)", "lists.range of 1000000000 elements exceeds the limit of 1000000"),
        ("[1, 2].reverse()", "[2,1]"),
        ("[1, 2, 1].distinct()", "[1,2]"),
    ]);
}

#[test]
fn strings() {
    // cel-go ext/strings.go, version 2
    check(&[
        ("'hello'.charAt(4)", "\"o\""),
        ("'hello'.charAt(5)", "\"\""),
        ("'hello'.charAt(6)", "index out of range: 6"),
        ("'hello mellow'.indexOf('ello')", "1"),
        ("'hello mellow'.indexOf('ello', 2)", "7"),
        ("'hello mellow'.indexOf('')", "0"),
        ("'hello mellow'.indexOf('jello')", "-1"),
        ("'hello mellow'.indexOf('e', -1)", "index out of range: -1"),
        ("'hello mellow'.lastIndexOf('ello')", "7"),
        ("'hello mellow'.lastIndexOf('ello', 6)", "1"),
        ("'hello mellow'.lastIndexOf('')", "12"),
        ("'TacoCÆt'.lowerAscii()", "\"tacocÆt\""),
        ("'tacoCæt'.upperAscii()", "\"TACOCæT\""),
        ("'hello hello'.replace('he', 'we')", "\"wello wello\""),
        ("'hello hello'.replace('he', 'we', 1)", "\"wello hello\""),
        ("'hello hello'.replace('he', 'we', 0)", "\"hello hello\""),
        ("'12 days'.replace('', 'X')", "\"X1X2X XdXaXyXsX\""),
        ("'a b c'.split(' ')", "[\"a\",\"b\",\"c\"]"),
        ("'a b c'.split(' ', 0)", "[]"),
        ("'a b c'.split(' ', 1)", "[\"a b c\"]"),
        ("'a b c'.split(' ', 2)", "[\"a\",\"b c\"]"),
        ("'abc'.split('')", "[\"a\",\"b\",\"c\"]"),
        ("'abc'.split('', 2)", "[\"a\",\"bc\"]"),
        ("''.split(',')", "[\"\"]"),
        ("'tacocat'.substring(4)", "\"cat\""),
        ("'tacocat'.substring(0, 4)", "\"taco\""),
        ("'ta©o'.substring(2, 3)", "\"©\""),
        ("'tacocat'.substring(40)", "index out of range: 40"),
        ("'tacocat'.substring(3, 1)", "invalid substring range. start: 3, end: 1"),
        ("' \\n trim\\n '.trim()", "\"trim\""),
        ("['x', 'y'].join()", "\"xy\""),
        ("['x', 'y'].join('-')", "\"x-y\""),
        ("strings.quote('a\\n\"b')", "\"\\\"a\\\\n\\\\\\\"b\\\"\""),
        ("'ab'.reverse()", "found no matching overload for 'reverse' applied to 'string.()'"),
    ]);
}

#[test]
fn formatting() {
    // cel-go ext/formatting.go; apiextensions schema/cel/validation_test.go for the scientific form
    check(&[
        ("'%s has %d of %.2f'.format(['a', 3, 1.5])", "\"a has 3 of 1.50\""),
        ("'%%'.format([])", "\"%\""),
        ("'%x %X %o %b'.format([255, 255u, 8, 5])", "\"ff FF 10 101\""),
        ("'%x'.format(['hi'])", "\"6869\""),
        ("'%b'.format([true])", "\"1\""),
        ("'%d'.format([-7])", "\"-7\""),
        ("'%f'.format([12345.6789])", "\"12,345.678900\""),
        ("'%e'.format([3.14])", "\"3.140000×10⁰⁰\""),
        ("'%s'.format([['a', 1.0]])", "\"[\\\"a\\\", 1.000000]\""),
        ("'%s'.format([{'b': 1, 'a': null}])", "\"{\\\"a\\\":null, \\\"b\\\":1}\""),
        ("'%s'.format([duration('1m')])", "\"60s\""),
        ("'%s'.format([type(1)])", "\"int\""),
        (
            "'%d'.format(['x'])",
            "error during formatting: decimal clause can only be used on integers, was given string",
        ),
        ("'%d'.format([])", "index 0 out of range"),
        ("'%d'.format([1, 2])", "too many arguments supplied to string.format (expected 1, got 2)"),
        ("'%z'.format([1])", "could not parse formatting clause: unrecognized formatting clause \"z\""),
        ("any.c.d.format([])", "\"e\""),
    ]);
}

#[test]
fn regular_expressions() {
    // library/regex.go
    check(&[
        ("'abc 123'.find('[0-9]+')", "\"123\""),
        ("'abc'.find('[0-9]+')", "\"\""),
        ("'123 abc 456'.findAll('[0-9]+')", "[\"123\",\"456\"]"),
        ("'123 abc 456'.findAll('[0-9]+', 1)", "[\"123\"]"),
        ("'123 abc 456'.findAll('[0-9]+', 0)", "[]"),
        ("'abc'.find(')')", "error parsing regexp: unexpected ): `)`"),
    ]);
}

#[test]
fn sets() {
    // cel-go ext/sets.go
    check(&[
        ("sets.contains([1, 2, 3], [2, 3])", "true"),
        ("sets.contains([1], [2])", "false"),
        ("sets.contains([], [])", "true"),
        ("sets.equivalent([1, 2, 2], [2, 1])", "true"),
        ("sets.equivalent([1], [1, 2])", "false"),
        ("sets.intersects([1, 2], [2, 3])", "true"),
        ("sets.intersects([1], [])", "false"),
        (
            "sets.contains([1], ['1'])",
            "found no matching overload for 'sets.contains' applied to '(list(int), list(string))'",
        ),
    ]);
}

#[test]
fn urls() {
    // library/urls.go, apiextensions schema/cel/validation_test.go
    check(&[
        ("url('https://example.com:80/').getHost()", "\"example.com:80\""),
        ("url('https://example.com:80/').getHostname()", "\"example.com\""),
        ("url('https://[::1]:80/').getHostname()", "\"::1\""),
        ("url('https://[::1]:80/').getPort()", "\"80\""),
        ("url('/path').getScheme()", "\"\""),
        ("url('HTTPS://x/').getScheme()", "\"https\""),
        ("url('https://example.com/path with spaces/').getEscapedPath()", "\"/path%20with%20spaces/\""),
        ("url('https://example.com/?k1=a&k2=b&k2=c').getQuery()", "{\"k1\":[\"a\"],\"k2\":[\"b\",\"c\"]}"),
        ("url('https://example.com/?k=with%20spaces+x').getQuery()", "{\"k\":[\"with spaces x\"]}"),
        ("url('https://a/?x=1#frag').getQuery()", "{\"x\":[\"1\"]}"),
        ("isURL('https://a:80/')", "true"),
        ("isURL('../relative')", "false"),
        ("isURL('https://a:b/')", "false"),
        ("isURL('')", "false"),
        (
            "url('../relative')",
            "URL parse error during conversion from string: parse \"../relative\": invalid URI for request",
        ),
        (
            "url('https://a/%zz')",
            "URL parse error during conversion from string: parse \"https://a/%zz\": invalid URL escape \"%zz\"",
        ),
        ("url('https://a/') == url('https://a/')", "true"),
        ("url('https://a/') == url('https://b/')", "false"),
    ]);
}

#[test]
fn addresses() {
    // library/ip_test.go, library/cidr_test.go
    check(&[
        ("ip('192.168.0.1').family()", "4"),
        ("ip('::1').family()", "6"),
        ("isIP('192.168.0.1.0')", "false"),
        ("isIP('::ffff:1.2.3.4')", "false"),
        ("isIP('fe80::1%en0')", "false"),
        (
            "ip('192.168.0.256')",
            "IP Address \"192.168.0.256\" parse error during conversion from string: ParseAddr(\"192.168.0.256\"): IPv4 field has value >255",
        ),
        ("ip('::ffff:1.2.3.4')", "IPv4-mapped IPv6 address \"::ffff:1.2.3.4\" is not allowed"),
        ("ip('fe80::1%en0')", "IP address \"fe80::1%en0\" with zone value is not allowed"),
        ("ip.isCanonical('2001:DB8::68')", "false"),
        ("ip.isCanonical('2001:db8::68')", "true"),
        ("string(ip('127.0.0.1'))", "\"127.0.0.1\""),
        ("ip('0.0.0.0').isUnspecified()", "true"),
        ("ip('127.0.0.1').isLoopback()", "true"),
        ("ip('224.0.0.1').isLinkLocalMulticast()", "true"),
        ("ip('224.0.1.1').isLinkLocalMulticast()", "false"),
        ("ip('169.254.169.254').isLinkLocalUnicast()", "true"),
        ("ip('fe80::1').isLinkLocalUnicast()", "true"),
        ("ip('10.0.0.1').isGlobalUnicast()", "true"),
        ("ip('255.255.255.255').isGlobalUnicast()", "false"),
        ("ip('::1') == ip('0:0:0:0:0:0:0:1')", "true"),
        ("type(ip('::1')) == net.IP", "true"),
        ("cidr('192.168.0.0/24').containsIP('192.168.0.1')", "true"),
        ("cidr('192.168.0.0/24').containsIP(ip('192.168.1.1'))", "false"),
        ("cidr('192.168.0.0/24').containsIP('::1')", "false"),
        ("cidr('192.168.0.0/24').containsCIDR('192.168.0.0/25')", "true"),
        ("cidr('192.168.0.0/24').containsCIDR(cidr('192.168.0.0/23'))", "false"),
        ("cidr('0.0.0.0/0').containsIP('8.8.8.8')", "true"),
        ("cidr('2001:db8::/32').containsIP('2001:db8::1')", "true"),
        ("cidr('192.168.0.1/24').ip() == ip('192.168.0.1')", "true"),
        ("string(cidr('192.168.0.1/24').masked())", "\"192.168.0.0/24\""),
        ("cidr('192.168.0.0/24').prefixLength()", "24"),
        ("isCIDR('192.168.0.0/')", "false"),
        ("isCIDR('192.168.0.0/33')", "false"),
        ("isCIDR('192.168.0.0/024')", "false"),
        ("isCIDR('::/128')", "true"),
    ]);
}

#[test]
fn quantities() {
    // library/quantity_test.go
    check(&[
        ("isQuantity('1.3Gi')", "true"),
        ("isQuantity('1.3GB')", "false"),
        (
            "quantity('10 Mi')",
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        ("quantity('200M') == quantity('0.2G')", "true"),
        ("quantity('50Mi').isGreaterThan(quantity('50M'))", "true"),
        ("quantity('50M').isLessThan(quantity('100M'))", "true"),
        ("quantity('200M').compareTo(quantity('0.3G'))", "-1"),
        ("quantity('50k').add(quantity('20')) == quantity('50.02k')", "true"),
        ("quantity('50k').sub(20) == quantity('49980')", "true"),
        ("quantity('50').asInteger()", "50"),
        ("quantity('50.703').asInteger()", "cannot convert value to integer"),
        ("quantity('50k').isInteger()", "true"),
        ("quantity('50.1').isInteger()", "false"),
        ("quantity('50.703k').asApproximateFloat()", "50703.0"),
        ("sign(quantity('-50k'))", "-1"),
        ("quantity('1Gi')", "\"1Gi\""),
    ]);
}

#[test]
fn versions() {
    // library/semver_test.go
    check(&[
        ("semver('1.2.3')", "\"1.2.3\""),
        ("semver('v1.2.3')", "Invalid character(s) found in major number \"v1\""),
        ("semver('1.0')", "No Major.Minor.Patch elements found"),
        ("semver('v01.01', true)", "\"1.1.0\""),
        ("semver('v1', true) == semver('1.0.0')", "true"),
        ("semver('1.0-alpha', true)", "short version cannot contain PreRelease/Build meta data"),
        ("isSemver('200K')", "false"),
        ("isSemver('1.2.3-alpha.1+build')", "true"),
        ("isSemver('1.2.3-01')", "false"),
        ("semver('1.2.3') == semver('1.2.3+build')", "true"),
        ("semver('1.0.0-alpha').isLessThan(semver('1.0.0'))", "true"),
        ("semver('1.0.0-alpha.2').isLessThan(semver('1.0.0-alpha.10'))", "true"),
        ("semver('1.2.3').compareTo(semver('1.2.2'))", "1"),
        ("semver('1.2.3').isGreaterThan(semver('2.0.0'))", "false"),
        ("semver('1.2.3').major() + semver('1.2.3').minor() + semver('1.2.3').patch()", "6"),
    ]);
}

#[test]
fn named_formats() {
    // library/format_test.go
    check(&[
        ("format.dns1123Label().validate('contains a space').hasValue()", "true"),
        ("format.dns1123Label().validate('my-label')", "null"),
        ("format.dns1123Label().validate('my.label').value()", "[\"must not contain dots\"]"),
        ("format.dns1123Subdomain().validate('a.b.c')", "null"),
        ("format.dns1035Label().validate('1a').hasValue()", "true"),
        ("format.dns1123LabelPrefix().validate('prefix-')", "null"),
        ("format.qualifiedName().validate('example.com/name')", "null"),
        ("format.qualifiedName().validate('/name').value()", "[\"prefix part must be non-empty\"]"),
        ("format.labelValue().validate('')", "null"),
        ("format.labelValue().validate('-x').hasValue()", "true"),
        ("format.uri().validate('http://example.com')", "null"),
        ("format.uri().validate('x').value()", "[\"parse \\\"x\\\": invalid URI for request\"]"),
        ("format.uuid().validate('123e4567-e89b-12d3-a456-426614174000')", "null"),
        ("format.uuid().validate('x').value()", "[\"does not match the UUID format\"]"),
        ("format.byte().validate('aGVsbG8=')", "null"),
        ("format.byte().validate('a').value()", "[\"invalid base64\"]"),
        ("format.date().validate('2021-01-01')", "null"),
        ("format.date().validate('2021-13-01').value()", "[\"invalid date\"]"),
        ("format.datetime().validate('2021-01-01T00:00:00Z')", "null"),
        ("format.datetime().validate('x').value()", "[\"invalid datetime\"]"),
        ("format.named('uuid').value() == format.uuid()", "true"),
        ("format.named('unknown').hasValue()", "false"),
    ]);
}

/// What functions make is limited before it is made.
#[test]
fn results_are_limited() {
    use kcel::{Bindings, Decl, Env};
    let env = Env::builder().variable("self", Decl::string()).build();
    let data = serde_json::json!("x".repeat(1_000_000));
    for text in [
        "self.replace('', self).size() > 0",
        "self.split('').join(self).size() > 0",
        "[self, self, self].map(x, lists.range(30).map(y, x).join()).join().size() > 0",
        "'%s'.format([lists.range(99).map(x, self)]).size() > 0",
    ] {
        let program = env.compile(text).unwrap();
        let bindings = Bindings::new().json("self", &data);
        let error = program.eval(&bindings, u64::MAX).result.unwrap_err().to_string();
        assert!(error.contains("exceeds the limit of 67108864"), "{text}: {error}");
    }
}
