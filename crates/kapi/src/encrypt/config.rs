//! `apiserver.config.k8s.io/v1` `EncryptionConfiguration`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{
    kms::{Kms, KmsConfig},
    provider::{Key, Kind, Provider},
};
use crate::config::{self, ConfigError, Section};

/// How many rules a configuration may have.
pub const RULES_MAX: usize = 1_000;
/// How long a call of a key management service may take unless the configuration says it.
const KMS_TIMEOUT: Duration = Duration::from_secs(3);
/// How many providers a rule may have.
pub const PROVIDERS_MAX: usize = 100;

/// Which kinds are stored how: the first rule that names a kind decides.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<(Vec<Named>, Vec<Provider>)>);

/// A kind, or several.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    group: String,
    plural: String,
}

impl Named {
    /// `secrets`, `deployments.apps`, `*.` (the core group), `*.apps`, `*.*`.
    fn parse(text: &str) -> Self {
        let (plural, group) = text.split_once('.').unwrap_or((text, ""));
        Self { group: group.to_owned(), plural: plural.to_owned() }
    }

    fn covers(&self, group: &str, plural: &str) -> bool {
        (self.group == "*" || self.group == group) && (self.plural == "*" || self.plural == plural)
    }
}

impl Rules {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let document = config::read(text, "EncryptionConfiguration", &["apiserver.config.k8s.io/v1"])?;
        let root = Section::root(&document)?;
        root.only(&["apiVersion", "kind", "resources"])?;
        let sections = root.sections("resources")?;
        if sections.is_empty() {
            return Err(root.wrong("resources", "Required value: at least one resources is required"));
        }
        if sections.len() > RULES_MAX {
            return Err(root.wrong("resources", format!("must have at most {RULES_MAX} items")));
        }
        let mut services: Vec<String> = Vec::new();
        let mut rule = |section: &Section<'_>| {
            section.only(&["resources", "providers"])?;
            let providers = section.sections("providers")?;
            if providers.is_empty() {
                return Err(section.wrong("providers", "Required value: at least one providers is required"));
            }
            if providers.len() > PROVIDERS_MAX {
                return Err(section.wrong("providers", format!("must have at most {PROVIDERS_MAX} items")));
            }
            let providers =
                providers.iter().map(|section| provider(section, &mut services)).collect::<Result<_, _>>()?;
            Ok((names(section)?, providers))
        };
        Ok(Self(sections.iter().map(&mut rule).collect::<Result<_, _>>()?))
    }

    /// The key management services.
    pub(super) fn kms(&self) -> impl Iterator<Item = &Arc<Kms>> {
        self.0.iter().flat_map(|(_, providers)| providers).filter_map(|provider| match provider {
            Provider::Kms(kms) => Some(kms),
            _ => None,
        })
    }

    /// The providers of a kind; none: it is stored as it is.
    pub(super) fn of(&self, group: &str, plural: &str) -> &[Provider] {
        // Both groups of events are one kind, which upstream keeps in the core group.
        let group = if group == "events.k8s.io" { "" } else { group };
        let covers = |names: &[Named]| names.iter().any(|name| name.covers(group, plural));
        self.0.iter().find(|(names, _)| covers(names)).map_or(&[], |(_, providers)| providers)
    }
}

/// Upstream's `validateResourceNames` and `validateResourceOverlap`.
fn names(section: &Section<'_>) -> Result<Vec<Named>, ConfigError> {
    let texts = section.texts("resources")?;
    if texts.is_empty() {
        return Err(section.wrong("resources", "Required value: at least one resources is required"));
    }
    let names: Vec<Named> = texts.iter().map(|text| Named::parse(text)).collect();
    for (index, (text, name)) in texts.iter().zip(&names).enumerate() {
        let why = if text.chars().any(char::is_uppercase) {
            "resource name should not contain capital letters"
        } else if text == "*" {
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
        } else if ["apiserveripinfo", "serviceipallocations", "servicenodeportallocations"]
            .contains(&text.as_str())
        {
            "resources which do not have REST API/s cannot be encrypted"
        } else if name.group == "events.k8s.io" {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        } else if name.group == "extensions" {
            "'extensions' group has been removed and cannot be used for encryption"
        } else if name.group == "*" && name.plural != "*" {
            "encrypting the same resource across groups is not supported"
        } else {
            continue;
        };
        return Err(section.wrong(&format!("resources[{index}]"), format!("Invalid value: {text:?}: {why}")));
    }
    for (index, one) in names.iter().enumerate() {
        let others = names.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, other)| other);
        for other in others {
            if one == other {
                return Err(
                    section.wrong("resources", "the same resource cannot be specified multiple times")
                );
            }
            let any = one.group == "*" && one.plural == "*";
            if any || (one.group == other.group && (one.plural == "*" || other.plural == "*")) {
                return Err(section.wrong("resources", "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked"));
            }
        }
    }
    Ok(names)
}

