//! What the proxy asks of the kernel, but for nftables.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{
    IpvsConfig,
    device::Devices,
    servers::{self, Key, Options, Request, Server, Servers},
    state::{Leaving, Nodes, There},
};
use crate::{
    netlink::{self, ACKNOWLEDGE, REQUEST, Socket, attributes, string},
    policy::Cidr,
    redirect::Transport,
};

/// `NETLINK_GENERIC`, and its part that knows the others by name (`linux/genetlink.h`).
const GENERIC: isize = 16;
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_NUMBER: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// How many requests are sent at a time: the kernel keeps the answers until they are read.
const REQUESTS_MAX: usize = 64;
/// `ENOENT` of a real server and `ESRCH` of a virtual one that are not there.
const NO_ENDPOINT: i32 = 2;
const NO_SERVER: i32 = 3;
/// Where it is tried whether virtual servers can be made: an address of documentation (RFC 5737), with upstream's port.
const PROBE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 51, 100, 0), 20_000);
/// From this version on the kernel gives connections that come again to other servers without losing packets.
const REUSE_MENDED: (u32, u32) = (5, 9);

/// The ways to the kernel; opened when they are needed, and again after a failure.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    /// The way to IPVS and the number of its family.
    ipvs: Option<(Socket, u16)>,
    devices: Option<Devices>,
}

/// A setting of the kernel.
fn set(path: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv4/{path}");
    let told = |error: io::Error| io::Error::new(error.kind(), format!("{path}: {error}"));
    if fs::read_to_string(&path).map_err(told)?.trim() == value {
        return Ok(());
    }
    fs::write(&path, value).map_err(told)
}

/// Whether the kernel's version is before the one from which connections may be reused.
fn is_old(release: &str) -> bool {
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) < REUSE_MENDED
}

