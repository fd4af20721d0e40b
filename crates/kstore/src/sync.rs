//! What threads meet at: the primitives of the standard library, or `loom`'s, which try every order of events (see
//! `tests/loom.rs`). Only what is modelled there is taken from here.

#[cfg(not(kstore_loom))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic::AtomicBool};

#[cfg(kstore_loom)]
pub(crate) use loom::sync::{Mutex, MutexGuard, atomic::AtomicBool};

use std::sync::Arc;

/// A pointer that is read without waiting and replaced as a whole.
#[cfg(not(kstore_loom))]
pub(crate) struct Pointer<T>(arc_swap::ArcSwap<T>);

#[cfg(not(kstore_loom))]
pub(crate) type Held<T> = arc_swap::Guard<Arc<T>>;

#[cfg(not(kstore_loom))]
impl<T> Pointer<T> {
    pub(crate) fn new(value: T) -> Pointer<T> {
        Pointer(arc_swap::ArcSwap::from_pointee(value))
    }

    pub(crate) fn load(&self) -> Held<T> {
        self.0.load()
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.0.load_full()
    }

    pub(crate) fn swap(&self, value: Arc<T>) -> Arc<T> {
        self.0.swap(value)
    }
}

/// The same, of a lock that is modelled: what is checked is the protocol around the pointer.
#[cfg(kstore_loom)]
pub(crate) struct Pointer<T>(Mutex<Arc<T>>);

#[cfg(kstore_loom)]
pub(crate) struct Held<T>(Arc<T>);

#[cfg(kstore_loom)]
impl<T> std::ops::Deref for Held<T> {
    type Target = Arc<T>;
    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

#[cfg(kstore_loom)]
impl<T> Pointer<T> {
    pub(crate) fn new(value: T) -> Pointer<T> {
        Pointer(Mutex::new(Arc::new(value)))
    }

    pub(crate) fn load(&self) -> Held<T> {
        Held(self.load_full())
    }

    pub(crate) fn load_full(&self) -> Arc<T> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    pub(crate) fn swap(&self, value: Arc<T>) -> Arc<T> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner), value)
    }
}
