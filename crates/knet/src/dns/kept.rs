//! Answers that were given, for those who ask the same before the zone changes.

use std::collections::HashMap;

use hickory_proto::op::ResponseCode;

use super::{Zone, packet::PLAIN_BYTES_MAX};

/// How many answers are kept; one more, and all are forgotten.
pub const KEPT_ANSWERS_MAX: usize = 8192;
/// The bytes of a message's id, which are another client's each time.
const ID_BYTES: usize = 2;

/// The answers of one state of a zone, as bytes, by the bytes of their questions; both without the id. Whatever else a question says, such
/// as the length of answer that its client takes, is told apart that way.
#[derive(Debug, Default)]
pub(super) struct Kept {
    version: Option<[u64; 3]>,
    answers: HashMap<Box<[u8]>, Box<[u8]>>,
}

impl Kept {
    /// Looks at which state the zone has; answers of another one are forgotten. To be called before anything else is asked of the zone: what
    /// changes while an answer is made is then seen the next time.
    pub(super) fn look(&mut self, zone: &dyn Zone) {
        let version = zone.version();
        if self.version != version {
            self.answers.clear();
            self.version = version;
        }
    }

    /// Writes the answer to this question to `out`, if it is known.
    pub(super) fn find(&self, question: &[u8], out: &mut Vec<u8>) -> bool {
        let Some((id, rest)) = question.split_at_checked(ID_BYTES) else { return false };
        let Some(answer) = self.answers.get(rest) else { return false };
        out.clear();
        out.extend_from_slice(id);
        out.extend_from_slice(answer);
        true
    }

    /// Keeps an answer, if it is one of the zone's.
    pub(super) fn put(&mut self, question: &[u8], code: ResponseCode, answer: &[u8]) {
        let is_of_zone = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        if self.version.is_none() || !is_of_zone || question.len() > PLAIN_BYTES_MAX {
            return;
        }
        if let (Some(question), Some(answer)) = (question.get(ID_BYTES..), answer.get(ID_BYTES..)) {
            if self.answers.len() >= KEPT_ANSWERS_MAX {
                self.answers.clear();
            }
            self.answers.insert(question.into(), answer.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

    use super::*;

    #[derive(Debug, Default)]
    struct Versioned(AtomicU64);

    impl Zone for Versioned {
        fn service(&self, _: &str, _: &str) -> Option<Arc<Service>> {
            None
        }
        fn slices(&self, _: &str, _: &str) -> Vec<Arc<EndpointSlice>> {
            Vec::new()
        }
        fn has_namespace(&self, _: &str) -> bool {
            false
        }
        fn service_at(&self, _: IpAddr) -> Option<(String, String)> {
            None
        }
        fn hosts_at(&self, _: IpAddr) -> Vec<(String, String, String)> {
            Vec::new()
        }
        fn version(&self) -> Option<[u64; 3]> {
            let version = self.0.load(Ordering::SeqCst);
            (version > 0).then_some([1, version, 1])
        }
    }

    #[test]
    fn answers_hold_as_long_as_the_zone_does() {
        let zone = Versioned::default();
        let (mut kept, mut out) = (Kept::default(), Vec::new());
        kept.look(&zone);
        kept.put(b"12question", ResponseCode::NoError, b"12answer");
        assert!(!kept.find(b"12question", &mut out), "of a zone without versions nothing is kept");
        zone.0.store(1, Ordering::SeqCst);
        kept.look(&zone);
        kept.put(b"12question", ResponseCode::NoError, b"12answer");
        kept.put(b"12refused", ResponseCode::Refused, b"12answer");
        kept.put(b"1", ResponseCode::NoError, b"1");
        kept.look(&zone);
        assert!(kept.find(b"34question", &mut out));
        assert_eq!(out, b"34answer", "with the id of who asks now");
        for other in [&b"12Question"[..], b"12refused", b"12", b"1", b""] {
            assert!(!kept.find(other, &mut out), "{other:?}");
        }
        zone.0.store(2, Ordering::SeqCst);
        kept.look(&zone);
        assert!(!kept.find(b"34question", &mut out));
    }

    #[test]
    fn they_are_bounded() {
        let zone = Versioned(AtomicU64::new(1));
        let mut kept = Kept::default();
        kept.look(&zone);
        for number in 0..=KEPT_ANSWERS_MAX {
            kept.put(format!("id{number}").as_bytes(), ResponseCode::NXDomain, b"idanswer");
        }
        assert_eq!(kept.answers.len(), 1);
        kept.put(&[7; PLAIN_BYTES_MAX + 1], ResponseCode::NoError, b"idlong");
        assert_eq!(kept.answers.len(), 1);
    }
}
