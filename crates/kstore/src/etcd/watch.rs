//! Following what happens.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError},
    task::{Context, Poll},
};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;
use tonic::Streaming;

use super::{Etcd, EtcdError, failed, header, keys::Keys, revision, signed};
use crate::{RemoteChange, RemoteError, RemoteEvent, Revision, proto as pb};

/// How many questions may wait to be sent.
const ASKED_MAX: usize = 64;

impl Etcd {
    pub(super) async fn follow(
        &self,
        after: Revision,
    ) -> Result<BoxStream<'static, Result<RemoteChange, RemoteError>>, RemoteError> {
        let (key, range_end) = self.keys.all();
        let create = pb::WatchCreateRequest {
            key,
            range_end,
            start_revision: signed(after.0).saturating_add(1),
            progress_notify: self.tells_progress,
            fragment: true,
            ..Default::default()
        };
        let (ask, asked) = mpsc::channel(ASKED_MAX);
        let first = pb::WatchRequest { request_union: Some(pb::WatchUnion::Create(create)) };
        let requests = stream::iter([first]).chain(Asked(asked));
        let answers: Streaming<pb::WatchResponse> = match self.channels.stream("Watch/Watch", requests).await
        {
            Ok(answers) => answers,
            Err(status) => return Err(failed(status)),
        };
        if self.tells_progress {
            // Commits may already wait for something that came before this stream.
            let request = pb::WatchRequest { request_union: Some(pb::WatchUnion::Progress(pb::Empty {})) };
            let _ = ask.send(request).await;
        }
        *self.ask.lock().unwrap_or_else(PoisonError::into_inner) = Some(ask);
        let following =
            Following { answers, keys: self.keys.clone(), tells_progress: self.tells_progress, after };
        Ok(stream::unfold(Some(following), |following| async {
            let mut following = following?;
            match following.next().await {
                Ok(change) => Some((Ok(change), Some(following))),
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed())
    }
}

/// The questions, as a stream that ends with the last one who asks.
struct Asked(mpsc::Receiver<pb::WatchRequest>);

impl Stream for Asked {
    type Item = pb::WatchRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context)
    }
}

struct Following {
    answers: Streaming<pb::WatchResponse>,
    keys: Keys,
    tells_progress: bool,
    after: Revision,
}

impl Following {
    async fn next(&mut self) -> Result<RemoteChange, RemoteError> {
        let mut events = Vec::new();
        loop {
            let answer = self.answers.message().await.map_err(failed)?;
            let ended = |why: String| RemoteError::Failed(Arc::new(EtcdError::WatchEnded(why)));
            let Some(answer) = answer else { return Err(ended("the stream ended".to_owned())) };
            if answer.canceled {
                return Err(match answer.compact_revision {
                    0 if !answer.cancel_reason.contains("compacted") => ended(answer.cancel_reason),
                    _ => RemoteError::Compacted,
                });
            }
            let quiet = answer.events.is_empty() && !answer.fragment && events.is_empty();
            if quiet && (answer.created || !self.tells_progress) {
                // An answer to the creation is sent before what happened since is looked at.
                continue;
            }
            if quiet {
                self.after = self.after.max(header(answer.header));
                return Ok(RemoteChange { revision: self.after, events });
            }
            let keys = &self.keys;
            for event in answer.events {
                if let Some(kv) = event.kv {
                    let at = revision(kv.mod_revision);
                    self.after = self.after.max(at);
                    events.extend(told(keys, event.r#type, kv).map(|event| (at, event)));
                }
            }
            if !answer.fragment {
                return Ok(RemoteChange { revision: self.after, events });
            }
        }
    }
}

fn told(keys: &Keys, kind: i32, kv: pb::KeyValue) -> Option<RemoteEvent> {
    if kind == pb::EventType::Delete as i32 {
        let (table, key) = keys.split(&kv.key)?;
        return Some(RemoteEvent::Delete { table, key });
    }
    keys.entry(kv).map(RemoteEvent::Put)
}
