#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton::fuzzing::cluster_config(bytes));
