//! Many short texts in little memory, for plans of hundreds of thousands of files.

use std::{num::NonZeroU32, sync::Arc};

use crate::error::{Code, Error, Result};

/// Many texts in one allocation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    all: String,
    /// The end of each text in `all`.
    ends: Vec<u32>,
}

/// The number of a text, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextId(NonZeroU32);

impl TextId {
    pub fn number(self) -> u32 {
        self.0.get()
    }

    pub fn of_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(TextId)
    }
}

impl Texts {
    /// Creates an empty list with room for that many texts of that length together, because a list
    /// that grows takes twice its room.
    pub fn with_capacity(count: usize, bytes: usize) -> Self {
        Texts {
            all: String::with_capacity(bytes),
            ends: Vec::with_capacity(count),
        }
    }

    /// Adds a text. `KG_NOT_A_BACKUP` if there is no room, which only a forged archive can cause.
    pub fn push(&mut self, text: &str) -> Result<TextId> {
        let end = self.all.len().checked_add(text.len());
        let end = end.and_then(|end| u32::try_from(end).ok());
        let number = u32::try_from(self.ends.len() + 1).ok();
        let (Some(end), Some(id)) = (end, number.and_then(NonZeroU32::new)) else {
            return Err(Error::new(
                Code::NotABackup,
                "The paths of the backup are longer than 4 GiB together",
                "Nothing was changed; do not use this archive",
            ));
        };
        self.all.push_str(text);
        self.ends.push(end);
        Ok(TextId(id))
    }

    fn count(&self) -> u32 {
        // `push` counts in `u32`.
        self.ends.len() as u32
    }

    /// Returns the text at that index, or an empty text if there is none.
    fn at(&self, index: u32) -> &str {
        let end_of = |index: u32| self.ends.get(index as usize).map(|end| *end as usize);
        let start = index.checked_sub(1).map_or(Some(0), end_of);
        start
            .zip(end_of(index))
            .and_then(|(start, end)| self.all.get(start..end))
            .unwrap_or_default()
    }

    /// Returns the text of that number, or an empty text if there is none.
    pub fn get(&self, id: TextId) -> &str {
        self.at(id.0.get() - 1)
    }
}

/// Texts that others hold too, and more texts that follow them.
#[derive(Debug, Clone, Default)]
pub struct MoreTexts {
    shared: Arc<Texts>,
    own: Texts,
}

impl MoreTexts {
    pub fn after(shared: Arc<Texts>) -> Self {
        MoreTexts {
            shared,
            own: Texts::default(),
        }
    }

    pub fn push(&mut self, text: &str) -> Result<TextId> {
        let TextId(own) = self.own.push(text)?;
        let id = own.checked_add(self.shared.count());
        id.map(TextId)
            .ok_or_else(|| Error::internal("There are too many paths"))
    }

    pub fn get(&self, id: TextId) -> &str {
        let index = id.0.get() - 1;
        match index.checked_sub(self.shared.count()) {
            Some(own) => self.own.at(own),
            None => self.shared.at(index),
        }
    }

    /// Returns all texts under the same numbers.
    pub fn into_shared(self) -> Result<Arc<Texts>> {
        if self.shared.count() == 0 {
            return Ok(Arc::new(self.own));
        }
        let mut all = Arc::unwrap_or_clone(self.shared);
        for index in 0..self.own.count() {
            all.push(self.own.at(index))?;
        }
        Ok(Arc::new(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_keep_their_numbers_whether_they_are_shared_or_not() {
        let mut texts = Texts::default();
        let first: Vec<_> = ["", "a", "bc"]
            .iter()
            .map(|text| texts.push(text).unwrap())
            .collect();
        let mut more = MoreTexts::after(Arc::new(texts));
        let later: Vec<_> = ["", "def", "é"]
            .iter()
            .map(|text| more.push(text).unwrap())
            .collect();
        let ids: Vec<_> = first.into_iter().chain(later).collect();
        let expected = ["", "a", "bc", "", "def", "é"];
        let found: Vec<&str> = ids.iter().map(|id| more.get(*id)).collect();
        assert_eq!(found, expected);
        let all = more.clone().into_shared().unwrap();
        let found: Vec<&str> = ids.iter().map(|id| all.get(*id)).collect();
        assert_eq!(found, expected);
    }
}
