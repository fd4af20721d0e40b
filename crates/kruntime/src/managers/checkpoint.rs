//! What is given, in files that outlive the agent: upstream's names, fields and checksums, so that a kubelet finds what this agent gave,
//! and the other way round.
//!
//! The checksum is FNV-1a (32 bits) of the content as `k8s.io/utils/dump.ForHash` writes it: Go's types by their names, maps in the order of
//! their keys, pointers as `<*>`.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    CpuSet, ManagersError,
    cpu::CpuState,
    memory::{Block, MemoryState, NodeState},
};

pub(super) const CPU: &str = "cpu_manager_state";
pub(super) const MEMORY: &str = "memory_manager_state";
/// The largest file that is read, in bytes.
const BYTES_MAX: u64 = 64 * 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CpuFile {
    policy_name: String,
    default_cpu_set: CpuSet,
    #[serde(default)]
    entries: BTreeMap<String, BTreeMap<String, CpuSet>>,
    #[serde(default)]
    checksum: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MemoryFile {
    policy_name: String,
    machine_state: BTreeMap<u32, NodeState>,
    #[serde(default)]
    entries: BTreeMap<String, BTreeMap<String, Vec<Block>>>,
    #[serde(default)]
    checksum: u64,
}

/// A state with the name of the policy that made it.
pub(super) trait Checkpoint: Serialize + DeserializeOwned {
    const NAME: &'static str;
    type State: Default;
    fn of(policy: String, state: &Self::State) -> Self;
    fn policy(&self) -> &str;
    /// The content as Go writes it for a checksum.
    fn dump(&self) -> String;
    fn checksum(&mut self) -> &mut u64;
    fn state(self) -> Self::State;
}

impl Checkpoint for CpuFile {
    const NAME: &'static str = CPU;
    type State = CpuState;

    fn of(policy_name: String, state: &CpuState) -> Self {
        let (default_cpu_set, entries) = (state.shared.clone(), state.given.clone());
        Self { policy_name, default_cpu_set, entries, checksum: 0 }
    }

    fn dump(&self) -> String {
        let entries = dump_map(&self.entries, |containers| dump_map(containers, CpuSet::to_string));
        format!(
            "(*state.CPUManagerCheckpoint){{PolicyName:(string){} DefaultCPUSet:(string){} \
             Entries:(map[string]map[string]string){entries} Checksum:(checksum.Checksum)0}}",
            self.policy_name, self.default_cpu_set
        )
    }

    fn checksum(&mut self) -> &mut u64 {
        &mut self.checksum
    }

    fn policy(&self) -> &str {
        &self.policy_name
    }

    fn state(self) -> CpuState {
        CpuState { shared: self.default_cpu_set, given: self.entries }
    }
}

impl Checkpoint for MemoryFile {
    const NAME: &'static str = MEMORY;
    type State = MemoryState;

    fn of(policy_name: String, state: &MemoryState) -> Self {
        let (machine_state, entries) = (state.nodes.clone(), state.given.clone());
        Self { policy_name, machine_state, entries, checksum: 0 }
    }

    fn dump(&self) -> String {
        let nodes = dump_map(&self.machine_state, NodeState::dump);
        let blocks = |blocks: &Vec<Block>| dump_list(blocks.iter().map(Block::dump));
        let entries = dump_map(&self.entries, |containers| dump_map(containers, blocks));
        format!(
            "(*state.MemoryManagerCheckpoint){{PolicyName:(string){} MachineState:(state.NUMANodeMap){nodes} \
             Entries:(state.ContainerMemoryAssignments){entries} Checksum:(checksum.Checksum)0}}",
            self.policy_name
        )
    }

    fn checksum(&mut self) -> &mut u64 {
        &mut self.checksum
    }

    fn policy(&self) -> &str {
        &self.policy_name
    }

    fn state(self) -> MemoryState {
        MemoryState { nodes: self.machine_state, given: self.entries }
    }
}

/// A map as Go writes it.
pub(super) fn dump_map<K: std::fmt::Display, V>(
    map: &BTreeMap<K, V>,
    value: impl Fn(&V) -> String,
) -> String {
    let entries: Vec<String> = map.iter().map(|(key, found)| format!("{key}:{}", value(found))).collect();
    format!("map[{}]", entries.join(" "))
}

/// A slice as Go writes it.
pub(super) fn dump_list(list: impl Iterator<Item = String>) -> String {
    format!("[{}]", list.collect::<Vec<_>>().join(" "))
}

/// FNV-1a, 32 bits.
fn fnv(text: &str) -> u64 {
    const BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    text.bytes().fold(BASIS, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME)).into()
}

