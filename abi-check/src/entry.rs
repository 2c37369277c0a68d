//! What the SDK says of the interface, one line for each type and constant, made by the macros here.

use crate::Value;

/// One thing to compare.
#[derive(Clone, Debug)]
pub struct Entry {
    /// How the SDK calls it.
    pub ours: String,
    /// How the headers call it: a type for a type or a field, otherwise a constant.
    pub theirs: String,
    /// Only newer headers than the oldest supported have it.
    pub newer: bool,
    /// The only architecture that it is said of; none: all that have it.
    pub arch: Option<&'static str>,
    /// What is said.
    pub is: Is,
}

/// What an [`Entry`] says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Is {
    /// A type, and its layout.
    Type {
        /// Bytes.
        size: usize,
        /// Bytes.
        align: usize,
    },
    /// A field, and its place.
    Field {
        /// Where in the headers' type, see [`Place`](crate::Place).
        path: String,
        /// Bytes from the type's beginning.
        offset: usize,
        /// Bytes, where the SDK knows it.
        size: Option<usize>,
    },
    /// A constant, and its value.
    Const(Value),
}

/// The entries, as they are gathered.
#[derive(Debug, Default)]
pub struct List {
    /// Those gathered so far.
    pub entries: Vec<Entry>,
    newer: bool,
    arch: Option<&'static str>,
}

impl List {
    /// Adds an entry.
    pub fn push(&mut self, ours: impl Into<String>, theirs: impl Into<String>, is: Is) {
        let (ours, theirs) = (ours.into(), theirs.into());
        self.entries.push(Entry { ours, theirs, newer: self.newer, arch: self.arch, is });
    }

    /// What `add` adds is checked only against headers that have it.
    pub fn newer(&mut self, add: impl FnOnce(&mut Self)) {
        let before = std::mem::replace(&mut self.newer, true);
        add(self);
        self.newer = before;
    }

    /// What `add` adds is said of one architecture alone.
    pub fn only(&mut self, arch: &'static str, add: impl FnOnce(&mut Self)) {
        let before = self.arch.replace(arch);
        add(self);
        self.arch = before;
    }
}

/// Types whose layout depends on no architecture: numbers of fixed width, aligned to their size on all that Xen runs 64-bit
/// guests on, and what is made of them. Therefore what this machine's compiler lays out is every guest's layout.
pub trait Fixed {}

macro_rules! fixed {
    ($($name:ty)*) => {$(impl Fixed for $name {})*};
}

fixed! { u8 u16 u32 u64 i8 i16 i32 i64 }
fixed! {
    core::sync::atomic::AtomicU8 core::sync::atomic::AtomicU16
    core::sync::atomic::AtomicU32 core::sync::atomic::AtomicU64
}
impl<T: Fixed, const N: usize> Fixed for [T; N] {}

/// Accepts a field of fixed layout, and nothing else.
pub const fn fixed<T: Fixed>(_: *const T) {}

/// Adds types: `OURS = theirs { FIELDS }`. Each field is one of
/// - `field`, of the same name in the headers,
/// - `field: "path"`, or `field: ["path", "path"]` where one stands for several of a union,
/// - `field: _`, which the headers do not name: padding.
///
/// All fields of the SDK's type must be there, and only types of fixed layout are taken.
#[macro_export]
macro_rules! types {
    ($list:ident, { $($ours:ident = $theirs:ident { $($field:ident $(: $how:tt)?),* $(,)? })* }) => {$(
        const _: fn(&$ours) = |&$ours { $($field: _),* }| ();
        const _: fn(&$ours) = |it| { $($crate::fixed(&raw const it.$field);)* let _ = it; };
        #[allow(non_local_definitions, reason = "the types are other crates', the trait is only for here")]
        impl $crate::Fixed for $ours {}
        $list.push(
            stringify!($ours),
            stringify!($theirs),
            $crate::Is::Type { size: size_of::<$ours>(), align: align_of::<$ours>() },
        );
        $($crate::types!(@field $list $ours $theirs $field $($how)?);)*
    )*};
    (@field $list:ident $ours:ident $theirs:ident $field:ident _) => {};
    (@field $list:ident $ours:ident $theirs:ident $field:ident) => {
        $crate::types!(@field $list $ours $theirs $field (stringify!($field)));
    };
    (@field $list:ident $ours:ident $theirs:ident $field:ident [$($path:literal),*]) => {
        $($crate::types!(@field $list $ours $theirs $field $path);)*
    };
    (@field $list:ident $ours:ident $theirs:ident $field:ident $path:expr) => {{
        let span = memoffset::span_of!($ours, $field);
        $list.push(
            concat!(stringify!($ours), ".", stringify!($field)),
            stringify!($theirs),
            $crate::Is::Field { path: $path.to_owned(), offset: span.start, size: Some(span.len()) },
        );
    }};
}

