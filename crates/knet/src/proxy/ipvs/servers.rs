//! Virtual servers and the messages of the kernel about them: pure.
//!
//! Commands and attributes are those of the generic netlink family `IPVS` (`linux/ip_vs.h`).

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{
    netlink::{self, ACKNOWLEDGE, DUMP, NESTED, REQUEST, attribute, attributes, bytes, number, string},
    redirect::Transport,
};

const NEW_SERVICE: u8 = 1;
const SET_SERVICE: u8 = 2;
const DELETE_SERVICE: u8 = 3;
const GET_SERVICE: u8 = 4;
const NEW_DESTINATION: u8 = 5;
const SET_DESTINATION: u8 = 6;
const DELETE_DESTINATION: u8 = 7;
const GET_DESTINATION: u8 = 8;
const SET_CONFIG: u8 = 12;
const VERSION: u8 = 1;

const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;
const TIMEOUT_TCP: u16 = 4;
const TIMEOUT_TCP_FIN: u16 = 5;
const TIMEOUT_UDP: u16 = 6;

const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_SCHEDULER: u16 = 6;
const SERVICE_FLAGS: u16 = 7;
const SERVICE_TIMEOUT: u16 = 8;
const SERVICE_NETMASK: u16 = 9;

const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_METHOD: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_UPPER: u16 = 5;
const DESTINATION_LOWER: u16 = 6;
const DESTINATION_ACTIVE: u16 = 7;
const DESTINATION_INACTIVE: u16 = 8;
const DESTINATION_FAMILY: u16 = 11;

/// Clients stay with an endpoint (`IP_VS_SVC_F_PERSISTENT`).
const PERSISTENT: u32 = 0x1;
/// What the kernel notes itself (`IP_VS_SVC_F_HASHED`).
const HASHED: u32 = 0x2;
/// Maglev's hash is of the port, too (`IP_VS_SVC_F_SCHED_MH_PORT`), as upstream wants it.
const MAGLEV_PORT: u32 = 0x10;

const FAMILY_V4: u16 = 2;
const FAMILY_V6: u16 = 10;

/// What a virtual server is told apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) transport: Transport,
}

/// How a virtual server gives connections away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) scheduler: String,
    pub(super) flags: u32,
    /// How long clients stay with an endpoint, in seconds.
    pub(super) timeout: u32,
}

impl Options {
    /// Those of a Service.
    pub(super) fn new(scheduler: super::Scheduler, affinity: Option<std::time::Duration>) -> Self {
        let hash = if scheduler == super::Scheduler::MaglevHashing { MAGLEV_PORT } else { 0 };
        let timeout = affinity.map(|time| u32::try_from(time.as_secs().max(1)).unwrap_or(u32::MAX));
        Self {
            scheduler: scheduler.name().to_owned(),
            flags: hash | if timeout.is_some() { PERSISTENT } else { 0 },
            timeout: timeout.unwrap_or(0),
        }
    }
}

/// A virtual server with the weights of its real servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) options: Options,
    pub(super) endpoints: BTreeMap<SocketAddr, u32>,
}

pub(super) type Servers = BTreeMap<Key, Server>;

/// The weight of all endpoints, as upstream's.
pub(super) const WEIGHT: u32 = 1;
/// That of a real server that somebody else has made, whose packets are not rewritten: it is not to stay so.
const FOREIGN: u32 = u32::MAX;

/// What the kernel is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Add(Key, Options),
    Set(Key, Options),
    Delete(Key),
    AddEndpoint(Key, SocketAddr, u32),
    SetEndpoint(Key, SocketAddr, u32),
    DeleteEndpoint(Key, SocketAddr),
}

impl Request {
    /// The virtual server that it is about.
    pub(super) fn key(&self) -> Key {
        match self {
            Self::Add(key, _)
            | Self::Set(key, _)
            | Self::Delete(key)
            | Self::AddEndpoint(key, ..)
            | Self::SetEndpoint(key, ..)
            | Self::DeleteEndpoint(key, _) => *key,
        }
    }

    /// Writes it as a message of the family.
    pub(super) fn write(&self, out: &mut Vec<u8>, family: u16, request: u32) {
        let (command, endpoint) = match self {
            Self::Add(..) => (NEW_SERVICE, None),
            Self::Set(..) => (SET_SERVICE, None),
            Self::Delete(_) => (DELETE_SERVICE, None),
            Self::AddEndpoint(_, endpoint, weight) => (NEW_DESTINATION, Some((endpoint, Some(*weight)))),
            Self::SetEndpoint(_, endpoint, weight) => (SET_DESTINATION, Some((endpoint, Some(*weight)))),
            Self::DeleteEndpoint(_, endpoint) => (DELETE_DESTINATION, Some((endpoint, None))),
        };
        let options = match self {
            Self::Add(_, options) | Self::Set(_, options) => Some(options),
            _ => None,
        };
        let flags = REQUEST | ACKNOWLEDGE;
        netlink::message(out, family, flags, request, &[command, VERSION, 0, 0], |out| {
            attribute(out, SERVICE | NESTED, |out| write_service(out, self.key(), options));
            if let Some((endpoint, weight)) = endpoint {
                attribute(out, DESTINATION | NESTED, |out| write_endpoint(out, *endpoint, weight));
            }
        });
    }
}

