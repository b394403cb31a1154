#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_frontend::fuzzing::heads::headers(bytes));
