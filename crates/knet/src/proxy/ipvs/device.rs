//! The device that has the Services' addresses, and the addresses that the node has: messages of rtnetlink, pure but for the socket.
//!
//! Layouts and numbers are those of `linux/rtnetlink.h`, `if_link.h` and `if_addr.h`.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use crate::netlink::{
    self, ACKNOWLEDGE, CREATE, DUMP, EXCLUSIVE, NESTED, REPLACE, REQUEST, Socket, attribute, attributes,
    bytes, number, string,
};

/// `NETLINK_ROUTE`.
const ROUTE: isize = 0;
/// The news of addresses of both families (`RTMGRP_IPV4_IFADDR`, `RTMGRP_IPV6_IFADDR`).
const ADDRESS_NEWS: u32 = 0x10 | 0x100;

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const GET_ADDRESS: u16 = 22;

const LINK_NAME: u16 = 3;
const LINK_INFO: u16 = 18;
const LINK_KIND: u16 = 1;
const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;

const FAMILY_V4: u8 = 2;
const FAMILY_V6: u8 = 10;
const UP: u32 = 1;
/// No search for others with the address (`IFA_F_NODAD`): other nodes have the Services' addresses, too.
const NO_DETECTION: u8 = 0x02;
/// `RT_SCOPE_UNIVERSE` and `RT_SCOPE_LINK`.
const SCOPE_EVERYWHERE: u8 = 0;
const SCOPE_LINK: u8 = 253;
/// How many requests are sent at a time: the kernel keeps the answers until they are read.
const REQUESTS_MAX: usize = 64;
/// `ENODEV`, `EADDRNOTAVAIL`.
const NO_DEVICE: i32 = 19;
const NO_ADDRESS: i32 = 99;

/// The way to the kernel's table of devices and addresses.
#[derive(Debug)]
pub(super) struct Devices {
    socket: Socket,
    /// Hears when addresses come or go.
    news: Socket,
    /// The number of the Services' device, when it has been made.
    device: Option<u32>,
    /// The addresses of all other devices; `None` when they have to be asked for.
    own: Option<BTreeSet<IpAddr>>,
}

/// The header of a message about a device.
fn link(flags: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&flags.to_ne_bytes());
    header
}

/// The header of a message about an address of a device.
fn address(family: u8, prefix: u8, device: u32) -> [u8; 8] {
    let [a, b, c, d] = device.to_ne_bytes();
    [family, prefix, NO_DETECTION, SCOPE_EVERYWHERE, a, b, c, d]
}

