//! `apiserver.config.k8s.io` `AuthorizationConfiguration` (`--authorization-config`, KEP-3221).

use std::{path::Path, sync::Arc, time::Duration};

use super::{AccessWebhook, AuthorizationMode, Authorizer, FailurePolicy};
use crate::{
    config::{self, ConfigError, Section},
    outbound::Remote,
};

/// How many ways to decide a configuration may name.
pub const AUTHORIZERS_MAX: usize = 64;
/// The longest time that a webhook may be given (upstream's limit).
const WEBHOOK_TIME_MAX: Duration = Duration::from_secs(30);
const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// The ways to decide who may do what, in the order in which they are asked.
///
/// ```
/// use kapi::{ApiServer, authz::AuthorizationConfig};
///
/// let config = AuthorizationConfig::parse("
/// apiVersion: apiserver.config.k8s.io/v1
/// kind: AuthorizationConfiguration
/// authorizers:
/// - {type: Node, name: node}
/// - {type: RBAC, name: rbac}
/// ")?;
/// let server = ApiServer::builder().authorization_config(config).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct AuthorizationConfig(pub(crate) Vec<Way>);

/// One way to decide.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    BuiltIn(AuthorizationMode),
    Other(Arc<dyn Authorizer>),
}

impl AuthorizationConfig {
    /// Reads a configuration in YAML or JSON. The kubeconfigs of webhooks, which it names by their paths, are read now.
    ///
    /// # Errors
    /// When it is none; the error names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = config::read(text, "AuthorizationConfiguration", &VERSIONS)?;
        let root = Section::root(&document)?;
        root.only(&["apiVersion", "kind", "authorizers"])?;
        let sections = root.sections("authorizers")?;
        if sections.is_empty() {
            return Err(
                root.wrong("authorizers", "Required value: at least one authorization mode must be defined")
            );
        }
        if sections.len() > AUTHORIZERS_MAX {
            return Err(root.wrong("authorizers", format!("must have at most {AUTHORIZERS_MAX} items")));
        }
        let (mut types, mut names) = (Vec::new(), Vec::new());
        let mut ways = Vec::new();
        for section in &sections {
            section.only(&["type", "name", "webhook"])?;
            let kind = section.required("type")?;
            let name = section.required("name")?;
            if kind != "Webhook" && types.contains(&kind) {
                return Err(section.wrong("type", format!("Duplicate value: {kind:?}")));
            }
            if names.contains(&name) {
                return Err(section.wrong("name", format!("Duplicate value: {name:?}")));
            }
            types.push(kind);
            names.push(name);
            let webhook = section.section("webhook")?;
            if kind != "Webhook" && webhook.is_some() {
                return Err(section.wrong("webhook", "may only be specified when type=Webhook"));
            }
            ways.push(match kind {
                "Node" => Way::BuiltIn(AuthorizationMode::Node),
                "RBAC" => Way::BuiltIn(AuthorizationMode::Rbac),
                "AlwaysAllow" => Way::BuiltIn(AuthorizationMode::AlwaysAllow),
                "Webhook" => {
                    let missing = || section.wrong("webhook", "Required value: required when type=Webhook");
                    Way::Other(Arc::new(webhook_of(&webhook.ok_or_else(missing)?)?))
                }
                other => {
                    return Err(section.wrong(
                        "type",
                        format!("Unsupported value: {other:?}: supported values: \"AlwaysAllow\", \"Node\", \"RBAC\", \"Webhook\""),
                    ));
                }
            });
        }
        Ok(Self(ways))
    }
}

