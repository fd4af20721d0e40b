//! The way of a batch to the kernel.

use std::{fmt, io};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// The bytes of a message's header, and of an error after it.
const HEADER_BYTES: usize = 16;
const ERROR_BYTES: usize = 4;
/// The type of a message that acknowledges or refuses another one.
const ERROR: u16 = 2;
/// How many bytes of answers are read at a time.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A way to the kernel of one network namespace.
pub(super) struct Batches(Socket);

impl fmt::Debug for Batches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Batches")
    }
}

impl Batches {
    /// One to the kernel of this thread's network namespace.
    ///
    /// # Errors
    /// When there is no such socket.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        Ok(Self(socket))
    }

    /// Sends a batch: all of it holds when this returns, or nothing.
    ///
    /// The kernel works on it within the call that sends it, and its answers lie there then, so that nothing has to be waited for.
    ///
    /// # Errors
    /// When the kernel refuses a part of it: the first reason.
    pub(super) fn transact(&self, batch: &[u8]) -> io::Result<()> {
        if self.0.send_to(batch, &SocketAddr::new(0, 0), 0)? != batch.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let mut is_acknowledged = false;
        loop {
            let mut answers = Vec::with_capacity(ANSWER_BYTES_MAX);
            match self.0.recv(&mut answers, 0) {
                Ok(_) => is_acknowledged |= read(&answers)?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if is_acknowledged { Ok(()) } else { Err(io::Error::other("the kernel does not answer")) }
    }
}

/// Reads the answers of one datagram: whether there was any.
fn read(mut rest: &[u8]) -> io::Result<bool> {
    let mut is_acknowledged = false;
    while let (Some(length), Some(kind)) = (rest.first_chunk::<4>(), rest.get(4..6)) {
        let length = usize::try_from(u32::from_ne_bytes(*length)).unwrap_or(usize::MAX);
        let Some(message) = rest.get(..length).filter(|_| length >= HEADER_BYTES) else { break };
        if kind == ERROR.to_ne_bytes()
            && let Some(code) = message.get(HEADER_BYTES..HEADER_BYTES + ERROR_BYTES)
        {
            let code = code.try_into().map_or(0, i32::from_ne_bytes);
            if code != 0 {
                return Err(io::Error::from_raw_os_error(code.saturating_neg()));
            }
            is_acknowledged = true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(is_acknowledged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(code: i32) -> Vec<u8> {
        let mut out = 36_u32.to_ne_bytes().to_vec();
        out.extend(ERROR.to_ne_bytes());
        out.extend([0; 10]);
        out.extend(code.to_ne_bytes());
        out.extend([0; 16]);
        out
    }

    #[test]
    fn answers_are_read() {
        assert!(!read(&[]).unwrap());
        assert!(read(&answer(0)).unwrap());
        let both = [answer(0), answer(-2)].concat();
        assert_eq!(read(&both).unwrap_err().kind(), io::ErrorKind::NotFound);
        // What is cut or claims to be endless ends there.
        assert!(!read(&answer(0)[..20]).unwrap());
        assert!(!read(&[0xff; 40]).unwrap());
        assert!(!read(&[0; 40]).unwrap());
    }
}
