//! Endpoints that come and go under load.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::parts::{Client, Echo, proxy, table};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
const GENERATIONS: usize = 12;

/// Every endpoint is replaced again and again, as by a Deployment that is rolled over: the new one comes, the old one goes, and
/// ends in good order. No request fails, neither those that may be repeated nor those that may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_replaced_without_a_failed_request() {
    let mut old = Echo::start("generation").await;
    let (proxy, address) = proxy(table(&[old.address])).await;
    let going = Arc::new(watch::Sender::new(true));
    let mut clients = Vec::new();
    for number in 0..6 {
        let mut client =
            if number % 2 == 0 { Client::http1(address).await } else { Client::http2(address).await };
        let going = going.subscribe();
        let (done, progress) = watch::channel(0_usize);
        let task = tokio::spawn(async move {
            while *going.borrow() {
                assert_eq!(client.get("/").await, (200, "generation".to_owned()));
                assert_eq!(client.post("text").await, (200, "text".to_owned()));
                done.send_modify(|done| *done += 1);
            }
        });
        clients.push((task, progress));
    }
    for _ in 0..GENERATIONS {
        let new = Echo::start("generation").await;
        proxy.set_table(table(&[new.address]));
        // When everybody has begun another round, nobody is on the way to the old endpoint.
        for (task, progress) in &mut clients {
            let since = *progress.borrow_and_update();
            let further = progress.wait_for(|done| *done >= since + 2);
            let further = tokio::time::timeout(PATIENCE, further).await.unwrap().map(drop);
            if further.is_err() {
                panic!("a request has failed: {:?}", task.await);
            }
        }
        tokio::time::timeout(PATIENCE, old.stop()).await.unwrap();
        old = new;
    }
    going.send_replace(false);
    for (task, _) in clients {
        task.await.unwrap();
    }
}

/// A request that runs when its endpoint is taken away is answered by it to the end; the next one goes elsewhere.
#[tokio::test]
async fn what_runs_on_a_removed_endpoint_ends_there() {
    use bytes::Bytes;
    use futures::SinkExt as _;
    use http::Request;
    use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
    use hyper::body::Frame;

    let (old, new) = (Echo::start("old").await, Echo::start("new").await);
    let (proxy, address) = proxy(table(&[old.address])).await;
    let mut client = Client::http1(address).await;
    let (mut sender, receiver) = futures::channel::mpsc::channel(1);
    let body = UnsyncBoxBody::new(StreamBody::new(receiver));
    let request = Request::post("/").header("host", "shop.example").body(body).unwrap();
    sender.send(Ok(Frame::data(Bytes::from("one")))).await.unwrap();
    let mut body = client.send(request).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    proxy.set_table(table(&[new.address]));
    assert_eq!(Client::http1(address).await.get("/").await, (200, "new".to_owned()));
    sender.send(Ok(Frame::data(Bytes::from("two")))).await.unwrap();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "two");
    drop(sender);
    assert!(body.frame().await.is_none());
    // With its last request the connection ends, so that the endpoint need not wait for anybody.
    tokio::time::timeout(PATIENCE, old.stop()).await.unwrap();
}

/// A proxy that is to end lets requests end, and takes no new ones.
#[tokio::test]
async fn a_proxy_ends_in_good_order() {
    let echo = Echo::start("echo").await;
    let (proxy, address) = proxy(table(&[echo.address])).await;
    let (mut one, mut two) = (Client::http1(address).await, Client::http2(address).await);
    assert_eq!(one.get("/").await.0, 200);
    assert_eq!(two.get("/").await.0, 200);
    tokio::time::timeout(PATIENCE, proxy.shutdown(PATIENCE * 10)).await.unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
