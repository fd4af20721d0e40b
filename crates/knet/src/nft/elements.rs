//! Scripts that add and delete elements of maps and sets, as a batch of nfnetlink messages: pure.
//!
//! The numbers and layouts are those of the kernel's interface (`linux/netfilter/nfnetlink.h`, `nf_tables.h`): a batch is one
//! transaction; attributes have a length and a type before them, of this machine's byte order, and are filled up to four bytes; what is
//! within keys is in the network's order, and the fields of a concatenation are filled up to four bytes each.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::netlink::{self, ACKNOWLEDGE, CREATE, NESTED, REQUEST, attribute, bytes, fill, string};

/// How many elements a batch has at most; longer scripts are `nft`'s.
pub(super) const ELEMENTS_MAX: usize = 512;
/// The longest name of a table, set or chain, in bytes (`NFT_NAME_MAXLEN`).
const NAME_BYTES_MAX: usize = 255;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_ELEMENT: u16 = 12;
const DELETE_ELEMENT: u16 = 14;

const LIST_TABLE: u16 = 1;
const LIST_SET: u16 = 2;
const LIST_ELEMENTS: u16 = 3;
const LIST_ELEMENT: u16 = 1;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const DROP: i32 = 0;
const ACCEPT: i32 = 1;
const JUMP: i32 = -3;
const GOTO: i32 = -4;
const RETURN: i32 = -5;

/// The batch of a script; `None` when it has anything but such elements, or too many of them.
pub(super) fn batch(script: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(script.len() * 2);
    message(&mut out, BATCH_BEGIN, REQUEST, 0, SUBSYSTEM, |_| {});
    let mut count = 0;
    for line in script.lines().filter(|line| !line.trim().is_empty()) {
        let command = Command::parse(line)?;
        count += command.elements.len();
        if count > ELEMENTS_MAX {
            return None;
        }
        command.write(&mut out);
    }
    message(&mut out, BATCH_END, REQUEST, 0, SUBSYSTEM, |_| {});
    (count > 0).then_some(out)
}

/// One line of a script.
struct Command<'a> {
    adds: bool,
    family: u8,
    table: &'a str,
    set: &'a str,
    elements: Vec<Element>,
}

struct Element {
    key: Vec<u8>,
    data: Option<Data>,
}

enum Data {
    Value(Vec<u8>),
    Verdict(i32, Option<String>),
}

impl<'a> Command<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (head, rest) = line.split_once('{')?;
        let (inner, after) = rest.split_once('}')?;
        let words: Vec<&str> = head.split_whitespace().collect();
        let [what, "element", family, table, set] = words[..] else { return None };
        let adds = match what {
            "add" => true,
            "delete" => false,
            _ => return None,
        };
        let family = match family {
            "inet" => 1,
            "ip" => 2,
            "ip6" => 10,
            _ => return None,
        };
        if !after.trim().is_empty() || [table, set].iter().any(|name| name.len() > NAME_BYTES_MAX) {
            return None;
        }
        let elements = inner.split(',').map(Element::parse).collect::<Option<Vec<_>>>()?;
        Some(Self { adds, family, table, set, elements })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let (kind, flags) = if self.adds { (NEW_ELEMENT, CREATE) } else { (DELETE_ELEMENT, 0) };
        let flags = REQUEST | ACKNOWLEDGE | flags;
        message(out, SUBSYSTEM << 8 | kind, flags, self.family, 0, |out| {
            string(out, LIST_TABLE, self.table);
            string(out, LIST_SET, self.set);
            attribute(out, LIST_ELEMENTS | NESTED, |out| {
                for element in &self.elements {
                    attribute(out, LIST_ELEMENT | NESTED, |out| element.write(out));
                }
            });
        });
    }
}

impl Element {
    /// Reads `10.0.0.1 . tcp . 80`, with what it leads to after ` : `.
    fn parse(text: &str) -> Option<Self> {
        // Addresses have colons of their own, without spaces around them.
        let (key, data) = match text.split_once(" : ") {
            Some((key, data)) => (key, Some(data.trim())),
            None => (text, None),
        };
        let data = match data {
            Some(data) => Some(verdict(data).or_else(|| fields(data).map(Data::Value))?),
            None => None,
        };
        Some(Self { key: fields(key.trim())?, data })
    }

    fn write(&self, out: &mut Vec<u8>) {
        attribute(out, ELEMENT_KEY | NESTED, |out| bytes(out, DATA_VALUE, &self.key));
        match &self.data {
            None => {}
            Some(Data::Value(value)) => {
                attribute(out, ELEMENT_DATA | NESTED, |out| bytes(out, DATA_VALUE, value));
            }
            Some(Data::Verdict(code, chain)) => attribute(out, ELEMENT_DATA | NESTED, |out| {
                attribute(out, DATA_VERDICT | NESTED, |out| {
                    bytes(out, VERDICT_CODE, &code.to_be_bytes());
                    if let Some(chain) = chain {
                        string(out, VERDICT_CHAIN, chain);
                    }
                });
            }),
        }
    }
}

