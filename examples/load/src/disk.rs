//! A disk past the page cache, with as much under way at once as is asked for: the kernel's asynchronous calls (io_submit(2)).
#![allow(unsafe_code, reason = "the kernel's calls have no safe form in the standard library")]

use std::fs::{File, OpenOptions};
use std::io::{Error, Result, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Instant;

use load::{CHANCE, JOBS, Job, next_place};

/// What direct transfers want buffers to be aligned to.
#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// `struct iocb` of linux/aio_abi.h, little endian.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Control {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_file: u32,
}

/// `struct io_event`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    more: i64,
}

const READ: u16 = 0;
const WRITE: u16 = 1;

/// Runs all jobs on a disk, whose content is lost, and prints a line for each.
pub(crate) fn run(path: &str) -> Result<String> {
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    for job in &JOBS {
        let micros = measure(&file, size, job)?;
        let (ops, bytes) = (job.ops, u64::from(job.ops) * job.size as u64);
        println!("block {} depth={} ops={ops} bytes={bytes} us={micros}", job.name, job.depth);
    }
    Ok("block done".to_owned())
}

fn measure(file: &File, size: u64, job: &Job) -> Result<u128> {
    let (places, ops) = (size / job.size as u64, u64::from(job.ops));
    if places == 0 {
        return Err(Error::other("the disk is too small"));
    }
    let pages = job.size / size_of::<Page>();
    let mut buffers = vec![Page([b'.'; 4096]); pages * job.depth];
    let mut context: libc::c_ulong = 0;
    // SAFETY: io_setup writes one word, to a word of ours.
    check(unsafe { libc::syscall(libc::SYS_io_setup, job.depth, &raw mut context) });
    let mut controls = vec![Control::default(); job.depth];
    let mut idle: Vec<usize> = (0..job.depth).collect();
    let mut events = vec![Event::default(); job.depth];
    let (mut asked, mut done, mut chance) = (0, 0, CHANCE);
    let start = Instant::now();
    while done < ops {
        let mut batch: Vec<*mut Control> = Vec::with_capacity(job.depth);
        while asked < ops {
            let Some(index) = idle.pop() else { break };
            let place = if job.random { next_place(&mut chance) } else { asked } % places;
            controls[index] = Control {
                data: index as u64,
                opcode: if job.writes { WRITE } else { READ },
                file: file.as_raw_fd() as u32,
                buffer: buffers[index * pages..].as_mut_ptr().expose_provenance() as u64,
                bytes: job.size as u64,
                offset: (place * job.size as u64) as i64,
                ..Control::default()
            };
            batch.push(&raw mut controls[index]);
            asked += 1;
        }
        // SAFETY: each control block is valid, and so is the part of the buffers that it names, `job.size` bytes that are
        // this operation's alone; all stay where they are until the operation is done, which the loop waits for, or
        // until the process ends after an error.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, context, batch.len(), batch.as_mut_ptr()) };
        if check(taken) != batch.len() {
            stop("the kernel took only a part");
        }
        // SAFETY: there is room for `job.depth` events.
        let got = unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                context,
                1_usize,
                job.depth,
                events.as_mut_ptr(),
                std::ptr::null_mut::<libc::timespec>(),
            )
        };
        for event in events.iter().take(check(got)) {
            if event.result != job.size as i64 {
                stop(format_args!("{} moved {} bytes of {}", job.name, event.result, job.size));
            }
            idle.push(event.data as usize);
            done += 1;
        }
    }
    let took = start.elapsed().as_micros();
    // SAFETY: nothing is under way any more.
    check(unsafe { libc::syscall(libc::SYS_io_destroy, context) });
    Ok(took)
}

/// Ends the process where the kernel refuses: what is under way may still use the buffers.
fn check(result: libc::c_long) -> usize {
    usize::try_from(result).unwrap_or_else(|_| stop(Error::last_os_error()))
}

fn stop(why: impl std::fmt::Display) -> ! {
    eprintln!("load: {why}");
    std::process::exit(1)
}
