//! What the precompiled core of a hosted target takes from a C library and an unwinder. A core for a bare-metal target
//! brings its own.
#![cfg(not(target_os = "none"))]

use core::arch::asm;

/// # Safety
/// As in C: both are valid for `n` bytes and do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller promises valid memory; the direction flag is clear, as everywhere.
    unsafe {
        asm!("rep movsb", inout("rcx") n => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C: both are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= n {
        // SAFETY: the caller promises valid memory, and upward no byte is written before it is read.
        return unsafe { memcpy(to, from, n) };
    }
    let (last_to, last_from) = (to.wrapping_add(n - 1), from.wrapping_add(n - 1));
    // SAFETY: the caller promises valid memory; downward no byte is written before it is read.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") n => _, inout("rdi") last_to => _, inout("rsi") last_from => _,
            options(nostack));
    }
    to
}

/// # Safety
/// As in C: `to` is valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    // SAFETY: the caller promises valid memory; the direction flag is clear, as everywhere.
    unsafe {
        asm!("rep stosb", inout("rcx") n => _, inout("rdi") to => _, in("al") byte as u8,
            options(nostack, preserves_flags));
    }
    to
}

/// # Safety
/// As in C: both are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    for i in 0..n {
        // SAFETY: `i` is below `n`. Volatile, or the compiler would make this loop a call of memcmp.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
    }
    0
}

/// # Safety
/// As in C: both are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    // SAFETY: the same promises.
    unsafe { memcmp(a, b, n) }
}

/// Precompiled code names it where it would go on unwinding. A panic ends the domain and unwinds nothing.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::crash(format_args!("unwinding, in an image that never does"))
}

/// Tables of the same code name it; nobody reads them.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
