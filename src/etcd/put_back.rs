//! May the copy of an etcd's data be put back after another etcd ran on them? Only if nobody can miss anything.
//!
//! # Reasoning
//! Putting the copy back undoes whatever the new etcd did. That is harmless only if it acknowledged no write. A write
//! is acknowledged after its entry is in the write-ahead log, synced (`etcdserver/raft.go`: `storage.Save` comes before
//! raft lets a single voter commit), so **the log tells**: every entry after those in the copy has to be one that etcd
//! writes of its own accord when it starts. The database alone does not: after SIGKILL it lacks up to 0.1 s of what the
//! log has, which is why equal revisions prove nothing by themselves. Harmless entries are, and this list is complete:
//!
//! - the empty entry with which a leader begins its term;
//! - the member's own name and URLs, and the cluster's version, which the old etcd will set again for itself;
//! - the reading of the alarm list, which changes nothing.
//!
//! All others count as somebody's write, known or not. That includes some that no client sent: when a lease runs out,
//! its keys are deleted, and a client may have seen that. Renewing a lease leaves no entry; leases begin anew with every
//! start. Reads leave none either.
//!
//! All this holds for a cluster of one member. One of several may not forget for whom it has voted, nor what it has told
//! the others it has: there nothing is ever put back.
//!
//! A raft snapshot beyond the last entry was received from another member, with writes that never were in this log.
//! What cannot be read or understood counts as served. The revisions are compared on top, as a second witness that
//! knows nothing of the first: they have to be equal, unless the copied etcd was killed and had more in its log than
//! in its database.

use super::bolt::{BoltError, Contents};
use super::wal::{Content, Growth, Record, WalError};

/// Whether the copy may be put back.
#[derive(Debug)]
pub enum PutBack {
    /// The new etcd has acknowledged no write: nobody will miss anything.
    Allowed,
    /// It has, or that cannot be ruled out.
    Refused(Served),
}

/// Why the new etcd counts as having served.
#[derive(Debug, thiserror::Error)]
pub enum Served {
    /// Its log has an entry that is not etcd's own.
    #[error("the new etcd has written: {request} (log entry {index})")]
    Write {
        /// Index of the first such entry.
        index: u64,
        /// What was asked for, in etcd's words.
        request: &'static str,
    },
    /// It received the state of another member.
    #[error("the new etcd has received data of another member up to log entry {index}")]
    Received {
        /// Index of the last entry that the snapshot stands for.
        index: u64,
    },
    /// The cluster has other members, to whom this one has spoken.
    #[error("the cluster has {0} members, and none of them can go back alone")]
    Members(usize),
    /// The databases are at different revisions.
    #[error("the new etcd's data are at revision {new}, the copy's at {copy}")]
    Revision {
        /// Of the copy.
        copy: u64,
        /// Of the new etcd's data.
        new: u64,
    },
    /// There is nothing that could be put back.
    #[error("there is no copy of the old etcd's data, or it is in use already")]
    NoCopy,
    /// Unknown: the logs cannot be read or compared.
    #[error("it is not known what the new etcd has written")]
    Log(#[from] WalError),
    /// Unknown: a database cannot be read.
    #[error("it is not known at which revision the data are")]
    Database(#[from] BoltError),
}

/// Decides from what is in the database of the copy and of the new etcd, both stopped, and what the new etcd's log has
/// beyond the copy's.
pub fn may_put_back(copy: &Contents, new: &Contents, growth: &Growth) -> PutBack {
    if let Some(members) = [copy.members, new.members].into_iter().find(|&members| members != 1) {
        return PutBack::Refused(Served::Members(members));
    }
    let mut last = growth.copied;
    for record in &growth.records {
        match *record {
            Record::Bookkeeping => {}
            Record::Snapshot { index } if index <= last => {}
            Record::Snapshot { index } => return PutBack::Refused(Served::Received { index }),
            Record::Entry { index, content: Content::Write(request) } => {
                return PutBack::Refused(Served::Write { index, request });
            }
            Record::Entry { index, .. } => last = index,
        }
    }
    let behind_its_log = copy.applied < growth.copied && new.revision >= copy.revision;
    if copy.revision == new.revision || behind_its_log {
        PutBack::Allowed
    } else {
        PutBack::Refused(Served::Revision { copy: copy.revision, new: new.revision })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(revision: u64, applied: u64) -> Contents {
        Contents { revision, applied, storage_version: None, cluster_version: None, members: 1 }
    }

    fn entry(index: u64, content: Content) -> Record {
        Record::Entry { index, content }
    }

    #[test]
    fn only_what_etcd_writes_by_itself_may_be_undone() {
        let election = entry(11, Content::Election);
        for (what, copy, new, records, expected) in [
            ("it never ran", at(5, 10), at(5, 10), vec![], None),
            ("it only began", at(5, 10), at(5, 10), vec![Record::Bookkeeping, election.clone()], None),
            (
                "it became ready",
                at(5, 10),
                at(5, 13),
                vec![
                    election.clone(),
                    entry(12, Content::MemberAttributes),
                    entry(13, Content::ClusterVersion),
                    Record::Bookkeeping,
                ],
                None,
            ),
            ("somebody asked", at(5, 10), at(5, 12), vec![election.clone(), entry(12, Content::AlarmList)], None),
            (
                "it took a snapshot of its own",
                at(5, 10),
                at(5, 11),
                vec![election.clone(), Record::Snapshot { index: 11 }],
                None,
            ),
            (
                "a write",
                at(5, 10),
                at(6, 12),
                vec![election.clone(), entry(12, Content::Write("put"))],
                Some("the new etcd has written: put (log entry 12)"),
            ),
            (
                "a write that its database does not have yet",
                at(5, 10),
                at(5, 11),
                vec![entry(11, Content::Write("put")), entry(12, Content::Election)],
                Some("the new etcd has written: put (log entry 11)"),
            ),
            (
                "a write that changes no revision",
                at(5, 10),
                at(5, 12),
                vec![election.clone(), entry(12, Content::Write("lease grant"))],
                Some("the new etcd has written: lease grant (log entry 12)"),
            ),
            (
                "another member's data",
                at(5, 10),
                at(5, 10),
                vec![Record::Snapshot { index: 11 }, election.clone()],
                Some("the new etcd has received data of another member up to log entry 11"),
            ),
            (
                "its data went on, though its log does not say how",
                at(5, 10),
                at(6, 11),
                vec![election.clone()],
                Some("the new etcd's data are at revision 6, the copy's at 5"),
            ),
            (
                "the copied etcd was killed, and the new one caught up",
                at(5, 8),
                at(6, 11),
                vec![election.clone()],
                None,
            ),
            ("or not yet", at(5, 8), at(5, 8), vec![], None),
            (
                "its data went back",
                at(5, 8),
                at(4, 11),
                vec![election],
                Some("the new etcd's data are at revision 4, the copy's at 5"),
            ),
            (
                "one of three members",
                Contents { members: 3, ..at(5, 10) },
                at(5, 10),
                vec![],
                Some("the cluster has 3 members, and none of them can go back alone"),
            ),
        ] {
            let verdict = may_put_back(&copy, &new, &Growth { copied: 10, records });
            let refused = match verdict {
                PutBack::Allowed => None,
                PutBack::Refused(why) => Some(why.to_string()),
            };
            assert_eq!(refused.as_deref(), expected, "{what}");
        }
    }
}
