//! Endpoints and endpoint slices.

use std::collections::BTreeSet;

use kschema::{error::FieldError, fields::items_mut, strategy::Strategy};
use serde_json::Value;

use crate::check::{Look, Path, Report, address, form, labels, same_at, texts};

type Errors = Vec<FieldError>;

/// The strategy of `endpoints`.
#[derive(Debug)]
pub(crate) struct Endpoints {
    /// Whether addresses may be in the loopback range.
    pub(crate) loopback: bool,
}

/// The strategy of `endpointslices`.
#[derive(Debug)]
pub(crate) struct EndpointSlices {
    /// Whether addresses may be in the loopback range.
    pub(crate) loopback: bool,
}

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
/// The limits of a slice (KEP-752).
const ENDPOINTS_MAX: usize = 1000;
const ADDRESSES_MAX: usize = 100;
const PORTS_MAX: usize = 20_000;
const TOPOLOGY_LABELS_MAX: usize = 16;
const HINTS_MAX: usize = 8;

fn managed_by(object: &Value, key: &str) -> String {
    object["metadata"].get("labels").map(|labels| labels.text(key).to_owned()).unwrap_or_default()
}

impl Endpoints {
    fn subsets(&self, object: &Value, errors: &mut Errors) {
        let list = Path::root("subsets");
        for (index, subset) in object.list("subsets").iter().enumerate() {
            let path = list.index(index);
            if subset.count("addresses") + subset.count("notReadyAddresses") == 0 {
                errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
            }
            for key in ["addresses", "notReadyAddresses"] {
                let list = path.field(key);
                for (index, entry) in subset.list(key).iter().enumerate() {
                    subset_address(entry, self.loopback, &list.index(index), errors);
                }
            }
            let (list, ports) = (path.field("ports"), subset.list("ports"));
            for (index, port) in ports.iter().enumerate() {
                subset_port(port, ports.len() > 1, &list.index(index), errors);
            }
        }
    }
}

fn subset_address(entry: &Value, loopback: bool, path: &Path<'_>, errors: &mut Errors) {
    let (ip, field) = (entry.text("ip"), path.field("ip"));
    address::address(&field, ip, std::iter::empty(), errors);
    errors.optional_name(&path.field("hostname"), entry.text("hostname"), form::dns_label);
    if let Some(node) = entry.some_text("nodeName") {
        errors.faults(&path.field("nodeName"), node, form::dns_subdomain(node));
    }
    address::endpoint(&field, ip, loopback, errors);
}

fn subset_port(port: &Value, named: bool, path: &Path<'_>, errors: &mut Errors) {
    let name = port.text("name");
    if named {
        errors.name(&path.field("name"), name, form::dns_label);
    } else {
        errors.optional_name(&path.field("name"), name, form::dns_label);
    }
    errors.port(&path.field("port"), port.int("port"));
    errors.one_of(&path.field("protocol"), port.text("protocol"), &PROTOCOLS);
    if let Some(protocol) = port.some_text("appProtocol") {
        labels::name(protocol, &path.field("appProtocol"), errors);
    }
}

impl Strategy for Endpoints {
    fn prepare_create(&self, _object: &mut Value) {}

