//! Which paths there are, and what their messages look like: names, numbers and kinds of fields as in etcd's `rpc.proto` and
//! `kv.proto`.

use prost::encoding::WireType;

/// The fields of a message.
pub(super) type Shape = &'static [Field];

pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) tag: u32,
    pub(super) kind: Kind,
    pub(super) many: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Bool,
    /// 64 bits with a sign: in quotes.
    Int,
    /// 64 bits without one: in quotes.
    Uint,
    Uint32,
    Text,
    /// In base64.
    Bytes,
    /// Its names, from 0.
    Enum(&'static [&'static str]),
    Message(Shape),
}

impl Kind {
    pub(super) fn wire_type(self) -> WireType {
        match self {
            Kind::Bool | Kind::Int | Kind::Uint | Kind::Uint32 | Kind::Enum(_) => WireType::Varint,
            Kind::Text | Kind::Bytes | Kind::Message(_) => WireType::LengthDelimited,
        }
    }
}

/// How a method answers.
pub(super) enum Answers {
    One,
    /// Each request once.
    Many,
    /// Until the client goes.
    ManyForever,
}

/// A path, and the method that answers it.
pub(super) struct Route {
    pub(super) path: &'static str,
    pub(super) method: &'static str,
    pub(super) asked: Shape,
    pub(super) answered: Shape,
    pub(super) answers: Answers,
}

