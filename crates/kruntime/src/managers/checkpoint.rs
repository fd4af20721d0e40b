//! What is given, in files that outlive the agent: upstream's names and fields, but no checksum, which is of Go's own making.

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
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MemoryFile {
    policy_name: String,
    machine_state: BTreeMap<u32, NodeState>,
    #[serde(default)]
    entries: BTreeMap<String, BTreeMap<String, Vec<Block>>>,
}

/// A state with the name of the policy that made it.
pub(super) trait Checkpoint: Serialize + DeserializeOwned {
    const NAME: &'static str;
    type State: Default;
    fn of(policy: String, state: &Self::State) -> Self;
    fn policy(&self) -> &str;
    fn state(self) -> Self::State;
}

impl Checkpoint for CpuFile {
    const NAME: &'static str = CPU;
    type State = CpuState;

    fn of(policy_name: String, state: &CpuState) -> Self {
        Self { policy_name, default_cpu_set: state.shared.clone(), entries: state.given.clone() }
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
        Self { policy_name, machine_state: state.nodes.clone(), entries: state.given.clone() }
    }

    fn policy(&self) -> &str {
        &self.policy_name
    }

    fn state(self) -> MemoryState {
        MemoryState { nodes: self.machine_state, given: self.entries }
    }
}

/// What was kept by a policy of this name; nothing when there is no file.
///
/// # Errors
/// A file that can't be read, or is of another policy: then pods would keep what nobody knows of any more.
pub(super) fn load<C: Checkpoint>(dir: Option<&Path>, policy: &str) -> Result<C::State, ManagersError> {
    let Some(path) = dir.map(|dir| dir.join(C::NAME)) else { return Ok(C::State::default()) };
    let failed = |why: String| ManagersError::Checkpoint { path: path.clone(), why };
    match fs::metadata(&path) {
        Ok(meta) if meta.len() > BYTES_MAX => return Err(failed("it is too large".to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(C::State::default()),
        _ => {}
    }
    let bytes = fs::read(&path).map_err(|error| failed(error.to_string()))?;
    let file: C = serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
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
    fs::write(new.path(), serde_json::to_vec(&C::of(policy, state))?)?;
    new.persist(dir.join(C::NAME)).map_err(|error| error.error)?;
    Ok(())
}
