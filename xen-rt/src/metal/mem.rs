//! What the precompiled core and alloc of a hosted target want of a C library and an unwinder, where there is neither.
#![allow(unsafe_code, reason = "these are the bottom that slices are made of")]

use core::arch::asm;

/// # Safety
/// As in C: both are valid for `n` bytes and do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller promises valid memory; the direction flag is clear, as everywhere.
    unsafe {
        asm!("rep movsq", inout("rcx") n / 8 => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack));
        let done = n & !7;
        asm!("rep movsb", inout("rcx") n % 8 => _, inout("rdi") to.add(done) => _, inout("rsi") from.add(done) => _, options(nostack));
    }
    to
}

/// # Safety
/// As in C: both are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the caller promises valid memory. Copying upward is right unless `to` lies within what is copied;
    // then it goes downward, with the direction flag set meanwhile.
    unsafe {
        if (to as usize).wrapping_sub(from as usize) >= n {
            return memcpy(to, from, n);
        }
        let end = n.wrapping_sub(1);
        asm!(
            "std", "rep movsb", "cld",
            inout("rcx") n => _, inout("rdi") to.wrapping_add(end) => _, inout("rsi") from.wrapping_add(end) => _,
            options(nostack),
        );
    }
    to
}

/// # Safety
/// As in C: `to` is valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, n: usize) -> *mut u8 {
    let word = u64::from(byte as u8) * 0x0101_0101_0101_0101;
    // SAFETY: the caller promises valid memory; the direction flag is clear, as everywhere.
    unsafe {
        asm!("rep stosq", inout("rcx") n / 8 => _, inout("rdi") to => _, in("rax") word, options(nostack));
        asm!("rep stosb", inout("rcx") n % 8 => _, inout("rdi") to.add(n & !7) => _, in("rax") word, options(nostack));
    }
    to
}

/// # Safety
/// As in C: both are valid for `n` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
    let mut i = 0;
    while i + 8 <= n {
        // SAFETY: the eight bytes at `i` are among the `n`.
        let (x, y) =
            unsafe { (a.add(i).cast::<u64>().read_unaligned(), b.add(i).cast::<u64>().read_unaligned()) };
        if x != y {
            break;
        }
        i += 8;
    }
    while i < n {
        // SAFETY: `i` is below `n`. Volatile, or the compiler would make this loop a call of memcmp.
        let (x, y) = unsafe { (a.add(i).read_volatile(), b.add(i).read_volatile()) };
        if x != y {
            return i32::from(x) - i32::from(y);
        }
        i += 1;
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

/// # Safety
/// As in C: bytes up to a zero byte.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut n = 0;
    // SAFETY: no byte before was zero, so this one is there. Volatile, or this loop would become a call of strlen.
    while unsafe { text.add(n).read_volatile() } != 0 {
        n += 1;
    }
    n
}

/// Precompiled code names it where it would go on unwinding. A panic ends the domain and unwinds nothing.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    crate::crash(format_args!("unwinding, in an image that never does"))
}

/// Tables of the same code name it; nobody reads them.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
