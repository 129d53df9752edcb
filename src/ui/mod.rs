//! One door to stdout and stderr.
//!
//! - What a program may consume goes to stdout ([`Printer::result`]); everything for people goes to stderr.
//! - A reader that went away (broken pipe) is not an error.
//! - Nothing here reads the environment: [`Mode::choose`] is given what the command line found there.
//!
//! Progress is told in phases, named as kubeadm names them:
//!
//! ```text
//! terminal:  ✓ certs: 9 certificates made (0.1 s)
//!            ⠋ wait-control-plane                        1.3 s
//!              ⠋ kube-apiserver  /readyz 500: poststarthook/rbac/bootstrap-roles
//! otherwise: [certs] 9 certificates made (0.1 s)
//!            [wait-control-plane] kube-apiserver: /readyz 500: poststarthook/rbac/bootstrap-roles
//! ```

mod confirm;
mod mode;
mod phase;
mod printer;
mod table;

pub use confirm::{Answer, confirm};
pub use mode::{Format, Mode, Progress, Surroundings, Verbosity};
pub use phase::{Phase, Task, Transfer};
pub use printer::{Captured, LogWriter, Printer};
pub use table::table;
