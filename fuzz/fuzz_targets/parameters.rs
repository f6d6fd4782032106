#![no_main]

libfuzzer_sys::fuzz_target!(init: blockdrop_fuzz::init(), |input: &[u8]| blockdrop_fuzz::run("parameters", input));
