//! Health endpoints of the components.
