//! What the server counts about itself, under upstream's names (Kubernetes, "Metrics Reference"), for `/metrics`.
//!
//! A request finds its series by borrowed labels, so counting it allocates nothing once a series is there.

mod resources;

use std::{
    fmt::Write as _,
    hash::Hash,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use hashbrown::{Equivalent, HashMap};

use crate::request::RequestInfo;

/// How many series are kept; what comes beyond is counted under the label `other`, as paths and codes come from callers.
pub const SERIES_MAX: usize = 20_000;

/// The upper bounds of the duration histogram, in seconds.
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// The upper bounds of the histogram of answers' sizes, in bytes.
const SIZES: [u64; 7] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000];

/// What a request is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Labels {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
    dry_run: bool,
    code: u16,
}

/// The same, borrowed from a request.
#[derive(Clone, Copy, Hash)]
struct Key<'a> {
    verb: &'a str,
    group: &'a str,
    version: &'a str,
    resource: &'a str,
    subresource: &'a str,
    scope: &'static str,
    dry_run: bool,
    code: u16,
}

impl Equivalent<Labels> for Key<'_> {
    fn equivalent(&self, labels: &Labels) -> bool {
        self.verb == labels.verb
            && self.group == labels.group
            && self.version == labels.version
            && self.resource == labels.resource
            && self.subresource == labels.subresource
            && self.scope == labels.scope
            && self.dry_run == labels.dry_run
            && self.code == labels.code
    }
}

impl Key<'_> {
    fn owned(&self) -> Labels {
        Labels {
            verb: self.verb.to_owned(),
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            resource: self.resource.to_owned(),
            subresource: self.subresource.to_owned(),
            scope: self.scope,
            dry_run: self.dry_run,
            code: self.code,
        }
    }
}

/// One series: how many, how long in all, and how many in each bucket.
#[derive(Debug, Default)]
struct Series {
    count: AtomicU64,
    nanos: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len()],
    /// How many answers have been sent, with how many bytes, and how many in each bucket.
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    sizes: [AtomicU64; SIZES.len()],
}

impl Series {
    /// Counts an answer that has been sent.
    fn answered(&self, bytes: u64) {
        self.sent.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
        if let Some(bucket) = SIZES.iter().position(|bound| bytes <= *bound) {
            self.sizes[bucket].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The counters of one server.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    requests: RwLock<HashMap<Labels, Arc<Series>, ahash::RandomState>>,
    mutating: AtomicI64,
    reading: AtomicI64,
    long_running: AtomicI64,
    watch_events: AtomicU64,
    panics: AtomicU64,
    resources: resources::Resources,
}

/// A request that is being worked on, counted as long as it lives.
pub(crate) struct Flying<'a>(&'a AtomicI64);

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Upstream's word for a verb.
fn verb(info: &RequestInfo) -> &str {
    match info.verb.as_str() {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" | "post" => "POST",
        "update" | "put" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "head" => "HEAD",
        _ => "other",
    }
}

/// Upstream's word for how much a request is about.
fn scope(info: &RequestInfo) -> &'static str {
    match (info.is_resource, info.name.is_empty(), info.namespace.is_empty()) {
        (false, ..) => "",
        (true, false, _) => "resource",
        (true, true, false) => "namespace",
        (true, true, true) => "cluster",
    }
}

