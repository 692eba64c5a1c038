//! Reads a list of a journal or record element by element, because it may be long.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, SeqAccess, Visitor},
};

use crate::error::Result;

/// Adds each element of a list to a default value. `expected` names the list in errors.
pub fn collect<'de, D, L, T>(
    deserializer: D,
    expected: &'static str,
    add: fn(&mut L, &T) -> Result<()>,
) -> Result<L, D::Error>
where
    D: Deserializer<'de>,
    L: Default,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Elements { expected, add })
}

struct Elements<L, T> {
    expected: &'static str,
    add: fn(&mut L, &T) -> Result<()>,
}

impl<'de, L: Default, T: Deserialize<'de>> Visitor<'de> for Elements<L, T> {
    type Value = L;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<L, A::Error> {
        let mut list = L::default();
        while let Some(element) = elements.next_element()? {
            (self.add)(&mut list, &element).map_err(A::Error::custom)?;
        }
        Ok(list)
    }
}
