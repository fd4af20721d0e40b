//! The Common Expression Language as Kubernetes speaks it.
//!
//! A newcomer starts at [`Env`]: it says what an expression may mention, and compiles expressions to [`Program`]s, which
//! are evaluated over borrowed JSON with [`Bindings`]. [`Decl`] describes the data: types, sizes, how JSON is read.
//!
//! What Kubernetes' rules, policies and selectors rely on is all here: cel-go's checker with its messages, the libraries
//! of Kubernetes 1.37, the cost of an evaluation with a limit, and the estimate of what it can cost at most.
//!
//! ```
//! use kcel::{Bindings, Decl, Env};
//!
//! let port = Decl::object("object").field("port", Decl::int(), true);
//! let root = Decl::object("object").field("ports", Decl::list(port).max_items(10), false).named("selfType");
//! let env = Env::builder().variable("self", root).build();
//! let program = env.compile("self.ports.all(p, p.port > 0 && p.port < 65536)")?;
//! assert!(program.estimate().max < kcel::limits::RULE_ESTIMATE_MAX);
//!
//! let data = serde_json::json!({"ports": [{"port": 80}, {"port": 70000}]});
//! let bindings = Bindings::new().json("self", &data);
//! let outcome = program.eval(&bindings, kcel::limits::PER_CALL_COST_MAX);
//! assert_eq!(outcome.result?.as_bool(), Some(false));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

// From text to a tree.
mod ast;
mod error;
mod lexer;
mod literal;
mod parser;
// From a tree to a checked tree.
mod checker;
mod decl;
mod env;
mod escape;
mod functions;
mod types;
mod unify;
mod validate;
// From a checked tree to a value.
mod bindings;
mod eval;
mod plan;
mod program;
mod value;
// What it costs.
mod cost;
pub mod limits;
// The environments that Kubernetes' objects compile their expressions in.
mod device;
mod policy;
// Functions.
mod authorizer;
mod library;
mod native;
mod regex;
mod stdlib;

pub use authorizer::{Authorizer, AuthorizerValue, Check, CheckTarget, Decision, ResourceCheck};
pub use bindings::{Bindings, Compute};
pub use cost::Cost;
pub use decl::{Decl, ListKind};
pub use device::{DeviceEnv, SELECTOR_COST_MAX};
pub use env::{Env, EnvBuilder, Feature};
pub use error::{CompileErrors, ERRORS_MAX, EvalError, Issue, Phase};
pub use escape::{escape, unescape};
pub use native::Native;
pub use parser::{EXPRESSION_CHARS_MAX, EXPRESSION_DEPTH_MAX};
pub use policy::{ExpressionError, PolicyEnv, Purpose};
pub use program::{Outcome, Program};
pub use types::{ObjectType, Type};
pub use value::{Entries, JsonMap, List, Map, Moment, Object, Text, Value};
