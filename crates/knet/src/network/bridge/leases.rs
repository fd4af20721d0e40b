//! Which pod has which addresses: a file for each pod.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::told;
use crate::{
    allocator::{AddressRange, IpAllocator},
    network::{NetworkError, PodAttachment, PortMapping},
    policy::{Cidr, Protocol},
};

/// How much of a hash a device's name has, in bytes.
const HASH_BYTES: usize = 6;

/// What a pod has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) id: String,
    pub(super) pod: String,
    pub(super) netns: PathBuf,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ports: Vec<PortMapping>,
    /// Whether all of the pod's devices were made.
    pub(super) plugged: bool,
}

fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

impl Lease {
    fn to_value(&self) -> Value {
        let ports = self.ports.iter().map(|port| {
            json!({"hostAddress": port.host_address, "hostPort": port.host_port, "podPort": port.pod_port,
                "protocol": protocol_name(port.protocol)})
        });
        json!({"id": self.id, "pod": self.pod, "netns": self.netns, "addresses": self.addresses,
            "ports": ports.collect::<Vec<_>>(), "plugged": self.plugged})
    }

    fn of(value: &Value) -> Option<Self> {
        let address = |value: &Value| value.as_str()?.parse().ok();
        let number = |value: &Value| value.as_u64().and_then(|number| u16::try_from(number).ok());
        let ports = value["ports"].as_array()?.iter().map(|port| {
            let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
            let protocol = protocols.into_iter().find(|one| port["protocol"] == protocol_name(*one))?;
            Some(PortMapping {
                host_address: address(&port["hostAddress"]),
                host_port: number(&port["hostPort"])?,
                pod_port: number(&port["podPort"])?,
                protocol,
            })
        });
        Some(Self {
            id: value["id"].as_str()?.to_owned(),
            pod: value["pod"].as_str()?.to_owned(),
            netns: value["netns"].as_str()?.into(),
            addresses: value["addresses"].as_array()?.iter().map(address).collect::<Option<_>>()?,
            ports: ports.collect::<Option<_>>()?,
            plugged: value["plugged"].as_bool()?,
        })
    }
}

/// The first address of a range after the network's own: the bridge's.
pub(super) fn gateway(range: &Cidr) -> Option<IpAddr> {
    match range.network {
        IpAddr::V4(v4) => Some(IpAddr::V4(v4.to_bits().checked_add(1)?.into())),
        IpAddr::V6(v6) => Some(IpAddr::V6(v6.to_bits().checked_add(1)?.into())),
    }
}

