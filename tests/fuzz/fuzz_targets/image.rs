#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| wayleave_tests::fuzz::image(bytes));
