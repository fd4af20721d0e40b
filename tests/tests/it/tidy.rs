//! The tree is as ARCHITECTURE.md says: edges between crates, lengths of files, names.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Every crate with the crates of this workspace that it may use.
const EDGES: &[(&str, &[&str])] = &[
    ("kcore", &[]),
    ("kstore", &[]),
    ("kcel", &["kcore"]),
    ("kschema", &["kcore"]),
    ("kkinds", &["kcore", "kcel", "kschema"]),
    ("kapi", &["kcore", "kstore", "kcel", "kschema", "kkinds"]),
    ("kreconcile", &["kcore", "kkinds"]),
    ("ksched", &["kcore", "kcel", "kreconcile"]),
    ("knet", &["kcore", "kreconcile"]),
    ("kruntime", &["kcore", "kreconcile", "knet"]),
    ("kplane", &["kcore", "kstore", "kapi", "kreconcile", "ksched", "knet", "kruntime"]),
];
/// The longest a source file may be, without its tests.
const LINES_MAX: usize = 600;
/// The longest a crate's map may be.
const MAP_LINES_MAX: usize = 120;
/// File names that are no concept.
const FORBIDDEN_FILES: &[&str] =
    &["util.rs", "utils.rs", "common.rs", "helpers.rs", "misc_helpers.rs", "mod.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn manifests() -> BTreeMap<String, toml::Table> {
    let folders = fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let manifests = folders.map(|folder| {
        let table: toml::Table = fs::read_to_string(folder.join("Cargo.toml")).unwrap().parse().unwrap();
        (folder.file_name().unwrap().to_string_lossy().into_owned(), table)
    });
    manifests.collect()
}

#[test]
fn every_crate_is_listed_and_uses_only_what_it_may() {
    let manifests = manifests();
    for (name, manifest) in &manifests {
        let allowed = EDGES
            .iter()
            .find(|(listed, _)| listed == name)
            .unwrap_or_else(|| panic!("{name} is not listed"))
            .1;
        assert_eq!(manifest["package"]["name"].as_str(), Some(name.as_str()));
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let used = manifest
                .get(section)
                .and_then(|section| section.as_table())
                .into_iter()
                .flat_map(|table| table.keys());
            for dependency in used.filter(|dependency| manifests.contains_key(*dependency)) {
                // A crate may turn on its own features for its tests.
                let own = section == "dev-dependencies" && dependency == name;
                assert!(own || allowed.contains(&dependency.as_str()), "{name} may not use {dependency}");
            }
        }
    }
    for (name, _) in EDGES {
        assert!(manifests.contains_key(*name), "{name} is listed and not there");
    }
}

#[test]
fn crates_are_fit_to_be_published() {
    for (name, manifest) in manifests() {
        let package = manifest["package"].as_table().unwrap();
        for key in ["description", "license", "repository", "keywords", "categories", "rust-version"] {
            assert!(package.contains_key(key), "{name} has no {key}");
        }
        assert!(
            manifest["lints"]["workspace"].as_bool().unwrap(),
            "{name} does not take the workspace's lints"
        );
    }
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn files_are_short_and_named_after_a_concept() {
    let mut files = Vec::new();
    for folder in ["crates", "examples", "benches", "xtask", "tests"] {
        sources(&root().join(folder), &mut files);
    }
    assert!(files.len() > 100);
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
        let shown = path.strip_prefix(root()).unwrap().display().to_string();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let in_tests = shown.starts_with("tests/") || shown.contains("/tests/");
        assert!(in_tests || code <= LINES_MAX, "{shown} has {code} lines");
        assert!(name != "lib.rs" || code <= MAP_LINES_MAX, "{shown} is a map of {code} lines");
        assert!(!FORBIDDEN_FILES.contains(&name.as_str()), "{shown} is named after no concept");
        for word in [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("#[ig", "nore")] {
            assert!(!text.contains(word), "{shown} has {word}");
        }
    }
}

#[test]
fn only_kapi_touches_a_store() {
    let mut files = Vec::new();
    for name in ["kreconcile", "ksched", "knet", "kruntime"] {
        sources(&root().join("crates").join(name).join("src"), &mut files);
    }
    for path in files {
        assert!(
            !fs::read_to_string(&path).unwrap().contains("kstore::"),
            "{} uses the store",
            path.display()
        );
    }
}
