//! Certificates and keys: specification, issue, inspection.
