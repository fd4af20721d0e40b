//! What has to be there before a container's program can be started.

use std::{
    collections::BTreeMap,
    ffi::CString,
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::{
    Mounting, Pod, Shared,
    allowed::{own_ids, user_map},
    file_name,
    launch::Isolation,
    mounts::MountPlan,
    tree::MARK,
};
use crate::{
    images::ImageConfig,
    runtime::{ContainerConfig, Mount, Propagation, RuntimeError},
};

/// What containers inherit of our environment, as they would get it from an image.
const INHERITED: [&str; 7] = ["PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR"];
/// Where programs are looked for when nobody says.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A container's program with all that is around it.
pub(super) struct Setup {
    pub(super) id: String,
    pub(super) program: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) working_dir: PathBuf,
    /// The directory of its logs.
    pub(super) dir: PathBuf,
    /// The file of its termination message.
    pub(super) message: PathBuf,
    pub(super) isolation: Isolation,
    pub(super) isolated: bool,
    /// The user and group to become; `None` also where a user namespace only calls us by another number.
    pub(super) user: Option<(u32, u32)>,
}

impl Setup {
    pub(super) fn new(shared: &Shared, pod: &Pod, config: &ContainerConfig) -> Result<Self, RuntimeError> {
        let wrong = |source| RuntimeError::Io { context: "preparing the container", source };
        let image = shared.options.images.config(&config.image);
        let program = command_line(config, image.as_ref())?;
        config.devices.without_cdi()?;
        if !config.images.is_empty() {
            return Err(RuntimeError::Unsupported("image volumes: processes have no images"));
        }
        if config.resources.cpuset_cpus.is_some() || config.resources.cpuset_mems.is_some() {
            let why =
                "processes can't be bound to processors or memory: the node's managers need another runtime";
            return Err(RuntimeError::Config(why.to_owned()));
        }
        let user = identity(shared, config)?;
        let id = new_id();
        let mut env = environment(config, image.as_ref(), &id);
        let dir = pod.dir.join(file_name(&config.name));
        std::fs::create_dir_all(&dir).map_err(wrong)?;
        let message = dir.join("termination-log");
        std::fs::write(&message, b"").map_err(wrong)?;
        let mounts = all_mounts(pod, config, &message);
        let unprivileged = shared.allowed.mounting == Mounting::Unprivileged;
        let isolated = shared.allowed.mounting != Mounting::None;
        let isolation = if isolated {
            let plan = MountPlan::new(&shared.base(), &mounts)?;
            let (inside_user, inside_group) = user.unwrap_or_else(own_ids);
            let hostname = CString::new(pod.config.hostname.as_str()).unwrap_or_default();
            let user = unprivileged.then(|| user_map(inside_user, inside_group));
            Isolation::New { mounts: Box::new(plan), user, hostname }
        } else {
            let root = link_volumes(&dir, &mounts).map_err(wrong)?;
            env.push(("KPLANE_ROOT".to_owned(), root.to_string_lossy().into_owned()));
            Isolation::None
        };
        let of_image = image.and_then(|image| image.working_dir);
        let working_dir = config.working_dir.clone().or(of_image).unwrap_or_else(|| PathBuf::from("/"));
        let user = user.filter(|_| !unprivileged);
        Ok(Self { id, program, env, working_dir, dir, message, isolation, isolated, user })
    }
}

/// The id of a start: 64 hexadecimal digits, as other runtimes have it.
fn new_id() -> String {
    let random: [u64; 4] = rand::random();
    random.iter().map(|part| format!("{part:016x}")).collect()
}

/// A signal by its name; SIGTERM when it isn't known.
pub(super) fn signal_number(name: Option<&str>) -> libc::c_int {
    match name.unwrap_or_default() {
        "SIGHUP" => libc::SIGHUP,
        "SIGINT" => libc::SIGINT,
        "SIGQUIT" => libc::SIGQUIT,
        "SIGKILL" => libc::SIGKILL,
        "SIGUSR1" => libc::SIGUSR1,
        "SIGUSR2" => libc::SIGUSR2,
        "SIGWINCH" => libc::SIGWINCH,
        _ => libc::SIGTERM,
    }
}

