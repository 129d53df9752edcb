//! Replaces etcd by one of another version, and goes back: the effects to the decisions of [`crate::etcd::next`], whose
//! documentation says how, and what is found after a kill at which point.
//!
//! # Guarantees
//! - Each record is in the journal before what it announces, and both manifests are on disk before the first one.
//! - No two etcds have the data open at once, and nobody starts one while they are copied or exchanged.
//! - What an etcd has acknowledged is never given up: a copy is put back only where nobody can miss anything.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use reqwest::Url;
use tokio::time::{sleep, timeout};

use super::watch::Watch;
use super::{ApplyError, EtcdStuck, Goal, HealthyAfter, Host, exchange};
use crate::agent::blocking::apart;
use crate::agent::client::AgentClient;
use crate::agent::status::AgentStatus;
use crate::config::loopback_of;
use crate::error::with_causes;
use crate::etcd::{
    Change, Client, Course, DataDir, DataError, Next, Observed, Place, Process, PutBack, Series, Which, next,
};
use crate::fsx::{self, FsError};
use crate::health::{Identity, TargetError, Trust};
use crate::journal::{Creation, Ledger, Record};
use crate::plan::{self, Back, OpenSwap, generation};
use crate::release::Component;
use crate::runtime::Runtime;
use crate::ui::Phase;
use crate::yaml;

use super::files::MANIFEST_MODE;

/// How long one etcd that has the data open may take to say that it leads.
const ANSWER: Duration = Duration::from_secs(2);
/// How long an etcd may take to end: its grace period (kubeadm's manifest: 30 s) and what the engine adds.
const GONE: Duration = Duration::from_secs(90);
/// How often it is looked whether it has.
const POLL: Duration = Duration::from_millis(20);
/// How long etcd may take to take the end of a downgrade.
const END_DOWNGRADE: Duration = Duration::from_secs(10);
/// How often what one etcd may wait for fits into a replacement: becoming healthy, its downgrade, the other one.
const WAITS: u32 = 3;
/// How many snapshots are kept.
const SNAPSHOTS: usize = 3;

/// What a swap goes from and to.
#[derive(Debug, Clone)]
pub(super) struct Swapped {
    old: String,
    new: String,
}

impl Swapped {
    /// Reads what is to be gone back to if need be.
    pub(super) fn of<R>(back: Back, goal: &Goal<'_>, host: &Host<'_, R>, ledger: &Ledger) -> Result<Self, ApplyError> {
        let stored = || -> Result<_, ApplyError> {
            let generation = generation::committed(host.layout, ledger)?;
            Ok(generation.and_then(|mut generation| generation.manifests.remove(&Component::Etcd)))
        };
        let on_disk = fsx::read_optional(&plan::manifest_path(host.layout, Component::Etcd))?.unwrap_or_default();
        let on_disk = String::from_utf8_lossy(&on_disk).into_owned();
        let on_disk_runs = back != Back::LastGeneration && yaml::manifest::<Pod>(on_disk.as_bytes()).is_ok();
        let old = if on_disk_runs { on_disk } else { stored()?.unwrap_or(on_disk) };
        let new = goal.manifest(Component::Etcd).map(|manifest| manifest.yaml.clone()).unwrap_or_default();
        Ok(Self { old, new })
    }

    /// The swap that was interrupted.
    pub(super) fn interrupted<R>(host: &Host<'_, R>) -> Result<Option<Self>, ApplyError> {
        let open = OpenSwap::read(host.layout, &host.journal.ledger()?)?;
        Ok(open.map(|OpenSwap { old, new, .. }| Self { old, new }))
    }
}

