//! Commits that are on their way: what comes back of them shares their bytes and hints.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::{Op, TableId, Txn, entry::Opaque};

/// Values on their way, by what they are written to. As many as there are commits that wait.
#[derive(Default)]
pub(crate) struct Sent(Mutex<Values>);

type Values = HashMap<(TableId, Bytes), Vec<Value>>;

#[derive(Clone)]
struct Value {
    value: Bytes,
    hint: Option<Opaque>,
}

/// Lets go of what was on its way.
pub(crate) struct OnItsWay<'a> {
    sent: &'a Sent,
    keys: Vec<((TableId, Bytes), Bytes)>,
}

impl Sent {
    fn values(&self) -> MutexGuard<'_, Values> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn on_its_way(&self, txn: &Txn) -> OnItsWay<'_> {
        let mut keys = Vec::with_capacity(txn.ops.len());
        let mut values = self.values();
        for op in &txn.ops {
            let Op::Put { table, key, value, hint, .. } = op else { continue };
            let sent = Value { value: value.clone(), hint: hint.clone() };
            values.entry((*table, key.clone())).or_default().push(sent);
            keys.push(((*table, key.clone()), value.clone()));
        }
        drop(values);
        OnItsWay { sent: self, keys }
    }

    /// The bytes and the hint of whoever wrote just this, if it was written from here; a hint is about the value alone.
    pub(crate) fn of(&self, table: TableId, key: &Bytes, value: Bytes) -> (Bytes, Option<Opaque>) {
        let values = self.values();
        // Nothing is allocated for what others wrote.
        if values.is_empty() {
            return (value, None);
        }
        let known = values.get(&(table, key.clone()));
        match known.and_then(|known| known.iter().find(|sent| sent.value == value)) {
            Some(sent) => (sent.value.clone(), sent.hint.clone()),
            None => (value, None),
        }
    }
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        let mut values = self.sent.values();
        for (place, value) in self.keys.drain(..) {
            let Some(sent) = values.get_mut(&place) else { continue };
            if let Some(at) = sent.iter().position(|sent| sent.value.as_ptr() == value.as_ptr()) {
                sent.swap_remove(at);
            }
            if sent.is_empty() {
                values.remove(&place);
            }
        }
    }
}
