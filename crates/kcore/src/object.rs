//! An object as it is kept and handed around: a small parsed header, its encoded bytes, and its typed value once
//! somebody asked for it.

mod owners;

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

pub use self::owners::open;
use crate::json;

/// Labels, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(Box<[(Box<str>, Box<str>)]>);

impl Labels {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|index| &*self.0[index].1)
    }

    /// All pairs in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut pairs: Vec<(Box<str>, Box<str>)> =
            pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        pairs.sort_unstable();
        pairs.dedup_by(|later, earlier| later.0 == earlier.0);
        Self(pairs.into_boxed_slice())
    }
}

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRef {
    /// The owner's `apiVersion`.
    pub api_version: Box<str>,
    /// The owner's kind.
    pub kind: Box<str>,
    /// The owner's name.
    pub name: Box<str>,
    /// The owner's uid.
    pub uid: Box<str>,
    /// Whether the owner is the managing controller.
    #[serde(default)]
    pub controller: Option<bool>,
    /// Whether a foreground deletion of the owner waits for this object.
    #[serde(default)]
    pub block_owner_deletion: Option<bool>,
}

/// What can be asked of an object without decoding it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Header {
    /// The namespace; empty for cluster-scoped objects.
    pub namespace: Box<str>,
    /// The name.
    pub name: Box<str>,
    /// The uid.
    pub uid: Box<str>,
    /// `metadata.generation`; 0 when the kind has none.
    pub generation: i64,
    /// The labels.
    pub labels: Labels,
    /// The owners.
    pub owners: Box<[OwnerRef]>,
    /// The finalizers.
    pub finalizers: Box<[Box<str>]>,
    /// `metadata.deletionTimestamp`, as written.
    pub deletion: Option<Box<str>>,
    /// The values of the kind's selectable fields, except `metadata.name` and `metadata.namespace`.
    pub fields: Box<[(Arc<str>, Box<str>)]>,
}

impl Header {
    /// Reads the header's metadata from an object.
    #[must_use]
    pub fn of(object: &Value) -> Self {
        let meta = &object["metadata"];
        let text = |key: &str| meta[key].as_str().unwrap_or_default().into();
        let labels = meta["labels"].as_object().map_or_else(Labels::default, |labels| {
            labels.iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap_or_default())).collect()
        });
        let owners = meta["ownerReferences"]
            .as_array()
            .map(|owners| owners.iter().filter_map(|owner| OwnerRef::deserialize(owner).ok()).collect())
            .unwrap_or_default();
        let finalizers = meta["finalizers"]
            .as_array()
            .map(|list| list.iter().filter_map(|item| item.as_str().map(Into::into)).collect())
            .unwrap_or_default();
        Self {
            namespace: text("namespace"),
            name: text("name"),
            uid: text("uid"),
            generation: meta["generation"].as_i64().unwrap_or_default(),
            labels,
            owners,
            finalizers,
            deletion: meta["deletionTimestamp"].as_str().map(Into::into),
            fields: Box::default(),
        }
    }

    /// The value of a selectable field; `metadata.name` and `metadata.namespace` are always known.
    #[must_use]
    pub fn field(&self, path: &str) -> Option<&str> {
        match path {
            "metadata.name" => Some(&self.name),
            "metadata.namespace" => Some(&self.namespace),
            _ => self.fields.iter().find(|(name, _)| **name == *path).map(|(_, value)| &**value),
        }
    }

    /// The owner that is the managing controller.
    #[must_use]
    pub fn controller(&self) -> Option<&OwnerRef> {
        self.owners.iter().find(|owner| owner.controller == Some(true))
    }
}

/// One revision of an object, shared by everybody who reads it.
///
/// It is parsed at most once (its header), encoded at most once per media type, and decoded at most once for the type that
/// most readers want; [`forget`](Self::forget) drops what can be made again.
pub struct Stored {
    header: Arc<Header>,
    revision: u64,
    /// The object as JSON without `metadata.resourceVersion`; `apiVersion`, `kind` and `metadata` come first, so that
    /// the first `"metadata":{` is the object's own.
    raw: Bytes,
    /// Where in `raw` the resource version goes.
    splice: usize,
    made: Mutex<Made>,
}