/// Replaces the etcd that runs, or goes on with doing so, and waits until the new one is healthy.
pub(super) async fn swap<R: Runtime>(
    swapped: &Swapped,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<HealthyAfter, ApplyError> {
    let mut run = if let Some(run) = Run::open(goal, host)? {
        run
    } else {
        let mut run = Run::new(&swapped.old, &swapped.new, Course::Forward, goal, host)?;
        // Otherwise it has been replaced already, and nobody has seen all of the control plane healthy since.
        if run.on_disk()? != Some(Which::New) {
            run.snapshot().await?;
            run.begin()?;
        }
        run
    };
    match run.drive().await {
        Ok(after) => {
            run.end(true).await?;
            run.phase.done(&format!("etcd is healthy after {:.1} s", after.as_secs_f64()));
            Ok(HealthyAfter { component: Component::Etcd, seconds: after.as_secs_f64() })
        }
        Err(error) => {
            run.phase.failed("etcd was not replaced");
            Err(error)
        }
    }
}

/// Brings the etcd from before back. `None` where it has never gone; with the reason where it is not healthy again.
pub(super) async fn undo<R: Runtime>(
    swapped: &Swapped,
    goal: &Goal<'_>,
    host: &Host<'_, R>,
) -> Result<Option<(Component, Option<String>)>, ApplyError> {
    let mut run = if let Some(mut run) = Run::open(goal, host)? {
        run.fail()?;
        run
    } else {
        let run = Run::new(&swapped.new, &swapped.old, Course::Forward, goal, host)?;
        if run.on_disk()? == Some(Which::New) {
            return Ok(None);
        }
        // It has served, so it goes down like any other; a snapshot was taken on the way up.
        run.begin()?;
        run
    };
    let mut reason = None;
    let driven = match run.drive().await {
        Err(error @ (ApplyError::EtcdStuck(_) | ApplyError::AgentGone { .. })) => Err(error),
        Err(error) if run.swap.course == Course::Forward => {
            reason = Some(with_causes(&error));
            run.fail()?;
            run.drive().await
        }
        driven => driven,
    };
    let after = driven?;
    run.end(false).await?;
    match &reason {
        None => run.phase.done(&format!("the old etcd is back and healthy after {:.1} s", after.as_secs_f64())),
        Some(_) => run.phase.failed("the new etcd runs on: the old one could not be brought back"),
    }
    Ok(Some((Component::Etcd, reason.map(|reason| format!("the new one runs on: {reason}")))))
}

/// Takes the copy away that a swap has left; returns what the journal has to say then.
pub(super) async fn discard_copy<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<Vec<Record>, ApplyError> {
    let data = data(goal, host);
    let ledger = host.journal.ledger()?;
    let made: Vec<_> = creations(&data).into_iter().filter(|creation| ledger.has(creation)).collect();
    if !made.is_empty() {
        apart(move || data.discard()).await?;
    }
    Ok(made.into_iter().map(|what| Record::Gone { what }).collect())
}

/// Takes away what swaps have left that were killed, and that nobody goes on with: the control plane is as it should be.
pub(super) async fn tidy<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    if host.journal.ledger()?.etcd_swap.is_none() {
        let gone = discard_copy(goal, host).await?;
        if !gone.is_empty() {
            host.journal.append(&gone)?;
        }
        fsx::remove_tree(&host.layout.etcd_swap())?;
    }
    Ok(())
}

fn data<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> DataDir {
    DataDir::new(host.layout.below_root(&goal.cluster.etcd.data_dir))
}

fn creations(data: &DataDir) -> [Creation; 2] {
    let path = data.copy_directory();
    [Creation::Tree { path: path.clone() }, Creation::Directory { path }]
}

/// One swap under way.
struct Run<'a, R> {
    goal: &'a Goal<'a>,
    host: &'a Host<'a, R>,
    swap: OpenSwap,
    change: Change,
    /// The lower of the two versions.
    earlier: Option<Series>,
    data: DataDir,
    client: Client,
    agent: AgentClient,
    phase: Phase,
}

