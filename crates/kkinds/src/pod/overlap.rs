//! Files of a volume that would hide each other.

use kschema::quote::Quoted;
use serde_json::Value;

use crate::check::Look;

/// How many files of one volume are compared, so that a huge volume does not cost a quadratic amount of time.
const FILES_MAX: usize = 1000;

/// A file and the source that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct File<'a> {
    path: &'a str,
    source: String,
}

impl File<'_> {
    fn shown(&self) -> String {
        if self.source.is_empty() {
            format!("{:?}", self.path)
        } else {
            format!("{:?} ({})", self.path, self.source)
        }
    }

    /// Whether one is the other, or a directory on its way.
    fn overlaps(&self, other: &File<'_>) -> bool {
        let below = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        !other.path.is_empty() && (below(other.path, self.path) || below(self.path, other.path))
    }
}

/// Adds the warnings about volumes whose files overlap.
pub(crate) fn warnings(volumes: &[Value], out: &mut Vec<String>) {
    for volume in volumes {
        let name = volume.text("name");
        let mut report = |description: &str, files: Vec<File<'_>>| {
            for pair in overlaps(files) {
                out.push(format!(
                    "volume {name} ({description}): overlapping paths: {pair}",
                    name = Quoted(name)
                ));
            }
        };
        for (key, word, named) in [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName")] {
            if let Some(source) = volume.get_some(key) {
                report(&format!("{word} {:?}", source.text(named)), files(source, ""));
            }
        }
        if let Some(source) = volume.get_some("downwardAPI") {
            report("DownwardAPI", files(source, ""));
        }
        if let Some(projected) = volume.get_some("projected") {
            let sources = projected.list("sources");
            report("Projected", sources.iter().flat_map(of_source).collect());
            let empty = |source: &&Value| source.as_object().is_some_and(serde_json::Map::is_empty);
            for _ in sources.iter().filter(empty) {
                out.push(format!("volume {name} (Projected) has no sources provided", name = Quoted(name)));
            }
        }
    }
}

fn files<'a>(source: &'a Value, shown: &str) -> Vec<File<'a>> {
    let path = |item: &'a Value| item.text("path").trim_end_matches('/');
    source.list("items").iter().map(|item| File { path: path(item), source: shown.to_owned() }).collect()
}

fn of_source(source: &Value) -> Vec<File<'_>> {
    for (key, word) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
        if let Some(found) = source.get_some(key).filter(|found| found.has("items")) {
            return files(found, &format!("{word} {:?}", found.text("name")));
        }
    }
    if let Some(found) = source.get_some("downwardAPI").filter(|found| found.has("items")) {
        return files(found, "DownwardAPI");
    }
    if let Some(token) = source.get_some("serviceAccountToken") {
        return vec![File {
            path: token.text("path").trim_end_matches('/'),
            source: "ServiceAccountToken".to_owned(),
        }];
    }
    if let Some(bundle) = source.get_some("clusterTrustBundle") {
        let named = bundle.some_text("name").unwrap_or_else(|| bundle.text("signerName"));
        let source = format!("ClusterTrustBundle {named}", named = Quoted(named));
        return vec![File { path: bundle.text("path").trim_end_matches('/'), source }];
    }
    let Some(certificate) = source.get_some("podCertificate") else {
        return Vec::new();
    };
    [("certificateChainPath", "chain"), ("keyPath", "key"), ("credentialBundlePath", "credential bundle")]
        .into_iter()
        .filter(|(key, _)| !certificate.text(key).is_empty())
        .map(|(key, word)| File {
            path: certificate.text(key).trim_end_matches('/'),
            source: format!("PodCertificate {word}"),
        })
        .collect()
}

fn overlaps(files: Vec<File<'_>>) -> Vec<String> {
    let files: Vec<_> = files.into_iter().take(FILES_MAX).collect();
    let mut pairs = Vec::new();
    for (index, file) in files.iter().enumerate().filter(|(_, file)| !file.path.is_empty()) {
        for before in files[..index].iter().filter(|before| file.overlaps(before)) {
            pairs.push(format!("{} with {}", file.shown(), before.shown()));
        }
    }
    pairs
}
