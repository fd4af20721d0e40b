//! The same requests to the face and to a real etcd: the answers must be the same, headers' names of cluster and member apart.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tonic::Status;

use super::EtcdServer;
use crate::{
    MemoryStore,
    etcd::Channels,
    proto as pb,
    testing::{Random, RealEtcd},
};

/// How many requests are compared.
const REQUESTS: usize = 4_000;

fn key(random: &mut Random) -> Bytes {
    format!("k{}", random.below(12)).into()
}

/// An end of a range: none, one zero byte, a key, the end of everything that begins with `k`.
fn end(random: &mut Random) -> Bytes {
    match random.below(5) {
        0 | 1 => Bytes::new(),
        2 => Bytes::from_static(&[0]),
        3 => Bytes::from_static(b"l"),
        _ => key(random),
    }
}

fn value(random: &mut Random) -> Bytes {
    random.below(5).to_string().into()
}

fn about(random: &mut Random, revision: i64) -> i64 {
    revision + 2 - random.below(12).cast_signed()
}

fn range(random: &mut Random, revision: i64) -> pb::RangeRequest {
    let mut request = pb::RangeRequest { key: key(random), range_end: end(random), ..Default::default() };
    if random.happens(300) {
        request.limit = random.below(5).cast_signed() - 1;
    }
    if random.happens(300) {
        request.revision = about(random, revision);
    }
    if random.happens(300) {
        // What is no order or target is refused from etcd 3.5 on only.
        request.sort_order = i32::try_from(random.below(3)).unwrap_or(0);
        request.sort_target = i32::try_from(random.below(5)).unwrap_or(0);
        // etcd's sort is not stable: only what differs in all keys has one order.
        if !matches!(request.sort_target, 0 | 2 | 3) {
            request.limit = 0;
            request.range_end = Bytes::new();
        }
    }
    request.keys_only = random.happens(100);
    request.count_only = random.happens(100);
    if random.happens(100) {
        request.min_mod_revision = about(random, revision).max(0);
        request.max_create_revision = about(random, revision).max(0);
    }
    request
}

fn put(random: &mut Random) -> pb::PutRequest {
    let mut request = pb::PutRequest { key: key(random), value: value(random), ..Default::default() };
    request.prev_kv = random.happens(300);
    match random.below(12) {
        0 => request.lease = 1 + random.below(3).cast_signed(),
        1 => request.ignore_lease = true,
        2 => (request.ignore_value, request.value) = (true, Bytes::new()),
        3 => request.ignore_value = true,
        4 => (request.ignore_lease, request.lease) = (true, 1),
        _ => {}
    }
    if random.happens(20) {
        request.key = Bytes::new();
    }
    request
}

fn delete(random: &mut Random) -> pb::DeleteRangeRequest {
    let range_end = if random.happens(700) { Bytes::new() } else { end(random) };
    pb::DeleteRangeRequest { key: key(random), range_end, prev_kv: random.happens(500) }
}

/// etcd does not see that a deletion of everything from a key on overlaps with what the transaction puts; the face does, and
/// refuses it.
fn delete_in_txn(random: &mut Random) -> pb::DeleteRangeRequest {
    let mut request = delete(random);
    if request.range_end[..] == [0] {
        request.range_end = Bytes::from_static(b"l");
    }
    request
}

fn compare(random: &mut Random, revision: i64) -> pb::Compare {
    let target = random.below(5);
    let union = match target {
        0 => pb::TargetUnion::Version(random.below(4).cast_signed()),
        1 => pb::TargetUnion::CreateRevision(about(random, revision)),
        2 => pb::TargetUnion::ModRevision(about(random, revision)),
        3 => pb::TargetUnion::Value(value(random)),
        _ => pb::TargetUnion::Lease(random.below(3).cast_signed()),
    };
    pb::Compare {
        result: i32::try_from(random.below(4)).unwrap_or(0),
        target: i32::try_from(target).unwrap_or(0),
        key: key(random),
        target_union: Some(union),
        range_end: if random.happens(250) { end(random) } else { Bytes::new() },
    }
}