/// What has been made of an object for those who asked, and can be made again.
#[derive(Default)]
struct Made {
    typed: Option<Arc<dyn Any + Send + Sync>>,
    /// Another encoding than JSON. Boxed, as most objects never have one.
    other: Option<Box<Bytes>>,
}

const METADATA_OPEN: &[u8] = b"\"metadata\":{";

impl Stored {
    /// Puts a header, the revision and the encoded object together.
    ///
    /// `raw` must be what [`encode`] writes: JSON without a resource version, `metadata` among the first three keys.
    #[must_use]
    pub fn new(header: impl Into<Arc<Header>>, revision: u64, raw: Bytes) -> Self {
        let header = header.into();
        let splice = raw
            .windows(METADATA_OPEN.len())
            .position(|window| window == METADATA_OPEN)
            .map_or(raw.len(), |at| at + METADATA_OPEN.len());
        Self { header, revision, raw, splice, made: Mutex::default() }
    }

    /// The same state under another revision: that of its deletion, which is what its last readers are told.
    #[must_use]
    pub fn at_revision(&self, revision: u64) -> Self {
        let (header, raw) = (Arc::clone(&self.header), self.raw.clone());
        Self { header, revision, raw, splice: self.splice, made: Mutex::default() }
    }

    /// An object that did not come out of a store in this process: one line of a watch, one item of a list.
    ///
    /// # Errors
    /// When `value` has no numeric `metadata.resourceVersion`.
    pub fn from_value(mut value: Value) -> Result<Self, MissingRevision> {
        let revision = value
            .get_mut("metadata")
            .and_then(Value::as_object_mut)
            .and_then(|meta| meta.remove("resourceVersion"))
            .and_then(|version| version.as_str().and_then(|text| text.parse().ok()))
            .ok_or(MissingRevision)?;
        let header = Header::of(&value);
        Ok(Self::new(header, revision, encode(&value).into()))
    }

