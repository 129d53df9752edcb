//! The plan for people.

use super::change::RENEWED;
use super::{Cause, Change, Plan, Step};

/// What differs with its class and how, what this plinth cannot do yet, and what would be done; the version first.
/// Ends without a line end, and is empty where nothing is to be done.
pub fn text(plan: &Plan) -> String {
    let mut blocks = Vec::new();
    blocks.extend(plan.version.as_ref().map(ToString::to_string));
    // On a host without a control plane the steps say it all.
    let known: Vec<_> = plan.changes.iter().filter(|change| change.cause != Cause::New).cloned().collect();
    blocks.extend(changes(&known, block));
    if !plan.not_yet.is_empty() {
        blocks.push(plan.not_yet.iter().map(|problem| format!("not yet: {problem}")).collect::<Vec<_>>().join("\n"));
    }
    if !plan.steps.is_empty() {
        blocks.push(steps(&plan.steps).join("\n"));
    }
    blocks.join("\n\n")
}

/// Each change as `shown` shows it; all that is renewed is one, where there is more of it.
pub(super) fn changes(changes: &[Change], shown: fn(&Change) -> String) -> Vec<String> {
    let is_renewed = |change: &&Change| change.reason == RENEWED;
    in_one(changes, is_renewed, shown, |count, first| format!("certificates: {count} {RENEWED} [{}]", first.class))
}

fn steps(steps: &[Step]) -> Vec<String> {
    let is_renewal = |step: &&Step| matches!(step, Step::Issue { replaces: Some(why), .. } if why == RENEWED);
    in_one(steps, is_renewal, |step| format!("would {step}"), |count, _| format!("would renew {count} certificates"))
}

/// Each item by `single`; those that are `alike` by `together`, if there is more than one, in the place of the first.
fn in_one<T>(
    items: &[T],
    alike: impl Fn(&&T) -> bool,
    single: impl Fn(&T) -> String,
    together: impl Fn(usize, &T) -> String,
) -> Vec<String> {
    let count = items.iter().filter(&alike).count();
    let first = items.iter().position(|item| alike(&item)).filter(|_| count > 1);
    let shown = items.iter().enumerate().filter_map(|(place, item)| match first {
        Some(first) if alike(&item) => (place == first).then(|| together(count, item)),
        _ => Some(single(item)),
    });
    shown.collect()
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
    use super::super::{Class, ImageChange, NotYet, Step, VersionChange};
    use super::*;
    use crate::release::{Component, KubernetesVersion};

    fn version(text: &str) -> KubernetesVersion {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_is_no_text() {
        assert_eq!(text(&Plan::default()), "");
    }

    #[test]
    fn what_is_renewed_is_one_line() {
        let change = |what: &str, reason: &str| Change {
            what: what.to_owned(),
            class: Class::Live,
            cause: Cause::Configuration,
            reason: reason.to_owned(),
            image: None,
            diff: None,
            phase: "",
        };
        let renew = |item| Step::Issue { item, replaces: Some(RENEWED.to_owned()), for_etcd: false };
        let many = [change("a", "x"), change("b", RENEWED), change("c", "x"), change("d", RENEWED)];
        let told = changes(&many, line);
        assert_eq!(told, ["a: x [live]", "certificates: 2 renewed with the upgrade [live]", "c: x [live]"]);
        assert_eq!(changes(&many[..2], line), ["a: x [live]", "b: renewed with the upgrade [live]"]);
        assert_eq!(
            steps(&[renew("b"), Step::StartAgent, renew("d")]),
            ["would renew 2 certificates", "would start the agent"]
        );
        assert_eq!(steps(&[renew("b")]), ["would make b anew: renewed with the upgrade"]);
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
            not_yet: vec![NotYet::Address { from: "a".to_owned(), to: "b".to_owned() }],
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

certs/apiserver: it is missing [live]

kube-scheduler: another image [restart of kube-scheduler]
    image: s:v1.36.3 → s:v1.37.1
    @@ -2,2 +2,3 @@
       - a
    -  image: s:v1.36.3
    +  image: s:v1.37.1

not yet: this plinth cannot move a running control plane to another address yet (a → b)

would start the agent
would record the configuration as reached"
        );
    }
}
