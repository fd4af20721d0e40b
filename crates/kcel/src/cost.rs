//! What evaluations cost: upstream's constants and rules (cel-go's `interpreter/runtimecost.go`, and
//! `apiserver/pkg/cel/library/cost.go`). Estimates follow the same rules with ranges of sizes.

pub(crate) mod estimate;
mod range;

use crate::{
    native::Kind,
    value::{Map, Value},
};

pub use self::range::Cost;
pub(crate) use self::range::Range;

/// A selection or a variable.
pub(crate) const SELECT: u64 = 1;
/// A new list.
pub(crate) const LIST: u64 = 10;
/// A new map.
pub(crate) const MAP: u64 = 30;
/// A new object.
pub(crate) const OBJECT: u64 = 40;
/// A character that is looked at.
const CHARACTER: f64 = 0.1;
/// A character of a regular expression.
const PATTERN: f64 = 0.25;
/// An authorization check: two fit into one expression's limit.
const CHECK: u64 = 350_000;
/// The length that a format's regular expression is taken to have in estimates.
const FORMAT_PATTERN: f64 = 128.0;
/// The longest name of a format.
const FORMAT_NAME: u64 = 64;

/// How the cost of a call is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Whatever is not listed.
    One,
    /// A library's function that is as cheap as a selection.
    Nominal,
    Check,
    Selector,
    /// All of the first argument, down to its leaves.
    Traverse,
    /// The characters of the first argument times a factor.
    Scan(f64),
    /// As `Scan`, and the result is as large.
    ScanSame,
    Replace,
    Split,
    Join,
    Find,
    ContainsIp {
        text: bool,
    },
    ContainsCidr {
        text: bool,
    },
    Validate,
    /// The product of the sizes of two lists.
    Sets(f64),
    /// A new list of the result's size, as are the next two.
    Slice,
    Range,
    Reverse,
    Flatten,
    Distinct,
    Sort {
        text: bool,
    },
    SortBy {
        text: bool,
    },
    InList,
    /// The shorter of two.
    Compare,
    AddText,
    AddList,
    Matches,
    Contains,
    /// The start or the end of a text: the whole text when it is evaluated, the other one in estimates.
    Affix,
    Format,
    /// `includes` of selectors of devices.
    Includes,
    ToBytes,
    ToText,
    Quote,
}

impl Rule {
    /// The rule for a function, and for its signature where there is one alone.
    pub(crate) fn of(function: &str, overload: Option<&str>) -> Self {
        let overload = overload.unwrap_or_default();
        if let Some(rule) = extension(overload) {
            return rule;
        }
        match function {
            "check" => Self::Check,
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery" => Self::Nominal,
            "fieldSelector" | "labelSelector" => Self::Selector,
            "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => Self::Traverse,
            "url" | "lowerAscii" | "upperAscii" | "substring" | "trim" | "jsonpatch.escapeKey" => {
                Self::ScanSame
            }
            "replace" => Self::Replace,
            "split" => Self::Split,
            "join" => Self::Join,
            "find" | "findAll" => Self::Find,
            "ip" if overload == "cidr_ip" => Self::Nominal,
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver" => {
                Self::Scan(CHARACTER)
            }
            "ip.isCanonical" => Self::Scan(2.0 * CHARACTER),
            "containsIP" => Self::ContainsIp { text: overload == "cidr_contains_ip_string" },
            "containsCIDR" => Self::ContainsCidr { text: overload == "cidr_contains_cidr_string" },
            "validate" => Self::Validate,
            _ => standard(overload),
        }
    }

    /// What a call has cost.
    pub(crate) fn actual(self, args: &[Value<'_>], result: &Value<'_>) -> u64 {
        let size = |index: usize| args.get(index).map_or(1, Value::size);
        match self {
            Self::One | Self::Nominal | Self::AddList | Self::Includes => 1,
            Self::Check => CHECK,
            Self::Selector => selector(size(1)),
            Self::Traverse => args.first().map_or(0, traversal),
            Self::Scan(factor) => scaled(size(0), factor),
            Self::ScanSame | Self::Affix | Self::Format | Self::ToBytes | Self::ToText | Self::Quote => {
                scaled(size(0), CHARACTER)
            }
            Self::Replace | Self::Split => scaled(size(0), 2.0 * CHARACTER),
            Self::Join => scaled(result.size(), 2.0 * CHARACTER),
            Self::Find | Self::Matches => {
                scaled(size(0) + 1, CHARACTER).saturating_mul(scaled(size(1), PATTERN))
            }
            Self::ContainsIp { text } => {
                scaled(2 * size(0), CHARACTER) + if text { scaled(size(1), CHARACTER) } else { 0 }
            }
            Self::ContainsCidr { text } => {
                let masking = scaled(size(0), CHARACTER) + 1;
                scaled(2 * size(0), CHARACTER) + masking + if text { scaled(size(1), CHARACTER) } else { 0 }
            }
            Self::Validate => {
                let pattern = match args.first() {
                    Some(Value::Native(native)) => match &native.0 {
                        Kind::Format(format) => format.pattern_size,
                        _ => 0,
                    },
                    _ => 0,
                };
                scaled(size(1) + 1, CHARACTER).saturating_mul(scaled(pattern, PATTERN))
            }
            Self::Sets(factor) => 1 + (size(0).saturating_mul(size(1)) as f64 * factor) as u64,
            Self::Slice | Self::Range | Self::Reverse => allocating(result.size(), 1.0),
            Self::Flatten => {
                let depth = match args.get(1) {
                    Some(Value::Int(depth)) => *depth as f64,
                    _ => 1.0,
                };
                allocating(size(0), depth)
            }
            Self::Distinct | Self::Sort { .. } => self_compare(args.first()),
            Self::SortBy { .. } => self_compare(args.get(1)),
            Self::InList => size(1),
            Self::Compare => scaled(size(0).min(size(1)), CHARACTER),
            Self::AddText => scaled(size(0).saturating_add(size(1)), CHARACTER),
            Self::Contains => scaled(size(0), CHARACTER).saturating_mul(scaled(size(1), CHARACTER)),
        }
    }
}

