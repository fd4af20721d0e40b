//! Headers that end here, and those that tell the backend of the client.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// Headers that are for the neighbour alone (RFC 9110, section 7.6.1), and `Expect`, which the proxy answers itself.
const FOR_NEIGHBOURS: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|text| text.split(',')).map(str::trim)
}

/// What the message asks to speak from now on, if it does. HTTP/2 is never handed on: requests in it would pass by the routes.
pub(super) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asked = words(headers, &header::CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
    let is_http = |word: &str| {
        let word = word.to_ascii_lowercase();
        word.starts_with("h2c") || word.starts_with("http/")
    };
    let known = asked && !words(headers, &header::UPGRADE).any(is_http);
    known.then(|| headers.get(header::UPGRADE).cloned())?
}

/// Makes one header of the cookies, which come in several by HTTP/2 (RFC 9113, section 8.2.3).
pub(super) fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(header::COOKIE).iter().nth(1).is_some() {
        let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..])) {
            headers.insert(header::COOKIE, joined);
        }
    }
}

/// Takes off what is for the neighbour alone. That trailers are accepted is handed on: the proxy passes them, and gRPC asks for it.
pub(super) fn remove_for_neighbours(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        words(headers, &header::CONNECTION).filter_map(|word| word.parse().ok()).collect();
    let trailers = words(headers, &header::TE).any(|word| word.eq_ignore_ascii_case("trailers"));
    // Who names `Host` there can't have it taken off: it is for all.
    for name in named.iter().filter(|name| **name != header::HOST).chain(&FOR_NEIGHBOURS) {
        headers.remove(name);
    }
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// Who asks, and how they came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forwarded<'a> {
    pub(super) client: IpAddr,
    pub(super) host: &'a HeaderValue,
    pub(super) scheme: &'static str,
    pub(super) port: u16,
}

impl Forwarded<'_> {
    /// Tells the backend of the client. What the client says of itself is believed only when `trusts`: then the address is added to
    /// those that are there, and the rest stays.
    pub(super) fn tell(&self, headers: &mut HeaderMap, trusts: bool) {
        let mut clients = String::new();
        if trusts {
            for word in words(headers, &FORWARDED_FOR) {
                clients.push_str(word);
                clients.push_str(", ");
            }
        } else {
            headers.remove(header::FORWARDED);
            for name in [FORWARDED_HOST, FORWARDED_PORT, FORWARDED_PROTO] {
                headers.remove(name);
            }
        }
        clients.push_str(&self.client.to_canonical().to_string());
        if let Ok(clients) = HeaderValue::from_str(&clients) {
            headers.insert(FORWARDED_FOR, clients);
        }
        headers.entry(FORWARDED_HOST).or_insert_with(|| self.host.clone());
        headers.entry(FORWARDED_PORT).or_insert_with(|| self.port.into());
        headers.entry(FORWARDED_PROTO).or_insert_with(|| HeaderValue::from_static(self.scheme));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    #[test]
    fn what_is_for_the_neighbour_stays_here() {
        let mut headers = map(&[
            ("connection", "close, X-Own"),
            ("connection", "host"),
            ("x-own", "1"),
            ("host", "h"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("keep-alive", "5"),
            ("trailer", "x"),
            ("expect", "100-continue"),
            ("content-length", "5"),
        ]);
        assert_eq!(upgrade(&headers), None);
        remove_for_neighbours(&mut headers);
        assert_eq!(
            headers,
            map(&[("host", "h"), ("te", "trailers"), ("trailer", "x"), ("content-length", "5")])
        );
        assert_eq!(
            upgrade(&map(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")])).unwrap(),
            "websocket"
        );
    }

    #[test]
    fn http2_is_no_upgrade_and_cookies_are_one() {
        for (protocol, passes) in [
            ("websocket", true),
            ("SPDY/3.1", true),
            ("h2c", false),
            ("foo, H2C", false),
            ("HTTP/2.0", false),
        ] {
            let headers = map(&[("connection", "upgrade, http2-settings"), ("upgrade", protocol)]);
            assert_eq!(upgrade(&headers).is_some(), passes, "{protocol}");
        }
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2")]));
    }

    #[test]
    fn clients_are_believed_when_they_may_be() {
        let host = HeaderValue::from_static("h");
        let forwarded =
            Forwarded { client: "10.0.0.9".parse().unwrap(), host: &host, scheme: "https", port: 443 };
        let lies =
            [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "http"), ("forwarded", "for=1.1.1.1")];
        let mut headers = map(&lies);
        forwarded.tell(&mut headers, false);
        let told = [
            ("x-forwarded-for", "10.0.0.9"),
            ("x-forwarded-host", "h"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-proto", "https"),
        ];
        assert_eq!(headers, map(&told));
        let mut headers = map(&lies[..2]);
        forwarded.tell(&mut headers, true);
        let told = [
            ("x-forwarded-for", "1.1.1.1, 10.0.0.9"),
            ("x-forwarded-host", "h"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-proto", "http"),
        ];
        assert_eq!(headers, map(&told));
    }
}
