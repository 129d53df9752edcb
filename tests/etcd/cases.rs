//! What happens to the data.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use plinth::etcd::{Change, ClientError, Place};
use serde_json::json;

use crate::host;
use crate::lab::{AGREED, End, Lab, NEW, OLD, exec, series, stop};
use crate::sandbox::note;

/// Values of 64 KiB: as much as a small cluster holds.
const VALUES: u64 = 300;

fn ms(duration: Duration) -> String {
    format!("{:.0} ms", duration.as_secs_f64() * 1e3)
}

/// An old etcd with data, stopped in order, and a copy of its data.
fn copied() -> Lab {
    let lab = Lab::new();
    lab.start_and_agree(OLD);
    let value = "v".repeat(64 * 1024);
    for number in 0..VALUES {
        lab.put(&format!("filler-{number}"), &value);
    }
    lab.put("before", "1");
    stop(End::Orderly);
    copy(&lab);
    lab
}

fn copy(lab: &Lab) {
    let prospect = lab.data.prospect().unwrap();
    assert!(prospect.fits(), "{prospect:?}");
    let begin = Instant::now();
    let (record, copied) = lab.data.copy("id", OLD, &mut |_| {}).unwrap();
    let took = begin.elapsed();
    assert_eq!(record.revision, VALUES + 2, "one for each value and one for `before`, from 1 on");
    assert!(copied.bytes + copied.shared <= prospect.bytes, "{copied:?} of {prospect:?}");
    note(&format!(
        "copy: {} MiB predicted in {}, {} MiB copied and {} MiB shared in {}",
        prospect.bytes >> 20,
        ms(prospect.time),
        copied.bytes >> 20,
        copied.shared >> 20,
        ms(took)
    ));
}

/// Everything that plinth asks an etcd before it decides.
fn ask_everything(lab: &Lab) {
    let status = lab.ask(lab.client.status()).unwrap();
    assert_eq!((status.version.as_str(), status.errors.len()), ("3.7.0", 0), "{status:?}");
    assert_eq!(status.header.revision, VALUES + 2);
    assert!(status.db_size >= status.db_size_in_use && status.db_size_in_use > VALUES * 64 * 1024, "{status:?}");
    let members = lab.ask(lab.client.members()).unwrap();
    assert_eq!((members.len(), members[0].name.as_str(), members[0].id), (1, "m", status.leader));
    lab.ask(lab.client.validate_downgrade(series(OLD))).unwrap();
    let refused = lab.ask(lab.client.validate_downgrade("3.5.0".parse().unwrap())).unwrap_err();
    assert!(
        matches!(&refused, ClientError::Refused { message, .. } if message.contains("target version")),
        "{refused}"
    );
    let path = lab.path("asked.db");
    lab.ask(lab.client.snapshot(&path, &mut |_, _| {})).unwrap();
}

pub(crate) fn an_upgrade_that_served_nothing_is_undone() {
    let lab = copied();
    assert_eq!(Change::between(series(OLD), series(NEW)), Change::Upgrade);
    assert!(lab.data.can_be_opened_by(series(OLD)).unwrap());

    let started = lab.start_and_agree(NEW);
    ask_everything(&lab);
    assert_eq!(lab.get("before").as_deref(), Some("1"));
    assert!(lab.data.may_put_back().is_err(), "it runs");
    let stopped = stop(End::Orderly);
    assert!(!lab.data.can_be_opened_by(series(OLD)).unwrap());

    // Why something has to be done at all: the old one does not start on these data.
    lab.launch(OLD);
    assert_ne!(host::docker("wait etcd").trim(), "0");
    assert!(host::shell("docker logs etcd 2>&1").stdout.contains("is not supported"));
    host::docker("rm etcd");

    let begin = Instant::now();
    assert_eq!(lab.refusal(), None);
    let judged = begin.elapsed();
    let begin = Instant::now();
    lab.data.put_back().unwrap();
    let exchanged = begin.elapsed();
    let back = lab.start_and_agree(OLD);
    assert_eq!(lab.get("before").as_deref(), Some("1"));
    assert_eq!(lab.put("after", "1"), VALUES + 3);
    stop(End::Orderly);
    assert_eq!(lab.data.find_copy().unwrap().unwrap().1, Place::InUse);
    lab.data.discard().unwrap();
    note(&format!(
        "put back: 3.7.0 led after {}, stopped in {}; judged in {}, exchanged in {}; 3.6.8 led after {}",
        ms(started),
        ms(stopped),
        ms(judged),
        ms(exchanged),
        ms(back)
    ));
}