/// Rules that cel-go's extensions bring for their signatures.
fn extension(overload: &str) -> Option<Rule> {
    Some(match overload {
        "list_sets_contains_list" | "list_sets_intersects_list" => Rule::Sets(1.0),
        "list_sets_equivalent_list" => Rule::Sets(2.0),
        "dra_includes_dyn_dyn" => Rule::Includes,
        "list_slice" => Rule::Slice,
        "lists_range" => Rule::Range,
        "list_reverse" => Rule::Reverse,
        "list_flatten" | "list_flatten_int" => Rule::Flatten,
        "list_distinct" => Rule::Distinct,
        _ => {
            let element = overload.strip_prefix("list_")?;
            if let Some(element) = element.strip_suffix("_sortByAssociatedKeys") {
                return Some(Rule::SortBy { text: matches!(element, "string" | "bytes") });
            }
            let element = element.strip_suffix("_sort")?;
            Rule::Sort { text: matches!(element, "string" | "bytes") }
        }
    })
}

/// Rules for the language's own signatures.
fn standard(overload: &str) -> Rule {
    match overload {
        "starts_with_string" | "ends_with_string" => Rule::Affix,
        "string_format" => Rule::Format,
        "string_to_bytes" => Rule::ToBytes,
        "bytes_to_string" => Rule::ToText,
        "strings_quote" => Rule::Quote,
        "in_list" => Rule::InList,
        "less_string"
        | "greater_string"
        | "less_equals_string"
        | "greater_equals_string"
        | "less_bytes"
        | "greater_bytes"
        | "less_equals_bytes"
        | "greater_equals_bytes"
        | "equals"
        | "not_equals" => Rule::Compare,
        "add_string" | "add_bytes" => Rule::AddText,
        "add_list" => Rule::AddList,
        "matches_string" => Rule::Matches,
        "contains_string" => Rule::Contains,
        _ => Rule::One,
    }
}

/// `size` times a factor, rounded up.
fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

/// A selector is a list of requirements, each of at least two characters with an object and a list of its own.
fn selector(size: u64) -> u64 {
    let requirements = scaled(scaled(size, 0.5), (LIST + OBJECT) as f64);
    LIST + scaled(size, CHARACTER) + requirements
}

fn allocating(size: u64, factor: f64) -> u64 {
    ((size as f64 * factor) as u64).saturating_add(1 + LIST)
}

fn self_compare(list: Option<&Value<'_>>) -> u64 {
    let Some(Value::List(list)) = list else {
        return 1;
    };
    let size = list.len() as u64;
    let text = matches!(list.get(0), Ok(Some(Value::String(_) | Value::Bytes(_))));
    allocating(size.saturating_mul(size), if text { 2.0 + CHARACTER } else { 2.0 })
}

/// The cost of looking at all of a value.
fn traversal(value: &Value<'_>) -> u64 {
    match value {
        Value::String(text) => (text.len() as f64 * CHARACTER) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * CHARACTER) as u64,
        Value::List(list) => list.iter().map(|value| value.map_or(1, |value| traversal(&value))).sum(),
        Value::Map(map) => map_traversal(map),
        _ => 1,
    }
}

fn map_traversal(map: &Map<'_>) -> u64 {
    let entries = map.entries().unwrap_or_default();
    entries.iter().map(|(key, value)| traversal(key) + traversal(value)).sum()
}

/// The cost of `==` or `!=`.
pub(crate) fn equality(left: &Value<'_>, right: &Value<'_>, negate: bool) -> u64 {
    match left {
        Value::Native(_) if !negate => 1,
        _ => scaled(left.equal_size().min(right.equal_size()), CHARACTER),
    }
}

impl Value<'_> {
    /// The size for comparisons: an optional's is its value's.
    fn equal_size(&self) -> u64 {
        match self {
            Self::Optional(Some(value)) => value.equal_size(),
            other => other.size(),
        }
    }
}
