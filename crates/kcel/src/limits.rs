//! Upstream's limits for expressions (`apiserver/pkg/apis/cel/config.go`, `apiextensions/validation`).

/// The most that one evaluation may cost.
pub const PER_CALL_COST_MAX: u64 = 1_000_000;
/// The most that all rules of one request may cost together.
pub const REQUEST_COST_MAX: u64 = 10_000_000;
/// The most that the match conditions of one webhook or policy may cost together.
pub const MATCH_CONDITIONS_COST_MAX: u64 = REQUEST_COST_MAX / 4;
/// The largest estimate of a rule that a CRD may have.
pub const RULE_ESTIMATE_MAX: u64 = 10_000_000;
/// The largest sum of the estimates of a CRD's rules.
pub const CRD_ESTIMATE_MAX: u64 = 100_000_000;
/// The largest request, in bytes; sizes that no schema limits are derived from it.
pub const REQUEST_BYTES_MAX: u64 = 3 * 1024 * 1024;
