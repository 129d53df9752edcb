//! Docker: there, able, here.

use super::super::{Facts, ImagePresence};
use super::Check;
use crate::runtime::RuntimeError;

/// Name of the check for images, also of a pull that fails later.
pub const IMAGE_PULL: &str = "ImagePull";

/// API version of Docker 20.10, the oldest that knows cgroup v2 and what we send.
const MINIMUM_API: (u32, u32) = (1, 41);

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let info = facts.engine.as_ref().ok().map(|engine| &engine.info);
    vec![
        Check::new(
            "Docker",
            "install Docker Engine and start it (systemctl start docker), or name its socket in DOCKER_HOST",
        )
        .error(facts.engine.as_ref().err().map(|error| silent(error, facts))),
        Check::new("DockerVersion", "upgrade Docker Engine to 20.10 or newer").error(info.and_then(|info| {
            let old = version(&info.api_version).is_none_or(|version| version < MINIMUM_API);
            let (major, minor) = MINIMUM_API;
            old.then(|| format!("Docker {} speaks API {}; {major}.{minor} is needed", info.version, info.api_version))
        })),
        Check::new(
            "DockerRootless",
            "use the engine of root: a control plane needs the host's network and directories",
        )
        .error(info.filter(|info| info.rootless).map(|_| "Docker runs rootless".to_owned())),
        Check::new("DockerRemote", "run plinth on the machine that Docker runs on").error(remote(facts)),
        Check::new("DockerEnabled", "systemctl enable docker").warning(
            (facts.host.systemd && !facts.host.docker_enabled)
                .then(|| "Docker does not start at boot by itself".to_owned()),
        ),
        images(facts),
    ]
}

fn silent(error: &RuntimeError, facts: &Facts) -> String {
    let address = &facts.engine_address;
    let answers = facts.images.iter().any(|(_, presence)| !matches!(presence, ImagePresence::Unknown(_)));
    match error {
        // Seen with Docker 20.10: it says nothing of itself while a pull looks up its registry's name.
        RuntimeError::TimedOut(_) if answers => {
            format!("Docker at {address} is busy, it may be looking up the name of a registry; try again in a minute")
        }
        // The reason names the address already.
        RuntimeError::Unreachable(reason) => format!("Docker does not answer: {reason}"),
        other => format!("Docker at {address}: {other}"),
    }
}

fn remote(facts: &Facts) -> Option<String> {
    if !facts.engine_address.starts_with("unix://") {
        return Some(format!("Docker is reached over the network, at {}", facts.engine_address));
    }
    let engine = facts.engine.as_ref().ok().filter(|engine| !engine.data_root_exists)?;
    // A socket handed into a container, or forwarded: paths in manifests would mean another machine's files.
    Some(format!("Docker does not see our files: its data directory `{}` is not here", engine.info.data_root.display()))
}

fn images(facts: &Facts) -> Check {
    let unknown = facts.images.iter().find_map(|(image, presence)| match presence {
        ImagePresence::Unknown(reason) => Some(format!("cannot tell whether image `{image}` is here: {reason}")),
        ImagePresence::Present | ImagePresence::Missing => None,
    });
    // Without an engine, that is what there is to say.
    let unknown = unknown.filter(|_| facts.engine.is_ok());
    Check::new(IMAGE_PULL, "docker pull it, docker load it from an archive, or name another --image-repository")
        .error(unknown)
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::{EngineFacts, Level, Ownership};
    use super::super::testing::{good, says};
    use super::*;
    use crate::config::Cluster;

    fn engine(facts: &mut Facts) -> &mut EngineFacts {
        facts.engine.as_mut().unwrap()
    }

    type Case = (&'static str, fn(&mut Facts), Option<(Level, &'static str)>);

    #[test]
    fn each_check_passes_and_fails() {
        let cases: &[Case] = &[
            (
                "Docker",
                |f| f.engine = Err(RuntimeError::Unreachable("connection refused".into())),
                Some((Level::Error, "Docker does not answer: connection refused")),
            ),
            (
                "Docker",
                |f| f.engine = Err(RuntimeError::TimedOut(Duration::from_secs(5))),
                Some((
                    Level::Error,
                    "Docker at unix:///var/run/docker.sock is busy, it may be looking up the name of a registry; try \
                     again in a minute",
                )),
            ),
            (
                "Docker",
                |f| {
                    f.engine = Err(RuntimeError::TimedOut(Duration::from_secs(5)));
                    for (_, presence) in &mut f.images {
                        *presence = ImagePresence::Unknown("no answer".into());
                    }
                },
                Some((Level::Error, "Docker at unix:///var/run/docker.sock: no answer within 5s")),
            ),
            ("DockerVersion", |f| engine(f).info.api_version = "1.53".into(), None),
            ("DockerVersion", |f| engine(f).info.api_version = "2.0".into(), None),
            (
                "DockerVersion",
                |f| engine(f).info.api_version = "1.5".into(),
                Some((Level::Error, "Docker 20.10.24 speaks API 1.5; 1.41 is needed")),
            ),
            (
                "DockerVersion",
                |f| engine(f).info.api_version = "one".into(),
                Some((Level::Error, "Docker 20.10.24 speaks API one; 1.41 is needed")),
            ),
            ("DockerRootless", |f| engine(f).info.rootless = true, Some((Level::Error, "Docker runs rootless"))),
            (
                "DockerRemote",
                |f| f.engine_address = "tcp://192.0.2.1:2375".into(),
                Some((Level::Error, "Docker is reached over the network, at tcp://192.0.2.1:2375")),
            ),
            (
                "DockerRemote",
                |f| engine(f).data_root_exists = false,
                Some((Level::Error, "Docker does not see our files: its data directory `/var/lib/docker` is not here")),
            ),
            (
                "DockerEnabled",
                |f| f.host.docker_enabled = false,
                Some((Level::Warning, "Docker does not start at boot by itself")),
            ),
            (
                "DockerEnabled",
                |f| {
                    f.host.docker_enabled = false;
                    f.host.systemd = false;
                },
                None,
            ),
            ("ImagePull", |f| f.images[0].1 = ImagePresence::Missing, None),
            (
                "ImagePull",
                |f| {
                    f.images[0].1 = ImagePresence::Unknown("io error".into());
                    f.engine = Err(RuntimeError::Unreachable("io error".into()));
                },
                None,
            ),
            (
                "ImagePull",
                |f| f.images[0].1 = ImagePresence::Unknown("io error".into()),
                Some((Level::Error, "cannot tell whether image `etcd:3` is here: io error")),
            ),
        ];
        for (name, change, expected) in cases {
            let mut facts = good();
            change(&mut facts);
            let found = says(&Cluster::example(), &Ownership::default(), &facts, name);
            assert_eq!(found, expected.map(|(level, text)| (level, text.to_owned())), "{name}");
        }
    }
}
