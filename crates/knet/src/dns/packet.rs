//! From the bytes of a question to what is to be done, and from an answer to its bytes: pure.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};

use super::{Answer, Zone, answer};

/// The longest answer over UDP, whatever a client says that it takes, in bytes: more could be cut into fragments on the way, which get
/// lost and can be forged (the value of DNS flag day 2020).
pub const UDP_BYTES_MAX: usize = 1232;
/// The longest answer over UDP to a client that doesn't say what it takes, in bytes (RFC 1035, section 2.3.4).
pub const PLAIN_BYTES_MAX: usize = 512;
/// The longest message over TCP, in bytes.
pub const TCP_BYTES_MAX: usize = 65_535;
/// The bytes of a message's header.
const HEADER_BYTES: usize = 12;

/// What is to be done with a message that came.
#[derive(Debug)]
pub enum Reaction {
    /// Nothing: it is no question. Answers to answers would go around forever.
    Ignore,
    /// This is the answer, and how long it may be over UDP, in bytes.
    Reply(Box<Message>, usize),
    /// Other servers have to be asked: the question, and what is known so far.
    Ask(Box<Message>, Answer),
}

/// What is to be done with the bytes of a message, by a server of the cluster `domain`.
///
/// ```
/// use knet::dns::{Reaction, respond};
/// # fn example(zone: &dyn knet::dns::Zone) {
/// assert!(matches!(respond(b"what is this?", "cluster.local", zone), Reaction::Reply(..)), "a format error");
/// assert!(matches!(respond(b"short", "cluster.local", zone), Reaction::Ignore));
/// # }
/// ```
#[must_use]
pub fn respond(packet: &[u8], domain: &str, zone: &dyn Zone) -> Reaction {
    let question = match Message::from_vec(packet) {
        Ok(question) => question,
        Err(_) => return malformed(packet),
    };
    if question.metadata.message_type == MessageType::Response {
        return Reaction::Ignore;
    }
    let limit = udp_limit(&question);
    // RFC 6891, section 6.1.3: who knows a later version of the extension is told which one is known here.
    if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        let mut reply = reply_to(&question);
        reply.metadata.response_code = ResponseCode::BADVERS;
        return Reaction::Reply(Box::new(reply), limit);
    }
    match answer(&question, domain, zone) {
        Answer::Final(reply) => Reaction::Reply(reply, limit),
        other => Reaction::Ask(Box::new(question), other),
    }
}

/// An empty answer to a question.
pub(super) fn reply_to(question: &Message) -> Message {
    let mut reply = Message::response(question.metadata.id, question.metadata.op_code);
    reply.metadata.recursion_desired = question.metadata.recursion_desired;
    reply.metadata.checking_disabled = question.metadata.checking_disabled;
    reply.queries.clone_from(&question.queries);
    if let Some(asked) = &question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(UDP_BYTES_MAX).unwrap_or(u16::MAX));
        // RFC 3225, section 3: the bit comes back as it was.
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        reply.set_edns(edns);
    }
    reply
}

/// The answer to what can't be read: an error, as far as it is a question at all.
fn malformed(packet: &[u8]) -> Reaction {
    let Some([high, low, flags, ..]) = packet.get(..HEADER_BYTES) else { return Reaction::Ignore };
    if flags & 0x80 != 0 {
        return Reaction::Ignore;
    }
    let id = u16::from_be_bytes([*high, *low]);
    let op_code = OpCode::from_u8(flags >> 3 & 0x0f);
    let error = Message::error_msg(id, op_code, ResponseCode::FormErr);
    Reaction::Reply(Box::new(error), PLAIN_BYTES_MAX)
}

/// How long an answer over UDP may be for who asked this question, in bytes.
#[must_use]
pub fn udp_limit(question: &Message) -> usize {
    question
        .edns
        .as_ref()
        .map_or(PLAIN_BYTES_MAX, |edns| usize::from(edns.max_payload()).clamp(PLAIN_BYTES_MAX, UDP_BYTES_MAX))
}

