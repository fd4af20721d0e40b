//! The errors of etcd's API, in its words: clients compare them.
//!
//! Codes and words are those of etcd's package `rpctypes`.

use tonic::{Code, Status};

use crate::{CommitError, LeaseError, ReadError, StoreError};

macro_rules! faults {
    ($($name:ident: $code:ident $words:literal;)+) => {
        $(pub(crate) fn $name() -> Status {
            Status::new(Code::$code, concat!("etcdserver: ", $words))
        })+
    };
}

faults! {
    empty_key: InvalidArgument "key is not provided";
    key_not_found: InvalidArgument "key not found";
    value_provided: InvalidArgument "value is provided";
    lease_provided: InvalidArgument "lease is provided";
    too_many_ops: InvalidArgument "too many operations in txn request";
    duplicate_key: InvalidArgument "duplicate key given in txn request";
    bad_sort: InvalidArgument "invalid sort option";
    compacted: OutOfRange "mvcc: required revision has been compacted";
    future: OutOfRange "mvcc: required revision is a future revision";
    no_space: ResourceExhausted "mvcc: database space exceeded";
    lease_not_found: NotFound "requested lease not found";
    lease_exists: FailedPrecondition "lease already exists";
    lease_ttl: OutOfRange "too large lease TTL";
    too_large: InvalidArgument "request is too large";
    too_many: ResourceExhausted "too many requests";
    no_auth: FailedPrecondition "authentication is not enabled";
    bad_transferee: FailedPrecondition "bad leader transferee";
    stopped: Unavailable "server stopped";
    timed_out: Unavailable "request timed out";
}

pub(crate) fn of_store(error: &StoreError) -> Status {
    match error {
        StoreError::Closed => stopped(),
        StoreError::Future { .. } => future(),
        error => Status::new(Code::Unavailable, format!("etcdserver: {error}")),
    }
}

pub(crate) fn of_read(error: &ReadError) -> Status {
    match error {
        ReadError::Compacted { .. } => compacted(),
        ReadError::Future { .. } => future(),
        ReadError::Store(error) => of_store(error),
    }
}

pub(crate) fn of_commit(error: &CommitError) -> Status {
    match error {
        CommitError::QuotaExceeded { .. } => no_space(),
        CommitError::TooLarge { .. } => too_large(),
        CommitError::EmptyKey { .. } => empty_key(),
        CommitError::RepeatedKey { .. } => duplicate_key(),
        CommitError::UnknownLease(_) => lease_not_found(),
        CommitError::Store(error) => of_store(error),
        // What etcd says when it doesn't know how a proposal ended.
        CommitError::UnknownOutcome | CommitError::Conflict { .. } => timed_out(),
    }
}

pub(crate) fn of_lease(error: &LeaseError) -> Status {
    match error {
        LeaseError::NotFound(_) => lease_not_found(),
        LeaseError::Exists(_) => lease_exists(),
        LeaseError::BadTtl { .. } => lease_ttl(),
        LeaseError::TooMany { .. } => too_many(),
        LeaseError::Store(error) => of_store(error),
    }
}