    /// The parsed header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The revision of this state of the object, `metadata.resourceVersion` as a number.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The stored bytes, without the resource version.
    #[must_use]
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// Appends the object as JSON, with its resource version, to `out`.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.raw[..self.splice]);
        self.write_after_splice(self.raw.len(), out);
    }

    /// Appends the object's metadata as JSON, with its resource version, to `out`.
    pub fn write_metadata(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        if self.splice == self.raw.len() {
            out.push(b'}');
            return;
        }
        self.write_after_splice(self.splice + owners::end_of(&self.raw[self.splice..], b'{', b'}'), out);
    }

    /// [`write_json`](Self::write_json) without `metadata.managedFields`.
    fn write_without_owners(&self, out: &mut Vec<u8>) {
        let Some(owners) = owners::find(&self.raw, self.splice) else {
            return self.write_json(out);
        };
        out.extend_from_slice(&self.raw[..self.splice]);
        self.write_after_splice(owners.start, out);
        let rest = &self.raw[owners.end..];
        // One comma goes with the key: the one behind it, or else the one before.
        let rest = rest.strip_prefix(b",").unwrap_or_else(|| {
            if out.last() == Some(&b',') {
                out.pop();
            }
            rest
        });
        out.extend_from_slice(rest);
    }

    /// The resource version, and what comes after it up to `end`.
    fn write_after_splice(&self, end: usize, out: &mut Vec<u8>) {
        let rest = &self.raw[self.splice..end];
        if self.splice == self.raw.len() {
            return;
        }
        out.extend_from_slice(b"\"resourceVersion\":\"");
        out.extend_from_slice(itoa::Buffer::new().format(self.revision).as_bytes());
        out.push(b'"');
        if rest.first() != Some(&b'}') {
            out.push(b',');
        }
        out.extend_from_slice(rest);
    }

    /// The object as JSON, with its resource version. Put together at each call: copying the stored bytes costs next to nothing,
    /// and keeping another copy would double what the object takes.
    #[must_use]
    pub fn json(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.raw.len() + 48);
        self.write_json(&mut out);
        out.into()
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        // What is in there is put in whole, so a panic elsewhere leaves nothing half done.
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what has been made of the object and can be made again: its typed value and its other encoding. For states that
    /// have been replaced and are kept only for those who read late.
    pub fn forget(&self) {
        let made = std::mem::take(&mut *self.made());
        drop(made);
    }

    /// Another encoding of the object, made by `make` for the first who asks and shared with all others. There is room for one
    /// such encoding, whose meaning is the caller's.
    ///
    /// # Errors
    /// What `make` returns; then nothing is kept.
    pub fn other<E>(&self, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(bytes) = &self.made().other {
            return Ok(Bytes::clone(bytes));
        }
        let bytes = make()?;
        Ok(Bytes::clone(self.made().other.get_or_insert_with(|| Box::new(bytes))))
    }

    /// The object as a tree, with its resource version. Parsed anew at each call: readers that come back for more keep
    /// it, or use [`typed`](Self::typed).
    ///
    /// # Errors
    /// When the stored bytes are not JSON, which means that somebody else wrote to the store.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        // Text that is known to be UTF-8 as a whole is not looked at again string by string.
        let mut value: Value = match std::str::from_utf8(&self.raw) {
            Ok(text) => serde_json::from_str(text)?,
            Err(_) => serde_json::from_slice(&self.raw)?,
        };
        self.tell_revision(&mut value);
        Ok(value)
    }

    /// [`value`](Self::value) whose sets of owned fields, `metadata.managedFields[*].fieldsV1`, are texts as long as nobody
    /// [`open`]s them. For who changes an object and leaves most of them alone; [`encode`] takes both forms.
    ///
    /// # Errors
    /// As for [`value`](Self::value).
    pub fn sealed(&self) -> Result<Value, serde_json::Error> {
        let Some((text, owners)) =
            std::str::from_utf8(&self.raw).ok().zip(owners::find(&self.raw, self.splice))
        else {
            return self.value();
        };
        let mut value = owners::sealed(text, owners)?;
        self.tell_revision(&mut value);
        Ok(value)
    }

    fn tell_revision(&self, value: &mut Value) {
        if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.insert("resourceVersion".to_owned(), Value::String(self.revision.to_string()));
        }
    }

    /// The object as its Rust type. Decoded once for the first type that is asked for, which all later callers share;
    /// another type is decoded at each call.
    ///
    /// Without `metadata.managedFields`: as trees they would take several times what the rest of the object takes, and who
    /// reads typed objects does not look at them. An update that has none leaves them as they are (KEP-555).
    ///
    /// # Errors
    /// When the object does not fit the type.
    pub fn typed<K>(&self) -> Result<Arc<K>, serde_json::Error>
    where
        K: DeserializeOwned + Send + Sync + 'static,
    {
        let kept = self.made().typed.clone();
        if let Some(Ok(value)) = kept.map(Arc::downcast::<K>) {
            return Ok(value);
        }
        let mut json = Vec::with_capacity(self.raw.len() + 48);
        self.write_without_owners(&mut json);
        let value = Arc::new(serde_json::from_slice::<K>(&json)?);
        let mut made = self.made();
        let kept = made.typed.get_or_insert_with(|| Arc::clone(&value) as Arc<dyn Any + Send + Sync>);
        Ok(Arc::clone(kept).downcast::<K>().unwrap_or(value))
    }
}

impl fmt::Debug for Stored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stored")
            .field("namespace", &self.header.namespace)
            .field("name", &self.header.name)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// A list or watch gave an object without `metadata.resourceVersion`.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the object has no numeric metadata.resourceVersion")]
pub struct MissingRevision;

