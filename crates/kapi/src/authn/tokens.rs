//! Bearer tokens that are known beforehand.

use std::{collections::HashMap, fmt};

use async_trait::async_trait;
use http::request::Parts;
use sha2::{Digest, Sha256};

use super::{Authenticated, Authenticator, UserInfo, bearer};
use crate::error::ApiResult;

/// A table of bearer tokens. Only their digests are kept, and the digest is what is looked up, so neither memory nor timing
/// tells a token.
#[derive(Clone, Default)]
pub struct StaticTokens(HashMap<[u8; 32], UserInfo>);

impl StaticTokens {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a token.
    #[must_use]
    pub fn with(mut self, token: &str, user: UserInfo) -> Self {
        self.0.insert(Sha256::digest(token).into(), user);
        self
    }
}

impl fmt::Debug for StaticTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticTokens").field("count", &self.0.len()).finish()
    }
}

#[async_trait]
impl Authenticator for StaticTokens {
    async fn authenticate(&self, parts: &Parts) -> ApiResult<Option<Authenticated>> {
        let Some(token) = bearer(parts) else {
            return Ok(None);
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        Ok(self.0.get(&digest).cloned().map(Into::into))
    }
}
