//! Hosts and pods as network namespaces, which end with the test that made them.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::{Command, Output},
    sync::OnceLock,
    time::Duration,
};

/// Says to the test that it runs within a namespace of its own.
const INSIDE: &str = "KPLANE_IN_NAMESPACE";
/// How long the tests wait for anything.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// Runs the test again in network and mount namespaces of its own, where `/run` is empty, after the commands of `setup`. Whether the
/// caller is inside.
pub(crate) fn inside(test: &str, setup: &str, tools: &[&str]) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let has = |program: &str| {
        let found = Command::new("sh").args(["-c", "command -v \"$0\" || test -e \"$0\"", program]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let missing = ["ip", "unshare", "nft"].iter().chain(tools).find(|program| !has(program)).copied();
    let missing = missing.or_else(|| {
        let able = Command::new("unshare").args(["-n", "-m", "nft", "add", "table", "ip", "x"]).output();
        (!able.is_ok_and(|output| output.status.success())).then_some("root")
    });
    if let Some(what) = missing {
        assert!(std::env::var_os("KPLANE_REQUIRE_ALL").is_none(), "needs {what}");
        println!("skipped: needs {what}");
        return false;
    }
    let me = std::env::current_exe().expect("the test's own program");
    let script = format!(
        "set -e; mount -t tmpfs tmpfs /run; mkdir /run/netns; mount -t sysfs sysfs /sys; ip link set lo up; {setup}\n\
         exec \"$0\" --exact \"$1\" --nocapture"
    );
    let output = Command::new("unshare")
        .args(["-n", "-m", "sh", "-c", &script])
        .arg(me)
        .arg(test)
        .env(INSIDE, "1")
        .output()
        .expect("a namespace");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// Runs a command that has to succeed; gives what it wrote.
pub(crate) fn run(command: &str) -> String {
    let output = attempt(command);
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn attempt(command: &str) -> Output {
    Command::new("sh").args(["-c", command]).output().expect("a shell")
}

/// Does something on a thread that is in a namespace made by `ip netns add`; an empty name is the test's own. Sockets that are made
/// there stay there.
pub(crate) fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    if namespace.is_empty() {
        return work();
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(format!("/run/netns/{namespace}")).expect("a namespace");
            // SAFETY: the descriptor is open, and only this thread, which ends with the work, moves.
            let moved = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
            assert_eq!(moved, 0, "{}", io::Error::last_os_error());
            work()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Serves TCP in a namespace for the rest of the test: each connection is told where it came from, and then hears itself.
pub(crate) fn serve(namespace: &str, address: SocketAddr) {
    let listener = within(namespace, || TcpListener::bind(address).expect("a free port"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            std::thread::spawn(move || {
                let (mut stream, mut buffer) = (stream?, [0; 64]);
                writeln!(stream, "{}", stream.peer_addr()?.ip())?;
                loop {
                    let length = stream.read(&mut buffer)?;
                    if length == 0 {
                        return Ok(());
                    }
                    stream.write_all(&buffer[..length])?;
                }
                #[allow(unreachable_code, reason = "it gives the closure its type")]
                io::Result::Ok(())
            });
        }
    });
}

/// A connection from a namespace: who the server says that it is, and the connection.
pub(crate) fn connect(namespace: &str, address: SocketAddr) -> io::Result<(String, TcpStream)> {
    connect_within(namespace, address, WAIT_MAX)
}

/// The same, for those that nobody answers.
pub(crate) fn connect_within(
    namespace: &str,
    address: SocketAddr,
    wait: Duration,
) -> io::Result<(String, TcpStream)> {
    within(namespace, || {
        let mut stream = TcpStream::connect_timeout(&address, wait)?;
        stream.set_read_timeout(Some(WAIT_MAX))?;
        let (mut line, mut byte) = (String::new(), [0]);
        loop {
            stream.read_exact(&mut byte)?;
            if byte[0] == b'\n' {
                return Ok((line, stream));
            }
            line.push(char::from(byte[0]));
        }
    })
}

/// Whether a connection still carries what is sent. `wait` is for an answer that may never come.
pub(crate) fn echoes(stream: &mut TcpStream, wait: Duration) -> bool {
    let mut buffer = [0; 4];
    stream.set_read_timeout(Some(wait)).expect("a time-out");
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut buffer).is_ok() && &buffer == b"ping"
}

/// Serves UDP in a namespace for the rest of the test: each datagram comes back.
pub(crate) fn serve_udp(namespace: &str, address: SocketAddr) {
    let socket = within(namespace, || UdpSocket::bind(address).expect("a free port"));
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
}

/// Whether a datagram comes back.
pub(crate) fn echoes_udp(namespace: &str, address: SocketAddr, wait: Duration) -> bool {
    within(namespace, || {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a port");
        socket.set_read_timeout(Some(wait)).expect("a time-out");
        socket.connect(address).expect("a route");
        let mut buffer = [0; 4];
        socket.send(b"ping").is_ok() && socket.recv(&mut buffer).is_ok_and(|length| length == 4)
    })
}

/// A pod: a namespace with one device, whose packets the test's own namespace forwards.
pub(crate) fn pod(name: &str, addresses: &[&str]) {
    static FORWARDING: OnceLock<()> = OnceLock::new();
    FORWARDING.get_or_init(|| {
        run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    });
    run(&format!(
        "ip netns add {name} && ip -n {name} link set lo up \
         && ip link add v-{name} type veth peer name eth0 netns {name} && ip link set v-{name} up \
         && ip -n {name} link set eth0 up && ip addr add 169.254.1.1/32 dev v-{name} \
         && ip -6 addr add fe80::1/64 dev v-{name} nodad \
         && ip -n {name} route add 169.254.1.1 dev eth0 \
         && ip -n {name} route add default via 169.254.1.1 onlink dev eth0"
    ));
    for address in addresses {
        if address.contains(':') {
            run(&format!(
                "ip -n {name} addr add {address}/128 dev eth0 nodad && ip route add {address}/128 dev v-{name} \
                 && ip -n {name} -6 route replace default via fe80::1 dev eth0"
            ));
        } else {
            run(&format!(
                "ip -n {name} addr add {address}/32 dev eth0 && ip route add {address}/32 dev v-{name}"
            ));
        }
    }
}
