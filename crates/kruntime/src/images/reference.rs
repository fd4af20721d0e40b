//! The names of images, and the digests that tell one content from all others.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

/// The longest name of an image that is taken.
pub const NAME_BYTES_MAX: usize = 1024;

/// The SHA-256 digest of some content: `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

impl Digest {
    /// The digest of these bytes.
    ///
    /// ```
    /// let digest = kruntime::images::Digest::of(b"");
    /// assert!(digest.as_str().starts_with("sha256:e3b0c44298fc1c14"));
    /// ```
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::finish(Sha256::new_with_prefix(bytes))
    }

    pub(crate) fn finish(hasher: Sha256) -> Self {
        use fmt::Write as _;
        let mut text = "sha256:".to_owned();
        for byte in hasher.finalize() {
            // Writing into a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// The digest as text, with its algorithm.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest without its algorithm: fit for a file's name.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.0["sha256:".len()..]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is not a digest, or one of an algorithm other than SHA-256.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid digest {0:?}")]
pub struct DigestError(String);

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match text.strip_prefix("sha256:") {
            Some(hex) if hex.len() == 64 && hex.bytes().all(is_hex) => Ok(Self(text.to_owned())),
            _ => Err(DigestError(text.chars().take(100).collect())),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// An image's name in full, as Docker and Kubernetes read it: `busybox` is `docker.io/library/busybox:latest`.
///
/// ```
/// use kruntime::images::Reference;
/// let name: Reference = "quay.io/prometheus/busybox:v1".parse().unwrap();
/// assert_eq!((name.registry.as_str(), name.repository.as_str()), ("quay.io", "prometheus/busybox"));
/// assert_eq!("busybox".parse::<Reference>().unwrap().to_string(), "docker.io/library/busybox:latest");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    /// The registry: a host, perhaps with a port.
    pub registry: String,
    /// The repository in the registry.
    pub repository: String,
    /// The tag; `latest` when the name has neither tag nor digest.
    pub tag: Option<String>,
    /// The digest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// What the registry is asked for: the digest, else the tag.
    #[must_use]
    pub fn wanted(&self) -> &str {
        self.digest.as_ref().map(Digest::as_str).or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// A name that no image can have. The container waits with `InvalidImageName`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("couldn't parse image name {0:?}: invalid reference format")]
pub struct ReferenceError(String);

fn is_component(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    edge(text.as_bytes().first())
        && edge(text.as_bytes().last())
        && text.bytes().all(inner)
        && !text.contains("..")
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let host_ok = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-".contains(&b)),
    };
    host_ok && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= 128
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let wrong = || ReferenceError(text.chars().take(NAME_BYTES_MAX).collect());
        if text.len() > NAME_BYTES_MAX {
            return Err(wrong());
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        let (registry, repository) = match path.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest.to_owned()),
            Some(_) => ("docker.io", path.to_owned()),
            None => ("docker.io", format!("library/{path}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let good = is_registry(registry) && repository.split('/').all(is_component) && tag.is_none_or(is_tag);
        if !good {
            return Err(wrong());
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After the grammar of distribution's `reference` package, with Docker's normal form.
    #[test]
    fn names_are_read_as_docker_reads_them() {
        let hex = "0".repeat(64);
        let check = |text: &str, expected: Option<&str>| {
            let found = text.parse::<Reference>().ok().map(|reference| reference.to_string());
            assert_eq!(found.as_deref(), expected, "{text:?}");
        };
        check("busybox", Some("docker.io/library/busybox:latest"));
        check("busybox:1.36", Some("docker.io/library/busybox:1.36"));
        check("prom/node", Some("docker.io/prom/node:latest"));
        check("index.docker.io/prom/node", Some("docker.io/prom/node:latest"));
        check("localhost/a/b", Some("localhost/a/b:latest"));
        check("localhost:5000/a", Some("localhost:5000/a:latest"));
        check("127.0.0.1:5000/a/b:t", Some("127.0.0.1:5000/a/b:t"));
        check("[::1]:5000/a:t", Some("[::1]:5000/a:t"));
        check(&format!("r.io/a@sha256:{hex}"), Some(&format!("r.io/a@sha256:{hex}")));
        check(&format!("r.io/a:t@sha256:{hex}"), Some(&format!("r.io/a:t@sha256:{hex}")));
        for wrong in
            ["", "UPPER", "a b", "a//b", "r.io/../b", "a:", "a:-t", "a@sha256:12", "r.io:99999/a", "/a", "a/"]
        {
            check(wrong, None);
        }
        check(&"a".repeat(NAME_BYTES_MAX + 1), None);
    }
}
