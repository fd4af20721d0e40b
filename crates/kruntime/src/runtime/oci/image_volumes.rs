//! Images that a container sees as files (KEP-4639): their layers over each other, bound read-only.

use std::{
    fs::create_dir_all,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use super::{Shared, rootfs};
use crate::{
    images::{Digest, Reference},
    runtime::{ContainerConfig, ImageMount, Mount, Propagation, RuntimeError},
};

/// The images' roots, as mounts for the container, and what they are made of. Each image is there once, in a directory of its own in
/// [`rootfs::IMAGES`] below the bundle, which [`rootfs::remove`] knows. Blocks.
///
/// # Errors
/// With the reason that CRI servers give, which upstream's kubelet looks for.
pub(super) fn make(
    shared: &Shared,
    config: &ContainerConfig,
    bundle: &Path,
) -> Result<(Vec<Mount>, Vec<Digest>), RuntimeError> {
    let (mut mounts, mut roots) = (Vec::new(), Vec::<(&str, PathBuf, Digest)>::new());
    for wanted in &config.images {
        let root = match roots.iter().find(|(image, ..)| *image == wanted.image) {
            Some((_, root, _)) => root.clone(),
            None => {
                let dir = bundle.join(rootfs::IMAGES).join(roots.len().to_string());
                let manifest = make_root(shared, &wanted.image, &dir)?;
                let root = dir.join("rootfs");
                roots.push((&wanted.image, root.clone(), manifest));
                root
            }
        };
        mounts.push(Mount {
            source: source(&root, wanted)?,
            target: wanted.target.clone(),
            read_only: true,
            propagation: Propagation::None,
        });
    }
    Ok((mounts, roots.into_iter().map(|(_, _, manifest)| manifest).collect()))
}

fn make_root(shared: &Shared, image: &str, dir: &Path) -> Result<Digest, RuntimeError> {
    let name: Reference = image
        .parse()
        .map_err(|error| RuntimeError::ImageName { image: image.to_owned(), why: format!("{error}") })?;
    let images = &shared.options.images;
    let found = images.find(&name).ok_or_else(|| failed(image, "the image is not there"))?;
    create_dir_all(dir).map_err(RuntimeError::io("making an image volume"))?;
    rootfs::make(images, &found, dir, shared.overlay).map_err(|error| failed(image, &error.to_string()))?;
    images.touch(&found.manifest);
    Ok(found.manifest)
}

fn failed(image: &str, why: &str) -> RuntimeError {
    RuntimeError::Create(format!("ImageVolumeMountFailed: failed to mount image volume {image:?}: {why}"))
}

/// What of the image is mounted. Links in it lead to what they lead to in a container of the image: never out of it.
fn source(root: &Path, wanted: &ImageMount) -> Result<PathBuf, RuntimeError> {
    if wanted.sub_path.is_empty() {
        return Ok(root.to_owned());
    }
    let resolved = || -> std::io::Result<PathBuf> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let top = open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let found = openat2(&top, &*wanted.sub_path, flags, Mode::empty(), resolve)?;
        std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
    };
    resolved().map_err(|error| failed(&wanted.image, &format!("subPath {:?}: {error}", wanted.sub_path)))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn sub_paths_stay_in_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::create_dir_all(&outside).unwrap();
        fs::write(root.join("a/file"), "text").unwrap();
        for (link, target) in [
            ("in", "a/b"),
            ("absolute", "/a"),
            ("up", "../../../../etc"),
            ("out", &*outside.to_string_lossy()),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        for (sub_path, expected) in [
            ("", Some("")),
            ("a", Some("a")),
            ("./a/b/", Some("a/b")),
            ("a/file", Some("a/file")),
            ("in", Some("a/b")),
            ("absolute/b", Some("a/b")),
            ("up", Some("etc")),
            ("out", None),
            ("none", None),
            ("a/file/more", None),
        ] {
            let wanted =
                ImageMount { image: "i".to_owned(), target: "/m".into(), sub_path: sub_path.to_owned() };
            let found = source(&root, &wanted);
            let canonical = root.canonicalize().unwrap();
            match expected {
                Some(expected) => {
                    assert_eq!(
                        found.unwrap().canonicalize().unwrap(),
                        canonical.join(expected),
                        "{sub_path}"
                    );
                }
                None => {
                    let error = found.unwrap_err();
                    assert_eq!(error.waiting_reason(), "CreateContainerError", "{sub_path}");
                    assert!(error.to_string().starts_with("ImageVolumeMountFailed: "), "{error}");
                }
            }
        }
    }
}