fn verdict(text: &str) -> Option<Data> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let (code, chain) = match words[..] {
        ["drop"] => (DROP, None),
        ["accept"] => (ACCEPT, None),
        ["return"] => (RETURN, None),
        ["jump", chain] => (JUMP, Some(chain)),
        ["goto", chain] => (GOTO, Some(chain)),
        _ => return None,
    };
    chain
        .is_none_or(|chain| chain.len() <= NAME_BYTES_MAX)
        .then(|| Data::Verdict(code, chain.map(str::to_owned)))
}

/// The bytes of a value: an address, protocol or port, or several of them with dots between.
fn fields(text: &str) -> Option<Vec<u8>> {
    let fields: Vec<&str> = text.split(" . ").map(str::trim).collect();
    let mut out = Vec::new();
    for text in &fields {
        field(&mut out, text)?;
        if fields.len() > 1 {
            fill(&mut out);
        }
    }
    Some(out)
}

fn field(out: &mut Vec<u8>, text: &str) -> Option<()> {
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        out.extend(address.octets());
    } else if let Ok(address) = text.parse::<Ipv6Addr>() {
        out.extend(address.octets());
    } else if let Some((_, number)) =
        [("tcp", 6), ("udp", 17), ("sctp", 132)].iter().find(|(name, _)| *name == text)
    {
        out.push(*number);
    } else {
        out.extend(text.parse::<u16>().ok()?.to_be_bytes());
    }
    Some(())
}

/// Writes a message; neither numbers nor the sender's address are looked at, since all answers are to one batch.
fn message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let [high, low] = resource.to_be_bytes();
    netlink::message(out, kind, flags, 0, &[family, 0, high, low], write);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_laid_out_as_the_kernel_has_them() {
        for (text, expected) in [
            ("10.0.0.1", Some(&[10, 0, 0, 1][..])),
            ("80", Some(&[0, 80])),
            ("tcp", Some(&[6])),
            ("10.0.0.1 . tcp . 80", Some(&[10, 0, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0])),
            ("udp . 30053", Some(&[17, 0, 0, 0, 0x75, 0x65, 0, 0])),
            ("::1", Some(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])),
            ("10.0.0.0/8", None),
            ("1000-2000", None),
            ("65536", None),
            ("icmp . 1", None),
            ("", None),
        ] {
            assert_eq!(fields(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn only_elements_are_taken() {
        let add = "add element ip t m { 10.0.0.1 . tcp . 80 : goto c }\n";
        for (script, is_taken) in [
            (add, true),
            ("delete element inet t s { fd00::1 . fd00::1 }\n", true),
            ("add element ip t s { 10.0.0.1, 10.0.0.2 }\n", true),
            ("", false),
            ("\n", false),
            ("add chain ip t c\n", false),
            (&format!("{add}add rule ip t c accept\n"), false),
            ("flush set ip t s\n", false),
            ("add element arp t s { 10.0.0.1 }\n", false),
            ("add element ip t s { 10.0.0.0/8 }\n", false),
            ("add element ip t s { 10.0.0.1 timeout 5s }\n", false),
            ("add element ip t s { 10.0.0.1 } comment\n", false),
            ("add element ip t m { 10.0.0.1 : queue }\n", false),
        ] {
            assert_eq!(batch(script).is_some(), is_taken, "{script}");
        }
        assert!(batch(&add.repeat(ELEMENTS_MAX)).is_some());
        assert!(batch(&add.repeat(ELEMENTS_MAX + 1)).is_none());
    }

    /// Lengths lead from message to message and from attribute to attribute, to the end exactly.
    #[test]
    fn lengths_fit() {
        let script = "delete element ip table set { 10.0.0.1 . tcp . 80 }\n\
            add element ip table set { 10.0.0.1 . tcp . 80 : 10.0.0.2 . 8080 }\n\
            add element ip6 table map { fd00::1 : jump a-chain }\n";
        let batch = batch(script).unwrap();
        let mut kinds = Vec::new();
        let mut at = 0;
        while at < batch.len() {
            let length = u32::from_ne_bytes(batch[at..at + 4].try_into().unwrap()) as usize;
            kinds.push(u16::from_ne_bytes(batch[at + 4..at + 6].try_into().unwrap()));
            attributes(&batch[at + 20..at + length]);
            at += length;
        }
        assert_eq!(at, batch.len());
        assert_eq!(kinds, [0x10, 0x0a0e, 0x0a0c, 0x0a0c, 0x11]);
    }

    fn attributes(mut rest: &[u8]) {
        while !rest.is_empty() {
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            assert!(length >= 4 && length <= rest.len(), "{rest:?}");
            if u16::from_ne_bytes([rest[2], rest[3]]) & NESTED != 0 {
                attributes(&rest[4..length]);
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}
