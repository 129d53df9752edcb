use std::sync::Arc;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::json;

use super::*;
use crate::agent::host::Dns;
use crate::agent::pod::tests::pod as read;
use crate::agent::status::Update;
use crate::runtime::{Container, State, labels};

pub(in super::super) const NODE_UID: &str = "node-uid";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(in super::super) fn node() -> Node {
    Node {
        name: "node-1".into(),
        address: "192.0.2.2".parse().unwrap(),
        storage: 1 << 30,
        apparmor: false,
        memory: 1 << 30,
        cpus: 1,
        dns: Dns::default(),
        may_protect_from_oom: true,
    }
}

pub(in super::super) fn pod(image: &str) -> Arc<StaticPod> {
    Arc::new(read(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, labels: {{app: web}}, annotations: {{a: b}}}}\n\
         spec:\n  hostNetwork: true\n  containers: [{{name: c, image: {image}}}]\n"
    )))
}

fn container(pod: &StaticPod) -> Container {
    let labels = [
        (labels::POD_UID, pod.uid.as_str()),
        (labels::SPEC_HASH, pod.hash.as_str()),
        (labels::CONTAINER_NAME, "c"),
        (labels::RESTART_COUNT, "0"),
    ];
    Container::bare(&pod.hash, &labels, State::Running { pid: 1, started_at: now() }, now())
}

/// Of `wanted`, with the containers of `running`.
pub(in super::super) fn snapshot(wanted: Option<&Arc<StaticPod>>, running: &[&Arc<StaticPod>]) -> Snapshot {
    let containers = running.iter().map(|pod| (pod.hash.clone(), container(pod))).collect();
    Snapshot { containers, ..Snapshot::bare(&pod("a").key, wanted.cloned(), now()) }
}

fn view<'a>(snapshots: &'a [Snapshot], tended: Option<&'a BTreeSet<PodKey>>, node: &'a Node) -> View<'a> {
    View { snapshots, tended, node, node_uid: NODE_UID, now: now() }
}

fn decided(snapshots: &[Snapshot], tended: Option<&BTreeSet<PodKey>>, pods: &[Pod]) -> Vec<Action> {
    let observed = pods.iter().map(|pod| (key_of(&pod.metadata), pod.clone())).collect();
    decide(&view(snapshots, tended, &node()), &observed)
}

/// What the API server makes of the mirror of `pod`, with the status of `running`.
fn mirrored(pod: &Arc<StaticPod>, running: &[&Arc<StaticPod>]) -> Pod {
    let snapshot = snapshot(Some(pod), running);
    let node = node();
    let mut made = mirror(&view(&[], None, &node), &snapshot, pod);
    made.metadata.uid = Some("mirror-uid".to_owned());
    let wanted = report::pod(&snapshot, &node).unwrap().status.unwrap();
    made.status = Some(status::settled(wanted, &PodStatus::default(), now()));
    made
}

fn foreign_pod(status: &serde_json::Value) -> Pod {
    let metadata = json!({ "name": "bound", "namespace": "default", "uid": "foreign-uid" });
    serde_json::from_value(json!({ "metadata": metadata, "status": status })).unwrap()
}

fn deleting(mut pod: Pod, grace: i64) -> Pod {
    pod.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    pod.metadata.deletion_grace_period_seconds = Some(grace);
    pod
}

/// One word for each action.
fn words(actions: &[Action]) -> Vec<String> {
    let word = |action: &Action| match action {
        Action::Create(_) => "create".to_owned(),
        Action::Delete { uid, .. } => format!("delete {uid}"),
        Action::Status { uid, status, .. } => {
            let fields: Vec<_> = status.as_object().unwrap().keys().map(String::as_str).collect();
            format!("status {uid} {}", fields.join(","))
        }
    };
    actions.iter().map(word).collect()
}

