//! What one object has that another has not: the fields added, changed and removed between two states.

use serde_json::{Map, Value, map::Entry};

use super::{
    fields_v1::{element_text, field_text},
    path::{At, PathElement, equal},
    set::Set,
    shape::{Kind, ListShape, MapShape, Shape},
    typed::{Faults, scalar_fault},
};
use crate::types::Catalog;

/// The difference between two objects, as sets of fields.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    pub(crate) added: Set,
    pub(crate) modified: Set,
    pub(crate) removed: Set,
}

impl Comparison {
    /// Takes fields out of consideration, with all that lies below them.
    pub(crate) fn exclude(&mut self, fields: &Set) {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            *set = set.recursive_difference(fields);
        }
    }
}

/// Compares two objects of one type.
///
/// # Errors
/// When an entry of a list that is merged by keys has none.
pub(crate) fn compare(
    catalog: &Catalog,
    shape: Shape<'_>,
    old: &Value,
    new: &Value,
) -> Result<Comparison, Faults> {
    run(catalog, shape, old, new, Comparison::default())
}

/// What `new` has that `old` has not, or has otherwise, as `fieldsV1`: the added and modified fields of [`compare`], without a
/// set in between.
///
/// # Errors
/// Those of [`compare`].
pub(crate) fn new_fields(
    catalog: &Catalog,
    shape: Shape<'_>,
    old: &Value,
    new: &Value,
) -> Result<Map<String, Value>, Faults> {
    run(catalog, shape, old, new, NewFields::default()).map(|fields| fields.0)
}

fn run<S: Sink>(catalog: &Catalog, shape: Shape<'_>, old: &Value, new: &Value, sink: S) -> Result<S, Faults> {
    let mut walk = Walk { catalog, out: sink, faults: Faults::default() };
    walk.value(shape, old, new, &At::ROOT);
    let Walk { out, faults, .. } = walk;
    faults.into_result().map(|()| out)
}

/// Takes down what a comparison finds.
trait Sink: Sized {
    /// All fields below a place.
    type Fields: Default;