impl<'a, R: Runtime> Run<'a, R> {
    /// The swap that the journal knows.
    fn open(goal: &'a Goal<'a>, host: &'a Host<'a, R>) -> Result<Option<Self>, ApplyError> {
        let open = OpenSwap::read(host.layout, &host.journal.ledger()?)?;
        open.map(|swap| Self::of(swap, goal, host)).transpose()
    }

    /// A swap that nobody knows yet.
    fn new(
        old: &str,
        new: &str,
        course: Course,
        goal: &'a Goal<'a>,
        host: &'a Host<'a, R>,
    ) -> Result<Self, ApplyError> {
        let id = host.clock.now().strftime("%Y%m%dT%H%M%S%.3fZ").to_string();
        let [old_image, new_image] = [old, new].map(|text| plan::image_of(text).unwrap_or_default());
        Self::of(OpenSwap { id, old: old.to_owned(), new: new.to_owned(), old_image, new_image, course }, goal, host)
    }

    fn of(swap: OpenSwap, goal: &'a Goal<'a>, host: &'a Host<'a, R>) -> Result<Self, ApplyError> {
        let [old, new] = [&swap.old_image, &swap.new_image].map(|image| plan::series(image));
        Ok(Self {
            change: plan::change_between(&swap.old_image, &swap.new_image).unwrap_or(Change::Unsupported),
            earlier: old.min(new),
            data: data(goal, host),
            client: client(&swap.old, goal)?,
            agent: AgentClient::new(host.layout)?,
            phase: host.printer.phase("etcd"),
            swap,
            goal,
            host,
        })
    }

    /// Keeps the data for people, if there is an etcd to ask.
    async fn snapshot(&mut self) -> Result<(), ApplyError> {
        if let Err(error) = self.client.status().await {
            self.host.printer.warning(&format!("no snapshot was taken: {}", with_causes(&error)));
            return Ok(());
        }
        let directory = self.host.layout.snapshots();
        fsx::create_directories(&directory, 0o700)?;
        let path = directory.join(format!("etcd-{}.db", self.swap.id));
        let snapshot = self.client.snapshot(&path, &mut |_, _| {}).await?;
        self.phase.update(&format!("snapshot of revision {}: `{}`", snapshot.revision, path.display()));
        for path in superfluous(&directory)? {
            fsx::remove_file(&path)?;
        }
        Ok(())
    }

    fn begin(&self) -> Result<(), ApplyError> {
        let [old, new] = self.swap.keep(self.host.layout)?;
        let mut records = vec![Record::EtcdSwap { id: self.swap.id.clone(), old, new }];
        records.extend(creations(&self.data).map(|what| Record::Make { what }));
        Ok(self.host.journal.append(&records)?)
    }

    /// Forward becomes back.
    fn fail(&mut self) -> Result<(), ApplyError> {
        if self.swap.course == Course::Forward {
            self.host.journal.append(&[Record::EtcdSwapFailed { id: self.swap.id.clone() }])?;
            self.swap.course = Course::Back;
        }
        Ok(())
    }

