//! Messages to the kernel and its answers (netlink, RFC 3549): the layout of messages and attributes, and the way of a request.
//!
//! Numbers are of this machine's byte order where nothing else is said. Attributes have a length and a type before them and are filled up
//! to four bytes; their length does not count what fills them up.

use std::{fmt, io};

pub(crate) const REQUEST: u16 = 0x001;
pub(crate) const ACKNOWLEDGE: u16 = 0x004;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const CREATE: u16 = 0x400;
/// The flag of an attribute that has attributes in it.
pub(crate) const NESTED: u16 = 0x8000;
/// The flags that are no part of an attribute's type.
const KIND_FLAGS: u16 = 0xc000;

/// The bytes of a message's header, of an error's number, and of an attribute's header.
const HEADER_BYTES: usize = 16;
const ERROR_BYTES: usize = 4;
const ATTRIBUTE_BYTES: usize = 4;
/// The types of messages that acknowledge or refuse, and that end a list.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// How many bytes of answers are read at a time: the kernel's own limit is 32 KiB.
#[cfg(target_os = "linux")]
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Writes a message with its headers: `header` is the one that follows netlink's own. Answers carry the same number.
pub(crate) fn message(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    number: u32,
    header: &[u8],
    write: impl FnOnce(&mut Vec<u8>),
) {
    let begin = out.len();
    out.extend(0_u32.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(flags.to_ne_bytes());
    out.extend(number.to_ne_bytes());
    // The kernel knows who sends.
    out.extend([0; 4]);
    out.extend(header);
    fill(out);
    write(out);
    let length = u32::try_from(out.len() - begin).unwrap_or(u32::MAX);
    out[begin..begin + 4].copy_from_slice(&length.to_ne_bytes());
}

/// Writes an attribute; its length is known when it is done.
pub(crate) fn attribute(out: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    out.extend(0_u16.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    write(out);
    let length = u16::try_from(out.len() - begin).unwrap_or(u16::MAX);
    out[begin..begin + 2].copy_from_slice(&length.to_ne_bytes());
    fill(out);
}

/// Writes an attribute of these bytes.
pub(crate) fn bytes(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    attribute(out, kind, |out| out.extend(value));
}

/// Writes an attribute of a text, with the zero that ends it.
pub(crate) fn string(out: &mut Vec<u8>, kind: u16, value: &str) {
    attribute(out, kind, |out| {
        out.extend(value.bytes());
        out.push(0);
    });
}

/// Fills up to four bytes.
pub(crate) fn fill(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The attributes of a message or of another attribute: types and values. What is cut ends them.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk::<2>()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk::<2>()?);
        let value = rest.get(ATTRIBUTE_BYTES..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & !KIND_FLAGS, value))
    })
}

/// The first four bytes of a value as a number.
pub(crate) fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk::<4>().map(|value| u32::from_ne_bytes(*value))
}

/// What the kernel answered.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// The messages that say something: type, and what is behind netlink's header.
    pub(crate) messages: Vec<(u16, Vec<u8>)>,
    /// What was refused, by the number of the request.
    pub(crate) refused: Vec<(u32, io::Error)>,
    /// How many requests and lists have ended.
    ends: usize,
}

