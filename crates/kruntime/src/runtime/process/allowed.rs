//! What the machine lets an ordinary program do: found out by doing it.

use std::{ffi::CString, path::Path, process::Stdio};

use super::{
    launch::{Isolation, Launch, Launcher, UserMap},
    mounts::MountPlan,
};

/// How volumes come to be where containers want them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mounting {
    /// In a mount namespace, with the privilege that takes.
    Privileged,
    /// In a mount namespace in a user namespace.
    Unprivileged,
    /// Not at all: volumes are found below `$KPLANE_ROOT`.
    None,
}

#[derive(Clone, Debug)]
pub(super) struct Allowed {
    pub(super) mounting: Mounting,
    pub(super) rewrite: bool,
    pub(super) limitations: Vec<String>,
}

/// The identity that files are made with, and that a user namespace maps.
pub(super) fn own_ids() -> (u32, u32) {
    // SAFETY: these calls can't fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Maps `user` and `group` inside to our own outside.
pub(super) fn user_map(user: u32, group: u32) -> UserMap {
    let (own_user, own_group) = own_ids();
    UserMap {
        users: format!("{user} {own_user} 1").into_bytes(),
        groups: format!("{group} {own_group} 1").into_bytes(),
    }
}

fn rehearsal(isolation: Isolation, confine: bool) -> Launch {
    Launch {
        program: vec!["true".to_owned()],
        env: Vec::new(),
        dir: CString::from(c"/"),
        stdin: Stdio::null(),
        stdout: Stdio::null(),
        stderr: Stdio::null(),
        tty: false,
        isolation,
        confine,
        user: None,
        rehearse: true,
    }
}

impl Allowed {
    pub(super) fn find_out(base: &Path, rewrite: bool, mount: bool) -> Self {
        let mut limitations = Vec::new();
        let mounting = if mount { find_mounting(base, &mut limitations) } else { Mounting::None };
        let rewrite = rewrite
            && match Launcher::rehearse(rehearsal(Isolation::None, true)) {
                Ok(()) => true,
                Err(error) => {
                    limitations.push(format!(
                        "the kernel does not allow a network filter ({}): processes of different pods on one node \
                         can't listen on the same port, unless they bind the pod's address (status.podIP)",
                        error.source
                    ));
                    false
                }
            };
        Self { mounting, rewrite, limitations }
    }
}

fn find_mounting(base: &Path, limitations: &mut Vec<String>) -> Mounting {
    let (user, group) = own_ids();
    let attempt = |user_map: Option<UserMap>| {
        let mounts = MountPlan::new(base, &[]).map_err(|error| error.to_string())?;
        let isolation =
            Isolation::New { mounts: Box::new(mounts), user: user_map, hostname: CString::from(c"kplane") };
        Launcher::rehearse(rehearsal(isolation, false))
            .map_err(|error| format!("{}: {}", error.stage.unwrap_or("starting a process"), error.source))
    };
    if user == 0 && attempt(None).is_ok() {
        return Mounting::Privileged;
    }
    match attempt(Some(user_map(user, group))) {
        Ok(()) => Mounting::Unprivileged,
        Err(error) => {
            limitations.push(format!(
                "the kernel does not allow mount namespaces ({error}): volumes are not at their mountPath but below \
                 the directory in $KPLANE_ROOT, and host names and /etc/resolv.conf are the machine's"
            ));
            Mounting::None
        }
    }
}
