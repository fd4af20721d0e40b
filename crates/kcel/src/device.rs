//! The environment of selectors of devices.

use crate::{
    decl::Decl,
    env::{Env, Feature},
    policy::{Declared, ExpressionError},
    program::Program,
    types::Type,
};

/// The most that a selector of devices may cost, estimated and evaluated (`CELSelectorExpressionMaxCost`).
pub const SELECTOR_COST_MAX: u64 = 1_000_000;

const DRIVER_BYTES_MAX: u64 = 63;
const DOMAIN_BYTES_MAX: u64 = 63;
const ID_BYTES_MAX: u64 = 32;
const ATTRIBUTES_MAX: u64 = 32;
const ATTRIBUTE_BYTES_MAX: u64 = 64;

/// The environment of the selectors of device classes and resource claims: `device`, with its driver, attributes and
/// capacities (`dynamic-resource-allocation/cel/compile.go`).
///
/// ```
/// let env = kcel::DeviceEnv::new();
/// let program = env.compile("device.driver == 'dra.example.com' && device.attributes['dra.example.com'].fast")?;
/// assert!(program.estimate().max < kcel::SELECTOR_COST_MAX);
/// assert_eq!(
///     env.compile("device.driver").unwrap_err().to_string(),
///     "must evaluate to bool or the unknown type, not string"
/// );
/// # Ok::<(), kcel::ExpressionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct DeviceEnv {
    env: Env,
}

impl Default for DeviceEnv {
    fn default() -> Self {
        Self::new()
    }
}

impl DeviceEnv {
    /// With what Kubernetes 1.37 has on by default.
    #[must_use]
    pub fn new() -> Self {
        Self { env: Env::builder().variable("device", Self::decl()).with(Feature::Bindings).build() }
    }

    /// With attributes that are lists and `includes`, too (`DRAListTypeAttributes`, which is alpha).
    #[must_use]
    pub fn with_lists() -> Self {
        let env = Env::builder().variable("device", Self::decl());
        Self { env: env.with(Feature::Bindings).with(Feature::Includes).build() }
    }

    /// The declaration of `device`. Attributes and capacities are maps of maps: by domain, then by name.
    #[must_use]
    pub fn decl() -> Decl {
        let by_name =
            |values: Decl| Decl::map(values).max_properties(ATTRIBUTES_MAX).max_key_length(ID_BYTES_MAX);
        let by_domain =
            |values: Decl| Decl::map(values).max_properties(ATTRIBUTES_MAX).max_key_length(DOMAIN_BYTES_MAX);
        let attribute = Decl::dynamic().with_elements_max(ATTRIBUTE_BYTES_MAX);
        Decl::object("kubernetes.DRADevice")
            .field("driver", Decl::string().with_elements_max(DRIVER_BYTES_MAX), true)
            .field("allowMultipleAllocations", Decl::bool().with_elements_max(1), true)
            .field("attributes", by_domain(by_name(attribute)), true)
            .field("capacity", by_domain(by_name(Decl::quantity())), true)
    }

    /// Compiles a selector. It may evaluate to an attribute, of which only its value tells whether it is a bool.
    ///
    /// # Errors
    /// What is wrong with the expression, that it is no bool, or that it could cost more than [`SELECTOR_COST_MAX`].
    pub fn compile(&self, expression: &str) -> Result<Program, ExpressionError> {
        let program = self.env.compile(expression).map_err(ExpressionError::Compile)?;
        let found = program.output_type();
        if !matches!(found, Type::Bool | Type::Dyn) {
            let found = Declared(found).to_string();
            return Err(ExpressionError::Type { expected: "bool or the unknown type", link: ", not", found });
        }
        if program.estimate().max > SELECTOR_COST_MAX {
            return Err(ExpressionError::Cost);
        }
        Ok(program)
    }
}
