//! The C library's heap. Unsafe code: nothing in the standard library reaches it.
#![allow(unsafe_code)]

/// Gives free memory back to the system. Making a session takes and frees several times what the session keeps, in pieces
/// that the GNU C library holds on to.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            /// `malloc.h` of the GNU C library.
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: it takes a number, may be called by any thread at any time, and moves nothing that is in use.
        unsafe { malloc_trim(0) };
    }
}
