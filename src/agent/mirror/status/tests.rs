use serde_json::json;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn status(value: &Value) -> PodStatus {
    serde_json::from_value(value.clone()).unwrap()
}

fn ready(status: &str) -> Value {
    json!({ "type": "Ready", "status": status })
}

fn since(status: &str, seconds: i64) -> Value {
    json!({ "type": "Ready", "status": status, "lastTransitionTime": Time(at(seconds)) })
}

#[test]
fn a_condition_keeps_its_time_until_it_changes_and_those_of_others_stay() {
    let other = json!({ "type": "example.com/gate", "status": "True", "lastTransitionTime": Time(at(1)) });
    let observed = status(&json!({ "conditions": [other, since("True", 2)], "startTime": Time(at(0)) }));
    for (now, expected) in [("True", since("True", 2)), ("False", since("False", 9))] {
        let wanted = status(&json!({ "conditions": [ready(now)], "startTime": Time(at(8)) }));
        let settled = serde_json::to_value(settled(wanted, &observed, at(9))).unwrap();
        assert_eq!(settled["conditions"], json!([expected, other]));
        assert_eq!(settled["startTime"], json!(Time(at(0))));
    }
}

#[test]
fn only_what_differs_is_written_and_what_has_gone_is_removed() {
    let observed = status(&json!({
        "phase": "Running", "podIP": "192.0.2.1", "hostIP": "192.0.2.2", "observedGeneration": 1, "resize": "Proposed",
    }));
    let wanted = status(&json!({ "phase": "Pending", "hostIP": "192.0.2.2" }));
    assert_eq!(patch(&observed, &wanted), Some(json!({ "phase": "Pending", "podIP": null })));
    assert_eq!(patch(&observed, &observed), None);
}

#[test]
fn times_below_a_second_are_no_difference() {
    let start = |millis: i64| PodStatus {
        start_time: Some(Time(Timestamp::from_millisecond(1_800_000_000_000 + millis).unwrap())),
        ..PodStatus::default()
    };
    assert_eq!(patch(&start(0), &start(999)), None);
    assert!(patch(&start(0), &start(1000)).is_some());
}
