//! The unit, and the `systemctl` calls around it.

use tokio::process::Command;

use super::{AgentCommand, ServiceError, UNIT, command_line};
use crate::fsx::{self, Written};
use crate::layout::Layout;

const TEMPLATE: &str = include_str!("../../templates/systemd/plinth-agent.service");

/// The unit file that runs `command`.
pub(super) fn unit(command: &AgentCommand) -> Result<String, tera::Error> {
    let mut context = tera::Context::new();
    context.insert("command", &command_line(command));
    tera::Tera::one_off(TEMPLATE, &context, false)
}

pub(super) async fn start(command: &AgentCommand, layout: &Layout) -> Result<(), ServiceError> {
    let path = layout.unit();
    if fsx::write_if_changed(&path, unit(command)?.as_bytes(), 0o644)? == Written::Changed {
        systemctl(&["daemon-reload"]).await?;
    }
    systemctl(&["enable", "--quiet", UNIT]).await?;
    systemctl(&["start", UNIT]).await
}

pub(super) async fn stop(layout: &Layout) -> Result<(), ServiceError> {
    if !layout.unit().exists() {
        return Ok(());
    }
    systemctl(&["disable", "--quiet", "--now", UNIT]).await?;
    // A unit that failed before stays listed as failed, also after its file is gone; nothing to reset is no error.
    let _ = systemctl(&["reset-failed", UNIT]).await;
    Ok(())
}

pub(super) async fn forget() -> Result<(), ServiceError> {
    systemctl(&["daemon-reload"]).await
}

async fn systemctl(arguments: &[&str]) -> Result<(), ServiceError> {
    let output = Command::new("systemctl")
        .args(arguments)
        .output()
        .await
        .map_err(|source| ServiceError::Spawn { program: "systemctl".to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ServiceError::Systemctl {
        arguments: arguments.join(" "),
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
            "RuntimeDirectory=plinth",
            "Wants=docker.service network-online.target",
            "After=docker.service network-online.target",
            "WantedBy=multi-user.target",
        ] {
            assert!(unit.lines().any(|present| present == line), "{line} is not in\n{unit}");
        }
        assert!(!unit.contains("Requires="));
    }
}