impl Answers {
    /// Reads one datagram. What is cut, or claims to be longer than it is, ends it.
    fn read(&mut self, mut rest: &[u8]) {
        while let Some(length) = number(rest) {
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            let Some(message) = rest.get(..length).filter(|_| length >= HEADER_BYTES) else { return };
            let kind = u16::from_ne_bytes([message[4], message[5]]);
            let request = number(&message[8..]).unwrap_or_default();
            let body = &message[HEADER_BYTES..];
            match kind {
                ERROR | DONE => {
                    self.ends += 1;
                    let code = body.first_chunk::<ERROR_BYTES>().map_or(0, |code| i32::from_ne_bytes(*code));
                    if code < 0 {
                        self.refused.push((request, io::Error::from_raw_os_error(code.saturating_neg())));
                    }
                }
                _ => self.messages.push((kind, body.to_vec())),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    /// The messages, if nothing was refused.
    ///
    /// # Errors
    /// The first refusal.
    pub(crate) fn all(self) -> io::Result<Vec<(u16, Vec<u8>)>> {
        match self.refused.into_iter().next() {
            Some((_, error)) => Err(error),
            None => Ok(self.messages),
        }
    }
}

/// A way to a part of the kernel, in the network namespace of the thread that opened it.
pub(crate) struct Socket {
    #[cfg(target_os = "linux")]
    socket: netlink_sys::Socket,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

#[cfg(target_os = "linux")]
impl std::os::fd::AsRawFd for Socket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(target_os = "linux")]
impl Socket {
    /// One to a part of the kernel, such as `NETLINK_ROUTE`; `groups` are those whose news it hears, as bits.
    ///
    /// # Errors
    /// When there is no such socket.
    pub(crate) fn open(protocol: isize, groups: u32) -> io::Result<Self> {
        let mut socket = netlink_sys::Socket::new(protocol)?;
        socket.bind(&netlink_sys::SocketAddr::new(0, groups))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Sends requests, and reads until as many of them have ended as `ends` says: each has to ask for an acknowledgement or a list.
    ///
    /// The kernel works on them within the call that sends them, and answers lie there then, so that nothing has to be waited for.
    ///
    /// # Errors
    /// When they can't be sent, or answers are lost. What is refused is among the answers.
    pub(crate) fn exchange(&self, requests: &[u8], ends: usize) -> io::Result<Answers> {
        if self.socket.send_to(requests, &netlink_sys::SocketAddr::new(0, 0), 0)? != requests.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut answers = Answers::default();
        while answers.ends < ends {
            let mut buffer = Vec::with_capacity(ANSWER_BYTES_MAX);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => answers.read(&buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::Error::other("the kernel does not answer"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(answers)
    }

    /// Hears the news of a group, by its number, or no longer.
    ///
    /// # Errors
    /// When there is no such group, or the right to hear is lacking.
    pub(crate) fn hear(&mut self, group: u32, hears: bool) -> io::Result<()> {
        if hears { self.socket.add_membership(group) } else { self.socket.drop_membership(group) }
    }

    /// The news since the last call.
    ///
    /// # Errors
    /// When some were lost.
    pub(crate) fn news(&self) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let mut answers = Answers::default();
        loop {
            let mut buffer = Vec::with_capacity(ANSWER_BYTES_MAX);
            match self.socket.recv(&mut buffer, 0) {
                Ok(_) => answers.read(&buffer),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(answers.messages),
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Socket {
    /// There is no netlink here.
    ///
    /// # Errors
    /// Always.
    pub(crate) fn open(_: isize, _: u32) -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "only Linux has netlink"))
    }

    /// # Errors
    /// Always.
    pub(crate) fn exchange(&self, _: &[u8], _: usize) -> io::Result<Answers> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// # Errors
    /// Always.
    pub(crate) fn news(&self) -> io::Result<Vec<(u16, Vec<u8>)>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: u16, request: u32, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        message(&mut out, kind, 0, request, body, |_| {});
        out
    }

    #[test]
    fn answers_are_read() {
        let code = |code: i32| [code.to_ne_bytes().to_vec(), vec![0; 16]].concat();
        let mut answers = Answers::default();
        let both = [answer(ERROR, 1, &code(0)), answer(40, 0, &[1, 2, 3, 4]), answer(ERROR, 7, &code(-17))];
        answers.read(&both.concat());
        answers.read(&answer(DONE, 0, &code(0)));
        assert_eq!(answers.ends, 3);
        assert_eq!(answers.messages, [(40, vec![1, 2, 3, 4])]);
        assert_eq!(answers.refused[0].0, 7);
        assert_eq!(answers.all().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        // What is cut or claims to be endless ends there.
        for bad in [&answer(ERROR, 0, &code(0))[..20], &[0xff; 40][..], &[0; 40]] {
            let mut answers = Answers::default();
            answers.read(bad);
            assert_eq!((answers.ends, answers.messages.len()), (0, 0));
        }
    }

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut out = Vec::new();
        string(&mut out, 1, "eth0");
        attribute(&mut out, 2 | NESTED, |out| bytes(out, 3, &7_u32.to_ne_bytes()));
        let read: Vec<_> = attributes(&out).collect();
        assert_eq!(read[0], (1, &b"eth0\0"[..]));
        let inner: Vec<_> = attributes(read[1].1).map(|(kind, value)| (kind, number(value))).collect();
        assert_eq!((read[1].0, inner), (2, vec![(3, Some(7))]));
        for cut in 0..out.len() {
            assert!(attributes(&out[..cut]).count() < 2, "{cut}");
        }
        assert_eq!(attributes(&[0; 8]).count(), 0);
    }
}
