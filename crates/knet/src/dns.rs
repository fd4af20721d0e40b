//! The cluster's DNS server: names of Services and pods, as Kubernetes' DNS specification 1.1 has them.
//!
//! [`answer`] is a pure function from a question and a [`Zone`] to the answer, and [`respond`] from the bytes that came to what is to be
//! done with them; [`DnsServer`] carries the bytes, over UDP and TCP, and asks other servers about names outside of the cluster, whose
//! answers it keeps for as long as they say. Its own are kept until the zone changes.
//!
//! What the specification leaves open is done as CoreDNS does it by default, but that names of pods are given for any address
//! (its `pods insecure`), a Service's own name has SRV records for all of its ports, and priority and weight are 0 and 100.

use std::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use hickory_proto::{
    op::{Message, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT},
    },
};
use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::rules::cluster_ips;

mod cache;
mod forward;
mod kept;
mod packet;
mod server;
mod zone;

pub use self::{
    cache::{CACHE_ENTRIES_MAX, CACHE_ENTRY_BYTES_MAX, CACHE_MAX, CACHE_NOTHING_MAX},
    forward::FORWARD_WAIT_MAX,
    kept::KEPT_ANSWERS_MAX,
    packet::{PLAIN_BYTES_MAX, Reaction, TCP_BYTES_MAX, UDP_BYTES_MAX, encode, respond, udp_limit},
    server::{CONNECTIONS_MAX, DnsServer, FORWARDS_MAX, system_resolvers},
    zone::InformerZone,
};

/// How long an answer may be kept, in seconds (upstream's CoreDNS has the same).
pub const TTL: u32 = 5;
/// The most steps from one external name to the next within the cluster.
const ALIASES_MAX: usize = 8;
/// The weight of each SRV record.
const WEIGHT: u16 = 100;
const VERSION: &str = "1.1.0";

/// What the server answers from.
pub trait Zone: Debug + Send + Sync + 'static {
    /// A Service by name.
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    /// The slices of a Service.
    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>>;
    /// Whether there is this namespace.
    fn has_namespace(&self, namespace: &str) -> bool;
    /// The namespace and name of the Service that has this cluster IP.
    fn service_at(&self, address: IpAddr) -> Option<(String, String)>;
    /// The namespace, Service and host name of each ready endpoint with a host name at this address.
    fn hosts_at(&self, address: IpAddr) -> Vec<(String, String, String)>;
    /// Which state this is of the Services, slices and namespaces: it differs from the one before as soon as anything that is asked for here
    /// does, not earlier. Answers are kept as long as it is the same. Default: not known, and nothing is kept.
    fn version(&self) -> Option<[u64; 3]> {
        None
    }
}

const _: Option<&dyn Zone> = None;

/// What is to be done with a question.
#[derive(Debug)]
pub enum Answer {
    /// This is the answer.
    Final(Box<Message>),
    /// The name is not the cluster's: ask another server.
    Outside,
    /// The answer so far; it ends in an alias to this name outside of the cluster.
    Alias(Box<Message>, Name),
}

/// What is known under a name.
enum Found {
    /// Records; those of the wanted type are the answer. None means that the name exists without data.
    Records(Vec<Record>, Vec<Record>),
    /// Another name for it.
    Alias(Name),
    Nothing,
}

fn absolute(text: &str) -> Option<Name> {
    let mut name = Name::from_ascii(text).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// Answers a question about the cluster `domain`, such as `cluster.local`.
///
/// ```
/// use hickory_proto::{op::{Message, Query}, rr::{Name, RecordType}};
/// use knet::dns::{Answer, answer};
/// # fn example(zone: &dyn knet::dns::Zone) -> Result<(), Box<dyn std::error::Error>> {
/// let mut question = Message::query();
/// question.add_query(Query::query(Name::from_ascii("web.shop.svc.cluster.local.")?, RecordType::A));
/// if let Answer::Final(message) = answer(&question, "cluster.local", zone) {
///     println!("{:?}", message.answers);
/// }
/// # Ok(()) }
/// ```
#[must_use]
pub fn answer(question: &Message, domain: &str, zone: &dyn Zone) -> Answer {
    let mut reply = packet::reply_to(question);
    let [query] = &question.queries[..] else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return Answer::Final(Box::new(reply));
    };
    if question.metadata.op_code != OpCode::Query || query.query_class() != DNSClass::IN {
        reply.metadata.response_code = ResponseCode::NotImp;
        return Answer::Final(Box::new(reply));
    }
    if forward::is_transfer(query.query_type()) {
        reply.metadata.response_code = ResponseCode::Refused;
        return Answer::Final(Box::new(reply));
    }
    let resolver = Resolver { domain, zone };
    resolver.fill(reply, query)
}

struct Resolver<'a> {
    domain: &'a str,
    zone: &'a dyn Zone,
}

