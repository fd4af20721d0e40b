//! Bearer tokens in WebSocket subprotocols: browsers can't set headers of a WebSocket's request.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{
    HeaderMap, HeaderValue,
    header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};

/// What the subprotocol of a token begins with; the token follows in base64url without padding.
const PREFIX: &str = "base64url.bearer.authorization.k8s.io.";

/// The subprotocols say more than one token, a token that can't be read, or nothing but a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Makes the token among a WebSocket's subprotocols the request's bearer token, unless it has one. The subprotocol is taken out, so
/// that nobody behind this server sees it (`k8s.io/apiserver/pkg/authentication/request/websocket`).
pub(crate) fn take_token(headers: &mut HeaderMap) -> Result<(), Malformed> {
    let upgrade = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return Ok(());
    }
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).into_iter().filter_map(|value| value.to_str().ok());
    let (tokens, others): (Vec<_>, Vec<_>) =
        offered.flat_map(|value| value.split(',')).map(str::trim).partition(|one| one.starts_with(PREFIX));
    let token = match tokens[..] {
        [] => return Ok(()),
        [token] => URL_SAFE_NO_PAD.decode(&token[PREFIX.len()..]).map_err(|_| Malformed)?,
        _ => return Err(Malformed),
    };
    let token = String::from_utf8(token).map_err(|_| Malformed)?;
    if others.is_empty() && !token.is_empty() {
        return Err(Malformed);
    }
    let others = HeaderValue::from_str(&others.join(",")).map_err(|_| Malformed)?;
    if !token.is_empty() && !headers.contains_key(AUTHORIZATION) {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| Malformed)?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    if others.is_empty() {
        headers.remove(SEC_WEBSOCKET_PROTOCOL);
    } else {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, others);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cases of upstream's tests; `dG9rZW4` is "token".
    #[test]
    fn a_token_is_read_from_the_subprotocols() {
        let token = |text: &str| format!("{PREFIX}{text}");
        let two = format!("{}, v4.channel.k8s.io", token("dG9rZW4"));
        for (protocols, authorization, expected) in [
            (vec!["v4.channel.k8s.io".to_owned()], None, Ok((None, Some("v4.channel.k8s.io")))),
            (vec![two.clone()], None, Ok((Some("Bearer token"), Some("v4.channel.k8s.io")))),
            (
                vec!["a".to_owned(), token("dG9rZW4"), "b".to_owned()],
                None,
                Ok((Some("Bearer token"), Some("a,b"))),
            ),
            (vec![two.clone()], Some("Bearer own"), Ok((Some("Bearer own"), Some("v4.channel.k8s.io")))),
            (vec![token("dG9rZW4")], None, Err(Malformed)),
            (vec![two.clone(), token("dG9rZW4")], None, Err(Malformed)),
            (vec![token("dG9rZW4="), "a".to_owned()], None, Err(Malformed)),
            (vec![token("!"), "a".to_owned()], None, Err(Malformed)),
            (vec![token("_w"), "a".to_owned()], None, Err(Malformed)),
            (vec![token("YQpi"), "a".to_owned()], None, Err(Malformed)),
            (vec![token(""), "a".to_owned()], None, Ok((None, Some("a")))),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            for value in &protocols {
                headers.append(SEC_WEBSOCKET_PROTOCOL, value.parse().unwrap());
            }
            if let Some(own) = authorization {
                headers.insert(AUTHORIZATION, HeaderValue::from_static(own));
            }
            let taken = take_token(&mut headers);
            let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
            let found = taken.map(|()| (text(AUTHORIZATION), text(SEC_WEBSOCKET_PROTOCOL)));
            let expected = expected.map(|(a, b)| (a.map(str::to_owned), b.map(str::to_owned)));
            assert_eq!(found, expected, "{protocols:?}");
        }
        // Without an upgrade a subprotocol means nothing.
        let mut headers = HeaderMap::new();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, two.parse().unwrap());
        assert_eq!(take_token(&mut headers), Ok(()));
        assert!(!headers.contains_key(AUTHORIZATION));
    }
}
