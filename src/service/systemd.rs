//! The unit, and the `systemctl` calls around it.

use std::path::PathBuf;

use tokio::process::Command;

use super::{AgentCommand, ServiceError, UNIT, command_line};
use crate::fsx::{self, Written};
use crate::layout::Layout;

/// What `systemctl stop` exits with for a unit that is not loaded: `EXIT_NOTINSTALLED` of the LSB, see systemctl(1).
const NOT_LOADED: i32 = 5;

const TEMPLATE: &str = include_str!("../../templates/systemd/plinth-agent.service");

/// The unit file that runs `command`.
pub(super) fn unit(command: &AgentCommand) -> Result<String, tera::Error> {
    let mut context = tera::Context::new();
    context.insert("command", &command_line(command));
    tera::Tera::one_off(TEMPLATE, &context, false)
}

/// Starts the agent now and at every boot.
pub(super) async fn start(command: &AgentCommand, layout: &Layout) -> Result<(), ServiceError> {
    let path = layout.unit();
    let was_there = path.exists();
    let written = fsx::write_if_changed(&path, unit(command)?.as_bytes(), 0o644)?;
    // Reading all units again takes ten times as long as all else here. systemd reads a unit that it does not know
    // when it is asked for it, and the links are for the next boot.
    let known = systemctl(&["show", "--property=LoadState,NeedDaemonReload", UNIT]).await?;
    if !is_current(&known) {
        systemctl(&["daemon-reload"]).await?;
    }
    systemctl(&["enable", "--quiet", "--no-reload", "--now", UNIT]).await?;
    if was_there && written == Written::Changed {
        systemctl(&["restart", UNIT]).await?;
    }
    Ok(())
}

/// Whether systemd has loaded the unit as it is on disk, by its properties. A unit that runs and whose file was away
/// for a while is not `loaded` until a reload.
fn is_current(properties: &str) -> bool {
    ["LoadState=loaded", "NeedDaemonReload=no"].iter().all(|wanted| properties.lines().any(|line| line == *wanted))
}

/// Whether the unit is there and starts at boot: by the link that `systemctl enable` makes, which is the answer of
/// `systemctl is-enabled` without its 10 ms.
pub(super) fn is_enabled(layout: &Layout) -> bool {
    layout.unit().is_file() && link(layout).symlink_metadata().is_ok()
}

/// What `WantedBy=multi-user.target` becomes.
fn link(layout: &Layout) -> PathBuf {
    layout.unit().with_file_name("multi-user.target.wants").join(UNIT)
}

pub(super) async fn stop(layout: &Layout) -> Result<(), ServiceError> {
    if layout.unit().exists() {
        systemctl(&["disable", "--quiet", "--no-reload", "--now", UNIT]).await?;
    } else {
        // systemd knows a running unit without its file, and would start the agent again; `disable` does not.
        match systemctl(&["stop", UNIT]).await {
            Err(ServiceError::Systemctl { code: Some(NOT_LOADED), .. }) => {}
            result => drop(result?),
        }
        fsx::remove_file(&link(layout))?;
    }
    // A unit that failed before stays listed as failed, also after its file is gone; nothing to reset is no error.
    let _ = systemctl(&["reset-failed", UNIT]).await;
    Ok(())
}

pub(super) async fn forget() -> Result<(), ServiceError> {
    systemctl(&["daemon-reload"]).await.map(drop)
}

/// Runs `systemctl`; its standard output where it succeeds.
async fn systemctl(arguments: &[&str]) -> Result<String, ServiceError> {
    let output = Command::new("systemctl")
        .args(arguments)
        .output()
        .await
        .map_err(|source| ServiceError::Spawn { program: "systemctl".to_owned(), source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(ServiceError::Systemctl {
        arguments: arguments.join(" "),
        code: output.status.code(),
        output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_keeps_the_agent_alive_and_leaves_docker_optional() {
        let command = AgentCommand {
            program: "/usr/local/bin/plinth".into(),
            arguments: vec!["agent".into(), "--hostname-override=m1".into()],
        };
        let unit = unit(&command).unwrap();
        for line in [
            "ExecStart=/usr/local/bin/plinth agent --hostname-override=m1",
            "Restart=always",
            "StartLimitIntervalSec=0",
            "RuntimeDirectory=plinth",
            "Wants=docker.service network-online.target",
            "After=docker.service network-online.target",
            "WantedBy=multi-user.target",
        ] {
            assert!(unit.lines().any(|present| present == line), "{line} is not in\n{unit}");
        }
        for directive in ["Requires=", "BindsTo=", "PartOf="] {
            assert!(!unit.contains(directive), "{directive} would stop the agent with Docker:\n{unit}");
        }
    }

    #[test]
    fn systemd_reads_its_units_again_where_it_knows_another_one() {
        for (properties, current) in [
            ("LoadState=loaded\nNeedDaemonReload=no\n", true),
            ("NeedDaemonReload=no\nLoadState=loaded\n", true),
            ("LoadState=loaded\nNeedDaemonReload=yes\n", false),
            ("LoadState=not-found\nNeedDaemonReload=no\n", false),
            ("LoadState=error\nNeedDaemonReload=no\n", false),
            ("", false),
        ] {
            assert_eq!(is_current(properties), current, "{properties}");
        }
    }

    #[test]
    fn a_unit_starts_at_boot_with_its_file_and_its_link() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let link = link(&layout);
        assert!(link.ends_with("etc/systemd/system/multi-user.target.wants/plinth-agent.service"));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::fs::write(layout.unit(), "").unwrap();
        assert!(!is_enabled(&layout));
        std::os::unix::fs::symlink(layout.unit(), &link).unwrap();
        assert!(is_enabled(&layout));
        std::fs::remove_file(layout.unit()).unwrap();
        assert!(!is_enabled(&layout), "the link dangles");
    }
}
