//! Handing out addresses and ports, each to one user at a time.

use std::{
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

/// The most addresses of one range that are handed out (upstream's limit for a Service range, a /12 of IPv4).
pub const ADDRESSES_MAX: u32 = 1 << 20;
/// The node ports of a cluster that names none: upstream's default.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Why nothing was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// Everything is in use.
    #[error("range is full")]
    Full,
    /// Somebody has it.
    #[error("provided value is already allocated")]
    Taken,
    /// It is not in the range, or not for use.
    #[error("provided value is not in the valid range")]
    OutOfRange,
}

/// Hands out addresses.
///
/// Called by whoever makes an object that needs an address, from any thread, and when it is deleted. An allocator that
/// starts anew is told what is in use by asking for each address.
pub trait IpAllocator: Debug + Send + Sync + 'static {
    /// Hands out `wanted`, or any free address.
    ///
    /// # Errors
    /// When it is taken or out of range, or nothing is free.
    fn allocate(&self, wanted: Option<IpAddr>) -> Result<IpAddr, AllocateError>;

    /// Takes an address back. Says whether it was in use.
    fn release(&self, address: IpAddr) -> bool;
}

const _: Option<&dyn IpAllocator> = None;

/// A set of numbers below a limit, with the next free one found by going round.
#[derive(Debug)]
struct Bitmap {
    words: Vec<u64>,
    size: u32,
    used: u32,
    next: u32,
}

impl Bitmap {
    fn new(size: u32, first: u32) -> Self {
        Self { words: vec![0; size.div_ceil(64) as usize], size, used: 0, next: first }
    }

    fn has(&self, number: u32) -> bool {
        self.words[(number / 64) as usize] & (1 << (number % 64)) != 0
    }

    fn insert(&mut self, number: u32) -> bool {
        let fresh = !self.has(number);
        self.words[(number / 64) as usize] |= 1 << (number % 64);
        self.used += u32::from(fresh);
        fresh
    }

    fn remove(&mut self, number: u32) -> bool {
        let there = self.has(number);
        self.words[(number / 64) as usize] &= !(1 << (number % 64));
        self.used -= u32::from(there);
        there
    }

    /// The next free number in `from..to`, going round from where the last one was found.
    fn take(&mut self, from: u32, to: u32) -> Option<u32> {
        if from >= to {
            return None;
        }
        let start = self.next.clamp(from, to - 1);
        let found = (start..to).chain(from..start).find(|number| !self.has(*number))?;
        self.insert(found);
        self.next = if found + 1 >= to { from } else { found + 1 };
        Some(found)
    }
}

/// Addresses of one range, kept in memory: a bit each.
///
/// The first address, and with IPv4 the last, are never handed out. As upstream does (KEP-3070), addresses that are not
/// asked for by name come from the upper part of the range first, so that the lower part is free for those that are.
///
/// ```
/// use knet::allocator::{AddressRange, IpAllocator};
/// let range: AddressRange = "127.3.0.0/24".parse()?;
/// assert_eq!(range.allocate(None)?.to_string(), "127.3.0.17");
/// range.allocate("127.3.0.10".parse().ok())?;
/// assert_eq!(range.used(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AddressRange {
    base: IpAddr,
    prefix: u8,
    band: u32,
    bits: Mutex<Bitmap>,
}

/// The text is not an address range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address range such as 10.96.0.0/16")]
pub struct RangeError(String);

impl std::str::FromStr for AddressRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let wrong = || RangeError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        Self::new(address, prefix).ok_or_else(wrong)
    }
}

impl AddressRange {
    /// The range of `prefix` bits that `address` is in; `None` when there are not so many bits, or fewer than two
    /// addresses to hand out.
    #[must_use]
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let (base, bits) = match address {
            IpAddr::V4(address) => {
                let bits = 32_u8.checked_sub(prefix)?;
                (
                    IpAddr::V4(Ipv4Addr::from_bits(
                        address.to_bits() & u32::MAX.checked_shl(bits.into()).unwrap_or(0),
                    )),
                    bits,
                )
            }
            IpAddr::V6(address) => {
                let bits = 128_u8.checked_sub(prefix)?;
                (
                    IpAddr::V6(Ipv6Addr::from_bits(
                        address.to_bits() & u128::MAX.checked_shl(bits.into()).unwrap_or(0),
                    )),
                    bits,
                )
            }
        };
        let size = if bits >= 20 { ADDRESSES_MAX } else { 1 << bits };
        if size < 4 {
            return None;
        }
        let band = (size / 16).clamp(16, 256) + 1;
        let band = if band < size { band } else { 1 };
        let mut bitmap = Bitmap::new(size, band);
        bitmap.insert(0);
        if base.is_ipv4() && bits < 20 {
            bitmap.insert(size - 1);
        }
        bitmap.used = 0;
        Some(Self { base, prefix, band, bits: Mutex::new(bitmap) })
    }

    /// How many addresses are in use.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.bits().used
    }

    /// Whether `address` is in the range, handed out or not.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.offset(address).is_some()
    }

    /// The address at `offset` from the beginning of the range.
    #[must_use]
    pub fn nth(&self, offset: u32) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => IpAddr::V4(Ipv4Addr::from_bits(base.to_bits().wrapping_add(offset))),
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits().wrapping_add(offset.into()))),
        }
    }

    /// The length of the range's prefix.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    fn bits(&self) -> std::sync::MutexGuard<'_, Bitmap> {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn offset(&self, address: IpAddr) -> Option<u32> {
        let offset = match (self.base, address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                u128::from(address.to_bits().checked_sub(base.to_bits())?)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => address.to_bits().checked_sub(base.to_bits())?,
            _ => return None,
        };
        u32::try_from(offset).ok().filter(|offset| *offset < self.bits().size)
    }
}

