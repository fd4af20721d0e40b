//! Images for tests: archives, also such as no honest tool writes, and OCI layouts.

use std::{io, path::Path};

use serde_json::{Value, json};

use crate::images::{Digest, Platform};

/// Where the statically linked `busybox` of Debian's `busybox-static` is.
pub const BUSYBOX: &str = "/usr/bin/busybox";

/// A tar archive that is being written. Names are taken as they are.
#[derive(Clone, Debug, Default)]
pub struct Tar(Vec<u8>);

impl Tar {
    /// An entry of any kind, by its letter: `0` file, `1` hard link, `2` symbolic link, `3` character device, `5` directory.
    #[must_use]
    pub fn entry(mut self, kind: u8, name: &str, link: &str, mode: u32, contents: &[u8]) -> Self {
        let mut block = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &name.as_bytes()[..name.len().min(100)]);
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{:011o}", contents.len()).as_bytes());
        put(136, b"00000000001");
        put(156, &[kind]);
        put(157, &link.as_bytes()[..link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, if kind == b'3' { b"0000001" } else { b"0000000" });
        put(337, if kind == b'3' { b"0000003" } else { b"0000000" });
        put(148, b"        ");
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(contents);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// A file.
    #[must_use]
    pub fn file(self, name: &str, mode: u32, contents: &[u8]) -> Self {
        self.entry(b'0', name, "", mode, contents)
    }

    /// A directory.
    #[must_use]
    pub fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(b'5', name, "", mode, b"")
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(b'2', name, target, 0o777, b"")
    }

    /// Records for the next entry.
    #[must_use]
    pub fn records(self, records: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (name, value) in records {
            let rest = format!(" {name}={value}\n");
            let mut length = rest.len();
            while rest.len() + length.to_string().len() != length {
                length = rest.len() + length.to_string().len();
            }
            text.push_str(&format!("{length}{rest}"));
        }
        self.entry(b'x', "records", "", 0o644, text.as_bytes())
    }

    /// The archive, with its end.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// Writes an OCI layout with one image for this machine: `run` is its `config`, `layers` are archives, not compressed.
///
/// # Errors
/// When it can't be written.
pub fn write_layout(dir: &Path, name: &str, run: &Value, layers: &[Vec<u8>]) -> io::Result<()> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8], kind: &str| -> io::Result<Value> {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes)?;
        let media_type = format!("application/vnd.oci.image.{kind}");
        Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
    };
    let diffs: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let Platform { os, architecture, .. } = Platform::of_this_machine();
    let config = json!({"os": os, "architecture": architecture, "config": run,
        "rootfs": {"type": "layers", "diff_ids": diffs}});
    let config = put(config.to_string().as_bytes(), "config.v1+json")?;
    let layers: io::Result<Vec<_>> = layers.iter().map(|layer| put(layer, "layer.v1.tar")).collect();
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers?});
    let mut manifest = put(manifest.to_string().as_bytes(), "manifest.v1+json")?;
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(dir.join("index.json"), index.to_string())?;
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
}

/// Writes an OCI layout of an image that has nothing but busybox.
///
/// # Errors
/// When there is no [`BUSYBOX`], or the layout can't be written.
pub fn write_busybox(dir: &Path, name: &str, run: &Value) -> io::Result<()> {
    let program = std::fs::read(BUSYBOX)?;
    let mut layer = Tar::default().directory("bin/", 0o755).file("bin/busybox", 0o755, &program);
    let applets = [
        "sh", "echo", "sleep", "cat", "id", "ls", "true", "false", "touch", "head", "tail", "grep",
        "hostname", "nc", "wget", "httpd", "stat", "mount", "dd", "kill", "ps", "tr", "env", "pwd", "tty",
        "stty", "test", "seq", "mkdir", "chmod", "ulimit", "wc", "sysctl", "readlink", "tar",
    ];
    for applet in applets {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    let layer = layer
        .directory("etc/", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
        .directory("tmp/", 0o1777)
        .directory("root/", 0o700);
    write_layout(dir, name, run, &[layer.finish()])
}
