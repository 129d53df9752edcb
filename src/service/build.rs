//! Which plinth the agent is: where it is installed, and whether the one that runs is the one that would be started.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest;

use super::{AgentCommand, ServiceError, running};
use crate::fsx::{self, FsError, Holder};
use crate::journal::{Creation, Ledger};
use crate::layout::Layout;
use crate::proc::Proc;

/// How many builds that were replaced are kept.
const KEPT: usize = 2;

/// What [`install`] makes on the host, for the journal.
pub fn creations(command: &AgentCommand, layout: &Layout) -> Vec<Creation> {
    let installed = layout.binary();
    if command.program == installed || installed.exists() {
        return Vec::new();
    }
    let directories = fsx::missing_directories(installed.parent().unwrap_or(Path::new("/")));
    let directories = directories.into_iter().map(|path| Creation::Directory { path });
    directories.chain([Creation::File { path: installed }]).collect()
}

/// Makes sure that plinth is where a boot finds it, `/usr/local/bin/plinth`, and returns the command line with that
/// path. Builds and downloads are run from anywhere and cleared away; the agent must outlive them. The file is replaced
/// by a rename, so that an agent that runs from it is not disturbed.
///
/// Another file of that name that plinth did not put there (`ledger`) is left alone, and so is a host whose
/// `/usr/local/bin` cannot be written: `command` then stays as it is.
pub fn install(command: &AgentCommand, layout: &Layout, ledger: &Ledger) -> Result<AgentCommand, ServiceError> {
    let installed = layout.binary();
    let there = AgentCommand { program: installed.clone(), arguments: command.arguments.clone() };
    if command.program == installed {
        return Ok(there);
    }
    if installed.exists() && !ledger.has_file(&installed) {
        let same = is_same(&command.program, &installed).map_err(FsError::of("read", &installed))?;
        if !same {
            tracing::warn!(file = %installed.display(), "plinth did not install it: the agent runs from where plinth is");
        }
        return Ok(if same { there } else { command.clone() });
    }
    let program = fsx::read(&command.program)?;
    let directory = installed.parent().unwrap_or(Path::new("/"));
    let written =
        fsx::create_directories(directory, 0o755).and_then(|_| fsx::write_if_changed(&installed, &program, 0o755));
    match written {
        Ok(_) => Ok(there),
        Err(error) if error.source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            tracing::warn!(%error, "the agent runs from where plinth is");
            Ok(command.clone())
        }
        Err(error) => Err(error.into()),
    }
}

/// In what the agent that runs differs from one that `command` would start; `None` where it does not, and where none
/// runs or another program has the agent inside (`init --foreground`).
pub fn outdated(command: &AgentCommand, layout: &Layout) -> Result<Option<&'static str>, ServiceError> {
    let Holder::Process(pid) = running(layout)? else { return Ok(None) };
    let Some(arguments) = Proc::new(layout.proc()).arguments(pid)? else { return Ok(None) };
    let given: Vec<_> = arguments.into_iter().skip(1).filter(|argument| argument != "--detached").collect();
    if given.first().map(String::as_str) != Some("agent") {
        return Ok(None);
    }
    // One that ends just now is none.
    let other_build = is_same(&executable(layout, pid), &command.program).is_ok_and(|same| !same);
    Ok(match () {
        () if other_build => Some("it is of another build of plinth"),
        () if given != command.arguments => Some("it runs with other arguments"),
        () => None,
    })
}

/// Keeps the executable of the agent that runs as `plinth-<hash>` in [`Layout::binaries`]: a build that was replaced is
/// still there for who wants to go back to it. Of those only the newest two are.
pub fn keep(layout: &Layout) -> Result<(), ServiceError> {
    let Holder::Process(pid) = running(layout)? else { return Ok(()) };
    let program = fsx::read(&executable(layout, pid))?;
    let hash = digest::digest(&digest::SHA256, &program);
    let name = hash.as_ref()[..6].iter().fold("plinth-".to_owned(), |name, byte| name + &format!("{byte:02x}"));
    keep_build(&layout.binaries(), &name, &program)
}

fn keep_build(directory: &Path, name: &str, program: &[u8]) -> Result<(), ServiceError> {
    fsx::create_directories(directory, 0o700)?;
    let kept = directory.join(name);
    // Anew, so that it is the newest.
    fsx::write_atomic(&kept, program, 0o755)?;
    let modified = |path: &PathBuf| path.metadata().and_then(|meta| meta.modified()).ok();
    let entries = std::fs::read_dir(directory).map_err(FsError::of("read directory", directory))?;
    let mut others: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(|path| *path != kept).collect();
    others.sort_by_key(|path| std::cmp::Reverse(modified(path)));
    for path in others.iter().skip(KEPT - 1) {
        fsx::remove_file(path)?;
    }
    Ok(())
}

/// What process `pid` runs, even after the file was replaced.
fn executable(layout: &Layout, pid: i32) -> PathBuf {
    layout.proc().join(format!("{pid}/exe"))
}

/// Whether two files have the same content; without reading them where they are one.
fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let [first, second] = [one.metadata()?, other.metadata()?];
    if (first.dev(), first.ino()) == (second.dev(), second.ino()) {
        return Ok(true);
    }
    if first.len() != second.len() {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    one.read_to_end(&mut left)?;
    other.read_to_end(&mut right)?;
    Ok(left == right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_builds_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        for (age, name) in [(4, "one"), (3, "two"), (2, "one"), (1, "three")] {
            keep_build(directory.path(), name, name.as_bytes()).unwrap();
            let file = File::options().write(true).open(directory.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_secs(age)).unwrap();
        }
        let mut kept: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        kept.sort();
        assert_eq!(kept, ["one", "three"]);
    }
}
