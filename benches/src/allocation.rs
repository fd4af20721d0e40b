//! Counting what the measuring thread allocates.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    static COUNTS: Cell<Allocations> = const { Cell::new(Allocations { count: 0, bytes: 0, live_bytes: 0 }) };
}

/// The system's allocator, which counts what each thread asks of it. A bench installs it with `#[global_allocator]`.
///
/// The counts are kept per thread, without atomic operations, so that counting costs about a nanosecond and does not distort
/// the times that are measured beside it. The benches run on one thread.
#[derive(Debug)]
pub struct CountingAllocator;

/// What a thread has allocated so far. All zero unless [`CountingAllocator`] is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    /// Calls that asked for memory, growing included.
    pub count: u64,
    /// Bytes asked for; growing counts what is added.
    pub bytes: u64,
    /// Bytes asked for and not given back.
    pub live_bytes: i64,
}

impl Allocations {
    /// What this thread has allocated so far.
    #[must_use]
    pub fn now() -> Self {
        COUNTS.get()
    }
}

/// Adds to this thread's counts. A thread that is ending has none left, which loses nothing that is measured.
fn add(count: u64, bytes: usize, freed: usize) {
    let _ = COUNTS.try_with(|counts| {
        let mut sum = counts.get();
        sum.count += count;
        sum.bytes += bytes as u64;
        sum.live_bytes += bytes as i64 - freed as i64;
        counts.set(sum);
    });
}

// SAFETY: every call is passed on to the system's allocator as it came; the counting allocates nothing, as the thread's
// counter needs neither construction nor a destructor.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(1, layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(1, layout.size(), 0);
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        add(0, 0, layout.size());
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(1, size.saturating_sub(layout.size()), layout.size().saturating_sub(size));
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }
}
