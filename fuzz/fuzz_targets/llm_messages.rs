//! Feeds libFuzzer's inputs to `tokenring::llm::messages::fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    tokenring::llm::messages::fuzz(data);
});