    fn validate(&self, object: &Value, errors: &mut Errors) {
        self.subsets(object, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        // What was wrong already may stay.
        if !same_at(object, old, "subsets") {
            self.subsets(object, errors);
        }
    }

    fn warnings(&self, object: &Value, _old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if managed_by(object, "endpoints.kubernetes.io/managed-by") == "endpoint-controller" {
            return out;
        }
        let list = Path::root("subsets");
        for (index, subset) in object.list("subsets").iter().enumerate() {
            for key in ["addresses", "notReadyAddresses"] {
                let item = list.index(index);
                let field = item.field(key);
                for (index, entry) in subset.list(key).iter().enumerate() {
                    address::warnings(&field.index(index).field("ip"), entry.text("ip"), &mut out);
                }
            }
        }
        out
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}

impl EndpointSlices {
    fn endpoints(&self, object: &Value, errors: &mut Errors) {
        let list = Path::root("endpoints");
        if object.count("endpoints") > ENDPOINTS_MAX {
            errors.too_many(&list, object.count("endpoints"), ENDPOINTS_MAX);
            return;
        }
        for (index, endpoint) in object.list("endpoints").iter().enumerate() {
            let item = list.index(index);
            slice_addresses(endpoint, object.text("addressType"), self.loopback, &item, errors);
            slice_endpoint(endpoint, &item, errors);
        }
    }

    fn ports(object: &Value, errors: &mut Errors) {
        let list = Path::root("ports");
        if object.count("ports") > PORTS_MAX {
            errors.too_many(&list, object.count("ports"), PORTS_MAX);
            return;
        }
        let mut names = BTreeSet::new();
        for (index, port) in object.list("ports").iter().enumerate() {
            let (path, name) = (list.index(index), port.text("name"));
            errors.optional_name(&path.field("name"), name, form::dns_label);
            if !names.insert(name) {
                errors.duplicate(&path.field("name"), name);
            }
            match port.some_text("protocol") {
                None => errors.required(&path.field("protocol"), ""),
                Some(_) => errors.optional_one_of(port, &path, "protocol", &PROTOCOLS),
            }
            if let Some(protocol) = port.some_text("appProtocol") {
                labels::name(protocol, &path.field("appProtocol"), errors);
            }
        }
    }
}

fn slice_addresses(endpoint: &Value, kind: &str, loopback: bool, path: &Path<'_>, errors: &mut Errors) {
    let (field, count) = (path.field("addresses"), endpoint.count("addresses"));
    if count == 0 {
        errors.required(&field, "must contain at least 1 address");
    } else if count > ADDRESSES_MAX {
        errors.too_many(&field, count, ADDRESSES_MAX);
    }
    for (index, text) in texts(endpoint.list("addresses")).enumerate() {
        if slice_address(text, kind, &field, index, errors) {
            address::endpoint(&field.index(index), text, loopback, errors);
        }
    }
}

fn slice_endpoint(endpoint: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(node) = endpoint.some_text("nodeName") {
        errors.faults(&path.field("nodeName"), node, form::dns_subdomain(node));
    }
    let topology = path.field("deprecatedTopology");
    if endpoint.count("deprecatedTopology") > TOPOLOGY_LABELS_MAX {
        errors.too_many(&topology, endpoint.count("deprecatedTopology"), TOPOLOGY_LABELS_MAX);
    }
    labels::labels(endpoint, path, "deprecatedTopology", errors);
    if let Some(name) = endpoint.some_text("hostname") {
        errors.faults(&path.field("hostname"), name, form::dns_label(name));
    }
    if let Some(hints) = endpoint.get_some("hints") {
        let path = path.field("hints");
        for (key, form) in [
            ("forZones", form::label_value as fn(&str) -> _),
            ("forNodes", form::dns_subdomain as fn(&str) -> _),
        ] {
            let (list, mut names) = (path.field(key), BTreeSet::new());
            if hints.count(key) > HINTS_MAX {
                errors.too_many(&list, hints.count(key), HINTS_MAX);
                return;
            }
            for (index, hint) in hints.list(key).iter().enumerate() {
                let (item, name) = (list.index(index), hint.text("name"));
                if !names.insert(name) {
                    errors.duplicate(&item.field("name"), name);
                }
                errors.faults(&item.field("name"), name, form(name));
            }
        }
    }
}

/// Checks the form of an address. Whether it is one that can be looked at further.
fn slice_address(text: &str, kind: &str, field: &Path<'_>, index: usize, errors: &mut Errors) -> bool {
    let item = field.index(index);
    let before = errors.len();
    let family = text.parse::<std::net::IpAddr>().ok().map(|address| address.is_ipv4());
    match kind {
        "IPv4" => {
            address::address(&item, text, std::iter::empty(), errors);
        }
        "IPv6" => address::canonical_address(&item, text, errors),
        "FQDN" => {
            domain_name(text, &item, errors);
            return false;
        }
        _ => return false,
    }
    let good = errors.len() == before;
    if good && family != Some(kind == "IPv4") {
        errors.invalid(field, text, format_args!("must be an {kind} address"));
    }
    good
}

/// A name with at least two labels (`IsFullyQualifiedDomainName`).
fn domain_name(text: &str, path: &Path<'_>, errors: &mut Errors) {
    if text.is_empty() {
        errors.required(path, "");
        return;
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let faults = form::dns_subdomain(name);
    if !faults.is_empty() {
        errors.invalid(path, name, faults.join(","));
    } else if !name.contains('.') {
        errors.invalid(path, name, "should be a domain with at least two segments separated by dots");
    } else if let Some((label, faults)) =
        name.split('.').map(|label| (label, form::dns_label(label))).find(|(_, faults)| !faults.is_empty())
    {
        errors.invalid(path, label, faults.join(","));
    }
}

impl Strategy for EndpointSlices {
    /// The topology of an endpoint can't be written any more.
    fn prepare_create(&self, object: &mut Value) {
        for endpoint in items_mut(object, "endpoints") {
            if let Some(map) = endpoint.as_object_mut() {
                map.remove("deprecatedTopology");
            }
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        if !same_at(object, old, "endpoints") {
            self.prepare_create(object);
        }
    }

    fn validate(&self, object: &Value, errors: &mut Errors) {
        errors.one_of(&Path::root("addressType"), object.text("addressType"), &["FQDN", "IPv4", "IPv6"]);
        Self::ports(object, errors);
        self.endpoints(object, errors);
    }

    fn validate_change(&self, object: &Value, old: &Value, errors: &mut Errors) {
        errors.one_of(&Path::root("addressType"), object.text("addressType"), &["FQDN", "IPv4", "IPv6"]);
        Self::ports(object, errors);
        if !same_at(object, old, "endpoints") {
            self.endpoints(object, errors);
        }
        errors.immutable(object, old, &Path::root(""), "addressType");
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut out = Vec::new();
        if old.is_none() && object.text("addressType") == "FQDN" {
            out.push("spec.addressType: FQDN endpoints are deprecated".to_owned());
        }
        let manager = managed_by(object, "endpointslice.kubernetes.io/managed-by");
        if ["endpointslice-controller.k8s.io", "endpointslicemirroring-controller.k8s.io"]
            .contains(&manager.as_str())
        {
            return out;
        }
        let list = Path::root("endpoints");
        for (index, endpoint) in object.list("endpoints").iter().enumerate() {
            let item = list.index(index);
            let field = item.field("addresses");
            for (index, text) in texts(endpoint.list("addresses")).enumerate() {
                address::warnings(&field.index(index), text, &mut out);
            }
        }
        out
    }

    fn reset_fields(&self, _subresource: &str) -> &'static [&'static str] {
        &[]
    }
}
