#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::guest_tree(data));
