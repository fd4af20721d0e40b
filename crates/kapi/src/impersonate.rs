//! Acting as somebody else (Kubernetes, "User impersonation"): the headers `Impersonate-User`, `-Group`, `-Uid` and
//! `-Extra-<key>`. Each name must be allowed to the caller by the verb `impersonate`.

use http::HeaderMap;
use kcore::Status;
use percent_encoding::percent_decode_str;

use crate::{
    authn::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED, UserInfo},
    error::ApiResult,
    request::RequestInfo,
};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Whom the headers ask to act as, and what the caller must be allowed for it; `None` when they ask for nothing.
///
/// # Errors
/// 400 when groups, uid or extras are asked for without a user.
pub(crate) fn wanted(headers: &HeaderMap) -> ApiResult<Option<(UserInfo, Vec<RequestInfo>)>> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = text(USER);
    let groups: Vec<&str> = headers.get_all(GROUP).iter().filter_map(|value| value.to_str().ok()).collect();
    let extras: Vec<(&str, &str)> = headers
        .iter()
        .filter_map(|(name, value)| Some((name.as_str().strip_prefix(EXTRA)?, value.to_str().ok()?)))
        .collect();
    if name.is_empty() {
        if groups.is_empty() && extras.is_empty() && text(UID).is_empty() {
            return Ok(None);
        }
        return Err(Status::bad_request("requested impersonation without impersonating a user").into());
    }
    let ask = |group: &str, resource: &str, namespace: &str, name: &str, subresource: &str| RequestInfo {
        is_resource: true,
        verb: "impersonate".to_owned(),
        group: group.to_owned(),
        version: "v1".to_owned(),
        resource: resource.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        subresource: subresource.to_owned(),
        ..RequestInfo::default()
    };
    let mut user = UserInfo::new(name, groups.iter().copied());
    user.uid = text(UID).to_owned();
    let account = name.strip_prefix(SERVICE_ACCOUNT).and_then(|rest| rest.split_once(':'));
    let mut asked = vec![match account {
        Some((namespace, account)) => ask("", "serviceaccounts", namespace, account, ""),
        None => ask("", "users", "", name, ""),
    }];
    asked.extend(groups.iter().map(|group| ask("", "groups", "", group, "")));
    if !user.uid.is_empty() {
        asked.push(ask("authentication.k8s.io", "uids", "", &user.uid, ""));
    }
    for (key, value) in extras {
        let key = percent_decode_str(key).decode_utf8_lossy().to_lowercase();
        asked.push(ask("authentication.k8s.io", "userextras", "", value, &key));
        user.extra.entry(key).or_default().push(value.to_owned());
    }
    if let (Some((namespace, _)), true) = (account, groups.is_empty()) {
        user.groups =
            vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    let implied = if name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !user.is_in(implied) {
        user.groups.push(implied.to_owned());
    }
    Ok(Some((user, asked)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn what_is_asked_for_is_named() {
        assert!(wanted(&HeaderMap::new()).unwrap().is_none());
        assert_eq!(wanted(&headers(&[(GROUP, "a")])).unwrap_err().0.code, 400);
        let (user, asked) =
            wanted(&headers(&[(USER, "ann"), (GROUP, "dev"), ("impersonate-extra-scope", "x")]))
                .unwrap()
                .unwrap();
        assert_eq!(
            (user.name.as_str(), user.groups.as_slice()),
            ("ann", &["dev".to_owned(), AUTHENTICATED.to_owned()][..])
        );
        let named: Vec<_> = asked
            .iter()
            .map(|ask| (ask.resource.as_str(), ask.name.as_str(), ask.subresource.as_str()))
            .collect();
        assert_eq!(named, [("users", "ann", ""), ("groups", "dev", ""), ("userextras", "x", "scope")]);
        let (account, asked) = wanted(&headers(&[(USER, "system:serviceaccount:ns:sa")])).unwrap().unwrap();
        assert!(account.is_in("system:serviceaccounts:ns"));
        assert_eq!((asked[0].resource.as_str(), asked[0].namespace.as_str()), ("serviceaccounts", "ns"));
        let (nobody, _) = wanted(&headers(&[(USER, ANONYMOUS)])).unwrap().unwrap();
        assert!(!nobody.is_in(AUTHENTICATED));
    }
}
