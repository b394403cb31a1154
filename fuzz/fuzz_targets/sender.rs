#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_kv_transfer::session::fuzzing::sender(bytes));
