//! The `scrimp` command line.

fn main() {}
