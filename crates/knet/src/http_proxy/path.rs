//! Paths in one form, so that a rule can't be passed by through another spelling of its path: pure.
//!
//! RFC 3986, section 6.2.2, calls spellings equal that differ in encoded letters, digits and `-._~`, in the case of encodings, and in
//! dot segments; nobody agrees on whether empty elements count, so they go. What an encoded slash means depends on who reads it:
//! such a path is taken as long as it means the same rule either way.

use std::borrow::Cow;

/// A path in one form.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NormalPath<'a> {
    /// What is compared with rules and handed on.
    pub(super) path: Cow<'a, str>,
    /// The path as somebody reads it who decodes slashes first, where that makes a difference.
    pub(super) decoded: Option<String>,
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadPath {
    /// An encoding is none, or stands for a zero byte.
    #[error("an encoding in the path is not valid")]
    Encoding,
    /// It leads above the root, or some server would read it so.
    #[error("the path leads above its root")]
    Outside,
}

/// The one form of a path.
///
/// # Errors
/// When it has none.
pub(super) fn normal(path: &str) -> Result<NormalPath<'_>, BadPath> {
    // The target of a request about the server as a whole is `*`.
    let is_plain = !path.contains('%') && !path.contains("//") && !path.contains("/.");
    if is_plain || !path.starts_with('/') {
        return Ok(NormalPath { path: Cow::Borrowed(path), decoded: None });
    }
    let path = resolve(&recode(path)?)?;
    let decoded = if path.contains("%2F") || path.contains("%5C") {
        Some(resolve(&path.replace("%2F", "/").replace("%5C", "/"))?)
    } else {
        None
    };
    Ok(NormalPath { path: Cow::Owned(path), decoded })
}

/// Decodes what needs no encoding, and writes the rest in capitals.
fn recode(path: &str) -> Result<String, BadPath> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let digits = after.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let digits = digits.ok_or(BadPath::Encoding)?;
        let byte = u8::from_str_radix(digits, 16).map_err(|_| BadPath::Encoding)?;
        match char::from(byte) {
            '\0' => return Err(BadPath::Encoding),
            plain if plain.is_ascii_alphanumeric() || "-._~".contains(plain) => out.push(plain),
            _ => {
                out.push('%');
                out.push_str(&digits.to_ascii_uppercase());
            }
        }
        rest = &after[2..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Removes empty elements and dot segments (RFC 3986, section 5.2.4).
fn resolve(path: &str) -> Result<String, BadPath> {
    let mut elements: Vec<&str> = Vec::new();
    let mut is_folder = false;
    for element in path.split('/').skip(1) {
        is_folder = matches!(element, "" | "." | "..");
        match element {
            "" | "." => {}
            ".." => drop(elements.pop().ok_or(BadPath::Outside)?),
            // Servers for servlets cut off parameters first, and are at a dot segment then.
            parameters if parameters.starts_with("..;") || parameters.starts_with(".;") => {
                return Err(BadPath::Outside);
            }
            element => elements.push(element),
        }
    }
    let mut out = format!("/{}", elements.join("/"));
    if is_folder && !elements.is_empty() {
        out.push('/');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_a_path_have_one_form() {
        for (path, expected) in [
            ("/", "/"),
            ("*", "*"),
            ("", ""),
            ("/a/b", "/a/b"),
            ("/a/b/", "/a/b/"),
            ("/a//b", "/a/b"),
            ("//a", "/a"),
            ("/a//", "/a/"),
            ("/a/./b", "/a/b"),
            ("/a/.", "/a/"),
            ("/a/../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/a/.../b", "/a/.../b"),
            ("/a/.b", "/a/.b"),
            ("/%61dmin", "/admin"),
            ("/%7Eme/%2D", "/~me/-"),
            ("/a/%2e%2E/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/caf%c3%a9", "/caf%C3%A9"),
            ("/a%20b;c=d", "/a%20b;c=d"),
            ("/a;b/..", "/"),
        ] {
            assert_eq!(
                normal(path).map(|normal| normal.path.into_owned()),
                Ok(expected.to_owned()),
                "{path}"
            );
        }
    }

    #[test]
    fn encoded_slashes_are_kept_and_shown_decoded() {
        for (path, kept, decoded) in [
            ("/a%2fb", "/a%2Fb", "/a/b"),
            ("/a%5Cb", "/a%5Cb", "/a/b"),
            ("/a/x%2f..%2f..%2fb", "/a/x%2F..%2F..%2Fb", "/b"),
            ("/a%2F", "/a%2F", "/a/"),
        ] {
            let found = normal(path).unwrap();
            assert_eq!((&*found.path, found.decoded.as_deref()), (kept, Some(decoded)), "{path}");
        }
        assert_eq!(normal("/a/b").unwrap().decoded, None);
    }

    #[test]
    fn what_has_no_form_is_refused() {
        for path in ["/..", "/a/../..", "/%2e%2e", "/%2f..%2f..", "/a/..;/b", "/a/.;x/b", "/a%2f..;b"] {
            assert_eq!(normal(path), Err(BadPath::Outside), "{path}");
        }
        for path in ["/%", "/%2", "/%zz", "/a%00b", "/%+1"] {
            assert_eq!(normal(path), Err(BadPath::Encoding), "{path}");
        }
    }

    proptest! {
        /// What has its form stays as it is, and nothing in it leads upwards, whoever reads it.
        #[test]
        fn a_form_is_its_own_form(path in "/(a|b|\\.|/|;|%2e|%2E|%2f|%5c|%61|%20|%){0,12}") {
            if let Ok(found) = normal(&path) {
                let again = normal(&found.path).unwrap();
                prop_assert_eq!(&again.path, &found.path);
                prop_assert_eq!(&again.decoded, &found.decoded);
                for form in [Some(&*found.path), found.decoded.as_deref()].into_iter().flatten() {
                    prop_assert!(!form.contains("//") && !form.contains("/../") && !form.ends_with("/.."), "{}", form);
                }
            }
        }
    }
}
