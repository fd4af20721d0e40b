//! What the nftables proxy costs: a full table, and a change of one endpoint, with 10, 1,000 and 10,000 Services of ten
//! endpoints. It changes the network of the namespace that it runs in:
//! `unshare -n cargo run --release -p knet --features testing --example nftables_figures`.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use knet::{
    ServiceProxy, Transport,
    proxy::nftables::NftablesProxy,
    rules::{Rule, Table},
    testing::rule,
};
use tokio::time::Instant;

const CHANGES: u32 = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    for services in [10_u32, 1_000, 10_000] {
        let proxy = NftablesProxy::default();
        let mut table =
            Table { services: (0..services).map(|index| entry(index, 0)).collect::<BTreeMap<_, _>>() };
        let began = Instant::now();
        proxy.sync(&table).await?;
        println!("{services} services, all: {:.1} ms", began.elapsed().as_secs_f64() * 1e3);
        let mut times = Vec::new();
        for change in 1..=CHANGES {
            let (name, rules) = entry(services / 2, change);
            table.services.insert(name, rules);
            let began = Instant::now();
            proxy.sync(&table).await?;
            times.push(began.elapsed());
        }
        times.sort();
        println!("{services} services, one endpoint: {:.1} ms", times[times.len() / 2].as_secs_f64() * 1e3);
        proxy.remove().await?;
    }
    Ok(())
}

fn entry(index: u32, change: u32) -> (Arc<str>, Arc<[Rule]>) {
    let [_, a, b, c] = index.to_be_bytes();
    let endpoints = (0..10).map(|host| SocketAddr::from(([10, b, c, host], 8000)));
    let mut endpoints: Vec<SocketAddr> = endpoints.collect();
    if let Some(last) = endpoints.last_mut() {
        last.set_port(8000 + u16::try_from(change).unwrap_or(0));
    }
    let name: Arc<str> = format!("shop/web-{index}").into();
    let address = SocketAddr::from(([10, 96 + a, b, c], 80));
    let rule = Rule { service: Arc::clone(&name), ..rule(address, Transport::Tcp, &endpoints) };
    (name, Arc::from([rule]))
}
