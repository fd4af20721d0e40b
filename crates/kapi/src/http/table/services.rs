//! Services, their endpoints and what leads to them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    columns::{AGE, Cell, Column, NAME, Table, at, first_three, list, number, plain, text, text_or},
    labels,
};

const NONE: &str = "<none>";

pub(super) const TABLES: &[Table] = &[
    Table::new(
        "services",
        &[
            NAME,
            Column::text("Type", "How the service is exposed.", Cell::Field("spec.type")),
            Column::text("Cluster-IP", "The address inside the cluster.", Cell::Text(cluster_address)),
            Column::text("External-IP", "The addresses outside the cluster.", Cell::Text(external_address)),
            Column::text("Port(s)", "The ports, with their node ports.", Cell::Text(ports)),
            AGE,
            Column::text(
                "Selector",
                "Which pods the service leads to.",
                Cell::Text(|service| labels::format(at(service, "spec.selector"))),
            )
            .wide(),
        ],
    ),
    Table::new(
        "endpoints",
        &[NAME, Column::text("Endpoints", "The addresses with their ports.", Cell::Text(endpoints)), AGE],
    ),
    Table::new(
        "endpointslices.discovery.k8s.io",
        &[
            NAME,
            Column::text("AddressType", "The type of the addresses.", Cell::Field("addressType")),
            Column::text("Ports", "The ports of every endpoint.", Cell::Text(slice_ports)),
            Column::text("Endpoints", "The addresses.", Cell::Text(slice_endpoints)),
            AGE,
        ],
    ),
    Table::new(
        "ingresses.networking.k8s.io",
        &[
            NAME,
            Column::text(
                "Class",
                "The class, which says who serves the ingress.",
                Cell::FieldOr("spec.ingressClassName", NONE),
            ),
            Column::text("Hosts", "The hosts that requests are matched against.", Cell::Text(hosts)),
            Column::text("Address", "The addresses of the load balancer.", Cell::Text(balancer_addresses)),
            Column::text(
                "Ports",
                "The ports that are open.",
                Cell::Text(|ingress| {
                    if list(ingress, "spec.tls").is_empty() { "80" } else { "80, 443" }.to_owned()
                }),
            ),
            AGE,
        ],
    ),
    Table::new(
        "ingressclasses.networking.k8s.io",
        &[
            Column::text("Name", "The name, and whether it is the default class.", Cell::Text(class_name))
                .named(),
            Column::text("Controller", "Who serves ingresses of this class.", Cell::Field("spec.controller")),
            Column::text("Parameters", "The object with further parameters.", Cell::Text(class_parameters)),
            AGE,
        ],
    ),
    Table::new(
        "networkpolicies.networking.k8s.io",
        &[
            NAME,
            Column::text(
                "Pod-Selector",
                "Which pods the policy is for.",
                Cell::Text(|policy| labels::selector(at(policy, "spec.podSelector"))),
            ),
            AGE,
        ],
    ),
    Table::new(
        "servicecidrs.networking.k8s.io",
        &[
            NAME,
            Column::text(
                "CIDRs",
                "The ranges that services' addresses come from.",
                Cell::Text(|cidr| list(cidr, "spec.cidrs").iter().map(plain).collect::<Vec<_>>().join(",")),
            ),
            AGE,
        ],
    ),
    Table::new(
        "ipaddresses.networking.k8s.io",
        &[NAME, Column::text("ParentRef", "Which object has the address.", Cell::Text(parent))],
    ),
];

fn or_none(text: String) -> String {
    if text.is_empty() { NONE.to_owned() } else { text }
}

fn cluster_address(service: &Value) -> String {
    list(service, "spec.clusterIPs").first().map_or_else(|| NONE.to_owned(), plain)
}

