//! The part of the evidence that needs a system call.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

use super::evidence::Disk;

/// How full the file system is that holds `path`, or would hold it: the nearest directory above that exists counts.
///
/// Free is what root can use (`f_bfree`): the reserve that other users do not get is ours.
pub fn disk_free(path: &Path) -> io::Result<Disk> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let stat = statvfs(existing)?;
    let block = stat.fragment_size();
    Ok(Disk { path: path.to_owned(), free: stat.blocks_free() * block, total: stat.blocks() * block })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_not_there_yet_counts_as_its_parent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("var/lib/etcd");
        let disk = disk_free(&path).unwrap();
        assert_eq!(disk.path, path);
        assert!(disk.total > 0 && disk.free <= disk.total, "{disk:?}");
        assert_eq!(disk.total, disk_free(directory.path()).unwrap().total);
    }
}
