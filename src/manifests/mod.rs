//! Static pods of the control plane.

use crate::release::Component;
use k8s_openapi::api::core::v1::Pod;

/// A rendered static pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// Whose.
    pub component: Component,
    /// Parsed back.
    pub pod: Pod,
    /// File content.
    pub yaml: String,
}

/// File name.
pub fn file_name(component: Component) -> String {
    format!("{component}.yaml")
}
