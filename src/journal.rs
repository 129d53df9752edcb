//! Append-only record of what was made.
