#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| baton_model::fuzzing::texts::tokenizer(bytes));