    /// Adds a field, with what lies below it, to those below a place. They come in order.
    fn put(fields: &mut Self::Fields, element: PathElement, below: Self::Fields);
    /// [`put`](Self::put) of a field of an object.
    fn put_field(fields: &mut Self::Fields, name: &str, below: Self::Fields);
    /// A value is another one.
    fn modified(&mut self, at: &At<'_>);
    /// A value came, with all that lies below it.
    fn added(&mut self, at: &At<'_>, below: Self::Fields);
    /// A value went, with all that lies below it.
    fn removed(&mut self, at: &At<'_>, below: Self::Fields);
    /// Whether anybody wants to know what lay below a value that went.
    const WANTS_REMOVED: bool;
}

impl Sink for Comparison {
    type Fields = Set;

    const WANTS_REMOVED: bool = true;

    fn put(fields: &mut Set, element: PathElement, below: Set) {
        fields.add(element, below);
    }

    fn put_field(fields: &mut Set, name: &str, below: Set) {
        fields.add(PathElement::field(name), below);
    }

    fn modified(&mut self, at: &At<'_>) {
        self.modified.insert_at(at);
    }

    fn added(&mut self, at: &At<'_>, below: Set) {
        self.added.graft(at, below);
    }

    fn removed(&mut self, at: &At<'_>, below: Set) {
        self.removed.graft(at, below);
    }
}

/// The fields that are new, as `fieldsV1`.
#[derive(Default)]
struct NewFields(Map<String, Value>);

impl NewFields {
    /// A place becomes a member, with all of `below` below it.
    fn graft(&mut self, at: &At<'_>, below: Map<String, Value>) {
        let Some(parent) = at.parent() else { return };
        let Some(fields) = self.place(parent) else { return };
        match fields.entry(at.text()) {
            Entry::Vacant(place) => {
                place.insert(member(below));
            }
            Entry::Occupied(place) => unite(place.into_mut(), member(below)),
        }
    }

    /// What is stored below a place, made if it is not there.
    fn place(&mut self, at: &At<'_>) -> Option<&mut Map<String, Value>> {
        let Some(parent) = at.parent() else { return Some(&mut self.0) };
        let place = match self.place(parent)?.entry(at.text()) {
            Entry::Vacant(place) => place.insert(Value::Object(Map::new())),
            Entry::Occupied(place) => {
                let place = place.into_mut();
                say_member(place);
                place
            }
        };
        // All that is in here are maps.
        place.as_object_mut()
    }
}

/// A member with these fields below it.
fn member(mut below: Map<String, Value>) -> Value {
    if !below.is_empty() {
        below.insert(".".to_owned(), Value::Object(Map::new()));
    }
    Value::Object(below)
}

/// A leaf is a member; before something comes to lie below it, that has to be said.
fn say_member(place: &mut Value) {
    if let Some(below) = place.as_object_mut().filter(|below| below.is_empty()) {
        below.insert(".".to_owned(), Value::Object(Map::new()));
    }
}

/// Adds what is stored at a place to what is there already.
fn unite(place: &mut Value, mut added: Value) {
    let is_leaf = |value: &Value| value.as_object().is_none_or(Map::is_empty);
    if is_leaf(place) && is_leaf(&added) {
        return;
    }
    say_member(place);
    say_member(&mut added);
    let (Value::Object(place), Value::Object(added)) = (place, added) else { return };
    for (key, below) in added {
        match place.entry(key) {
            Entry::Vacant(place) => {
                place.insert(below);
            }
            Entry::Occupied(place) => unite(place.into_mut(), below),
        }
    }
}

impl Sink for NewFields {
    type Fields = Map<String, Value>;

    const WANTS_REMOVED: bool = false;

    fn put(fields: &mut Map<String, Value>, element: PathElement, below: Map<String, Value>) {
        fields.insert(element_text(&element), member(below));
    }

    fn put_field(fields: &mut Map<String, Value>, name: &str, below: Map<String, Value>) {
        fields.insert(field_text(name), member(below));
    }

    fn modified(&mut self, at: &At<'_>) {
        self.graft(at, Map::new());
    }

    fn added(&mut self, at: &At<'_>, below: Map<String, Value>) {
        self.graft(at, below);
    }

    fn removed(&mut self, _at: &At<'_>, _below: Map<String, Value>) {}
}

struct Walk<'a, S> {
    catalog: &'a Catalog,
    out: S,
    faults: Faults,
}

impl<S: Sink> Walk<'_, S> {
    fn value(&mut self, shape: Shape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        // Most of an object is as it was; telling so costs far less than walking it with its type.
        if equal(old, new) {
            return;
        }
        let kinds = shape.kinds();
        let (old_kinds, new_kinds) = (kinds.narrow(Some(old)), kinds.narrow(Some(new)));
        if old_kinds != new_kinds {
            // The value changed its kind: what lay below goes, what lies below now comes.
            self.kind(old_kinds.first(), shape, old, new, at);
        }
        self.kind(new_kinds.first(), shape, old, new, at);
    }

    fn kind(&mut self, kind: Kind, shape: Shape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        match kind {
            Kind::Scalar => {
                let faults = (scalar_fault(shape.scalar(), old), scalar_fault(shape.scalar(), new));
                if let (Some(old), Some(new)) = faults {
                    self.faults.push(at, format_args!("lhs: {old}"));
                    self.faults.push(at, format_args!("rhs: {new}"));
                } else {
                    self.out.modified(at);
                }
            }
            Kind::List => self.list(shape.list(), old, new, at),
            Kind::Map => self.map(shape.map(self.catalog), old, new, at),
        }
    }

    /// Compares what may be on one side only.
    fn either(&mut self, shape: Shape<'_>, old: Option<&Value>, new: Option<&Value>, at: &At<'_>) {
        match (old, new) {
            (Some(old), Some(new)) => self.value(shape, old, new, at),
            (None, Some(new)) => {
                let below = self.whole(shape, new, at);
                self.out.added(at, below);
            }
            (Some(old), None) => {
                // Faults are found even where nobody wants to know.
                let below = self.whole(shape, old, at);
                if S::WANTS_REMOVED {
                    self.out.removed(at, below);
                }
            }
            (None, None) => {}
        }
    }

    /// All fields below a value that has come or gone as a whole.
    fn whole(&mut self, shape: Shape<'_>, value: &Value, at: &At<'_>) -> S::Fields {
        let mut fields = S::Fields::default();
        match (shape.kind(Some(value)), value) {
            (Kind::Map, Value::Object(map)) => {
                let shape = shape.map(self.catalog);
                if shape.atomic {
                    return fields;
                }
                let always = shape.always().iter().filter(|(key, _)| !map.contains_key(&**key));
                let always = always.map(|(key, value)| (&**key, value));
                for (key, value) in map.iter().map(|(key, value)| (key.as_str(), value)).chain(always) {
                    if let Some(child) = shape.child(key).filter(|child| !child.omits(value)) {
                        let below = self.whole(child, value, &at.field(key));
                        S::put_field(&mut fields, key, below);
                    }
                }
            }
            (Kind::List, Value::Array(list)) if !shape.list().is_atomic() => {
                let shape = shape.list();
                let entries = self.index(shape, list, at);
                let mut rest = entries.into_iter().peekable();
                while let Some((element, entry)) = rest.next() {
                    let mut is_single = true;
                    while rest.next_if(|(next, _)| *next == element).is_some() {
                        is_single = false;
                    }
                    // Entries that stand twice are owned as one.
                    let below = if is_single {
                        self.whole(shape.item, entry, &at.element(&element))
                    } else {
                        S::Fields::default()
                    };
                    S::put(&mut fields, element, below);
                }
            }
            _ => {}
        }
        fields
    }

    fn map(&mut self, shape: MapShape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        let (old, new) = (old.as_object(), new.as_object());
        let is_empty = |map: Option<&Map<String, Value>>| {
            map.is_none_or(|map| map.is_empty() && shape.always().is_empty())
        };
        if shape.atomic || is_empty(old) && is_empty(new) {
            self.out.modified(at);
            return;
        }
        let always = |map: Option<&Map<String, Value>>, key: &str| map.and_then(|_| shape.always_value(key));
        let has = |map: Option<&Map<String, Value>>, key: &str| map.is_some_and(|map| map.contains_key(key));
        for (key, value) in old.into_iter().flatten() {
            let other = new.and_then(|map| map.get(key)).or_else(|| always(new, key));
            self.field(shape, key, Some(value), other, at);
        }
        for (key, value) in new.into_iter().flatten().filter(|(key, _)| !has(old, key)) {
            self.field(shape, key, always(old, key), Some(value), at);
        }
        // A struct that comes or goes brings or takes the fields that every such struct has.
        if old.is_none() != new.is_none() {
            for (key, value) in shape.always().iter().filter(|(key, _)| !has(old, key) && !has(new, key)) {
                self.field(shape, key, old.map(|_| value), new.map(|_| value), at);
            }
        }
    }

    fn field(
        &mut self,
        shape: MapShape<'_>,
        key: &str,
        old: Option<&Value>,
        new: Option<&Value>,
        at: &At<'_>,
    ) {
        // Fields that the schema doesn't know are nobody's; they are refused or dropped before they come here.
        if let Some(child) = shape.child(key) {
            let written = |value: &&Value| !child.omits(value);
            self.either(child, old.filter(written), new.filter(written), &at.field(key));
        }
    }

    fn list(&mut self, shape: ListShape<'_>, old: &Value, new: &Value, at: &At<'_>) {
        let (old, new) = (slice(old), slice(new));
        if shape.is_atomic() || old.is_empty() && new.is_empty() {
            self.out.modified(at);
            return;
        }
        let (old, new) = (self.index(shape, old, at), self.index(shape, new, at));
        let (mut i, mut j) = (0, 0);
        while i < old.len() || j < new.len() {
            let element = match (old.get(i), new.get(j)) {
                (Some(a), Some(b)) if b.0 < a.0 => &b.0,
                (Some(a), _) => &a.0,
                (None, Some(b)) => &b.0,
                (None, None) => break,
            };
            let run = |entries: &[(PathElement, &Value)]| {
                entries.iter().take_while(|(other, _)| other == element).count()
            };
            let (old_run, new_run) = (run(&old[i..]), run(&new[j..]));
            self.entries(shape, element, &old[i..i + old_run], &new[j..j + new_run], at);
            (i, j) = (i + old_run, j + new_run);
        }
    }

    /// The entries with their path elements, sorted by them; those that stand twice stay in their order.
    fn index<'v>(
        &mut self,
        shape: ListShape<'_>,
        list: &'v [Value],
        at: &At<'_>,
    ) -> Vec<(PathElement, &'v Value)> {
        let mut entries = Vec::with_capacity(list.len());
        for (index, entry) in list.iter().enumerate() {
            match shape.element(self.catalog, entry) {
                Ok(element) => entries.push((element, entry)),
                Err(fault) => self.faults.push(at, format_args!("element {index}: {fault}")),
            }
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        entries
    }

    /// Compares the entries under one path element. Entries that stand twice count as one value.
    fn entries(
        &mut self,
        shape: ListShape<'_>,
        element: &PathElement,
        old: &[(PathElement, &Value)],
        new: &[(PathElement, &Value)],
        at: &At<'_>,
    ) {
        let at = at.element(element);
        let (old_first, new_first) = (old.first().map(|entry| entry.1), new.first().map(|entry| entry.1));
        match (old.len(), new.len()) {
            (0..=1, 0..=1) => self.either(shape.item, old_first, new_first, &at),
            (2.., 2..) => {
                if old.len() != new.len() || old.iter().zip(new).any(|(a, b)| !equal(a.1, b.1)) {
                    self.out.modified(&at);
                }
            }
            (2.., _) => {
                self.either(shape.item, None, new_first, &at);
                self.out.removed(&at, S::Fields::default());
            }
            (_, 2..) => {
                self.either(shape.item, old_first, None, &at);
                self.out.added(&at, S::Fields::default());
            }
        }
    }
}

fn slice(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::{builtin, structural::Structural, types::Type};

    /// What is new, found both ways.
    fn both(catalog: &Catalog, ty: &Type, old: &Value, new: &Value) -> (Value, Value) {
        let shape = Shape::of(ty, None);
        let comparison = compare(catalog, shape, old, new).unwrap();
        let set = comparison.modified.union(&comparison.added);
        (set.to_fields_v1(), Value::Object(new_fields(catalog, shape, old, new).unwrap()))
    }

    #[test]
    fn nobody_comes_to_own_what_is_not_written() {
        let catalog = builtin::catalog();
        let pod = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        let new = json!({"metadata": {"labels": {}}, "spec": {"tolerations": [], "securityContext": {},
            "containers": [{"name": "a", "command": []}]}});
        let got = both(&catalog, &pod, &json!({}), &new).0;
        let container = json!({".": {}, "f:name": {}, "f:resources": {}});
        let spec = json!({"f:securityContext": {}, "f:containers": {"k:{\"name\":\"a\"}": container}});
        assert_eq!(got, json!({"f:spec": spec}));
        // What was empty and is given now comes, and is not changed.
        let (old, new) =
            (json!({"spec": {"nodeSelector": {}}}), json!({"spec": {"nodeSelector": {"a": "b"}}}));
        let came = compare(&catalog, Shape::of(&pod, None), &old, &new).unwrap();
        assert!(came.modified.is_empty() && !came.added.is_empty());
    }

    #[test]
    fn new_pods_are_written_down_as_sets_are() {
        let catalog = builtin::catalog();
        let pod = Type::Named(catalog.find("~core.v1.Pod").unwrap());
        for new in [
            json!({"apiVersion": "v1", "kind": "Pod"}),
            json!({"metadata": {"name": "a", "labels": {}, "creationTimestamp": null, "finalizers": ["x", "y", "x"]}}),
            json!({"metadata": {"labels": {"a": "b"}, "ownerReferences": [{"uid": "1", "name": "a"}]}, "spec": {
                "containers": [
                    {"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "UDP"}], "resources": {}},
                    {"name": "b", "env": [{"name": "x", "value": "1"}, {"name": "x", "value": "2"}], "command": ["a"]},
                ],
                "tolerations": [{"key": "a"}], "nodeSelector": {"a": "b"}, "securityContext": {},
                "volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "secret": {"secretName": "s"}}],
            }, "status": {"conditions": [{"type": "Ready", "lastProbeTime": null}], "phase": "Pending"}}),
        ] {
            let (set, fields) = both(&catalog, &pod, &json!({}), &new);
            assert_eq!(set, fields, "{new}");
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            Just(json!(1)),
            Just(json!("x")),
            Just(json!({})),
            Just(json!([]))
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let key = prop::sample::select(vec!["a", "b", "list", "name"]);
            prop_oneof![
                prop::collection::btree_map(key, inner.clone(), 0..4).prop_map(|map| json!(map)),
                prop::collection::vec(inner, 0..3).prop_map(Value::Array),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_new_is_written_down_as_sets_are(old in any_value(), new in any_value()) {
            let catalog = builtin::catalog();
            let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "a": {"type": "object", "properties": {"b": {"x-kubernetes-preserve-unknown-fields": true}}},
                "b": {"x-kubernetes-int-or-string": true},
            }});
            let schema = Type::Structural(std::sync::Arc::new(Structural::compile(&schema).unwrap()));
            for ty in [&Type::Any, &schema] {
                let (set, fields) = both(&catalog, ty, &old, &new);
                prop_assert_eq!(set, fields);
            }
        }
    }
}
