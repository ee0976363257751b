//! Image layout, packet parsing, lookup and verdict, compiled once for the kernel and once for the CLI.
#![no_std]
#![forbid(unsafe_code)]
