//! The first process of a pod whose containers see each other's processes (`shareProcessNamespace`): it does nothing, and what others
//! leave behind ends with it as its parent.
//!
//! Such a process needs a program that runs in an empty root. There is none to be found on every machine, so it is made
//! here: two calls of the kernel, in a file of 196 bytes.

use std::{io, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Shared,
    engine::Engine,
    holder::{self, Held, Process, Standard},
};
use crate::runtime::{RuntimeError, SandboxConfig};

/// Where the program is in memory, and the size of the headers before it.
const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 0x78;

/// `rt_sigaction(SIGCHLD, {SIG_IGN}, NULL, 8)`, so that the kernel waits for its children; then `pause()` for ever.
const CODE: [u8; 44] = [
    0xb8, 13, 0, 0, 0, // mov eax, rt_sigaction
    0xbf, 17, 0, 0, 0, // mov edi, SIGCHLD
    0xbe, 0xa4, 0, 0x40, 0, // mov esi, the action: behind the code
    0x31, 0xd2, // xor edx, edx
    0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8
    0x0f, 0x05, // syscall
    0xb8, 34, 0, 0, 0, // mov eax, pause
    0x0f, 0x05, // syscall
    0xeb, 0xf7, // jmp to the last mov
    0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90,
];
/// `SIG_IGN`, without flags, restorer and mask.
const ACTION: [u64; 4] = [1, 0, 0, 0];

/// It is killed after its pod (upstream's `PodInfraOOMAdj`).
const OOM_SCORE: i32 = -998;

/// The program as an ELF file for x86-64.
fn program() -> Vec<u8> {
    let size = HEADERS + (CODE.len() + 8 * ACTION.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let mut number = |value: u64, bytes: usize| file.extend_from_slice(&value.to_le_bytes()[..bytes]);
    // An executable of the machine 62, with one program header of 56 bytes behind this one of 64.
    [(2, 2), (62, 2), (1, 4), (BASE + HEADERS, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (1, 2), (0, 6)]
        .iter()
        .for_each(|(value, bytes)| number(*value, *bytes));
    // To be loaded, readable and executable, the whole file.
    [(1, 4), (5, 4), (0, 8), (BASE, 8), (BASE, 8), (size, 8), (size, 8), (0x1000, 8)]
        .iter()
        .for_each(|(value, bytes)| number(*value, *bytes));
    file.extend_from_slice(&CODE);
    ACTION.iter().for_each(|word| file.extend_from_slice(&word.to_le_bytes()));
    file
}

/// The process that has a pod's process namespace.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Pause {
    id: String,
    container: Process,
    holder: Process,
}

impl Pause {
    /// The namespace, as long as the process is there.
    pub(super) fn namespace(&self) -> String {
        format!("/proc/{}/ns/pid", self.container.pid)
    }

    /// Makes it, in `dir` of the pod.
    pub(super) async fn start(
        shared: &Shared,
        dir: &Path,
        config: &SandboxConfig,
    ) -> Result<Self, RuntimeError> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(RuntimeError::Unsupported("shareProcessNamespace on this architecture"));
        }
        let bundle = dir.join("pause");
        let id = super::bundle::new_id();
        let pod = dir.file_name().unwrap_or_default().to_string_lossy();
        let cgroup = shared.cgroups.path(&pod, &id);
        let oom_score = OOM_SCORE.max(super::capabilities::oom_score_min(shared.own_capabilities));
        write(&bundle, config, dir, &cgroup, oom_score)
            .map_err(RuntimeError::io("making the pod's first process"))?;
        let standard = Standard { input: Stdio::null(), output: Stdio::null(), errors: Stdio::null() };
        let engine = shared.engine(&config.runtime_handler);
        let held = holder::create(engine, &bundle, &id, None, standard).await;
        let Held { mut child, holder, container } = held.map_err(RuntimeError::Create)?;
        tokio::spawn(async move { child.wait().await });
        let pause = Self { id, container, holder };
        if let Err(error) = engine.run(None, &["start", &pause.id]).await {
            pause.end(engine);
            return Err(RuntimeError::Create(error));
        }
        Ok(pause)
    }

    /// Ends it with all that is left in its namespace. Blocks.
    pub(super) fn end(&self, engine: &Engine) {
        self.container.kill();
        self.holder.kill();
        engine.delete_now(&self.id);
    }
}

fn write(bundle: &Path, config: &SandboxConfig, dir: &Path, cgroup: &str, oom_score: i32) -> io::Result<()> {
    let root = bundle.join("rootfs");
    std::fs::create_dir_all(&root)?;
    std::fs::write(root.join("pause"), program())?;
    std::fs::set_permissions(root.join("pause"), PermissionsExt::from_mode(0o755))?;
    let mut namespaces = vec![json!({"type": "pid"}), json!({"type": "mount"})];
    if !config.host_network {
        namespaces.push(json!({"type": "network", "path": dir.join("ns/net")}));
    }
    let spec = json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 65535, "gid": 65535}, "args": ["/pause"], "cwd": "/", "noNewPrivileges": true,
            "oomScoreAdj": oom_score},
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        ],
        "linux": {"cgroupsPath": cgroup, "namespaces": namespaces, "resources": {"devices": [{"allow": false, "access": "rwm"}]}},
    });
    std::fs::write(bundle.join("config.json"), spec.to_string())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_is_as_long_as_its_headers_say() {
        let program = super::program();
        assert_eq!(program.len(), 196);
        assert_eq!(program[0x60..0x68], 196_u64.to_le_bytes());
    }
}
