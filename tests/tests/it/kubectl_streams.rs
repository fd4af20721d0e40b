//! A real kubectl whose commands keep a connection open: exec, attach, cp and port-forward, over WebSockets and over SPDY.
//! The environment variables are those of KEP-4006, by which kubectl is told to do without WebSockets.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kplane::Cluster;

use crate::support::{Kubectl, PATIENCE, kubectls, text};

const WAYS: [&[(&str, &str)]; 2] =
    [&[], &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")]];

/// Answers each connection with what it was sent, in capitals, once the sender has said its last.
const SERVER: &str = "import socketserver\n\
    class Handler(socketserver.StreamRequestHandler):\n\
    \x20def handle(self): self.wfile.write(self.rfile.read().upper())\n\
    socketserver.ThreadingTCPServer.allow_reuse_address = True\n\
    server = socketserver.ThreadingTCPServer(('0.0.0.0', 8080), Handler)\n\
    print('listening', flush=True)\n\
    server.serve_forever()\n";

/// A cluster with a pod of two containers: one echoes lines, the other listens on port 8080.
async fn subject(program: PathBuf) -> Arc<Kubectl> {
    let cluster = Cluster::builder().nodes(1).processes().unwrap().start().await.unwrap();
    let kubectl = Kubectl::of(cluster, program).await;
    let account = |found: Option<&ServiceAccount>| found.is_some();
    kubectl.cluster.wait_until("default", "default", PATIENCE, account).await.unwrap();
    let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
    "terminationGracePeriodSeconds": 1,
    "containers": [
        {"name": "echo", "image": "none", "stdin": true,
            "command": ["sh", "-c", "while read line; do echo \"got $line\"; done; exec sleep 1000"]},
        {"name": "server", "image": "none", "command": ["python3", "-u", "-c", SERVER]},
    ]}});
    kubectl.run(&format!("create -f {}", kubectl.file("pod.json", &pod.to_string()))).await;
    let running = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref())
            .is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    kubectl.cluster.wait_until::<Pod>("default", "p", PATIENCE, running).await.unwrap();
    Arc::new(kubectl)
}

/// Runs what blocks beside the cluster, and not for too long.
async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(work)).await.unwrap().unwrap()
}

/// A child that doesn't outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(mut command: Command) -> Running {
    Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_are_run_and_joined() {
    for program in kubectls() {
        let kubectl = subject(program).await;
        for way in WAYS {
            let mut exec = kubectl.command(&[
                "exec",
                "-i",
                "p",
                "-c",
                "echo",
                "--",
                "sh",
                "-c",
                "tr a-z A-Z; echo bad >&2; exit 5",
            ]);
            exec.envs(way.iter().copied());
            let output = beside(move || {
                let mut child = spawn(exec);
                let text = "shout\n".repeat(20_000);
                let mut stdin = child.0.stdin.take().unwrap();
                let writer = std::thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
                let mut out = String::new();
                child.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
                let mut err = String::new();
                child.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
                writer.join().unwrap();
                (child.0.wait().unwrap().code(), out, err)
            })
            .await;
            assert_eq!(output.0, Some(5), "{way:?} {}", output.2);
            assert_eq!(output.1, "SHOUT\n".repeat(20_000), "{way:?}");
            assert!(output.2.starts_with("bad\n"), "{way:?} {}", output.2);
            let mut missing = kubectl.command(&["exec", "p", "-c", "echo", "--", "no-such-program"]);
            missing.envs(way.iter().copied());
            let output = beside(move || missing.output().unwrap()).await;
            assert!(!output.status.success());
            assert!(text(&output.stderr).contains("no-such-program"), "{way:?} {}", text(&output.stderr));
            let mut attach = kubectl.command(&["attach", "-i", "p", "-c", "echo"]);
            attach.envs(way.iter().copied());
            let line = beside(move || {
                let mut child = spawn(attach);
                let mut stdin = child.0.stdin.take().unwrap();
                let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
                stdin.write_all(b"words\n").unwrap();
                lines.next().unwrap().unwrap()
            })
            .await;
            assert_eq!(line, "got words", "{way:?}");
        }
    }
}