/// What was kept by a policy of this name; nothing when there is no file.
///
/// # Errors
/// A file that can't be read, is not as it was written, or is of another policy: then pods would keep what nobody knows of any more. A file
/// without a checksum is taken, as upstream does.
pub(super) fn load<C: Checkpoint>(dir: Option<&Path>, policy: &str) -> Result<C::State, ManagersError> {
    let Some(path) = dir.map(|dir| dir.join(C::NAME)) else { return Ok(C::State::default()) };
    let failed = |why: String| ManagersError::Checkpoint { path: path.clone(), why };
    match fs::metadata(&path) {
        Ok(meta) if meta.len() > BYTES_MAX => return Err(failed("it is too large".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(C::State::default()),
        _ => {}
    }
    let bytes = fs::read(&path).map_err(|error| failed(error.to_string()))?;
    let mut file: C = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
    let checksum = std::mem::take(file.checksum());
    if checksum != 0 && checksum != fnv(&file.dump()) {
        return Err(failed("checkpoint is corrupted".to_owned()));
    }
    if file.policy() != policy {
        let other = file.policy();
        return Err(failed(format!(
            "configured policy {policy:?} differs from state checkpoint policy {other:?}"
        )));
    }
    Ok(file.state())
}

/// Keeps it, as a whole or not at all.
pub(super) fn keep<C: Checkpoint>(dir: Option<&Path>, policy: String, state: &C::State) -> io::Result<()> {
    let Some(dir) = dir else { return Ok(()) };
    fs::create_dir_all(dir)?;
    let new = tempfile::NamedTempFile::new_in(dir)?;
    let mut file = C::of(policy, state);
    *file.checksum() = fnv(&file.dump());
    fs::write(new.path(), serde_json::to_vec(&file)?)?;
    new.persist(dir.join(C::NAME)).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read<C: Checkpoint>(content: &serde_json::Value, policy: &str) -> Result<C::State, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(C::NAME), content.to_string()).unwrap();
        load::<C>(Some(dir.path()), policy).map_err(|error| error.to_string())
    }

    /// The cases of upstream's `TestCheckpointStateRestore` for both managers, with their checksums.
    #[test]
    fn upstreams_files_are_read() {
        let cpu = |policy: &str, shared: &str, entries: serde_json::Value, checksum: u64| {
            let file = json!({"policyName": policy, "defaultCpuSet": shared, "entries": entries, "checksum": checksum});
            read::<CpuFile>(&file, "none")
        };
        let entries = || json!({"pod": {"container1": "4-6", "container2": "1-3"}});
        assert_eq!(cpu("none", "4-6", json!({}), 354_655_845).unwrap().shared, "4-6".parse().unwrap());
        let state = cpu("none", "1-3", entries(), 3_610_638_499).unwrap();
        assert_eq!(state.of("pod", "container1"), Some(&"4-6".parse().unwrap()));
        for (policy, checksum, why) in [
            ("none", 1337, "checkpoint is corrupted"),
            (
                "other",
                1_394_507_217,
                "configured policy \"none\" differs from state checkpoint policy \"other\"",
            ),
        ] {
            let error = cpu(policy, "1-3", json!({}), checksum).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        // As written before there were checksums.
        assert!(cpu("none", "1-3", entries(), 0).is_ok());

        let memory = |checksum: u64| {
            let table = json!({"total": 2048, "systemReserved": 512, "allocatable": 1536, "reserved": 512, "free": 1024});
            let node = json!({"numberOfAssignments": 0, "memoryMap": {"memory": table}, "cells": []});
            let block = json!({"numaAffinity": [0], "type": "memory", "size": 512});
            let file = json!({"policyName": "static", "machineState": {"0": node},
                "entries": {"pod": {"container1": [block]}}, "checksum": checksum});
            read::<MemoryFile>(&file, "static")
        };
        assert_eq!(memory(4_215_593_881).unwrap().of("pod", "container1").unwrap()[0].size, 512);
        assert!(memory(101_010).unwrap_err().contains("checkpoint is corrupted"));
    }

    #[test]
    fn what_is_written_is_read_and_has_upstreams_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [("container1", "4-6"), ("container2", "1-3")];
        let entries = entries.map(|(name, cpus)| (name.to_owned(), cpus.parse().unwrap())).into();
        let state = CpuState { shared: "1-3".parse().unwrap(), given: [("pod".to_owned(), entries)].into() };
        keep::<CpuFile>(Some(dir.path()), "none".to_owned(), &state).unwrap();
        let text = fs::read_to_string(dir.path().join(CPU)).unwrap();
        let written: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(written["checksum"], 3_610_638_499_u64);
        assert_eq!(load::<CpuFile>(Some(dir.path()), "none").unwrap(), state);
    }
}
