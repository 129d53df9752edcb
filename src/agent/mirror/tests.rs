use kube::core::Status;

use super::decide::tests::{NODE_UID, node, pod, snapshot};
use super::*;
use crate::agent::metrics::Metrics;

/// One static pod that runs, and an API server that has nothing yet.
fn mirrors() -> Mirrors {
    let board = Arc::new(Board::new(Metrics::new("0")));
    let web = pod("a");
    board.publish(snapshot(Some(&web), &[&web]));
    let (_, node_uid) = watch::channel(None);
    let connection = Arc::new(Connection::new("/no/such/kubelet.conf"));
    let mut mirrors = Mirrors::new(Context { connection, board, node: node(), node_uid, clock: Clock::system() });
    mirrors.take(Change::Listed(Vec::new()));
    mirrors
}

/// The one action that is due, by its name.
fn due(mirrors: &mut Mirrors) -> Option<&'static str> {
    let actions = mirrors.actions(NODE_UID);
    assert!(actions.len() <= 1, "{actions:?}");
    actions.first().map(Action::name)
}

/// Does what is due as an API server does it that keeps of a status what `keeps` says.
fn act(mirrors: &mut Mirrors, version: u64, keeps: bool) {
    let action = mirrors.actions(NODE_UID).remove(0);
    let answer = match &action {
        Action::Create(pod) => Some(object(pod, version, "mirror-uid")),
        Action::Delete { .. } => None,
        Action::Status { key, status, .. } => {
            let mut object = object(&mirrors.observed.as_ref().unwrap()[key], version, "mirror-uid");
            if keeps {
                object.data["status"] = status.clone();
            }
            Some(object)
        }
    };
    mirrors.book(&action, Ok(answer));
}

/// The one pod that the API server has.
fn mirror(mirrors: &Mirrors) -> Pod {
    mirrors.observed.as_ref().unwrap().values().next().unwrap().clone()
}

fn object(pod: &Pod, version: u64, uid: &str) -> DynamicObject {
    let mut object: DynamicObject = serde_json::from_value(serde_json::to_value(pod).unwrap()).unwrap();
    object.metadata.uid = Some(uid.to_owned());
    object.metadata.resource_version = Some(version.to_string());
    object
}

fn refusal(code: u16) -> AskError {
    kube::Error::Api(Status::failure("it is not allowed", "Forbidden").with_code(code).boxed()).into()
}

fn warnings(mirrors: &Mirrors) -> Vec<String> {
    mirrors.warn();
    mirrors.context.board.situation().2
}

