//! Tokens of service accounts: how they are made (`TokenRequest`, KEP-1205) and believed.

mod claims;
mod issuer;
mod verify;

pub use self::issuer::{EXPIRATION_MAX_SECONDS, EXPIRATION_MIN_SECONDS, ServiceAccountIssuer};
pub(crate) use self::{
    claims::{Claims, Reference},
    issuer::EXPIRATION_DEFAULT_SECONDS,
    verify::ServiceAccountTokens,
};
