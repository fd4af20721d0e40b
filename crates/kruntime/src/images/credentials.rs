//! Names and passwords for registries, as Docker's configuration and Kubernetes' pull secrets have them.

use std::{collections::BTreeMap, fmt};

use base64::Engine as _;
use serde::Deserialize;

use super::{ImageError, Reference};

/// A name and a password, or a token that stands for both.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// The user.
    pub user: String,
    /// The password.
    pub password: String,
    /// A refresh token, in place of both.
    pub identity_token: Option<String>,
}

/// Passwords are not for logs.
impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Credentials by the registries, or parts of registries, that they are for.
///
/// ```
/// use kruntime::images::Credentials;
/// let config = br#"{"auths":{"registry.example/team":{"auth":"bWU6c2VjcmV0"}}}"#;
/// let credentials = Credentials::parse(config).unwrap();
/// let found = credentials.for_image(&"registry.example/team/app".parse().unwrap());
/// assert_eq!(found[0].user, "me");
/// assert!(credentials.for_image(&"registry.example/other".parse().unwrap()).is_empty());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    entries: BTreeMap<String, Vec<Credential>>,
}

#[derive(Deserialize)]
struct File {
    auths: Option<BTreeMap<String, Entry>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase", default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl Credentials {
    /// Reads `.dockerconfigjson`, or the older `.dockercfg`, which is the same without `auths`.
    ///
    /// # Errors
    /// [`ImageError::Malformed`]; the contents are not in the message.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let malformed = || ImageError::Malformed {
            what: "credentials".to_owned(),
            why: "not as Docker has them".to_owned(),
        };
        let with_auths = serde_json::from_slice::<File>(bytes).ok().and_then(|file| file.auths);
        let entries = match with_auths {
            Some(entries) => entries,
            None => serde_json::from_slice::<BTreeMap<String, Entry>>(bytes).map_err(|_| malformed())?,
        };
        let mut credentials = Self::default();
        for (place, entry) in entries {
            let (user, password) = if entry.auth.is_empty() {
                (entry.username, entry.password)
            } else {
                let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.trim());
                let text =
                    decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(malformed)?;
                let (user, password) = text.split_once(':').ok_or_else(malformed)?;
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            };
            let identity_token = Some(entry.identitytoken).filter(|token| !token.is_empty());
            credentials.add(&place, Credential { user, password, identity_token });
        }
        Ok(credentials)
    }

    /// Adds a credential for a registry, or a part of it: `host[:port][/path]`; `*` stands for one part of a host's name.
    pub fn add(&mut self, place: &str, credential: Credential) {
        let place = place.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        // The place under which Docker keeps those of its own registry, and API versions that old files have.
        let place = ["/v1", "/v2"].iter().find_map(|version| place.strip_suffix(version)).unwrap_or(place);
        let place =
            if matches!(place, "index.docker.io" | "registry-1.docker.io") { "docker.io" } else { place };
        self.entries.entry(place.to_owned()).or_default().push(credential);
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Self) {
        for (place, credentials) in other.entries {
            self.entries.entry(place).or_default().extend(credentials);
        }
    }

    /// The credentials to try for an image, those for the longest part of its name first.
    #[must_use]
    pub fn for_image(&self, image: &Reference) -> Vec<&Credential> {
        let mut found: Vec<_> = self.entries.iter().filter(|(place, _)| covers(place, image)).collect();
        found.sort_by_key(|(place, _)| std::cmp::Reverse(place.len()));
        found.into_iter().flat_map(|(_, credentials)| credentials).collect()
    }
}

fn covers(place: &str, image: &Reference) -> bool {
    let (host, path) = place.split_once('/').unwrap_or((place, ""));
    let (wanted, offered): (Vec<_>, Vec<_>) =
        (host.split('.').collect(), image.registry.split('.').collect());
    let host_ok = wanted.len() == offered.len()
        && wanted.iter().zip(&offered).all(|(wanted, offered)| match wanted.split_once('*') {
            Some((before, after)) => {
                offered.len() >= before.len() + after.len()
                    && offered.starts_with(before)
                    && offered.ends_with(after)
            }
            None => wanted == offered,
        });
    let path_ok = path.is_empty()
        || image.repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    host_ok && path_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After "Interpretation of config.json" in Kubernetes' documentation of private registries.
    #[test]
    fn credentials_are_for_a_part_of_a_registry() {
        let check = |place: &str, image: &str, expected: bool| {
            let mut credentials = Credentials::default();
            let credential =
                Credential { user: "u".to_owned(), password: "p".to_owned(), identity_token: None };
            credentials.add(place, credential);
            let found = !credentials.for_image(&image.parse().unwrap()).is_empty();
            assert_eq!(found, expected, "{place} {image}");
        };
        check("my-registry.example/images", "my-registry.example/images/my-app", true);
        check("my-registry.example/images", "my-registry.example/imagesx/my-app", false);
        check("*.my-registry.example/images", "sub.my-registry.example/images/my-app", true);
        check("*.my-registry.example/images", "my-registry.example/images/my-app", false);
        check("*.my-registry.example/images", "sub.sub.my-registry.example/images/my-app", false);
        check("prefix*.example", "prefix-1.example/app", true);
        check("prefix*.example", "other.example/app", false);
        check("https://index.docker.io/v1/", "busybox", true);
        check("registry.example:5000", "registry.example:5000/app", true);
        check("registry.example:5000", "registry.example/app", false);
    }
}