impl IpAllocator for AddressRange {
    fn allocate(&self, wanted: Option<IpAddr>) -> Result<IpAddr, AllocateError> {
        let Some(wanted) = wanted else {
            let mut bits = self.bits();
            let size = bits.size;
            let found = bits.take(self.band, size).or_else(|| bits.take(1, self.band));
            drop(bits);
            return found.map(|offset| self.nth(offset)).ok_or(AllocateError::Full);
        };
        let offset = self.offset(wanted).filter(|offset| *offset > 0).ok_or(AllocateError::OutOfRange)?;
        let mut bits = self.bits();
        if offset == bits.size - 1 && self.base.is_ipv4() && bits.size < ADDRESSES_MAX {
            return Err(AllocateError::OutOfRange);
        }
        if bits.insert(offset) { Ok(wanted) } else { Err(AllocateError::Taken) }
    }

    fn release(&self, address: IpAddr) -> bool {
        let last = |offset: u32| self.base.is_ipv4() && offset == self.bits().size - 1;
        match self.offset(address).filter(|offset| *offset > 0 && !last(*offset)) {
            Some(offset) => self.bits().remove(offset),
            None => false,
        }
    }
}

/// Ports of one range, kept in memory.
#[derive(Debug)]
pub struct PortRange {
    first: u16,
    bits: Mutex<Bitmap>,
}

impl PortRange {
    /// The ports of `range`, both ends included.
    #[must_use]
    pub fn new(range: std::ops::RangeInclusive<u16>) -> Self {
        let size = u32::from(range.end().saturating_sub(*range.start())) + 1;
        // Ports asked for by name come from the lower part, as with addresses.
        let band = if size < 32 { 0 } else { (size / 32).clamp(16, 128) };
        Self { first: *range.start(), bits: Mutex::new(Bitmap::new(size, band)) }
    }

    /// Hands out `wanted`, or any free port.
    ///
    /// # Errors
    /// As [`IpAllocator::allocate`].
    pub fn allocate(&self, wanted: Option<u16>) -> Result<u16, AllocateError> {
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        let size = bits.size;
        let offset = match wanted {
            None => {
                let band = if size < 32 { 0 } else { (size / 32).clamp(16, 128) };
                bits.take(band, size).or_else(|| bits.take(0, band)).ok_or(AllocateError::Full)?
            }
            Some(port) => {
                let offset = port.checked_sub(self.first).map(u32::from).filter(|offset| *offset < size);
                let offset = offset.ok_or(AllocateError::OutOfRange)?;
                if !bits.insert(offset) {
                    return Err(AllocateError::Taken);
                }
                offset
            }
        };
        Ok(self.first + u16::try_from(offset).unwrap_or_default())
    }

    /// Takes a port back. Says whether it was in use.
    pub fn release(&self, port: u16) -> bool {
        let mut bits = self.bits.lock().unwrap_or_else(PoisonError::into_inner);
        match port.checked_sub(self.first).map(u32::from).filter(|offset| *offset < bits.size) {
            Some(offset) => bits.remove(offset),
            None => false,
        }
    }

    /// How many ports are in use.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.bits.lock().unwrap_or_else(PoisonError::into_inner).used
    }
}

impl Default for PortRange {
    fn default() -> Self {
        Self::new(NODE_PORTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_the_suites_promises() {
        crate::testing::check_ip_allocator(&"10.0.0.0/28".parse::<AddressRange>().unwrap());
        crate::testing::check_ip_allocator(&"fd00::/124".parse::<AddressRange>().unwrap());
    }

    #[test]
    fn ranges_are_checked() {
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/31", "x/8", "fd00::/129"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
        let range: AddressRange = "10.96.0.7/12".parse().unwrap();
        assert_eq!(range.nth(10).to_string(), "10.96.0.10");
        let out = range.allocate("10.112.0.1".parse().ok());
        assert_eq!(out, Err(AllocateError::OutOfRange));
    }

    #[test]
    fn ports_are_handed_out_once() {
        let ports = PortRange::new(30_000..=30_003);
        assert_eq!(ports.allocate(Some(30_002)), Ok(30_002));
        assert_eq!(ports.allocate(Some(30_002)), Err(AllocateError::Taken));
        assert_eq!(ports.allocate(Some(40_000)), Err(AllocateError::OutOfRange));
        let rest: Vec<_> = (0..3).map(|_| ports.allocate(None).unwrap()).collect();
        assert_eq!(rest, [30_000, 30_001, 30_003]);
        assert_eq!(ports.allocate(None), Err(AllocateError::Full));
        assert!(ports.release(30_001) && !ports.release(30_001));
        assert_eq!(ports.used(), 3);
    }
}
