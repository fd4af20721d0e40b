//! A container's root: the image's layers, shared by all containers, with a layer of its own over them.

use std::{
    fs::create_dir_all,
    io,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::images::{ContentStore, Image, ImageError};

/// Where the roots of image volumes are in a bundle, each in a directory as a bundle's own is.
pub(super) const IMAGES: &str = "images";
/// The kernel takes the options of a mount in one page.
const OPTIONS_BYTES_MAX: usize = 4000;

/// Makes the root at `bundle/rootfs`. Blocks.
///
/// # Errors
/// When a layer can't be unpacked, or the root can't be mounted where mounting is what should be done.
pub(super) fn make(
    images: &ContentStore,
    image: &Image,
    bundle: &Path,
    overlay: bool,
) -> Result<(), ImageError> {
    let root = bundle.join("rootfs");
    let making = || ImageError::io("making the container's root");
    create_dir_all(&root).map_err(making())?;
    if overlay {
        let layers = images.unpack(image)?;
        if let Some(options) = options(&layers, bundle).map_err(making())? {
            let options =
                std::ffi::CString::new(options).map_err(|error| making()(io::Error::other(error)))?;
            return mount("overlay", &root, "overlay", MountFlags::empty(), Some(options.as_c_str()))
                .map_err(|error| making()(error.into()));
        }
    }
    images.unpack_into(image, &root)
}

/// The options of the overlay; `None` when they would be too long.
fn options(layers: &[PathBuf], bundle: &Path) -> io::Result<Option<String>> {
    let base = bundle.join("base");
    for dir in ["upper", "work"] {
        create_dir_all(bundle.join(dir))?;
    }
    // An image without layers is empty, but the kernel wants one below.
    if layers.is_empty() {
        create_dir_all(&base)?;
    }
    let lower: Vec<_> =
        layers.iter().rev().chain(layers.is_empty().then_some(&base)).map(|p| escape(p)).collect();
    let (upper, work) = (escape(&bundle.join("upper")), escape(&bundle.join("work")));
    let text = format!("lowerdir={},upperdir={upper},workdir={work}", lower.join(":"));
    Ok((text.len() <= OPTIONS_BYTES_MAX).then_some(text))
}

/// Commas and colons mean something there.
fn escape(path: &Path) -> String {
    path.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:")
}

/// Takes the root and those of image volumes away, as far as they are mounted; the bundle can be removed then.
pub(super) fn remove(bundle: &Path) {
    // Not mounted is what it is when the layers were unpacked into it.
    let _ = unmount(bundle.join("rootfs"), UnmountFlags::DETACH);
    for image in std::fs::read_dir(bundle.join(IMAGES)).into_iter().flatten().flatten() {
        let _ = unmount(image.path().join("rootfs"), UnmountFlags::DETACH);
    }
}

/// Whether this machine can mount an overlay in `dir`.
pub(super) fn can_overlay(dir: &Path) -> io::Result<bool> {
    let probe = tempfile::tempdir_in(dir)?;
    let root = probe.path().join("rootfs");
    create_dir_all(&root)?;
    let Some(options) = options(&[], probe.path())? else { return Ok(false) };
    let options = std::ffi::CString::new(options)?;
    let mounted = mount("overlay", &root, "overlay", MountFlags::empty(), Some(options.as_c_str())).is_ok();
    if mounted {
        remove(probe.path());
    }
    Ok(mounted)
}
