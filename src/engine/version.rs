//! The version that ONNX Runtime's library says it has.
//!
//! Unsafe code, since `ort` reads this version to check it, but does not give it out.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::path::Path;

use libloading::Library;
use ort::sys::OrtApiBase;

/// Why the system's loader does not take the library at `path`; `None` where it does.
pub(super) fn refusal(path: &Path) -> Option<String> {
    // SAFETY: `ort` has tried to load this library before, so that initialisers that run now are those that it wanted.
    let loaded = unsafe { Library::new(path) };
    // What the loader itself says is the source of the error.
    loaded.err().map(|error| std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string))
}

/// The version of the library at `path`, which is loaded already; `None` where it does not say.
pub(super) fn of(path: &Path) -> Option<String> {
    // SAFETY: `ort` has loaded this library before, so that its initialisers have run and the handle below only counts
    // one more user of it.
    let library = unsafe { Library::new(path) }.ok()?;
    // SAFETY: the signature is that of onnxruntime_c_api.h, unchanged since the first release; `ort` has called it.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0") }.ok()?;
    // SAFETY: the API base is a static of the library, or null.
    let base = unsafe { base().as_ref() }?;
    // SAFETY: the string is a static of the library, ended by a zero byte.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    version.to_str().ok().map(str::to_owned)
}
