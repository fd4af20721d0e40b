//! What the proxies in the kernel, and network policies, cost: all of it anew, and a change of one endpoint or pod, beside 10, 1,000 and
//! 10,000 others. Services have ten endpoints each. It changes the network of the namespace that it runs in:
//! `unshare -n cargo run --release -p knet --features testing --example proxy_figures -- nftables` (or `iptables`, `ipvs`, `policy`).

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use knet::{
    ServiceProxy, Transport,
    policy::{Compiler, PodFacts, PolicyEnforcer, PolicyFacts, nftables::NftablesPolicies},
    proxy::{iptables::IptablesProxy, ipvs::IpvsProxy, nftables::NftablesProxy},
    rules::{Rule, Table},
    testing::rule,
};
use tokio::time::Instant;

const CHANGES: u32 = 20;
/// How long it waits between changes.
const PAUSE: Duration = Duration::from_millis(200);
const SIZES: [u32; 3] = [10, 1_000, 10_000];

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_else(|| "nftables".to_owned());
    let sizes: Vec<u32> = arguments.filter_map(|size| size.parse().ok()).collect();
    let sizes = if sizes.is_empty() { SIZES.to_vec() } else { sizes };
    for size in sizes {
        match what.as_str() {
            "iptables" => {
                let proxy = IptablesProxy::default();
                measure(&proxy, size).await?;
                proxy.remove().await?;
            }
            "ipvs" => {
                let proxy = IpvsProxy::default();
                measure(&proxy, size).await?;
                proxy.remove().await?;
            }
            "policy" => policies(size).await?,
            _ => {
                let proxy = NftablesProxy::default();
                measure(&proxy, size).await?;
                proxy.remove().await?;
            }
        }
    }
    Ok(())
}

fn tell(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("{what}: {:.1} ms", times[times.len() / 2].as_secs_f64() * 1e3);
}

async fn measure(proxy: &dyn ServiceProxy, services: u32) -> Result<(), Failure> {
    let mut table =
        Table { services: (0..services).map(|index| entry(index, 0)).collect::<BTreeMap<_, _>>() };
    let began = Instant::now();
    proxy.sync(&table).await?;
    tell(&format!("{services} services, all"), vec![began.elapsed()]);
    // The kernel is not done with a change when it holds: what was deleted goes a little later.
    for (pause, what) in [(Duration::ZERO, ", one right after the other"), (PAUSE, "")] {
        let mut times = Vec::new();
        for change in 1..=CHANGES {
            tokio::time::sleep(pause).await;
            let (name, rules) = entry(services / 2, change);
            table.services.insert(name, rules);
            let began = Instant::now();
            proxy.sync(&table).await?;
            times.push(began.elapsed());
        }
        tell(&format!("{services} services, one endpoint{what}"), times);
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

/// Every pod of the cluster may be asked by every pod with a label, which all have; one goes, and comes back.
async fn policies(pods: u32) -> Result<(), Failure> {
    let (mut compiler, enforcer) = (Compiler::new(None), NftablesPolicies::default());
    let policy = serde_json::json!({"metadata": {}, "spec": {"podSelector": {}, "ingress": [
        {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 80}]}]}});
    compiler.set_policy(("shop".into(), "web".into()), PolicyFacts::of(&serde_json::from_value(policy)?));
    let pod = |index: u32| {
        let [_, a, b, c] = index.to_be_bytes();
        let facts = PodFacts {
            labels: [("app".to_owned(), "web".to_owned())].into(),
            addresses: vec![[10, a, b, c].into()],
            ..PodFacts::default()
        };
        ((Arc::from("shop"), Arc::from(format!("web-{index}"))), facts)
    };
    for index in 0..pods {
        let (name, facts) = pod(index);
        compiler.set_pod(name, Some(facts));
    }
    let began = Instant::now();
    enforcer.enforce(compiler.table(), compiler.change()).await?;
    tell(&format!("{pods} pods, all"), vec![began.elapsed()]);
    compiler.settle();
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let (name, facts) = pod(pods / 2);
        let began = Instant::now();
        compiler.set_pod(name, (change % 2 == 1).then_some(facts));
        enforcer.enforce(compiler.table(), compiler.change()).await?;
        times.push(began.elapsed());
        compiler.settle();
    }
    tell(&format!("{pods} pods, one of them"), times);
    enforcer.remove().await?;
    Ok(())
}
