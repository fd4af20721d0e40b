//! Tests that change the network: each runs again in namespaces of its own.

use std::process::{Command, Output};

/// Says to the test that it runs within namespaces of its own.
const INSIDE: &str = "KPLANE_IN_NAMESPACE";

/// Runs the test again in network and mount namespaces of its own, with the loopback device up. Whether the caller is inside; false, after
/// saying so, where a tool or the right to do this is missing.
pub(crate) fn inside(test: &str, tools: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let has = |program: &str| shell(&format!("command -v {program}")).status.success();
    let missing = ["ip", "unshare"].iter().chain(tools).find(|program| !has(program)).copied();
    let missing = missing.or_else(|| {
        let able = shell("unshare -n -m ip link set lo up").status.success();
        (!able).then_some("root")
    });
    if let Some(what) = missing {
        assert!(
            std::env::var_os("KPLANE_REQUIRE_ALL").is_none_or(|value| value != "1"),
            "this run requires {what}"
        );
        println!("skipped: needs {what}");
        return false;
    }
    let script = "set -e; ip link set lo up; exec \"$0\" --exact \"$1\" --nocapture";
    again(Command::new("unshare").args(["-n", "-m", "sh", "-c", script]).arg(own()).arg(test));
    false
}

/// Runs the test again where no program is found; whether the caller is there.
pub(crate) fn without_programs(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    again(Command::new(own()).args(["--exact", test, "--nocapture"]).env("PATH", "/nonexistent"));
    false
}

fn own() -> std::path::PathBuf {
    std::env::current_exe().expect("the test's own program")
}

fn again(command: &mut Command) {
    let output = command.env(INSIDE, "1").output().expect("the test's own program");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// What a shell makes of a line.
pub(crate) fn shell(line: &str) -> Output {
    Command::new("sh").args(["-c", line]).output().expect("a shell")
}
