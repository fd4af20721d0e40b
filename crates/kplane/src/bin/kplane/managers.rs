//! Settings of a node's CPU, memory and topology managers, by the names of upstream's kubelet.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kruntime::managers::{
    CpuManagerPolicy, CpuOptions, CpuSet, ManagerOptions, MemoryManagerPolicy, TopologyPolicy, TopologyScope,
};

use crate::pair;

#[derive(clap::Args)]
pub(crate) struct ManagerArguments {
    /// What is kept for the system, such as cpu=500m,memory=1Gi.
    #[arg(long, value_delimiter = ',', value_parser = pair)]
    system_reserved: Vec<(String, String)>,
    /// What is kept for Kubernetes' own parts, in the same way; both add up.
    #[arg(long, value_delimiter = ',', value_parser = pair)]
    kube_reserved: Vec<(String, String)>,
    /// The processors that are reserved, such as 0-1,8; then they count for what is reserved of them.
    #[arg(long)]
    reserved_cpus: Option<CpuSet>,
    /// Who gets processors alone: `none` or `static`.
    #[arg(long, default_value = "none", value_parser = ["none", "static"])]
    cpu_manager_policy: String,
    /// Options of the static policy, such as full-pcpus-only=true.
    #[arg(long, value_delimiter = ',', value_parser = pair)]
    cpu_manager_policy_options: Vec<(String, String)>,
    /// How often containers are told which processors they share, in seconds.
    #[arg(long, value_name = "SECONDS")]
    cpu_manager_reconcile_period: Option<u64>,
    /// Whose memory is of certain NUMA nodes: `None` or `Static`.
    #[arg(long, default_value = "None", value_parser = ["None", "Static"])]
    memory_manager_policy: String,
    /// What is reserved on a NUMA node, such as 0:memory=1Gi,hugepages-1Gi=2Gi; may be repeated.
    #[arg(long, value_name = "NODE:RESOURCE=AMOUNT,...", value_delimiter = ';', value_parser = of_node)]
    reserved_memory: Vec<(u32, BTreeMap<String, u64>)>,
    /// How near to each other what a container gets must be: `none`, `best-effort`, `restricted` or `single-numa-node`.
    #[arg(long, default_value = "none")]
    topology_manager_policy: TopologyPolicy,
    /// What is kept together: a `container` or a `pod`.
    #[arg(long, default_value = "container")]
    topology_manager_scope: TopologyScope,
    /// Options of the topology manager, such as prefer-closest-numa-nodes=true.
    #[arg(long, value_delimiter = ',', value_parser = pair)]
    topology_manager_policy_options: Vec<(String, String)>,
}

fn of_node(text: &str) -> Result<(u32, BTreeMap<String, u64>), String> {
    let (node, list) = text.split_once(':').ok_or("there is no NODE:")?;
    let node = node.parse().map_err(|_| format!("{node:?} is no number of a NUMA node"))?;
    let mut found = BTreeMap::new();
    for one in list.split(',') {
        let (name, amount) = pair(one)?;
        let bytes =
            kcore::Quantity::parse(&amount).ok().and_then(|amount| u64::try_from(amount.value()).ok());
        let bytes = bytes.ok_or_else(|| format!("{amount:?} is no amount of {name}"))?;
        if found.insert(name.clone(), bytes).is_some() {
            return Err(format!("{name} is there twice"));
        }
    }
    Ok((node, found))
}

fn texts(list: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    list.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}

