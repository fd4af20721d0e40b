//! The randomness of this program, from its seed.
//!
//! Names that the server makes up, uids, the jitter of waits, the keys of hash maps and the order in which tokio wakes tasks all begin
//! with bytes that the operating system is asked for through `getrandom`. This program answers that call itself, from the seed, and
//! so a seed decides all of them. Only this program does: what it links is as it is everywhere else.
//!
//! Keys that cryptography makes do not come this way (it asks the kernel itself); nothing that a controller does depends on them.

use std::{
    ffi::{c_uint, c_void},
    sync::atomic::{AtomicU64, Ordering},
};

use ahash::random_state::{RandomSource, set_random_source};

/// The step of SplitMix64, and where it is.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
static STATE: AtomicU64 = AtomicU64::new(0);

fn next() -> u64 {
    let mut mixed = STATE.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Takes the place of the C library's function of this name.
///
/// # Safety
/// As for the original: `buffer` has room for `length` bytes.
#[cfg(target_os = "linux")]
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    for (index, byte) in std::iter::repeat_with(next).flat_map(u64::to_le_bytes).take(length).enumerate() {
        // SAFETY: the caller promises that there is room.
        unsafe { buffer.cast::<u8>().add(index).write(byte) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Hashers whose keys would otherwise come from addresses, which differ from run to run.
struct Hashers;

impl RandomSource for Hashers {
    fn gen_hasher_seed(&self) -> usize {
        usize::try_from(next() & u64::from(u32::MAX)).unwrap_or_default()
    }
}

/// From now on everything random comes from `seed`. Called once, before anything else.
pub(crate) fn begin(seed: u64) {
    STATE.store(seed, Ordering::Relaxed);
    // It fails when it has been set before, and then it has been set to this.
    let _ = set_random_source(Hashers);
}
