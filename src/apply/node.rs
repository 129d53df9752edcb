//! The Node of this host: the part of it that takes an administrator. The agent registers it.

use super::{ApplyError, Goal, Host, super_admin};
use crate::cluster;
use crate::error::with_causes;
use crate::fsx;
use crate::journal::{Creation, Record};
use crate::kubeconfig;

/// Waits for the agent to register it, and makes it a control plane's.
pub(super) async fn mark<R>(lifted: &[String], goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let Some(registration) = &goal.cluster.registration else { return Ok(()) };
    let name = &goal.cluster.node_name;
    let mut phase = host.printer.phase("mark-control-plane");
    phase.update(&format!("waiting until the agent has registered the Node {name}"));
    let within = goal.cluster.timeouts.kubernetes_api_call;
    cluster::node::mark(&super_admin(goal, host.layout)?, name, registration, lifted, within).await?;
    phase.done(&format!("the Node {name} is marked as a control plane"));
    Ok(())
}

/// Takes it away, with its mirror pods and its kubeconfig. The agent runs without it by now. While the Node cannot be
/// removed the kubeconfig stays, so that the next run tries again.
pub(super) async fn remove<R>(goal: &Goal<'_>, host: &Host<'_, R>) -> Result<(), ApplyError> {
    let name = &goal.cluster.node_name;
    let mut phase = host.printer.phase("mark-control-plane");
    phase.update(&format!("removing the Node {name}"));
    if let Err(error) = cluster::node::remove(&super_admin(goal, host.layout)?, name).await {
        phase.failed(&format!("the Node {name} is still there"));
        let why = with_causes(&error);
        host.printer.warning(&format!("{why}; when the API server answers, run `plinth init` again"));
        return Ok(());
    }
    phase.done(&format!("removed the Node {name} and its mirror pods"));
    let path = host.layout.kubernetes().join(kubeconfig::KUBELET_FILE);
    fsx::remove_file(&path)?;
    host.journal.append(&[Record::Gone { what: Creation::File { path } }])?;
    Ok(())
}
