//! wayleave: routes as code, in the kernel.
//!
//! The way through the code is one line:
//!
//! `source -> policy -> compile -> plan -> stage -> verify -> publish -> report`
//!
//! Read the modules in that order. Only [`source`], [`kernel`], [`daemon`], [`demo`] and [`cli`] touch files, clocks, sockets or the
//! environment; everything between them is a pure function of its arguments (`clippy.toml` names what they may not call).

#[allow(clippy::disallowed_methods, reason = "reads the files")]
pub mod source;

#[allow(clippy::disallowed_methods, reason = "reads the certificates that the system trusts")]
mod tls;

pub mod policy;

pub mod compile;

pub mod plan;

pub mod guard;

pub mod trace;

pub mod policy_test;

pub mod reconcile;

#[allow(clippy::disallowed_methods, reason = "reads bpffs")]
pub mod kernel;

#[allow(clippy::disallowed_methods, reason = "is where files, clock and sockets are")]
pub mod daemon;

#[allow(clippy::disallowed_methods, reason = "is a program of its own: it makes its network, files and traffic")]
pub mod demo;

#[allow(clippy::disallowed_methods, reason = "reads the config and NO_COLOR")]
pub mod cli;
