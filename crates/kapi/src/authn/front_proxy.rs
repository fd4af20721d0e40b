//! Callers that another API server speaks for (Kubernetes, "Authenticating Proxy").

use async_trait::async_trait;
use http::{HeaderMap, request::Parts};
use percent_encoding::percent_decode_str;

use super::{Authenticated, Authenticator, ClientCertificates, UserInfo};
use crate::error::ApiResult;

/// Believes `X-Remote-User`, `X-Remote-Group` and `X-Remote-Extra-*` if the client certificate's common name is one of those
/// given (`--requestheader-allowed-names`). It must be asked before [`ClientCertificates`], which
/// [`ApiServerBuilder::front_proxy`](crate::ApiServerBuilder::front_proxy) sees to.
///
/// Who can get a certificate of such a name from the authority that the TLS layer trusts can be anybody here, so the name
/// must be one that nobody else gets.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    names: Vec<String>,
}

impl FrontProxy {
    /// Believes the holders of certificates with these common names.
    pub fn new<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Self {
        Self { names: names.into_iter().map(Into::into).collect() }
    }
}

#[async_trait]
impl Authenticator for FrontProxy {
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
        let Some(proxy) = ClientCertificates.authenticate(parts).await? else {
            return Ok(None);
        };
        if !self.names.contains(&proxy.user.name) {
            return Ok(None);
        }
        Ok(user(&parts.headers).map(Into::into))
    }
}

/// The user that the headers name.
fn user(headers: &HeaderMap) -> Option<UserInfo> {
    let all = |name: &str| {
        headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok().map(str::to_owned))
    };
    let name = all("x-remote-user").next().filter(|name| !name.is_empty())?;
    let mut user = UserInfo::new(name, all("x-remote-group"));
    user.uid = all("x-remote-uid").next().unwrap_or_default();
    for (header, value) in headers {
        if let Some(key) = header.as_str().strip_prefix("x-remote-extra-")
            && let Ok(value) = value.to_str()
        {
            let key = percent_decode_str(key).decode_utf8_lossy().into_owned();
            user.extra.entry(key).or_default().push(value.to_owned());
        }
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headers_name_the_user() {
        let mut headers = HeaderMap::new();
        assert_eq!(user(&headers), None);
        for (name, value) in [
            ("x-remote-user", "jane"),
            ("x-remote-group", "a"),
            ("x-remote-group", "b"),
            ("x-remote-extra-acme%2ecom%2fscope", "x"),
        ] {
            headers.append(http::HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        let user = user(&headers).unwrap();
        assert_eq!((&*user.name, user.groups), ("jane", vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(user.extra["acme.com/scope"], ["x"]);
    }
}
