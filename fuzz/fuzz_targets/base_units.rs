//! Feeds libFuzzer's inputs to `tokenring::base::units::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::base::units::fuzz(data);
});