/// Encodes an object the way [`Stored`] keeps it: `apiVersion`, `kind` and `metadata` first, then the other keys in order.
/// The caller has taken `metadata.resourceVersion` out. Sets of owned fields may be texts ([`Stored::sealed`]).
#[must_use]
pub fn encode(object: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    let Some(map) = object.as_object() else {
        return json::to_vec(object);
    };
    out.push(b'{');
    let first = ["apiVersion", "kind", "metadata"];
    let head = first.iter().filter_map(|key| map.get_key_value(*key));
    let rest = map.iter().filter(|(key, _)| !first.contains(&key.as_str()));
    for (key, value) in head.chain(rest) {
        if out.len() > 1 {
            out.push(b',');
        }
        json::write_text(&mut out, key);
        out.push(b':');
        if key == "metadata" {
            owners::write_metadata(&mut out, value);
        } else {
            json::write(&mut out, value);
        }
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_revision_is_spliced_into_the_objects_own_metadata() {
        let value = json!({
            "apiVersion": "apps/v1", "data": {"metadata": {"x": 1}}, "kind": "ControllerRevision",
            "metadata": {"name": "a", "resourceVersion": "7"},
        });
        let stored = Stored::from_value(value.clone()).unwrap();
        assert_eq!(stored.revision(), 7);
        assert_eq!(serde_json::from_slice::<Value>(&stored.json()).unwrap(), value);
        assert_eq!(stored.value().unwrap(), value);
    }

    #[test]
    fn metadata_is_written_alone() {
        for metadata in [
            json!({"resourceVersion": "7"}),
            json!({"name": "a", "resourceVersion": "7", "annotations": {"x": "}{\"\\", "y": "\\\""}, "ownerReferences": [{"uid": "}"}]}),
        ] {
            let value = json!({"apiVersion": "v1", "kind": "X", "metadata": metadata, "spec": {"a": "}"}});
            let stored = Stored::from_value(value).unwrap();
            let mut out = Vec::new();
            stored.write_metadata(&mut out);
            assert_eq!(serde_json::from_slice::<Value>(&out).unwrap(), metadata);
        }
    }

    #[test]
    fn typed_values_are_decoded_once() {
        #[derive(Deserialize)]
        struct Named {
            metadata: Meta,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Meta {
            name: String,
            resource_version: String,
        }
        let stored = Stored::from_value(json!({"metadata": {"name": "a", "resourceVersion": "7"}})).unwrap();
        let one = stored.typed::<Named>().unwrap();
        assert_eq!((one.metadata.name.as_str(), one.metadata.resource_version.as_str()), ("a", "7"));
        assert!(Arc::ptr_eq(&one, &stored.typed::<Named>().unwrap()));
        // What was forgotten is made again, and stays with those who have it.
        stored.forget();
        let other = stored.typed::<Named>().unwrap();
        assert!(!Arc::ptr_eq(&one, &other) && one.metadata.name == other.metadata.name);
    }

    #[test]
    fn typed_values_have_no_owners() {
        let owners = json!([{"manager": "]}\"", "fieldsV1": {"f:a": {"k:[1]": {}}}}]);
        for (metadata, expected) in [
            (json!({"managedFields": owners}), json!({})),
            (
                json!({"labels": {"managedFields": "["}, "managedFields": owners}),
                json!({"labels": {"managedFields": "["}}),
            ),
            (json!({"managedFields": owners, "name": "a"}), json!({"name": "a"})),
            (
                json!({"annotations": {"a": "\"managedFields\":["}}),
                json!({"annotations": {"a": "\"managedFields\":["}}),
            ),
            (json!({}), json!({})),
        ] {
            let inner = json!({"metadata": {"managedFields": [1]}});
            let mut value = json!({"kind": "X", "metadata": metadata, "spec": inner});
            value["metadata"]["resourceVersion"] = json!("7");
            let stored = Stored::from_value(value).unwrap();
            let mut wanted = json!({"kind": "X", "metadata": expected, "spec": inner});
            wanted["metadata"]["resourceVersion"] = json!("7");
            assert_eq!(*stored.typed::<Value>().unwrap(), wanted);
        }
    }

    #[test]
    fn another_encoding_is_made_once() {
        let stored = Stored::from_value(json!({"metadata": {"resourceVersion": "7"}})).unwrap();
        assert_eq!(stored.other(|| Err("no")), Err("no"));
        for _ in 0..2 {
            let made = stored.other(|| Ok::<_, ()>(Bytes::from_static(b"x"))).unwrap();
            assert_eq!(made, "x");
            assert_eq!(stored.other(|| Err("asked again")), Ok(made));
        }
    }
}
