//! The plan for people.

use super::{Cause, Change, Plan};

/// What differs with its class and how, and what would be done; version and address first. Ends without a line end, and is empty where nothing is to be done.
pub fn text(plan: &Plan) -> String {
    let mut blocks = Vec::new();
    blocks.extend(plan.headlines());
    // On a host without a control plane the steps say it all.
    blocks.extend(plan.changes.iter().filter(|change| change.cause != Cause::New).map(block));
    if !plan.steps.is_empty() {
        blocks.push(plan.steps.iter().map(|step| format!("would {step}")).collect::<Vec<_>>().join("\n"));
    }
    blocks.join("\n\n")
}

/// `kube-scheduler: other flags: v [restart of kube-scheduler]`, with the difference below.
fn block(change: &Change) -> String {
    let mut lines = vec![line(change)];
    if let Some(image) = &change.image {
        lines.push(format!("    image: {} → {}", image.old, image.new));
    }
    let diff = change.diff.iter().flat_map(|diff| diff.lines());
    lines.extend(diff.map(|line| format!("    {line}").trim_end().to_owned()));
    lines.join("\n")
}

/// A change in one line.
pub(super) fn line(change: &Change) -> String {
    format!("{}: {} [{}]", change.what, change.reason, change.class)
}

#[cfg(test)]
mod tests {
    use super::super::{AddressChange, Class, ImageChange, Step, VersionChange};
    use super::*;
    use crate::release::{Component, KubernetesVersion};

    fn version(text: &str) -> KubernetesVersion {
        text.parse().unwrap()
    }

    fn address(text: &str) -> std::net::SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_is_no_text() {
        assert_eq!(text(&Plan::default()), "");
    }

    #[test]
    fn a_plan_says_what_and_how_and_with_which_effect() {
        let change = |what: &str, class, cause, reason: &str| Change {
            what: what.to_owned(),
            class,
            cause,
            reason: reason.to_owned(),
            image: None,
            diff: None,
            phase: "",
        };
        let plan = Plan {
            version: Some(VersionChange { from: version("v1.36.3"), to: version("v1.37.1"), by_default: true }),
            address: Some(AddressChange { from: address("192.0.2.10:6443"), to: address("192.0.2.11:6443") }),
            changes: vec![
                change("certs/apiserver", Class::Live, Cause::Drift, "it is missing"),
                Change {
                    image: Some(ImageChange { old: "s:v1.36.3".to_owned(), new: "s:v1.37.1".to_owned() }),
                    diff: Some("@@ -2,2 +2,3 @@\n   - a\n-  image: s:v1.36.3\n+  image: s:v1.37.1\n".to_owned()),
                    ..change(
                        "kube-scheduler",
                        Class::Restart(Component::KubeScheduler),
                        Cause::Configuration,
                        "another image",
                    )
                },
            ],
            steps: vec![Step::StartAgent, Step::Commit],
        };
        assert_eq!(
            text(&plan),
            "\
Kubernetes v1.36.3 → v1.37.1, the newer default of this plinth

the control plane moves: 192.0.2.10:6443 → 192.0.2.11:6443

certs/apiserver: it is missing [live]

kube-scheduler: another image [restart of kube-scheduler]
    image: s:v1.36.3 → s:v1.37.1
    @@ -2,2 +2,3 @@
       - a
    -  image: s:v1.36.3
    +  image: s:v1.37.1

would start the agent
would record the configuration as reached"
        );
    }
}
