//! Health endpoints of the four components: asked directly, waited for with a deadline and a last reason.
//!
//! # Guarantees
//! - Where a component is asked is read from the probe of its rendered static pod, so whatever moves the component
//!   (`secure-port`, `bind-address`, `listen-metrics-urls`) moves the question with it.
//! - The API server is believed only with a certificate of our CA, and our client key is shown to nobody else.
//! - [`wait()`] reports every change of a component's reason once, and always ends by its deadline.
//!
//! # Assumptions
//! - A rustls crypto provider is installed (`main` does it); building a [`Checker`] panics without one.

mod check;
mod target;
#[cfg(test)]
pub(crate) mod testing;
mod wait;

pub use check::{Checker, Unhealthy};
pub(crate) use check::{client, explain};
pub use target::{Credentials, Identity, Target, TargetError, Trust, targets};
pub use wait::{Healthy, POLL, Progress, Unmet, Waiting, wait};
