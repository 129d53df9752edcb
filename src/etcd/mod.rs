//! etcd.

mod bolt;
mod client;
mod crc32c;
mod data;
mod protobuf;
mod put_back;
mod series;
mod wal;

pub use bolt::{BoltError, Contents};
pub use client::{Client, ClientError, DowngradeInfo, Header, Member, Snapshot, Status, Versions};
pub use data::{Copied, CopyRecord, DataDir, DataError, Place, Prospect, RESERVE};
pub use put_back::{PutBack, Served, may_put_back};
pub use series::{Change, NoSeries, Series};
pub use wal::{Content, Growth, Record, WalError};
