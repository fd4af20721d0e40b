//! What the node keeps on disk about a volume, so that an agent that comes back can undo what another one has done: upstream's
//! `vol_data.json`, beside each place where a volume is.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::rules::{FOLDER, Spec, attachment_name};
use crate::volumes::mounted::is_mounted;

const FILE: &str = "vol_data.json";

/// The file's contents. At the place for all pods there are only the first two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Note {
    pub(super) driver_name: String,
    pub(super) volume_handle: String,
    #[serde(rename = "specVolID", skip_serializing_if = "String::is_empty")]
    pub(super) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    node_name: String,
    #[serde(rename = "attachmentID", skip_serializing_if = "String::is_empty")]
    attachment: String,
    #[serde(rename = "volumeLifecycleMode", skip_serializing_if = "String::is_empty")]
    mode: String,
}

impl Note {
    pub(super) fn of_stage(spec: &Spec) -> Self {
        Self { driver_name: spec.driver.clone(), volume_handle: spec.handle.clone(), ..Self::default() }
    }

    pub(super) fn of_pod(spec: &Spec, node: &str) -> Self {
        Self {
            name: spec.name.clone(),
            node_name: node.to_owned(),
            attachment: attachment_name(&spec.handle, &spec.driver, node),
            mode: spec.mode().to_owned(),
            ..Self::of_stage(spec)
        }
    }

    pub(super) fn is_persistent(&self) -> bool {
        self.mode != "Ephemeral"
    }

    pub(super) fn is_of(&self, driver: &str, handle: &str) -> bool {
        self.driver_name == driver && self.volume_handle == handle
    }

    /// Writes it beside `place`, making the directory if need be. It is whole or not there.
    pub(super) fn write(&self, place: &Path) -> io::Result<()> {
        let dir = dir_of(place)?;
        fs::create_dir_all(dir)?;
        let new = dir.join(format!("{FILE}.new"));
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(new, dir.join(FILE))
    }

    /// Reads the one beside `place`; `None` when there is none.
    pub(super) fn read(place: &Path) -> io::Result<Option<Self>> {
        match fs::read(dir_of(place)?.join(FILE)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn dir_of(place: &Path) -> io::Result<&Path> {
    place.parent().ok_or_else(|| io::Error::other("a volume has no directory"))
}

/// Removes a place that nothing is mounted at any more. Never what is in it: that might be somebody's data.
pub(super) fn remove_place(place: &Path) -> io::Result<()> {
    if is_mounted(place) {
        return Err(io::Error::other(format!("{} is still mounted", place.display())));
    }
    missing_is_fine(fs::remove_dir(place))
}

/// Removes a place with its note and its directory.
pub(super) fn remove_all(place: &Path) -> io::Result<()> {
    remove_place(place)?;
    let dir = dir_of(place)?;
    missing_is_fine(fs::remove_file(dir.join(FILE)))?;
    missing_is_fine(fs::remove_file(dir.join(format!("{FILE}.new"))))?;
    missing_is_fine(fs::remove_dir(dir))
}

fn missing_is_fine(outcome: io::Result<()>) -> io::Result<()> {
    outcome.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// The places of a pod's volumes.
pub(super) fn places_of_pod(pod_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(pod_dir.join("volumes").join(FOLDER)).into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = entries.map(|entry| entry.path().join("mount")).collect();
    places.sort();
    places
}

/// The volumes of all pods below a node's directory, with their places. What can't be read is left out.
pub(super) fn all(root: &Path) -> Vec<(PathBuf, Note)> {
    let pods = fs::read_dir(root.join("pods")).into_iter().flatten().flatten();
    let places = pods.flat_map(|pod| places_of_pod(&pod.path()));
    places.filter_map(|place| Some((place.clone(), Note::read(&place).ok()??))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_found_again_by_its_note() {
        let dir = tempfile::tempdir().unwrap();
        let spec = Spec { name: "pv".into(), driver: "d".into(), handle: "h".into(), ..Spec::default() };
        let place = super::super::rules::target_path(&dir.path().join("pods/uid"), "pv");
        Note::of_pod(&spec, "node").write(&place).unwrap();
        fs::create_dir(&place).unwrap();
        let text = fs::read_to_string(place.parent().unwrap().join(FILE)).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let attachment = attachment_name("h", "d", "node");
        let expected = serde_json::json!({"driverName": "d", "volumeHandle": "h", "specVolID": "pv", "nodeName": "node",
            "attachmentID": attachment, "volumeLifecycleMode": "Persistent"});
        assert_eq!(json, expected);
        let found = all(dir.path());
        assert_eq!(found, [(place.clone(), Note::of_pod(&spec, "node"))]);
        assert!(found[0].1.is_of("d", "h") && found[0].1.is_persistent());
        // Data that a driver has left is nobody's to delete.
        fs::write(place.join("file"), "data").unwrap();
        assert!(remove_all(&place).is_err() && place.join("file").exists());
        fs::remove_file(place.join("file")).unwrap();
        remove_all(&place).unwrap();
        remove_all(&place).unwrap();
        assert!(!place.parent().unwrap().exists());
        assert_eq!(Note::read(&place).unwrap(), None);
    }
}
