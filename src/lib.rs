//! plinth turns a host with a Docker Engine into a Kubernetes control plane and keeps it running without a kubelet.
//!
//! One idea is used twice: **observe → decide → act, with the decision pure**.
//!
//! - The node: [`plan::compute`] compares a validated [`config::Cluster`] with what is on the host and returns the
//!   steps that are missing; [`apply`] performs them. The first `init` is the plan from an empty host, and a change of a
//!   running control plane is the plan from what is there.
//! - One pod: [`agent::step`] compares a static pod with its containers and returns the next actions; a worker per
//!   pod performs them.
//!
//! The two loops meet only on disk: `init` writes manifests, the agent runs them and publishes its status.
//!
//! # Map
//!
//! Modules may use those below them in this list, never those above.
//!
//! | module | what it holds |
//! |---|---|
//! | [`cli`] | clap structs → settings → one call; the only place that knows clap, anyhow and the environment |
//! | [`init`] | plan, check the host, get the images, perform the plan |
//! | [`reset`] | takes everything away again, and proves it |
//! | [`apply`] | performs a plan: files, agent, gates; the autopsy and the way back when a gate is missed |
//! | [`plan`] | what differs between configuration and host (pure), generations, plan files, phases as data |
//! | [`preflight`] | small named checks of the host |
//! | [`takedown`] | stops our containers and sees that nothing of them runs |
//! | [`service`] | how the agent is kept alive: a systemd unit, or a detached process |
//! | [`agent`] | sources, the pure step, workers, probes, the status socket; the Node, its mirror pods, events, the kubelet's interface |
//! | [`cluster`] | objects in the API server |
//! | [`etcd`] | asking a running etcd; copy, judgement and exchange of a stopped one's data |
//! | [`health`] | health endpoints of the four components, waited for with a deadline and a last reason |
//! | [`runtime`] | the container runtime as a trait; Docker, and a scripted fake |
//! | [`manifests`], [`kubeconfig`], [`pki`] | typed input → bytes |
//! | [`config`] | kubeadm's wire format → defaults → the validated `Cluster` |
//! | [`release`] | Kubernetes releases: components, images, versions |
//! | [`journal`] | append-only record of what was made, for convergence and reset |
//! | [`logline`] | what containers write, without its wrapping |
//! | [`proc`] | what `/proc` says of ports, processes and cgroups |
//! | [`ui`] | one door to stdout and stderr |
//! | [`layout`], [`fsx`], [`yaml`], [`names`], [`clock`], [`error`] | paths, files, YAML, the API's names, time, exit codes |

pub mod agent;
pub mod apply;
pub mod cli;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod error;
pub mod etcd;
pub mod fsx;
pub mod health;
pub mod init;
pub mod journal;
#[cfg(test)]
mod killed;
pub mod kubeconfig;
pub mod layout;
pub mod logline;
pub mod manifests;
pub mod names;
pub mod pki;
pub mod plan;
pub mod preflight;
pub mod proc;
pub mod release;
pub mod reset;
pub mod runtime;
pub mod service;
pub mod takedown;
pub mod ui;
pub mod yaml;
