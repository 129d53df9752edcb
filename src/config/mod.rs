//! Configuration: kubeadm's wire format → defaults → the validated [`Cluster`].
//!
//! [`load`] is the only way to a `Cluster`. It looks at nothing itself: the file's text, the flags ([`Overrides`]) and
//! what the host says ([`HostFacts`]) are given to it. All that is wrong is reported together ([`ConfigErrors`]).
//! [`load_over`] is the same for a host with a control plane: what it runs with is where it starts from.

mod cluster;
pub mod defaults;
pub(crate) mod duration;
mod error;
mod file;
mod host;
mod immutable;
mod overrides;
mod syntax;
mod to_wire;
mod validate;
mod wire;

pub use cluster::*;
pub use error::{ConfigError, ConfigErrors, Place, Problem};
pub(crate) use host::loopback_of;
pub use host::{DefaultRoute, HostError, HostFacts, Interface};
pub use overrides::Overrides;
pub use to_wire::to_wire_yaml;

use crate::release::Component;

/// Proof that a [`Cluster`] went through this module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked(());

/// A configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfigFile<'a> {
    /// Its name, for messages.
    pub name: &'a str,
    /// Its text.
    pub text: &'a str,
}

/// The control plane that runs here, as the last `init` that succeeded was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running<'a> {
    /// The effective configuration it kept.
    pub config: ConfigFile<'a>,
    /// See [`Cluster::version_pinned`].
    pub version_pinned: bool,
}

impl Running<'_> {
    fn cluster(&self, host: &HostFacts) -> Result<Cluster, ConfigErrors> {
        let loaded = load(Some(self.config), &Overrides::default(), host)?;
        Ok(Cluster { version_pinned: self.version_pinned, ..loaded.cluster })
    }
}

/// What file, flags and host together say.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The cluster.
    pub cluster: Cluster,
    /// The one that runs here.
    pub running: Option<Cluster>,
    /// Phases to leave out: those of the flag, or else those of the file.
    pub skip_phases: Vec<String>,
    /// Preflight checks to ignore, lower case, in order: those of flag and file together.
    pub ignore_preflight_errors: Vec<String>,
    /// Whether nothing is to be changed.
    pub dry_run: bool,
    /// What is odd but acceptable; one line each.
    pub warnings: Vec<String>,
}

/// Brings file, flags and host together, fills in defaults and checks everything.
pub fn load(file: Option<ConfigFile<'_>>, overrides: &Overrides, host: &HostFacts) -> Result<Loaded, ConfigErrors> {
    load_over(file, None, overrides, host)
}

/// The same over a control plane that runs: without a file its configuration is where flags are laid over; a file
/// replaces it whole. Values that a live cluster cannot change are errors, with the others.
///
/// The version is the one that is named, and otherwise that of the control plane, or this plinth's default where that
/// is newer and nobody has ever named one. The advertise address is the one that is named, and otherwise that of the
/// control plane while it is on this host.
pub fn load_over(
    file: Option<ConfigFile<'_>>,
    running: Option<&Running<'_>>,
    overrides: &Overrides,
    host: &HostFacts,
) -> Result<Loaded, ConfigErrors> {
    let runs = running.map(|running| running.cluster(host)).transpose()?;
    let base = file.or(running.map(|running| running.config));
    let file::Parsed { mut init, mut cluster, mut errors, mut warnings, lines } =
        base.map(|file| file::parse(&file)).unwrap_or_default();
    let mut given = overrides.given();
    if file.is_some() {
        for refused in given.extract_if(.., |given| !given.with_config) {
            let place = Place::Flag(refused.flag);
            errors.push(ConfigError { place, field: refused.field.to_owned(), problem: Problem::FlagBesideFile });
        }
    } else {
        // Not what somebody named, but what came of it.
        cluster.kubernetes_version = None;
        init.local_api_endpoint.get_or_insert_default().advertise_address = None;
        overrides.write_over(&mut init, &mut cluster);
    }
    let mut node = init.node_registration.take().unwrap_or_default();
    let ignored_in_file = node.ignore_preflight_errors.take().unwrap_or_default();
    if overrides.node_name.is_some() {
        node.name.clone_from(&overrides.node_name);
    }
    init.node_registration = Some(node);

    let mut checker = validate::Checker { lines: &lines, given: &given, errors, warnings: Vec::new() };
    let valid = validate::cluster(&init, &cluster, host, runs.as_ref(), &mut checker);
    if let Some(runs) = &runs {
        immutable::check(runs, &valid, &mut checker);
    }
    let ignored_by_flag = overrides.ignore_preflight_errors.clone().unwrap_or_default();
    let ignore_preflight_errors = validate::ignored_checks(&ignored_in_file, &ignored_by_flag, &mut checker);
    warnings.append(&mut checker.warnings);
    ConfigErrors::check(checker.errors)?;

    let skipped_by_flag = overrides.skip_phases.clone().filter(|phases| !phases.is_empty());
    Ok(Loaded {
        cluster: valid,
        running: runs,
        skip_phases: skipped_by_flag.or(init.skip_phases).unwrap_or_default(),
        ignore_preflight_errors,
        dry_run: overrides.dry_run.or(init.dry_run).unwrap_or_default(),
        warnings,
    })
}

/// Images of `cluster`, in the order of `kubeadm config images list`, without those of kube-proxy and `CoreDNS`, which
/// are not installed.
pub fn image_list(cluster: &Cluster) -> Vec<String> {
    vec![
        cluster.image(Component::KubeApiserver),
        cluster.image(Component::KubeControllerManager),
        cluster.image(Component::KubeScheduler),
        cluster.pause_image(),
        cluster.image(Component::Etcd),
    ]
}

#[cfg(test)]
mod tests;