fn provider(section: &Section<'_>, services: &mut Vec<String>) -> Result<Provider, ConfigError> {
    section.only(&["aescbc", "aesgcm", "secretbox", "identity", "kms"])?;
    let names = ["aescbc", "aesgcm", "secretbox", "identity", "kms"];
    let given: Vec<&str> = names.into_iter().filter(|name| section.has(name)).collect();
    let missing = || {
        ConfigError::new(
            section.path("").trim_end_matches('.'),
            "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
        )
    };
    let kind = match given.as_slice() {
        ["identity"] => return Ok(Provider::Identity),
        ["kms"] => {
            let inner = section.section("kms")?.ok_or_else(missing)?;
            let config = service(&inner, services)?;
            let started = Kms::start(config);
            let kms = started.map_err(|why| section.wrong("kms", why.to_string()))?;
            return Ok(Provider::Kms(Arc::new(kms)));
        }
        [one] => Kind::ALL.into_iter().find(|kind| kind.name() == *one),
        [] => None,
        [_, second, ..] => {
            return Err(section.wrong(second, "more than one provider specified in a single element, should split into different list elements"));
        }
    };
    let kind = kind.ok_or_else(missing)?;
    let inner = section.section(kind.name())?.ok_or_else(missing)?;
    inner.only(&["keys"])?;
    let keys = inner.sections("keys")?;
    if keys.is_empty() {
        return Err(inner.wrong("keys", "Required value: at least one keys is required"));
    }
    Ok(Provider::Keys {
        kind,
        keys: keys.iter().map(|section| key(kind, section)).collect::<Result<_, _>>()?,
    })
}

/// Upstream's `validateKMSConfiguration`, for version 2.
fn service(section: &Section<'_>, services: &mut Vec<String>) -> Result<KmsConfig, ConfigError> {
    section.only(&["apiVersion", "name", "cachesize", "endpoint", "timeout"])?;
    let version = section.text("apiVersion")?;
    if !["", "v1", "v2"].contains(&version) {
        let why = "unsupported apiVersion apiVersion for KMS provider, only v1 and v2 are supported";
        return Err(section.wrong("apiVersion", format!("Invalid value: {version:?}: {why}")));
    }
    if version != "v2" {
        // Upstream's default, and off there since 1.29.
        return Err(section.wrong("apiVersion", "KMSv1 is deprecated and not supported. Use KMSv2 instead."));
    }
    let name = section.required("name")?;
    let invalid = |field: &str, value: &str, why: &str| {
        section.wrong(field, format!("Invalid value: {value:?}: {why}"))
    };
    if name.contains(':') {
        let why = format!("invalid KMS provider name {name}, must not contain ':'");
        return Err(invalid("name", name, &why));
    }
    if services.iter().any(|other| other == name) {
        let why = format!("duplicate KMS provider name {name}, names must be unique");
        return Err(invalid("name", name, &why));
    }
    services.push(name.to_owned());
    if section.has("cachesize") {
        return Err(section.wrong("cachesize", "cachesize is not supported in v2"));
    }
    let endpoint = section.text("endpoint")?;
    if endpoint.is_empty() {
        return Err(invalid("endpoint", "", "endpoint is a mandatory field for a kms"));
    }
    let socket = endpoint.strip_prefix("unix://").filter(|path| path.starts_with('/'));
    let socket = socket.ok_or_else(|| {
        let scheme = endpoint.split_once(':').map_or("", |(scheme, _)| scheme);
        let why = if scheme == "unix" {
            "the path of the socket is not absolute".to_owned()
        } else {
            format!("unsupported scheme {scheme:?} for KMS provider, only unix is supported")
        };
        invalid("endpoint", endpoint, &why)
    })?;
    // A name without a file.
    let socket = socket.strip_prefix("/@").map_or_else(|| socket.to_owned(), |name| format!("\0{name}"));
    let timeout = section.duration("timeout")?.unwrap_or(KMS_TIMEOUT);
    if timeout.is_zero() {
        return Err(invalid("timeout", "0s", "timeout should be a positive value"));
    }
    Ok(KmsConfig { name: name.to_owned(), socket: PathBuf::from(socket), timeout })
}

