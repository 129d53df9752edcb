//! One door to stdout and stderr.
