//! What is counted of each resource: the sizes of bodies that are sent to it, and what its lists have read.

use std::{
    fmt::Write as _,
    hash::Hash,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use hashbrown::{Equivalent, HashMap};

use super::head;

/// The verbs whose bodies are measured: as requests name them, and as upstream's label does.
const VERBS: [(&str, &str); 5] = [
    ("create", "create"),
    ("delete", "delete"),
    ("deletecollection", "delete_collection"),
    ("patch", "patch"),
    ("update", "update"),
];
/// The upper bounds of the histogram of bodies' sizes, in bytes: 50 kB and every 100 kB from there.
const BUCKETS: usize = 31;

const fn bound(bucket: usize) -> usize {
    50_000 + 100_000 * bucket
}

/// The counters of all resources that are served; there are as many as kinds, so they need no limit of their own.
#[derive(Debug, Default)]
pub(super) struct Resources(RwLock<HashMap<Name, Arc<Counts>, ahash::RandomState>>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name {
    group: String,
    resource: String,
}

#[derive(Hash)]
struct Borrowed<'a> {
    group: &'a str,
    resource: &'a str,
}

impl Equivalent<Name> for Borrowed<'_> {
    fn equivalent(&self, name: &Name) -> bool {
        self.group == name.group && self.resource == name.resource
    }
}

#[derive(Debug, Default)]
struct Counts {
    bodies: [Bodies; VERBS.len()],
    lists: AtomicU64,
    evaluated: AtomicU64,
    returned: AtomicU64,
}

/// The name, words and value of a number that a resource's lists have.
type Number = (&'static str, &'static str, fn(&Counts) -> &AtomicU64);

#[derive(Debug, Default)]
struct Bodies {
    count: AtomicU64,
    bytes: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

impl Resources {
    fn of(&self, group: &str, resource: &str) -> Arc<Counts> {
        let key = Borrowed { group, resource };
        if let Some(counts) = self.0.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(counts);
        }
        let name = Name { group: group.to_owned(), resource: resource.to_owned() };
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(name).or_default())
    }

    /// Counts the body of a request.
    pub(super) fn body(&self, group: &str, resource: &str, verb: &str, bytes: usize) {
        let Some(index) = VERBS.iter().position(|(known, _)| *known == verb) else { return };
        let counts = self.of(group, resource);
        let bodies = &counts.bodies[index];
        bodies.count.fetch_add(1, Ordering::Relaxed);
        bodies.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        if let Some(bucket) = (0..BUCKETS).find(|bucket| bytes <= bound(*bucket)) {
            bodies.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a list, which has looked at so many objects and gives so many.
    pub(super) fn list(&self, group: &str, resource: &str, evaluated: usize, returned: usize) {
        let counts = self.of(group, resource);
        counts.lists.fetch_add(1, Ordering::Relaxed);
        counts.evaluated.fetch_add(evaluated as u64, Ordering::Relaxed);
        counts.returned.fetch_add(returned as u64, Ordering::Relaxed);
    }

    /// Everything in the text form of Prometheus.
    pub(super) fn write(&self, out: &mut String) {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<(&Name, &Arc<Counts>)> = all.iter().collect();
        all.sort_by_key(|(name, _)| *name);
        let name = "apiserver_request_body_size_bytes";
        head(out, name, "histogram", "How large the bodies of requests were, in bytes.");
        for (Name { group, resource }, counts) in &all {
            for ((_, verb), bodies) in VERBS.iter().zip(&counts.bodies) {
                bodies.write(
                    name,
                    &format!("group=\"{group}\",resource=\"{resource}\",verb=\"{verb}\""),
                    out,
                );
            }
        }
        // What a list reads it looks at: there is no store below that would be read without.
        let lists: [Number; 4] = [
            ("list_total", "Lists that were read.", |counts| &counts.lists),
            ("list_fetched_objects_total", "Objects that lists have read.", |counts| &counts.evaluated),
            ("list_evaluated_objects_total", "Objects that lists have looked at.", |counts| {
                &counts.evaluated
            }),
            ("list_returned_objects_total", "Objects that lists have given.", |counts| &counts.returned),
        ];
        for (name, help, value) in lists {
            let name = format!("apiserver_storage_{name}");
            head(out, &name, "counter", help);
            for (Name { group, resource }, counts) in &all {
                if counts.lists.load(Ordering::Relaxed) > 0 {
                    let value = value(counts).load(Ordering::Relaxed);
                    let _ = writeln!(out, "{name}{{group=\"{group}\",resource=\"{resource}\"}} {value}");
                }
            }
        }
    }
}

impl Bodies {
    /// Nothing is written of what has never been.
    fn write(&self, name: &str, labels: &str, out: &mut String) {
        let count = self.count.load(Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let mut below = 0;
        for (index, bucket) in self.buckets.iter().enumerate() {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{}\"}} {below}", bound(index));
        }
        let bytes = self.bytes.load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {bytes}\n{name}_count{{{labels}}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_and_lists_are_counted_by_resource() {
        let resources = Resources::default();
        for bytes in [1, 50_000, 50_001, 4_000_000] {
            resources.body("apps", "deployments", "patch", bytes);
        }
        resources.body("", "pods", "deletecollection", 7);
        resources.body("", "pods", "get", 7);
        resources.list("", "pods", 10, 3);
        resources.list("", "pods", 10, 4);
        let mut text = String::new();
        resources.write(&mut text);
        let bodies = "apiserver_request_body_size_bytes";
        let patched = "group=\"apps\",resource=\"deployments\",verb=\"patch\"";
        for line in [
            &format!("{bodies}_bucket{{{patched},le=\"50000\"}} 2"),
            &format!("{bodies}_bucket{{{patched},le=\"150000\"}} 3"),
            &format!("{bodies}_bucket{{{patched},le=\"3050000\"}} 3"),
            &format!("{bodies}_count{{{patched}}} 4"),
            &format!("{bodies}_sum{{{patched}}} 4100002"),
            &format!("{bodies}_count{{group=\"\",resource=\"pods\",verb=\"delete_collection\"}} 1"),
            "apiserver_storage_list_total{group=\"\",resource=\"pods\"} 2",
            "apiserver_storage_list_evaluated_objects_total{group=\"\",resource=\"pods\"} 20",
            "apiserver_storage_list_returned_objects_total{group=\"\",resource=\"pods\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
        assert!(!text.contains("storage_list_total{group=\"apps\""));
    }
}