/// The bytes of an answer. One that is longer than the limit says so and has no records: the client asks again over TCP. `None` when
/// there is no way to say it.
#[must_use]
pub fn encode(reply: &Message, limit: usize) -> Option<Vec<u8>> {
    match reply.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Some(bytes),
        _ => reply.truncate().to_vec().ok().filter(|bytes| bytes.len() <= limit),
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::{
        op::Query,
        rr::{Name, RecordType},
    };

    use super::{super::tests::zone, *};

    fn question(name: &str, wanted: RecordType) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).unwrap(), wanted));
        question
    }

    fn react(question: &Message) -> Option<Message> {
        match respond(&question.to_vec().unwrap(), "cluster.local", &zone()) {
            Reaction::Ignore => None,
            Reaction::Reply(reply, _) => Some(*reply),
            Reaction::Ask(..) => panic!("{question} is answered here"),
        }
    }

    #[test]
    fn what_is_no_question_is_not_answered() {
        let mut reply = question("web.shop.svc.cluster.local.", RecordType::A);
        reply.metadata.message_type = MessageType::Response;
        assert!(react(&reply).is_none());
        for packet in [&b""[..], b"short", &[0xff; HEADER_BYTES], &[0x80; 40]] {
            assert!(matches!(respond(packet, "cluster.local", &zone()), Reaction::Ignore), "{packet:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_told_so() {
        // It says that it has a question, which is not there.
        let packet = [0x12, 0x34, 0x09, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let Reaction::Reply(reply, _) = respond(&packet, "cluster.local", &zone()) else {
            panic!("an answer")
        };
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (0x1234, ResponseCode::FormErr));
        let two = {
            let mut two = question("web.shop.svc.cluster.local.", RecordType::A);
            two.add_query(two.queries[0].clone());
            two
        };
        assert_eq!(react(&two).unwrap().metadata.response_code, ResponseCode::FormErr);
        let mut update = question("web.shop.svc.cluster.local.", RecordType::A);
        update.metadata.op_code = OpCode::Notify;
        assert_eq!(react(&update).unwrap().metadata.response_code, ResponseCode::NotImp);
        let transfer = question("cluster.local.", RecordType::AXFR);
        assert_eq!(react(&transfer).unwrap().metadata.response_code, ResponseCode::Refused);
    }

    #[test]
    fn extensions_are_answered_as_they_are_asked_for() {
        let mut asked = question("web.shop.svc.cluster.local.", RecordType::A);
        assert!(react(&asked).unwrap().edns.is_none());
        let mut edns = Edns::new();
        edns.set_dnssec_ok(true).set_max_payload(4096);
        asked.set_edns(edns.clone());
        let told = react(&asked).unwrap().edns.unwrap();
        assert_eq!((told.flags().dnssec_ok, usize::from(told.max_payload())), (true, UDP_BYTES_MAX));
        edns.set_version(1);
        asked.set_edns(edns);
        let reply = react(&asked).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::BADVERS);
        assert_eq!(reply.edns.unwrap().version(), 0);
    }

    #[test]
    fn answers_have_the_length_that_clients_take() {
        let asking = |payload: Option<u16>| {
            let mut asked = question("wide.shop.svc.cluster.local.", RecordType::A);
            if let Some(payload) = payload {
                let mut edns = Edns::new();
                edns.set_max_payload(payload);
                asked.set_edns(edns);
            }
            asked
        };
        for (payload, limit, is_cut) in [
            (None, PLAIN_BYTES_MAX, true),
            (Some(100), PLAIN_BYTES_MAX, true),
            (Some(1000), 1000, false),
            (Some(9000), UDP_BYTES_MAX, false),
        ] {
            let asked = asking(payload);
            assert_eq!(udp_limit(&asked), limit);
            let bytes = encode(&react(&asked).unwrap(), limit).unwrap();
            let reply = Message::from_vec(&bytes).unwrap();
            assert_eq!(
                (reply.metadata.truncation, reply.answers.is_empty()),
                (is_cut, is_cut),
                "{payload:?}"
            );
            assert_eq!(reply.edns.is_some(), payload.is_some());
        }
        let whole = encode(&react(&asking(None)).unwrap(), TCP_BYTES_MAX).unwrap();
        assert_eq!(Message::from_vec(&whole).unwrap().answers.len(), 40);
    }
}
