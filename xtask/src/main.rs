//! Project tasks: `cargo run -p xtask -- gen-schema` and `gen-protobuf`.

mod protobuf;
mod schema;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["gen-protobuf"] => protobuf::generate(),
        ["gen-schema"] => schema::generate(None),
        ["gen-schema", wheel] => schema::generate(Some(wheel.as_ref())),
        _ => bail!(
            "usage: cargo run -p xtask -- gen-protobuf | gen-schema [kubernetes_validate-1.37.0-py3-none-any.whl]"
        ),
    }
}
