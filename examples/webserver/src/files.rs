//! Files on a FAT disk, by path: many readers of one file, uploads that replace a file only when complete.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::ControlFlow;
use core::time::Duration;

use embedded_sdmmc::{
    Block, BlockCount, BlockDevice, BlockIdx, DirEntry, Error, LfnBuffer, Mode, RawDirectory, RawFile,
    RawVolume, TimeSource, Timestamp, VolumeIdx, VolumeManager,
};

use crate::Disk;
use crate::clock::Date;
use crate::report::Report;

/// What can go wrong with a file of disk `D`.
pub(crate) type Failure<D> = Error<<D as BlockDevice>::Error>;

/// Readers of every connection and one upload for each fit.
const MAX_FILES: usize = 72;
/// An upload is copied into place in pieces of this size, so that others are served between them.
const PIECE: usize = 32 * 1024;

/// The first FAT partition of a disk, or a disk that is one FAT file system without partitions.
#[derive(Debug)]
pub(crate) struct Files<D: Disk> {
    volumes: VolumeManager<Partitioned<D>, Clock, 4, MAX_FILES, 1>,
    volume: RawVolume,
    readers: RefCell<Vec<Reader>>,
    uploads: Cell<usize>,
    now: Rc<Cell<Duration>>,
}

/// A file that any number of connections read.
#[derive(Debug)]
struct Reader {
    file: RawFile,
    place: (BlockIdx, u32),
    users: usize,
}

/// What a path names.
#[derive(Debug)]
pub(crate) enum Node {
    /// A file open for reading, and its size in bytes. To be given back by [`Files::release`].
    File(RawFile, u32),
    /// A directory.
    Directory,
}

/// A file being written.
#[derive(Debug)]
pub(crate) struct Upload {
    file: RawFile,
    path: String,
    /// Of an upload that replaces a file.
    replaces: Option<Replaces>,
    /// Whether a file was there before.
    pub(crate) replaced: bool,
}

/// The old file stays whole until the new one has arrived in full beside it.
#[derive(Debug)]
struct Replaces {
    beside: String,
    /// The old file, once copying over it has begun.
    target: Option<RawFile>,
}

impl<D: Disk> Files<D> {
    /// Finds the file system. The disk comes back when there is none.
    pub(crate) fn open(disk: D, unix_time: Duration) -> Result<Self, (Failure<D>, D)> {
        let disk = match is_bare(&disk) {
            Ok(bare) => Partitioned { inner: disk, bare },
            Err(error) => return Err((Error::DeviceError(error), disk)),
        };
        let now = Rc::new(Cell::new(unix_time));
        let volumes = VolumeManager::new_with_limits(disk, Clock(now.clone()), 1);
        match volumes.open_raw_volume(VolumeIdx(0)) {
            Ok(volume) => {
                Ok(Self { volumes, volume, readers: RefCell::default(), uploads: Cell::default(), now })
            }
            Err(error) => Err((error, volumes.free().0.inner)),
        }
    }

    /// Whether the disk is there still.
    pub(crate) fn is_there(&self) -> bool {
        self.with_disk(D::is_there)
    }

    /// Whether the disk is on its way back.
    pub(crate) fn is_awaited(&self) -> bool {
        self.with_disk(D::is_awaited)
    }

    /// The disk itself.
    pub(crate) fn with_disk<R>(&self, f: impl FnOnce(&D) -> R) -> R {
        self.volumes.device(|disk| f(&disk.inner))
    }

    /// The disk, of which nothing more can be had.
    pub(crate) fn give_up(self) -> D {
        self.volumes.free().0.inner
    }

    /// The time that files written from now on get.
    pub(crate) fn set_time(&self, unix_time: Duration) {
        self.now.set(unix_time);
    }

    /// Whether writing is refused.
    pub(crate) fn read_only(&self) -> bool {
        self.with_disk(D::read_only)
    }

