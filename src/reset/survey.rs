//! What plinth has made, and what of it the host has now.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use serde::Serialize;

use super::{Options, Reasons, ResetError};
use crate::apply::Host;
use crate::fsx::{self, FsError, Holder};
use crate::journal::{Creation, Ledger};
use crate::layout::Layout;
use crate::runtime::{Runtime, labels};
use crate::service;
use crate::takedown;

/// The reason that holds for every container.
pub(super) const CONTAINERS: &str = "containers";

/// Something that plinth has made, and whether it is there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Thing {
    /// `process`, `container`, `image`, `mount`, `unit`, `file`, `directory`, `data`.
    pub kind: &'static str,
    /// Path or name.
    pub what: String,
    /// Whether it is there.
    pub state: State,
    /// Why it is there, if it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It is not.
    Gone,
    /// It is, and is to stay.
    Stays,
    /// It is, and is to go. Also what cannot be asked for.
    There,
}

impl Thing {
    fn new(kind: &'static str, what: String, state: State, why: &str) -> Self {
        let why = if state == State::Gone { String::new() } else { why.to_owned() };
        Self { kind, what, state, why }
    }
}

/// What plinth has made on this host.
#[derive(Debug)]
pub struct Made {
    creations: BTreeSet<Creation>,
    /// Names by full id.
    containers: BTreeMap<String, String>,
    engine_away: Option<String>,
}

impl Made {
    /// What the journal knows, and what carries our label in the engine.
    pub async fn find<R: Runtime>(layout: &Layout, runtime: &R, ledger: &Ledger) -> Result<Self, ResetError> {
        let known = ledger.containers().into_iter().map(|id| (id, String::new()));
        let mut made =
            Self { creations: ledger.creations().cloned().collect(), containers: known.collect(), engine_away: None };
        if let Some(agent) = takedown::agent_id(layout)? {
            match runtime.list(&agent).await {
                Ok(found) => made.containers.extend(found.into_iter().map(|container| {
                    let name = container.labels.get(labels::CONTAINER_NAME).cloned().unwrap_or(container.name);
                    (container.id, name)
                })),
                Err(error) => made.engine_away = Some(error.to_string()),
            }
        }
        Ok(made)
    }

    /// With what the agent has made since, which is stopped now.
    pub(super) async fn again<R: Runtime>(&self, host: &Host<'_, R>) -> Result<Self, ResetError> {
        let mut now = Self::find(host.layout, host.runtime, &host.journal.ledger()?).await?;
        now.creations.extend(self.creations.iter().cloned());
        let known = std::mem::replace(&mut now.containers, self.containers.clone());
        now.containers.extend(known.into_iter().filter(|(_, name)| !name.is_empty()));
        Ok(now)
    }

    /// Files, directories, images and the unit.
    pub(super) fn creations(&self) -> impl Iterator<Item = &Creation> {
        self.creations.iter().filter(|creation| !matches!(creation, Creation::Container { .. }))
    }

    /// Directories that are plinth's to change.
    pub(super) fn directories(&self) -> impl Iterator<Item = PathBuf> {
        self.creations.iter().filter_map(|creation| match creation {
            Creation::Directory { path } | Creation::Tree { path } => Some(path.clone()),
            _ => None,
        })
    }

    /// Whether there is anything in `directory`, which plinth made, that is not to go.
    fn holds_other(&self, directory: &Path, options: Options) -> bool {
        let is_known = |path: &Path| self.creations.contains(&Creation::Directory { path: path.to_owned() });
        let goes = |path: &Path| {
            self.creations().filter(|one| stays(one, options).is_none()).any(|one| match one {
                Creation::File { path: file } => path == file || path == fsx::temporary(file),
                Creation::HostFile { path: other } | Creation::Tree { path: other } => path == other,
                _ => false,
            })
        };
        let mut entries = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
        entries.any(|path| if is_known(&path) { self.holds_other(&path, options) } else { !goes(&path) })
    }

    /// Names of containers by full id.
    pub(super) fn containers(&self) -> &BTreeMap<String, String> {
        &self.containers
    }

    pub(super) fn engine_away(&self) -> Option<&str> {
        self.engine_away.as_deref()
    }

    /// Whether it was plinth that installed itself.
    pub(super) fn has_binary(&self, layout: &Layout) -> bool {
        self.creations.contains(&Creation::File { path: layout.binary() })
    }
}

/// What the next reset needs as long as it has anything to do, in the order in which it goes.
pub(super) fn needed_to_go_on(layout: &Layout) -> [PathBuf; 3] {
    [layout.agent_id(), layout.journal(), layout.lock()]
}

