//! Feeds libFuzzer's inputs to `tokenring::policy::query::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::policy::query::fuzz(data);
});