    /// The disk's size in bytes.
    pub(crate) fn size(&self) -> u64 {
        let blocks = self.volumes.device(|disk| disk.num_blocks());
        blocks.map_or(0, |blocks| u64::from(blocks.0) * Block::LEN as u64)
    }

    /// Returns when all that was written is on stable storage.
    fn flush(&self) -> Result<(), Failure<D>> {
        self.with_disk(D::flush).map_err(Error::DeviceError)
    }

    /// Opens a file, or finds a directory.
    pub(crate) fn find(&self, path: &str) -> Result<Node, Failure<D>> {
        self.within(path, |dir, name| {
            let Some(entry) = self.entry(dir, name)? else {
                return Ok(Node::Directory);
            };
            if entry.attributes.is_directory() {
                return Ok(Node::Directory);
            }
            let place = (entry.entry_block, entry.entry_offset);
            let mut readers = self.readers.borrow_mut();
            if let Some(reader) = readers.iter_mut().find(|r| r.place == place) {
                reader.users += 1;
                return Ok(Node::File(reader.file, entry.size));
            }
            let file = self.volumes.open_file_in_dir(dir, entry.name, Mode::ReadOnly)?;
            readers.push(Reader { file, place, users: 1 });
            Ok(Node::File(file, entry.size))
        })
    }

    /// Reads at an offset in bytes; fewer bytes than asked for only at the end.
    pub(crate) fn read(&self, file: RawFile, at: u32, buf: &mut [u8]) -> Result<usize, Failure<D>> {
        self.volumes.file_seek_from_start(file, at)?;
        self.volumes.read(file, buf)
    }

    /// Gives back what [`find`](Self::find) opened.
    pub(crate) fn release(&self, file: RawFile) {
        let mut readers = self.readers.borrow_mut();
        if let Some(at) = readers.iter().position(|r| r.file == file)
            && let Some(reader) = readers.get_mut(at)
        {
            reader.users -= 1;
            if reader.users == 0 {
                readers.swap_remove(at);
                self.ended(self.volumes.close_file(file));
            }
        }
    }

    /// Calls `each` with name, whether it is a directory, and size of every entry of a directory.
    pub(crate) fn list(&self, path: &str, mut each: impl FnMut(&str, bool, u32)) -> Result<(), Failure<D>> {
        self.within(&format!("{path}/."), |dir, _| {
            self.scan(dir, &mut |entry, name| {
                if !name.starts_with('.') {
                    each(name, entry.attributes.is_directory(), entry.size);
                }
                ControlFlow::Continue(())
            })
        })
    }

    /// Removes a file or an empty directory, for good.
    pub(crate) fn delete(&self, path: &str) -> Result<(), Failure<D>> {
        self.writable()?;
        self.within(path, |dir, name| {
            let entry = self.entry(dir, name)?.ok_or(Error::Unsupported)?;
            if !entry.attributes.is_directory() {
                // Deleting an entry leaves its clusters taken: what the file held is given back first.
                let file = self.volumes.open_file_in_dir(dir, entry.name, Mode::ReadWriteTruncate)?;
                self.volumes.close_file(file)?;
            }
            self.volumes.delete_entry_in_dir(dir, entry.name)
        })?;
        self.flush()
    }

    /// Begins to write a file.
    pub(crate) fn create(&self, path: &str) -> Result<Upload, Failure<D>> {
        self.writable()?;
        let existing = self.within(path, |dir, name| match self.entry(dir, name) {
            Ok(Some(entry)) if !entry.attributes.is_directory() => Ok(true),
            Ok(_) => Err(Error::OpenedDirAsFile),
            Err(Error::NotFound) => Ok(false),
            Err(e) => Err(e),
        })?;
        let number = self.uploads.replace((self.uploads.get() + 1) % MAX_FILES);
        let replaces = existing.then(|| Replaces { beside: format!("UPLOAD{number:02}.TMP"), target: None });
        let (at, mode) = match &replaces {
            Some(replaces) => (replaces.beside.as_str(), Mode::ReadWriteCreateOrTruncate),
            None => (path, Mode::ReadWriteCreate),
        };
        let file = self.within(at, |dir, name| self.volumes.open_file_in_dir(dir, name, mode))?;
        Ok(Upload { file, path: path.into(), replaces, replaced: existing })
    }