impl Kernel {
    /// Finds IPVS.
    pub(super) fn open(&mut self) -> io::Result<()> {
        if self.ipvs.is_some() {
            return Ok(());
        }
        let socket = Socket::open(GENERIC, 0)?;
        let mut out = Vec::new();
        let flags = REQUEST | ACKNOWLEDGE;
        netlink::message(&mut out, CONTROL, flags, 0, &[GET_FAMILY, 1, 0, 0], |out| {
            string(out, FAMILY_NAME, "IPVS");
        });
        let answers = socket.exchange(&out, 1)?.all();
        let answers = answers.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                io::Error::new(io::ErrorKind::Unsupported, "the kernel has no IPVS (the module ip_vs)")
            }
            _ => error,
        })?;
        let family = answers.iter().find_map(|(_, message)| {
            let mut found = attributes(message.get(4..)?).filter(|(kind, _)| *kind == FAMILY_NUMBER);
            found.next()?.1.first_chunk::<2>().map(|number| u16::from_ne_bytes(*number))
        });
        self.ipvs = Some((socket, family.ok_or(io::ErrorKind::InvalidData)?));
        Ok(())
    }

    /// Sends what `write` writes for the family and reads the answers.
    fn exchange(
        &mut self,
        ends: usize,
        write: impl FnOnce(&mut Vec<u8>, u16),
    ) -> io::Result<netlink::Answers> {
        self.open()?;
        // Taken: one that has failed may still have answers.
        let Some((socket, family)) = self.ipvs.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        let mut out = Vec::new();
        write(&mut out, family);
        let answers = socket.exchange(&out, ends)?;
        self.ipvs = Some((socket, family));
        Ok(answers)
    }

    fn devices(&mut self) -> io::Result<&mut Devices> {
        let devices = match self.devices.take() {
            Some(devices) => devices,
            None => Devices::open()?,
        };
        Ok(self.devices.insert(devices))
    }

    /// Makes a virtual server and deletes it.
    pub(super) fn probe(&mut self, config: &IpvsConfig) -> io::Result<()> {
        let key = Key { address: IpAddr::V4(PROBE.0), port: PROBE.1, transport: Transport::Tcp };
        let options = Options::new(config.scheduler, None);
        let scheduler = config.scheduler;
        let mut failed = self.apply(config, &[Request::Add(key, options), Request::Delete(key)])?;
        match failed.pop() {
            None => Ok(()),
            Some((_, error)) if error.kind() == io::ErrorKind::NotFound => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("the kernel has no scheduler {scheduler} of IPVS (the module ip_vs_{scheduler})"),
            )),
            Some((_, error)) => Err(error),
        }
    }

    /// Sets what IPVS needs, and makes the Services' device.
    pub(super) fn prepare(&mut self, config: &IpvsConfig) -> io::Result<()> {
        // Connections are tracked, so that sources can be rewritten; those to servers that are gone end.
        for setting in ["vs/conntrack", "vs/expire_nodest_conn", "vs/expire_quiescent_template", "ip_forward"]
        {
            set(setting, "1")?;
        }
        if is_old(&fs::read_to_string("/proc/sys/kernel/osrelease")?) {
            set("vs/conn_reuse_mode", "0")?;
        }
        if config.strict_arp {
            set("conf/all/arp_ignore", "1")?;
            set("conf/all/arp_announce", "2")?;
        }
        let seconds = |time: Option<Duration>| {
            time.map_or(0, |time| u32::try_from(time.as_secs().max(1)).unwrap_or(u32::MAX))
        };
        let timeouts = [config.tcp_timeout, config.tcp_fin_timeout, config.udp_timeout].map(seconds);
        if timeouts != [0; 3] {
            self.exchange(1, |out, family| servers::set_timeouts(out, family, timeouts))?.all()?;
        }
        self.devices()?.make(&config.device)
    }

    /// The node's addresses, and those of them that serve node ports.
    pub(super) fn nodes(&mut self, config: &IpvsConfig) -> io::Result<Nodes> {
        let ranges: Vec<Cidr> =
            config.node_port_addresses.iter().filter_map(|range| Cidr::parse(range)).collect();
        let own = self.devices()?.own()?.clone();
        Ok(Nodes::new(own, &ranges, config.node_port_addresses.is_empty()))
    }

    /// What the kernel has.
    pub(super) fn there(&mut self, config: &IpvsConfig) -> io::Result<There> {
        let servers = self.servers(config)?;
        Ok(There { servers, bound: self.devices()?.bound()? })
    }

    /// The virtual servers, but those that are others'.
    fn servers(&mut self, config: &IpvsConfig) -> io::Result<Servers> {
        let answers = self.exchange(1, servers::list)?.all()?;
        let found = answers.iter().filter_map(|(_, message)| servers::read_service(message));
        let found: Vec<_> = found.filter(|(key, _)| !config.is_excluded(key.address)).collect();
        let mut servers = BTreeMap::new();
        for (key, options) in found {
            let endpoints =
                self.endpoints(key)?.into_iter().map(|told| (told.endpoint, told.weight)).collect();
            servers.insert(key, Server { options, endpoints });
        }
        Ok(servers)
    }

    fn endpoints(&mut self, key: Key) -> io::Result<Vec<servers::Told>> {
        let answers = self.exchange(1, |out, family| servers::list_endpoints(out, family, key))?.all()?;
        Ok(answers.iter().filter_map(|(_, message)| servers::read_endpoint(message, key)).collect())
    }

    /// Does what is asked; gives what was refused. Who is deleted may be gone already.
    pub(super) fn apply(
        &mut self,
        _config: &IpvsConfig,
        requests: &[Request],
    ) -> io::Result<Vec<(Key, io::Error)>> {
        let mut failed = Vec::new();
        for chunk in requests.chunks(REQUESTS_MAX) {
            let answers = self.exchange(chunk.len(), |out, family| {
                for (number, request) in (0_u32..).zip(chunk) {
                    request.write(out, family, number);
                }
            })?;
            for (number, error) in answers.refused {
                let request = usize::try_from(number).ok().and_then(|number| chunk.get(number));
                let Some(request) = request else { return Err(error) };
                match (request, error.raw_os_error()) {
                    (Request::Delete(_) | Request::DeleteEndpoint(..), Some(NO_ENDPOINT | NO_SERVER)) => {}
                    _ => failed.push((request.key(), error)),
                }
            }
        }
        Ok(failed)
    }

    pub(super) fn bind(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        self.devices()?.change(addresses, true)
    }

    pub(super) fn unbind(&mut self, addresses: &[IpAddr]) -> io::Result<()> {
        self.devices()?.change(addresses, false)
    }

    /// Takes those out of the leaving real servers that have no more connections; of these virtual servers, or of all.
    pub(super) fn sweep(&mut self, leaving: &mut Leaving, only: Option<&[Key]>) -> io::Result<()> {
        let keys: BTreeSet<Key> = match only {
            Some(only) => only.iter().copied().collect(),
            None => leaving.iter().map(|(key, _)| *key).collect(),
        };
        for key in keys {
            let own: Vec<SocketAddr> =
                leaving.iter().filter(|(of, _)| *of == key).map(|(_, endpoint)| *endpoint).collect();
            if own.is_empty() {
                continue;
            }
            let told = self.endpoints(key)?;
            for endpoint in own {
                let connections = told.iter().find(|told| told.endpoint == endpoint);
                if connections.is_none_or(|told| told.connections == 0) {
                    let request = Request::DeleteEndpoint(key, endpoint);
                    let answers = self.exchange(1, |out, family| request.write(out, family, 0))?;
                    // It may have gone by itself.
                    drop(answers);
                    leaving.remove(&(key, endpoint));
                }
            }
        }
        Ok(())
    }

    /// Deletes the device and all virtual servers but others'; nothing where there is no such device.
    pub(super) fn remove(&mut self, config: &IpvsConfig) -> io::Result<()> {
        if !self.devices()?.is_there(&config.device)? {
            return Ok(());
        }
        if self.open().is_ok() {
            let requests: Vec<Request> = self.servers(config)?.into_keys().map(Request::Delete).collect();
            if let Some((_, error)) = self.apply(config, &requests)?.pop() {
                return Err(error);
            }
        }
        self.devices()?.delete(&config.device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_told_apart() {
        for (release, expected) in [
            ("4.19.0-21-amd64", true),
            ("5.8.18", true),
            ("5.9.0", false),
            ("6.1.0-56-cloud-amd64\n", false),
            ("10.0", false),
            ("", true),
        ] {
            assert_eq!(is_old(release), expected, "{release}");
        }
    }
}