fn ops(random: &mut Random, revision: i64, depth: u32) -> Vec<pb::RequestOp> {
    (0..random.below(4))
        .map(|_| {
            let request = match random.below(if depth == 0 { 8 } else { 10 }) {
                0..3 => pb::Request::Put(put(random)),
                3..5 => pb::Request::DeleteRange(delete_in_txn(random)),
                5..8 => pb::Request::Range(range(random, revision)),
                _ => pb::Request::Txn(txn(random, revision, depth - 1)),
            };
            pb::RequestOp { request: Some(request) }
        })
        .collect()
}

fn txn(random: &mut Random, revision: i64, depth: u32) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: (0..random.below(3)).map(|_| compare(random, revision)).collect(),
        success: ops(random, revision, depth),
        failure: ops(random, revision, depth),
    }
}

/// What is compared of an answer: its revision, and everything but the header.
fn told<A: std::fmt::Debug>(
    answer: Result<A, Status>,
    strip: impl Fn(&mut A) -> Option<pb::ResponseHeader>,
) -> Result<(i64, String), (tonic::Code, String)> {
    match answer {
        Ok(mut answer) => {
            let revision = strip(&mut answer).map_or(-1, |header| header.revision);
            Ok((revision, format!("{answer:?}")))
        }
        Err(status) => Err((status.code(), status.message().to_owned())),
    }
}

/// Inner answers of etcd carry a revision alone, and not always the same one; it says nothing that the outer doesn't.
fn strip(response: &mut pb::TxnResponse) -> Option<pb::ResponseHeader> {
    for op in &mut response.responses {
        match &mut op.response {
            Some(pb::Response::Range(range)) => range.header = None,
            Some(pb::Response::Put(put)) => put.header = None,
            Some(pb::Response::DeleteRange(delete)) => delete.header = None,
            Some(pb::Response::Txn(txn)) => drop(strip(txn)),
            None => {}
        }
    }
    response.header.take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_face_answers_as_etcd_does() {
    let Some(etcd) = RealEtcd::start(1) else { return };
    let server = EtcdServer::new(Arc::new(MemoryStore::new())).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    let connect = |endpoint: String| Channels::new(&[endpoint], None, None, Duration::from_secs(10)).unwrap();
    let both = [connect(etcd.endpoints().remove(0)), connect(format!("http://{address}"))];

    let mut random = Random::new(4);
    let mut revision = 1;
    // Leases 1 and 2 are there for longer than the test runs, 3 is not.
    for id in [1, 2] {
        for channel in &both {
            let grant = pb::LeaseGrantRequest { id, ttl: 6_000 };
            let _: pb::LeaseGrantResponse = channel.call_once("Lease/LeaseGrant", grant).await.unwrap();
        }
    }
    for step in 0..REQUESTS {
        let mut answers = Vec::new();
        let kind = random.below(100);
        let seed = random.below(u64::MAX);
        let mut asked = String::new();
        for channel in &both {
            let mut random = Random::new(seed);
            let answer = match kind {
                0..35 => {
                    let request = txn(&mut random, revision, 2);
                    asked = format!("{request:?}");
                    told(channel.call_once("KV/Txn", request).await, strip)
                }
                35..60 => {
                    let request = put(&mut random);
                    asked = format!("{request:?}");
                    told(channel.call_once("KV/Put", request).await, |answer: &mut pb::PutResponse| {
                        answer.header.take()
                    })
                }
                60..70 => {
                    let request = delete(&mut random);
                    asked = format!("{request:?}");
                    let answer = channel.call_once("KV/DeleteRange", request).await;
                    told(answer, |answer: &mut pb::DeleteRangeResponse| answer.header.take())
                }
                70..98 => {
                    let request = range(&mut random, revision);
                    asked = format!("{request:?}");
                    told(channel.call_once("KV/Range", request).await, |answer: &mut pb::RangeResponse| {
                        answer.header.take()
                    })
                }
                _ => {
                    let request =
                        pb::CompactionRequest { revision: about(&mut random, revision), physical: true };
                    asked = format!("{request:?}");
                    told(channel.call_once("KV/Compact", request).await, |answer: &mut pb::HeaderOnly| {
                        answer.header.take()
                    })
                }
            };
            answers.push(answer);
        }
        // Of several faults in a transaction, which is told first differs between versions of etcd.
        let both_refuse = kind < 35 && answers.iter().all(Result::is_err);
        assert!(both_refuse || answers[1] == answers[0], "request {step}: {asked}\n{:#?}", answers);
        if let Ok((now, _)) = &answers[0] {
            revision = *now;
        }
    }
}
