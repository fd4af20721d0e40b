//! Labels and selectors as text.

use serde_json::Value;

use super::columns::{list, text};

/// `a=1,b=2`, or `<none>` (`labels.FormatLabels`).
pub(super) fn format(labels: &Value) -> String {
    let pairs = pairs(labels, "=");
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// A label selector in the form that a query takes, or `<none>` (`metav1.FormatLabelSelector`).
pub(super) fn selector(selector: &Value) -> String {
    let written = plain_selector(selector);
    if written.is_empty() { "<none>".to_owned() } else { written }
}

/// A label selector in the form that a query takes: its requirements ordered by key (`labels.Selector.String`).
pub(super) fn plain_selector(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = Vec::new();
    if let Some(labels) = selector["matchLabels"].as_object() {
        parts.extend(
            labels
                .iter()
                .map(|(key, value)| (key.clone(), format!("{key}={}", value.as_str().unwrap_or_default()))),
        );
    }
    for requirement in list(selector, "matchExpressions") {
        let key = text(requirement, "key");
        let mut values: Vec<&str> = list(requirement, "values").iter().filter_map(Value::as_str).collect();
        values.sort_unstable();
        let written = match text(requirement, "operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), written));
    }
    parts.sort_by(|a, b| a.0.cmp(&b.0));
    parts.into_iter().map(|(_, written)| written).collect::<Vec<_>>().join(",")
}

/// A label selector as Go's generated `String` writes it.
pub(super) fn go_selector(selector: &Value) -> String {
    let labels: String =
        pairs(&selector["matchLabels"], ": ").iter().map(|pair| format!("{pair},")).collect();
    let expressions: String = list(selector, "matchExpressions")
        .iter()
        .map(|requirement| {
            let values: Vec<&str> = list(requirement, "values").iter().filter_map(Value::as_str).collect();
            let (key, operator) = (text(requirement, "key"), text(requirement, "operator"));
            let values = values.join(" ");
            format!("LabelSelectorRequirement{{Key:{key},Operator:{operator},Values:[{values}],}},")
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn pairs(labels: &Value, between: &str) -> Vec<String> {
    let labels = labels.as_object().into_iter().flatten();
    let mut pairs: Vec<String> =
        labels.map(|(key, value)| format!("{key}{between}{}", value.as_str().unwrap_or_default())).collect();
    pairs.sort_unstable();
    pairs
}
