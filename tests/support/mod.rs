//! What integration tests share.

#![allow(dead_code, unreachable_pub)] // a module of each test crate, which uses its part of it
#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in here fails the test
#![allow(async_fn_in_trait, clippy::unused_async)] // one signature for all implementations

pub mod lab;
