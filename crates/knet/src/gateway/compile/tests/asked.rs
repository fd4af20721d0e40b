//! What routes may ask for, and what is refused.

use super::*;

#[test]
fn what_is_not_supported_is_not_accepted() {
    let with = |key: &str, value: Value| json!([{"backendRefs": to("web"), key: value}]);
    for rules in [
        with(
            "filters",
            json!([{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "web"}, "percent": 1, "fraction": {"numerator": 1}}}]),
        ),
        with("filters", json!([{"type": "ExtensionRef"}])),
        with("filters", json!([{"type": "CORS"}])),
        with("matches", json!([{"path": {"type": "RegularExpression", "value": "/.*"}}])),
        with("matches", json!([{"headers": [{"type": "RegularExpression", "name": "a", "value": ".*"}]}])),
        with(
            "matches",
            json!([{"queryParams": [{"type": "RegularExpression", "name": "a", "value": ".*"}]}]),
        ),
        with("timeouts", json!({"request": "soon"})),
        with("retry", json!({"attempts": 11})),
        with("retry", json!({"attempts": -1})),
        with("retry", json!({"codes": [200]})),
        with("retry", json!({"backoff": "soon"})),
        with("sessionPersistence", json!({"sessionName": "s"})),
        with(
            "backendRefs",
            json!([{"name": "web", "port": 80, "filters": [{"type": "RequestRedirect", "requestRedirect": {}}]}]),
        ),
    ] {
        let mut case = Case::new(json!([http("l", "")]));
        case.route("r", &[], rules.clone());
        let compiled = case.compile();
        assert_eq!(route_faults(&compiled, "infra", "r"), "Accepted:UnsupportedValue", "{rules}");
        assert_eq!(goes(&compiled, "GET h/"), "-", "{rules}");
    }
}

/// GEP-1731; what is not said has the defaults of this implementation.
#[test]
fn retries_reach_the_proxy() {
    for (wanted, expected) in [
        (json!({}), "1 25ms []"),
        (json!({"attempts": 0, "backoff": "0s"}), "0 0ns []"),
        (json!({"attempts": 3, "backoff": "1s", "codes": [500, 503]}), "3 1s [500, 503]"),
    ] {
        let mut case = Case::new(json!([http("l", "")]));
        case.route("r", &[], json!([{"backendRefs": to("web"), "retry": wanted}]));
        let compiled = case.compile();
        assert_eq!(route_faults(&compiled, "infra", "r"), "");
        let retry = rule(&compiled, 80, "GET h/").unwrap().retry.clone().unwrap();
        assert_eq!(format!("{} {:?} {:?}", retry.attempts, retry.backoff, retry.codes), expected);
    }
}