/// `script` gives kubectl a terminal, whose size reaches the program before it is asked for, and changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_have_the_size_of_the_clients() {
    if crate::support::tool("script", "KPLANE_SCRIPT").is_none() {
        return;
    }
    for program in kubectls() {
        let kubectl = subject(program).await;
        for way in WAYS {
            // The program waits for each size, and asks its own terminal for the second one by a word that the outer one sees.
            let inner = "until [ \"$(stty size)\" = '40 100' ]; do :; done; echo fir''st; \
                until [ \"$(stty size)\" = '41 101' ]; do :; done; echo sec''ond; exit 3";
            let line = format!("stty rows 40 cols 100; tty > {}; exec \"$@\"", kubectl.file("tty", ""));
            let script = kubectl.script("in-terminal", &format!("#!/bin/sh\n{line}\n"));
            let exec = kubectl.command(&["exec", "-it", "p", "-c", "echo", "--", "sh", "-c", inner]);
            let words: Vec<String> = std::iter::once(exec.get_program())
                .chain(exec.get_args())
                .map(|word| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''")))
                .collect();
            let mut command = Command::new("script");
            command.args(["-qec", &format!("{script} {}", words.join(" ")), "/dev/null"]);
            command.env_clear().envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))));
            command.env("SHELL", "/bin/sh").envs(way.iter().copied());
            let tty = kubectl.file("tty", "");
            let (code, seen) = beside(move || {
                let mut child = spawn(command);
                let mut out = BufReader::new(child.0.stdout.take().unwrap());
                let mut seen = String::new();
                while out.read_line(&mut seen).unwrap() > 0 {
                    if seen.trim_end().ends_with("first") && !seen.contains("second") {
                        let terminal = std::fs::read_to_string(&tty).unwrap();
                        let resized = Command::new("stty")
                            .args(["-F", terminal.trim(), "rows", "41", "cols", "101"])
                            .status();
                        assert!(resized.unwrap().success());
                    }
                }
                (child.0.wait().unwrap().code(), seen)
            })
            .await;
            assert!(seen.contains("first") && seen.contains("second"), "{way:?}: {seen}");
            assert_eq!(code, Some(3), "{way:?}: {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_copied_both_ways() {
    for program in kubectls() {
        let kubectl = subject(program).await;
        let content: String = (0..100_000).map(|n| format!("line {n}\n")).collect();
        for way in WAYS {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
            std::fs::create_dir_all(folder.path().join("there")).unwrap();
            std::fs::write(at("here"), &content).unwrap();
            for (from, to, expected) in [
                (at("here"), format!("p:{}", at("there/copy")), at("there/copy")),
                (format!("p:{}", at("there/copy")), at("back"), at("back")),
            ] {
                let (done, output) = kubectl.run_env(&format!("cp -c echo {from} {to}"), way).await;
                assert!(done, "{way:?} {from} {to}: {output}");
                assert!(std::fs::read_to_string(expected).unwrap() == content, "{way:?} {from} {to}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_are_forwarded() {
    for program in kubectls() {
        let kubectl = subject(program).await;
        let (_, log) = kubectl.run_env("logs -f p -c server --limit-bytes=9", &[]).await;
        assert_eq!(log, "listening");
        for way in WAYS {
            let mut forward = kubectl.command(&["port-forward", "pod/p", ":8080"]);
            forward.envs(way.iter().copied());
            let answers = beside(move || {
                let mut child = spawn(forward);
                let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
                let Some(Ok(line)) = lines.next() else {
                    let mut why = String::new();
                    child.0.stderr.take().unwrap().read_to_string(&mut why).unwrap();
                    panic!("kubectl doesn't say where it listens: {why}");
                };
                let address = line
                    .strip_prefix("Forwarding from ")
                    .and_then(|rest| rest.split_once(" -> "))
                    .map(|(address, _)| address.to_owned())
                    .unwrap_or_else(|| panic!("{line}"));
                // Several connections at once, one of them with more than any window.
                let answers: Vec<_> = [1, 100_000, 10]
                    .map(|times| {
                        let mut connection = TcpStream::connect(&address).unwrap();
                        std::thread::spawn(move || {
                            let text = "twelve bytes".repeat(times);
                            connection.write_all(text.as_bytes()).unwrap();
                            connection.shutdown(Shutdown::Write).unwrap();
                            let mut answer = String::new();
                            connection.read_to_string(&mut answer).unwrap();
                            answer == text.to_uppercase()
                        })
                    })
                    .into_iter()
                    .map(|thread| thread.join().unwrap())
                    .collect();
                answers
            })
            .await;
            assert_eq!(answers, [true, true, true], "{way:?}");
            // Where nobody listens, kubectl says so in the server's words.
            let mut forward = kubectl.command(&["port-forward", "pod/p", ":9"]);
            forward.envs(way.iter().copied());
            let said = beside(move || {
                let mut child = spawn(forward);
                let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
                let line = lines.next().unwrap().unwrap();
                let address = line.trim_start_matches("Forwarding from ").split(" -> ").next().unwrap();
                let mut connection = TcpStream::connect(address).unwrap();
                let mut nothing = String::new();
                let _ = connection.read_to_string(&mut nothing);
                let errors = BufReader::new(child.0.stderr.take().unwrap()).lines().map_while(Result::ok);
                errors.into_iter().find(|line| line.contains("error forwarding port 9"))
            })
            .await;
            assert!(said.is_some_and(|line| line.contains("failed to connect")), "{way:?}");
        }
    }
}
