//! The seam where tests see every effect on the disk. In a program the two functions are nothing but the calls.

#[cfg(not(test))]
use std::path::Path;

/// Changes something at `path`: names, content or mode.
#[cfg(not(test))]
pub(crate) fn change<T>(_: &Path, act: impl FnOnce() -> T) -> T {
    act()
}

/// Makes durable what is at `path`: the content of a file, the names in a directory.
#[cfg(not(test))]
pub(crate) fn sync<T>(_: &Path, act: impl FnOnce() -> T) -> T {
    act()
}

#[cfg(test)]
pub(crate) use super::disk::{change, sync};
