//! Project tasks that make the tables of facts about Kubernetes; run them in the workspace's folder.
//!
//! | `cargo run -p xtask --` | writes, in `crates/kschema/src` | from |
//! |---|---|---|
//! | `gen-schema [WHEEL]` | `builtin.txt` | the Python package `kubernetes-validate` |
//! | `gen-builtin` | `../../kapi/src/registry/builtin.txt` | the crate `k8s-openapi`, the schema table, and an overlay |
//! | `gen-golang DIR` | `pointers.txt`, `always.txt` | Go's types |
//! | `gen-internal KUBERNETES` | `../../kkinds/src/check/internal.txt` | the internal types of upstream's own tree |
//! | `gen-protobuf DIR` | `protobuf.txt` | upstream's `generated.proto` files |
//!
//! `DIR` is laid out as upstream's `staging/src/k8s.io`: `api` (the repository `kubernetes/api`), `apimachinery`,
//! `apiextensions-apiserver` and `kube-aggregator`. `KPLANE_K8S_SOURCE=DIR cargo test -p xtask` tells whether the tables are
//! what these commands make; `KPLANE_KUBERNETES_SOURCE` does so for `internal.txt`.

mod golang;
mod internal;
mod proto;
mod protobuf;
mod resources;
mod schema;
mod tables;

use anyhow::{Result, bail};

fn main() -> Result<()> {
    std::env::set_current_dir(tables::root())?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["gen-protobuf", folder] => protobuf::generate(folder.as_ref()),
        ["gen-builtin"] => resources::generate(),
        ["gen-golang", folder] => golang::generate(folder.as_ref()),
        ["gen-internal", folder] => internal::generate(folder.as_ref()),
        ["gen-schema"] => schema::generate(None),
        ["gen-schema", wheel] => schema::generate(Some(wheel.as_ref())),
        _ => bail!(
            "usage: cargo run -p xtask -- gen-builtin | gen-golang DIR | gen-internal KUBERNETES | gen-protobuf DIR | gen-schema [kubernetes_validate-1.37.0-py3-none-any.whl]"
        ),
    }
}