/// The directories that are there in which something of `made` was.
pub(super) fn parents(layout: &Layout, made: &Made) -> BTreeSet<PathBuf> {
    let paths = made.creations().filter_map(|creation| match creation {
        Creation::File { path }
        | Creation::HostFile { path }
        | Creation::Directory { path }
        | Creation::Tree { path } => Some(path.clone()),
        Creation::Container { .. } | Creation::Image { .. } | Creation::Unit { .. } => None,
    });
    let parent = |path: PathBuf| path.ancestors().skip(1).find(|one| one.is_dir()).map(Path::to_path_buf);
    paths.chain([layout.binary()]).filter_map(parent).collect()
}

/// Why `creation` is not to be removed, if it is not.
pub(super) fn stays(creation: &Creation, options: Options) -> Option<&'static str> {
    match creation {
        Creation::Image { .. } if !options.images => Some("images are kept unless --images is given"),
        Creation::Tree { .. } if options.keep_etcd_data => Some("kept as asked"),
        Creation::HostFile { path } if path.symlink_metadata().is_ok_and(|meta| !meta.is_file() || meta.len() > 0) => {
            Some("was made empty for a container, and is no empty file any more")
        }
        _ => None,
    }
}

/// The name of `creation`.
pub(super) fn name(creation: &Creation) -> String {
    match creation {
        Creation::File { path }
        | Creation::HostFile { path }
        | Creation::Directory { path }
        | Creation::Tree { path } => path.display().to_string(),
        Creation::Container { id } => id.clone(),
        Creation::Image { reference } => reference.clone(),
        Creation::Unit { name } => name.clone(),
    }
}

/// The name of the mount at `point`.
pub(super) fn mount(point: &Path) -> String {
    format!("mount at {}", point.display())
}

/// Looks for everything that plinth has made, but for what goes last.
pub(super) async fn look<R: Runtime>(
    host: &Host<'_, R>,
    made: &Made,
    options: Options,
    reasons: &Reasons,
) -> Result<Vec<Thing>, ResetError> {
    let mut things = vec![agent(host.layout)?];
    things.extend(containers(host, made, reasons).await?);
    for creation in made.creations() {
        match creation {
            Creation::Image { .. } => things.push(image(host.runtime, creation, options, reasons).await),
            Creation::Unit { name } => {
                let state = if service::unit_is_enabled(host.layout) { State::There } else { State::Gone };
                things.push(Thing::new("unit", name.clone(), state, "is enabled"));
            }
            Creation::File { path } if *path == host.layout.binary() => {}
            _ => things.push(path(creation, made, options, reasons)),
        }
    }
    things.extend(mounts(host.layout, reasons)?);
    things.extend(own_leftovers(host.layout, reasons));
    things.sort();
    // etcd's data directory is there once for its data, and once for itself.
    things.dedup_by(|a, b| a.what == b.what && a.kind == b.kind);
    Ok(things)
}

/// Looks for what goes last.
pub(super) fn last(layout: &Layout, made: &Made, reasons: &Reasons) -> Vec<Thing> {
    let reason = |path: &Path| reasons.get(&path.display().to_string()).map(String::as_str);
    let mut things = Vec::new();
    let of = |kind, path: PathBuf| {
        let (state, why) = match (exists(&path), reason(&path)) {
            (false, _) => (State::Gone, ""),
            // A mount point cannot be removed by those who use it.
            (true, _) if kind == "directory" && fsx::is_empty_directory(&path) => (State::Stays, "is a mount point"),
            (true, Some(why)) => (State::There, why),
            (true, None) => (State::There, "is needed until all else is gone"),
        };
        Thing::new(kind, path.display().to_string(), state, why)
    };
    if made.has_binary(layout) {
        things.push(of("file", layout.binary()));
    }
    things.push(of("directory", layout.state()));
    things
}

fn agent(layout: &Layout) -> Result<Thing, ResetError> {
    let state = if service::running(layout)? == Holder::Free { State::Gone } else { State::There };
    Ok(Thing::new("process", "plinth agent".to_owned(), state, "runs"))
}

