//! Notices that the agent has ended for good while something is waited for that only it brings about.

use std::time::{Duration, Instant};

use super::{ApplyError, Host, Launch};
use crate::fsx::Holder;
use crate::service::{self, Manager, UNIT};

/// How often it is looked.
const POLL: Duration = Duration::from_millis(200);
/// How long one that ran may be away where nobody starts it again.
const AWAY: Duration = Duration::from_secs(2);
/// How long it may take to start, or systemd to start it again.
const START: Duration = Duration::from_secs(10);

/// Where the agent was when it was last looked for.
#[derive(Debug, Default)]
pub(super) struct Watch {
    ran: bool,
    away_since: Option<Instant>,
}

impl Watch {
    /// Fails when the agent has been away for too long. One inside of this process ends with it.
    pub(super) fn look<R>(&mut self, host: &Host<'_, R>) -> Result<(), ApplyError> {
        let Launch::Service { manager, .. } = &host.launch else { return Ok(()) };
        if !service::running(host.layout).is_ok_and(|holder| holder == Holder::Free) {
            self.runs();
            return Ok(());
        }
        let patience = if self.ran && *manager == Manager::Detached { AWAY } else { START };
        if self.away_since.get_or_insert_with(Instant::now).elapsed() < patience {
            return Ok(());
        }
        Err(ApplyError::AgentGone {
            log: match manager {
                Manager::Systemd => format!("journalctl -u {UNIT}"),
                Manager::Detached => host.layout.agent_log().display().to_string(),
            },
        })
    }

    /// It has answered.
    pub(super) fn runs(&mut self) {
        *self = Self { ran: true, away_since: None };
    }

    /// Comes back when it has been away for too long.
    pub(super) async fn gone<R>(mut self, host: &Host<'_, R>) -> ApplyError {
        loop {
            if let Err(gone) = self.look(host) {
                return gone;
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
