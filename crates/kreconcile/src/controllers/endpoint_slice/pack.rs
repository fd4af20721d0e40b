//! How the endpoints of a Service are put into slices: no I/O.

use std::collections::BTreeMap;

use serde_json::Value;

/// A slice that is there: its endpoints, by the pod's uid and address.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slice {
    pub(super) name: String,
    pub(super) endpoints: Vec<Value>,
}

/// What to do so that the slices hold what they should.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Packing {
    /// The endpoints of new slices.
    pub(super) create: Vec<Vec<Value>>,
    /// Slices with other endpoints.
    pub(super) update: Vec<Slice>,
    /// The names of slices that are empty.
    pub(super) delete: Vec<String>,
}

fn identity(endpoint: &Value) -> (String, String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    (text(&endpoint["targetRef"]["uid"]), text(&endpoint["addresses"][0]))
}

/// Keeps endpoints in the slice where they are, fills up slices that change anyway, then one that has room for all the
/// rest, and puts what is left into new ones: as few writes as possible, not as few slices (upstream's
/// `reconcileByPortMapping`).
pub(super) fn pack(mut slices: Vec<Slice>, wanted: Vec<Value>, most: usize) -> Packing {
    let mut wanted: BTreeMap<_, _> =
        wanted.into_iter().map(|endpoint| (identity(&endpoint), endpoint)).collect();
    slices.sort_by(|one, two| one.name.cmp(&two.name));
    let mut changed = vec![false; slices.len()];
    for (slice, changed) in slices.iter_mut().zip(&mut changed) {
        let kept: Vec<Value> =
            slice.endpoints.iter().filter_map(|known| wanted.remove(&identity(known))).collect();
        *changed = kept != slice.endpoints;
        slice.endpoints = kept;
    }
    let mut rest: Vec<Value> = wanted.into_values().collect();
    for (slice, _) in slices.iter_mut().zip(&changed).filter(|(_, changed)| **changed) {
        let room = most.saturating_sub(slice.endpoints.len()).min(rest.len());
        slice.endpoints.extend(rest.drain(..room));
    }
    if !rest.is_empty() {
        let fits = |slice: &Slice| !slice.endpoints.is_empty() && slice.endpoints.len() + rest.len() <= most;
        if let Some(at) = slices.iter().position(fits) {
            slices[at].endpoints.append(&mut rest);
            changed[at] = true;
        }
    }
    let mut packing = Packing::default();
    while !rest.is_empty() {
        let count = most.min(rest.len());
        packing.create.push(rest.drain(..count).collect());
    }
    for (slice, changed) in slices.into_iter().zip(changed) {
        if slice.endpoints.is_empty() {
            packing.delete.push(slice.name);
        } else if changed {
            packing.update.push(slice);
        }
    }
    packing
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoint(name: char) -> Value {
        let ready = name.is_lowercase();
        let name = name.to_ascii_lowercase().to_string();
        json!({"targetRef": {"uid": name}, "addresses": [name], "conditions": {"ready": ready}})
    }

    fn show(endpoints: &[Value]) -> String {
        let text = |endpoint: &Value| {
            let name = endpoint["addresses"][0].as_str().unwrap_or_default().to_owned();
            if endpoint["conditions"]["ready"] == true { name } else { name.to_uppercase() }
        };
        endpoints.iter().map(text).collect()
    }

    /// Slices of at most three; a capital letter is an endpoint that is not ready.
    fn check(slices: &[&str], wanted: &str, expected: &str) {
        let slice = |(index, text): (usize, &&str)| Slice {
            name: index.to_string(),
            endpoints: text.chars().map(endpoint).collect(),
        };
        let slices = slices.iter().enumerate().map(slice).collect();
        let packing = pack(slices, wanted.chars().map(endpoint).collect(), 3);
        let mut seen: Vec<String> =
            packing.update.iter().map(|slice| format!("{}={}", slice.name, show(&slice.endpoints))).collect();
        seen.extend(packing.create.iter().map(|endpoints| format!("+{}", show(endpoints))));
        seen.extend(packing.delete.iter().map(|name| format!("-{name}")));
        assert_eq!(seen.join(" "), expected, "{wanted}");
    }

    #[test]
    fn endpoints_stay_where_they_are() {
        check(&[], "abcd", "+abc +d");
        check(&["abc"], "abc", "");
        check(&["abc"], "aBc", "0=aBc");
        check(&["abc", "d"], "abcde", "1=de");
        check(&["abc", "def"], "abef", "0=ab 1=ef");
        check(&["abc", "def"], "abdefg", "0=abg");
        check(&["abc", "d"], "abc", "-1");
        check(&["abc"], "abcdefg", "+def +g");
        check(&["abc"], "", "-0");
    }
}
