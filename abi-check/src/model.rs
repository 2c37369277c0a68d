//! What a set of headers defines, as plain data.

/// What one architecture's guests see in the headers.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    /// The architecture, as Rust calls it.
    pub arch: &'static str,
    /// Structures, unions, and names for other types.
    pub types: Vec<Type>,
    /// Macros with a value, and enumerators.
    pub values: Vec<Const>,
    /// Macros that are no value: they take arguments, or stand for code.
    pub others: Vec<Other>,
}

/// A structure, a union, or another name for a type.
#[derive(Clone, Debug, Default)]
pub struct Type {
    /// Its tag, or its name where it has no tag.
    pub name: &'static str,
    /// The header that defines it; empty when none of those covered names it, as for a part of another type.
    pub header: &'static str,
    /// Bytes.
    pub size: usize,
    /// Bytes.
    pub align: usize,
    /// The type that this is another name for; empty: it is none, or for one without a name.
    pub alias: &'static str,
    /// The fields, none for another name.
    pub fields: Vec<Field>,
}

/// A field of a type.
#[derive(Clone, Debug, Default)]
pub struct Field {
    /// Its name; empty for an anonymous structure or union.
    pub name: &'static str,
    /// Bytes from the type's beginning.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Its type's name, empty for a type without one, such as an array.
    pub ty: &'static str,
}

/// A constant.
#[derive(Clone, Debug)]
pub struct Const {
    /// Its name.
    pub name: &'static str,
    /// The header that defines it.
    pub header: &'static str,
    /// Its value.
    pub value: Value,
}

/// A macro that is no value.
#[derive(Clone, Debug)]
pub struct Other {
    /// Its name.
    pub name: &'static str,
    /// The header that defines it.
    pub header: &'static str,
}

/// What a constant is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Value {
    /// A number: the low 64 bits of it.
    Int(i64),
    /// A text.
    Text(&'static str),
}

impl Value {
    /// A C string of the headers, without its end.
    pub const fn text(bytes: &'static [u8]) -> Self {
        match bytes {
            [text @ .., 0] => match std::str::from_utf8(text) {
                Ok(text) => Self::Text(text),
                Err(_) => Self::Text("(not UTF-8)"),
            },
            _ => Self::Text("(no end)"),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Int(number) if number.unsigned_abs() < 1024 => write!(f, "{number}"),
            Self::Int(number) => write!(f, "{number} ({number:#x})"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// A place in a type, by the path of field names that leads to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// Names, joined by dots.
    pub path: String,
    /// Bytes from the type's beginning.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// No named part is in it.
    pub leaf: bool,
}

impl Headers {
    /// The type of this name, through all its other names.
    pub fn find(&self, name: &str) -> Option<&Type> {
        let mut found = self.types.iter().find(|ty| ty.name == name)?;
        // More steps than there are types would be a circle.
        for _ in 0..self.types.len() {
            match self.types.iter().find(|ty| !found.alias.is_empty() && ty.name == found.alias) {
                Some(next) => found = next,
                None => break,
            }
        }
        Some(found)
    }

    /// The constant of this name; failing that, the one whose name differs only by upper and lower case.
    pub fn constant(&self, name: &str) -> Option<&Const> {
        self.values.iter().find(|known| known.name == name).or_else(|| {
            let mut all = self.values.iter().filter(|known| known.name.eq_ignore_ascii_case(name));
            all.next().filter(|_| all.next().is_none())
        })
    }

    /// Every field of a type, of the types of its fields, and so on.
    pub fn places(&self, ty: &Type) -> Vec<Place> {
        let mut places = Vec::new();
        self.collect(ty, "", 0, 0, &mut places);
        places
    }

    fn collect(&self, ty: &Type, path: &str, base: usize, depth: usize, places: &mut Vec<Place>) {
        // Deeper than any type of the headers: a type within itself, by a mistake of the table.
        if depth > 16 {
            return;
        }
        for field in &ty.fields {
            let inner = Some(field.ty).filter(|ty| !ty.is_empty()).and_then(|ty| self.find(ty));
            let inner = inner.filter(|ty| !ty.fields.is_empty());
            let offset = base + field.offset;
            let path = match (path, field.name) {
                (path, "") => path.to_owned(),
                ("", name) => name.to_owned(),
                (path, name) => format!("{path}.{name}"),
            };
            if !field.name.is_empty() {
                places.push(Place { path: path.clone(), offset, size: field.size, leaf: inner.is_none() });
            }
            if let Some(inner) = inner {
                self.collect(inner, &path, offset, depth + 1, places);
            }
        }
    }
}
