//! Links in what comes back through the proxy: what leads to the other server's own paths is made to lead through this one
//! (apimachinery `util/proxy/transport.go`).

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
};

use bytes::{Bytes, BytesMut};
use flate2::{Compression, read, write};
use futures::{StreamExt as _, stream};
use html5gum::{DefaultEmitter, Token, Tokenizer};
use http::{HeaderValue, header, response::Parts};

use crate::body::Body;

/// How large a page may be, packed and unpacked, for its links to be looked at; larger ones are handed on as they are.
pub(super) const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Which attributes of which elements hold addresses.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];

/// Where links lead, and where they should.
#[derive(Debug)]
pub(super) struct Links {
    /// The path of the proxy, before that of the page.
    pub(super) prefix: String,
    /// The other server, as this one knows it.
    pub(super) backend: String,
    /// This server, as the caller knows it.
    pub(super) host: String,
}

impl Links {
    /// An address as it should be; `None` if it is right.
    fn through(&self, address: &str) -> Option<String> {
        let reference = Reference::parse(address);
        let host = reference.host.unwrap_or_default();
        let is_elsewhere = !host.is_empty() && host != self.backend && host != self.host;
        if is_elsewhere || !reference.path.starts_with('/') {
            return None;
        }
        // An address that the caller could have written keeps its beginning.
        let keeps = host == self.host && !host.is_empty();
        let start = if keeps { &address[..reference.path_at] } else { "" };
        let path = if reference.path.starts_with(&self.prefix) {
            reference.path.to_owned()
        } else {
            joined(&self.prefix, reference.path)
        };
        Some(format!("{start}{path}{}", reference.rest)).filter(|new| new != address)
    }

    /// Mends the answer's head, and its body if that is a page.
    pub(super) async fn mend(&self, head: &mut Parts, body: Body) -> Body {
        if let Some(location) = head.headers.get(header::LOCATION) {
            let new = location.to_str().ok().and_then(|location| self.through(location));
            if let Some(new) = new.and_then(|new| HeaderValue::from_str(&new).ok()) {
                head.headers.insert(header::LOCATION, new);
            }
            return body;
        }
        let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let form = text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim();
        let Some(packing) = Packing::of(text(header::CONTENT_ENCODING)) else { return body };
        if form != "text/html" {
            return body;
        }
        let mut chunks = http_body_util::BodyExt::into_data_stream(body);
        let mut page = BytesMut::new();
        while let Some(Ok(chunk)) = chunks.next().await {
            page.extend_from_slice(&chunk);
            if page.len() > PAGE_BYTES_MAX {
                let rest = chunks.filter_map(|chunk| std::future::ready(chunk.ok()));
                return Body::stream(stream::iter([page.freeze()]).chain(rest));
            }
        }
        let page = page.freeze();
        match packing.unpack(&page).map(|page| packing.pack(self.page(&page))) {
            Some(mended) => {
                head.headers.remove(header::CONTENT_LENGTH);
                Body::from(mended)
            }
            None => Body::from(page),
        }
    }

    /// A page with its links mended; all else stays as it is, byte for byte.
    fn page(&self, page: &[u8]) -> Vec<u8> {
        let mut changes: BTreeMap<usize, (usize, String)> = BTreeMap::new();
        let mut emitter = DefaultEmitter::<usize>::new_with_span();
        // What a script or a style holds is no markup.
        emitter.naively_switch_states(true);
        for token in Tokenizer::new_with_emitter(page, emitter) {
            let Ok(Token::StartTag(tag)) = token else { continue };
            let found = ATTRIBUTES.iter().find(|(element, _)| element.as_bytes() == &**tag.name);
            for name in found.into_iter().flat_map(|(_, names)| *names) {
                let Some(value) = tag.attributes.get(name.as_bytes()) else { continue };
                let address = String::from_utf8_lossy(value);
                let place = value_within(page, value.span.start, value.span.end);
                if let (Some((start, end)), Some(new)) = (place, self.through(&address)) {
                    changes.insert(start, (end, new));
                }
            }
        }
        let mut out = Vec::with_capacity(page.len() + changes.len() * self.prefix.len());
        let mut done = 0;
        for (start, (end, new)) in changes {
            let Some(before) = page.get(done..start) else { continue };
            out.extend_from_slice(before);
            for byte in new.bytes() {
                match byte {
                    b'&' => out.extend_from_slice(b"&amp;"),
                    b'"' => out.extend_from_slice(b"&#34;"),
                    b'\'' => out.extend_from_slice(b"&#39;"),
                    byte => out.push(byte),
                }
            }
            done = end;
        }
        out.extend_from_slice(page.get(done..).unwrap_or_default());
        out
    }
}

