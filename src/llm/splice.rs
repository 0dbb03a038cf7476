//! stub
#![allow(missing_docs)]
pub fn replace_model(_n: &str, _o: &mut Vec<u8>) {}