fn protocol(transport: Transport) -> u16 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
        Transport::Sctp => 132,
    }
}

fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }
}

/// An address as the kernel has it: sixteen bytes in either family.
fn write_address(out: &mut Vec<u8>, kind: u16, address: IpAddr) {
    let mut value = [0; 16];
    match address {
        IpAddr::V4(v4) => value[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => value.copy_from_slice(&v6.octets()),
    }
    bytes(out, kind, &value);
}

fn read_address(value: &[u8], family: u16) -> Option<IpAddr> {
    match family {
        FAMILY_V4 => Some(IpAddr::V4(Ipv4Addr::from(*value.first_chunk::<4>()?))),
        FAMILY_V6 => Some(IpAddr::V6(Ipv6Addr::from(*value.first_chunk::<16>()?))),
        _ => None,
    }
}

fn write_service(out: &mut Vec<u8>, key: Key, options: Option<&Options>) {
    bytes(out, SERVICE_FAMILY, &family(key.address).to_ne_bytes());
    bytes(out, SERVICE_PROTOCOL, &protocol(key.transport).to_ne_bytes());
    write_address(out, SERVICE_ADDRESS, key.address);
    bytes(out, SERVICE_PORT, &key.port.to_be_bytes());
    if let Some(options) = options {
        string(out, SERVICE_SCHEDULER, &options.scheduler);
        let flags = [options.flags.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat();
        bytes(out, SERVICE_FLAGS, &flags);
        bytes(out, SERVICE_TIMEOUT, &options.timeout.to_ne_bytes());
        // Clients are told apart by their whole addresses: a mask in IPv4, a length in IPv6.
        let mask = if key.address.is_ipv4() { u32::MAX } else { 128 };
        bytes(out, SERVICE_NETMASK, &mask.to_ne_bytes());
    }
}

fn write_endpoint(out: &mut Vec<u8>, endpoint: SocketAddr, weight: Option<u32>) {
    bytes(out, DESTINATION_FAMILY, &family(endpoint.ip()).to_ne_bytes());
    write_address(out, DESTINATION_ADDRESS, endpoint.ip());
    bytes(out, DESTINATION_PORT, &endpoint.port().to_be_bytes());
    if let Some(weight) = weight {
        // Destinations are rewritten (`IP_VS_CONN_F_MASQ`), without limits of connections.
        for (kind, value) in [
            (DESTINATION_METHOD, 0),
            (DESTINATION_WEIGHT, weight),
            (DESTINATION_UPPER, 0),
            (DESTINATION_LOWER, 0),
        ] {
            bytes(out, kind, &value.to_ne_bytes());
        }
    }
}

/// Asks for all virtual servers.
pub(super) fn list(out: &mut Vec<u8>, family: u16) {
    netlink::message(out, family, REQUEST | DUMP, 0, &[GET_SERVICE, VERSION, 0, 0], |_| {});
}

/// Asks for the real servers of a virtual one.
pub(super) fn list_endpoints(out: &mut Vec<u8>, family: u16, key: Key) {
    netlink::message(out, family, REQUEST | DUMP, 0, &[GET_DESTINATION, VERSION, 0, 0], |out| {
        attribute(out, SERVICE | NESTED, |out| write_service(out, key, None));
    });
}

/// Sets after how many seconds connections are forgotten; 0 leaves a time as it is.
pub(super) fn set_timeouts(out: &mut Vec<u8>, family: u16, [tcp, tcp_fin, udp]: [u32; 3]) {
    let flags = REQUEST | ACKNOWLEDGE;
    netlink::message(out, family, flags, 0, &[SET_CONFIG, VERSION, 0, 0], |out| {
        for (kind, seconds) in [(TIMEOUT_TCP, tcp), (TIMEOUT_TCP_FIN, tcp_fin), (TIMEOUT_UDP, udp)] {
            bytes(out, kind, &seconds.to_ne_bytes());
        }
    });
}

/// The bytes of the header of generic netlink.
const GENERIC_BYTES: usize = 4;

/// The attribute of an answer that is asked for.
fn part(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let body = message.get(GENERIC_BYTES..)?;
    attributes(body).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// What a message of the list of virtual servers says; `None` for those that go by a packet's mark, or by protocols that Services
/// don't have.
pub(super) fn read_service(message: &[u8]) -> Option<(Key, Options)> {
    let service = part(message, SERVICE)?;
    let find = |wanted| attributes(service).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let small = |wanted| find(wanted)?.first_chunk::<2>().copied();
    let transport = match u16::from_ne_bytes(small(SERVICE_PROTOCOL)?) {
        6 => Transport::Tcp,
        17 => Transport::Udp,
        132 => Transport::Sctp,
        _ => return None,
    };
    let address = read_address(find(SERVICE_ADDRESS)?, u16::from_ne_bytes(small(SERVICE_FAMILY)?))?;
    let key = Key { address, port: u16::from_be_bytes(small(SERVICE_PORT)?), transport };
    let scheduler = find(SERVICE_SCHEDULER)?.split(|byte| *byte == 0).next().unwrap_or_default();
    let flags = number(find(SERVICE_FLAGS)?)? & !HASHED;
    let timeout = if flags & PERSISTENT == 0 { 0 } else { number(find(SERVICE_TIMEOUT)?)? };
    Some((key, Options { scheduler: String::from_utf8_lossy(scheduler).into_owned(), flags, timeout }))
}

/// A real server as the kernel tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) endpoint: SocketAddr,
    pub(super) weight: u32,
    /// How many connections it has, with those that have ended but are still remembered.
    pub(super) connections: u64,
}

/// What a message of the list of real servers says. Before it knew the attribute for it, the kernel had one family for both.
pub(super) fn read_endpoint(message: &[u8], key: Key) -> Option<Told> {
    let told = part(message, DESTINATION)?;
    let find = |wanted| attributes(told).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    let small = |wanted| find(wanted)?.first_chunk::<2>().copied();
    let of = small(DESTINATION_FAMILY).map_or(family(key.address), u16::from_ne_bytes);
    let address = read_address(find(DESTINATION_ADDRESS)?, of)?;
    let count = |wanted| find(wanted).and_then(number).unwrap_or(0);
    let is_rewritten = count(DESTINATION_METHOD) == 0;
    Some(Told {
        endpoint: SocketAddr::new(address, u16::from_be_bytes(small(DESTINATION_PORT)?)),
        weight: if is_rewritten { count(DESTINATION_WEIGHT) } else { FOREIGN },
        connections: u64::from(count(DESTINATION_ACTIVE)) + u64::from(count(DESTINATION_INACTIVE)),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proxy::ipvs::Scheduler;

    fn key(address: &str) -> Key {
        let address: SocketAddr = address.parse().unwrap();
        Key { address: address.ip(), port: address.port(), transport: Transport::Tcp }
    }

    /// The kernel tells of servers with the attributes by which it is told.
    #[test]
    fn what_is_written_is_read() {
        let four = key("10.96.0.1:80");
        let six = Key { transport: Transport::Udp, ..key("[fd00:96::1]:53") };
        for (key, endpoint) in [(four, "10.0.0.1:8080"), (six, "[fd00::1]:5353"), (six, "10.0.0.1:53")] {
            let endpoint: SocketAddr = endpoint.parse().unwrap();
            for options in [
                Options::new(Scheduler::RoundRobin, None),
                Options::new(Scheduler::MaglevHashing, Some(Duration::from_secs(90))),
            ] {
                let mut out = Vec::new();
                Request::Add(key, options.clone()).write(&mut out, 30, 5);
                assert_eq!(read_service(&out[16..]), Some((key, options)));
            }
            let mut out = Vec::new();
            Request::AddEndpoint(key, endpoint, 1).write(&mut out, 30, 5);
            let told = read_endpoint(&out[16..], key).unwrap();
            assert_eq!(told, Told { endpoint, weight: 1, connections: 0 });
        }
    }

    #[test]
    fn messages_are_laid_out_as_the_kernel_has_them() {
        let mut out = Vec::new();
        Request::Add(key("10.96.0.1:80"), Options::new(Scheduler::MaglevHashing, None))
            .write(&mut out, 30, 5);
        let expected = [
            &[104, 0, 0, 0, 30, 0, 5, 0, 5, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0][..],
            &[84, 0, 1, 0x80],
            &[6, 0, 1, 0, 2, 0, 0, 0],
            &[6, 0, 2, 0, 6, 0, 0, 0],
            &[20, 0, 3, 0, 10, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 4, 0, 0, 80, 0, 0],
            &[7, 0, 6, 0, b'm', b'h', 0, 0],
            &[12, 0, 7, 0, 0x10, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
            &[8, 0, 8, 0, 0, 0, 0, 0],
            &[8, 0, 9, 0, 0xff, 0xff, 0xff, 0xff],
        ];
        if cfg!(target_endian = "little") {
            assert_eq!(out, expected.concat());
        }
    }

    #[test]
    fn what_is_cut_is_passed_over() {
        let mut out = Vec::new();
        Request::Add(key("10.96.0.1:80"), Options::new(Scheduler::RoundRobin, None)).write(&mut out, 30, 5);
        for length in 16..out.len() - 20 {
            assert_eq!(read_service(&out[16..length]), None, "{length}");
        }
        assert_eq!(read_endpoint(&out[16..], key("10.96.0.1:80")), None);
    }
}
