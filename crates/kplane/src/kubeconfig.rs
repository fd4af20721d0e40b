//! The kubeconfig of a cluster: what kubectl and every other client needs to reach it.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::ca::Credentials;

/// A kubeconfig for one server and one user. It is written as JSON, which is YAML too.
pub(crate) fn render(server: &str, ca_pem: &str, user: &Credentials) -> String {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kplane", "cluster": {"server": server, "certificate-authority-data": STANDARD.encode(ca_pem)}}],
        "users": [{"name": "kplane-admin", "user": {
            "client-certificate-data": STANDARD.encode(&user.certificate_pem),
            "client-key-data": STANDARD.encode(&user.key_pem),
        }}],
        "contexts": [{"name": "kplane", "context": {"cluster": "kplane", "user": "kplane-admin"}}],
        "current-context": "kplane",
    });
    let mut text = serde_json::to_string_pretty(&config).unwrap_or_default();
    text.push('\n');
    text
}