pub(crate) fn an_upgrade_that_served_goes_back_by_downgrade() {
    let lab = copied();
    lab.start_and_agree(NEW);
    let revision = lab.put("served", "by 3.7.0");
    stop(End::Orderly);
    assert_eq!(lab.data.contents().unwrap().revision, revision);
    let refusal = lab.refusal().unwrap();
    assert!(refusal.starts_with("the new etcd has written: put"), "{refusal}");

    lab.start_and_agree(NEW);
    let begin = Instant::now();
    lab.ask(lab.client.downgrade_to(series(OLD), AGREED)).unwrap();
    let downgraded = begin.elapsed();
    // It still serves, and whoever was killed meanwhile may ask again.
    lab.put("served too", "by 3.7.0 as 3.6");
    lab.ask(lab.client.downgrade_to(series(OLD), AGREED)).unwrap();
    stop(End::Orderly);
    assert!(lab.data.can_be_opened_by(series(OLD)).unwrap());
    let back = lab.start_and_agree(OLD);
    for key in ["served", "served too", "before"] {
        assert!(lab.get(key).is_some(), "{key}");
    }
    assert_eq!(lab.put("after", "1"), revision + 2);
    note(&format!("downgrade: enabled and done in {}; 3.6.8 led after {}", ms(downgraded), ms(back)));

    // And up again, where a downgrade that was enabled can be taken back.
    lab.ask(lab.client.end_downgrade()).unwrap();
    lab.ask(lab.client.end_downgrade()).unwrap();
    stop(End::Orderly);
    lab.start_and_agree(NEW);
    lab.ask(lab.client.downgrade_to(series(OLD), AGREED)).unwrap();
    lab.ask(lab.client.end_downgrade()).unwrap();
    lab.ask(lab.client.wait_for_version(series(NEW), AGREED)).unwrap();
}

pub(crate) fn every_kind_of_write_is_noticed() {
    fn key(name: &str) -> String {
        BASE64_STANDARD.encode(name)
    }
    type Deed = fn(&Lab);
    let put: Deed = |lab| {
        lab.put("written", "1");
    };
    let nothing: Deed = |_| {};
    let deeds: [(&str, Deed, End, Option<&str>); 11] = [
        ("nothing", nothing, End::Orderly, None),
        ("nothing, killed", nothing, End::Killed, None),
        ("questions", ask_everything, End::Orderly, None),
        (
            "a list of alarms",
            |lab| drop(lab.call("maintenance/alarm", &json!({ "action": "GET" }))),
            End::Orderly,
            None,
        ),
        ("a write", put, End::Orderly, Some("has written: put")),
        ("a write, killed", put, End::Killed, Some("has written: put")),
        (
            "a write and its deletion",
            |lab| {
                lab.put("written", "1");
                lab.call("kv/deleterange", &json!({ "key": key("written") }));
            },
            End::Orderly,
            Some("has written: put"),
        ),
        (
            "a deletion of nothing",
            |lab| drop(lab.call("kv/deleterange", &json!({ "key": key("none") }))),
            End::Orderly,
            Some("has written: delete"),
        ),
        (
            "a lease",
            |lab| drop(lab.call("lease/grant", &json!({ "TTL": "600" }))),
            End::Killed,
            Some("has written: lease grant"),
        ),
        (
            "a compaction",
            |lab| drop(lab.call("kv/compaction", &json!({ "revision": "100" }))),
            End::Killed,
            Some("has written: compaction"),
        ),
        (
            "a write whose record is torn",
            put,
            End::Killed,
            // Tested below, once the log is torn.
            Some("it is not known what the new etcd has written"),
        ),
    ];

    let lab = copied();
    for (what, deed, end, expected) in deeds {
        lab.start(NEW);
        deed(&lab);
        stop(end);
        if what.ends_with("torn") {
            tear(&lab);
        }
        let refusal = lab.refusal();
        match expected {
            None => assert_eq!(refusal, None, "{what}"),
            Some(expected) => {
                assert!(refusal.as_ref().is_some_and(|why| why.contains(expected)), "{what}: {refusal:?}");
            }
        }
        // From the same data again: this once without asking whether it may be.
        lab.data.put_back().unwrap();
        lab.data.discard().unwrap();
        copy(&lab);
    }
    note(&format!("{} ways to use 3.7.0, each from the same data", deeds.len()));
}

