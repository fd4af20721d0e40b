//! `apiserver.config.k8s.io` `AuthenticationConfiguration` (`--authentication-config`).

use std::{fmt, sync::Arc};

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use serde_json::Value;

use super::claims::{Expression, Mapping, Source, user_value};
use crate::{
    authn::UserInfo,
    config::{self, ConfigError, Section},
};

/// How many issuers may be configured (upstream's limit).
pub const ISSUERS_MAX: usize = 64;

const VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];

/// Whose tokens are believed beside those of service accounts, and which paths are for everybody.
///
/// ```
/// use kapi::authn::AuthenticationConfig;
///
/// let config = AuthenticationConfig::parse("
/// apiVersion: apiserver.config.k8s.io/v1
/// kind: AuthenticationConfiguration
/// jwt:
/// - issuer: {url: https://id.example.com, audiences: [cluster]}
///   claimValidationRules:
///   - {expression: 'claims.hd == \"example.com\"', message: only for us}
///   claimMappings:
///     username: {expression: '\"example:\" + claims.sub'}
///     groups: {claim: groups, prefix: 'example:'}
/// anonymous:
///   enabled: true
///   conditions: [{path: /livez}]
/// ")?;
/// assert_eq!(config.issuers().collect::<Vec<_>>(), ["https://id.example.com"]);
/// let why = AuthenticationConfig::parse("
/// apiVersion: apiserver.config.k8s.io/v1
/// kind: AuthenticationConfiguration
/// jwt: [{issuer: {url: 'http://id.example.com', audiences: [a]}}]").unwrap_err();
/// assert_eq!(why.field, "jwt[0].issuer.url");
/// # Ok::<(), kapi::config::ConfigError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct AuthenticationConfig {
    pub(crate) providers: Vec<Arc<Provider>>,
    pub(crate) anonymous: Option<Anonymous>,
}

/// Whether callers who don't say who they are are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anonymous {
    /// Whether they are at all.
    pub enabled: bool,
    /// To these paths alone; empty: to all.
    pub paths: Vec<String>,
}

/// One provider of identities.
pub(crate) struct Provider {
    pub(crate) url: String,
    pub(super) discovery_url: Option<String>,
    pub(super) authority: Vec<u8>,
    pub(super) audiences: Vec<String>,
    required: Vec<(String, String)>,
    claim_rules: Vec<(Expression, String)>,
    user_rules: Vec<(Expression, String)>,
    mapping: Mapping,
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Provider").field(&self.url).finish()
    }
}

impl AuthenticationConfig {
    /// Reads a configuration in YAML or JSON.
    ///
    /// # Errors
    /// When it is none; the error names the field.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = config::read(text, "AuthenticationConfiguration", &VERSIONS)?;
        let root = Section::root(&document)?;
        root.only(&["apiVersion", "kind", "jwt", "anonymous"])?;
        let sections = root.sections("jwt")?;
        if sections.len() > ISSUERS_MAX {
            return Err(root.wrong(
                "jwt",
                format!("Too many: {}: must have at most {ISSUERS_MAX} items", sections.len()),
            ));
        }
        let mut providers: Vec<Arc<Provider>> = Vec::new();
        for section in &sections {
            let provider = Provider::parse(section)?;
            let twice = |field: &str| section.wrong(&format!("issuer.{field}"), "Duplicate value");
            if providers.iter().any(|other| other.url == provider.url) {
                return Err(twice("url"));
            }
            let discovery = provider.discovery_url.as_ref();
            if discovery.is_some() && providers.iter().any(|other| other.discovery_url.as_ref() == discovery)
            {
                return Err(twice("discoveryURL"));
            }
            providers.push(Arc::new(provider));
        }
        let anonymous = root.section("anonymous")?.map(|section| anonymous(&section)).transpose()?;
        Ok(Self { providers, anonymous })
    }

    /// Whether it says where callers may stay unknown.
    #[must_use]
    pub fn sets_anonymous(&self) -> bool {
        self.anonymous.is_some()
    }

    /// The issuers whose tokens are believed.
    pub fn issuers(&self) -> impl Iterator<Item = &str> {
        self.providers.iter().map(|provider| provider.url.as_str())
    }
}

fn anonymous(section: &Section<'_>) -> Result<Anonymous, ConfigError> {
    section.only(&["enabled", "conditions"])?;
    let enabled = section.flag("enabled")?.unwrap_or(false);
    let conditions = section.sections("conditions")?;
    if !enabled && !conditions.is_empty() {
        return Err(section.wrong("conditions", "enabled should be set to true when conditions are defined"));
    }
    let path = |condition: &Section<'_>| {
        condition.only(&["path"])?;
        condition.required("path").map(str::to_owned)
    };
    Ok(Anonymous { enabled, paths: conditions.iter().map(path).collect::<Result<_, _>>()? })
}

