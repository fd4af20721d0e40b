//! Which endpoint gets the next connection: a pure function of who came before.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::Instant;

/// How many clients of one rule are remembered for session affinity. Beyond it those are forgotten that were away longest.
pub const CLIENTS_MAX: usize = 16 * 1024;

/// Hands out the endpoints of one rule in turn.
///
/// ```
/// use knet::balance::Balancer;
/// let endpoints = ["10.0.0.1:80".parse()?, "10.0.0.2:80".parse()?];
/// let (client, now) = ("10.0.1.1".parse()?, tokio::time::Instant::now());
/// let mut balancer = Balancer::default();
/// let mut pick = || balancer.pick(&endpoints, client, None, now, &[]);
/// assert_eq!([pick(), pick(), pick()], [Some(endpoints[0]), Some(endpoints[1]), Some(endpoints[0])]);
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Debug, Default)]
pub struct Balancer {
    next: usize,
    clients: HashMap<IpAddr, (SocketAddr, Instant)>,
}

impl Balancer {
    /// The endpoint for a connection of `client`, but for those that were tried for it already. With `affinity` a client
    /// that came within that time gets the endpoint that it had, while that is there and was not tried.
    pub fn pick(
        &mut self,
        endpoints: &[SocketAddr],
        client: IpAddr,
        affinity: Option<Duration>,
        now: Instant,
        tried: &[SocketAddr],
    ) -> Option<SocketAddr> {
        let known = affinity.and_then(|time| {
            let (endpoint, last) = self.clients.get(&client)?;
            let holds = now.saturating_duration_since(*last) < time;
            (holds && endpoints.contains(endpoint) && !tried.contains(endpoint)).then_some(*endpoint)
        });
        let picked = known.or_else(|| {
            let count = endpoints.len();
            let turn = (0..count).map(|step| (self.next + step) % count);
            let index = turn.into_iter().find(|index| !tried.contains(&endpoints[*index]))?;
            self.next = (index + 1) % count;
            Some(endpoints[index])
        })?;
        if affinity.is_some() {
            if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(&client) {
                self.forget_half();
            }
            self.clients.insert(client, (picked, now));
        }
        Some(picked)
    }

    fn forget_half(&mut self) {
        let mut times: Vec<_> = self.clients.values().map(|(_, last)| *last).collect();
        let middle = times.len() / 2;
        let (_, median, _) = times.select_nth_unstable(middle);
        let median = *median;
        self.clients.retain(|_, (_, last)| *last > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_keeps_its_endpoint_for_a_while() {
        let endpoints: Vec<SocketAddr> = (1..=3).map(|n| format!("10.0.0.{n}:80").parse().unwrap()).collect();
        let client = |n: u8| IpAddr::from([10, 0, 1, n]);
        let affinity = Some(Duration::from_secs(10));
        let start = Instant::now();
        let mut balancer = Balancer::default();
        let mut pick = |who, seconds, tried: &[SocketAddr]| {
            balancer
                .pick(&endpoints, client(who), affinity, start + Duration::from_secs(seconds), tried)
                .unwrap()
        };
        assert_eq!(pick(1, 0, &[]), endpoints[0]);
        assert_eq!(pick(2, 0, &[]), endpoints[1]);
        assert_eq!(pick(1, 9, &[]), endpoints[0]);
        assert_eq!(pick(1, 18, &[]), endpoints[0]);
        assert_eq!(pick(1, 28, &[]), endpoints[2]);
        assert_eq!(pick(1, 29, &[endpoints[2]]), endpoints[0]);
        assert_eq!(pick(1, 30, &[]), endpoints[0]);
    }

    #[test]
    fn every_endpoint_is_tried_once() {
        let endpoints: Vec<SocketAddr> = (1..=2).map(|n| format!("10.0.0.{n}:80").parse().unwrap()).collect();
        let mut balancer = Balancer::default();
        let mut tried = Vec::new();
        while let Some(next) =
            balancer.pick(&endpoints, IpAddr::from([1, 1, 1, 1]), None, Instant::now(), &tried)
        {
            tried.push(next);
        }
        assert_eq!(tried, endpoints);
    }
}
