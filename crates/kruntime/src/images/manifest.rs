//! The documents that an image is made of: index, manifest and configuration, of the OCI image format and of Docker's
//! second schema, which differ in media types only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Digest, ImageError};

/// The most bytes of an index, a manifest or a configuration (registries refuse more than 4 MiB).
pub const DOCUMENT_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// The most layers of an image; the kernel's overlay takes 500, Docker 127.
pub const LAYERS_MAX: usize = 127;
/// The most entries of an index.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// How deep an index may lie in another.
pub const INDEX_DEPTH_MAX: usize = 4;

pub(crate) const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
pub(crate) const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// Says where some content is: its kind, digest and size.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's media type.
    #[serde(default)]
    pub media_type: String,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes.
    pub size: u64,
    /// What machine it is for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Further words; the image's name in an OCI layout.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A kind of machine, in Go's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Platform {
    /// `amd64`, `arm64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `linux`.
    #[serde(default)]
    pub os: String,
    /// The architecture's variant, such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// The machine that this program runs on.
    #[must_use]
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { architecture: architecture.to_owned(), os: "linux".to_owned(), variant: None }
    }

    /// How well `offered` suits this machine: 0 not at all; without a variant before one with.
    fn suits(&self, offered: &Self) -> u8 {
        if self.architecture != offered.architecture || self.os != offered.os {
            return 0;
        }
        match (&self.variant, offered.variant.as_deref()) {
            (Some(own), Some(variant)) if own == variant => 3,
            (_, None) => 2,
            (None, Some("v8")) if self.architecture == "arm64" => 3,
            _ => 1,
        }
    }
}

/// What an image consists of: its configuration and its layers, the lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers.
    pub layers: Vec<Descriptor>,
}

/// An image's own words about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Configuration {
    /// The machine that it is for.
    #[serde(flatten)]
    pub platform: Platform,
    /// How it is run.
    #[serde(default)]
    pub config: Option<Run>,
    /// The digests of its unpacked layers.
    #[serde(default)]
    pub rootfs: RootFs,
}

/// The digests of an image's layers, not compressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// The lowest first.
    #[serde(default)]
    pub diff_ids: Vec<Digest>,
}

/// How an image is run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Run {
    /// `user`, `user:group`, by name or number.
    pub user: Option<String>,
    /// `NAME=value`.
    pub env: Option<Vec<String>>,
    /// The program and its first arguments.
    pub entrypoint: Option<Vec<String>>,
    /// The arguments that the container's `args` replace.
    pub cmd: Option<Vec<String>>,
    /// The directory to start in.
    pub working_dir: Option<String>,
    /// The signal that asks it to end.
    pub stop_signal: Option<String>,
}

/// An index or a manifest: what a registry or a layout may give for a name.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Manifest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

impl Document {
    /// Reads a document that was found where `what` says.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Self, ImageError> {
        let wrong = |why: String| ImageError::Malformed { what: what.to_owned(), why };
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        if raw.schema_version != 2 {
            return Err(wrong(format!("schema version {} is not supported", raw.schema_version)));
        }
        let known = |types: &[&str]| raw.media_type.as_deref().is_none_or(|kind| types.contains(&kind));
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), None, None) if known(&INDEX_TYPES) => {
                if manifests.len() > INDEX_ENTRIES_MAX {
                    return Err(wrong(format!("an index may have {INDEX_ENTRIES_MAX} entries")));
                }
                Ok(Self::Index(manifests))
            }
            (None, Some(config), Some(layers)) if known(&MANIFEST_TYPES) => {
                if layers.len() > LAYERS_MAX {
                    return Err(wrong(format!("an image may have {LAYERS_MAX} layers")));
                }
                Ok(Self::Manifest(Manifest { config, layers }))
            }
            _ => Err(wrong("neither an index nor a manifest".to_owned())),
        }
    }
}

/// The entry of an index that suits `platform` best; entries that name no machine suit any.
pub(crate) fn choose<'a>(entries: &'a [Descriptor], platform: &Platform) -> Option<&'a Descriptor> {
    let suits = |entry: &Descriptor| entry.platform.as_ref().map_or(1, |offered| platform.suits(offered));
    // Of equals the first, which is the one that the index' author put first.
    entries.iter().rev().filter(|entry| suits(entry) > 0).max_by_key(|entry| suits(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_entry_for_the_machine_is_chosen() {
        let entry = |text: &str| {
            let mut parts = text.split('/');
            let mut next = || parts.next().unwrap_or_default().to_owned();
            let (os, architecture) = (next(), next());
            let variant = Some(next()).filter(|variant| !variant.is_empty());
            let platform = (!os.is_empty()).then_some(Platform { os, architecture, variant });
            Descriptor {
                media_type: String::new(),
                digest: Digest::of(text.as_bytes()),
                size: 1,
                platform,
                annotations: BTreeMap::new(),
            }
        };
        let check = |machine: &str, entries: &[&str], expected: Option<usize>| {
            let found: Vec<_> = entries.iter().map(|text| entry(text)).collect();
            let platform = entry(machine).platform.unwrap();
            let chosen = choose(&found, &platform).map(|c| found.iter().position(|e| e == c).unwrap());
            assert_eq!(chosen, expected, "{machine} {entries:?}");
        };
        check("linux/amd64", &["linux/arm64", "linux/amd64"], Some(1));
        check("linux/amd64", &["windows/amd64", "linux/arm64"], None);
        check("linux/amd64", &["linux/amd64/v3", "linux/amd64"], Some(1));
        check("linux/arm64", &["linux/arm64/v9", "linux/arm64/v8"], Some(1));
        check("linux/amd64", &["", "linux/amd64"], Some(1));
        check("linux/amd64", &["linux/arm64", ""], Some(1));
    }

    #[test]
    fn documents_are_told_apart() {
        let digest = Digest::of(b"");
        let part = format!("{{\"digest\":\"{digest}\",\"size\":0}}");
        let layers = |count: usize| vec![part.as_str(); count].join(",");
        let manifest = |count: usize| {
            format!("{{\"schemaVersion\":2,\"config\":{part},\"layers\":[{}]}}", layers(count))
        };
        let check = |text: &str, expected: &str| {
            let found = match Document::parse(text.as_bytes(), "it") {
                Ok(Document::Index(_)) => "index".to_owned(),
                Ok(Document::Manifest(_)) => "manifest".to_owned(),
                Err(error) => error.to_string(),
            };
            assert!(found.contains(expected), "{text}: {found}");
        };
        check(&manifest(1), "manifest");
        check(&manifest(LAYERS_MAX + 1), "127 layers");
        check(&format!("{{\"schemaVersion\":2,\"manifests\":[{part}]}}"), "index");
        check(&format!("{{\"schemaVersion\":1,\"manifests\":[{part}]}}"), "schema version 1");
        check("{\"schemaVersion\":2}", "neither");
        check("{\"schemaVersion\":2,\"manifests\":[{\"digest\":\"md5:0\",\"size\":0}]}", "invalid digest");
        check("[]", "invalid length");
    }
}
