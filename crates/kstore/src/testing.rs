//! What every engine must keep, as functions that panic where it doesn't; behind the feature `testing`.
//!
//! An engine's test is a few lines:
//!
//! ```
//! use std::sync::Arc;
//! use kstore::{MemoryStore, Store, testing};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! testing::conformance(|| async { Arc::new(MemoryStore::new()) as Arc<dyn Store> }).await;
//! testing::lease_conformance(|| async { Arc::new(MemoryStore::new()) as Arc<dyn Store> }).await;
//! # }
//! ```
//!
//! Beside it: [`model`], the reference that everything is compared with; [`validate`], which checks a watch as it goes, and
//! [`CheckedStore`], which has that done to every watch, as all suites do;
//! [`linear`], which checks histories of concurrent commits; and [`FaultyStore`], which does to its callers what
//! networks and disks do.

use std::{future::Future, sync::Arc};

use crate::Store;

pub mod checked;
pub mod commit;
#[cfg(all(feature = "disk", unix))]
pub mod disk;
pub mod faulty;
pub mod lease;
pub mod linear;
pub mod model;
pub mod peer;
pub mod random;
pub mod read;
pub mod real_lease;
pub mod restore;
pub mod track_record;
pub mod validate;
pub mod watch;
#[cfg(feature = "etcd")]
pub mod wire;

pub use checked::{CheckedStore, checked_watch};
pub use faulty::{FaultPlan, FaultyStore};
pub use peer::RealEtcd;
pub use random::Random;
#[cfg(feature = "etcd")]
pub use wire::{WireClient, WireWatch};

/// Runs a check against a fresh store each, and names it if it fails.
macro_rules! each {
    ($new:ident, $($module:ident :: $check:ident),+ $(,)?) => {
        $({
            let name = concat!(stringify!($module), "::", stringify!($check));
            let store: Arc<dyn Store> = Arc::new(CheckedStore::new($new().await));
            let check = tokio::spawn($module::$check(store));
            if let Err(error) = check.await {
                match error.try_into_panic() {
                    Ok(panic) => {
                        eprintln!("the store fails kstore::testing::{name}");
                        std::panic::resume_unwind(panic)
                    }
                    Err(error) => panic!("kstore::testing::{name} was ended: {error}"),
                }
            }
        })+
    };
}

/// Checks all promises of [`Store`] but those about leases. `new_store` makes an empty store.
///
/// On a runtime of several threads it also finds what only happens there.
///
/// # Panics
/// If a promise is broken.
pub async fn conformance<F, Fut>(new_store: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Store>>,
{
    replica_conformance(&new_store).await;
    each!(
        new_store,
        commit::revisions_have_no_gaps,
        track_record::mem_etcd_2_a_list_has_everything_up_to_its_revision,
        restore::a_backup_restores_everything,
        restore::a_damaged_backup_is_refused,
        restore::a_store_with_content_is_not_restored_into,
    );
}

/// Checks what a store must keep that is made of a database elsewhere, which numbers revisions itself: all of
/// [`conformance`] but that revisions have no gaps and that back-ups can be restored.
///
/// # Panics
/// If a promise is broken.
pub async fn replica_conformance<F, Fut>(new_store: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Store>>,
{
    each!(
        new_store,
        commit::creators_exclude_each_other,
        commit::transactions_are_whole,
        commit::comparisons_mean_what_they_say,
        commit::versions_begin_anew_after_a_deletion,
        commit::changing_nothing_takes_no_revision,
        commit::bad_transactions_are_refused,
        commit::conflicts_show_what_is_there,
        commit::ranges_are_deleted_whole,
        commit::histories_are_linearizable,
        read::lists_lack_nothing,
        read::snapshots_stay_as_they_are,
        read::ranges_and_counts_agree,
        read::terms_lead_to_entries,
        read::earlier_revisions_can_be_read,
        read::tables_are_opened_once,
        read::values_are_not_copied,
        read::a_barrier_covers_what_was_answered,
        watch::a_list_continues_without_a_gap,
        watch::watches_hold_under_load,
        watch::interests_are_kept_to,
        watch::far_back_nothing_is_overlooked,
        watch::a_deletion_right_after_the_floor_is_seen,
        watch::below_the_floor_is_refused,
        watch::a_slow_watch_is_told_what_it_missed,
        watch::quiet_watches_outlive_compaction,
        watch::the_future_is_waited_for,
        watch::progress_moves_without_events,
        watch::revisions_are_not_split,
        watch::dropped_futures_lose_nothing,
        watch::no_wake_up_is_lost,
        track_record::etcd_15220_progress_comes_after_its_events,
        track_record::etcd_15271_a_resumed_watch_does_not_go_back,
        track_record::etcd_17247_a_change_is_told_once,
        track_record::etcd_17529_starved_watches_lose_nothing,
        track_record::etcd_18089_compaction_at_a_deletion_drops_no_event,
        track_record::etcd_18667_reads_of_what_is_compacted_are_refused_everywhere,
        track_record::etcd_19179_a_watch_from_the_compaction_sees_the_deletion,
        track_record::etcd_20221_a_watch_of_the_future_tells_nothing_of_the_past,
    );
    for seed in 0..16 {
        model::agrees_with_the_model(Arc::new(CheckedStore::new(new_store().await)), seed).await;
    }
}

/// Checks the promises of [`Leases`](crate::Leases). Run it on a runtime whose time is paused; otherwise it takes as long as
/// the leases live.
///
/// # Panics
/// If a promise is broken.
pub async fn lease_conformance<F, Fut>(new_store: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Store>>,
{
    each!(
        new_store,
        lease::keys_go_with_their_lease,
        lease::a_lease_kept_alive_stays,
        lease::a_detached_key_stays,
        lease::revoking_deletes_at_one_revision,
        lease::numbers_are_unique,
        lease::impossible_leases_are_refused,
        lease::an_ended_lease_takes_no_keys,
        lease::many_leases_end_together,
        lease::leases_are_restored_with_the_time_left,
    );
}

/// Checks the promises of [`Leases`](crate::Leases) where time can't be paused: all of [`lease_conformance`] but what needs
/// leases of less than two seconds or back-ups. The checks run side by side, so that they take some seconds together.
///
/// # Panics
/// If a promise is broken.
pub async fn replica_lease_conformance<F, Fut>(new_store: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn Store>>,
{
    macro_rules! side_by_side {
        ($($check:ident),+ $(,)?) => {
            [$({
                let store: Arc<dyn Store> = Arc::new(CheckedStore::new(new_store().await));
                (stringify!($check), tokio::spawn(real_lease::$check(store)))
            }),+]
        };
    }
    let checks = side_by_side!(
        keys_go_with_their_lease,
        a_lease_kept_alive_stays,
        a_detached_key_stays,
        revoking_deletes_at_one_revision,
        numbers_are_unique,
        an_ended_lease_takes_no_keys,
        many_leases_end_together,
    );
    for (name, check) in checks {
        if let Err(error) = check.await {
            panic!("the store fails kstore::testing::real_lease::{name}: {error}");
        }
    }
    each!(new_store, lease::impossible_leases_are_refused);
}
