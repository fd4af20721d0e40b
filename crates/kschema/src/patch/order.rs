//! The order of a list after it has been merged (`normalizeElementOrder` of upstream's `strategicpatch`).

use ahash::HashMap;
use serde_json::Value;

/// What tells an entry from others: the value of its key, or itself.
pub(super) fn identity(item: &Value, merge_key: Option<&str>) -> String {
    match merge_key {
        Some(key) => item.get(key).unwrap_or(&Value::Null).to_string(),
        None => item.to_string(),
    }
}

/// Where each entry stands.
fn places(list: &[Value], merge_key: Option<&str>) -> HashMap<String, usize> {
    let mut places = HashMap::default();
    for (place, item) in list.iter().enumerate() {
        places.entry(identity(item, merge_key)).or_insert(place);
    }
    places
}

/// Brings the entries that `order` names into its order. Those that only the server has keep theirs, and stand before the first
/// of the others that the server, too, had after them.
pub(super) fn arrange(
    merged: Vec<Value>,
    order: &[Value],
    server: &[Value],
    merge_key: Option<&str>,
) -> Vec<Value> {
    let (order, server) = (places(order, merge_key), places(server, merge_key));
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in merged {
        let id = identity(&item, merge_key);
        let on_server = server.get(&id).copied();
        match order.get(&id) {
            Some(place) => named.push((*place, on_server, item)),
            None => others.push((on_server, item)),
        }
    }
    named.sort_by_key(|(place, ..)| *place);
    others.sort_by_key(|(on_server, _)| *on_server);
    let mut out = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for (_, on_server, item) in named {
        while let Some((other, _)) = others.peek()
            && matches!((other, on_server), (Some(other), Some(place)) if *other < place)
        {
            out.extend(others.next().map(|(_, item)| item));
        }
        out.push(item);
    }
    out.extend(others.map(|(_, item)| item));
    out
}
