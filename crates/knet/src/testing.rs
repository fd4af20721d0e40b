//! What every implementation of this crate's traits has to keep.

use crate::allocator::{AllocateError, IpAllocator};

/// Checks the promises of [`IpAllocator`] on an allocator that has nothing handed out and not more than a few hundred
/// addresses.
///
/// # Panics
/// When a promise is broken.
pub fn check_ip_allocator(allocator: &dyn IpAllocator) {
    let mut all = Vec::new();
    loop {
        match allocator.allocate(None) {
            Ok(address) => all.push(address),
            Err(error) => {
                assert_eq!(error, AllocateError::Full);
                break;
            }
        }
    }
    let mut distinct = all.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), all.len(), "an address was handed out twice");
    let one = all[all.len() / 2];
    assert_eq!(allocator.allocate(Some(one)), Err(AllocateError::Taken));
    assert!(allocator.release(one), "an address that is in use is taken back");
    assert!(!allocator.release(one), "an address is taken back once");
    assert_eq!(allocator.allocate(Some(one)), Ok(one), "an address that is free can be asked for");
    assert_eq!(allocator.allocate(None), Err(AllocateError::Full));
    for address in all {
        assert!(allocator.release(address));
    }
    let outside = if one.is_ipv4() { "192.0.2.1" } else { "2001:db8::1" };
    assert_eq!(allocator.allocate(outside.parse().ok()), Err(AllocateError::OutOfRange));
}