impl Resolver<'_> {
    fn fill(&self, mut reply: Message, query: &Query) -> Answer {
        let wanted = query.query_type();
        let mut name = query.name().clone();
        for step in 0..ALIASES_MAX {
            let text = name.to_lowercase().to_ascii();
            let found = if let Some(address) = reverse(text.trim_end_matches('.')) {
                match self.pointers(&name, address) {
                    // Other people's addresses are other people's business.
                    records if records.is_empty() => return Answer::Outside,
                    records => Found::Records(records, Vec::new()),
                }
            } else {
                match self.inside(&text) {
                    Some(labels) => self.lookup(&name, &labels, wanted),
                    None if step == 0 => return Answer::Outside,
                    None => return Answer::Alias(Box::new(reply), name),
                }
            };
            reply.metadata.authoritative = true;
            match found {
                Found::Alias(target) => {
                    reply.add_answer(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
                    if wanted == RecordType::CNAME {
                        break;
                    }
                    name = target;
                    continue;
                }
                Found::Records(records, additional) => {
                    let any = wanted == RecordType::ANY;
                    reply.add_answers(
                        records.into_iter().filter(|record| any || record.record_type() == wanted),
                    );
                    reply.add_additionals(additional);
                }
                Found::Nothing => reply.metadata.response_code = ResponseCode::NXDomain,
            }
            break;
        }
        // That there is nothing holds for as long as the zone says (RFC 2308), also where an alias leads to nothing.
        let is_alias = |record: &Record| record.record_type() == RecordType::CNAME;
        if wanted != RecordType::CNAME
            && reply.answers.iter().all(is_alias)
            && let Some(authority) = self.authority()
        {
            reply.add_authority(authority);
        }
        Answer::Final(Box::new(reply))
    }

    /// The labels before the domain, the last one first; `None` for names outside of it.
    fn inside<'t>(&self, text: &'t str) -> Option<Vec<&'t str>> {
        let rest = text.trim_end_matches('.').strip_suffix(self.domain)?;
        if rest.is_empty() {
            return Some(Vec::new());
        }
        Some(rest.strip_suffix('.')?.rsplit('.').collect())
    }

    fn authority(&self) -> Option<Record> {
        let zone = absolute(self.domain)?;
        let server = absolute(&format!("ns.dns.{}", self.domain))?;
        let mailbox = absolute(&format!("hostmaster.{}", self.domain))?;
        // The serial number is of no use to anybody: there are no secondary servers.
        let soa = SOA::new(server, mailbox, 1, 7200, 1800, 86_400, TTL);
        Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
    }

    fn lookup(&self, name: &Name, labels: &[&str], wanted: RecordType) -> Found {
        let empty = || Found::Records(Vec::new(), Vec::new());
        match labels {
            [] => Found::Records(self.authority().into_iter().collect(), Vec::new()),
            ["svc" | "pod"] => empty(),
            ["dns-version"] => {
                let text = RData::TXT(TXT::new(vec![VERSION.to_owned()]));
                Found::Records(vec![Record::from_rdata(name.clone(), TTL, text)], Vec::new())
            }
            ["svc" | "pod", namespace] if self.zone.has_namespace(namespace) => empty(),
            ["pod", namespace, address] if self.zone.has_namespace(namespace) => match dashed(address) {
                Some(address) => Found::Records(vec![address_record(name, address)], Vec::new()),
                None => Found::Nothing,
            },
            ["svc", namespace, service, rest @ ..] => match self.zone.service(namespace, service) {
                Some(found) => self.service(name, namespace, service, &found, rest, wanted),
                None => Found::Nothing,
            },
            _ => Found::Nothing,
        }
    }

    fn service(
        &self,
        name: &Name,
        namespace: &str,
        service: &str,
        object: &Service,
        rest: &[&str],
        wanted: RecordType,
    ) -> Found {
        let Some(spec) = &object.spec else { return Found::Nothing };
        if spec.type_.as_deref() == Some("ExternalName") {
            let target = spec.external_name.as_deref().and_then(absolute);
            return match (rest, target) {
                ([], Some(target)) => Found::Alias(target),
                _ => Found::Nothing,
            };
        }
        let base = format!("{service}.{namespace}.svc.{}", self.domain);
        let cluster_ips = cluster_ips(spec);
        // Names of endpoints are those of Services with a cluster IP, too.
        let is_host = matches!(rest, [host] if !host.starts_with('_'));
        let slices =
            if cluster_ips.is_empty() || is_host { self.zone.slices(namespace, service) } else { Vec::new() };
        match rest {
            [] if wanted == RecordType::SRV => self.srv(name, &base, spec, &cluster_ips, &slices, None),
            [] if cluster_ips.is_empty() => {
                let records: Vec<_> = hosts(&slices).map(|(_, ip, _)| address_record(name, ip)).collect();
                // A headless Service without endpoints does not exist for clients, as with upstream's CoreDNS.
                if records.is_empty() {
                    Found::Nothing
                } else {
                    Found::Records(distinct(records), Vec::new())
                }
            }
            [] => {
                Found::Records(cluster_ips.iter().map(|ip| address_record(name, *ip)).collect(), Vec::new())
            }
            ["_tcp" | "_udp" | "_sctp"] => Found::Records(Vec::new(), Vec::new()),
            [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
                let only = Some((&protocol[1..], &port[1..]));
                self.srv(name, &base, spec, &cluster_ips, &slices, only)
            }
            [host] => {
                let of_host = hosts(&slices).filter(|(known, _, _)| known == host);
                let records: Vec<_> = of_host.map(|(_, ip, _)| address_record(name, ip)).collect();
                if records.is_empty() {
                    Found::Nothing
                } else {
                    Found::Records(distinct(records), Vec::new())
                }
            }
            _ => Found::Nothing,
        }
    }

    /// SRV records, for one port or all that have a name, and the addresses that they lead to.
    fn srv(
        &self,
        name: &Name,
        base: &str,
        spec: &ServiceSpec,
        cluster_ips: &[IpAddr],
        slices: &[Arc<EndpointSlice>],
        only: Option<(&str, &str)>,
    ) -> Found {
        let matches = |protocol: Option<&str>, port: Option<&str>| {
            let protocol = protocol.unwrap_or("TCP").to_lowercase();
            match (only, port.filter(|port| !port.is_empty())) {
                (Some((wanted, wanted_port)), Some(port)) => wanted == protocol && wanted_port == port,
                (Some(_), None) => false,
                (None, _) => true,
            }
        };
        let (mut records, mut additional) = (Vec::new(), Vec::new());
        let mut add = |target: &str, port: i32, addresses: &[IpAddr]| {
            let (Some(target), Ok(port)) = (absolute(target), u16::try_from(port)) else { return };
            let srv = SRV::new(0, WEIGHT, port, target.clone());
            records.push(Record::from_rdata(name.clone(), TTL, RData::SRV(srv)));
            additional.extend(addresses.iter().map(|ip| address_record(&target, *ip)));
        };
        for port in spec.ports.iter().flatten().filter(|_| !cluster_ips.is_empty()) {
            if matches(port.protocol.as_deref(), port.name.as_deref()) {
                add(base, port.port, cluster_ips);
            }
        }
        for (host, ip, slice) in hosts(slices) {
            for port in slice.ports.iter().flatten() {
                if matches(port.protocol.as_deref(), port.name.as_deref()) {
                    add(&format!("{host}.{base}"), port.port.unwrap_or_default(), &[ip]);
                }
            }
        }
        if records.is_empty() && only.is_some() {
            return Found::Nothing;
        }
        Found::Records(distinct(records), distinct(additional))
    }

    /// The names of an address.
    fn pointers(&self, name: &Name, address: IpAddr) -> Vec<Record> {
        let mut names = Vec::new();
        if let Some((namespace, service)) = self.zone.service_at(address) {
            names.push(format!("{service}.{namespace}.svc.{}", self.domain));
        } else {
            for (namespace, service, host) in self.zone.hosts_at(address) {
                names.push(format!("{host}.{service}.{namespace}.svc.{}", self.domain));
            }
        }
        let names = names.iter().filter_map(|text| absolute(text));
        names.map(|target| Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target)))).collect()
    }
}

