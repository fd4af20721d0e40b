//! The extension points: what a plug-in can have a say in, in the order in which it is asked.
//!
//! | asked | trait | about |
//! |---|---|---|
//! | when a pod appears or changes | [`PreEnqueue`] | may the pod be scheduled at all yet |
//! | to order the queue | [`QueueSort`] | which pod is next |
//! | once per pod | [`PreFilter`] | what can be said without looking at each node |
//! | once per pod and node | [`FilterPlugin`] | can the pod run there |
//! | when no node is left | [`PostFilter`] | what could be done about it |
//! | once per pod | [`PreScore`] | preparation for scores |
//! | once per pod and node that is left | [`ScorePlugin`] | how good is the node |
//! | once a node is chosen | [`Reserve`] | book what is outside of the snapshot |
//! | then | [`Permit`] | bind now, wait for something, or don't |
//! | then, while other pods go on | [`PreBind`], [`Bind`], [`PostBind`] | tell the API server |
//!
//! Everything up to [`Permit`] decides and never waits: it is synchronous and is called by one task, one pod at a time.
//! The rest is asynchronous and runs for many pods at the same time.
//!
//! A plug-in is an object that implements one or more of these traits, under one name; it is put into a
//! [`Profile`](crate::Profile).

mod bind;
mod cycle_state;
mod filter;
mod queue;
mod reserve;
mod score;
mod verdict;

pub use bind::{Bind, BindError, BindOutcome, Binding, PostBind, PreBind, Repair};
pub use cycle_state::CycleState;
pub use filter::{FilterPlugin, PostFilter, PreFilter};
pub use queue::{PreEnqueue, QueueSort, QueueingHint};
pub use reserve::{Permit, Reserve};
pub use score::{MAX_NODE_SCORE, PreScore, ScorePlugin, normalize_by_max};
pub use verdict::{
    Finality, PermitVerdict, PostFilterVerdict, PreFilterVerdict, PreScoreVerdict, Rejection, Verdict,
};

const _: Option<&dyn QueueSort> = None;
const _: Option<&dyn PreEnqueue> = None;
const _: Option<&dyn PreFilter> = None;
const _: Option<&dyn FilterPlugin> = None;
const _: Option<&dyn PostFilter> = None;
const _: Option<&dyn PreScore> = None;
const _: Option<&dyn ScorePlugin> = None;
const _: Option<&dyn Reserve> = None;
const _: Option<&dyn Permit> = None;
const _: Option<&dyn PreBind> = None;
const _: Option<&dyn Bind> = None;
const _: Option<&dyn PostBind> = None;
const _: Option<&dyn QueueingHint> = None;
const _: Option<&dyn Repair> = None;
