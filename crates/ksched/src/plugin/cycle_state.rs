//! What plug-ins note for one another while a pod is decided on.

use std::{
    any::{Any, TypeId},
    fmt,
    sync::Arc,
};

use smallvec::SmallVec;

/// Notes that plug-ins keep for the time of one decision, one per type. A clone shares the notes until one is
/// [edited](Self::edit), so that preemption can try each node with notes of its own.
#[derive(Clone, Default)]
pub struct CycleState {
    /// Few, so they are searched one by one.
    notes: SmallVec<[(TypeId, Arc<dyn Any + Send + Sync>); 4]>,
}

impl fmt::Debug for CycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CycleState").field("notes", &self.notes.len()).finish()
    }
}

impl CycleState {
    /// Keeps a note in the place of the one of the same type.
    pub fn put<T: Send + Sync + 'static>(&mut self, note: T) {
        let (key, note) = (TypeId::of::<T>(), Arc::new(note));
        match self.notes.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = note,
            None => self.notes.push((key, note)),
        }
    }

    /// The note of a type.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        let note = self.notes.iter().find(|(known, _)| *known == TypeId::of::<T>());
        note.and_then(|(_, note)| note.downcast_ref())
    }

    /// The note of a type, to be changed; copied first when a clone shares it.
    pub fn edit<T: Clone + Send + Sync + 'static>(&mut self) -> Option<&mut T> {
        let (_, note) = self.notes.iter_mut().find(|(known, _)| *known == TypeId::of::<T>())?;
        if Arc::get_mut(note).is_none() {
            let copy = note.downcast_ref::<T>()?.clone();
            *note = Arc::new(copy);
        }
        Arc::get_mut(note)?.downcast_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_note_of_a_type() {
        let mut cycle = CycleState::default();
        cycle.put(1_u8);
        cycle.put(2_u8);
        cycle.put("text");
        assert_eq!(
            (cycle.get::<u8>(), cycle.get::<&str>(), cycle.get::<i8>()),
            (Some(&2), Some(&"text"), None)
        );
    }

    #[test]
    fn a_note_is_copied_before_it_is_edited() {
        let mut cycle = CycleState::default();
        cycle.put(vec![1]);
        let mut copy = cycle.clone();
        copy.edit::<Vec<i32>>().unwrap().push(2);
        assert_eq!(cycle.get::<Vec<i32>>(), Some(&vec![1]));
        assert_eq!(copy.get::<Vec<i32>>(), Some(&vec![1, 2]));
        assert!(copy.edit::<u8>().is_none());
    }
}