macro_rules! shape {
    ($($(#[$many:ident])? $name:literal $tag:literal $kind:expr),* $(,)?) => {
        &fields![$($(#[$many])? $name $tag $kind),*]
    };
}

macro_rules! fields {
    ($($(#[$many:ident])? $name:literal $tag:literal $kind:expr),* $(,)?) => {
        [$(Field { name: $name, tag: $tag, kind: $kind, many: fields!(@many $($many)?) }),*]
    };
    (@many many) => { true };
    (@many) => { false };
}

macro_rules! routes {
    ($($path:literal => $method:literal, $asked:expr => $answered:expr, $answers:ident;)+) => {
        &[$(Route {
            path: $path,
            method: concat!("/etcdserverpb.", $method),
            asked: $asked,
            answered: $answered,
            answers: Answers::$answers,
        }),+]
    };
}

pub(super) const ROUTES: &[Route] = routes! {
    "/v3/kv/range" => "KV/Range", RANGE => RANGED, One;
    "/v3/kv/put" => "KV/Put", PUT => PUT_DONE, One;
    "/v3/kv/deleterange" => "KV/DeleteRange", DELETE => DELETED, One;
    "/v3/kv/txn" => "KV/Txn", &TXN => &TXN_DONE, One;
    "/v3/kv/compaction" => "KV/Compact", COMPACT => HEADER_ONLY, One;
    "/v3/watch" => "Watch/Watch", WATCH => WATCHED, ManyForever;
    "/v3/lease/grant" => "Lease/LeaseGrant", GRANT => GRANTED, One;
    "/v3/lease/revoke" => "Lease/LeaseRevoke", LEASE => HEADER_ONLY, One;
    "/v3/kv/lease/revoke" => "Lease/LeaseRevoke", LEASE => HEADER_ONLY, One;
    "/v3/lease/keepalive" => "Lease/LeaseKeepAlive", LEASE => KEPT_ALIVE, Many;
    "/v3/lease/timetolive" => "Lease/LeaseTimeToLive", TIME_TO_LIVE => TIME_LEFT, One;
    "/v3/kv/lease/timetolive" => "Lease/LeaseTimeToLive", TIME_TO_LIVE => TIME_LEFT, One;
    "/v3/lease/leases" => "Lease/LeaseLeases", NOTHING => LEASES, One;
    "/v3/kv/lease/leases" => "Lease/LeaseLeases", NOTHING => LEASES, One;
    "/v3/cluster/member/list" => "Cluster/MemberList", NOTHING => MEMBERS, One;
    "/v3/maintenance/alarm" => "Maintenance/Alarm", NOTHING => ALARMS, One;
    "/v3/maintenance/status" => "Maintenance/Status", NOTHING => STATUS, One;
    "/v3/maintenance/defragment" => "Maintenance/Defragment", NOTHING => HEADER_ONLY, One;
    "/v3/maintenance/hash" => "Maintenance/HashKV", HASH => HASHED, One;
    "/v3/maintenance/snapshot" => "Maintenance/Snapshot", NOTHING => SNAPSHOT, Many;
    "/v3/auth/status" => "Auth/AuthStatus", NOTHING => AUTH_STATUS, One;
    "/v3/auth/authenticate" => "Auth/Authenticate", AUTHENTICATE => AUTHENTICATED, One;
};

use Kind::{Bool, Bytes, Enum, Int, Message, Text, Uint, Uint32};

const NOTHING: Shape = &[];
const HEADER: Shape = shape!["cluster_id" 1 Uint, "member_id" 2 Uint, "revision" 3 Int, "raft_term" 4 Uint];
const HEADER_ONLY: Shape = shape!["header" 1 Message(HEADER)];
const KEY_VALUE: Shape = shape![
    "key" 1 Bytes, "create_revision" 2 Int, "mod_revision" 3 Int, "version" 4 Int, "value" 5 Bytes, "lease" 6 Int,
];

pub(super) const RANGE: Shape = shape![
    "key" 1 Bytes, "range_end" 2 Bytes, "limit" 3 Int, "revision" 4 Int,
    "sort_order" 5 Enum(&["NONE", "ASCEND", "DESCEND"]),
    "sort_target" 6 Enum(&["KEY", "VERSION", "CREATE", "MOD", "VALUE"]),
    "serializable" 7 Bool, "keys_only" 8 Bool, "count_only" 9 Bool,
    "min_mod_revision" 10 Int, "max_mod_revision" 11 Int,
    "min_create_revision" 12 Int, "max_create_revision" 13 Int,
];
const RANGED: Shape =
    shape!["header" 1 Message(HEADER), #[many] "kvs" 2 Message(KEY_VALUE), "more" 3 Bool, "count" 4 Int];
const PUT: Shape = shape![
    "key" 1 Bytes, "value" 2 Bytes, "lease" 3 Int, "prev_kv" 4 Bool, "ignore_value" 5 Bool, "ignore_lease" 6 Bool,
];
const PUT_DONE: Shape = shape!["header" 1 Message(HEADER), "prev_kv" 2 Message(KEY_VALUE)];
const DELETE: Shape = shape!["key" 1 Bytes, "range_end" 2 Bytes, "prev_kv" 3 Bool];
const DELETED: Shape =
    shape!["header" 1 Message(HEADER), "deleted" 2 Int, #[many] "prev_kvs" 3 Message(KEY_VALUE)];
const COMPARE: Shape = shape![
    "result" 1 Enum(&["EQUAL", "GREATER", "LESS", "NOT_EQUAL"]),
    "target" 2 Enum(&["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]),
    "key" 3 Bytes, "version" 4 Int, "create_revision" 5 Int, "mod_revision" 6 Int, "value" 7 Bytes, "lease" 8 Int,
    "range_end" 64 Bytes,
];
// Messages that hold themselves are statics: a constant can't.
static OPERATION: [Field; 4] = fields![
    "request_range" 1 Message(RANGE), "request_put" 2 Message(PUT), "request_delete_range" 3 Message(DELETE),
    "request_txn" 4 Message(&TXN),
];
static OPERATION_DONE: [Field; 4] = fields![
    "response_range" 1 Message(RANGED), "response_put" 2 Message(PUT_DONE),
    "response_delete_range" 3 Message(DELETED), "response_txn" 4 Message(&TXN_DONE),
];
pub(super) static TXN: [Field; 3] = fields![
    #[many] "compare" 1 Message(COMPARE), #[many] "success" 2 Message(&OPERATION),
    #[many] "failure" 3 Message(&OPERATION),
];
static TXN_DONE: [Field; 3] = fields![
    "header" 1 Message(HEADER), "succeeded" 2 Bool, #[many] "responses" 3 Message(&OPERATION_DONE),
];
const COMPACT: Shape = shape!["revision" 1 Int, "physical" 2 Bool];

const WATCH: Shape = shape![
    "create_request" 1 Message(shape![
        "key" 1 Bytes, "range_end" 2 Bytes, "start_revision" 3 Int, "progress_notify" 4 Bool,
        #[many] "filters" 5 Enum(&["NOPUT", "NODELETE"]), "prev_kv" 6 Bool, "watch_id" 7 Int, "fragment" 8 Bool,
    ]),
    "cancel_request" 2 Message(shape!["watch_id" 1 Int]),
    "progress_request" 3 Message(NOTHING),
];
pub(super) const WATCHED: Shape = shape![
    "header" 1 Message(HEADER), "watch_id" 2 Int, "created" 3 Bool, "canceled" 4 Bool, "compact_revision" 5 Int,
    "cancel_reason" 6 Text, "fragment" 7 Bool,
    #[many] "events" 11 Message(shape![
        "type" 1 Enum(&["PUT", "DELETE"]), "kv" 2 Message(KEY_VALUE), "prev_kv" 3 Message(KEY_VALUE),
    ]),
];

const GRANT: Shape = shape!["TTL" 1 Int, "ID" 2 Int];
const GRANTED: Shape = shape!["header" 1 Message(HEADER), "ID" 2 Int, "TTL" 3 Int, "error" 4 Text];
const LEASE: Shape = shape!["ID" 1 Int];
const KEPT_ALIVE: Shape = shape!["header" 1 Message(HEADER), "ID" 2 Int, "TTL" 3 Int];
const TIME_TO_LIVE: Shape = shape!["ID" 1 Int, "keys" 2 Bool];
const TIME_LEFT: Shape = shape![
    "header" 1 Message(HEADER), "ID" 2 Int, "TTL" 3 Int, "grantedTTL" 4 Int, #[many] "keys" 5 Bytes,
];
const LEASES: Shape = shape!["header" 1 Message(HEADER), #[many] "leases" 2 Message(LEASE)];

const MEMBERS: Shape = shape![
    "header" 1 Message(HEADER),
    #[many] "members" 2 Message(shape![
        "ID" 1 Uint, "name" 2 Text, #[many] "peerURLs" 3 Text, #[many] "clientURLs" 4 Text, "isLearner" 5 Bool,
    ]),
];
const ALARMS: Shape = shape![
    "header" 1 Message(HEADER),
    #[many] "alarms" 2 Message(shape!["memberID" 1 Uint, "alarm" 2 Enum(&["NONE", "NOSPACE", "CORRUPT"])]),
];
const STATUS: Shape = shape![
    "header" 1 Message(HEADER), "version" 2 Text, "dbSize" 3 Int, "leader" 4 Uint, "raftIndex" 5 Uint,
    "raftTerm" 6 Uint, "raftAppliedIndex" 7 Uint, #[many] "errors" 8 Text, "dbSizeInUse" 9 Int, "isLearner" 10 Bool,
    "storageVersion" 11 Text, "dbSizeQuota" 12 Int,
];
const HASH: Shape = shape!["revision" 1 Int];
const HASHED: Shape = shape![
    "header" 1 Message(HEADER), "hash" 2 Uint32, "compact_revision" 3 Int, "hash_revision" 4 Int,
];
const SNAPSHOT: Shape =
    shape!["header" 1 Message(HEADER), "remaining_bytes" 2 Uint, "blob" 3 Bytes, "version" 4 Text];
const AUTH_STATUS: Shape = shape!["header" 1 Message(HEADER), "enabled" 2 Bool, "authRevision" 3 Uint];
const AUTHENTICATE: Shape = shape!["name" 1 Text, "password" 2 Text];
const AUTHENTICATED: Shape = shape!["header" 1 Message(HEADER), "token" 2 Text];