    /// Goes on until an etcd is healthy: the new one on the way forward, the old one on the way back.
    async fn drive(&mut self) -> Result<Duration, ApplyError> {
        let within = self.goal.cluster.timeouts.control_plane_component_health_check;
        // Only while an etcd is to run: copying takes as long as it takes, and with none there is nowhere to stay.
        let mut spent = Duration::ZERO;
        loop {
            let begin = Instant::now();
            let seen = self.observe().await?;
            let step = next(self.change, self.swap.course, &seen);
            tracing::info!(?step, ?seen, course = ?self.swap.course, "swap of etcd");
            if let Some(which) = seen.manifest.filter(|_| spent >= within * WAITS) {
                let reason = "it serves, and does not get ready for the other one".to_owned();
                return Err(match self.swap.course {
                    Course::Forward => ApplyError::Unhealthy {
                        after: spent,
                        hopeless: false,
                        unhealthy: vec![(Component::Etcd, reason)],
                    },
                    Course::Back | Course::Served => self.stuck(which, reason).await,
                });
            }
            match step {
                Next::Stop => {
                    // It has served since that copy was made.
                    if self.swap.course == Course::Forward && seen.copy == Some(Place::Aside) {
                        let data = self.data.clone();
                        apart(move || data.discard()).await?;
                    }
                    let stopping = format!("stopping {}", self.running(seen));
                    self.phase.update(&stopping);
                    fsx::remove_file(&self.manifest())?;
                    fsx::sync_directory(&self.host.layout.manifests())?;
                }
                Next::AwaitGone => self.await_gone().await?,
                Next::Copy => self.copy().await?,
                Next::Start(which) => {
                    let starting = format!("starting {}", self.image(which));
                    self.phase.update(&starting);
                    let text = self.text(which);
                    fsx::write_if_changed(&self.manifest(), text.as_bytes(), MANIFEST_MODE)?;
                }
                Next::Gate(which) => {
                    let after = self.gate(which).await?;
                    if which == self.swap.course.goal() {
                        return Ok(after);
                    }
                    sleep(POLL).await;
                }
                Next::Judge => self.judge().await?,
                Next::Downgrade => self.downgrade().await?,
            }
            if seen.manifest.is_some() {
                spent += begin.elapsed();
            }
        }
    }

    async fn observe(&self) -> Result<Observed, ApplyError> {
        let manifest = self.on_disk()?;
        let data = self.data.clone();
        let in_use = apart(move || data.is_in_use()).await?;
        let runs = in_use || (manifest.is_none() && !self.is_let_go().await);
        let process = match timeout(ANSWER, self.client.status()).await {
            _ if !runs => Process::Gone,
            Ok(Ok(status)) if status.leader != 0 => Process::Answers,
            _ => Process::Silent,
        };
        let copy = match self.data.find_copy()? {
            Some((record, place)) if record.id == self.swap.id => Some(place),
            _ => None,
        };
        Ok(Observed { manifest, process, copy, earlier_can_open: self.earlier_can_open(process).await })
    }

    /// Which etcd the agent is told to run.
    fn on_disk(&self) -> Result<Option<Which>, ApplyError> {
        let Some(text) = fsx::read_optional(&self.manifest())? else { return Ok(None) };
        let text = String::from_utf8_lossy(&text);
        let is_new = *text == self.swap.new
            || (*text != self.swap.old && plan::image_of(&text).as_ref() == Some(&self.swap.new_image));
        Ok(Some(if is_new { Which::New } else { Which::Old }))
    }

    /// The agent, if it lives, starts no etcd any more.
    async fn is_let_go(&self) -> bool {
        self.agent.status().await.map_or(true, |status| has_let_go(&status))
    }

    async fn earlier_can_open(&self, process: Process) -> bool {
        let Some(earlier) = self.earlier else { return false };
        match process {
            Process::Answers => {
                let (Ok(versions), Ok(status)) = (self.client.versions().await, self.client.status().await) else {
                    return false;
                };
                // The later etcd raises both some seconds after its start, unless it has been told not to.
                let stays = earlier.is_of(&versions.server) || status.downgrade_info.enabled;
                stays && earlier.is_of(&versions.cluster) && earlier.is_of(&versions.storage)
            }
            Process::Gone => {
                let data = self.data.clone();
                apart(move || data.can_be_opened_by(earlier)).await.unwrap_or(false)
            }
            Process::Silent => false,
        }
    }

    async fn await_gone(&mut self) -> Result<(), ApplyError> {
        let begin = Instant::now();
        let mut watch = Watch::default();
        loop {
            let data = self.data.clone();
            if !apart(move || data.is_in_use()).await? && self.is_let_go().await {
                tracing::info!(after = ?begin.elapsed(), "etcd is gone");
                return Ok(());
            }
            if begin.elapsed() >= GONE {
                return Err(ApplyError::EtcdRuns { after: GONE });
            }
            watch.look(self.host)?;
            sleep(POLL).await;
        }
    }