/// Takes the last bytes of the log away, as if they had not reached the disk.
fn tear(lab: &Lab) {
    let path = lab.log_file();
    let log = fs::read(&path).unwrap();
    let end = log.iter().rposition(|&byte| byte != 0).unwrap() + 1;
    File::options().write(true).open(&path).unwrap().write_all_at(&[0; 12], end as u64 - 12).unwrap();
}

pub(crate) fn a_snapshot_is_one_for_etcds_own_tools() {
    let lab = copied();
    lab.start_and_agree(OLD);
    let path = lab.path("snapshot.db");
    let mut last = (0, 0);
    let begin = Instant::now();
    let snapshot = lab.ask(lab.client.snapshot(&path, &mut |there, expected| last = (there, expected))).unwrap();
    let took = begin.elapsed();
    assert_eq!(snapshot.revision, VALUES + 2);
    assert_eq!(last, (snapshot.bytes, snapshot.bytes));
    let meta = fs::metadata(&path).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o7777), (snapshot.bytes, 0o600));
    note(&format!("snapshot: {} MiB in {}", snapshot.bytes >> 20, ms(took)));

    let path = path.display();
    let status = exec(&format!("etcdutl snapshot status {path} --write-out=json")).ok().json();
    assert_eq!(status["revision"], snapshot.revision, "{status}");
    let restored = lab.path("restored");
    exec(&format!("etcdutl snapshot restore {path} --data-dir={}", restored.display())).ok();
    assert!(restored.join("member/snap/db").exists());

    // Nobody is there: nothing is left under any name.
    stop(End::Orderly);
    let path = lab.path("nobody.db");
    let error = lab.ask(lab.client.snapshot(&path, &mut |_, _| {})).unwrap_err();
    assert!(matches!(error, ClientError::NoAnswer { .. }), "{error:?}");
    let names = fs::read_dir(lab.path("")).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|name| name.contains("nobody")));
}

pub(crate) fn a_member_moves_to_another_address() {
    let lab = Lab::new();
    lab.start_and_agree(OLD);
    let member = lab.ask(lab.client.members()).unwrap().remove(0);
    assert_eq!(member.peer_urls, ["http://127.0.0.1:2380"]);
    let new = ["http://10.213.0.2:2380".to_owned()];
    lab.ask(lab.client.update_peer_urls(member.id, &new)).unwrap();
    assert_eq!(lab.ask(lab.client.members()).unwrap()[0].peer_urls, new);
    let error = lab.ask(lab.client.update_peer_urls(member.id ^ 1, &new)).unwrap_err();
    assert_eq!(error.to_string(), "etcd refuses `member update`: member not found");
    // It starts with what it has in its data, whatever its flags say.
    stop(End::Orderly);
    lab.start(OLD);
    assert_eq!(lab.ask(lab.client.members()).unwrap()[0].peer_urls, new);
}