impl Provider {
    fn parse(section: &Section<'_>) -> Result<Self, ConfigError> {
        section.only(&["issuer", "claimValidationRules", "claimMappings", "userValidationRules"])?;
        let required =
            |field: &str| section.section(field)?.ok_or_else(|| section.wrong(field, "Required value"));
        let issuer = required("issuer")?;
        issuer.only(&["url", "discoveryURL", "certificateAuthority", "audiences", "audienceMatchPolicy"])?;
        let url = issuer.required("url")?.to_owned();
        check_url(&issuer, "url", &url)?;
        let discovery = issuer.text("discoveryURL")?;
        if !discovery.is_empty() {
            check_url(&issuer, "discoveryURL", discovery)?;
            if discovery.trim_end_matches('/') == url.trim_end_matches('/') {
                return Err(issuer.wrong("discoveryURL", "discoveryURL must be different from URL"));
            }
        }
        let authority = issuer.text("certificateAuthority")?.as_bytes().to_vec();
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&authority).collect();
        if !authority.is_empty() && certificates.map_or(true, |certificates| certificates.is_empty()) {
            let why = "data does not contain any valid RSA or ECDSA certificates";
            return Err(issuer.wrong("certificateAuthority", format!("Invalid value: <omitted>: {why}")));
        }
        let audiences = audiences(&issuer)?;
        let (required_claims, claim_rules) = claim_rules(section)?;
        let mapping = mapping(&required("claimMappings")?, &claim_rules)?;
        let user_rules = section.sections("userValidationRules")?;
        let user_rules = user_rules.iter().map(|rule| {
            rule.only(&["expression", "message"])?;
            rule.required("expression")?;
            Ok((
                Expression::compile(rule, "expression", "user", &["bool"])?,
                rule.text("message")?.to_owned(),
            ))
        });
        Ok(Self {
            url,
            discovery_url: Some(discovery.to_owned()).filter(|url| !url.is_empty()),
            authority,
            audiences,
            required: required_claims,
            claim_rules,
            user_rules: user_rules.collect::<Result<_, ConfigError>>()?,
            mapping,
        })
    }

    /// The user of a token with these claims, which are known to be true.
    pub(super) fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let user = self.mapping.user(claims)?;
        for (claim, wanted) in &self.required {
            match claims.get(claim) {
                None => return Err(format!("oidc: required claim {claim} not present in ID token")),
                Some(Value::String(found)) if found == wanted => {}
                Some(Value::String(found)) => {
                    return Err(format!(
                        "oidc: required claim {claim} value does not match. Got = {found}, want = {wanted}"
                    ));
                }
                Some(_) => return Err(format!("oidc: parse claim {claim}: is no string")),
            }
        }
        check(&self.claim_rules, claims, "claim validation expression")?;
        check(&self.user_rules, &user_value(&user), "user info validation rule")?;
        Ok(user)
    }
}

fn check(rules: &[(Expression, String)], value: &Value, what: &str) -> Result<(), String> {
    for (rule, message) in rules {
        let fail = |why: String| format!("oidc: error evaluating {what}: {why}");
        if !rule.holds(value).map_err(fail)? {
            return Err(fail(format!("validation expression '{}' failed: {message}", rule.text)));
        }
    }
    Ok(())
}

