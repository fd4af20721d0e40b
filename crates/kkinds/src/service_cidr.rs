//! The networks that services get addresses from, and the addresses that they have (KEP-1880).

use kschema::{
    error::FieldError,
    strategy::{NameRule, Strategy},
};
use serde_json::Value;

use crate::check::{Internal, Look, Path, Report, address, form, texts};

type Errors = Vec<FieldError>;

/// The strategy of `servicecidrs`.
#[derive(Debug)]
pub(crate) struct ServiceCidrs;

/// The strategy of `ipaddresses`.
#[derive(Debug)]
pub(crate) struct IpAddresses;

fn networks(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let found = spec.list("cidrs");
    match found.len() {
        0 => {
            errors.required(path, "at least one CIDR required");
            return;
        }
        1 | 2 => {}
        _ => {
            errors.invalid(
                path,
                Internal("~networking.v1.ServiceCIDRSpec", Some(spec)),
                "may only hold up to 2 values",
            );
            return;
        }
    }
    for (index, network) in texts(found).enumerate() {
        address::canonical_network(&path.index(index), network, errors);
    }
    let families: Vec<_> = texts(found)
        .map(|network| address::parse_network_lenient(network).map(|(address, _)| address.is_ipv4()))
        .collect();
    if let [Some(one), Some(other)] = families.as_slice()
        && one == other
    {
        let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        errors.invalid(path, spec.get_some("cidrs"), why);
    }
}

impl Strategy for ServiceCidrs {
    fn validate(&self, object: &Value, errors: &mut Errors) {
        networks(&object["spec"], &Path::root("spec.cidrs"), errors);
    }

    /// The first network stays, and one of the other family may come.
    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        const WHY: &str = "field is immutable";
        let path = Path::root("spec.cidrs");
        let (spec, was) = (&object["spec"], old["spec"].list("cidrs"));
        let new = spec.list("cidrs");
        if new.len() != was.len() && !(was.len() == 1 && new.len() == 2) {
            errors.invalid(&path, spec.get_some("cidrs"), WHY);
            return;
        }
        for (index, (new, _)) in new.iter().zip(was).enumerate().filter(|(_, (new, was))| new != was) {
            errors.invalid(&path.index(index), new, WHY);
        }
        if new.len() > was.len() {
            networks(spec, &path, errors);
        }
    }
}

impl Strategy for IpAddresses {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate_create(&self, object: &Value, errors: &mut Errors) {
        let name = object["metadata"].text("name");
        address::canonical_address(&Path::root("metadata.name"), name, errors);
        self.validate(object, errors);
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        let path = Path::root("spec.parentRef");
        let Some(parent) = object["spec"].get_some("parentRef") else {
            errors.required(&path, "");
            return;
        };
        errors.optional_name(&path.field("group"), parent.text("group"), form::dns_subdomain);
        errors.name(&path.field("resource"), parent.text("resource"), form::path_segment);
        errors.name(&path.field("name"), parent.text("name"), form::path_segment);
        errors.optional_name(&path.field("namespace"), parent.text("namespace"), form::path_segment);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        self.validate(object, errors);
        errors.immutable_of(
            &object["spec"],
            &old["spec"],
            &Path::root("spec"),
            "parentRef",
            "~networking.v1.ParentReference",
        );
    }

    fn name_rule(&self) -> NameRule {
        NameRule::PathSegment
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
