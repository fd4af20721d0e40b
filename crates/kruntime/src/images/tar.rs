//! Reads tar archives: ustar, GNU's long names and numbers, and pax records. A reader of our own, because those of others
//! hold names of any length in memory, and what is read here may come from anybody.

use std::io::{self, Read};

/// A block of an archive.
const BLOCK: usize = 512;
/// The longest name, and the longest link, that is taken (the kernel's `PATH_MAX`).
pub(super) const PATH_BYTES_MAX: u64 = 4096;
/// The most bytes of the records that go before an entry: extended attributes are among them.
const RECORDS_BYTES_MAX: u64 = 1024 * 1024;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    SymbolicLink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A kind that is not unpacked, by its letter.
    Other(u8),
}

/// An entry's header.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) user: u32,
    pub(super) group: u32,
    pub(super) size: u64,
    /// Seconds and nanoseconds.
    pub(super) modified: (i64, u32),
    pub(super) device: (u32, u32),
    pub(super) attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What pax records and GNU's long names say of the entry after them.
#[derive(Default)]
struct Ahead {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    user: Option<u32>,
    group: Option<u32>,
    modified: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(super) struct Archive<R> {
    inner: R,
    /// What is left of the entry's contents, and of the padding behind them.
    left: u64,
    padding: u64,
}

fn wrong(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("bad tar archive: {why}"))
}

/// A number in octal digits, or, with the highest bit set, in binary.
fn number(field: &[u8]) -> io::Result<u64> {
    if field[0] & 0x80 != 0 {
        let (head, tail) = field.split_at(field.len().saturating_sub(8));
        let zero = head.iter().enumerate().all(|(at, byte)| *byte == if at == 0 { 0x80 } else { 0 });
        let first = if head.is_empty() { tail[0] & 0x7f } else { tail[0] };
        if !zero && !head.is_empty() {
            return Err(wrong("a number is out of range"));
        }
        return Ok(tail[1..].iter().fold(u64::from(first), |sum, byte| (sum << 8) | u64::from(*byte)));
    }
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    let digits: Vec<u8> = text.iter().copied().filter(|byte| *byte != b' ').collect();
    digits
        .iter()
        .try_fold(0_u64, |sum, byte| match byte {
            b'0'..=b'7' => sum.checked_mul(8).and_then(|sum| sum.checked_add(u64::from(byte - b'0'))),
            _ => None,
        })
        .ok_or_else(|| wrong("a number is not one"))
}

fn small(field: &[u8]) -> io::Result<u32> {
    u32::try_from(number(field)?).map_err(|_| wrong("a number is out of range"))
}

fn text(field: &[u8]) -> Vec<u8> {
    field.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// The times of files before 1970 are negative in binary, which nothing in an image needs: they become 1970.
fn seconds(field: &[u8]) -> i64 {
    number(field).ok().and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0)
}

