//! Feeds libFuzzer's inputs to `tokenring::policy::route::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::policy::route::fuzz(data);
});