/// Those that are known, and whatever else carries our label by now.
async fn containers<R: Runtime>(host: &Host<'_, R>, made: &Made, reasons: &Reasons) -> Result<Vec<Thing>, ResetError> {
    let mut all = made.containers.clone();
    let mut unasked = made.engine_away.clone();
    if let (Some(agent), None) = (takedown::agent_id(host.layout)?, &unasked) {
        match host.runtime.list(&agent).await {
            Ok(found) => found.into_iter().for_each(|one| _ = all.entry(one.id).or_insert(one.name)),
            Err(error) => unasked = Some(error.to_string()),
        }
    }
    let looks = all.iter().map(async |(id, name)| {
        let short = id.get(..12).unwrap_or(id);
        let what = if name.is_empty() { short.to_owned() } else { format!("{name} ({short})") };
        let answer = match &unasked {
            Some(error) => Err(error.clone()),
            None => host.runtime.inspect(id).await.map_err(|error| error.to_string()),
        };
        let why = reasons.get(CONTAINERS).map_or("", String::as_str);
        match answer {
            Ok(None) => Thing::new("container", what, State::Gone, ""),
            Ok(Some(_)) => Thing::new("container", what, State::There, why),
            Err(error) => {
                let why = format!("none of its processes runs; it can be removed when the engine answers: {error}");
                Thing::new("container", what, State::There, &why)
            }
        }
    });
    let mut things = join_all(looks).await;
    // Nobody can say that there is none.
    if let Some(error) = unasked.as_ref().or(reasons.get(CONTAINERS))
        && things.iter().all(|thing| thing.state == State::Gone)
    {
        things.push(Thing::new("container", "any".to_owned(), State::There, error));
    }
    Ok(things)
}

async fn image<R: Runtime>(runtime: &R, creation: &Creation, options: Options, reasons: &Reasons) -> Thing {
    let reference = name(creation);
    let reason = reasons.get(&reference).map_or("", String::as_str);
    let (state, why) = match (runtime.image(&reference).await, stays(creation, options)) {
        (Ok(None), _) => (State::Gone, ""),
        (_, Some(why)) => (State::Stays, why),
        (_, None) => (State::There, reason),
    };
    Thing::new("image", reference, state, why)
}

fn path(creation: &Creation, made: &Made, options: Options, reasons: &Reasons) -> Thing {
    let what = name(creation);
    let path = Path::new(&what);
    let reason = reasons.get(&what).map_or("", String::as_str);
    let empty = fsx::is_empty_directory(path);
    let is_tree = made.creations.contains(&Creation::Tree { path: path.to_owned() });
    match creation {
        Creation::Tree { .. } => {
            let (state, why) = match stays(creation, options) {
                _ if !exists(path) || empty => (State::Gone, ""),
                Some(why) => (State::Stays, why),
                None => (State::There, reason),
            };
            Thing::new("data", what, state, why)
        }
        Creation::Directory { .. } => {
            let (state, why) = match () {
                () if !exists(path) => (State::Gone, ""),
                () if options.keep_etcd_data && is_tree => (State::Stays, "kept as asked"),
                () if empty && fsx::is_mount_point(path) => (State::Stays, "is a mount point, and empty"),
                () if !is_tree && made.holds_other(path, options) => {
                    (State::Stays, "holds files that plinth did not make")
                }
                () => (State::There, reason),
            };
            Thing::new("directory", what, state, why)
        }
        _ => {
            let (state, why) = match stays(creation, options) {
                _ if !exists(path) => (State::Gone, ""),
                Some(why) => (State::Stays, why),
                None => (State::There, reason),
            };
            Thing::new("file", what, state, why)
        }
    }
}

/// Mounts of pods, and those that were in use.
fn mounts(layout: &Layout, reasons: &Reasons) -> Result<Vec<Thing>, FsError> {
    let there: BTreeSet<_> = fsx::mounts_below(&layout.pods())?.iter().map(|point| mount(point)).collect();
    let detached = reasons.iter().filter(|(what, _)| what.starts_with("mount at ") && !there.contains(*what));
    let detached = detached.map(|(what, why)| Thing::new("mount", what.clone(), State::Stays, why));
    let reason = |what: &str| reasons.get(what).cloned().unwrap_or_default();
    let there = there.iter().map(|what| Thing::new("mount", what.clone(), State::There, &reason(what)));
    Ok(detached.chain(there).collect())
}

/// What is in the directories that are plinth's alone, one line for each that should be gone.
fn own_leftovers(layout: &Layout, reasons: &Reasons) -> Vec<Thing> {
    let entries = std::fs::read_dir(layout.state()).into_iter().flatten().flatten().map(|entry| entry.path());
    let others = entries.filter(|path| !needed_to_go_on(layout).contains(path));
    let run = Some(layout.run()).filter(|run| exists(run));
    let there = others.chain(run).map(|path| {
        let what = path.display().to_string();
        let why = reasons.get(&what).cloned().unwrap_or_default();
        Thing::new(if path.is_dir() { "directory" } else { "file" }, what, State::There, &why)
    });
    there.collect()
}

/// Whether there is something of this name, dangling symlinks included.
fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
