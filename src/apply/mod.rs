//! Performs a plan.

pub mod autopsy;
