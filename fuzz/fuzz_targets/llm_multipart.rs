//! Feeds libFuzzer's inputs to `tokenring::testing::llm::multipart::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::testing::llm::multipart::fuzz(data);
});
