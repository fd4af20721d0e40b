//! What admission is shown of a request that makes a connection: the caller's options, which stand in the query, as the object that
//! upstream makes of them (`getRequestOptions`, `core/v1` `PodExecOptions` and its like).

use serde_json::{Value, json};

use crate::request::{Query, RequestInfo};

/// The kind of the options of a subresource that is connected to.
pub(crate) fn options_kind(kind: &str, subresource: &str) -> String {
    let what = match subresource {
        "exec" => "Exec",
        "attach" => "Attach",
        "portforward" => "PortForward",
        _ => "Proxy",
    };
    format!("{kind}{what}Options")
}

/// The options. What is not given, or empty, is left out.
pub(super) fn options(kind: &str, info: &RequestInfo, query: &Query) -> Value {
    let mut options = json!({"kind": options_kind(kind, &info.subresource), "apiVersion": "v1"});
    match info.subresource.as_str() {
        "exec" | "attach" => {
            for flag in ["stdin", "stdout", "stderr", "tty"] {
                // Go's conversion of a list of texts: there, and not "false" or "0".
                let given = query.all(flag).next().map(str::to_lowercase);
                if given.is_some_and(|given| given != "false" && given != "0") {
                    options[flag] = true.into();
                }
            }
            if let Some(container) = query.get("container").filter(|container| !container.is_empty()) {
                options["container"] = container.into();
            }
            let command: Vec<&str> = query.all("command").collect();
            if info.subresource == "exec" && !command.is_empty() {
                options["command"] = json!(command);
            }
        }
        "portforward" => {
            let ports = query.all("ports").flat_map(|ports| ports.split(','));
            let ports: Vec<i32> = ports.filter_map(|port| port.parse().ok()).collect();
            if !ports.is_empty() {
                options["ports"] = json!(ports);
            }
        }
        _ => {
            let path = path(info);
            if !path.is_empty() {
                options["path"] = path.into();
            }
        }
    }
    options
}

/// The path behind the word `proxy`, with the slash at its end if there is one.
pub(super) fn path(info: &RequestInfo) -> String {
    let mut path = if info.rest.is_empty() { String::new() } else { format!("/{}", info.rest) };
    if info.path.ends_with('/') && !path.ends_with('/') {
        path.push('/');
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected results: `core/v1` `conversion.go` and `zz_generated.conversion.go` of url.Values, `rest_test.go` of proxies.
    #[test]
    fn options_are_read_from_the_query() {
        for (path, query, expected) in [
            (
                "/api/v1/namespaces/a/pods/b/exec",
                "command=ls&command=-l&stdin=true&stdout=1&stderr=false&tty=0&container=c",
                json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "stdout": true, "container": "c", "command": ["ls", "-l"]}),
            ),
            (
                "/api/v1/namespaces/a/pods/b/attach",
                "command=ls&tty=",
                json!({"kind": "PodAttachOptions", "apiVersion": "v1", "tty": true}),
            ),
            (
                "/api/v1/namespaces/a/pods/b/portforward",
                "ports=80,81&ports=82",
                json!({"kind": "PodPortForwardOptions", "apiVersion": "v1", "ports": [80, 81, 82]}),
            ),
            (
                "/api/v1/namespaces/a/pods/b/proxy/c/d/",
                "",
                json!({"kind": "PodProxyOptions", "apiVersion": "v1", "path": "/c/d/"}),
            ),
            ("/api/v1/namespaces/a/pods/b/proxy", "", json!({"kind": "PodProxyOptions", "apiVersion": "v1"})),
        ] {
            let query = Query::parse(query);
            let info = RequestInfo::new(&http::Method::POST, path, &query);
            assert_eq!(options("Pod", &info, &query), expected, "{path}");
        }
    }
}