/// Puts command and arguments of container and image together, as the container's override the image's.
fn command_line(config: &ContainerConfig, image: Option<&ImageConfig>) -> Result<Vec<String>, RuntimeError> {
    if !config.command.is_empty() {
        return Ok([&config.command[..], &config.args].concat());
    }
    let Some(image) = image else {
        return Err(RuntimeError::Image(format!(
            "image {:?} is only a name to the process runtime: set the container's command, or make the image known",
            config.image
        )));
    };
    let arguments = if config.args.is_empty() { &image.command } else { &config.args };
    let line = [&image.entrypoint[..], arguments].concat();
    if line.is_empty() {
        return Err(RuntimeError::Create("no command specified".to_owned()));
    }
    Ok(line)
}

/// The whole environment. Later entries win.
fn environment(config: &ContainerConfig, image: Option<&ImageConfig>, id: &str) -> Vec<(String, String)> {
    let mut env = BTreeMap::from([("PATH".to_owned(), PATH_DEFAULT.to_owned())]);
    env.extend(INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?))));
    env.extend(image.into_iter().flat_map(|image| image.env.iter().cloned()));
    env.extend(config.env.iter().cloned());
    env.insert(MARK.to_owned(), id.to_owned());
    env.into_iter().filter(|(name, value)| !name.contains(['=', '\0']) && !value.contains('\0')).collect()
}

/// The user and group to become, checked against what the machine allows.
fn identity(shared: &Shared, config: &ContainerConfig) -> Result<Option<(u32, u32)>, RuntimeError> {
    let own = own_ids();
    let wanted = (config.run_as_user.unwrap_or(own.0), config.run_as_group.unwrap_or(own.1));
    if config.run_as_non_root && wanted.0 == 0 {
        return Err(RuntimeError::Config("container has runAsNonRoot and image will run as root".to_owned()));
    }
    if wanted == own {
        return Ok(None);
    }
    // In a user namespace we can be called by any number; as root we can be anybody.
    if own.0 == 0 || shared.allowed.mounting == Mounting::Unprivileged {
        return Ok(Some(wanted));
    }
    Err(RuntimeError::Config(format!(
        "this node can't run processes as user {} and group {}",
        wanted.0, wanted.1
    )))
}

/// The mounts of a container: its volumes, the pod's files and the place for its termination message.
fn all_mounts(pod: &Pod, config: &ContainerConfig, message: &Path) -> Vec<Mount> {
    let mut mounts = config.mounts.clone();
    // A device is a file like any other; what may be done with it is as for the user.
    mounts.extend(config.devices.nodes.iter().map(|device| Mount {
        source: device.host_path.clone(),
        target: device.container_path.clone(),
        read_only: false,
        propagation: Propagation::None,
    }));
    let mut file = |source: PathBuf, target: &str| {
        let target = PathBuf::from(target);
        if !mounts.iter().any(|mount| mount.target == target) {
            mounts.push(Mount { source, target, read_only: false, propagation: Propagation::None });
        }
    };
    if !pod.config.host_network {
        file(pod.dir.join("hosts"), "/etc/hosts");
        file(pod.dir.join("hostname"), "/etc/hostname");
    }
    if pod.config.resolv_conf.is_some() {
        file(pod.dir.join("resolv.conf"), "/etc/resolv.conf");
    }
    if let Some(path) = config.termination_message_path.as_ref().and_then(|path| path.to_str()) {
        file(message.to_owned(), path);
    }
    mounts
}

/// Without mount namespaces the volumes are found below a directory, by links.
fn link_volumes(dir: &Path, mounts: &[Mount]) -> io::Result<PathBuf> {
    let root = dir.join("root");
    match std::fs::remove_dir_all(&root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => std::fs::create_dir_all(&root)?,
    }
    for mount in mounts {
        let target = root.join(mount.target.strip_prefix("/").unwrap_or(&mount.target));
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        // Of two volumes one inside the other, the outer one is linked.
        let _ = symlink(&mount.source, &target);
    }
    Ok(root)
}