impl<R: Read> Archive<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, left: 0, padding: 0 }
    }

    /// The next entry; what is left of the one before is skipped.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut ahead = Ahead::default();
        loop {
            self.skip()?;
            let Some(block) = self.block()? else { return Ok(None) };
            let size = number(&block[124..136])?;
            match block[156] {
                b'L' => ahead.name = Some(self.long(size)?),
                b'K' => ahead.link = Some(self.long(size)?),
                b'x' => {
                    let records = self.contents(size, RECORDS_BYTES_MAX)?;
                    ahead.read(&records)?;
                }
                // Records for all entries: nothing of what they usually say is needed.
                b'g' => drop(self.contents(size, RECORDS_BYTES_MAX)?),
                letter => return self.entry(&block, letter, size, ahead).map(Some),
            }
        }
    }

    /// The rest of the entry's contents.
    pub(super) fn read_contents(&mut self) -> Contents<'_, R> {
        Contents(self)
    }

    /// Reads what is behind the last entry, so that a digest of the whole archive comes out right.
    pub(super) fn finish(mut self) -> io::Result<()> {
        io::copy(&mut self.inner, &mut io::sink()).map(drop)
    }

    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.inner).take(rest), &mut io::sink())?;
        if skipped < rest { Err(wrong("it ends within an entry")) } else { Ok(()) }
    }

    /// A header; `None` at the end, which is two blocks of zeros, or simply the end.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(wrong("it ends within a header")),
                length => filled += length,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { u64::from(b' ') } else { u64::from(*byte) })
            .sum();
        if number(&block[148..156])? != sum {
            return Err(wrong("a header's checksum is wrong"));
        }
        Ok(Some(block))
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn contents(&mut self, size: u64, most: u64) -> io::Result<Vec<u8>> {
        if size > most {
            return Err(wrong("an entry's records are too large"));
        }
        self.begin(size);
        let mut bytes = Vec::new();
        self.read_contents().read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn long(&mut self, size: u64) -> io::Result<Vec<u8>> {
        self.contents(size, PATH_BYTES_MAX + 1).map(|bytes| text(&bytes))
    }

    fn entry(&mut self, block: &[u8; BLOCK], letter: u8, size: u64, ahead: Ahead) -> io::Result<Entry> {
        let mut name = text(&block[..100]);
        let is_ustar = &block[257..263] == b"ustar\0";
        let prefix = text(&block[345..500]);
        if is_ustar && !prefix.is_empty() {
            name = [&prefix[..], b"/", &name].concat();
        }
        let name = ahead.name.unwrap_or(name);
        let kind = match letter {
            b'0' | 0 if name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::SymbolicLink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => Kind::Other(other),
        };
        let has_contents = matches!(kind, Kind::File | Kind::Other(_));
        let size = if has_contents { ahead.size.unwrap_or(size) } else { 0 };
        self.begin(size);
        let link = ahead.link.unwrap_or_else(|| text(&block[157..257]));
        if name.len() as u64 > PATH_BYTES_MAX || link.len() as u64 > PATH_BYTES_MAX {
            return Err(wrong("a name is too long"));
        }
        let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let device = if is_device { (small(&block[329..337])?, small(&block[337..345])?) } else { (0, 0) };
        Ok(Entry {
            name,
            link,
            kind,
            mode: small(&block[100..108])? & 0o7777,
            user: ahead.user.map_or_else(|| small(&block[108..116]), Ok)?,
            group: ahead.group.map_or_else(|| small(&block[116..124]), Ok)?,
            size,
            modified: ahead.modified.unwrap_or_else(|| (seconds(&block[136..148]), 0)),
            device,
            attributes: ahead.attributes,
        })
    }
}

impl Ahead {
    /// Reads records of the form `length name=value\n`, where the length counts itself.
    fn read(&mut self, mut records: &[u8]) -> io::Result<()> {
        let bad = || wrong("a record is malformed");
        while !records.is_empty() {
            let space =
                records.iter().position(|byte| *byte == b' ').filter(|at| *at < 20).ok_or_else(bad)?;
            let length: Option<usize> =
                std::str::from_utf8(&records[..space]).ok().and_then(|n| n.parse().ok());
            let length = length.filter(|n| *n > space + 1 && *n <= records.len()).ok_or_else(bad)?;
            let (record, rest) = records.split_at(length);
            records = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, name: &[u8], value: &[u8]) -> io::Result<()> {
        let bad = || wrong("a record's value is malformed");
        let text = || std::str::from_utf8(value).map_err(|_| bad());
        match name {
            b"path" => self.name = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(text()?.parse().map_err(|_| bad())?),
            b"uid" => self.user = Some(text()?.parse().map_err(|_| bad())?),
            b"gid" => self.group = Some(text()?.parse().map_err(|_| bad())?),
            b"mtime" => {
                let (whole, part) = text()?.split_once('.').unwrap_or((text()?, ""));
                let nanoseconds = format!("{part:0<9}").get(..9).and_then(|digits| digits.parse().ok());
                self.modified = Some((whole.parse().unwrap_or(0), nanoseconds.unwrap_or(0)));
            }
            _ => {
                if let Some(attribute) = name.strip_prefix(b"SCHILY.xattr.") {
                    self.attributes.push((attribute.to_vec(), value.to_vec()));
                }
                // GNU's records of files with holes would need to be understood to get the contents right.
                if name.starts_with(b"GNU.sparse.") {
                    return Err(wrong("files with holes are not supported"));
                }
            }
        }
        Ok(())
    }
}

/// Reads an entry's contents.
pub(super) struct Contents<'a, R>(&'a mut Archive<R>);

impl<R: Read> Read for Contents<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        match self.0.inner.read(&mut buffer[..most])? {
            0 => Err(wrong("it ends within an entry")),
            length => {
                self.0.left -= length as u64;
                Ok(length)
            }
        }
    }
}
