//! The node's side: files, clock, sockets and signals, around the pure pipeline.

pub mod adaptive;
pub mod apply;
pub mod attempt;
pub mod cases;
pub mod detach;
pub mod drift;
mod drift_timer;
pub mod execute;
mod follow;
pub mod health;
pub mod journal;
pub mod neighbours;
pub mod node;
pub mod ports;
pub mod probation;
pub mod probe;
pub mod reach;
pub mod run;
pub mod runtime;
pub mod settled;
pub mod state;
pub mod suspension;
pub mod time;
pub mod trial;
mod webhook;
