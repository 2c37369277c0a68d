//! Inputs: bytes that a fuzzer can cut, splice and change one by one, as values, and values as such bytes.

use std::fmt::Debug;

use arbitrary::{Arbitrary, Result, Unstructured};
use xen_hypercall::mock::Chance;

/// What an input consists of. Every sequence of bytes is an input: what is missing at its end is zero.
pub trait Input: Debug + for<'a> Arbitrary<'a> {
    /// Adds the bytes that this value is read from.
    fn put(&self, out: &mut Vec<u8>);

    /// The bytes that this value is read from.
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.put(&mut bytes);
        bytes
    }
}

/// Defines structs and enums of inputs: a byte for the variant, and then its fields in their order.
macro_rules! input {
    () => {};
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* } $($rest:tt)*) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Debug)]
        #[allow(missing_docs, reason = "what needs an explanation has one")]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }

        impl<'a> arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                Ok(Self { $($field: arbitrary::Arbitrary::arbitrary(u)?,)* })
            }
        }

        impl $crate::input::Input for $name {
            fn put(&self, out: &mut Vec<u8>) {
                $($crate::input::Input::put(&self.$field, out);)*
            }
        }

        $crate::input::input!($($rest)*);
    };
    (
        $(#[$meta:meta])* pub enum $name:ident {
            $($(#[$variant_meta:meta])* $variant:ident $({ $($field:ident: $type:ty),* })?,)*
        } $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Debug)]
        #[allow(missing_docs, reason = "what needs an explanation has one")]
        pub enum $name { $($(#[$variant_meta])* $variant $({ $($field: $type),* })?,)* }

        const _: () = {
            enum Tag { $($variant,)* }
            const TAGS: &[Tag] = &[$(Tag::$variant),*];

            impl<'a> arbitrary::Arbitrary<'a> for $name {
                fn arbitrary(u: &mut arbitrary::Unstructured<'a>) -> arbitrary::Result<Self> {
                    let tag = usize::from(<u8 as arbitrary::Arbitrary>::arbitrary(u)?);
                    Ok(match TAGS[tag % TAGS.len()] {
                        $(Tag::$variant => Self::$variant $({
                            $($field: arbitrary::Arbitrary::arbitrary(u)?),*
                        })?,)*
                    })
                }
            }

            impl $crate::input::Input for $name {
                fn put(&self, out: &mut Vec<u8>) {
                    match self {
                        $(Self::$variant $({ $($field),* })? => {
                            out.push(Tag::$variant as u8);
                            $($($crate::input::Input::put($field, out);)*)?
                        })*
                    }
                }
            }
        };

        $crate::input::input!($($rest)*);
    };
}
pub(crate) use input;

macro_rules! integers {
    ($($type:ty),*) => {
        $(impl Input for $type {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        })*
    };
}
integers!(u8, u16, u32, u64, i16);

impl Input for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl<T: Input> Input for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
}

impl<const N: usize> Input for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self);
    }
}

/// Up to 255 bytes, behind their number.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl<'a> Arbitrary<'a> for Bytes {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let len = usize::from(u8::arbitrary(u)?).min(u.len());
        Ok(Self(u.bytes(len)?.to_vec()))
    }
}

impl Input for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(self.0.len() as u8);
        out.extend(&self.0);
    }
}

/// What is done, one after the other: all that the input has, and no more than [`Ops::MOST`], so that each run ends soon.
#[derive(Clone, PartialEq, Debug)]
pub struct Ops<T>(pub Vec<T>);

impl<T> Ops<T> {
    /// How many at most.
    pub const MOST: usize = 64;
}

impl<'a, T: Arbitrary<'a>> Arbitrary<'a> for Ops<T> {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut ops = Vec::new();
        while !u.is_empty() && ops.len() < Self::MOST {
            ops.push(T::arbitrary(u)?);
        }
        Ok(Self(ops))
    }
}

impl<T: Input> Input for Ops<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|op| op.put(out));
    }
}

input! {
    /// A number, mostly one at which something may change.
    pub enum Number {
        /// A small one.
        Up { by: u8 },
        /// A little below 2^32: a negative one.
        Down { by: u8 },
        /// A power of two, or a little more.
        Power { bit: u8, more: u8 },
        /// A power of two, less a little.
        Below { bit: u8, less: u8 },
        /// Any.
        Any { value: u32 },
    }

    /// What a node says.
    pub enum Value {
        None,
        Number { number: Number },
        Text,
        Empty,
        Long,
    }
}

impl Value {
    /// As text; none: the node goes.
    pub fn text(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Number { number } => Some(number.get().to_string()),
            Self::Text => Some("00:16:3e:12:34:5g".into()),
            Self::Empty => Some(String::new()),
            Self::Long => Some("7".repeat(300)),
        }
    }
}

impl Number {
    /// The number.
    pub fn get(&self) -> u32 {
        match *self {
            Self::Up { by } => by.into(),
            Self::Down { by } => u32::from(by).wrapping_neg(),
            Self::Power { bit, more } => (1_u32 << (bit % 32)).wrapping_add(more.into()),
            Self::Below { bit, less } => (1_u32 << (bit % 32)).wrapping_sub(less.into()),
            Self::Any { value } => value,
        }
    }
}

/// How often something goes wrong: half of all bytes are never, 255 is always, and the others are up to 25 in 100.
pub fn chance(often: u8) -> Chance {
    match often {
        ..128 => Chance::NEVER,
        255 => Chance::ALWAYS,
        _ => Chance::permille(u16::from(often - 127) * 2),
    }
}

/// How many transactions clash: few, or, as it takes long, in one of 16 cases so many that the client gives up.
pub fn clashes(times: u8) -> usize {
    usize::from(if times < 240 { times % 4 } else { 70 })
}
