//! Labels of nodes that newer ones have replaced (`pkg/api/node/util.go`).

use serde_json::Value;

use crate::check::{Look, Path};

/// What to say about a label that is deprecated.
pub(crate) fn deprecated(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

/// Adds the warnings about a label selector of nodes.
pub(crate) fn selector_warnings(selector: Option<&Value>, path: &Path<'_>, out: &mut Vec<String>) {
    let Some(selector) = selector else {
        return;
    };
    let list = path.field("matchExpressions");
    for (index, expression) in selector.list("matchExpressions").iter().enumerate() {
        let key = expression.text("key");
        if let Some(words) = deprecated(key) {
            out.push(format!("{}: {key} is {words}", list.index(index).field("key")));
        }
    }
    let field = path.field("matchLabels");
    for (key, _) in selector.map("matchLabels") {
        if let Some(words) = deprecated(key) {
            out.push(format!("{}: {words}", field.field(key)));
        }
    }
}
