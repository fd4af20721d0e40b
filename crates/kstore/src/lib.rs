//! An embeddable, watchable, transactional key-value store with one revision space
