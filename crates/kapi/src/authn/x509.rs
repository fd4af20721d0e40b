//! Client certificates.

use std::sync::Arc;

use async_trait::async_trait;
use http::request::Parts;
use kcore::Status;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authenticated, Authenticator, UserInfo};
use crate::error::ApiResult;

/// Request extension: the chain that the TLS layer has verified, the client's own certificate first, in DER.
#[derive(Clone, Debug)]
pub struct PeerCertificates(pub Arc<Vec<Vec<u8>>>);

/// Takes the user from the client certificate: the common name is the user, each organization a group (Kubernetes,
/// "X.509 client certificates"). The TLS layer has verified the chain against the cluster's CA before.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientCertificates;

#[async_trait]
impl Authenticator for ClientCertificates {
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
        let Some(PeerCertificates(chain)) = parts.extensions.get::<PeerCertificates>() else {
            return Ok(None);
        };
        let Some(der) = chain.first() else {
            return Ok(None);
        };
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Status::unauthorized())?;
        let subject = certificate.subject();
        let name =
            subject.iter_common_name().filter_map(|name| name.as_str().ok()).next().unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok());
        Ok(Some(UserInfo::new(name, groups).into()))
    }
}