    async fn copy(&mut self) -> Result<(), ApplyError> {
        self.phase.update("copying its data");
        let (data, id, image) = (self.data.clone(), self.swap.id.clone(), self.swap.old_image.clone());
        let begin = Instant::now();
        let (record, copied) = apart(move || data.copy(&id, &image, &mut |_| {})).await?;
        let how = format!("{} MiB copied, {} MiB shared", copied.bytes >> 20, copied.shared >> 20);
        self.phase.update(&format!(
            "copy of revision {}: {how} ({:.1} s)",
            record.revision,
            begin.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    async fn gate(&mut self, which: Which) -> Result<Duration, ApplyError> {
        let text = self.text(which).to_owned();
        match exchange::write_and_wait(Component::Etcd, &text, self.goal, self.host, &mut self.phase).await {
            Err(ApplyError::Unhealthy { unhealthy, .. }) if self.swap.course != Course::Forward => {
                let reason = unhealthy.into_iter().map(|(_, reason)| reason).collect::<Vec<_>>().join("; ");
                Err(self.stuck(which, reason).await)
            }
            gate => Ok(gate?.after),
        }
    }

    async fn judge(&mut self) -> Result<(), ApplyError> {
        let data = self.data.clone();
        let verdict = apart(move || match data.may_put_back()? {
            PutBack::Allowed => data.put_back().map(|()| None),
            PutBack::Refused(why) => Ok::<_, DataError>(Some(why)),
        });
        match verdict.await? {
            None => self.phase.update("the new etcd has written nothing: the copy of the data is put back"),
            Some(why) => {
                self.host.journal.append(&[Record::EtcdSwapServed { id: self.swap.id.clone() }])?;
                self.swap.course = Course::Served;
                self.phase.update(&format!("the copy of the data stays a copy: {}", with_causes(&why)));
            }
        }
        Ok(())
    }

    async fn downgrade(&mut self) -> Result<(), ApplyError> {
        let Some(earlier) = self.earlier else { return Ok(()) };
        self.phase.update(&format!("etcd makes its data readable for {earlier}, and serves on"));
        let within = self.goal.cluster.timeouts.control_plane_component_health_check;
        let begin = Instant::now();
        // It may have been started a moment ago.
        while begin.elapsed() < within && self.client.status().await.map_or(true, |status| status.leader == 0) {
            sleep(POLL).await;
        }
        self.client.downgrade_to(earlier, within.saturating_sub(begin.elapsed())).await?;
        // Until it has been told, the cluster may still be on its way up.
        sleep(POLL).await;
        Ok(())
    }

    /// The swap has come to its end. The copy of one that went forward is kept until all else is healthy too.
    async fn end(&mut self, keep_copy: bool) -> Result<(), ApplyError> {
        let begin = Instant::now();
        while let Err(error) = self.client.end_downgrade().await {
            if begin.elapsed() >= END_DOWNGRADE {
                self.host.printer.warning(&format!("etcd's downgrade is not ended: {}", with_causes(&error)));
                break;
            }
            sleep(Duration::from_millis(100)).await;
        }
        let mut records = Vec::new();
        if !keep_copy {
            records = discard_copy(self.goal, self.host).await?;
        }
        records.push(Record::EtcdSwapDone { id: self.swap.id.clone() });
        self.host.journal.append(&records)?;
        fsx::remove_tree(&self.host.layout.etcd_swap())?;
        Ok(())
    }

    /// Nothing more can be done without people: both sets of data stay.
    async fn stuck(&self, which: Which, reason: String) -> ApplyError {
        let data = self.data.clone();
        // One that crashes again and again has the data open now and then.
        let revision = apart(move || {
            (0..50).find_map(|_| {
                std::thread::sleep(POLL);
                data.contents().ok()
            })
        })
        .await
        .map(|contents| contents.revision);
        // One that was put back is what etcd runs on, and what lies there instead is what it was put back over.
        let copy = self.data.find_copy().ok().flatten();
        let copy = copy.filter(|(record, place)| *place == Place::Aside && record.id == self.swap.id);
        ApplyError::EtcdStuck(Box::new(EtcdStuck {
            image: self.image(which).to_owned(),
            reason,
            data: self.data.member(),
            revision,
            copy: copy.map(|(record, _)| (self.data.copy_directory(), record)),
            manifest: self.manifest(),
            old_manifest: OpenSwap::old_manifest(self.host.layout),
        }))
    }

    fn manifest(&self) -> PathBuf {
        plan::manifest_path(self.host.layout, Component::Etcd)
    }

    fn text(&self, which: Which) -> &str {
        match which {
            Which::Old => &self.swap.old,
            Which::New => &self.swap.new,
        }
    }

    fn image(&self, which: Which) -> &str {
        match which {
            Which::Old => &self.swap.old_image,
            Which::New => &self.swap.new_image,
        }
    }

    fn running(&self, seen: Observed) -> &str {
        seen.manifest.map_or("etcd", |which| self.image(which))
    }
}

/// Snapshots of ours in `directory` that nobody needs: those that were being taken when plinth was killed, and all but the
/// newest. Whatever else is there is people's.
fn superfluous(directory: &Path) -> Result<Vec<PathBuf>, FsError> {
    let entries = std::fs::read_dir(directory).map_err(FsError::of("read directory", directory))?;
    let files = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    let names = files.filter_map(|entry| entry.file_name().into_string().ok());
    let (mut partial, mut whole) = (Vec::new(), Vec::new());
    for name in names {
        if name.strip_prefix("etcd-").is_some_and(|rest| rest.strip_suffix(".db").is_some()) {
            whole.push(name);
        } else if name.starts_with(".etcd-") && name.ends_with(".db.plinth-new") {
            partial.push(name);
        }
    }
    // Their names are their times.
    whole.sort_unstable();
    partial.extend(whole.drain(..whole.len().saturating_sub(SNAPSHOTS)));
    Ok(partial.into_iter().map(|name| directory.join(name)).collect())
}

/// Whether the agent has taken note that there is no etcd any more, and nothing of it runs.
fn has_let_go(status: &AgentStatus) -> bool {
    let pod = status.control_plane_pod(Component::Etcd.name());
    pod.is_none_or(|pod| pod.origin.is_none() && pod.containers.iter().all(|container| container.state != "running"))
}

/// A client of the etcd of `manifest`.
pub(super) fn client(manifest: &str, goal: &Goal<'_>) -> Result<Client, ApplyError> {
    let read = |item: &str, index: usize| -> Result<String, ApplyError> {
        let entry = goal.inventory.entries().iter().find(|entry| entry.credential.item == item);
        let file = entry.and_then(|entry| entry.files.get(index));
        Ok(file.map(|file| fsx::read_to_string(&file.path)).transpose()?.unwrap_or_default())
    };
    let identity = "certs/etcd-healthcheck-client";
    let identity = Some(Identity::new(&read(identity, 0)?, &read(identity, 1)?));
    let trust = Trust::Authority { ca: read("certs/etcd-ca", 0)?, identity };
    Ok(Client::new(client_url(manifest, goal.cluster.advertise_address)?, &trust)?)
}

/// What the etcd of `manifest` is given by `flag`, `--name=` of a list of URLs.
pub(super) fn urls(manifest: &str, flag: &str) -> Vec<String> {
    let pod: Option<Pod> = yaml::manifest(manifest.as_bytes()).ok();
    let command = pod.and_then(|pod| pod.spec?.containers.into_iter().next()?.command).unwrap_or_default();
    let urls = command.iter().find_map(|word| word.strip_prefix(flag)).unwrap_or_default();
    urls.split(',').filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

/// Where etcd listens on this host: on loopback, unless its flags say otherwise.
fn client_url(manifest: &str, advertised: IpAddr) -> Result<Url, TargetError> {
    let loopback = loopback_of(advertised);
    let default = crate::manifests::etcd_client_url(loopback);
    let urls = urls(manifest, "--listen-client-urls=");
    let chosen = urls.iter().find(|url| **url == default).or_else(|| urls.first());
    let url = chosen.unwrap_or(&default);
    Url::parse(url).map_err(|_| TargetError::Url { component: Component::Etcd, url: url.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::{ContainerSummary, PodSummary};

    #[test]
    fn the_agent_has_let_go_when_it_neither_runs_one_nor_would() {
        let etcd = |origin: Option<&str>, states: &[&str]| PodSummary {
            namespace: "kube-system".to_owned(),
            name: "etcd-m".to_owned(),
            origin: origin.map(str::to_owned),
            containers: states
                .iter()
                .map(|state| ContainerSummary { state: (*state).to_owned(), ..ContainerSummary::default() })
                .collect(),
            ..PodSummary::default()
        };
        for (name, pod, expected) in [
            ("it has never known one, or forgotten it", None, true),
            ("the file is there", Some(etcd(Some("/m/etcd.yaml"), &["running"])), false),
            ("the file is there, and it is in back-off", Some(etcd(Some("/m/etcd.yaml"), &["waiting"])), false),
            ("the file is gone, and it ends", Some(etcd(None, &["running"])), false),
            ("the file is gone, and it has ended", Some(etcd(None, &["terminated"])), true),
        ] {
            let pods = pod.into_iter().collect();
            let status = AgentStatus { node_name: "m".to_owned(), pods, ..AgentStatus::default() };
            assert_eq!(has_let_go(&status), expected, "{name}");
        }
    }

    #[test]
    fn of_the_snapshots_only_our_old_ones_and_halves_go() {
        let root = tempfile::tempdir().unwrap();
        let name = |day: u32| format!("etcd-2026010{day}T000000.000Z.db");
        let half = ".etcd-20260109T000000.000Z.db.plinth-new";
        for name in (1..=5).map(name).chain(["mine.db", "etcd-notes.txt", ".other.db.plinth-new", half].map(Into::into))
        {
            std::fs::write(root.path().join(name), "").unwrap();
        }
        std::fs::create_dir(root.path().join("etcd-0.db")).unwrap();
        let expected: Vec<_> = [half.to_owned(), name(1), name(2)].iter().map(|name| root.path().join(name)).collect();
        assert_eq!(superfluous(root.path()).unwrap(), expected);
    }

    #[test]
    fn etcd_is_asked_where_its_manifest_says() {
        let manifest = |flag: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: etcd}}\nspec:\n  containers:\n  - name: etcd\n    \
                 command: [etcd, {flag}]\n"
            )
        };
        for (advertised, flag, expected) in [
            ("192.0.2.10", "--x=y", "https://127.0.0.1:2379/"),
            (
                "192.0.2.10",
                "\"--listen-client-urls=https://192.0.2.10:2379,https://127.0.0.1:2379\"",
                "https://127.0.0.1:2379/",
            ),
            ("192.0.2.10", "--listen-client-urls=https://192.0.2.10:3379", "https://192.0.2.10:3379/"),
            ("2001:db8::1", "--x=y", "https://[::1]:2379/"),
        ] {
            let url = client_url(&manifest(flag), advertised.parse().unwrap()).unwrap();
            assert_eq!(url.as_str(), expected, "{advertised} {flag}");
        }
        assert!(client_url(&manifest("--listen-client-urls=nowhere"), "192.0.2.10".parse().unwrap()).is_err());
        let unreadable = client_url("no manifest", "192.0.2.10".parse().unwrap()).unwrap();
        assert_eq!(unreadable.as_str(), "https://127.0.0.1:2379/");
    }
}
