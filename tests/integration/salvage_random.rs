//! Random databases with random damage. Salvage returns every row on untouched pages and invents
//! none.
//!
//! `SALVAGE_CASES=2000 cargo test --test integration salvage_random -- --nocapture` tests more
//! cases.

use std::collections::BTreeMap;

use crate::support::{
    Intact, Variant, build,
    damage::{Tally, judge, noise},
};

/// A sequence of pseudo-random numbers that is the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }

    fn database(&mut self) -> (Variant, Intact) {
        let page_size = 512 << self.below(8);
        let variant = Variant {
            page_size,
            encoding: ["UTF-8", "UTF-16le", "UTF-16be"][self.below(3)],
            auto_vacuum: self.below(2) == 0,
            reserved: [0, 0, 0, 12, 32][self.below(5)],
            in_wal: self.below(4) == 0,
        };
        let dir = tempfile::tempdir().unwrap();
        let intact = build(&dir.path().join("intact.db"), variant, 60 + self.below(120));
        (variant, intact)
    }

    /// Changes one page. Returns the kind of damage and the number of the page.
    fn damage(&mut self, intact: &Intact, bytes: &mut [u8]) -> (&'static str, u32) {
        let size = intact.page_size;
        let pages = bytes.len() / size;
        let (page, other) = (self.below(pages), self.below(pages));
        let range = page * size..(page + 1) * size;
        let how = match self.below(5) {
            0 => {
                bytes[range].copy_from_slice(&noise(self.0, size));
                "noise"
            }
            1 => {
                bytes[range].fill(0);
                "zeros"
            }
            2 => {
                bytes.copy_within(other * size..(other + 1) * size, range.start);
                "a copy of another page"
            }
            3 => {
                let at = range.start + self.below(12) + if page == 0 { 100 } else { 0 };
                bytes[at] ^= 1 << self.below(8);
                "a bit of the page's header"
            }
            _ => {
                let header = range.start + if page == 0 { 100 } else { 0 };
                // Rows may begin after the pointers, and a changed bit inside a value cannot be
                // detected.
                let cells = usize::from(u16::from_be_bytes([bytes[header + 3], bytes[header + 4]]))
                    .clamp(1, 16);
                let pointers = match bytes[header] {
                    10 | 13 => cells * 2,
                    2 | 5 => 4 + cells * 2,
                    _ => 40,
                };
                let at = header + 8 + self.below(pointers);
                bytes[at] ^= 1 << self.below(8);
                "a bit of the cell pointers"
            }
        };
        (how, page as u32 + 1)
    }
}

#[test]
fn random_damage_costs_no_row_on_an_untouched_page_and_invents_none() {
    let cases: usize = std::env::var("SALVAGE_CASES").map_or(60, |cases| cases.parse().unwrap());
    let mut random = Random(std::env::var("SALVAGE_SEED").map_or(1, |seed| seed.parse().unwrap()));
    let (mut sum, mut failures) = (BTreeMap::<String, Tally>::new(), Vec::new());
    let mut database = random.database();
    for case in 0..cases {
        if case % 10 == 9 {
            database = random.database();
        }
        let (variant, intact) = &database;
        let mut bytes = intact.bytes.clone();
        let damages: Vec<(&str, u32)> = (0..1 + random.below(4))
            .map(|_| random.damage(intact, &mut bytes))
            .collect();
        let (tally, _) = judge(intact, &bytes);
        let sum = sum.entry(format!("{} pages", damages.len())).or_default();
        sum.cases += 1;
        sum.whole += tally.whole;
        sum.saved += tally.saved;
        sum.aside += tally.aside;
        sum.invented += tally.invented;
        sum.changed += tally.changed;
        if tally.saved + tally.aside < tally.whole || tally.invented > 0 {
            let kinds = damages
                .iter()
                .map(|(how, page)| format!("{how} {page} ({:?})", intact.kinds.get(page)));
            failures.push(format!(
                "{case}: {variant:?}, {:?}: {tally:?}",
                kinds.collect::<Vec<_>>()
            ));
        }
    }
    println!("{sum:#?}");
    assert!(
        failures.is_empty(),
        "{} of {cases}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}
