//! The kubelet's own waiting times, through the whole agent.

use super::*;

fn patient() -> Host {
    let mut host = Host::ticking(Duration::from_millis(100));
    host.start();
    host
}

/// Seconds between calls of this kind, rounded.
fn gaps(host: &Host, op: Op) -> Vec<u64> {
    let at: Vec<_> = host.fake.calls().into_iter().filter(|call| call.op == op).map(|call| call.at).collect();
    at.windows(2).map(|pair| seconds(elapsed(pair[0], pair[1]))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_waits_as_a_kubelets_does() {
    let host = patient();
    host.fake.set_program("i:1", Program::default().exits_after(Duration::from_millis(50), 1));
    host.write("web", &pod("web", "i:1", ""));
    for starts in 1..=9 {
        host.until("it is restarted", |host| host.fake.count(Op::Start) >= starts).await;
    }
    assert_eq!(gaps(&host, Op::Start), [0, 10, 20, 40, 80, 160, 300, 300]);
}

#[tokio::test(start_paused = true)]
async fn who_ran_for_more_than_ten_minutes_crashes_for_the_first_time() {
    for (runs, wait) in [(595, 10), (605, 0)] {
        let host = patient();
        host.fake.set_program("i:1", Program::default().exits_after(Duration::from_secs(runs), 1));
        host.write("web", &pod("web", "i:1", ""));
        for starts in 1..=3 {
            host.until("it is restarted", |host| host.fake.count(Op::Start) >= starts).await;
        }
        assert_eq!(gaps(&host, Op::Start), [runs, runs + wait], "{runs}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_pulled_less_and_less_often() {
    let host = patient();
    host.write("web", &pod("web", "j:1", ""));
    for pulls in 1..=8 {
        host.until("a pull is tried", |host| host.fake.count(Op::Pull) >= pulls).await;
    }
    assert_eq!(gaps(&host, Op::Pull), [10, 20, 40, 80, 160, 300, 300]);
    assert_eq!(host.status().await.pods[0].containers[0].reason, "ImagePullBackOff");
}

/// Read as absent is the usual grace; less than two seconds nobody gets.
#[tokio::test(start_paused = true)]
async fn every_container_has_two_seconds_of_grace() {
    for (given, grace) in [("", 30), ("7", 7), ("2", 2), ("1", 2), ("0", 2), ("-1", 2)] {
        let host = Host::started();
        let field = format!("terminationGracePeriodSeconds: {given}");
        host.write("web", &pod("web", "i:1", "").replace("hostNetwork", &format!("{field}\n  hostNetwork")));
        host.until_running(&["c_web-node_default"]).await;
        host.delete("web");
        host.until("it is gone", |host| host.fake.containers().is_empty()).await;
        let limits: Vec<_> = host.fake.calls().iter().filter(|call| call.op == Op::Stop).map(|c| c.limit).collect();
        assert_eq!(limits, [Some(Duration::from_secs(grace))], "{given}");
    }
}