/// Upstream's `ValidateWebhookConfiguration`.
fn webhook_of(section: &Section<'_>) -> Result<AccessWebhook, ConfigError> {
    section.only(&[
        "authorizedTTL",
        "cacheAuthorizedRequests",
        "unauthorizedTTL",
        "cacheUnauthorizedRequests",
        "timeout",
        "subjectAccessReviewVersion",
        "matchConditionSubjectAccessReviewVersion",
        "failurePolicy",
        "connectionInfo",
        "matchConditions",
    ])?;
    let one_of = |field: &str, known: &[&str]| match section.required(field)? {
        value if known.contains(&value) => Ok(value),
        value => Err(section
            .wrong(field, format!("Unsupported value: {value:?}: supported values: {}", known.join(", ")))),
    };
    let timeout = section.duration("timeout")?.filter(|timeout| !timeout.is_zero());
    let timeout = timeout.ok_or_else(|| section.wrong("timeout", "Required value"))?;
    if timeout > WEBHOOK_TIME_MAX {
        return Err(section.wrong("timeout", "must be > 0s and <= 30s"));
    }
    // `v1beta1` has been removed from what is served here, as it has from the API.
    one_of("subjectAccessReviewVersion", &["v1"])?;
    let conditions = section.sections("matchConditions")?;
    if !conditions.is_empty() {
        one_of("matchConditionSubjectAccessReviewVersion", &["v1"])?;
    }
    let failure = match one_of("failurePolicy", &["NoOpinion", "Deny"])? {
        "Deny" => FailurePolicy::Deny,
        _ => FailurePolicy::NoOpinion,
    };
    let expression = |condition: &Section<'_>| {
        condition.only(&["expression"])?;
        condition.required("expression").map(str::to_owned)
    };
    let expressions = conditions.iter().map(expression).collect::<Result<Vec<_>, _>>()?;
    let ttl = |field: &str, cached: &str, default: Duration| -> Result<Duration, ConfigError> {
        let ttl = section.duration(field)?.filter(|ttl| !ttl.is_zero()).unwrap_or(default);
        Ok(if section.flag(cached)?.unwrap_or(true) { ttl } else { Duration::ZERO })
    };
    let allowed = ttl("authorizedTTL", "cacheAuthorizedRequests", super::ALLOWED_TTL)?;
    let refused = ttl("unauthorizedTTL", "cacheUnauthorizedRequests", super::REFUSED_TTL)?;
    let connection = section.section("connectionInfo")?;
    let connection = connection.ok_or_else(|| section.wrong("connectionInfo.type", "Required value"))?;
    connection.only(&["type", "kubeConfigFile"])?;
    match connection.required("type")? {
        "KubeConfigFile" => {}
        other => {
            return Err(connection.wrong(
                "type",
                format!("Unsupported value: {other:?}: supported values: \"KubeConfigFile\""),
            ));
        }
    }
    let path = Path::new(connection.required("kubeConfigFile")?);
    if !path.is_absolute() {
        return Err(connection.wrong("kubeConfigFile", "must be an absolute path"));
    }
    let remote = Remote::from_file(path);
    let remote =
        remote.map_err(|why| connection.wrong("kubeConfigFile", format!("error loading file: {why}")))?;
    let webhook = AccessWebhook::new(remote).ttl(allowed, refused).timeout(timeout).on_failure(failure);
    webhook.conditions(expressions).map_err(|why| section.wrong(&why.field, why.why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(authorizers: &str) -> Result<AuthorizationConfig, ConfigError> {
        AuthorizationConfig::parse(&format!(
            "{{apiVersion: apiserver.config.k8s.io/v1, kind: AuthorizationConfiguration, authorizers: [{authorizers}]}}"
        ))
    }

    /// Expected results: `apiserver/validation/validation_test.go`, `TestValidateAuthorizationConfiguration`.
    #[test]
    fn faults_are_named() {
        let webhook = |fields: &str| format!("{{type: Webhook, name: a, webhook: {{{fields}}}}}");
        let whole = "timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny";
        for (text, field) in [
            (String::new(), "authorizers"),
            ("{name: a}".to_owned(), "authorizers[0].type"),
            ("{type: Odd, name: a}".to_owned(), "authorizers[0].type"),
            ("{type: RBAC}".to_owned(), "authorizers[0].name"),
            ("{type: RBAC, name: a}, {type: RBAC, name: b}".to_owned(), "authorizers[1].type"),
            ("{type: RBAC, name: a}, {type: Node, name: a}".to_owned(), "authorizers[1].name"),
            ("{type: RBAC, name: a, webhook: {}}".to_owned(), "authorizers[0].webhook"),
            ("{type: Webhook, name: a}".to_owned(), "authorizers[0].webhook"),
            (webhook(""), "authorizers[0].webhook.timeout"),
            (webhook("timeout: 31s"), "authorizers[0].webhook.timeout"),
            (webhook("timeout: -1s"), "authorizers[0].webhook.timeout"),
            (webhook("timeout: 3s"), "authorizers[0].webhook.subjectAccessReviewVersion"),
            (webhook("timeout: 3s, subjectAccessReviewVersion: v1"), "authorizers[0].webhook.failurePolicy"),
            (
                webhook("timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Maybe"),
                "authorizers[0].webhook.failurePolicy",
            ),
            (webhook(whole), "authorizers[0].webhook.connectionInfo.type"),
            (
                webhook(&format!("{whole}, connectionInfo: {{type: KubeConfigFile, kubeConfigFile: a}}")),
                "authorizers[0].webhook.connectionInfo.kubeConfigFile",
            ),
            (
                webhook(&format!("{whole}, matchConditions: [{{expression: 'true'}}]")),
                "authorizers[0].webhook.matchConditionSubjectAccessReviewVersion",
            ),
        ] {
            assert_eq!(parsed(&text).unwrap_err().field, field, "{text}");
        }
        let both = parsed("{type: Node, name: a}, {type: RBAC, name: b}").unwrap();
        assert!(matches!(
            both.0[..],
            [Way::BuiltIn(AuthorizationMode::Node), Way::BuiltIn(AuthorizationMode::Rbac)]
        ));
    }
}
