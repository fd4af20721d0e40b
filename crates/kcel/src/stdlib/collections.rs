//! Indexes, membership and sizes.

use crate::{
    ast::op,
    error::EvalError,
    eval::Eval,
    functions::Functions,
    value::{Value, chars},
};

pub(super) fn add(functions: &mut Functions) {
    functions.global(
        op::INDEX,
        super::unreachable,
        &[
            ("index_list", "(list<A>, int) A"),
            ("index_map", "(map<A, B>, A) B"),
            ("optional_list_index_int", "(optional<list<V>>, int) optional<V>"),
            ("optional_map_index_value", "(optional<map<K, V>>, K) optional<V>"),
        ],
    );
    functions.global(
        op::OPT_INDEX,
        super::unreachable,
        &[
            ("list_optindex_optional_int", "(list<V>, int) optional<V>"),
            ("optional_list_optindex_optional_int", "(optional<list<V>>, int) optional<V>"),
            ("map_optindex_optional_value", "(map<K, V>, K) optional<V>"),
            ("optional_map_optindex_optional_value", "(optional<map<K, V>>, K) optional<V>"),
        ],
    );
    functions.global(
        op::IN,
        contained,
        &[("in_list", "(A, list<A>) bool"), ("in_map", "(A, map<A, B>) bool")],
    );
    for (member, suffix) in [(false, ""), (true, "_inst")] {
        for (id, text) in [
            ("size_bytes", "(bytes) int"),
            ("size_list", "(list<A>) int"),
            ("size_map", "(map<A, B>) int"),
            ("size_string", "(string) int"),
        ] {
            functions.add("size", member, format!("{id}{suffix}").into(), text, size);
        }
    }
}

fn contained<'a>(args: &[Value<'a>]) -> Eval<'a> {
    match args {
        [value, Value::List(list)] => Ok(Value::Bool(list.contains(value)?)),
        [key, Value::Map(map)] => Ok(Value::Bool(map.contains(key)?)),
        _ => Err(EvalError::no_such_overload()),
    }
}

fn size<'a>(args: &[Value<'a>]) -> Eval<'a> {
    let size = match args {
        [Value::String(text)] => chars(text),
        [Value::Bytes(bytes)] => bytes.len(),
        [Value::List(list)] => list.len(),
        [Value::Map(map)] => map.len(),
        _ => return Err(EvalError::no_such_overload()),
    };
    Ok(Value::Int(size as i64))
}
