//! The environment of a container: values, references, the addresses of Services, and `$(NAME)` in all of it.

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, Service};

use crate::{
    downward::{self, Facts},
    runtime::RuntimeError,
    sources::Sources,
};

/// Puts the value of each variable in `text` in the place of `$(NAME)`. `$$(NAME)` stands for `$(NAME)` itself, and a name
/// that isn't known stays as it is.
///
/// ```
/// let env = [("PORT".to_owned(), "80".to_owned())];
/// assert_eq!(kruntime::env::expand("a:$(PORT) $$(PORT) $(NONE) $", &env), "a:80 $(PORT) $(NONE) $");
/// ```
#[must_use]
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match env.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// The variables of one Service, as Docker links had them: `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`, `NAME_PORT`, ...
#[must_use]
pub fn service_variables(service: &Service) -> Vec<(String, String)> {
    let mut env = Vec::new();
    let Some(spec) = &service.spec else { return env };
    let Some(host) = spec.cluster_ip.as_deref().filter(|ip| !["", "None"].contains(ip)) else { return env };
    let name = service.metadata.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return env };
    env.push((format!("{name}_SERVICE_HOST"), host.to_owned()));
    env.push((format!("{name}_SERVICE_PORT"), first.port.to_string()));
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|name| !name.is_empty()) {
            let port_name = port_name.to_uppercase().replace('-', "_");
            env.push((format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string()));
        }
    }
    let bracketed = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    for (index, port) in ports.iter().enumerate() {
        let upper = port.protocol.as_deref().unwrap_or("TCP");
        let lower = upper.to_lowercase();
        let url = format!("{lower}://{bracketed}:{}", port.port);
        if index == 0 {
            env.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{}_{upper}", port.port);
        env.push((prefix.clone(), url));
        env.push((format!("{prefix}_PROTO"), lower));
        env.push((format!("{prefix}_PORT"), port.port.to_string()));
        env.push((format!("{prefix}_ADDR"), host.to_owned()));
    }
    env
}

/// The environment of `container`, in the order of definition.
///
/// # Errors
/// [`RuntimeError::Config`] when something that is referred to isn't there.
pub async fn resolve(
    facts: &Facts<'_>,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<(String, String)>, RuntimeError> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = Vec::new();
    for service in sources.services(namespace, links(facts.pod)) {
        env.extend(service_variables(&service));
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let map = if let Some(source) = &from.config_map_ref {
            sources.config_map(namespace, &source.name, source.optional.unwrap_or(false)).await?
        } else if let Some(source) = &from.secret_ref {
            sources.secret(namespace, &source.name, source.optional.unwrap_or(false)).await?
        } else {
            None
        };
        for (key, value) in map.into_iter().flatten() {
            set(&mut env, format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned());
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(facts, container, variable, sources, &env).await? {
            set(&mut env, variable.name.clone(), value);
        }
    }
    Ok(env)
}

fn links(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.enable_service_links).unwrap_or(true)
}

fn set(env: &mut Vec<(String, String)>, name: String, value: String) {
    match env.iter_mut().find(|(known, _)| *known == name) {
        Some(known) => known.1 = value,
        None => env.push((name, value)),
    }
}

async fn value_of(
    facts: &Facts<'_>,
    container: &Container,
    variable: &EnvVar,
    sources: &Sources,
    env: &[(String, String)],
) -> Result<Option<String>, RuntimeError> {
    let Some(from) = &variable.value_from else {
        return Ok(Some(expand(variable.value.as_deref().unwrap_or_default(), env)));
    };
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    if let Some(reference) = &from.field_ref {
        return downward::field(facts, &reference.field_path).map(Some);
    }
    if let Some(reference) = &from.resource_field_ref {
        return downward::resource(facts, Some(container), reference).map(Some);
    }
    let (map, kind, name, key, optional) = if let Some(reference) = &from.config_map_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let map = sources.config_map(namespace, &reference.name, optional).await?;
        (map, "ConfigMap", &reference.name, &reference.key, optional)
    } else if let Some(reference) = &from.secret_key_ref {
        let optional = reference.optional.unwrap_or(false);
        let map = sources.secret(namespace, &reference.name, optional).await?;
        (map, "Secret", &reference.name, &reference.key, optional)
    } else {
        return Err(RuntimeError::Config(format!("unsupported source of variable {}", variable.name)));
    };
    match map.and_then(|mut map| map.remove(key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(&value).into_owned())),
        None if optional => Ok(None),
        None => Err(RuntimeError::Config(format!("couldn't find key {key} in {kind} {namespace}/{name}"))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_are_announced_as_docker_links() {
        let service = serde_json::from_value(json!({
            "metadata": {"name": "red-is"},
            "spec": {"clusterIP": "10.0.0.11", "ports": [{"port": 6379, "name": "db-main"}]},
        }))
        .unwrap();
        let text: Vec<_> =
            service_variables(&service).into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            text,
            [
                "RED_IS_SERVICE_HOST=10.0.0.11",
                "RED_IS_SERVICE_PORT=6379",
                "RED_IS_SERVICE_PORT_DB_MAIN=6379",
                "RED_IS_PORT=tcp://10.0.0.11:6379",
                "RED_IS_PORT_6379_TCP=tcp://10.0.0.11:6379",
                "RED_IS_PORT_6379_TCP_PROTO=tcp",
                "RED_IS_PORT_6379_TCP_PORT=6379",
                "RED_IS_PORT_6379_TCP_ADDR=10.0.0.11",
            ]
        );
    }
}
