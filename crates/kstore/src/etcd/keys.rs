//! From tables and keys to etcd's keys and back.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Range, proto as pb};

/// The keys of one store.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// With `/` at its end.
    prefix: Bytes,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Keys { prefix: format!("{}/", prefix.trim_end_matches('/')).into() }
    }

    /// The first key and the end of all of them.
    pub(super) fn all(&self) -> (Bytes, Bytes) {
        let range = Range::prefix(self.prefix.clone());
        // The prefix ends with `/`, so there is an end.
        (range.start, range.end.unwrap_or_default())
    }

    /// A key that belongs to no table.
    pub(super) fn sync(&self) -> Bytes {
        [&self.prefix[..], b".sync"].concat().into()
    }

    fn table(&self, table: &str, more: usize) -> BytesMut {
        let mut key = BytesMut::with_capacity(self.prefix.len() + table.len() + 1 + more);
        key.put_slice(&self.prefix);
        for byte in table.bytes() {
            match byte {
                b'/' => key.put_slice(b"%2F"),
                b'%' => key.put_slice(b"%25"),
                byte => key.put_u8(byte),
            }
        }
        key.put_u8(b'/');
        key
    }

    pub(super) fn key(&self, table: &str, key: &[u8]) -> Bytes {
        let mut of = self.table(table, key.len());
        of.put_slice(key);
        of.freeze()
    }

    /// The first key and the end of a range of a table.
    pub(super) fn range(&self, table: &str, range: &Range) -> (Bytes, Bytes) {
        let start = self.key(table, &range.start);
        let end = match &range.end {
            Some(end) => self.key(table, end),
            None => Range::prefix(self.table(table, 0).freeze()).end.unwrap_or_default(),
        };
        (start, end)
    }

    /// The table and the key in it; none for keys that belong to no table.
    pub(super) fn split(&self, key: &Bytes) -> Option<(Arc<str>, Bytes)> {
        let rest = key.strip_prefix(&self.prefix[..])?;
        let slash = rest.iter().position(|byte| *byte == b'/')?;
        let name = std::str::from_utf8(&rest[..slash]).ok()?;
        let name =
            if name.contains('%') { name.replace("%2F", "/").replace("%25", "%") } else { name.to_owned() };
        let key = key.slice(self.prefix.len() + slash + 1..);
        (!name.is_empty() && !key.is_empty()).then(|| (name.into(), key))
    }

    pub(super) fn entry(&self, kv: pb::KeyValue) -> Option<crate::RemoteEntry> {
        let (table, key) = self.split(&kv.key)?;
        // Bytes of their own: those of an answer are a part of it, all of which would stay with them.
        Some(crate::RemoteEntry {
            table,
            key: Bytes::copy_from_slice(&key),
            value: Bytes::copy_from_slice(&kv.value),
            create: super::revision(kv.create_revision),
            modified: super::revision(kv.mod_revision),
            version: kv.version.cast_unsigned(),
            lease: crate::LeaseId::new(kv.lease.cast_unsigned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_lead_back_to_their_tables() {
        let keys = Keys::new("/registry/");
        for (table, key, wanted) in [
            ("pods", "default/web", "/registry/pods/default/web"),
            ("apps/deployments", "a", "/registry/apps%2Fdeployments/a"),
            ("50%", "/", "/registry/50%25//"),
            ("%2F", "x", "/registry/%252F/x"),
        ] {
            let made = keys.key(table, key.as_bytes());
            assert_eq!(made, wanted);
            assert_eq!(keys.split(&made), Some((table.into(), Bytes::from(key))));
        }
        assert_eq!(keys.split(&keys.sync()), None);
        assert_eq!(keys.split(&Bytes::from("/registry2/pods/a")), None);
    }

    #[test]
    fn ranges_stay_in_their_table() {
        let keys = Keys::new("/k");
        let text = |(start, end): (Bytes, Bytes)| (start, end);
        assert_eq!(text(keys.range("t", &Range::all())), ("/k/t/".into(), "/k/t0".into()));
        assert_eq!(text(keys.range("t", &Range::prefix("a/"))), ("/k/t/a/".into(), "/k/t/a0".into()));
        assert_eq!(keys.all(), ("/k/".into(), "/k0".into()));
    }
}
