//! argv → config → server → exit code.
fn main() {}
