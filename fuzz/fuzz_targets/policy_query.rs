//! Feeds libFuzzer's inputs to `tokenring::testing::policy::query::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::testing::policy::query::fuzz(data);
});
