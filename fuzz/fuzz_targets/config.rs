//! Feeds libFuzzer's inputs to `tokenring::config::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::config::fuzz(data);
});
