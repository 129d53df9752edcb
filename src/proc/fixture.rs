//! A directory that looks like `/proc`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::Proc;

/// A container id.
pub(crate) const OUTER: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0";
/// Another container id.
pub(crate) const INNER: &str = "9a8b7c6d5e4f30213243546576879809a8b7c6d5e4f3021324354657687980ab";

/// A directory that looks like `/proc`, gone with this value.
pub(crate) struct Fixture {
    directory: tempfile::TempDir,
}

impl Fixture {
    /// One without processes and sockets.
    pub(crate) fn new() -> Self {
        let fixture = Self { directory: tempfile::tempdir().unwrap() };
        fixture.write("net/tcp", HEADER);
        fixture.write("net/tcp6", HEADER);
        fixture
    }

    pub(crate) fn root(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn proc(&self) -> Proc {
        Proc::new(self.root())
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        let path = self.root().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A process with these arguments, in state `state` with `threads` threads, in the cgroup `/docker/<container>`.
    pub(crate) fn process(&self, pid: i32, arguments: &[&str], state: char, threads: u32, container: Option<&str>) {
        let command = arguments[0].rsplit('/').next().unwrap();
        let comm = &command[..command.len().min(15)];
        self.write(&format!("{pid}/comm"), &format!("{comm}\n"));
        self.write(&format!("{pid}/cmdline"), &format!("{}\0", arguments.join("\0")));
        self.write(
            &format!("{pid}/stat"),
            &format!("{pid} ({comm}) {state} 1 1 1 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 {threads} 0 25 0 0\n"),
        );
        let path = container.map_or("/".to_owned(), |id| format!("/docker/{id}"));
        self.write(&format!("{pid}/cgroup"), &format!("0::{path}\n"));
        fs::create_dir_all(self.root().join(format!("{pid}/fd"))).unwrap();
    }

    /// Gives process `pid` the open file `fd` that leads to `target`, e.g. `socket:[7]`.
    pub(crate) fn open(&self, pid: i32, fd: u32, target: &str) {
        symlink(target, self.root().join(format!("{pid}/fd/{fd}"))).unwrap();
    }

    /// Writes `net/<table>` with one line per `address in hexadecimal:port in hexadecimal`, state and inode.
    pub(crate) fn sockets(&self, table: &str, sockets: &[(&str, &str, u64)]) {
        let lines = sockets.iter().enumerate().map(|(number, (local, state, inode))| {
            format!(
                "{number:4}: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 \
                 {inode} 1 0000000010527b8c 100 0 0 10 0\n"
            )
        });
        let text = std::iter::once(HEADER.to_owned()).chain(lines).collect::<Vec<_>>().concat();
        self.write(&format!("net/{table}"), &text);
    }
}

const HEADER: &str =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