    /// Writes the next bytes of an upload.
    pub(crate) fn append(&self, upload: &Upload, data: &[u8]) -> Result<(), Failure<D>> {
        self.volumes.write(upload.file, data)
    }

    /// Completes an upload, in steps: true when the file is in place and on stable storage.
    pub(crate) fn finish(&self, upload: &mut Upload) -> Result<bool, Failure<D>> {
        if let Some(replaces) = &mut upload.replaces {
            let to = match replaces.target {
                Some(file) => file,
                None => {
                    self.volumes.flush_file(upload.file)?;
                    self.volumes.file_seek_from_start(upload.file, 0)?;
                    *replaces.target.insert(self.within(&upload.path, |dir, name| {
                        let entry = self.entry(dir, name)?.ok_or(Error::NotFound)?;
                        self.volumes.open_file_in_dir(dir, entry.name, Mode::ReadWriteTruncate)
                    })?)
                }
            };
            let mut piece = alloc::vec![0; PIECE];
            let n = self.volumes.read(upload.file, &mut piece)?;
            if n > 0 {
                self.volumes.write(to, piece.get(..n).unwrap_or_default())?;
                return Ok(false);
            }
            self.volumes.close_file(to)?;
            replaces.target = None;
        } else {
            self.volumes.flush_file(upload.file)?;
        }
        self.flush()?;
        Ok(true)
    }

    /// Ends an upload; one that did not [`finish`](Self::finish) leaves things as they were.
    pub(crate) fn end(&self, upload: Upload, finished: bool) {
        self.ended(self.volumes.close_file(upload.file));
        if let Some(Replaces { beside, target }) = upload.replaces {
            if let Some(file) = target {
                self.ended(self.volumes.close_file(file));
            }
            self.ended(self.delete(&beside));
        } else if !finished {
            self.ended(self.delete(&upload.path));
        }
    }

    /// Closes the file system; all is on stable storage afterwards.
    pub(crate) fn close(self) {
        for reader in self.readers.take() {
            self.ended(self.volumes.close_file(reader.file));
        }
        self.ended(self.volumes.close_volume(self.volume));
        self.ended(self.flush());
        self.give_up().close();
    }

    /// Tells of the disk and what is open.
    pub(crate) fn report(&self, to: &mut dyn Report) {
        self.volumes.device(|disk| disk.inner.report(to));
        to.section("Files");
        to.figure("files_open", self.readers.borrow().len() as u64);
    }

    fn ended(&self, result: Result<(), Failure<D>>) {
        if let Err(e) = result {
            log::warn!("disk: {e}");
        }
    }

    fn writable(&self) -> Result<(), Failure<D>> {
        if self.read_only() { Err(Error::ReadOnly) } else { Ok(()) }
    }

    /// Does something with the last name of `path` in the directory that holds it.
    fn within<R>(
        &self,
        path: &str,
        f: impl FnOnce(RawDirectory, &str) -> Result<R, Failure<D>>,
    ) -> Result<R, Failure<D>> {
        let (dir, name) = self.walk(path)?;
        let result = f(dir, name);
        self.ended(self.volumes.close_dir(dir));
        result
    }