fn distinct(mut records: Vec<Record>) -> Vec<Record> {
    let mut seen: Vec<Record> = Vec::with_capacity(records.len());
    records.retain(|record| {
        let fresh = !seen.contains(record);
        if fresh {
            seen.push(record.clone());
        }
        fresh
    });
    records
}

/// Whether an endpoint has a name: those of Services that publish what is not ready are ready, too, in slices.
fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

/// The ready endpoints with their host names: their own, or made of their address.
fn hosts(slices: &[Arc<EndpointSlice>]) -> impl Iterator<Item = (String, IpAddr, &EndpointSlice)> {
    let ready = |endpoint: &&Endpoint| is_ready(endpoint);
    slices.iter().flat_map(move |slice| {
        slice.endpoints.iter().flatten().filter(ready).flat_map(move |endpoint| {
            endpoint.addresses.iter().filter_map(move |address| {
                let ip: IpAddr = address.parse().ok()?;
                let host = endpoint.hostname.clone().filter(|host| !host.is_empty());
                Some((host.unwrap_or_else(|| address.replace(['.', ':'], "-")), ip, &**slice))
            })
        })
    })
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// `1-2-3-4`, or an IPv6 address with dashes for colons.
fn dashed(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(address.into());
    }
    text.replace('-', ":").parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// The address that a name below `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse(text: &str) -> Option<IpAddr> {
    if let Some(rest) = text.strip_suffix(".in-addr.arpa") {
        let mut parts: Vec<&str> = rest.split('.').collect();
        parts.reverse();
        return parts.join(".").parse::<Ipv4Addr>().ok().map(IpAddr::V4);
    }
    let rest = text.strip_suffix(".ip6.arpa")?;
    let digits: Option<Vec<u128>> = rest
        .rsplit('.')
        .map(|digit| (digit.len() == 1).then(|| u128::from_str_radix(digit, 16).ok()).flatten())
        .collect();
    let digits = digits.filter(|digits| digits.len() == 32)?;
    Some(Ipv6Addr::from_bits(digits.into_iter().fold(0, |bits, digit| bits << 4 | digit)).into())
}

#[cfg(test)]
mod tests;
