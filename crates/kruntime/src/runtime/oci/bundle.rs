//! What has to be there before a container can be made: its root, and what the OCI runtime reads.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    Pod, Shared, capabilities, image_volumes, rootfs, seccomp,
    spec::{PATH_DEFAULT, Parts, given_device, host_devices, spec},
    users,
};
use crate::{
    images::{Digest, Image, Reference, Run},
    runtime::{ContainerConfig, Mount, PodUid, Propagation, RuntimeError, Seccomp},
};

pub(super) struct Bundle {
    pub(super) id: String,
    pub(super) cgroup: String,
    pub(super) image: Digest,
    /// The manifests of its image volumes.
    pub(super) volumes: Vec<Digest>,
    pub(super) image_id: String,
    pub(super) stop_signal: i32,
}

/// The id of a start: 64 hexadecimal digits, as other runtimes have it.
pub(super) fn new_id() -> String {
    let random: [u64; 4] = rand::random();
    random.iter().map(|part| format!("{part:016x}")).collect()
}

/// A signal by its name or number; SIGTERM when it isn't known.
fn signal_number(name: &str) -> i32 {
    const NAMES: [(&str, i32); 14] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("CONT", libc::SIGCONT),
        ("STOP", libc::SIGSTOP),
        ("WINCH", libc::SIGWINCH),
        ("PWR", libc::SIGPWR),
    ];
    let upper = name.to_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    let by_name = NAMES.iter().find(|(known, _)| *known == bare).map(|(_, number)| *number);
    by_name.or_else(|| bare.parse().ok().filter(|number| (1..=64).contains(number))).unwrap_or(libc::SIGTERM)
}

/// Puts command and arguments of container and image together, as the container's override the image's.
fn command_line(config: &ContainerConfig, run: &Run) -> Result<Vec<String>, RuntimeError> {
    let (entrypoint, command) =
        (run.entrypoint.as_deref().unwrap_or_default(), run.cmd.as_deref().unwrap_or_default());
    let line = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [&config.command[..], &config.args].concat(),
        (true, false) => [entrypoint, &config.args].concat(),
        (true, true) => [entrypoint, command].concat(),
    };
    if line.is_empty() { Err(RuntimeError::Create("no command specified".to_owned())) } else { Ok(line) }
}

/// The environment: the image's, then the container's. The order is kept, a later value of the same name wins.
fn environment(config: &ContainerConfig, run: &Run) -> Vec<(String, String)> {
    let of_image = run.env.iter().flatten().filter_map(|pair| pair.split_once('='));
    let of_image = of_image.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let all =
        [("PATH".to_owned(), PATH_DEFAULT.to_owned())].into_iter().chain(of_image).chain(config.env.clone());
    let (mut env, mut places) = (Vec::<(String, String)>::new(), BTreeMap::new());
    for (name, value) in all.filter(|(name, value)| !name.contains(['=', '\0']) && !value.contains('\0')) {
        let place = *places.entry(name.clone()).or_insert(env.len());
        match env.get_mut(place) {
            Some(known) => known.1 = value,
            None => env.push((name, value)),
        }
    }
    env
}