fn check_url(section: &Section<'_>, field: &str, url: &str) -> Result<(), ConfigError> {
    let wrong = |why: &str| section.wrong(field, format!("Invalid value: {url:?}: {why}"));
    let uri: http::Uri = url.parse().map_err(|_| wrong("is no URL"))?;
    if uri.scheme_str() != Some("https") {
        return Err(wrong("URL scheme must be https"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(wrong("URL must not contain a username or password"));
    }
    if uri.query().is_some() {
        return Err(wrong("URL must not contain a query"));
    }
    if url.contains('#') {
        return Err(wrong("URL must not contain a fragment"));
    }
    Ok(())
}

fn audiences(issuer: &Section<'_>) -> Result<Vec<String>, ConfigError> {
    let audiences = issuer.texts("audiences")?;
    if audiences.is_empty() {
        return Err(issuer.wrong("audiences", "Required value: at least one audiences is required"));
    }
    for (index, audience) in audiences.iter().enumerate() {
        let wrong = |why: &str| issuer.wrong(&format!("audiences[{index}]"), why);
        if audience.is_empty() {
            return Err(wrong("Required value"));
        }
        if audiences[..index].contains(audience) {
            return Err(wrong("Duplicate value"));
        }
    }
    match (issuer.text("audienceMatchPolicy")?, audiences.len()) {
        ("MatchAny", _) | ("", 1) => Ok(audiences),
        (_, 1) => Err(issuer.wrong(
            "audienceMatchPolicy",
            "audienceMatchPolicy must be empty or MatchAny for single audience",
        )),
        _ => Err(issuer
            .wrong("audienceMatchPolicy", "audienceMatchPolicy must be MatchAny for multiple audiences")),
    }
}

type ClaimRules = (Vec<(String, String)>, Vec<(Expression, String)>);

fn claim_rules(section: &Section<'_>) -> Result<ClaimRules, ConfigError> {
    let (mut required, mut rules): ClaimRules = Default::default();
    for rule in section.sections("claimValidationRules")? {
        rule.only(&["claim", "requiredValue", "expression", "message"])?;
        let (claim, message) = (rule.text("claim")?, rule.text("message")?);
        match (claim.is_empty(), rule.text("expression")?.is_empty()) {
            (false, false) => return Err(rule.wrong("claim", "claim and expression can't both be set")),
            (true, true) => {
                return Err(rule.wrong("claim", "Required value: claim or expression is required"));
            }
            (false, true) if !message.is_empty() => {
                return Err(rule.wrong("message", "may not be specified when claim is set"));
            }
            (false, true) => {
                if required.iter().any(|(other, _)| other == claim) {
                    return Err(rule.wrong("claim", "Duplicate value"));
                }
                required.push((claim.to_owned(), rule.text("requiredValue")?.to_owned()));
            }
            (true, false) if rule.has("requiredValue") => {
                return Err(rule.wrong("requiredValue", "may not be specified when expression is set"));
            }
            (true, false) => {
                rules.push((
                    Expression::compile(&rule, "expression", "claims", &["bool"])?,
                    message.to_owned(),
                ));
            }
        }
    }
    Ok((required, rules))
}

fn mapping(section: &Section<'_>, rules: &[(Expression, String)]) -> Result<Mapping, ConfigError> {
    section.only(&["username", "groups", "uid", "extra"])?;
    let name = section.section("username")?;
    let name =
        name.ok_or_else(|| section.wrong("username", "Required value: claim or expression is required"))?;
    let name = prefixed(&name)?
        .ok_or_else(|| section.wrong("username", "Required value: claim or expression is required"))?;
    let groups = section.section("groups")?.map(|groups| prefixed(&groups)).transpose()?.flatten();
    let uid = section.section("uid")?.map(|uid| {
        uid.only(&["claim", "expression"])?;
        source(&uid, String::new())
    });
    let mut extra: Vec<(String, Expression)> = Vec::new();
    for item in section.sections("extra")? {
        item.only(&["key", "valueExpression"])?;
        let key = item.required("key")?;
        check_extra(&item, key)?;
        if extra.iter().any(|(other, _)| other == key) {
            return Err(item.wrong("key", "Duplicate value"));
        }
        item.required("valueExpression")?;
        extra.push((key.to_owned(), Expression::compile(&item, "valueExpression", "claims", &[])?));
    }
    if let Source::Expression(expression) = &name {
        let verified = |expression: &Expression| expression.reads("email_verified");
        let anywhere = verified(expression)
            || rules.iter().any(|(rule, _)| verified(rule))
            || extra.iter().any(|(_, value)| verified(value));
        if expression.reads("email") && !anywhere {
            return Err(section.wrong(
                "username.expression",
                "claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression",
            ));
        }
    }
    Ok(Mapping { name, groups, uid: uid.transpose()?.flatten(), extra })
}

/// A claim with a prefix, which has to be said even if it is empty, or an expression.
fn prefixed(section: &Section<'_>) -> Result<Option<Source>, ConfigError> {
    section.only(&["claim", "prefix", "expression"])?;
    let has_claim = !section.text("claim")?.is_empty();
    if has_claim && !section.has("prefix") {
        return Err(section.wrong("prefix", "Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing"));
    }
    if !has_claim && section.has("prefix") {
        return Err(section.wrong("prefix", "prefix can't be set when claim isn't set"));
    }
    source(section, section.text("prefix")?.to_owned())
}

fn source(section: &Section<'_>, prefix: String) -> Result<Option<Source>, ConfigError> {
    let claim = section.text("claim")?.to_owned();
    match (claim.is_empty(), section.text("expression")?.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Err(section.wrong("expression", "claim and expression can't both be set")),
        (false, true) => Ok(Some(Source::Claim { claim, prefix })),
        (true, false) => Expression::compile(section, "expression", "claims", &[])
            .map(|one| Some(Source::Expression(Box::new(one)))),
    }
}

fn check_extra(item: &Section<'_>, key: &str) -> Result<(), ConfigError> {
    let wrong = |why: &str| Err(item.wrong("key", format!("Invalid value: {key:?}: {why}")));
    let Some((domain, path)) =
        key.split_once('/').filter(|(domain, path)| !domain.is_empty() && !path.is_empty())
    else {
        return wrong("must be a domain-prefixed path (such as \"acme.io/foo\")");
    };
    if !kcore::selector::is_dns_subdomain(domain) || path.contains(' ') {
        return wrong("must be a domain-prefixed path (such as \"acme.io/foo\")");
    }
    if key.to_lowercase() != key {
        return wrong("must be lowercase");
    }
    let reserved = |root: &str| domain == root || domain.ends_with(&format!(".{root}"));
    if reserved("kubernetes.io") || reserved("k8s.io") {
        return wrong("k8s.io, kubernetes.io and their subdomains are reserved for Kubernetes use");
    }
    Ok(())
}
