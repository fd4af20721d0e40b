//! URLs as Go's `net/url` reads them.

/// A URL in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Url {
    /// As it was written.
    pub(crate) raw: String,
    pub(crate) scheme: String,
    /// With the port.
    pub(crate) host: String,
    path: String,
    query: String,
}

impl Url {
    /// Reads an absolute URL or an absolute path, as a request has it; then again, so that a fragment is cut off.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let failed = |message: String| format!("parse {}: {message}", go_quoted(text));
        parse_request(text, text).map_err(failed)?;
        let body = text.split_once('#').map_or(text, |(body, _)| body);
        parse_request(body, text).map_err(failed)
    }

    pub(crate) fn hostname(&self) -> &str {
        match self.host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => self.host.rsplit_once(':').map_or(&self.host, |(name, _)| name),
        }
    }

    pub(crate) fn port(&self) -> &str {
        let rest = match self.host.split_once(']') {
            Some((_, rest)) => rest,
            None => &self.host,
        };
        rest.rsplit_once(':').map_or("", |(_, port)| port)
    }

    pub(crate) fn escaped_path(&self) -> String {
        let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]/%".contains(&byte);
        if self.path.bytes().all(fine) {
            return self.path.clone();
        }
        let mut escaped = String::with_capacity(self.path.len() + 16);
        for byte in unescape(&self.path, false).unwrap_or_default() {
            if byte.is_ascii_alphanumeric() || b"-_.~$&+/:=@".contains(&byte) {
                escaped.push(byte as char);
            } else {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        }
        escaped
    }

    /// The parameters of the query in the order of their first occurrence; what can't be read is left out.
    pub(crate) fn query(&self) -> Vec<(String, Vec<String>)> {
        let mut found: Vec<(String, Vec<String>)> = Vec::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text =
                |part| unescape(part, true).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
            let (Some(key), Some(value)) = (text(key), text(value)) else {
                continue;
            };
            match found.iter_mut().find(|(known, _)| *known == key) {
                Some((_, values)) => values.push(value),
                None => found.push((key, vec![value])),
            }
        }
        found
    }
}

/// `text` in quotes as Go's `%q` writes it, for the characters that matter here.
pub(crate) fn go_quoted(text: &str) -> String {
    format!("{text:?}").replace("\\'", "'")
}

fn parse_request(text: &str, raw: &str) -> Result<Url, String> {
    if text.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
        return Err("net/url: invalid control character in URL".to_owned());
    }
    if text.is_empty() {
        return Err("empty url".to_owned());
    }
    let mut url = Url {
        raw: raw.to_owned(),
        scheme: String::new(),
        host: String::new(),
        path: String::new(),
        query: String::new(),
    };
    if text == "*" {
        url.path = "*".to_owned();
        return Ok(url);
    }
    let mut rest = text;
    if let Some((scheme, after)) = scheme(text)? {
        url.scheme = scheme.to_ascii_lowercase();
        rest = after;
    }
    if let Some((before, query)) = rest.split_once('?') {
        url.query = query.to_owned();
        rest = before;
    }
    if !rest.starts_with('/') {
        // With a scheme, what follows is opaque: `mailto:somebody`.
        return if url.scheme.is_empty() { Err("invalid URI for request".to_owned()) } else { Ok(url) };
    }
    if !url.scheme.is_empty()
        && let Some(after) = rest.strip_prefix("//")
    {
        let end = after.find('/').unwrap_or(after.len());
        url.host = authority(&after[..end])?;
        rest = &after[end..];
    }
    unescape(rest, false)?;
    url.path = rest.to_owned();
    Ok(url)
}

/// The scheme and what follows its colon, if there is one.
fn scheme(text: &str) -> Result<Option<(&str, &str)>, String> {
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if index > 0 => {}
            b':' if index == 0 => return Err("missing protocol scheme".to_owned()),
            b':' => return Ok(Some((&text[..index], &text[index + 1..]))),
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The host of `user@host:port`, port included.
fn authority(text: &str) -> Result<String, String> {
    let host = match text.rsplit_once('@') {
        None => text,
        Some((user, host)) => {
            let fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
            if !user.bytes().all(fine) {
                return Err("net/url: invalid userinfo".to_owned());
            }
            unescape(user, false)?;
            host
        }
    };
    let port = if host.starts_with('[') {
        let end = host.rfind(']').ok_or("missing ']' in host")?;
        &host[end + 1..]
    } else {
        host.rfind(':').map_or("", |colon| &host[colon..])
    };
    let valid = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    if !valid {
        return Err(format!("invalid port {} after host", go_quoted(port)));
    }
    for letter in host.chars().filter(char::is_ascii) {
        if !letter.is_ascii_alphanumeric() && !"-_.~!$&'()*+,;=:[]<>\"%".contains(letter) {
            return Err(format!("invalid character {} in host name", go_quoted(&letter.to_string())));
        }
    }
    let bytes = unescape(host, false)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Resolves `%xx`, and `+` in queries.
fn unescape(text: &str, query: bool) -> Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'%' => {
                let digit = |index: usize| bytes.get(index).and_then(|byte| (*byte as char).to_digit(16));
                let (Some(high), Some(low)) = (digit(at + 1), digit(at + 2)) else {
                    let end = (at + 3).min(bytes.len());
                    let shown = String::from_utf8_lossy(&bytes[at..end]).into_owned();
                    return Err(format!("invalid URL escape {}", go_quoted(&shown)));
                };
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            b'+' if query => {
                out.push(b' ');
                at += 1;
            }
            byte => {
                out.push(byte);
                at += 1;
            }
        }
    }
    Ok(out)
}
