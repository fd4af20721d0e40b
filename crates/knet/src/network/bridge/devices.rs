//! Devices, addresses and routes, by netlink.

use std::{fs::File, io, net::IpAddr, os::fd::AsRawFd, path::Path};

use futures::{TryStreamExt, future::BoxFuture};
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{link::LinkMessage, route::RouteMessage},
};

/// The kernel's network as one namespace has it.
#[derive(Clone, Debug)]
pub(super) struct Devices {
    pub(super) handle: Handle,
}

/// What netlink says is what the kernel says.
pub(super) fn from_netlink(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

fn unless(kind: io::ErrorKind) -> impl Fn(io::Error) -> io::Result<()> {
    move |error| if error.kind() == kind { Ok(()) } else { Err(error) }
}

impl Devices {
    /// Those of the caller's namespace. The connection ends with the last handle.
    pub(super) fn here() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// A device by its name.
    pub(super) async fn find(&self, name: &str) -> io::Result<Option<LinkMessage>> {
        let mut links = self.handle.link().get().match_name(name.to_owned()).execute();
        match links.try_next().await.map_err(from_netlink) {
            Ok(link) => Ok(link),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn index(&self, name: &str) -> io::Result<u32> {
        let link = self.find(name).await?;
        let missing = || io::Error::new(io::ErrorKind::NotFound, format!("there is no device {name}"));
        Ok(link.ok_or_else(missing)?.header.index)
    }

    /// Deletes a device, if there is one of this name.
    pub(super) async fn delete(&self, name: &str) -> io::Result<()> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        let deleted = self.handle.link().del(link.header.index).execute().await;
        match deleted.map_err(from_netlink) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            other => other,
        }
    }

    pub(super) async fn ensure_bridge(&self, name: &str, mtu: u32) -> io::Result<u32> {
        if self.find(name).await?.is_none() {
            let made = self.handle.link().add(LinkBridge::new(name).build()).execute().await;
            made.map_err(from_netlink).or_else(unless(io::ErrorKind::AlreadyExists))?;
        }
        let index = self.index(name).await?;
        let message = LinkUnspec::new_with_index(index).mtu(mtu).up().build();
        self.handle.link().set(message).execute().await.map_err(from_netlink)?;
        Ok(index)
    }

    /// Gives a device an address, if it doesn't have it.
    pub(super) async fn address(&self, index: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        let mut request = self.handle.address().add(index, address, prefix);
        if address.is_ipv6() {
            // Nobody else has it: there is nothing to wait for.
            let flags = &mut request.message_mut().header.flags;
            flags.insert(rtnetlink::packet_route::address::AddressHeaderFlags::Nodad);
        }
        request.execute().await.map_err(from_netlink).or_else(unless(io::ErrorKind::AlreadyExists))
    }

    /// A pair of devices, the second of which is moved to another namespace.
    pub(super) async fn pair(&self, host: &str, inner: &str, mtu: u32, netns: &Path) -> io::Result<()> {
        let namespace = File::open(netns)?;
        self.delete(inner).await?;
        let pair = LinkVeth::new(host, inner).mtu(mtu).build();
        self.handle.link().add(pair).execute().await.map_err(from_netlink)?;
        let index = self.index(inner).await?;
        let moved = LinkUnspec::new_with_index(index).mtu(mtu).setns_by_fd(namespace.as_raw_fd()).build();
        self.handle.link().set(moved).execute().await.map_err(from_netlink)
    }

    /// Puts a device on a bridge. What a pod sends may come back to it, for it may be an endpoint of the Service that it asks.
    pub(super) async fn plug(&self, name: &str, bridge: u32) -> io::Result<()> {
        let index = self.index(name).await?;
        let plugged = LinkUnspec::new_with_index(index).controller(bridge).up().build();
        self.handle.link().set(plugged).execute().await.map_err(from_netlink)?;
        let hairpin = LinkBridgePort::new(index).hairpin(true).build();
        self.handle.link().set_port(hairpin).execute().await.map_err(from_netlink)
    }

    /// Gives the pod's device its name, addresses and ways out; `routes` has address and gateway.
    ///
    /// The pod knows no neighbour but its gateway. What it sends to another pod of the same bridge goes over the node, too, and so
    /// does the answer: that is how the rules of Services and policies see it, without `br_netfilter`, which not every kernel has.
    pub(super) async fn set_up_pod(
        &self,
        found: &str,
        name: &str,
        routes: &[(IpAddr, IpAddr)],
    ) -> io::Result<()> {
        let lo = LinkUnspec::new_with_name("lo").up().build();
        self.handle.link().set(lo).execute().await.map_err(from_netlink)?;
        // One of a life before, whose other end is gone.
        self.delete(name).await?;
        let index = self.index(found).await?;
        let renamed = LinkUnspec::new_with_index(index).name(name).up().build();
        self.handle.link().set(renamed).execute().await.map_err(from_netlink)?;
        for (address, gateway) in routes {
            self.address(index, *address, if address.is_ipv4() { 32 } else { 128 }).await?;
            self.route(default_route(index, *gateway)).await?;
        }
        // The node would tell of a shorter way, past the rules.
        for setting in ["ipv4/conf/all", "ipv4/conf/eth0", "ipv6/conf/all", "ipv6/conf/eth0"] {
            // A kernel without the family has no such setting.
            let _ = std::fs::write(format!("/proc/sys/net/{setting}/accept_redirects"), "0");
        }
        Ok(())
    }

    /// Makes a route, in place of another one to the same addresses.
    pub(super) async fn route(&self, route: RouteMessage) -> io::Result<()> {
        self.handle.route().add(route).replace().execute().await.map_err(from_netlink)
    }
}

fn default_route(device: u32, gateway: IpAddr) -> RouteMessage {
    match gateway {
        IpAddr::V4(gateway) => {
            let route = RouteMessageBuilder::<std::net::Ipv4Addr>::new().output_interface(device);
            route.gateway(gateway).onlink().build()
        }
        IpAddr::V6(gateway) => {
            let route = RouteMessageBuilder::<std::net::Ipv6Addr>::new().output_interface(device);
            route.gateway(gateway).onlink().build()
        }
    }
}

/// Does something in another namespace, on a thread of its own that ends with it: a thread that was moved is of no use to others.
pub(super) async fn within<T: Send + 'static>(
    netns: &Path,
    work: impl FnOnce(Devices) -> BoxFuture<'static, io::Result<T>> + Send + 'static,
) -> io::Result<T> {
    let namespace = File::open(netns)?;
    let (told, heard) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("pod-network".to_owned()).spawn(move || {
        let run = || {
            // SAFETY: the descriptor is open, and the call changes nothing but which network this thread sees.
            if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async { work(Devices::here()?).await })
        };
        let _ = told.send(run());
    })?;
    heard.await.map_err(|_| io::Error::other("the thread in the pod's namespace ended early"))?
}