fn key(kind: Kind, section: &Section<'_>) -> Result<Key, ConfigError> {
    section.only(&["name", "secret"])?;
    let (name, secret) = (section.required("name")?, section.required("secret")?);
    let wrong = |why: String| section.wrong("secret", format!("Invalid value: \"REDACTED\": {why}"));
    let secret = STANDARD.decode(secret).map_err(|_| wrong("secrets must be base64 encoded".to_owned()))?;
    let length = secret.len();
    Key::new(kind, name, secret).ok_or_else(|| {
        let sizes: Vec<String> = kind.sizes().iter().map(ToString::to_string).collect();
        wrong(format!(
            "secret is not of the expected length, got {length}, expected one of [{}]",
            sizes.join(" ")
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

    fn rules(resources: &str) -> Result<Rules, ConfigError> {
        Rules::parse(&format!(
            "{{apiVersion: apiserver.config.k8s.io/v1, kind: EncryptionConfiguration, resources: [{resources}]}}"
        ))
    }

    /// Expected results: `encryptionconfig/config_test.go`, the tests of wildcards.
    #[test]
    fn the_first_rule_that_names_a_kind_decides() {
        let box_of = |names: &str| {
            format!(
                "{{resources: [{names}], providers: [{{secretbox: {{keys: [{{name: a, secret: {KEY}}}]}}}}]}}"
            )
        };
        let plain = |names: &str| format!("{{resources: [{names}], providers: [{{identity: {{}}}}]}}");
        let cases = format!(
            "{}, {}, {}, {}",
            plain("configmaps, pods.apps"),
            box_of("secrets"),
            box_of("'*.apps'"),
            plain("'*.*'")
        );
        let all = rules(&cases).unwrap();
        let core = rules(&box_of("'*.'")).unwrap();
        for (rules, group, plural, expected) in [
            (&all, "", "secrets", "[secretbox]"),
            (&all, "", "configmaps", "[identity]"),
            (&all, "apps", "pods", "[identity]"),
            (&all, "apps", "deployments", "[secretbox]"),
            (&all, "example.com", "secrets", "[identity]"),
            (&core, "", "pods", "[secretbox]"),
            (&core, "apps", "deployments", "[]"),
            (&core, "events.k8s.io", "events", "[secretbox]"),
        ] {
            assert_eq!(format!("{:?}", rules.of(group, plural)), expected, "{plural}.{group}");
        }
    }

    /// Expected results: `validation_encryption_test.go`.
    #[test]
    fn faults_are_named_and_keys_are_not_shown() {
        let keys = |kind: &str, keys: &str| {
            format!("{{resources: [secrets], providers: [{{{kind}: {{keys: [{keys}]}}}}]}}")
        };
        let named = |names: &str| format!("{{resources: [{names}], providers: [{{identity: {{}}}}]}}");
        let kms = |fields: &str| format!("{{resources: [secrets], providers: [{{kms: {{{fields}}}}}]}}");
        let place = |rest: &str| format!("resources[0].{rest}");
        for (text, field) in [
            (String::new(), "resources".to_owned()),
            ("{resources: [], providers: [{identity: {}}]}".to_owned(), place("resources")),
            ("{resources: [secrets], providers: []}".to_owned(), place("providers")),
            ("{resources: [secrets], providers: [{}]}".to_owned(), place("providers[0]")),
            (
                "{resources: [secrets], providers: [{identity: {}, aesgcm: {}}]}".to_owned(),
                place("providers[0].identity"),
            ),
            (kms("name: a, endpoint: 'unix:///a'"), place("providers[0].kms.apiVersion")),
            (kms("apiVersion: v3, name: a, endpoint: 'unix:///a'"), place("providers[0].kms.apiVersion")),
            (kms("apiVersion: v2, endpoint: 'unix:///a'"), place("providers[0].kms.name")),
            (kms("apiVersion: v2, name: 'a:b', endpoint: 'unix:///a'"), place("providers[0].kms.name")),
            (kms("apiVersion: v2, name: a"), place("providers[0].kms.endpoint")),
            (kms("apiVersion: v2, name: a, endpoint: 'http://a'"), place("providers[0].kms.endpoint")),
            (kms("apiVersion: v2, name: a, endpoint: 'unix:///a', timeout: 0s"), place("providers[0].kms.timeout")),
            (kms("apiVersion: v2, name: a, endpoint: 'unix:///a', cachesize: 1"), place("providers[0].kms.cachesize")),
            (
                "{resources: [secrets], providers: [{kms: {apiVersion: v2, name: a, endpoint: 'unix:///a'}}, {kms: {apiVersion: v2, name: a, endpoint: 'unix:///b'}}]}".to_owned(),
                place("providers[1].kms.name"),
            ),
            (named("'*'"), place("resources[0]")),
            (named("Secrets"), place("resources[0]")),
            (named("'secrets.*'"), place("resources[0]")),
            (named("events.events.k8s.io"), place("resources[0]")),
            (named("'*.extensions'"), place("resources[0]")),
            (named("secrets, secrets"), place("resources")),
            (named("secrets, '*.'"), place("resources")),
            (named("'*.*', pods"), place("resources")),
            (keys("aesgcm", ""), place("providers[0].aesgcm.keys")),
            (keys("aescbc", "{secret: YQ==}"), place("providers[0].aescbc.keys[0].name")),
            (keys("aescbc", "{name: a}"), place("providers[0].aescbc.keys[0].secret")),
            (
                keys("secretbox", "{name: a, secret: aHVudGVyMg==}"),
                place("providers[0].secretbox.keys[0].secret"),
            ),
            (
                keys("secretbox", "{name: a, secret: hunter2!}"),
                place("providers[0].secretbox.keys[0].secret"),
            ),
        ] {
            let error = rules(&text).unwrap_err();
            assert_eq!(error.field, field, "{text}: {error}");
            assert!(!error.to_string().contains("hunter2") && !error.to_string().contains("aHVu"), "{error}");
        }
    }
}
