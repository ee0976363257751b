//! wayleave: routes as code, in the kernel.
//!
//! The way through the code is one line:
//!
//! `source -> policy -> compile -> plan -> stage -> verify -> publish -> report`
//!
//! Read the modules in that order. Only [`source`], [`kernel`] and [`daemon`] touch files, clocks, sockets or the
//! environment; everything between them is a pure function of its arguments.

pub mod source;

pub mod policy;

pub mod compile;

pub mod plan;

pub mod trace;

pub mod reconcile;

pub mod kernel;

pub mod daemon;

pub mod demo;

pub mod cli;