    /// Walks to the directory that holds the last name of `path`, which is to be closed. Returns it and the name.
    fn walk<'p>(&self, path: &'p str) -> Result<(RawDirectory, &'p str), Failure<D>> {
        let mut dir = self.volumes.open_root_dir(self.volume)?;
        let mut names = path.split('/').filter(|name| !name.is_empty());
        let mut last = names.next().unwrap_or(".");
        for next in names {
            let inner = self
                .entry(dir, last)
                .and_then(|entry| self.volumes.open_dir(dir, entry.ok_or(Error::NotFound)?.name));
            self.ended(self.volumes.close_dir(dir));
            (dir, last) = (inner?, next);
        }
        Ok((dir, last))
    }

    /// The entry of a name, long or short, in any case; none for "." (the directory itself).
    fn entry(&self, dir: RawDirectory, name: &str) -> Result<Option<DirEntry>, Failure<D>> {
        if name == "." {
            return Ok(None);
        }
        let mut found = None;
        self.scan(dir, &mut |entry, other| {
            if !other.eq_ignore_ascii_case(name) {
                return ControlFlow::Continue(());
            }
            found = Some(entry.clone());
            ControlFlow::Break(())
        })?;
        found.map(Some).ok_or(Error::NotFound)
    }

    fn scan(
        &self,
        dir: RawDirectory,
        each: &mut dyn FnMut(&DirEntry, &str) -> ControlFlow<()>,
    ) -> Result<(), Failure<D>> {
        let mut storage = [0; 780];
        let mut long = LfnBuffer::new(&mut storage);
        self.volumes.iterate_dir_lfn(dir, &mut long, |entry, name| {
            if entry.attributes.is_volume() {
                return ControlFlow::Continue(());
            }
            match name {
                Some(name) => each(entry, name),
                None => each(entry, &format!("{}", entry.name)),
            }
        })
    }
}

/// A disk that always shows a partition table: a bare file system is moved behind one of our making.
#[derive(Debug)]
struct Partitioned<D> {
    inner: D,
    bare: bool,
}

/// Whether a disk is one FAT file system from its first block on.
fn is_bare<D: Disk>(disk: &D) -> Result<bool, D::Error> {
    let mut first = [Block::new()];
    disk.read(&mut first, BlockIdx(0))?;
    let [first] = first;
    let jump = matches!(first.contents, [0xEB, _, 0x90, ..] | [0xE9, ..]);
    Ok(jump && (first.contents[54..].starts_with(b"FAT") || first.contents[82..].starts_with(b"FAT")))
}

impl<D: Disk> BlockDevice for Partitioned<D> {
    type Error = D::Error;

    fn read(&self, blocks: &mut [Block], start: BlockIdx) -> Result<(), D::Error> {
        match (self.bare, start.0, blocks) {
            (true, 0, [table, rest @ ..]) => {
                let count = self.inner.num_blocks()?.0;
                *table = Block::new();
                table.contents[446..462]
                    .copy_from_slice(&[0, 0, 0, 0, 0x0C, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
                table.contents[458..462].copy_from_slice(&count.to_le_bytes());
                table.contents[510..].copy_from_slice(&[0x55, 0xAA]);
                if rest.is_empty() { Ok(()) } else { self.inner.read(rest, BlockIdx(0)) }
            }
            (bare, at, blocks) => self.inner.read(blocks, BlockIdx(at - u32::from(bare))),
        }
    }

    fn write(&self, blocks: &[Block], start: BlockIdx) -> Result<(), D::Error> {
        match (self.bare, start.0, blocks) {
            (true, 0, [_, rest @ ..]) => self.inner.write(rest, BlockIdx(0)),
            (bare, at, blocks) => self.inner.write(blocks, BlockIdx(at - u32::from(bare))),
        }
    }

    fn num_blocks(&self) -> Result<BlockCount, D::Error> {
        Ok(BlockCount(self.inner.num_blocks()?.0.saturating_add(u32::from(self.bare))))
    }
}

#[derive(Debug)]
struct Clock(Rc<Cell<Duration>>);

impl TimeSource for Clock {
    fn get_timestamp(&self) -> Timestamp {
        let date = Date::from(self.0.get());
        Timestamp {
            year_since_1970: date.year.saturating_sub(1970) as u8,
            zero_indexed_month: date.month - 1,
            zero_indexed_day: date.day - 1,
            hours: date.hour,
            minutes: date.minute,
            seconds: date.second,
        }
    }
}
