//! Feeds libFuzzer's inputs to `tokenring::testing::http1::framing::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::testing::http1::framing::fuzz(data);
});