/// Where the value stands in what is written as `name="value"`, `name='value'` or `name=value`.
fn value_within(page: &[u8], start: usize, end: usize) -> Option<(usize, usize)> {
    let attribute = page.get(start..end)?;
    let after = attribute.iter().position(|byte| *byte == b'=')? + 1;
    let at = after + attribute.get(after..)?.iter().position(|byte| !byte.is_ascii_whitespace())?;
    let is_quoted = matches!(attribute.get(at)?, b'"' | b'\'');
    let (from, to) = if is_quoted {
        (start + at + 1, end.checked_sub(1)?)
    } else {
        // The tokenizer counts what ends a bare value to it.
        let is_end = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'>';
        (start + at, attribute[at..].iter().position(is_end).map_or(end, |length| start + at + length))
    };
    (from <= to).then_some((from, to))
}

/// How a page is packed.
#[derive(Clone, Copy)]
enum Packing {
    None,
    Gzip,
    Deflate,
}

impl Packing {
    fn of(encoding: &str) -> Option<Self> {
        match encoding {
            "" => Some(Self::None),
            "gzip" => Some(Self::Gzip),
            "deflate" => Some(Self::Deflate),
            _ => None,
        }
    }

    /// `None` when it can't be unpacked, or is too large then.
    fn unpack(self, page: &Bytes) -> Option<Bytes> {
        let limit = PAGE_BYTES_MAX as u64 + 1;
        let mut out = Vec::new();
        let read = match self {
            Self::None => return Some(page.clone()),
            Self::Gzip => read::MultiGzDecoder::new(&page[..]).take(limit).read_to_end(&mut out),
            Self::Deflate => read::DeflateDecoder::new(&page[..]).take(limit).read_to_end(&mut out),
        };
        read.ok().filter(|read| *read <= PAGE_BYTES_MAX).map(|_| Bytes::from(out))
    }

    fn pack(self, page: Vec<u8>) -> Bytes {
        // Writing into a `Vec` cannot fail.
        let packed = match self {
            Self::None => Ok(page),
            Self::Gzip => {
                let mut encoder = write::GzEncoder::new(Vec::new(), Compression::default());
                encoder.write_all(&page).and_then(|()| encoder.finish())
            }
            Self::Deflate => {
                let mut encoder = write::DeflateEncoder::new(Vec::new(), Compression::best());
                encoder.write_all(&page).and_then(|()| encoder.finish())
            }
        };
        Bytes::from(packed.unwrap_or_default())
    }
}

/// The parts of a reference to an address (RFC 3986, section 4.1) that matter here.
struct Reference<'a> {
    host: Option<&'a str>,
    path: &'a str,
    /// Where the path begins.
    path_at: usize,
    /// The query and the fragment, with their marks.
    rest: &'a str,
}

impl<'a> Reference<'a> {
    fn parse(text: &'a str) -> Self {
        let is_scheme = |scheme: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
            scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(inner)
        };
        let after = text.find(':').filter(|at| is_scheme(&text[..*at])).map_or(0, |at| at + 1);
        let (host, path_at) = match text[after..].strip_prefix("//") {
            Some(rest) => {
                let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
                let authority = &rest[..end];
                (Some(authority.rsplit('@').next().unwrap_or(authority)), after + 2 + end)
            }
            None => (None, after),
        };
        let tail = &text[path_at..];
        let (path, rest) = tail.split_at(tail.find(['?', '#']).unwrap_or(tail.len()));
        Self { host, path, path_at, rest }
    }
}

