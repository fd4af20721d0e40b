//! Parts of 127.0.0.0/8, one for each cluster on the machine.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rand::Rng;

/// How many addresses one block has.
pub const BLOCK_SIZE: u32 = 1 << 14;
/// The first block that is handed out. Those before are left to the machine: 127.0.0.1, 127.0.1.1 and 127.0.0.53 are.
const FIRST: u32 = 4;
const BLOCKS: u32 = (1 << 24) / BLOCK_SIZE;

/// A /18 of the loopback network that no other cluster of this machine uses.
///
/// Every address of 127.0.0.0/8 can be bound without asking anybody, so clusters agree by lock files: one for each
/// block, in a directory that all users share, locked (`flock`) as long as the value lives. A process that dies loses its
/// locks. The first 4096 addresses are for Services, the rest for pods.
#[derive(Debug)]
pub struct LoopbackBlock {
    base: Ipv4Addr,
    _lock: File,
}

impl LoopbackBlock {
    /// Claims a free block, by lock files in the system's directory for temporary files.
    ///
    /// # Errors
    /// When the lock files can't be made, or all blocks are taken.
    pub fn claim() -> io::Result<Self> {
        Self::claim_in(&std::env::temp_dir().join("kplane-loopback"))
    }

    /// Claims a free block, by lock files in `dir`.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    pub fn claim_in(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        // Other users lock here too; only the owner can, or needs to, change the mode.
        let _ = std::fs::set_permissions(dir, PermissionsExt::from_mode(0o1777));
        let start = rand::rng().random_range(FIRST..BLOCKS);
        for block in (start..BLOCKS).chain(FIRST..start) {
            let base = Ipv4Addr::from_bits(0x7f00_0000 + block * BLOCK_SIZE);
            let path: PathBuf = dir.join(format!("{base}.lock"));
            let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o666).open(&path);
            let Ok(file) = file.or_else(|_| File::open(&path)) else { continue };
            match file.try_lock() {
                Ok(()) => return Ok(Self { base, _lock: file }),
                Err(std::fs::TryLockError::WouldBlock) => {}
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, "every block of loopback addresses is in use"))
    }

    /// The range for cluster IPs, as text: a /20.
    #[must_use]
    pub fn services(&self) -> String {
        format!("{}/20", self.base)
    }

    /// The ranges for pods: the rest of the block, as two ranges.
    #[must_use]
    pub fn pods(&self) -> [String; 2] {
        [format!("{}/20", self.nth(4096)), format!("{}/19", self.nth(8192))]
    }

    /// The address at `offset` in the block.
    #[must_use]
    pub fn nth(&self, offset: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(self.base.to_bits() + offset % BLOCK_SIZE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_claimed_once_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let claims: Vec<_> = (FIRST..BLOCKS).map(|_| LoopbackBlock::claim_in(dir.path()).unwrap()).collect();
        let mut bases: Vec<_> = claims.iter().map(|claim| claim.base).collect();
        bases.sort_unstable();
        bases.dedup();
        assert_eq!(bases.len(), claims.len());
        assert!(LoopbackBlock::claim_in(dir.path()).is_err());
        drop(claims);
        assert!(LoopbackBlock::claim_in(dir.path()).is_ok());
    }
}
