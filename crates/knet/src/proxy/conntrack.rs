//! UDP flows that must not go on as they began: the kernel remembers them by what they were rewritten to.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
};

use crate::{
    program,
    redirect::Transport,
    rules::{Frontend, Rule},
};

/// UDP flows, by what they were sent to and whom they were given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    frontend: Frontend,
    port: u16,
    /// `None`: those that were given to nobody.
    endpoint: Option<IpAddr>,
    v4: bool,
}

impl Flow {
    /// What `conntrack` is asked for.
    pub(super) fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["-D", "-p", "udp", "-f"].into_iter().map(str::to_owned).collect();
        arguments.push(if self.v4 { "ipv4" } else { "ipv6" }.to_owned());
        arguments.extend(["--orig-port-dst".to_owned(), self.port.to_string()]);
        if let Frontend::Address(address) = self.frontend {
            arguments.extend(["--orig-dst".to_owned(), address.to_string()]);
        }
        if let Some(endpoint) = self.endpoint {
            // Whoever was given a flow answers it; IPVS does not note that it has rewritten a destination.
            arguments.extend(["--reply-src".to_owned(), endpoint.to_string()]);
        }
        arguments
    }
}

/// The flows of a rule whose answer would be another one now that its endpoints of one family are others.
pub(super) fn ended<'a>(
    rule: Option<&Rule>,
    v4: bool,
    before: &'a [SocketAddr],
    after: &'a [SocketAddr],
) -> Vec<Flow> {
    let Some(rule) = rule.filter(|rule| rule.transport == Transport::Udp) else { return Vec::new() };
    let flow = |endpoint| Flow { frontend: rule.frontend, port: rule.port, endpoint, v4 };
    let lost = before.iter().filter(|one| !after.contains(one));
    let mut flows: Vec<Flow> = lost.map(|one| flow(Some(one.ip()))).collect();
    if before.is_empty() && !after.is_empty() {
        flows.push(flow(None));
    }
    flows
}

/// The UDP flows of one family that end between two states of a Service.
pub(super) fn between(before: &[Rule], after: &[Rule], v4: bool) -> Vec<Flow> {
    let key = |rule: &Rule| (rule.frontend, rule.port, rule.transport);
    let gone = before.iter().filter(|old| !after.iter().any(|new| key(new) == key(old)));
    let gone = gone.map(|old| (Some(old), None));
    let kept = after.iter().map(|new| (before.iter().find(|old| key(old) == key(new)), Some(new)));
    let mut flows = Vec::new();
    for (old, new) in gone.chain(kept) {
        let of = |rule: Option<&Rule>| -> Vec<SocketAddr> {
            let all = rule.into_iter().flat_map(|rule| rule.endpoints.iter());
            all.filter(|endpoint| endpoint.is_ipv4() == v4).copied().collect()
        };
        flows.extend(ended(old.or(new), v4, &of(old), &of(new)));
    }
    flows
}

/// Ends these flows by the program `conntrack`, one after the other.
pub(super) async fn end(conntrack: &Path, flows: &[Flow]) {
    for flow in flows {
        // It fails when there is no such flow.
        if let Err(error) = program::run(conntrack, flow.arguments(), "").await
            && error.kind() == std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "UDP flows to endpoints that are gone are not ended");
            return;
        }
    }
}
