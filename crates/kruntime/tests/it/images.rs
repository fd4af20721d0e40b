//! Images: what is loaded, fetched, unpacked, refused and thrown away.

use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::Path,
    sync::Arc,
};

use kcore::TokioClock;
use kruntime::{
    images::{
        CollectPolicy, ContentStore, DeviceNodes, ImageStore as _, Reference, UnpackLimits, UnpackOptions,
        Whiteouts, unpack_layer,
    },
    testing::images::{Tar, write_layout},
};
use serde_json::json;

fn store(dir: &Path) -> ContentStore {
    ContentStore::open(dir, Arc::new(TokioClock::new())).unwrap()
}

fn file_of(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    file
}

fn small_limits() -> UnpackOptions {
    let mut options = UnpackOptions::new(Whiteouts::Apply);
    options.limits = UnpackLimits {
        layer_bytes_max: 4 << 20,
        entries_max: 50,
        ratio_max: 100,
        free_bytes: 64 << 10,
        depth_max: 16,
    };
    options
}

/// The attacks are those that runtimes had to be mended for (CVE-2018-15664, CVE-2019-14271, CVE-2021-41190, "zip slip").
#[test]
fn hostile_layers_are_refused_and_touch_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    let there = outside.path().to_str().unwrap();
    let file = |name: &str| Tar::default().file(name, 0o644, b"bad");
    let through = |target: &str| Tar::default().symlink("link", target).file("link/evil", 0o644, b"bad");
    let up = format!("../../../../../../../../../..{there}");
    let deep = "d/".repeat(20) + "f";
    let many = (0..60).fold(Tar::default(), |tar, number| tar.file(&format!("f{number}"), 0o644, b""));
    let cases: Vec<(&str, Vec<u8>, &str, &str)> = vec![
        ("absolute", file(&format!("{there}/evil")).finish(), "evil", "absolute"),
        ("dots", file("a/../../evil").finish(), "a/../../evil", "`..`"),
        ("dots at the end", file("..").finish(), "..", "`..`"),
        ("through an absolute link", through(there).finish(), "link/evil", "out of the root through a link"),
        ("through a relative link", through(&up).finish(), "link/evil", "out of the root through a link"),
        (
            "through a link to the parent",
            through("..").finish(),
            "link/evil",
            "out of the root through a link",
        ),
        (
            "through the process",
            through("/proc/self/root").finish(),
            "link/evil",
            "out of the root through a link",
        ),
        (
            "a file over a link",
            Tar::default()
                .symlink("f", &format!("{there}/kept"))
                .entry(b'1', "g", "f", 0, b"")
                .file("g/x", 0o644, b"")
                .finish(),
            "g/x",
            "opening its directory",
        ),
        (
            "hard link, absolute",
            Tar::default().entry(b'1', "l", &format!("{there}/kept"), 0, b"").finish(),
            "l",
            "absolute",
        ),
        (
            "hard link, up",
            Tar::default().entry(b'1', "l", &format!("{up}/kept"), 0, b"").finish(),
            "l",
            "`..`",
        ),
        (
            "hard link through a link",
            Tar::default().symlink("d", there).entry(b'1', "l", "d/kept", 0, b"").finish(),
            "l",
            "out of the root through a link",
        ),
        (
            "hard link to nothing",
            Tar::default().entry(b'1', "l", "nothing", 0, b"").finish(),
            "l",
            "No such file",
        ),
        (
            "device",
            Tar::default().entry(b'3', "null", "", 0o666, b"").finish(),
            "null",
            "device nodes are not allowed",
        ),
        (
            "block device",
            Tar::default().entry(b'4', "disk", "", 0o666, b"").finish(),
            "disk",
            "device nodes are not allowed",
        ),
        (
            "overlay attribute",
            Tar::default()
                .records(&[("SCHILY.xattr.trusted.overlay.redirect", "/etc")])
                .directory("d/", 0o755)
                .finish(),
            "d/",
            "not a layer's to set",
        ),
        ("white-out of dots", file("d/.wh...").finish(), "d/.wh...", "hides no name"),
        (
            "white-out through a link",
            Tar::default().symlink("d", there).file("d/.wh.kept", 0, b"").finish(),
            "d/.wh.kept",
            "out of the root through a link",
        ),
        (
            "opaque through a link",
            Tar::default().symlink("d", there).file("d/.wh..wh..opq", 0, b"").finish(),
            "d/.wh..wh..opq",
            "out of the root through a link",
        ),
        ("deep", file(&deep).finish(), &deep, "deeper than 16"),
        ("many", many.finish(), "f50", "more than 50 entries"),
        (
            "bomb",
            gzip(&Tar::default().file("zeros", 0o644, &vec![0; 3 << 20]).finish()),
            "zeros",
            "100 times its size",
        ),
        (
            "large",
            Tar::default().file("large", 0o644, &vec![1; 5 << 20]).finish(),
            "large",
            "more than 4194304 bytes",
        ),
        (
            "cut off",
            Tar::default().file("whole", 0o644, b"x").file("cut", 0o644, &[7; 2000]).finish()[..2000]
                .to_vec(),
            "cut",
            "ends within",
        ),
        (
            "long records",
            Tar::default().entry(b'x', "r", "", 0, &vec![b'1'; 2 << 20]).file("f", 0, b"").finish(),
            "",
            "too large",
        ),
        (
            "long name",
            Tar::default().entry(b'L', "r", "", 0, &[b'n'; 5000]).file("f", 0, b"").finish(),
            "",
            "too large",
        ),
        (
            "holes",
            Tar::default().records(&[("GNU.sparse.major", "1")]).file("f", 0, b"").finish(),
            "",
            "holes",
        ),
        ("root as a link", Tar::default().symlink("./", there).finish(), "./", "the root is a directory"),
        ("kind", Tar::default().entry(b'S', "sparse", "", 0, b"").finish(), "sparse", "kind 'S'"),
    ];
    for (what, archive, entry, why) in cases {
        std::fs::write(outside.path().join("kept"), "kept").unwrap();
        let root = tempfile::tempdir().unwrap();
        let error = unpack_layer(file_of(&archive), root.path(), &small_limits()).unwrap_err().to_string();
        assert!(error.contains(&format!("{entry}\"")) && error.contains(why), "{what}: {error}");
        let left: Vec<_> =
            std::fs::read_dir(outside.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["kept"], "{what}");
        assert_eq!(std::fs::read(outside.path().join("kept")).unwrap(), b"kept", "{what}");
        assert_eq!(std::fs::metadata(outside.path().join("kept")).unwrap().nlink(), 1, "{what}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn layers_go_over_each_other() {
    let lower = Tar::default()
        .directory("d/", 0o750)
        .file("d/gone", 0o644, b"1")
        .file("d/stays", 0o4755, b"2")
        .directory("opaque/", 0o755)
        .file("opaque/old", 0o644, b"3")
        .file("file", 0o644, b"4")
        .symlink("abs", "/etc/passwd")
        .directory("tree/a/b/", 0o755)
        .file("tree/a/b/c", 0o644, b"5")
        .finish();
    let long = format!("d/{}", "n".repeat(180));
    let upper = Tar::default()
        .file("d/.wh.gone", 0, b"")
        .file("opaque/new", 0o600, b"6")
        .file("opaque/.wh..wh..opq", 0, b"")
        .directory("file/", 0o755)
        .file("tree", 0o644, b"7")
        .entry(b'1', "hard", "opaque/new", 0, b"")
        .records(&[("path", &long), ("mtime", "1234567890.5"), ("SCHILY.xattr.user.note", "hello")])
        .file("short", 0o644, b"8")
        .finish();
    // As archives, gzipped, and compressed with zstd: the outcome is the same.
    type Pack = fn(&[u8]) -> Vec<u8>;
    let zstd: Pack = |bytes| ruzstd_compress(bytes);
    let packs: [Pack; 3] = [<[u8]>::to_vec, gzip, zstd];
    for pack in packs {
        let root = tempfile::tempdir().unwrap();
        for layer in [&lower, &upper] {
            let digest =
                unpack_layer(file_of(&pack(layer)), root.path(), &UnpackOptions::new(Whiteouts::Apply))
                    .unwrap();
            assert_eq!(
                digest,
                kruntime::images::Digest::of(layer),
                "the digest is that of the archive itself"
            );
        }
        let at = |name: &str| root.path().join(name);
        assert!(!at("d/gone").exists() && !at("opaque/old").exists() && at("file").is_dir());
        assert_eq!(std::fs::read(at("hard")).unwrap(), b"6");
        assert_eq!(std::fs::read(at("tree")).unwrap(), b"7");
        assert_eq!(std::fs::read_link(at("abs")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(std::fs::metadata(at("d/stays")).unwrap().permissions().mode() & 0o7777, 0o4755);
        assert_eq!(std::fs::metadata(at("d")).unwrap().permissions().mode() & 0o7777, 0o750);
        let named = std::fs::metadata(at(&long)).unwrap();
        assert_eq!((named.mtime(), named.mtime_nsec()), (1_234_567_890, 500_000_000));
    }
}

fn ruzstd_compress(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

#[test]
fn whiteouts_are_the_kernels_when_layers_are_mounted() {
    if !rustix::process::geteuid().is_root() {
        return needs("root");
    }
    let layer = Tar::default().file("d/.wh.gone", 0, b"").file("o/.wh..wh..opq", 0, b"").finish();
    let root = tempfile::tempdir().unwrap();
    unpack_layer(file_of(&layer), root.path(), &UnpackOptions::new(Whiteouts::Overlay)).unwrap();
    let gone = std::fs::symlink_metadata(root.path().join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(root.path().join("o"), c"trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
}

#[test]
fn device_nodes_are_a_matter_of_policy() {
    let layer = Tar::default().entry(b'3', "null", "", 0o666, b"").file("f", 0o644, b"").finish();
    let unpack = |devices| {
        let root = tempfile::tempdir().unwrap();
        let options = UnpackOptions { devices, ..UnpackOptions::new(Whiteouts::Apply) };
        unpack_layer(file_of(&layer), root.path(), &options).map(|_| root.path().join("null").exists())
    };
    assert!(unpack(DeviceNodes::Refuse).is_err());
    assert!(!unpack(DeviceNodes::Skip).unwrap());
    if rustix::process::geteuid().is_root() {
        assert!(unpack(DeviceNodes::Make).unwrap());
    }
}

/// What a test has to say when it can't be run.
pub(crate) fn needs(what: &str) {
    assert!(
        std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"),
        "this run requires {what}"
    );
    println!("skipped: needs {what}");
}

/// Archives of a tool that everybody has: long names, links, times.
#[test]
fn archives_of_gnu_tar_are_read() {
    let from = tempfile::tempdir().unwrap();
    let long = "long/".repeat(30) + &"n".repeat(120);
    std::fs::create_dir_all(from.path().join(&long).parent().unwrap()).unwrap();
    std::fs::write(from.path().join(&long), "deep").unwrap();
    std::os::unix::fs::symlink("x".repeat(150), from.path().join("link")).unwrap();
    for format in ["gnu", "pax", "ustar"] {
        let mut command = std::process::Command::new("tar");
        command.args(["--format", format, "-C"]).arg(from.path()).args(["-cf", "-", "."]);
        if format == "ustar" {
            command.arg("--exclude=link").arg("--exclude=n*");
        }
        let Ok(output) = command.output() else { return needs("tar") };
        let root = tempfile::tempdir().unwrap();
        let mut options = UnpackOptions::new(Whiteouts::Apply);
        options.limits.depth_max = 64;
        let digest = unpack_layer(file_of(&output.stdout), root.path(), &options).unwrap();
        assert_eq!(digest, kruntime::images::Digest::of(&output.stdout), "{format}");
        if format != "ustar" {
            assert_eq!(std::fs::read(root.path().join(&long)).unwrap(), b"deep", "{format}");
            assert_eq!(
                std::fs::read_link(root.path().join("link")).unwrap().to_str().unwrap(),
                "x".repeat(150)
            );
        }
    }
}

#[tokio::test]
async fn layouts_and_archives_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let layer = Tar::default().file("hello", 0o644, b"hi").finish();
    let run =
        json!({"Entrypoint": ["/hello"], "Cmd": ["x"], "Env": ["A=b=c"], "WorkingDir": "/w", "User": "5"});
    write_layout(&layout, "registry.example/team/app:v1", &run, std::slice::from_ref(&layer)).unwrap();
    let store = store(&dir.path().join("store"));
    let names = store.load(&layout, None).await.unwrap();
    assert_eq!(names[0].to_string(), "registry.example/team/app:v1");
    let config = store.config("registry.example/team/app:v1").unwrap();
    assert_eq!((config.entrypoint, config.command), (vec!["/hello".to_owned()], vec!["x".to_owned()]));
    assert_eq!(config.env, [("A".to_owned(), "b=c".to_owned())]);
    let image = store.find(&names[0]).unwrap();
    let layers = store.unpack(&image).unwrap();
    assert_eq!(std::fs::read(layers[0].join("hello")).unwrap(), b"hi");
    let by_digest: Reference = format!("registry.example/team/app@{}", image.manifest).parse().unwrap();
    assert_eq!(store.find(&by_digest).unwrap().id, image.id);

    // The same as Docker saves it, in a compressed archive.
    let config = std::fs::read(store.path(&image.id)).unwrap();
    let saved =
        json!([{"Config": "c.json", "RepoTags": ["docker/app:v2"], "Layers": ["l/layer.tar"]}]).to_string();
    let docker = Tar::default()
        .file("l/layer.tar", 0o644, &layer)
        .file("c.json", 0o644, &config)
        .file("manifest.json", 0o644, saved.as_bytes())
        .finish();
    let path = dir.path().join("docker.tar.gz");
    std::fs::write(&path, gzip(&docker)).unwrap();
    let names = store.load(&path, None).await.unwrap();
    assert_eq!(names[0].to_string(), "docker.io/docker/app:v2");
    assert_eq!(store.find(&names[0]).unwrap().id, image.id);

    // A store that is opened again has them.
    drop(store);
    let store = self::store(&dir.path().join("store"));
    assert_eq!(store.images().len(), 2);

    // What is damaged is refused.
    let blob = layout.join("blobs/sha256").join(image.layers[0].1.hex());
    std::fs::write(&blob, vec![0; layer.len()]).unwrap();
    let fresh = self::store(&dir.path().join("fresh"));
    let error = fresh.load(&layout, None).await.unwrap_err().to_string();
    assert!(error.contains("expected sha256:"), "{error}");
    std::fs::remove_file(&blob).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    let error = fresh.load(&layout, None).await.unwrap_err().to_string();
    assert!(error.contains("opening blobs/"), "{error}");
    assert!(fresh.images().is_empty());
}

#[tokio::test]
async fn what_nobody_uses_is_thrown_away() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir.path().join("store"));
    let mut images = Vec::new();
    for name in ["one", "two", "three"] {
        let layout = dir.path().join(name);
        let layer = Tar::default().file(name, 0o644, name.as_bytes()).finish();
        write_layout(&layout, &format!("r.example/{name}:v"), &json!({}), &[layer]).unwrap();
        let names = store.load(&layout, None).await.unwrap();
        let image = store.find(&names[0]).unwrap();
        store.unpack(&image).unwrap();
        images.push(image);
    }
    let count = |part: &str| std::fs::read_dir(dir.path().join("store").join(part)).unwrap().count();
    assert_eq!((count("blobs"), count("layers")), (9, 3));
    store.remove(&images[0].manifest).unwrap();
    store.put(b"of nobody").unwrap();
    let nothing = CollectPolicy { high_percent: 101, ..CollectPolicy::default() };
    let in_use = BTreeSet::from([images[1].manifest.clone()]);
    assert!(store.collect(&nothing, &in_use).await.unwrap().is_empty());
    assert_eq!((count("blobs"), count("layers")), (6, 2), "content without an image goes");
    let everything = CollectPolicy {
        high_percent: 0,
        low_percent: 0,
        age_min: std::time::Duration::ZERO,
        unused_max: None,
    };
    let gone = store.collect(&everything, &in_use).await.unwrap();
    assert_eq!(gone.iter().map(|image| &image.manifest).collect::<Vec<_>>(), [&images[2].manifest]);
    assert_eq!((count("blobs"), count("layers")), (3, 1), "what a container uses stays");
}
