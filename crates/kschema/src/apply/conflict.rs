//! Conflicts: fields that an apply would take from those who own them.

use std::{collections::BTreeMap, fmt};

use kcore::{
    Status,
    status::{StatusCause, StatusDetails},
};

use super::{
    managed::{Manager, Operation},
    path::PathElement,
    set::{Set, show},
};

/// What is taken from whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Conflicts(pub(crate) BTreeMap<Manager, Vec<Vec<PathElement>>>);

impl Conflicts {
    pub(crate) fn add(&mut self, manager: &Manager, set: &Set) {
        self.0.insert(manager.clone(), set.iter_paths());
    }

    /// All fields in conflict.
    pub(crate) fn to_set(&self) -> Set {
        let mut set = Set::default();
        for path in self.0.values().flatten() {
            set.insert(path.iter().cloned());
        }
        set
    }

    /// The conflicts over other fields than these.
    pub(crate) fn without(&self, allowed: &Set) -> Self {
        let keep = |paths: &Vec<Vec<PathElement>>| {
            paths.iter().filter(|path| !allowed.has(path)).cloned().collect::<Vec<_>>()
        };
        let rest = self.0.iter().map(|(manager, paths)| (manager.clone(), keep(paths)));
        Self(rest.filter(|(_, paths)| !paths.is_empty()).collect())
    }

    /// 409, with one cause per field.
    pub(crate) fn to_status(&self) -> Status {
        let causes = self.0.iter().flat_map(|(manager, paths)| {
            paths.iter().map(|path| StatusCause {
                reason: "FieldManagerConflict".to_owned(),
                message: format!("conflict with {}", Shown(manager)),
                field: show(path),
            })
        });
        let causes: Vec<StatusCause> = causes.collect();
        let message = if let [one] = causes.as_slice() {
            format!("Apply failed with 1 conflict: {}: {}", one.message, one.field)
        } else {
            let mut lines = Vec::with_capacity(causes.len());
            for (manager, paths) in &self.0 {
                lines.push(format!("conflicts with {}:", Shown(manager)));
                lines.extend(paths.iter().map(|path| format!("- {}", show(path))));
            }
            format!("Apply failed with {} conflicts: {}", causes.len(), lines.join("\n"))
        };
        let mut status = Status::failure(409, "Conflict", message);
        status.details = Some(StatusDetails { causes, ..StatusDetails::default() });
        status
    }
}

/// A manager as messages name it.
struct Shown<'a>(&'a Manager);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0.name)?;
        if !self.0.subresource.is_empty() {
            write!(f, " with subresource {:?}", self.0.subresource)?;
        }
        if self.0.operation == Operation::Update {
            write!(f, " using {}", self.0.api_version)?;
        }
        Ok(())
    }
}