fn external_address(service: &Value) -> String {
    let given: Vec<String> = list(service, "spec.externalIPs").iter().map(plain).collect();
    match text(service, "spec.type") {
        "ClusterIP" | "NodePort" => or_none(given.join(",")),
        "LoadBalancer" => {
            let balancer = balancer_addresses(service);
            let all: Vec<String> =
                (!balancer.is_empty()).then_some(balancer).into_iter().chain(given).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// The addresses of the load balancer, each once, in order.
fn balancer_addresses(object: &Value) -> String {
    let entries = list(object, "status.loadBalancer.ingress").iter();
    let all: BTreeSet<&str> = entries
        .map(|entry| text_or(entry, "ip", text(entry, "hostname")))
        .filter(|address| !address.is_empty())
        .collect();
    all.into_iter().collect::<Vec<_>>().join(",")
}

fn ports(service: &Value) -> String {
    let ports = list(service, "spec.ports").iter();
    let written = ports.map(|port| {
        let (number_, protocol) = (number(port, "port"), text(port, "protocol"));
        match number(port, "nodePort") {
            node @ 1.. => format!("{number_}:{node}/{protocol}"),
            _ => format!("{number_}/{protocol}"),
        }
    });
    or_none(written.collect::<Vec<_>>().join(","))
}

fn endpoints(object: &Value) -> String {
    if list(object, "subsets").is_empty() {
        return NONE.to_owned();
    }
    let mut all = Vec::new();
    for subset in list(object, "subsets") {
        let addresses = || list(subset, "addresses").iter().map(|address| text(address, "ip"));
        let ports = list(subset, "ports");
        if ports.is_empty() {
            all.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            let port = number(port, "port");
            all.extend(
                addresses().map(|ip| {
                    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
                }),
            );
        }
    }
    first_three(&all, "")
}

fn slice_ports(slice: &Value) -> String {
    let ports = list(slice, "ports").iter();
    let ports = ports.map(|port| match (&port["port"], &port["name"]) {
        (Value::Number(number), _) => number.to_string(),
        (_, Value::String(name)) => name.clone(),
        _ => "*".to_owned(),
    });
    first_three(&ports.collect::<Vec<_>>(), "<unset>")
}

fn slice_endpoints(slice: &Value) -> String {
    let addresses = list(slice, "endpoints").iter().flat_map(|endpoint| list(endpoint, "addresses"));
    first_three(&addresses.map(plain).collect::<Vec<_>>(), "<unset>")
}

fn hosts(ingress: &Value) -> String {
    const SHOWN: usize = 3;
    let rules = list(ingress, "spec.rules");
    let hosts: Vec<(usize, &str)> = rules
        .iter()
        .map(|rule| text(rule, "host"))
        .enumerate()
        .filter(|(_, host)| !host.is_empty())
        .collect();
    let shown: Vec<&str> = hosts.iter().take(SHOWN).map(|(_, host)| *host).collect();
    if shown.is_empty() {
        return "*".to_owned();
    }
    // Any rule after the third host counts as more, even one without a host.
    let more = hosts.get(SHOWN - 1).is_some_and(|(index, _)| index + 1 < rules.len());
    let shown = shown.join(",");
    if more { format!("{shown} + {} more...", rules.len() - SHOWN) } else { shown }
}

fn class_name(class: &Value) -> String {
    let name = text(class, "metadata.name");
    let default = &class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"];
    if default == "true" { format!("{name} (default)") } else { name.to_owned() }
}

fn class_parameters(class: &Value) -> String {
    let parameters = at(class, "spec.parameters");
    if parameters.is_null() {
        return NONE.to_owned();
    }
    let group = parameters["apiGroup"].as_str().map(|group| format!(".{group}")).unwrap_or_default();
    format!("{}{group}/{}", text(parameters, "kind"), text(parameters, "name"))
}

fn parent(address: &Value) -> String {
    let parent = at(address, "spec.parentRef");
    if parent.is_null() {
        return NONE.to_owned();
    }
    let parts = [text(parent, "resource"), text(parent, "group")];
    let mut written =
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".").to_lowercase();
    for part in [text(parent, "namespace"), text(parent, "name")] {
        if !part.is_empty() {
            written = format!("{written}/{part}");
        }
    }
    written
}
