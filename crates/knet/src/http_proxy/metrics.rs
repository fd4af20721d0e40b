//! What a proxy counts, as Prometheus reads it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use http::StatusCode;

/// How many pairs of a rule and a status are counted by themselves; what is beyond is counted for the rule `other`.
pub const SERIES_MAX: usize = 8192;
/// The upper ends of the classes of durations, in milliseconds (Prometheus' defaults, from 5 ms to 10 s).
const BOUNDS_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];

/// The rule of an answer, on the answer's way to whoever counts it.
#[derive(Clone, Debug)]
pub(super) struct OfRule(pub(super) Arc<str>);

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Answer {
    /// The status; of an error in gRPC the one that it would have in HTTP, as there it is always 200.
    pub(super) status: StatusCode,
    /// The `grpc-status` of an error of the proxy's own.
    pub(super) grpc: Option<u8>,
}

impl From<StatusCode> for Answer {
    fn from(status: StatusCode) -> Self {
        Self { status, grpc: None }
    }
}

/// The counters of one proxy.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: Mutex<BTreeMap<(Arc<str>, Answer), u64>>,
    /// By class; the last one has no end.
    durations: [AtomicU64; BOUNDS_MS.len() + 1],
    nanoseconds: AtomicU64,
    pub(super) failures: AtomicU64,
}

impl Metrics {
    /// Counts an answer: its rule, if there was one, its status, and how long its head has taken.
    pub(super) fn answered(&self, rule: Option<&OfRule>, answer: Answer, took: Duration) {
        let rule = rule.map_or_else(|| Arc::from(""), |OfRule(rule)| Arc::clone(rule));
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (rule, answer);
        let key = if requests.len() < SERIES_MAX || requests.contains_key(&key) {
            key
        } else {
            (Arc::from("other"), key.1)
        };
        *requests.entry(key).or_default() += 1;
        drop(requests);
        let class = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        self.durations[class.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// All of it; `connections` and `tunnels` are those of the moment.
    pub(super) fn text(&self, proxy: &str, connections: usize, tunnels: usize) -> String {
        let mut out = String::new();
        let proxy = escaped(proxy);
        let head = |out: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        let name = "kplane_http_requests_total";
        head(&mut out, name, "counter", "Requests by rule and status.");
        for ((rule, answer), count) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            let (rule, code) = (escaped(rule), answer.status.as_u16());
            let grpc = answer.grpc.map(|code| format!(",grpc_status=\"{code}\"")).unwrap_or_default();
            let _ =
                writeln!(out, "{name}{{proxy=\"{proxy}\",rule=\"{rule}\",code=\"{code}\"{grpc}}} {count}");
        }
        let name = "kplane_http_request_duration_seconds";
        head(&mut out, name, "histogram", "From the head of a request to the head of its answer.");
        let mut sum = 0;
        for (index, count) in self.durations.iter().enumerate() {
            sum += count.load(Ordering::Relaxed);
            let bound = BOUNDS_MS
                .get(index)
                .map_or("+Inf".to_owned(), |ms| Duration::from_millis(*ms).as_secs_f64().to_string());
            let _ = writeln!(out, "{name}_bucket{{proxy=\"{proxy}\",le=\"{bound}\"}} {sum}");
        }
        let seconds = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum{{proxy=\"{proxy}\"}} {seconds}");
        let _ = writeln!(out, "{name}_count{{proxy=\"{proxy}\"}} {sum}");
        let failures = self.failures.load(Ordering::Relaxed);
        for (name, kind, help, value) in [
            (
                "kplane_http_endpoint_failures_total",
                "counter",
                "Tries that an endpoint did not answer.",
                failures,
            ),
            ("kplane_http_connections", "gauge", "Connections of clients.", wide(connections)),
            ("kplane_http_tunnels", "gauge", "Upgraded connections.", wide(tunnels)),
        ] {
            head(&mut out, name, kind, help);
            let _ = writeln!(out, "{name}{{proxy=\"{proxy}\"}} {value}");
        }
        out
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_told() {
        let metrics = Metrics::default();
        let rule = OfRule("shop/\"web\"".into());
        metrics.answered(Some(&rule), StatusCode::OK.into(), Duration::from_millis(7));
        metrics.answered(Some(&rule), StatusCode::OK.into(), Duration::from_secs(60));
        metrics.answered(None, StatusCode::NOT_FOUND.into(), Duration::ZERO);
        let text = metrics.text("ingress", 3, 1);
        for line in [
            "kplane_http_requests_total{proxy=\"ingress\",rule=\"shop/\\\"web\\\"\",code=\"200\"} 2",
            "kplane_http_requests_total{proxy=\"ingress\",rule=\"\",code=\"404\"} 1",
            "kplane_http_request_duration_seconds_bucket{proxy=\"ingress\",le=\"0.005\"} 1",
            "kplane_http_request_duration_seconds_bucket{proxy=\"ingress\",le=\"0.01\"} 2",
            "kplane_http_request_duration_seconds_bucket{proxy=\"ingress\",le=\"+Inf\"} 3",
            "kplane_http_request_duration_seconds_sum{proxy=\"ingress\"} 60.007",
            "kplane_http_request_duration_seconds_count{proxy=\"ingress\"} 3",
            "kplane_http_connections{proxy=\"ingress\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }

    #[test]
    fn series_are_bounded() {
        let metrics = Metrics::default();
        for number in 0..SERIES_MAX + 10 {
            let rule = OfRule(format!("r{number}").into());
            metrics.answered(Some(&rule), StatusCode::OK.into(), Duration::ZERO);
        }
        let text = metrics.text("x", 0, 0);
        assert!(text.contains("rule=\"other\",code=\"200\"} 10\n"));
    }
}
