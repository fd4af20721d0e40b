//! The extenders of a configuration.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{ConfigError, PluginConfiguration, ProfileConfiguration};

/// What is said of one extender (`Extender` of `kubescheduler.config.k8s.io/v1`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExtenderConfiguration {
    pub(super) url_prefix: String,
    pub(super) filter_verb: String,
    pub(super) preempt_verb: String,
    pub(super) prioritize_verb: String,
    pub(super) weight: i64,
    pub(super) bind_verb: String,
    #[serde(rename = "enableHTTPS")]
    pub(super) enable_https: bool,
    pub(super) tls_config: Option<Value>,
    pub(super) http_timeout: Option<String>,
    pub(super) node_cache_capable: bool,
    pub(super) managed_resources: Vec<ManagedResource>,
    pub(super) ignorable: bool,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ManagedResource {
    pub(super) name: String,
    #[serde(default)]
    pub(super) ignored_by_scheduler: bool,
}

/// A duration as Go writes it, such as `1m30s` or `100ms`.
pub(super) fn go_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 8] = [
        ("ns", 1e-9),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("μs", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit =
            rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len() - digits);
        let (unit, after) = rest[digits..].split_at(unit);
        seconds += number * UNITS.iter().find(|(name, _)| *name == unit)?.1;
        rest = after;
    }
    (!text.is_empty()).then_some(())?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Upstream's `validateExtenders`.
pub(super) fn check(extenders: &[ExtenderConfiguration], errors: &mut Vec<ConfigError>) {
    let mut managed: Vec<&str> = Vec::new();
    for (number, extender) in extenders.iter().enumerate() {
        let path = format!("extenders[{number}]");
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            let why = "must have a positive weight applied to it";
            errors.push(ConfigError::invalid(format!("{path}.weight"), extender.weight, why));
        }
        if let Some(text) = &extender.http_timeout
            && go_duration(text).is_none()
        {
            let why = format!("strict decoding error: time: invalid duration {text:?}");
            errors.push(ConfigError::new(format!("{path}.httpTimeout"), why));
        }
        for (number, resource) in extender.managed_resources.iter().enumerate() {
            let path = format!("{path}.managedResources[{number}].name");
            let mut invalid =
                |why: &str| errors.push(ConfigError::invalid(&path, format!("{:?}", resource.name), why));
            if let Some(why) = kcore::selector::key_fault(&resource.name) {
                invalid(&why);
            } else if !is_extended(&resource.name) {
                invalid("is an invalid extended resource name");
            }
            if managed.contains(&&*resource.name) {
                invalid("duplicate extender managed resource name");
            }
            managed.push(&resource.name);
        }
    }
    let binders = extenders.iter().filter(|extender| !extender.bind_verb.is_empty()).count();
    if binders > 1 {
        let found = format!("\"found {binders} extenders implementing bind\"");
        errors.push(ConfigError::invalid("extenders", found, "only one extender can implement bind"));
    }
}

fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// Tells NodeResourcesFit which resources an extender looks after, as upstream's `buildExtenders`.
pub(super) fn ignore_resources(extenders: &[ExtenderConfiguration], profiles: &mut [ProfileConfiguration]) {
    let all = extenders.iter().flat_map(|extender| &extender.managed_resources);
    let ignored: Vec<&str> =
        all.filter(|resource| resource.ignored_by_scheduler).map(|resource| &*resource.name).collect();
    if ignored.is_empty() {
        return;
    }
    const FIT: &str = "NodeResourcesFit";
    for profile in profiles {
        let known = profile.plugin_config.iter_mut().find(|config| config.name == FIT);
        match known {
            Some(config) if config.args.is_object() => config.args["ignoredResources"] = json!(ignored),
            Some(config) => config.args = json!({"ignoredResources": ignored}),
            None => profile.plugin_config.push(PluginConfiguration {
                name: FIT.to_owned(),
                args: json!({"ignoredResources": ignored}),
            }),
        }
    }
}

#[cfg(feature = "http-extenders")]
mod build {
    use std::sync::Arc;

    use super::{ExtenderConfiguration, go_duration};
    use crate::{
        config::{ConfigError, ConfigErrors, SchedulerConfiguration},
        extender::{Extender, HttpExtender, HttpExtenderOptions},
    };

    impl ExtenderConfiguration {
        fn build(&self) -> Result<Arc<dyn Extender>, ConfigError> {
            let tls = self.tls_config.clone().map(serde_json::from_value).transpose();
            let tls = tls.map_err(|error| ConfigError::new("tlsConfig", error.to_string()))?;
            let extender = HttpExtender::new(HttpExtenderOptions {
                url_prefix: self.url_prefix.clone(),
                filter_verb: self.filter_verb.clone(),
                preempt_verb: self.preempt_verb.clone(),
                prioritize_verb: self.prioritize_verb.clone(),
                weight: self.weight,
                bind_verb: self.bind_verb.clone(),
                enable_https: self.enable_https,
                tls: tls.unwrap_or_default(),
                timeout: self.http_timeout.as_deref().and_then(go_duration).unwrap_or_default(),
                node_cache_capable: self.node_cache_capable,
                managed_resources: self.managed_resources.iter().map(|known| known.name.clone()).collect(),
                ignorable: self.ignorable,
            });
            Ok(Arc::new(extender.map_err(|error| ConfigError::new("urlPrefix", error.to_string()))?))
        }
    }

    impl SchedulerConfiguration {
        /// Makes the extenders, for [`SchedulerBuilder::extender`](crate::SchedulerBuilder::extender).
        ///
        /// # Errors
        /// When a URL is none, or certificates can't be read.
        pub fn extenders(&self) -> Result<Vec<Arc<dyn Extender>>, ConfigErrors> {
            let (mut extenders, mut errors) = (Vec::new(), Vec::new());
            for (number, extender) in self.extenders.iter().enumerate() {
                match extender.build() {
                    Ok(built) => extenders.push(built),
                    Err(error) => errors.push(error.below(&format!("extenders[{number}]"))),
                }
            }
            if errors.is_empty() { Ok(extenders) } else { Err(ConfigErrors(errors)) }
        }
    }
}