/// What stands for an id where there is little room.
pub(super) fn hash(id: &str) -> String {
    Sha256::digest(id).iter().take(HASH_BYTES).fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// All leases, in memory and in a directory.
#[derive(Debug)]
pub(super) struct Leases {
    dir: PathBuf,
    ranges: Vec<AddressRange>,
    leases: BTreeMap<String, Lease>,
}

impl Leases {
    /// Reads the directory. Files that can't be read, have addresses of other ranges, or one that another file has, are of no use to
    /// anybody and are deleted.
    pub(super) fn open(dir: PathBuf, ranges: &[Cidr]) -> Result<Self, NetworkError> {
        let allocators = ranges.iter().map(|range| {
            let allocator = AddressRange::new(range.network, range.prefix)
                .ok_or_else(|| NetworkError::Invalid(format!("{range} is too small")))?;
            if let Some(gateway) = gateway(range) {
                allocator.allocate(Some(gateway))?;
            }
            Ok(allocator)
        });
        let ranges = allocators.collect::<Result<_, NetworkError>>()?;
        let mut leases = Self { dir, ranges, leases: BTreeMap::new() };
        leases.read().map_err(told("pods' addresses"))?;
        Ok(leases)
    }

    fn read(&mut self) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let mut paths =
            fs::read_dir(&self.dir)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        paths.sort();
        for path in paths {
            let bytes = fs::read(&path)?;
            let value: Option<Value> = serde_json::from_slice(&bytes).ok();
            let lease = value.as_ref().and_then(Lease::of).filter(|lease| self.path(&lease.id) == path);
            let kept = lease.is_some_and(|lease| self.claim(lease));
            if !kept {
                tracing::warn!(path = %path.display(), "a record of a pod's addresses is of no use");
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// Takes the addresses of a lease, all or none.
    fn claim(&mut self, lease: Lease) -> bool {
        let mut taken = Vec::new();
        for address in &lease.addresses {
            let range = self.ranges.iter().find(|range| range.contains(*address));
            if range.is_some_and(|range| range.allocate(Some(*address)).is_ok()) {
                taken.push(*address);
            }
        }
        if taken.len() != lease.addresses.len() || taken.len() != self.ranges.len() {
            taken.into_iter().for_each(|address| self.free(address));
            return false;
        }
        self.leases.insert(lease.id.clone(), lease);
        true
    }

    fn free(&self, address: IpAddr) {
        for range in self.ranges.iter().filter(|range| range.contains(address)) {
            range.release(address);
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{}.json", hash(id)))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    pub(super) fn get(&self, id: &str) -> Option<&Lease> {
        self.leases.get(id)
    }

    /// The pod's lease: what it has already, or free addresses.
    pub(super) fn take(&mut self, pod: &PodAttachment, netns: &Path) -> Result<Lease, NetworkError> {
        for port in &pod.ports {
            let clash = |other: &PortMapping| {
                (other.host_port, other.protocol) == (port.host_port, port.protocol)
                    && (other.host_address.is_none()
                        || port.host_address.is_none()
                        || other.host_address == port.host_address)
            };
            let mut others = self.all().filter(|lease| lease.id != pod.id);
            if let Some(other) = others.find(|lease| lease.ports.iter().any(clash)) {
                let address = port.host_address.unwrap_or(IpAddr::from([0, 0, 0, 0]));
                let address = SocketAddr::new(address, port.host_port);
                return Err(NetworkError::PortTaken(address, other.pod.clone()));
            }
        }
        let addresses = match self.leases.get(&pod.id) {
            Some(lease) => lease.addresses.clone(),
            None => self.allocate()?,
        };
        let lease = Lease {
            id: pod.id.clone(),
            pod: format!("{}/{}", pod.namespace, pod.name),
            netns: netns.to_owned(),
            addresses,
            ports: pod.ports.clone(),
            plugged: false,
        };
        self.leases.insert(pod.id.clone(), lease.clone());
        if let Err(error) = self.write(&pod.id) {
            self.leases.remove(&pod.id);
            lease.addresses.iter().for_each(|address| self.free(*address));
            return Err(error);
        }
        Ok(lease)
    }

    fn allocate(&self) -> Result<Vec<IpAddr>, NetworkError> {
        let mut addresses = Vec::new();
        for range in &self.ranges {
            match range.allocate(None) {
                Ok(address) => addresses.push(address),
                Err(error) => {
                    addresses.into_iter().for_each(|address| self.free(address));
                    return Err(error.into());
                }
            }
        }
        Ok(addresses)
    }

    /// Remembers that a pod's devices are there.
    pub(super) fn plugged(&mut self, id: &str) -> Result<(), NetworkError> {
        if let Some(lease) = self.leases.get_mut(id) {
            lease.plugged = true;
        }
        self.write(id)
    }

    /// Remembers that a pod has no host ports any more.
    pub(super) fn close_ports(&mut self, id: &str) -> Result<(), NetworkError> {
        if let Some(lease) = self.leases.get_mut(id) {
            lease.ports.clear();
        }
        self.write(id)
    }

    /// Takes a pod's addresses back.
    pub(super) fn release(&mut self, id: &str) -> Result<(), NetworkError> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(NetworkError::Io("a pod's addresses".to_owned(), error));
            }
            _ => {}
        }
        if let Some(lease) = self.leases.remove(id) {
            lease.addresses.iter().for_each(|address| self.free(*address));
        }
        Ok(())
    }

    /// Writes a lease whole or not at all.
    fn write(&self, id: &str) -> Result<(), NetworkError> {
        let Some(lease) = self.leases.get(id) else { return Ok(()) };
        let path = self.path(id);
        let draft = path.with_extension("draft");
        let written = fs::write(&draft, lease.to_value().to_string()).and_then(|()| fs::rename(draft, path));
        written.map_err(told("a pod's addresses"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str) -> PodAttachment {
        PodAttachment {
            id: id.to_owned(),
            namespace: "shop".to_owned(),
            name: id.to_owned(),
            uid: String::new(),
            netns: None,
            ports: vec![PortMapping {
                host_address: None,
                host_port: 80,
                pod_port: 8080,
                protocol: Protocol::Tcp,
            }],
        }
    }

    fn open(dir: &Path) -> Leases {
        let ranges = ["10.1.0.0/29", "fd00::/120"].map(|range| Cidr::parse(range).unwrap());
        Leases::open(dir.to_owned(), &ranges).unwrap()
    }

    #[test]
    fn leases_outlive_the_process_and_are_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let netns = Path::new("/run/netns/x");
        let mut leases = open(dir.path());
        let lease = leases.take(&pod("one"), netns).unwrap();
        assert_eq!(leases.take(&pod("one"), netns).unwrap(), lease, "the same pod has the same addresses");
        assert!(matches!(leases.take(&pod("two"), netns), Err(NetworkError::PortTaken(..))));
        leases.plugged("one").unwrap();
        // What was half written, and what somebody else's life left with the same address, are of no use.
        fs::write(dir.path().join("0.draft"), "{").unwrap();
        let copy = Lease { id: "copy".to_owned(), ..lease.clone() };
        fs::write(leases.path("copy"), copy.to_value().to_string()).unwrap();
        let mut leases = open(dir.path());
        let kept: Vec<_> = leases.all().cloned().collect();
        assert_eq!(kept.len(), 1, "one of two with the same address");
        assert_eq!(kept[0].addresses, lease.addresses);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        leases.release(&kept[0].id).unwrap();
        assert_eq!(open(dir.path()).all().count(), 0);
    }

    /// A /29 has eight addresses: the network, the gateway and the last one are not for pods.
    #[test]
    fn a_range_that_is_full_gives_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut leases = open(dir.path());
        for number in 0..5 {
            let mut pod = pod(&format!("pod-{number}"));
            pod.ports.clear();
            let lease = leases.take(&pod, Path::new("/")).unwrap();
            assert!(!lease.addresses.contains(&"10.1.0.1".parse().unwrap()));
        }
        let one_more = PodAttachment { ports: Vec::new(), ..pod("more") };
        assert!(matches!(leases.take(&one_more, Path::new("/")), Err(NetworkError::Addresses(_))));
        leases.release("pod-3").unwrap();
        leases.take(&one_more, Path::new("/")).unwrap();
    }
}