impl ManagerArguments {
    /// What is reserved, and the settings of the managers where there are any.
    pub(crate) fn options(&self) -> Result<(BTreeMap<String, Quantity>, Option<ManagerOptions>)> {
        let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
        for (name, text) in self.system_reserved.iter().chain(&self.kube_reserved) {
            if !["cpu", "memory", "ephemeral-storage", "pid"].contains(&name.as_str())
                && !name.starts_with("hugepages-")
            {
                bail!("cannot reserve {name:?} resource");
            }
            let amount = kcore::Quantity::parse(text).with_context(|| format!("{name}={text}"))?;
            let amount = if name == "cpu" { amount.milli() } else { amount.value() };
            if amount < 0 {
                bail!("resource quantity for {name:?} cannot be negative: {text}");
            }
            *sums.entry(name).or_default() += amount;
        }
        if let Some(cpus) = &self.reserved_cpus {
            sums.insert("cpu", i64::try_from(cpus.len())? * 1000);
        }
        let quantity =
            |name: &str, amount: i64| if name == "cpu" { format!("{amount}m") } else { amount.to_string() };
        let reserved =
            sums.into_iter().map(|(name, amount)| (name.to_owned(), Quantity(quantity(name, amount))));
        let reserved = reserved.collect();

        let mut options = ManagerOptions::default();
        if self.cpu_manager_policy == "static" {
            options.cpu =
                CpuManagerPolicy::Static(CpuOptions::parse(texts(&self.cpu_manager_policy_options))?);
        } else if !self.cpu_manager_policy_options.is_empty() {
            bail!("None policy: received unsupported options");
        }
        options.reserved_cpus.clone_from(&self.reserved_cpus);
        if let Some(seconds) = self.cpu_manager_reconcile_period {
            options.reconcile_every = Duration::from_secs(seconds.max(1));
        }
        if self.memory_manager_policy == "Static" {
            let mut by_node: BTreeMap<u32, BTreeMap<String, u64>> = BTreeMap::new();
            for (node, list) in &self.reserved_memory {
                if by_node.insert(*node, list.clone()).is_some() {
                    bail!("NUMA node {node} is there twice in --reserved-memory");
                }
            }
            options.memory = MemoryManagerPolicy::Static { reserved: by_node };
        } else if !self.reserved_memory.is_empty() {
            bail!("--reserved-memory is for --memory-manager-policy Static");
        }
        options.topology = self.topology_manager_policy;
        options.scope = self.topology_manager_scope;
        options.set_topology_options(texts(&self.topology_manager_policy_options))?;
        let is_set = options.cpu != CpuManagerPolicy::None
            || options.memory != MemoryManagerPolicy::None
            || options.topology != TopologyPolicy::None;
        Ok((reserved, is_set.then_some(options)))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Shell {
        #[command(flatten)]
        arguments: ManagerArguments,
    }

    fn options(line: &str) -> Result<(BTreeMap<String, Quantity>, Option<ManagerOptions>)> {
        Shell::try_parse_from(line.split_whitespace())?.arguments.options()
    }

    #[test]
    fn settings_have_upstreams_names() {
        let (reserved, managers) = options("kplane").unwrap();
        assert!(reserved.is_empty() && managers.is_none());
        let (reserved, managers) = options(
            "kplane --system-reserved cpu=500m,memory=1Gi --kube-reserved cpu=250m --cpu-manager-policy static \
             --cpu-manager-policy-options full-pcpus-only=true,distribute-cpus-across-numa=true \
             --cpu-manager-reconcile-period 5 --memory-manager-policy Static \
             --reserved-memory 0:memory=512Mi,hugepages-2Mi=4Mi;1:memory=512Mi \
             --topology-manager-policy single-numa-node --topology-manager-scope pod \
             --topology-manager-policy-options prefer-closest-numa-nodes=true",
        )
        .unwrap();
        let expected = [("cpu", "750m"), ("memory", "1073741824")];
        assert_eq!(
            reserved,
            expected.map(|(name, text)| (name.to_owned(), Quantity(text.to_owned()))).into()
        );
        let first = [("memory".to_owned(), 512 << 20), ("hugepages-2Mi".to_owned(), 4 << 20)].into();
        let second = [("memory".to_owned(), 512 << 20)].into();
        let cpu =
            CpuOptions { full_pcpus_only: true, distribute_cpus_across_numa: true, ..CpuOptions::default() };
        let expected = ManagerOptions {
            cpu: CpuManagerPolicy::Static(cpu),
            reconcile_every: Duration::from_secs(5),
            memory: MemoryManagerPolicy::Static { reserved: [(0, first), (1, second)].into() },
            topology: TopologyPolicy::SingleNumaNode,
            scope: TopologyScope::Pod,
            prefer_closest_numa_nodes: true,
            ..ManagerOptions::default()
        };
        assert_eq!(managers, Some(expected));
        let (reserved, managers) = options("kplane --reserved-cpus 0-1 --cpu-manager-policy static").unwrap();
        assert_eq!(reserved["cpu"].0, "2000m");
        assert_eq!(managers.unwrap().reserved_cpus, Some("0-1".parse().unwrap()));
        for line in [
            "--system-reserved gpu=1",
            "--system-reserved cpu=-1",
            "--cpu-manager-policy dynamic",
            "--cpu-manager-policy-options full-pcpus-only=true",
            "--reserved-memory 0:memory=1Gi",
            "--memory-manager-policy Static --reserved-memory 0:memory=1Gi;0:memory=1Gi",
            "--topology-manager-policy all",
            "--topology-manager-policy-options x=y",
        ] {
            assert!(options(&format!("kplane {line}")).is_err(), "{line}");
        }
    }
}