#[tokio::test(start_paused = true)]
async fn a_refused_creation_is_told_and_tried_again_after_longer_and_longer_waits() {
    let mut mirrors = mirrors();
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        let action = mirrors.actions(NODE_UID).remove(0);
        mirrors.book(&action, Err(refusal(403)));
        let wait = Duration::from_secs(seconds);
        assert_eq!(mirrors.next_try(), Some(Instant::now() + wait));
        assert_eq!(due(&mut mirrors), None);
        assert!(warnings(&mirrors)[0].contains("it is not allowed"));
        sleep(wait).await;
        assert_eq!(due(&mut mirrors), Some("create"));
    }
    act(&mut mirrors, 1, true);
    assert_eq!(warnings(&mirrors), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn whoever_keeps_deleting_a_mirror_gets_one_after_longer_and_longer_waits() {
    let mut mirrors = mirrors();
    let mut version = 0;
    let mut delete = async |mirrors: &mut Mirrors, lived: u64| {
        act(mirrors, version + 1, true);
        act(mirrors, version + 2, true);
        assert_eq!(due(mirrors), None);
        version += 3;
        sleep(Duration::from_secs(lived)).await;
        mirrors.take(Change::Gone(object(&mirror(mirrors), version, "mirror-uid")));
    };
    for wait in [0, 1, 2, 4, 8, 16, 32, 60, 60] {
        delete(&mut mirrors, 1).await;
        if wait > 0 {
            assert_eq!(due(&mut mirrors), None);
            assert_eq!(mirrors.next_try(), Some(Instant::now() + Duration::from_secs(wait)));
            sleep(Duration::from_secs(wait)).await;
        }
        assert_eq!(due(&mut mirrors), Some("create"));
        assert_eq!(mirrors.next_try(), None);
    }
    delete(&mut mirrors, 60).await;
    assert_eq!(due(&mut mirrors), Some("create"), "it has lived");
}

#[tokio::test(start_paused = true)]
async fn only_what_is_there_can_be_gone_or_another_one() {
    for (action, code, is_told, next) in [
        ("create", 404, true, "create"),
        ("create", 409, true, "create"),
        ("status", 404, false, "create"),
        ("status", 409, false, "status"),
        ("status", 422, true, "status"),
    ] {
        let mut mirrors = mirrors();
        if action == "status" {
            act(&mut mirrors, 1, true);
        }
        for second in [1, if is_told { 2 } else { 1 }] {
            let due = mirrors.actions(NODE_UID).remove(0);
            assert_eq!(due.name(), if second == 1 { action } else { next }, "{action} {code}");
            mirrors.book(&due, Err(refusal(code)));
            assert_eq!(mirrors.next_try(), Some(Instant::now() + Duration::from_secs(second)), "{action} {code}");
            assert_eq!(!warnings(&mirrors).is_empty(), is_told, "{action} {code}");
            sleep(Duration::from_secs(second)).await;
            if !is_told {
                break;
            }
        }
        assert_eq!(due(&mut mirrors), Some(next), "{action} {code}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_missing_any_more_is_not_told_any_more() {
    let mut mirrors = mirrors();
    let action = mirrors.actions(NODE_UID).remove(0);
    mirrors.book(&action, Err(AskError::Silent));
    assert!(warnings(&mirrors)[0].contains("no answer within 10 s"));
    // It was created all the same, and has gone with its pod.
    mirrors.context.board.forget(&action.key());
    assert_eq!(due(&mut mirrors), None);
    assert_eq!((warnings(&mirrors), mirrors.next_try()), (Vec::new(), None));
}

#[tokio::test(start_paused = true)]
async fn one_silence_is_the_pods_and_a_second_one_the_api_servers() {
    let closed = || Err(AskError::Closed);
    let (silent, refused) = (|| Err(AskError::Silent), || Err(refusal(500)));
    for (name, results, is_away) in [
        ("one", vec![silent()], vec![false]),
        ("two in a row", vec![silent(), silent()], vec![false, true]),
        ("with an answer between", vec![silent(), refused(), silent()], vec![false; 3]),
        ("no connection", vec![closed()], vec![true]),
    ] {
        let mut mirrors = mirrors();
        let action = mirrors.actions(NODE_UID).remove(0);
        let mut silences = 0;
        let away: Vec<_> =
            results.into_iter().map(|result| mirrors.take_answer(&action, result, &mut silences)).collect();
        assert_eq!(away, is_away, "{name}");
        assert_eq!(due(&mut mirrors).is_none(), name != "no connection", "{name}: only what was silent waits");
    }
}

#[tokio::test(start_paused = true)]
async fn a_status_that_is_not_kept_is_not_written_again_until_the_object_changes() {
    let mut mirrors = mirrors();
    act(&mut mirrors, 1, true);
    act(&mut mirrors, 2, false);
    assert_eq!(due(&mut mirrors), None);
    let mirror = mirror(&mirrors);
    mirrors.take(Change::Is(object(&mirror, 3, "mirror-uid")));
    assert_eq!(due(&mut mirrors), Some("status"));
}

#[tokio::test(start_paused = true)]
async fn news_that_are_older_than_an_answer_are_none() {
    let mut mirrors = mirrors();
    act(&mut mirrors, 1, true);
    let created = mirror(&mirrors);
    act(&mut mirrors, 2, true);
    mirrors.take(Change::Is(object(&created, 1, "mirror-uid")));
    assert_eq!(due(&mut mirrors), None, "the status has been written");
    mirrors.take(Change::Gone(object(&created, 1, "older-uid")));
    assert_eq!(due(&mut mirrors), None, "that was another one");
    // Nothing is known any more.
    mirrors.take(Change::Lost(AskError::Closed));
    assert_eq!(due(&mut mirrors), None);
    assert_eq!(warnings(&mirrors), [""; 0], "the node tells of an API server that is away");
    mirrors.take(Change::Lost(refusal(403)));
    assert!(warnings(&mirrors)[0].contains("it is not allowed"));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_not_reached_is_left_alone_for_a_while() {
    let mut mirrors = mirrors();
    // There is no kubeconfig.
    mirrors.settle(NODE_UID).await;
    let first = mirrors.next_try().unwrap();
    assert_eq!(first - Instant::now(), Duration::from_millis(100));
    sleep(Duration::from_millis(100)).await;
    mirrors.settle(NODE_UID).await;
    assert_eq!(mirrors.next_try().unwrap() - Instant::now(), Duration::from_millis(200));
}
