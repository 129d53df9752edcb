//! The static-pod agent: the kubelet's static-pod half, on a container runtime.

pub mod client;
pub mod status;
