//! Feeds libFuzzer's inputs to `tokenring::http::path::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::http::path::fuzz(data);
});