/// Two paths as one, without empty segments and steps back, as Go's `path.Join` writes it, but for a slash at the end, which stays.
fn joined(prefix: &str, path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in prefix.split('/').chain(path.split('/')) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let end = if path.ends_with('/') { "/" } else { "" };
    format!("/{}{end}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links() -> Links {
        Links {
            prefix: "/proxy".to_owned(),
            backend: "10.0.0.7:80".to_owned(),
            host: "cluster:6443".to_owned(),
        }
    }

    /// Cases of upstream's `transport_test.go` (`TestProxyTransport`, `TestRewriteURL`), for a server without a host of its own.
    #[test]
    fn addresses_of_the_other_server_lead_through_this_one() {
        for (address, expected) in [
            ("/google.log", "/proxy/google.log"),
            ("/google.log?a=b#c", "/proxy/google.log?a=b#c"),
            ("/google/", "/proxy/google/"),
            ("/", "/proxy/"),
            ("/a/../b//c", "/proxy/b/c"),
            ("http://10.0.0.7:80/redirected/target/", "/proxy/redirected/target/"),
            ("//10.0.0.7:80/a", "/proxy/a"),
            ("/proxy/a", "/proxy/a"),
            ("http://cluster:6443/a?b", "http://cluster:6443/proxy/a?b"),
            ("https://user@10.0.0.7:80/a", "/proxy/a"),
            ("relative/path", "relative/path"),
            ("", ""),
            ("#there", "#there"),
            ("mailto:a@b.example", "mailto:a@b.example"),
            ("javascript:go()", "javascript:go()"),
            ("http://elsewhere.example/a", "http://elsewhere.example/a"),
            ("http://10.0.0.7:80", "http://10.0.0.7:80"),
        ] {
            let new = links().through(address).unwrap_or_else(|| address.to_owned());
            assert_eq!(new, expected, "{address}");
        }
    }

    #[test]
    fn only_the_links_of_a_page_change() {
        for (page, expected) in [
            ("<pre><a href=\"google.log\">x</a></pre>", "<pre><a href=\"google.log\">x</a></pre>"),
            ("<a href=\"/google.log\">x</a>", "<a href=\"/proxy/google.log\">x</a>"),
            ("<A HREF='/a?b=1&amp;c=2'>x", "<A HREF='/proxy/a?b=1&amp;c=2'>x"),
            ("<img src=/i.png><p title=/t>", "<img src=/proxy/i.png><p title=/t>"),
            (
                "<!-- <a href=\"/a\"> --><script>'<a href=\"/a\">'</script>",
                "<!-- <a href=\"/a\"> --><script>'<a href=\"/a\">'</script>",
            ),
            (
                "<form action=\"/f\"><input src=\"/s\" formaction=\"/g\">",
                "<form action=\"/proxy/f\"><input src=\"/proxy/s\" formaction=\"/proxy/g\">",
            ),
            ("<a href = \"/a\" x>", "<a href = \"/proxy/a\" x>"),
            ("<a href=\"/a", "<a href=\"/a"),
        ] {
            assert_eq!(String::from_utf8_lossy(&links().page(page.as_bytes())), expected);
        }
    }

    #[tokio::test]
    async fn packed_pages_are_packed_again() {
        let page = b"<a href=\"/a\">x</a>";
        for (encoding, packing) in [("gzip", Packing::Gzip), ("deflate", Packing::Deflate)] {
            let (mut head, ()) = http::Response::new(()).into_parts();
            head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
            head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
            let body = links().mend(&mut head, Body::from(packing.pack(page.to_vec()))).await;
            let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
            assert_eq!(&packing.unpack(&body).unwrap()[..], b"<a href=\"/proxy/a\">x</a>");
        }
        let bomb = Packing::Gzip.pack(vec![0; PAGE_BYTES_MAX + 1]);
        assert!(Packing::Gzip.unpack(&bomb).is_none());
    }
}
