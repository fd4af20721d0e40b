//! Image volumes (KEP-4639): images that a container sees as files.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, ImageVolumeSource, Pod};

use crate::{
    env,
    runtime::{ImageMount, RuntimeError},
};

/// The image volumes that a container mounts, each once, by their names.
pub(crate) fn mounted_by<'a>(pod: &'a Pod, container: &Container) -> Vec<(&'a str, &'a ImageVolumeSource)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let images = volumes.filter_map(|volume| Some((&*volume.name, volume.image.as_ref()?)));
    let is_mounted = |name: &str| container.volume_mounts.iter().flatten().any(|mount| mount.name == name);
    images.filter(|(name, _)| is_mounted(name)).collect()
}

/// What a container sees of the pod's image volumes. They can only be read, and are mounted for this container alone, whatever the mount says
/// about that.
///
/// # Errors
/// [`RuntimeError::Config`] when a sub-path is none, in upstream's words (`pkg/kubelet/kubelet_pods.go`).
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    env: &[(String, String)],
) -> Result<Vec<ImageMount>, RuntimeError> {
    let images = mounted_by(pod, container);
    let mut all = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let Some((_, source)) = images.iter().find(|(name, _)| *name == mount.name) else { continue };
        let expression = mount.sub_path_expr.as_deref().filter(|text| !text.is_empty());
        let sub_path = expression.map(|text| env::expand(text, env)).or_else(|| mount.sub_path.clone());
        let sub_path = sub_path.unwrap_or_default();
        check(&sub_path)?;
        all.push(ImageMount {
            image: source.reference.clone().unwrap_or_default(),
            target: PathBuf::from(&mount.mount_path),
            sub_path,
        });
    }
    Ok(all)
}

fn check(sub_path: &str) -> Result<(), RuntimeError> {
    let path = Path::new(sub_path);
    let why = if path.is_absolute() {
        format!("error SubPath `{sub_path}` must not be an absolute path")
    } else if path.components().any(|part| part == Component::ParentDir) {
        format!("unable to provision SubPath `{sub_path}`: must not contain '..'")
    } else {
        return Ok(());
    };
    Err(RuntimeError::Config(why))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn containers_see_the_images_that_they_mount() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [], "volumes": [
            {"name": "files", "emptyDir": {}},
            {"name": "one", "image": {"reference": "one:1", "pullPolicy": "Never"}},
            {"name": "two", "image": {"reference": "two:2"}},
            {"name": "none", "image": {}},
        ]}}))
        .unwrap();
        let container = |mounts: serde_json::Value| -> Container {
            serde_json::from_value(json!({"name": "c", "volumeMounts": mounts})).unwrap()
        };
        let env = [("WHERE".to_owned(), "a/b".to_owned()), ("OUT".to_owned(), "../b".to_owned())];
        for (mount, expected) in [
            (json!({"name": "files", "mountPath": "/m"}), Ok(vec![])),
            (json!({"name": "one", "mountPath": "/m"}), Ok(vec![("one:1", "")])),
            (json!({"name": "two", "mountPath": "/m", "subPath": "x/y"}), Ok(vec![("two:2", "x/y")])),
            (
                json!({"name": "two", "mountPath": "/m", "subPathExpr": "$(WHERE)/c"}),
                Ok(vec![("two:2", "a/b/c")]),
            ),
            (json!({"name": "none", "mountPath": "/m"}), Ok(vec![("", "")])),
            (
                json!({"name": "one", "mountPath": "/m", "subPath": "/x"}),
                Err("error SubPath `/x` must not be an absolute path"),
            ),
            (
                json!({"name": "one", "mountPath": "/m", "subPathExpr": "a/$(OUT)"}),
                Err("unable to provision SubPath `a/../b`: must not contain '..'"),
            ),
            // What it mounts of other volumes is not looked at here.
            (json!({"name": "files", "mountPath": "/m", "subPath": "/x"}), Ok(vec![])),
        ] {
            let found = mounts(&pod, &container(json!([mount])), &env);
            let found = found.map_err(|error| error.to_string());
            let expected: Result<Vec<ImageMount>, String> = expected.map_err(str::to_owned).map(|all| {
                let mount = |(image, sub_path): (&str, &str)| ImageMount {
                    image: image.to_owned(),
                    target: "/m".into(),
                    sub_path: sub_path.to_owned(),
                };
                all.into_iter().map(mount).collect()
            });
            assert_eq!(found, expected, "{mount}");
        }
        let twice =
            container(json!([{"name": "one", "mountPath": "/a"}, {"name": "one", "mountPath": "/b"}]));
        assert_eq!(mounts(&pod, &twice, &env).unwrap().len(), 2);
        assert_eq!(mounted_by(&pod, &twice).len(), 1, "it is fetched once");
    }
}
