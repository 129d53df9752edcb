//! etcd: asking a running one, and handling the data of a stopped one.
//!
//! [`Client`] speaks to a running etcd; [`DataDir`] copies, judges and exchanges the data of a stopped one; [`next`]
//! decides what to do with them while one etcd is replaced by another, from what is on the host. This module starts and
//! stops nothing and keeps no journal: that is its caller's.
//!
//! # Replacing one etcd by another
//!
//! Two etcds never run at once on the same data, and going from 3.6 to 3.7 is a way of no return for the data: the new
//! one marks them, and the old one refuses them from then on ("version 3.7.0 is not supported"). There are two ways
//! back, and which one is open depends on one thing only: whether the new etcd has acknowledged a write.
//!
//! ```text
//!   snapshot                         for people; etcd serves on
//!   record etcd-swap
//! ┌ (going down a series: downgrade) the old one makes its data readable for the new one, and serves on
//! │ take the manifest away           the agent stops the old one
//! │ wait until it is gone            the lock of its database is free
//! │ copy                             plinth-copy/, complete with copy.json
//! │ write the new manifest           the agent starts the new one
//! └ gate ── healthy ──────────────── record etcd-swap-done; the copy goes when the generation is committed
//!     │ not healthy in time
//!   record etcd-swap-failed
//! ┌ it answers ────────────────────┐
//! │ take the manifest away, gone   │
//! │ judge ── may be put back       │
//! │   │        put back            │ one renameat2
//! │   │        write the old manifest, gate ── record etcd-swap-done (undone)
//! │   │ may not                    │
//! │ record etcd-swap-served        │
//! │ write the new manifest, gate ──┤── not healthy: stop here, keep both, say where they are
//! │                                │
//! │ downgrade ◄────────────────────┘ its data become readable for the old one; nothing is lost
//! │ take the manifest away, gone
//! └ write the old manifest, gate ─── end the downgrade; record etcd-swap-done (undone)
//! ```
//!
//! What is **journaled**, each record synced before what follows it: `etcd-swap` (an id, both images; the id is also
//! that of the copy), `etcd-swap-failed`, `etcd-swap-served`, `etcd-swap-done`; and, as for everything plinth makes, the
//! intents for the snapshot's file, the copy's directory and the manifest. Nothing else is remembered, because all else
//! can be seen: the manifest says which etcd the agent runs, the lock of the database whether one runs, `copy.json` and
//! the mark inside the copied `member` whether there is a copy and where it is, the versions in database and log who can
//! open the data. [`next`] takes just that and names the step; whoever runs it asks it again after each step, so
//! carrying on after a kill is no case of its own.
//!
//! | killed, or power lost, | what is seen | what the next run does |
//! |---|---|---|
//! | during the snapshot | `.….plinth-new` beside it | takes it again; the old one serves |
//! | after `etcd-swap` | old manifest, serving | goes on: takes the manifest away |
//! | after the manifest was taken away | no manifest; it runs, or not | waits, copies |
//! | during the copy | `plinth-copy` without `copy.json` | copies again, from data that nobody has touched |
//! | after the copy | copy aside, no manifest | writes the new manifest |
//! | after the new manifest | new manifest | waits for the gate; the agent, if it lives, has started etcd meanwhile |
//! | after the gate, before `etcd-swap-done` | the same | passes the gate at once |
//! | after `etcd-swap-failed` | new manifest, or none and copy aside | stops it, judges, from the disk alone |
//! | around putting back | the mark tells on which side | judges, or writes the old manifest |
//! | after `etcd-swap-served` | none of it is needed to know that | never judges again: the new one is started |
//! | during the downgrade | enabled, or the versions say done | waits, or goes on |
//! | after the old manifest | old manifest | waits for its gate |
//!
//! While there is no manifest nobody serves, also after a reboot, until somebody runs plinth again: `status` has to say
//! so first. That is the price of the agent never starting an etcd on data that are being copied or exchanged.
//!
//! # What the caller has to know
//! - The gate of the new etcd must not write. Health endpoints, [`Client::status`] and everything else here do not.
//!   An API server does, a second after it finds its etcd: judge the gate before others can reach it, or expect to go
//!   back by downgrade.
//! - While a downgrade is enabled the cluster goes no further up than its target. etcd 3.6 ends it by itself, but only
//!   some seconds after its start: call [`Client::end_downgrade`] when it is healthy, or the next upgrade gets stuck at
//!   cluster version 3.6 if that etcd is stopped before.
//! - A downgrade takes about 4 s: etcd looks every 4 s whether its data have to change. It serves meanwhile.
//! - [`DataDir::copy`], [`DataDir::may_put_back`] and [`DataDir::prospect`] read and write many megabytes: they belong
//!   on a thread that may block.
//! - A `--wal-dir` elsewhere, or a link out of the data directory, cannot be copied: [`DataDir::prospect`] says so
//!   beforehand where it is a link.

mod bolt;
mod client;
mod crc32c;
mod data;
mod protobuf;
mod put_back;
mod series;
mod swap;
mod wal;

pub use bolt::{BoltError, Contents};
pub use client::{Client, ClientError, DowngradeInfo, Header, Member, Snapshot, Status, Versions};
pub use data::{Copied, CopyRecord, DataDir, DataError, Place, Prospect, RESERVE};
pub use put_back::{PutBack, Served, may_put_back};
pub use series::{Change, NoSeries, Series};
pub use swap::{Course, Next, Observed, Process, Which, next};
pub use wal::{Content, Growth, Record, WalError};
