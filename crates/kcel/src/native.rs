//! Values of the libraries' own types.

pub(crate) mod semver;
pub(crate) mod url;

use std::{net::IpAddr, sync::Arc};

use kcore::Quantity;

use self::{semver::Semver, url::Url};
use crate::{
    authorizer::{AuthorizerValue, Decision, GroupCheck, PathCheck, ResourceValue},
    error::EvalError,
    library::format::NamedFormat,
};

/// A value of a library's type; expressions work with it through the library's functions.
#[derive(Clone, Debug)]
pub struct Native(pub(crate) Kind);

/// Which library's.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Ip(IpAddr),
    Cidr(Cidr),
    Quantity(Quantity),
    Url(Arc<Url>),
    Semver(Arc<Semver>),
    Format(&'static NamedFormat),
    Authorizer(AuthorizerValue),
    PathCheck(Arc<PathCheck>),
    GroupCheck(Arc<GroupCheck>),
    ResourceCheck(Arc<ResourceValue>),
    Decision(Arc<Decision>),
}

/// An address and the length of its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cidr {
    pub(crate) address: IpAddr,
    pub(crate) bits: u8,
}

impl Cidr {
    /// The address with the bits beyond the prefix cleared.
    pub(crate) fn masked(self) -> Self {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V4((u32::from(address) & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                IpAddr::V6((u128::from(address) & mask).into())
            }
        };
        Self { address, bits: self.bits }
    }

    /// Whether an address is in the range; one of the other family is not.
    pub(crate) fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self { address, bits: self.bits }.masked().address == self.masked().address
    }

    /// Whether all of `other`'s addresses are in the range.
    pub(crate) fn contains_cidr(self, other: Self) -> bool {
        self.bits <= other.bits && self.contains(other.address)
    }
}

impl Native {
    pub(crate) fn type_name(&self) -> &'static str {
        match &self.0 {
            Kind::Ip(_) => "net.IP",
            Kind::Cidr(_) => "net.CIDR",
            Kind::Quantity(_) => "kubernetes.Quantity",
            Kind::Url(_) => "kubernetes.URL",
            Kind::Semver(_) => "kubernetes.Semver",
            Kind::Format(_) => "kubernetes.NamedFormat",
            Kind::Authorizer(_) => "kubernetes.authorization.Authorizer",
            Kind::PathCheck(_) => "kubernetes.authorization.PathCheck",
            Kind::GroupCheck(_) => "kubernetes.authorization.GroupCheck",
            Kind::ResourceCheck(_) => "kubernetes.authorization.ResourceCheck",
            Kind::Decision(_) => "kubernetes.authorization.Decision",
        }
    }

    /// Bytes of an address or of a prefix; 1 for everything else.
    pub(crate) fn size(&self) -> u64 {
        match &self.0 {
            Kind::Ip(IpAddr::V4(_)) => 4,
            Kind::Ip(IpAddr::V6(_)) => 16,
            Kind::Cidr(cidr) => u64::from(cidr.bits).div_ceil(8),
            _ => 1,
        }
    }

    /// The value as text, where the type has one.
    pub(crate) fn text(&self) -> Result<String, EvalError> {
        match &self.0 {
            Kind::Ip(address) => Ok(address.to_string()),
            Kind::Cidr(cidr) => Ok(format!("{}/{}", cidr.address, cidr.bits)),
            Kind::Quantity(quantity) => Ok(quantity.to_string()),
            Kind::Url(url) => Ok(url.raw.clone()),
            Kind::Semver(version) => Ok(version.to_string()),
            _ => Err(EvalError::new(format!("a value of type '{}' has no JSON", self.type_name()))),
        }
    }
}

impl PartialEq for Native {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Kind::Ip(left), Kind::Ip(right)) => left == right,
            (Kind::Cidr(left), Kind::Cidr(right)) => left == right,
            (Kind::Quantity(left), Kind::Quantity(right)) => left == right,
            (Kind::Url(left), Kind::Url(right)) => left == right,
            (Kind::Semver(left), Kind::Semver(right)) => left.precedence(right).is_eq(),
            (Kind::Format(left), Kind::Format(right)) => left.name == right.name,
            _ => false,
        }
    }
}
