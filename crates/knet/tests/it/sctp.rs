//! SCTP by the proxies in the kernel. Associations begin with a packet that the test writes itself, as not every kernel has sockets of SCTP;
//! what counts is where it comes out.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{FromRawFd as _, OwnedFd},
    time::Duration,
};

use knet::{
    ServiceProxy, Transport,
    proxy::{
        iptables::IptablesProxy,
        ipvs::{IpvsConfig, IpvsProxy},
        nftables::NftablesProxy,
    },
    testing::{rule, table},
};

/// How long a test waits for a packet that has to come, and for one that must not.
const WAIT_MAX: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_millis(400);
const SCTP: i32 = 132;
const SERVICE: &str = "10.96.0.9:7000";
/// The port of a Service that is not there.
const NOBODY: u16 = 7001;
const ENDPOINTS: [&str; 2] = ["192.0.2.1:7100", "192.0.2.1:7200"];

/// The checksum of SCTP, CRC32c, bit by bit (RFC 9260, appendix A).
fn checksum(packet: &[u8]) -> u32 {
    !packet.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

/// The packet that begins an association: the common header and an INIT chunk (RFC 9260, sections 3.1 and 3.3.2).
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    for field in [0x5eed_u32, 65_536] {
        packet.extend(field.to_be_bytes());
    }
    packet.extend([0, 1, 0, 1]);
    packet.extend(7_u32.to_be_bytes());
    let sum = checksum(&packet).to_le_bytes();
    packet[8..12].copy_from_slice(&sum);
    packet
}

/// A socket that sends and gets whole packets of SCTP, those that come with their IP header.
fn raw() -> UdpSocket {
    // SAFETY: the call has no pointers, and the descriptor is nobody else's.
    let socket = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_RAW, SCTP);
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        OwnedFd::from_raw_fd(socket)
    };
    socket.into()
}

/// Where the packet of an association that `from` begins comes out; `None` when it doesn't. It is sent again each second, as it would be by who begins
/// one (RFC 9260, section 5.1): it may be lost.
fn arrives(socket: &UdpSocket, from: u16, to: &str, wait: Duration) -> Option<SocketAddr> {
    let again = Duration::from_secs(1);
    (0..wait.as_secs().max(1)).find_map(|_| arrives_once(socket, from, to, wait.min(again)))
}

fn arrives_once(socket: &UdpSocket, from: u16, to: &str, wait: Duration) -> Option<SocketAddr> {
    let to: SocketAddrV4 = to.parse().unwrap();
    socket.set_read_timeout(Some(wait)).unwrap();
    if socket.send_to(&init(from, to.port()), (*to.ip(), 0)).is_err() {
        return None;
    }
    let mut packet = [0; 2048];
    loop {
        let length = socket.recv(&mut packet).ok()?;
        let head = usize::from(packet[0] & 15) * 4;
        let body = packet.get(head..length).filter(|body| body.len() > 12 && body[12] == 1);
        let Some(body) = body.filter(|body| body[..2] == from.to_be_bytes()) else { continue };
        let address = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
        // The one that is sent is not seen before the rules.
        let port = u16::from_be_bytes([body[2], body[3]]);
        return Some(SocketAddr::new(address.into(), port));
    }
}

async fn check(proxy: &dyn ServiceProxy) {
    let socket = raw();
    let endpoints = ENDPOINTS.map(|endpoint| endpoint.parse().unwrap());
    let service: SocketAddr = SERVICE.parse().unwrap();
    proxy.sync(&table(vec![rule(service, Transport::Sctp, &endpoints)])).await.unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for from in 40_000..40_032 {
        seen.insert(arrives(&socket, from, SERVICE, WAIT_MAX).expect("an endpoint"));
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), endpoints, "{proxy:?}");
    let nobody = format!("{}:{NOBODY}", service.ip());
    let passed = arrives(&socket, 41_000, &nobody, SILENCE);
    assert!(!passed.is_some_and(|at| endpoints.contains(&at)), "{passed:?}");
    proxy.sync(&table(vec![rule(service, Transport::Sctp, &endpoints[..1])])).await.unwrap();
    for from in 42_000..42_008 {
        assert_eq!(arrives(&socket, from, SERVICE, WAIT_MAX), Some(endpoints[0]), "{proxy:?}");
    }
    // TCP at the same address is another Service's.
    proxy.sync(&table(vec![rule(service, Transport::Tcp, &endpoints)])).await.unwrap();
    let passed = arrives(&socket, 43_000, SERVICE, SILENCE);
    assert!(!passed.is_some_and(|at| endpoints.contains(&at)), "{passed:?}");
}

#[tokio::test]
async fn nftables_carries_sctp() {
    if crate::lab::inside("sctp::nftables_carries_sctp", crate::SERVICES, &[]) {
        check(&NftablesProxy::default()).await;
    }
}

#[tokio::test]
async fn iptables_carries_sctp() {
    let tools = ["iptables", "ip6tables", "iptables-restore"];
    if crate::lab::inside("sctp::iptables_carries_sctp", crate::SERVICES, &tools) {
        check(&IptablesProxy::default()).await;
    }
}

#[tokio::test]
async fn ipvs_carries_sctp() {
    if crate::ipvs::inside("sctp::ipvs_carries_sctp", crate::SERVICES_ELSEWHERE, &[]) {
        let mut config = IpvsConfig::default();
        config.loopback_endpoints = true;
        check(&IpvsProxy::new(config)).await;
    }
}
