//! stub
#![allow(missing_docs)]
use super::scan::{Model, ScanFault};
pub fn boundary_of(_kind: &[u8]) -> Option<&[u8]> { None }
pub struct MultipartScan;
impl MultipartScan {
    pub fn new(_b: &[u8]) -> Option<Self> { None }
    pub fn push(&mut self, _d: &[u8]) -> Result<(), ScanFault> { Ok(()) }
    pub fn finish(&mut self) -> Result<(), ScanFault> { Ok(()) }
    pub fn model(&self) -> Option<Model<'_>> { None }
}
