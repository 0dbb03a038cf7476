//! stub
#![allow(missing_docs)]
pub struct PathModel;
pub fn find(_t: &[u8], _get: bool) -> Option<PathModel> { None }
impl PathModel { pub fn name(&self) -> &str { "" } pub fn write_renamed(&self, _t: &[u8], _n: &str, _o: &mut Vec<u8>) {} }