/// Adds types without fields: numbers that have a name of their own, `OURS = theirs`.
#[macro_export]
macro_rules! scalars {
    ($list:ident, { $($ours:ident = $theirs:ident),* $(,)? }) => {$(
        #[allow(non_local_definitions, reason = "the types are other crates', the trait is only for here")]
        impl $crate::Fixed for $ours {}
        $list.push(
            stringify!($ours),
            stringify!($theirs),
            $crate::Is::Type { size: size_of::<$ours>(), align: align_of::<$ours>() },
        );
    )*};
}

/// Adds offsets that the SDK keeps as constants: `theirs in MODULE { CONSTANT = "path" }`.
#[macro_export]
macro_rules! offsets {
    ($list:ident, $theirs:ident in $module:ident { $($ours:ident = $path:literal),* $(,)? }) => {$(
        $list.push(
            concat!(stringify!($module), "::", stringify!($ours)),
            stringify!($theirs),
            $crate::Is::Field { path: $path.to_owned(), offset: $module::$ours as usize, size: None },
        );
    )*};
}

/// Adds constants: `OWNER "PREFIX" [ACCESS] { NAME, NAME = "theirs" }`. `OWNER` is the module or type of the SDK that has
/// them, `PREFIX` what the headers put before the name, `ACCESS` what makes a number of the constant, such as `.0`. Upper
/// and lower case need not agree.
#[macro_export]
macro_rules! consts {
    ($list:ident, $owner:ident { $($rest:tt)* }) => { $crate::consts!($list, $owner "" [] { $($rest)* }); };
    ($list:ident, $owner:ident $prefix:literal { $($rest:tt)* }) => {
        $crate::consts!($list, $owner $prefix [] { $($rest)* });
    };
    ($list:ident, $owner:ident $prefix:literal $access:tt { $($name:ident $(= $theirs:literal)?),* $(,)? }) => {$(
        $crate::consts!(@one $list $owner $prefix $access $name $($theirs)?);
    )*};
    (@one $list:ident $owner:ident $prefix:literal $access:tt $name:ident) => {
        $crate::consts!(@push $list $owner $access $name concat!($prefix, stringify!($name)));
    };
    (@one $list:ident $owner:ident $prefix:literal $access:tt $name:ident $theirs:literal) => {
        $crate::consts!(@push $list $owner $access $name $theirs);
    };
    (@push $list:ident $owner:ident [$($access:tt)*] $name:ident $theirs:expr) => {
        $list.push(
            concat!(stringify!($owner), "::", stringify!($name)),
            $theirs,
            $crate::Is::Const($crate::Value::Int($owner::$name$($access)* as i64)),
        );
    };
}

/// Adds numbers that the SDK has in another form than a constant: `"theirs" = VALUE`.
#[macro_export]
macro_rules! numbers {
    ($list:ident, { $($theirs:literal = $value:expr),* $(,)? }) => {$(
        $list.push(stringify!($value), $theirs, $crate::Is::Const($crate::Value::Int($value as i64)));
    )*};
}

/// Adds texts: `"theirs" = VALUE`.
#[macro_export]
macro_rules! texts {
    ($list:ident, { $($theirs:literal = $value:expr),* $(,)? }) => {$(
        $list.push(stringify!($value), $theirs, $crate::Is::Const($crate::Value::Text($value)));
    )*};
}
