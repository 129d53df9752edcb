//! Performs a plan.