impl Metrics {
    /// Counts a request as being worked on.
    pub(crate) fn begin(&self, info: &RequestInfo) -> Flying<'_> {
        let gauge = match info.verb.as_str() {
            "watch" => &self.long_running,
            "get" | "list" | "head" => &self.reading,
            _ => &self.mutating,
        };
        gauge.fetch_add(1, Ordering::Relaxed);
        Flying(gauge)
    }

    /// Counts a request that has been answered. `known`: its resource is served; the names of others come from callers alone
    /// and are not kept. What comes back counts the bytes of the answer, of requests that read.
    pub(crate) fn end(
        &self,
        info: &RequestInfo,
        known: bool,
        dry_run: bool,
        code: u16,
        took: Duration,
    ) -> Option<impl FnOnce(u64) + Send + use<>> {
        let named = |text| if known { text } else { "" };
        let key = Key {
            verb: verb(info),
            group: named(&info.group),
            version: named(&info.version),
            resource: named(&info.resource),
            subresource: named(&info.subresource),
            scope: scope(info),
            dry_run,
            code,
        };
        let series = self.series(key);
        series.count.fetch_add(1, Ordering::Relaxed);
        series.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let seconds = took.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            series.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        let reads = matches!(info.verb.as_str(), "get" | "list");
        reads.then_some(move |bytes| series.answered(bytes))
    }

    fn series(&self, key: Key<'_>) -> Arc<Series> {
        if let Some(series) = self.requests.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(series);
        }
        let mut requests = self.requests.write().unwrap_or_else(PoisonError::into_inner);
        let key = if requests.len() < SERIES_MAX {
            key
        } else {
            Key { verb: "other", group: "", version: "", resource: "", subresource: "", ..key }
        };
        Arc::clone(requests.entry(key.owned()).or_default())
    }

    /// Counts the body of a request to a resource that is served.
    pub(crate) fn received(&self, group: &str, resource: &str, verb: &str, bytes: usize) {
        self.resources.body(group, resource, verb, bytes);
    }

    /// Counts a list of a resource, which has looked at so many objects and gives so many.
    pub(crate) fn listed(&self, group: &str, resource: &str, evaluated: usize, returned: usize) {
        self.resources.list(group, resource, evaluated, returned);
    }

    /// Counts events sent to watchers.
    pub(crate) fn sent(&self, events: usize) {
        self.watch_events.fetch_add(events as u64, Ordering::Relaxed);
    }

    /// Counts a request that panicked.
    pub(crate) fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::Relaxed);
    }

    /// What is counted here in the text form of Prometheus. `objects`: how many objects each resource has, by group and name.
    pub(crate) fn text(&self, objects: &[(String, String, usize)], version: &str) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let requests = self.requests.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = requests.iter().collect();
        all.sort_by(|(one, _), (other, _)| order(one).cmp(&order(other)));
        head(
            &mut out,
            "apiserver_request_total",
            "counter",
            "Requests by what they asked for and how they were answered.",
        );
        for (labels, series) in &all {
            let count = series.count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",{}}} {count}",
                labels.code,
                labels.text()
            );
        }
        let name = "apiserver_request_duration_seconds";
        head(&mut out, name, "histogram", "How long requests took, in seconds.");
        for group in all.chunk_by(|(one, _), (other, _)| order(one).0 == order(other).0) {
            write_histogram(&mut out, name, group);
        }
        let name = "apiserver_response_sizes";
        head(&mut out, name, "histogram", "How large answers to requests that read were, in bytes.");
        for group in all.chunk_by(|(one, _), (other, _)| order(one).0.0 == order(other).0.0) {
            write_sizes(&mut out, name, group);
        }
        self.resources.write(&mut out);
        let gauge = |value: &AtomicI64| value.load(Ordering::Relaxed);
        head(&mut out, "apiserver_current_inflight_requests", "gauge", "Requests that are being worked on.");
        let _ = writeln!(
            out,
            "apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {}",
            gauge(&self.mutating)
        );
        let _ = writeln!(
            out,
            "apiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {}",
            gauge(&self.reading)
        );
        head(&mut out, "apiserver_longrunning_requests", "gauge", "Watches that are open.");
        let _ = writeln!(
            out,
            "apiserver_longrunning_requests{{component=\"apiserver\",verb=\"WATCH\"}} {}",
            gauge(&self.long_running)
        );
        head(&mut out, "apiserver_watch_events_total", "counter", "Events sent to watchers.");
        let _ = writeln!(out, "apiserver_watch_events_total {}", self.watch_events.load(Ordering::Relaxed));
        head(&mut out, "apiserver_panics_total", "counter", "Requests that panicked.");
        let _ = writeln!(out, "apiserver_panics_total {}", self.panics.load(Ordering::Relaxed));
        head(&mut out, "apiserver_resource_objects", "gauge", "Objects in the store.");
        for (group, resource, count) in objects {
            let _ = writeln!(
                out,
                "apiserver_resource_objects{{group=\"{group}\",resource=\"{resource}\"}} {count}"
            );
        }
        head(&mut out, "kubernetes_build_info", "gauge", "The version that is served.");
        let _ = writeln!(out, "kubernetes_build_info{{git_version=\"{version}\"}} 1");
        out
    }
}

/// What stands before the series of one name.
pub(crate) fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

/// Labels without the code, which is not one of the histogram's; then the code.
fn order(labels: &Labels) -> (([&str; 6], bool), u16) {
    let Labels { verb, group, version, resource, subresource, scope, dry_run, code } = labels;
    (([group, version, resource, subresource, verb, scope], *dry_run), *code)
}