impl Bundle {
    /// Blocks: layers may have to be unpacked.
    pub(super) fn prepare(
        shared: &Shared,
        pod: &Pod,
        uid: &PodUid,
        config: &ContainerConfig,
        bundle: &Path,
    ) -> Result<Self, RuntimeError> {
        let wrong = || RuntimeError::io("preparing the container");
        let image = find_image(shared, config)?;
        let arguments = command_line(config, &image.run)?;
        let security = &config.security;
        let capabilities = capabilities::granted(
            security.privileged,
            &security.add_capabilities,
            &security.drop_capabilities,
            shared.own_capabilities,
        )
        .map_err(RuntimeError::Create)?;
        super::spec::check_apparmor(&security.apparmor, super::spec::has_apparmor())?;
        let seccomp = profile(shared, &security.seccomp, &capabilities)?;
        std::fs::create_dir_all(bundle).map_err(wrong())?;
        rootfs::make(&shared.options.images, &image, bundle, shared.overlay)
            .map_err(|error| RuntimeError::Create(error.to_string()))?;
        let made = Self::write(shared, pod, uid, config, bundle, &image, &arguments, &capabilities, seccomp);
        if made.is_err() {
            rootfs::remove(bundle);
        }
        made
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one document, used once")]
    fn write(
        shared: &Shared,
        pod: &Pod,
        uid: &PodUid,
        config: &ContainerConfig,
        bundle: &Path,
        image: &Image,
        arguments: &[String],
        capabilities: &[String],
        seccomp: Option<Value>,
    ) -> Result<Self, RuntimeError> {
        let wrong = || RuntimeError::io("preparing the container");
        let root = bundle.join("rootfs");
        let run = &image.run;
        let (passwd, groups) = (users::read(&root, "etc/passwd"), users::read(&root, "etc/group"));
        let user = users::resolve(config, run.user.as_deref().unwrap_or_default(), &passwd, &groups)?;
        let message = bundle.join("termination-log");
        std::fs::write(&message, b"").map_err(wrong())?;
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        std::fs::set_permissions(&message, open).map_err(wrong())?;
        let of_image = run.working_dir.as_ref().filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let id = new_id();
        let cgroup = shared.cgroups.path(&super::file_name(uid.as_str()), &id);
        let (of_images, volumes) = image_volumes::make(shared, config, bundle)?;
        let mut mounts = all_mounts(pod, config, &message);
        mounts.extend(of_images);
        let given = config.devices.nodes.iter().map(given_device);
        let given = given.collect::<Result<Vec<Value>, RuntimeError>>()?;
        let parts = Parts {
            config,
            sandbox: &pod.config,
            arguments,
            env: &environment(config, run),
            working_dir: &config.working_dir.clone().or(of_image).unwrap_or_else(|| PathBuf::from("/")),
            user: &user,
            capabilities,
            seccomp,
            mounts: &mounts,
            namespaces: &pod.dir.join("ns"),
            processes: pod.pause.as_ref().map(super::pause::Pause::namespace),
            oom_score_min: capabilities::oom_score_min(shared.own_capabilities),
            shared_memory: &pod.dir.join("shm"),
            cgroup: &cgroup,
            unified: shared.cgroups.is_unified(),
            devices: if config.security.privileged { host_devices() } else { given },
        };
        let mut document = spec(&parts);
        super::cdi::inject(&shared.options.cdi_dirs, &config.devices.cdi, &mut document)?;
        std::fs::write(bundle.join("config.json"), document.to_string()).map_err(wrong())?;
        let signal = config.stop_signal.as_deref().or(run.stop_signal.as_deref()).unwrap_or_default();
        shared.options.images.touch(&image.manifest);
        Ok(Self {
            id,
            cgroup,
            image: image.manifest.clone(),
            volumes,
            image_id: image_id(config, image),
            stop_signal: signal_number(signal),
        })
    }
}

/// The image as it can be asked for at its registry, whatever its tag means by then.
fn image_id(config: &ContainerConfig, image: &Image) -> String {
    let Ok(name) = config.image.parse::<Reference>() else { return image.id.to_string() };
    format!("{}/{}@{}", name.registry, name.repository, image.manifest)
}

fn find_image(shared: &Shared, config: &ContainerConfig) -> Result<Image, RuntimeError> {
    let name: Reference = config
        .image
        .parse()
        .map_err(|error| RuntimeError::ImageName { image: config.image.clone(), why: format!("{error}") })?;
    let missing =
        || RuntimeError::Image(format!("failed to get image from containerd \"{name}\": not found"));
    shared.options.images.find(&name).ok_or_else(missing)
}

fn profile(
    shared: &Shared,
    wanted: &Seccomp,
    capabilities: &[String],
) -> Result<Option<Value>, RuntimeError> {
    let name = match wanted {
        Seccomp::Unconfined => return Ok(None),
        Seccomp::RuntimeDefault => return Ok(Some(seccomp::runtime_default(capabilities))),
        Seccomp::Localhost(name) => name,
    };
    let wrong = |why: String| RuntimeError::Create(format!("cannot load seccomp profile {name:?}: {why}"));
    // Below the directory, whatever the pod says: users::read resolves inside of it.
    let dir =
        shared.options.seccomp_dir.as_ref().ok_or_else(|| wrong("this node has no profiles".to_owned()))?;
    let text = users::read(dir, name.trim_start_matches('/'));
    serde_json::from_str(&text).map(Some).map_err(|error| wrong(error.to_string()))
}

/// The container's volumes, the pod's files and the place for its termination message.
fn all_mounts(pod: &Pod, config: &ContainerConfig, message: &Path) -> Vec<Mount> {
    let mut mounts = config.mounts.clone();
    let is_image = |target: &Path| config.images.iter().any(|image| image.target == target);
    let mut file = |source: PathBuf, target: &Path, read_only: bool| {
        if !mounts.iter().any(|mount| mount.target == target) && !is_image(target) {
            mounts.push(Mount {
                source,
                target: target.to_owned(),
                read_only,
                propagation: Propagation::None,
            });
        }
    };
    for name in ["hosts", "hostname", "resolv.conf"] {
        let read_only = config.security.read_only_root;
        file(pod.dir.join(name), &Path::new("/etc").join(name), read_only);
    }
    if let Some(path) = &config.termination_message_path {
        file(message.to_owned(), path, false);
    }
    mounts
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of "Define a Command and Arguments for a Container" in Kubernetes' documentation.
    #[test]
    fn commands_and_arguments_override_the_images() {
        let list = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
        let run = Run { entrypoint: Some(list("/ep-1")), cmd: Some(list("foo bar")), ..Run::default() };
        let cases = [
            ("", "", "/ep-1 foo bar"),
            ("/ep-2", "", "/ep-2"),
            ("", "zoo boo", "/ep-1 zoo boo"),
            ("/ep-2", "zoo boo", "/ep-2 zoo boo"),
        ];
        for (command, args, expected) in cases {
            let config =
                ContainerConfig { command: list(command), args: list(args), ..ContainerConfig::default() };
            assert_eq!(command_line(&config, &run).unwrap(), list(expected), "{command} {args}");
        }
        assert!(command_line(&ContainerConfig::default(), &Run::default()).is_err());
    }

    #[test]
    fn the_pods_environment_goes_over_the_images() {
        let run = Run {
            env: Some(vec!["A=image".to_owned(), "B=x=y".to_owned(), "PATH=/p".to_owned()]),
            ..Run::default()
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let config = ContainerConfig {
            env: vec![pair("A", "1"), pair("A", "2"), pair("B\0", "")],
            ..ContainerConfig::default()
        };
        assert_eq!(environment(&config, &run), [pair("PATH", "/p"), pair("A", "2"), pair("B", "x=y")]);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let cases = [("SIGQUIT", 3), ("quit", 3), ("9", 9), ("", 15), ("SIGNOPE", 15), ("99", 15)];
        cases.iter().for_each(|(name, number)| assert_eq!(signal_number(name), *number, "{name}"));
    }
}
