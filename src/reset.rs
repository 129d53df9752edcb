//! Takes everything away again, and proves it.