/// One histogram of sizes, of the series that differ in the code and in whether they were dry runs. Nothing is written of what
/// has never been.
fn write_sizes(out: &mut String, name: &str, series: &[(&Labels, &Arc<Series>)]) {
    let sum = |of: &dyn Fn(&Series) -> &AtomicU64| {
        series.iter().map(|(_, series)| of(series).load(Ordering::Relaxed)).sum::<u64>()
    };
    let count = sum(&|series| &series.sent);
    let Some((labels, _)) = series.first().filter(|_| count > 0) else { return };
    let labels = format!(
        "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
        labels.group, labels.resource, labels.scope, labels.subresource, labels.verb, labels.version
    );
    let mut below = 0;
    for (index, bound) in SIZES.iter().enumerate() {
        below += sum(&|series| &series.sizes[index]);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
    }
    let bytes = sum(&|series| &series.sent_bytes);
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {bytes}\n{name}_count{{{labels}}} {count}");
}

impl Labels {
    fn text(&self) -> String {
        let dry_run = if self.dry_run { "All" } else { "" };
        format!(
            "component=\"apiserver\",dry_run=\"{dry_run}\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

/// One histogram, of the series that differ in the code alone.
fn write_histogram(out: &mut String, name: &str, series: &[(&Labels, &Arc<Series>)]) {
    let Some(labels) = series.first().map(|(labels, _)| labels.text()) else {
        return;
    };
    let sum = |of: &dyn Fn(&Series) -> u64| series.iter().map(|(_, series)| of(series)).sum::<u64>();
    let mut below = 0;
    for (index, bound) in BUCKETS.iter().enumerate() {
        below += sum(&|series| series.buckets[index].load(Ordering::Relaxed));
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {below}");
    }
    let count = sum(&|series| series.count.load(Ordering::Relaxed));
    #[allow(clippy::cast_precision_loss, reason = "a sum of seconds need not be exact to the nanosecond")]
    let seconds = sum(&|series| series.nanos.load(Ordering::Relaxed)) as f64 / 1e9;
    let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(out, "{name}_sum{{{labels}}} {seconds}\n{name}_count{{{labels}}} {count}");
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher as _;

    use super::*;

    #[test]
    fn a_borrowed_key_finds_what_its_owned_form_was_put_under() {
        let key = Key {
            verb: "GET",
            group: "apps",
            version: "v1",
            resource: "deployments",
            subresource: "",
            scope: "resource",
            dry_run: false,
            code: 200,
        };
        let hash = |value: &dyn Fn(&mut ahash::AHasher)| {
            let mut hasher = ahash::AHasher::default();
            value(&mut hasher);
            hasher.finish()
        };
        assert_eq!(hash(&|hasher| key.hash(hasher)), hash(&|hasher| key.owned().hash(hasher)));
    }

    #[test]
    fn requests_are_counted_by_what_they_were() {
        let metrics = Metrics::default();
        let info = RequestInfo {
            is_resource: true,
            verb: "list".into(),
            group: "apps".into(),
            version: "v1".into(),
            resource: "deployments".into(),
            ..RequestInfo::default()
        };
        for code in [200, 200, 410] {
            let sized = metrics.end(&info, true, false, code, Duration::from_millis(30));
            sized.expect("lists read")(if code == 200 { 500 } else { 5_000 });
        }
        let flying = metrics.begin(&RequestInfo { verb: "create".into(), ..RequestInfo::default() });
        let text = metrics.text(&[("apps".into(), "deployments".into(), 7)], "v1.37.0");
        let labels = "component=\"apiserver\",dry_run=\"\",group=\"apps\",resource=\"deployments\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"v1\"";
        let sized = labels.replace("dry_run=\"\",", "");
        for line in [
            &format!("apiserver_request_total{{code=\"200\",{labels}}} 2"),
            &format!("apiserver_request_total{{code=\"410\",{labels}}} 1"),
            &format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.025\"}} 0"),
            &format!("apiserver_request_duration_seconds_bucket{{{labels},le=\"0.05\"}} 3"),
            &format!("apiserver_request_duration_seconds_count{{{labels}}} 3"),
            &format!("apiserver_response_sizes_bucket{{{sized},le=\"1000\"}} 2"),
            &format!("apiserver_response_sizes_bucket{{{sized},le=\"10000\"}} 3"),
            &format!("apiserver_response_sizes_sum{{{sized}}} 6000"),
            "apiserver_current_inflight_requests{request_kind=\"mutating\"} 1",
            "apiserver_resource_objects{group=\"apps\",resource=\"deployments\"} 7",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
        drop(flying);
        assert!(metrics.text(&[], "").contains("{request_kind=\"mutating\"} 0"));
    }
}
