//! The processor's kernels without the rest of the worker, so that they are soon compiled for another processor.
//!
//! The modules are the worker's own files. Their bits are compared with figures that are the same on every processor;
//! `neon.sh` beside this file does so on an emulated 64-bit Arm.

#![expect(dead_code, reason = "of the worker's files, only the kernels are wanted")]

#[path = "../../worker/src/exponential.rs"]
mod exponential;
#[path = "../../worker/src/simd.rs"]
mod simd;

mod cpu;
