//! What steps say beside the object: warnings for the caller, annotations for the audit log.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// How many warnings one request carries; more are dropped.
pub const WARNINGS_MAX: usize = 64;
/// The longest warning, in bytes; what is longer is cut (KEP-1693: headers must stay small).
pub const WARNING_BYTES_MAX: usize = 4096;
/// How many annotations one request carries; more are dropped.
pub const ANNOTATIONS_MAX: usize = 256;

/// What the steps of admission say during one request. The same said twice, as happens when a write is tried again, counts
/// once.
///
/// ```
/// use kapi::admission::Notes;
///
/// let notes = Notes::default();
/// notes.warn("careful");
/// notes.warn("careful");
/// notes.annotate("example.com/seen", "yes");
/// assert_eq!(notes.take_warnings(), ["careful"]);
/// assert_eq!(notes.annotations()["example.com/seen"], "yes");
/// ```
#[derive(Debug, Default)]
pub struct Notes(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    warnings: Vec<String>,
    annotations: BTreeMap<String, String>,
}

impl Notes {
    fn said<T>(&self, act: impl FnOnce(&mut Said) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the caller, in a `Warning` header.
    pub fn warn(&self, text: impl Into<String>) {
        let mut text = text.into();
        if text.len() > WARNING_BYTES_MAX {
            let end = (0..=WARNING_BYTES_MAX).rev().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
        self.said(|said| {
            if said.warnings.len() < WARNINGS_MAX && !said.warnings.contains(&text) {
                said.warnings.push(text);
            }
        });
    }

    /// Tells the audit log. A key keeps the value that it was given first, as upstream's audit context does.
    pub fn annotate(&self, key: impl Into<String>, value: impl Into<String>) {
        self.said(|said| {
            if said.annotations.len() < ANNOTATIONS_MAX {
                said.annotations.entry(key.into()).or_insert_with(|| value.into());
            }
        });
    }

    /// The warnings, which are gone from here.
    pub fn take_warnings(&self) -> Vec<String> {
        self.said(|said| std::mem::take(&mut said.warnings))
    }

    /// The annotations.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.said(|said| said.annotations.clone())
    }
}