#[test]
fn a_mirror_is_as_its_pod_is() {
    let (old, new) = (pod("a"), pod("b"));
    let tended: BTreeSet<_> = [old.key.clone()].into();
    let (known, nothing) = (Some(&tended), BTreeSet::new());
    let trying = Snapshot {
        update: Some(Update { uid: new.uid.clone(), rejected: None }),
        ..snapshot(Some(&new), &[&old, &new])
    };
    let mut of_kubelet = mirrored(&old, &[&old]);
    of_kubelet.metadata.annotations.as_mut().unwrap().remove(SPEC_HASH);
    let mut of_other_node = mirrored(&old, &[&old]);
    of_other_node.metadata.owner_references.as_mut().unwrap()[0].uid = "older-node-uid".to_owned();
    let mut edited = mirrored(&old, &[&old]);
    edited.metadata.labels = None;
    edited.spec.as_mut().unwrap().containers[0].image = Some("evil".to_owned());
    let mut told_otherwise = mirrored(&old, &[&old]);
    told_otherwise.status.as_mut().unwrap().phase = Some("Failed".to_owned());
    let (there, mirror_goes) = (vec![mirrored(&old, &[&old])], &["delete mirror-uid"][..]);
    for (name, snapshot, tended, pods, expected) in [
        ("new", Some(snapshot(Some(&old), &[])), known, vec![], &["create"][..]),
        ("as it is", Some(snapshot(Some(&old), &[&old])), known, there.clone(), &[]),
        (
            "its container runs",
            Some(snapshot(Some(&old), &[&old])),
            known,
            vec![mirrored(&old, &[])],
            &["status mirror-uid conditions,containerStatuses,phase"],
        ),
        (
            "somebody wrote its status",
            Some(snapshot(Some(&old), &[&old])),
            known,
            vec![told_otherwise],
            &["status mirror-uid phase"],
        ),
        ("somebody edited it", Some(snapshot(Some(&old), &[&old])), known, vec![edited], &[]),
        ("deleted with a grace", Some(snapshot(Some(&old), &[&old])), known, vec![deleting(there[0].clone(), 30)], {
            mirror_goes
        }),
        ("kept by a finalizer", Some(snapshot(Some(&old), &[&old])), known, vec![deleting(there[0].clone(), 0)], &[]),
        ("the old one ends", Some(snapshot(Some(&new), &[&old])), known, there.clone(), &[]),
        ("the old one has ended", Some(snapshot(Some(&new), &[])), known, there.clone(), mirror_goes),
        ("the new one is tried beside it", Some(trying), known, there.clone(), &[]),
        ("the new one has proven itself", Some(snapshot(Some(&new), &[&old, &new])), known, there.clone(), mirror_goes),
        ("a kubelet made it", Some(snapshot(Some(&old), &[&old])), known, vec![of_kubelet], mirror_goes),
        ("of an earlier Node", Some(snapshot(Some(&old), &[&old])), known, vec![of_other_node], mirror_goes),
        ("being removed", Some(snapshot(None, &[&old])), known, there.clone(), &[]),
        ("being removed without a mirror", Some(snapshot(None, &[&old])), known, vec![], &[]),
        ("removed", None, Some(&nothing), there.clone(), mirror_goes),
        ("not read yet", None, None, there.clone(), &[]),
        ("not started yet", None, known, there, &[]),
    ] {
        let snapshots: Vec<_> = snapshot.into_iter().collect();
        assert_eq!(words(&decided(&snapshots, tended, &pods)), expected, "{name}");
    }
}

#[test]
fn the_mirror_is_what_node_restriction_lets_a_node_create() {
    let pod = pod("a");
    let actions = decided(&[snapshot(Some(&pod), &[])], None, &[]);
    let [Action::Create(mirror)] = actions.as_slice() else { panic!("{actions:?}") };
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "web-node-1",
            "namespace": "default",
            "labels": { "app": "web" },
            "annotations": {
                "a": "b",
                "kubernetes.io/config.hash": pod.uid,
                "kubernetes.io/config.mirror": pod.uid,
                "kubernetes.io/config.seen": now().to_string(),
                "kubernetes.io/config.source": "file",
                "plinth.dev/spec-hash": pod.hash,
            },
            "ownerReferences": [
                { "apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": NODE_UID, "controller": true },
            ],
        },
        "spec": pod.spec,
    });
    assert_eq!(serde_json::to_value(mirror).unwrap(), expected);
    assert!(pod.spec.node_name.is_some());
}

#[test]
fn another_image_under_a_pinned_uid_is_another_mirror() {
    let pinned = |image: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, uid: x}}\nspec: {{hostNetwork: true, containers: \
             [{{name: c, image: {image}}}]}}\n"
        );
        Arc::new(read(&text))
    };
    let (old, new) = (pinned("a"), pinned("b"));
    let actions = decided(&[snapshot(Some(&new), &[&new])], None, &[mirrored(&old, &[&old])]);
    assert_eq!(words(&actions), ["delete mirror-uid"]);
}

#[test]
fn a_pod_of_somebody_else_is_told_and_let_go() {
    let bound = foreign_pod(&json!({ "phase": "Pending" }));
    let actions = decided(&[], Some(&BTreeSet::new()), std::slice::from_ref(&bound));
    assert_eq!(words(&actions), ["status foreign-uid conditions,message,reason"]);
    let [Action::Status { status, .. }] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(status["reason"], "StaticPodsOnly");
    let mut told = serde_json::to_value(&bound).unwrap();
    for (field, value) in status.as_object().unwrap() {
        told["status"][field] = value.clone();
    }
    let told: Pod = serde_json::from_value(told).unwrap();
    assert_eq!(decided(&[], None, std::slice::from_ref(&told)), []);
    assert_eq!(words(&decided(&[], None, &[deleting(told, 30)])), ["delete foreign-uid"]);
    let over = foreign_pod(&json!({ "phase": "Failed" }));
    assert_eq!(decided(&[], None, std::slice::from_ref(&over)), []);
    for (pod, expected) in [(bound, 1), (over, 0), (mirrored(&pod("a"), &[]), 0)] {
        assert_eq!(foreign(&[(key_of(&pod.metadata), pod)].into()).count(), expected);
    }
}

#[test]
fn a_pod_that_has_the_name_of_a_static_one_is_no_mirror() {
    let web = pod("a");
    let mut other = foreign_pod(&json!({}));
    other.metadata.name = Some(web.key.name.clone());
    let actions = decided(&[snapshot(Some(&web), &[&web])], None, &[other]);
    assert_eq!(words(&actions), ["status foreign-uid conditions,message,phase,reason"]);
}
