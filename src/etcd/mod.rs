//! etcd.

mod bolt;
mod crc32c;
mod data;
mod protobuf;
mod put_back;
mod wal;

pub use bolt::{BoltError, Contents};
pub use data::{Copied, CopyRecord, DataDir, DataError, Place, Prospect, RESERVE};
pub use put_back::{PutBack, Served, may_put_back};
pub use wal::{Content, Growth, Record, WalError};
