//! Signatures written as text: `(list<A>, int) A`.

use crate::types::{Param, Type};

/// The parameters and the result of a signature. Signatures are this crate's own constants: what can't be read
/// becomes [`Type::Error`], which a test looks for.
pub(super) fn parse(text: &str) -> (Vec<Type>, Type) {
    let mut rest = text.trim_start_matches('(');
    let mut params = Vec::new();
    while let Some(after) = rest.strip_prefix(|letter: char| letter != ')').map(|_| rest) {
        let (param, after) = one(after);
        params.push(param);
        rest = after.trim_start_matches([',', ' ']);
    }
    let (result, _) = one(rest.trim_start_matches([')', ' ']));
    (params, result)
}

/// One type, and what follows it.
fn one(text: &str) -> (Type, &str) {
    let end = text.find(['<', '>', ',', ')', ' ']).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if let Some(inner) = rest.strip_prefix('<') {
        let (first, rest) = one(inner);
        if name == "map" {
            let (second, rest) = one(rest.trim_start_matches([',', ' ']));
            return (Type::map(first, second), close(rest));
        }
        let outer = match name {
            "list" => Type::list(first),
            "optional" => Type::optional(first),
            "type" => Type::Type(first.into()),
            _ => Type::Error,
        };
        return (outer, close(rest));
    }
    (simple(name), rest)
}

fn close(rest: &str) -> &str {
    rest.strip_prefix('>').unwrap_or(rest)
}

fn simple(name: &str) -> Type {
    match name {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "timestamp" => Type::Timestamp,
        "duration" => Type::Duration,
        "net.IP" => Type::Opaque("net.IP"),
        "net.CIDR" => Type::Opaque("net.CIDR"),
        _ if name.starts_with("kubernetes.") => Type::hidden(name),
        _ => match name.chars().next() {
            Some(letter) if name.len() == 1 && letter.is_ascii_uppercase() => {
                Type::Param(Param::Named(letter))
            }
            _ => Type::Error,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_read() {
        for (text, params, result) in [
            ("() int", "", "int"),
            ("(int, uint) bool", "int uint", "bool"),
            ("(list<A>, map<A, list<B>>) optional<B>", "list(A) map(A, list(B))", "optional_type(B)"),
            ("(net.IP) type<A>", "net.IP", "type(A)"),
            ("(what) int", "!error!", "int"),
        ] {
            let (read, found) = parse(text);
            let read: Vec<String> = read.iter().map(ToString::to_string).collect();
            assert_eq!((read.join(" ").as_str(), found.to_string().as_str()), (params, result), "{text}");
        }
    }
}
