//! The server beside a real `kube-apiserver`: both as processes with the same flags, the same client, the same work, one after
//! the other in one run; each row as the figures and their ratio.
//!
//! `KPLANE_PEER_APISERVER` names the peer's binary and `KPLANE_PEER_ETCD` the etcd that it keeps its objects in. Without them the
//! rows of kplane stand alone and those of the ratio say `no peer`. kplane keeps its objects in memory, as it does by default,
//! and then, where there is an etcd, in one of the same kind.

mod servers;
mod work;

use self::servers::{Kind, Server};

/// What was measured of one kind of work: how often in a second, and the servers' CPU time for each in microseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Figures {
    pub(super) per_second: f64,
    pub(super) server_cpu_us: f64,
}

/// Serves as the face of kplane that the arguments name, if they do; whether they did.
pub(crate) fn is_face() -> bool {
    servers::serve_face()
}

pub(crate) async fn run() {
    let mut columns: Vec<(Kind, Vec<(String, Figures)>)> = Vec::new();
    for kind in [Kind::Peer, Kind::Memory, Kind::Etcd] {
        let Some(server) = Server::start(kind).await else { continue };
        let rows = work::all(&server).await;
        for (row, figures) in &rows {
            let name = format!("peer_{row}_{}", kind.name());
            kplane_benches::figure(&format!("{name}_per_second"), figures.per_second, "1/s");
            kplane_benches::figure(&format!("{name}_server_cpu"), figures.server_cpu_us, "us");
        }
        columns.push((kind, rows));
    }
    print(&columns);
}

/// A table with a row for each kind of work, and in it what each server did and how it compares to the peer.
fn print(columns: &[(Kind, Vec<(String, Figures)>)]) {
    let of = |kind: Kind| columns.iter().find(|(found, _)| *found == kind).map(|(_, rows)| rows);
    let peer = of(Kind::Peer);
    println!("| row | peer 1/s, us | kplane 1/s, us | ratio 1/s, us | over etcd 1/s, us | ratio 1/s, us |");
    println!("|---|---|---|---|---|---|");
    for (index, (row, own)) in of(Kind::Memory).into_iter().flatten().enumerate() {
        let peer = peer.and_then(|rows| rows.get(index)).map(|(_, figures)| *figures);
        let over_etcd = of(Kind::Etcd).and_then(|rows| rows.get(index)).map(|(_, figures)| *figures);
        let shown = |figures: Option<Figures>| {
            figures.map_or("-".to_owned(), |it| format!("{:.0}, {:.0}", it.per_second, it.server_cpu_us))
        };
        let ratio = |figures: Option<Figures>| match (peer, figures) {
            (None, _) => "no peer".to_owned(),
            (Some(_), None) => "-".to_owned(),
            (Some(peer), Some(it)) => {
                let cpu = peer.server_cpu_us / it.server_cpu_us.max(1e-9);
                format!("{:.1}, {cpu:.1}", it.per_second / peer.per_second.max(1e-9))
            }
        };
        let (own, over) = (Some(*own), over_etcd);
        println!(
            "| {row} | {} | {} | {} | {} | {} |",
            shown(peer),
            shown(own),
            ratio(own),
            shown(over),
            ratio(over)
        );
    }
}
