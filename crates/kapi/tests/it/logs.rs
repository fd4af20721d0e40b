//! What the server logs of a request.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use http::Request;
use http_body_util::Full;
use kapi::authn::{MASTERS, UserInfo};
use tower::ServiceExt as _;
use tracing_subscriber::filter::LevelFilter;

use crate::harness::server;

/// Lines of a log, shared with whoever writes it.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// One line for each request, and everything on its way in a span that says whose request it is.
#[tokio::test]
async fn requests_are_logged_with_who_asked_for_what() {
    let (server, lines) = (server().await, Lines::default());
    let writer = lines.clone();
    let log = tracing_subscriber::fmt()
        .with_max_level(LevelFilter::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(log);
    let path = "/api/v1/namespaces/default/configmaps/absent";
    let request = Request::get(path).header("user-agent", "tester/1.0").body(Full::<bytes::Bytes>::default());
    let answer = server.as_user(UserInfo::new("alice", [MASTERS])).oneshot(request.unwrap()).await.unwrap();
    assert_eq!(answer.status().as_u16(), 404);
    drop(guard);
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    let span = format!("request{{verb=get path={path} user_agent=\"tester/1.0\"");
    let of_request: Vec<_> = text.lines().filter(|line| line.contains(&span)).collect();
    let ended = |line: &&&str| line.contains("HTTP code=404 took=") && line.contains("user=\"alice\"");
    assert_eq!(of_request.iter().filter(ended).count(), 1, "{text}");
    assert!(of_request.iter().any(|line| line.contains("refused") && line.contains("not found")), "{text}");
}
