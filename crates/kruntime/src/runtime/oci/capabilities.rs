//! Capabilities: what containers have by default, and what they ask for.

/// All that the kernel knows, by number (`include/uapi/linux/capability.h`).
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when it asks for nothing, as containerd's do.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// What this process has, a bit for each: it can't give more.
pub(super) fn own() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask =
        text.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    mask.unwrap_or(u64::MAX)
}

/// The lowest `oom_score_adj` that this process can give: its own, unless it has `SYS_RESOURCE`.
pub(super) fn oom_score_min(own: u64) -> i32 {
    const SYS_RESOURCE: u64 = 1 << 24;
    if own & SYS_RESOURCE != 0 {
        return -1000;
    }
    let text = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

fn bare(name: &str) -> String {
    let name = name.to_uppercase();
    name.strip_prefix("CAP_").map(str::to_owned).unwrap_or(name)
}

/// The container's capabilities, as `CAP_X`. `ALL` goes before single ones, on both sides.
///
/// # Errors
/// The name that isn't one.
pub(super) fn granted(
    privileged: bool,
    add: &[String],
    drop: &[String],
    own: u64,
) -> Result<Vec<String>, String> {
    let known = ALL.iter().enumerate().filter(|(number, _)| own & (1 << number) != 0).map(|(_, name)| *name);
    let (add, drop): (Vec<_>, Vec<_>) =
        (add.iter().map(|n| bare(n)).collect(), drop.iter().map(|n| bare(n)).collect());
    if let Some(unknown) = add.iter().find(|name| *name != "ALL" && !ALL.contains(&name.as_str())) {
        return Err(format!("unknown capability \"CAP_{unknown}\""));
    }
    let has = |list: &[String], name: &str| list.iter().any(|other| other == name);
    let grants = |name: &str| {
        if privileged || has(&add, name) {
            return !has(&drop, name) || privileged;
        }
        let base = has(&add, "ALL") || (DEFAULT.contains(&name) && !has(&drop, "ALL"));
        base && !has(&drop, name)
    };
    Ok(known.filter(|name| grants(name)).map(|name| format!("CAP_{name}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After containerd's `TestContainerCapabilities`.
    #[test]
    fn capabilities_are_added_and_dropped() {
        let check = |privileged, add: &[&str], drop: &[&str], has: &[&str], lacks: &[&str]| {
            let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
            let found = granted(privileged, &list(add), &list(drop), u64::MAX).unwrap();
            has.iter()
                .for_each(|name| assert!(found.contains(&format!("CAP_{name}")), "{add:?} {drop:?} {name}"));
            lacks
                .iter()
                .for_each(|name| assert!(!found.contains(&format!("CAP_{name}")), "{add:?} {drop:?} {name}"));
            found.len()
        };
        assert_eq!(check(false, &[], &[], &["CHOWN", "KILL"], &["SYS_ADMIN"]), DEFAULT.len());
        check(false, &["SYS_ADMIN", "cap_net_admin"], &["CHOWN"], &["SYS_ADMIN", "NET_ADMIN"], &["CHOWN"]);
        assert_eq!(check(false, &["ALL"], &[], &["SYS_ADMIN"], &[]), ALL.len());
        check(false, &["ALL"], &["CHOWN"], &["SYS_ADMIN"], &["CHOWN"]);
        assert_eq!(check(false, &["SYS_ADMIN"], &["ALL"], &["SYS_ADMIN"], &["CHOWN"]), 1);
        assert_eq!(check(true, &[], &["ALL"], &["SYS_ADMIN"], &[]), ALL.len());
        assert!(granted(false, &["NOPE".to_owned()], &[], u64::MAX).unwrap_err().contains("CAP_NOPE"));
        assert_eq!(granted(true, &[], &[], 0xff).unwrap().len(), 8);
    }
}