impl Devices {
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            socket: Socket::open(ROUTE, 0)?,
            news: Socket::open(ROUTE, ADDRESS_NEWS)?,
            device: None,
            own: None,
        })
    }

    /// The number of a device of this name, if there is one.
    fn find(&self, name: &str) -> io::Result<Option<u32>> {
        let mut out = Vec::new();
        let flags = REQUEST | ACKNOWLEDGE;
        netlink::message(&mut out, GET_LINK, flags, 0, &link(0), |out| string(out, LINK_NAME, name));
        match self.socket.exchange(&out, 1)?.all() {
            Ok(answers) => Ok(answers.first().and_then(|(_, message)| number(message.get(4..)?))),
            Err(error) if error.raw_os_error() == Some(NO_DEVICE) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes the Services' device, unless it is there.
    pub(super) fn make(&mut self, name: &str) -> io::Result<()> {
        self.own = None;
        if self.find(name)?.is_none() {
            let mut out = Vec::new();
            let flags = REQUEST | ACKNOWLEDGE | CREATE | EXCLUSIVE;
            netlink::message(&mut out, NEW_LINK, flags, 0, &link(UP), |out| {
                string(out, LINK_NAME, name);
                attribute(out, LINK_INFO | NESTED, |out| string(out, LINK_KIND, "dummy"));
            });
            self.socket.exchange(&out, 1)?.all()?;
        }
        self.device = self.find(name)?;
        Ok(())
    }

    /// Whether there is a device of this name.
    pub(super) fn is_there(&self, name: &str) -> io::Result<bool> {
        self.find(name).map(|found| found.is_some())
    }

    /// Deletes the Services' device.
    pub(super) fn delete(&mut self, name: &str) -> io::Result<()> {
        self.device = None;
        let mut out = Vec::new();
        let flags = REQUEST | ACKNOWLEDGE;
        netlink::message(&mut out, DELETE_LINK, flags, 0, &link(0), |out| string(out, LINK_NAME, name));
        match self.socket.exchange(&out, 1)?.all() {
            Err(error) if error.raw_os_error() != Some(NO_DEVICE) => Err(error),
            _ => Ok(()),
        }
    }

    /// The addresses of devices, with the devices' numbers; without those that are good on one link only.
    fn addresses(&self) -> io::Result<Vec<(u32, IpAddr)>> {
        let mut out = Vec::new();
        netlink::message(&mut out, GET_ADDRESS, REQUEST | DUMP, 0, &address(0, 0, 0), |_| {});
        let answers = self.socket.exchange(&out, 1)?.all()?;
        Ok(answers.iter().filter_map(|(_, message)| read_address(message)).collect())
    }

    /// The addresses of the Services' device.
    pub(super) fn bound(&self) -> io::Result<BTreeSet<IpAddr>> {
        let all = self.addresses()?.into_iter();
        Ok(all.filter(|(device, _)| Some(*device) == self.device).map(|(_, address)| address).collect())
    }

    /// The addresses of all other devices. They are asked for when some have come or gone.
    pub(super) fn own(&mut self) -> io::Result<&BTreeSet<IpAddr>> {
        let is_ours = |(_, message): &(u16, Vec<u8>)| {
            message.get(4..).and_then(number).is_some_and(|device| Some(device) == self.device)
        };
        // When news are lost there were many.
        if !self.news.news().is_ok_and(|news| news.iter().all(is_ours)) {
            self.own = None;
        }
        let own = match self.own.take() {
            Some(own) => own,
            None => {
                let all = self.addresses()?.into_iter();
                all.filter(|(device, _)| Some(*device) != self.device).map(|(_, address)| address).collect()
            }
        };
        Ok(self.own.insert(own))
    }

    /// Gives the Services' device these addresses, or takes them from it.
    pub(super) fn change(&self, addresses: &[IpAddr], binds: bool) -> io::Result<()> {
        let Some(device) = self.device else { return Err(io::ErrorKind::NotFound.into()) };
        for chunk in addresses.chunks(REQUESTS_MAX) {
            let mut out = Vec::new();
            for one in chunk {
                let (kind, flags) = if binds { (NEW_ADDRESS, CREATE | REPLACE) } else { (DELETE_ADDRESS, 0) };
                let (family, prefix, octets) = match one {
                    IpAddr::V4(v4) => (FAMILY_V4, 32, v4.octets().to_vec()),
                    IpAddr::V6(v6) => (FAMILY_V6, 128, v6.octets().to_vec()),
                };
                let header = address(family, prefix, device);
                netlink::message(&mut out, kind, REQUEST | ACKNOWLEDGE | flags, 0, &header, |out| {
                    bytes(out, ADDRESS_LOCAL, &octets);
                    bytes(out, ADDRESS, &octets);
                });
            }
            let refused = self.socket.exchange(&out, chunk.len())?.refused;
            for (_, error) in refused {
                // Somebody else has taken it away.
                if binds || error.raw_os_error() != Some(NO_ADDRESS) {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

/// A device's number and address.
fn read_address(message: &[u8]) -> Option<(u32, IpAddr)> {
    let header = message.first_chunk::<8>()?;
    if header[3] == SCOPE_LINK {
        return None;
    }
    let find = |wanted| attributes(&message[8..]).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    // On links from point to point the other attribute is the address of the other end.
    let value = find(ADDRESS_LOCAL).or_else(|| find(ADDRESS))?;
    let address = match header[0] {
        FAMILY_V4 => IpAddr::V4(Ipv4Addr::from(*value.first_chunk::<4>()?)),
        FAMILY_V6 => IpAddr::V6(Ipv6Addr::from(*value.first_chunk::<16>()?)),
        _ => return None,
    };
    Some((number(&header[4..])?, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let message = |family, scope, parts: &[(u16, &[u8])]| {
            let mut out = vec![family, 24, 0, scope, 3, 0, 0, 0];
            parts.iter().for_each(|(kind, value)| bytes(&mut out, *kind, value));
            out
        };
        let four: &[u8] = &[192, 0, 2, 1];
        let six = "fd00::1".parse::<Ipv6Addr>().unwrap().octets();
        let device = u32::from_ne_bytes([3, 0, 0, 0]);
        for (message, expected) in [
            (message(2, 0, &[(1, four)]), Some("192.0.2.1")),
            (message(2, 0, &[(1, &[10, 0, 0, 1]), (2, four)]), Some("192.0.2.1")),
            (message(2, 254, &[(1, four)]), Some("192.0.2.1")),
            (message(10, 0, &[(1, &six)]), Some("fd00::1")),
            (message(10, SCOPE_LINK, &[(1, &six)]), None),
            (message(10, 0, &[(1, four)]), None),
            (message(2, 0, &[]), None),
            (vec![2, 24], None),
        ] {
            let expected = expected.map(|address| (device, address.parse().unwrap()));
            assert_eq!(read_address(&message), expected, "{message:?}");
        }
    }
}
