//! The value of a metric's label.

use std::{
    borrow::Cow,
    cmp::Ordering,
    hash::{Hash, Hasher},
    sync::Arc,
};

/// Compared by its text, and cheap to make.
#[derive(Clone, Debug)]
pub(crate) enum Label {
    Fixed(&'static str),
    Shared(Arc<str>),
}

impl Label {
    fn text(&self) -> &str {
        match self {
            Self::Fixed(text) => text,
            Self::Shared(text) => text,
        }
    }

    /// As it stands between quotation marks.
    pub(super) fn escaped(&self) -> Cow<'_, str> {
        let text = self.text();
        if !text.contains(['\\', '"', '\n']) {
            return text.into();
        }
        text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").into()
    }
}

impl From<&'static str> for Label {
    fn from(text: &'static str) -> Self {
        Self::Fixed(text)
    }
}

impl From<&Arc<str>> for Label {
    fn from(text: &Arc<str>) -> Self {
        Self::Shared(Arc::clone(text))
    }
}

impl PartialEq for Label {
    fn eq(&self, other: &Self) -> bool {
        self.text() == other.text()
    }
}

impl Eq for Label {}

impl Hash for Label {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text().hash(state);
    }
}

impl PartialOrd for Label {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Label {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text().cmp(other.text())
    }
}
