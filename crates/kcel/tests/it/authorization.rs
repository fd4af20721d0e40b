//! Authorization checks. Expected results: the documentation and tests of `apiserver/pkg/cel/library/authz.go`.

use std::sync::{Arc, Mutex};

use kcel::{Authorizer, AuthorizerValue, Bindings, Check, CheckTarget, Decision, Env, ResourceCheck};

/// Notes what is asked and allows reading.
#[derive(Default)]
struct Noting(Mutex<Vec<String>>);

impl Authorizer for Noting {
    fn authorize(&self, check: &Check<'_>) -> Decision {
        let target = match &check.target {
            CheckTarget::Path(path) => (*path).to_owned(),
            CheckTarget::Resource(of) => format!(
                "{}/{}/{} {}/{} fields={} labels={}",
                of.group,
                of.resource,
                of.subresource,
                of.namespace,
                of.name,
                of.field_selector,
                of.label_selector
            ),
            _ => String::new(),
        };
        let who =
            check.service_account.map(|(namespace, name)| format!("{namespace}:{name} ")).unwrap_or_default();
        self.0.lock().unwrap().push(format!("{who}{} {target}", check.verb));
        match check.verb {
            "get" => Decision::new(true, "reading is fine"),
            "fail" => Decision::new(false, "").with_error("no answer"),
            _ => Decision::new(false, ""),
        }
    }
}

fn env() -> Env {
    Env::builder()
        .variable("authorizer", AuthorizerValue::decl())
        .variable("authorizer.requestResource", AuthorizerValue::resource_decl())
        .build()
}

#[test]
fn checks_reach_the_authorizer() {
    let env = env();
    for (text, asked, expected) in [
        ("authorizer.path('/healthz').check('get').allowed()", "get /healthz", "true"),
        (
            "authorizer.group('apps').resource('deployments').subresource('status').namespace('n').name('x').check('create').allowed()",
            "create apps/deployments/status n/x fields= labels=",
            "false",
        ),
        (
            "authorizer.group('').resource('pods').fieldSelector('a=b').labelSelector('c').check('get').reason()",
            "get /pods/ / fields=a=b labels=c",
            "\"reading is fine\"",
        ),
        ("authorizer.serviceAccount('ns', 'sa').path('/x').check('get').allowed()", "ns:sa get /x", "true"),
        ("authorizer.path('/x').check('fail').errored()", "fail /x", "true"),
        ("authorizer.path('/x').check('fail').error()", "fail /x", "\"no answer\""),
        ("authorizer.requestResource.check('get').allowed()", "get g/rs/ n/o fields= labels=", "true"),
    ] {
        let noting = Arc::new(Noting::default());
        let value = AuthorizerValue::new(noting.clone());
        let resource = ResourceCheck {
            group: "g".to_owned(),
            resource: "rs".to_owned(),
            namespace: "n".to_owned(),
            name: "o".to_owned(),
            ..ResourceCheck::default()
        };
        let bindings = Bindings::new()
            .with("authorizer.requestResource", value.resource(resource))
            .with("authorizer", value.value());
        assert_eq!(super::language::answer(&env, text, &bindings), expected, "{text}");
        assert_eq!(*noting.0.lock().unwrap(), [asked], "{text}");
    }
}

#[test]
fn what_can_not_be_asked_is_refused() {
    let env = env();
    for (text, message) in [
        ("authorizer.path(' ').check('get').allowed()", "path must not be empty"),
        ("authorizer.group('').resource('').check('get').allowed()", "resource must not be empty"),
        (
            "authorizer.serviceAccount('ns', 'S A').path('/').check('get').allowed()",
            "Invalid service account name",
        ),
        (
            "authorizer.serviceAccount('n.s', 'sa').path('/').check('get').allowed()",
            "Invalid service account namespace",
        ),
        (
            "authorizer.path('/').name('x')",
            "found no matching overload for 'name' applied to 'kubernetes.authorization.PathCheck.(string)'",
        ),
    ] {
        let value = AuthorizerValue::new(Arc::new(Noting::default())).value();
        let bindings = Bindings::new().with("authorizer", value);
        assert_eq!(super::language::answer(&env, text, &bindings), message, "{text}");
    }
}

/// Two checks fit into the limit of one expression, three don't.
#[test]
fn checks_are_expensive() {
    let env = env();
    for (count, fits) in [(2, true), (3, false)] {
        let text = vec!["authorizer.path('/x').check('get').allowed()"; count].join(" && ");
        let program = env.compile(&text).unwrap();
        let value = AuthorizerValue::new(Arc::new(Noting::default())).value();
        let bindings = Bindings::new().with("authorizer", value);
        let outcome = program.eval(&bindings, kcel::limits::PER_CALL_COST_MAX);
        assert_eq!(outcome.result.is_ok(), fits, "{text}");
    }
}
