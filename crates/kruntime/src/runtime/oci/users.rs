//! Who a container runs as: numbers for what the pod and the image say, found in the image's own files.

use std::{fs::File, io::Read, path::Path};

use rustix::fs::{Mode, OFlags, ResolveFlags, open, openat2};

use crate::runtime::{ContainerConfig, RuntimeError};

/// So much of an image's `/etc/passwd` and `/etc/group` is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A user with its groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) additional: Vec<u32>,
}

/// Reads a file of the image: inside its root, whatever links it has.
pub(super) fn read(root: &Path, path: &str) -> String {
    let mut text = Vec::new();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let file = open(root, flags, Mode::empty()).and_then(|root| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(root, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty(), resolve)
    });
    if let Ok(file) = file {
        // An image without such a file has no such names.
        let _ = File::from(file).take(FILE_BYTES_MAX).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The lines of a file like `/etc/passwd`, as fields.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect())
}

/// Works out the user. `image` is what the image says: `user[:group]`, by name or number.
pub(super) fn resolve(
    config: &ContainerConfig,
    image: &str,
    passwd: &str,
    groups: &str,
) -> Result<User, RuntimeError> {
    let (name, group) = image.split_once(':').unwrap_or((image, ""));
    let unknown =
        |what: &str| RuntimeError::Create(format!("failed to resolve user or group {what:?} of the image"));
    let number = |field: Option<&&str>| field.and_then(|text| text.parse::<u32>().ok());
    let by_name = |name: &str| lines(passwd).find(|line| line[0] == name);
    let of_image = match name {
        "" => Some(0),
        name => name.parse().ok(),
    };
    if config.run_as_user.is_none() && config.run_as_non_root && of_image.is_none() {
        return Err(RuntimeError::Config(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )));
    }
    let user = match (config.run_as_user, of_image) {
        (Some(user), _) | (None, Some(user)) => user,
        (None, None) => by_name(name).and_then(|line| number(line.get(2))).ok_or_else(|| unknown(name))?,
    };
    if config.run_as_non_root && user == 0 {
        return Err(RuntimeError::Config("container has runAsNonRoot and image will run as root".to_owned()));
    }
    let entry = lines(passwd).find(|line| number(line.get(2)) == Some(user));
    let primary = entry.as_ref().and_then(|line| number(line.get(3)));
    let of_image = match group {
        "" => None,
        group => Some(match group.parse() {
            Ok(group) => group,
            Err(_) => lines(groups)
                .find(|line| line[0] == group)
                .and_then(|line| number(line.get(2)))
                .ok_or_else(|| unknown(group))?,
        }),
    };
    // The image's group belongs to the image's user.
    let of_image = of_image.filter(|_| config.run_as_user.is_none());
    let group = config.run_as_group.or(of_image).or(primary).unwrap_or(0);
    let mut additional = Vec::new();
    if !config.security.strict_groups
        && let Some(name) = entry.as_ref().map(|line| line[0])
    {
        let member =
            |line: &Vec<&str>| line.get(3).is_some_and(|list| list.split(',').any(|member| member == name));
        additional.extend(lines(groups).filter(member).filter_map(|line| number(line.get(2))));
    }
    additional.extend(&config.security.supplemental_groups);
    let mut seen = std::collections::HashSet::from([group]);
    additional.retain(|group| seen.insert(*group));
    Ok(User { user, group, additional })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Security;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:app:/home:/bin/sh\n";
    const GROUPS: &str = "root:x:0:\napp:x:1001:\nextra:x:2000:other,app\nstaff:x:50:root\n";

    /// After KEP-3619's tables and containerd's `WithUser`, `WithAdditionalGIDs`.
    #[test]
    fn users_are_found_in_the_image() {
        type Case =
            (&'static str, Option<u32>, Option<u32>, bool, Result<(u32, u32, &'static [u32]), &'static str>);
        let cases: [Case; 13] = [
            ("", None, None, false, Ok((0, 0, &[50, 7]))),
            ("app", None, None, false, Ok((1000, 1001, &[2000, 7]))),
            ("app:extra", None, None, false, Ok((1000, 2000, &[7]))),
            ("1000", None, None, true, Ok((1000, 1001, &[2000, 7]))),
            ("5:6", None, None, true, Ok((5, 6, &[7]))),
            ("app:extra", Some(9), None, true, Ok((9, 0, &[7]))),
            ("app", Some(1000), Some(3), true, Ok((1000, 3, &[2000, 7]))),
            ("", None, Some(3), false, Ok((0, 3, &[50, 7]))),
            ("nobody", None, None, false, Err("nobody")),
            ("app:nobody", None, None, false, Err("nobody")),
            ("app", None, None, true, Err("non-numeric user (app)")),
            ("", None, None, true, Err("image will run as root")),
            ("", Some(0), None, true, Err("image will run as root")),
        ];
        for (image, user, group, non_root, expected) in cases {
            let mut config = ContainerConfig {
                run_as_user: user,
                run_as_group: group,
                run_as_non_root: non_root,
                security: Security { supplemental_groups: vec![7], ..Security::default() },
                ..ContainerConfig::default()
            };
            match (resolve(&config, image, PASSWD, GROUPS), expected) {
                (Ok(found), Ok((user, group, additional))) => {
                    assert_eq!(found, User { user, group, additional: additional.to_vec() }, "{image}");
                    config.security.strict_groups = true;
                    let strict = resolve(&config, image, PASSWD, GROUPS).unwrap();
                    assert_eq!(strict.additional, [7], "{image}");
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                (found, expected) => panic!("{image}: {found:?}, not {expected:?}"),
            }
        }
    }
}
